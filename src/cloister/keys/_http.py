"""The service over HTTP: sizes before parsing, JSON in, signed JSON out, no stack trace ever."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from cloister.errors import CloisterError, InputError, InternalError
from cloister.keys._core import ACTIONS
from cloister.keys._entries import Action
from cloister.keys._messages import EvidenceRequest, UnlockRequest
from cloister.keys._paths import PATHS
from cloister.keys._selection import LogQuery
from cloister.keys._service import Service
from cloister.manifest import load_signed
from cloister.wire import Envelope, canonical, parse_message

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

__all__ = ["create_app"]

_log = logging.getLogger("cloister.keys")

Handler = Callable[["Request"], Awaitable["Response"]]

MAX_BODY_BYTES = 3 << 20  # a release request with its collateral; a signed manifest has at most 1 MiB

_STATUS: Final = {2003: 413, 2401: 404, 3401: 404, 3425: 429, 3433: 503, 6405: 503, 6406: 503}
_BRANCH_STATUS: Final = {2: 400, 3: 403, 4: 403, 5: 422, 6: 502}


def create_app(service: Service) -> FastAPI:
    """The ASGI application of a service.

    Raises:
        InputError: 2006 without the extra ``serve``.
    """
    try:
        from fastapi import FastAPI, Response
        from starlette.exceptions import HTTPException
    except ImportError:
        raise InputError(2006, "a service needs FastAPI", hint="pip install 'cloister[serve]'") from None

    app = FastAPI(title="cloister key manager", docs_url=None, redoc_url=None, openapi_url=None)
    pool = ThreadPoolExecutor(max(4, os.cpu_count() or 4), thread_name_prefix="cloister-keys")

    def done(envelope: Envelope) -> Response:
        return Response(envelope.canonical(), media_type="application/json")

    def refused(error: CloisterError, signed: Envelope | None = None) -> Response:
        body: dict[str, Any] = {"error": error.as_json()}
        if signed is not None:
            body["signed"] = signed.as_json()
        elif not service.locked and error.code != 9001:
            body["signed"] = service.desk.core.refusal(error).as_json()
        status = _STATUS.get(error.code, _BRANCH_STATUS.get(error.exit_status, 500))
        return Response(canonical(body), status_code=status, media_type="application/json")

    async def in_thread(work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)

    def decision(action: Action) -> Handler:
        def submit(data: bytes) -> Any:
            desk = service.desk
            if action == "install-manifest":
                return desk.submit(action, load_signed(data))
            kind = ACTIONS[action][0]
            return desk.submit(action, parse_message(kind, data, what=f"{action} request", max_bytes=MAX_BODY_BYTES))

        async def handle(request: Request) -> Response:
            data = await _read(request)
            decided = await asyncio.wrap_future(await in_thread(submit, data))
            envelope, error = await in_thread(service.desk.finish, decided)
            return done(envelope) if error is None else refused(error, envelope)

        return handle

    async def evidence(request: Request) -> Response:
        body = parse_message(EvidenceRequest, await _read(request), what="evidence request", max_bytes=4096)
        return done(await in_thread(service.evidence, body))

    async def unlock(request: Request) -> Response:
        body = parse_message(UnlockRequest, await _read(request), what="unlock request", max_bytes=1 << 16)
        return done(await in_thread(service.unlock, body))

    async def head(request: Request) -> Response:
        _query(request)
        return done(await in_thread(service.desk.head))

    async def proof(request: Request) -> Response:
        first = _number("from", _query(request, "from")["from"])
        return done(await in_thread(service.desk.consistency, first))

    async def entries(request: Request) -> Response:
        given = _query(request, *LogQuery.model_fields, optional=("run", "selection", "start", "count"))
        numbers = {name: _number(name, given[name]) for name in ("size", "start", "count") if name in given}
        asked = parse_message(LogQuery, {**given, **numbers}, what="query")
        return done(await in_thread(lambda: service.desk.page(asked)))

    async def no_such_page(_request: Request, _error: Exception) -> Response:
        return refused(InputError(2401))

    def guarded(handler: Handler) -> Handler:
        """Nothing but an answer leaves a handler: the framework would log a stack trace, with whatever is in it."""

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except CloisterError as error:
                return refused(error)
            except Exception as error:
                _log.error("internal error: %s", type(error).__name__)
                return refused(InternalError(9001))

        return handle

    for action, path in PATHS.items():
        app.add_route(path, guarded(decision(action)), methods=["POST"])
    app.add_route("/v1/evidence", guarded(evidence), methods=["POST"])
    app.add_route("/v1/unlock", guarded(unlock), methods=["POST"])
    app.add_route("/v1/log/head", guarded(head), methods=["GET"])
    app.add_route("/v1/log/proof", guarded(proof), methods=["GET"])
    app.add_route("/v1/log/entries", guarded(entries), methods=["GET"])
    app.add_exception_handler(HTTPException, no_such_page)
    return app


async def _read(request: Request) -> bytes:
    """The body, never more of it than allowed, whatever its length header says."""
    chunks, size = list[bytes](), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise InputError(2003, "the request is too large", expected=f"at most {MAX_BODY_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _query(request: Request, *names: str, optional: tuple[str, ...] = ()) -> dict[str, str]:
    """The query's parameters, each once, none unknown."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in names or name in found or len(value) > 128:
            raise InputError(2005, "query", expected=", ".join(names) or "none", got=name[:40])
        found[name] = value
    for name in names:
        if name not in found and name not in optional:
            raise InputError(2005, f"query: {name} is missing")
    return found


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise InputError(2005, f"query: {name}", expected="a number of entries", got=text[:40])
    return int(text)
