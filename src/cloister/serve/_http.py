"""HTTP around the sans-IO halves: the service's routes and the client's calls."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from cloister.errors import CloisterError, InputError, PeerError, error_for
from cloister.serve._client import InferenceClient, Prediction
from cloister.serve._core import MAX_REQUEST_BYTES, ServiceCore
from cloister.serve._messages import EvidenceAnswer, EvidenceRequest, SealedAnswer, SealedRequest, Tensor
from cloister.wire import Message, parse_json, parse_message

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["Connection", "create_app"]

_log = logging.getLogger("cloister.serve")
_MAX_BODY = 2 * MAX_REQUEST_BYTES  # base64 and JSON around a sealed request
_STATUS = {2: 400, 3: 403, 4: 403, 5: 400, 6: 502, 8: 422}

M = TypeVar("M", bound=Message)


def _utc_now() -> datetime:
    return datetime.now(UTC)


def create_app(
    core: ServiceCore, *, now: Callable[[], datetime] = _utc_now, ready: Callable[[], bool] = lambda: True
) -> FastAPI:
    """The service as an ASGI application.

    ``POST /v1/evidence`` and ``POST /v1/infer`` as in ``_messages``; ``GET /v2/health/live`` and ``/v2/health/ready``
    as in the Open Inference Protocol; the latter has status 503 while ``ready`` says no.
    """
    from fastapi import FastAPI, Request, Response
    from fastapi.concurrency import run_in_threadpool

    app = FastAPI(title="cloister service", docs_url=None, redoc_url=None, openapi_url=None)

    async def serve(request: Request, ask: type[Message], answer: Callable[..., Message]) -> Response:
        try:
            body = await _bounded(request)
            question = parse_message(ask, body, what=ask.__name__, max_bytes=_MAX_BODY)
            reply = await run_in_threadpool(answer, question, now())
            return Response(reply.canonical(), media_type="application/json")
        except CloisterError as error:
            _log.info("refused: %s", error)
            status = _STATUS.get(error.exit_status, 500)
            return Response(json.dumps({"error": error.as_json()}), status, media_type="application/json")

    async def evidence(request: Request) -> Response:
        return await serve(request, EvidenceRequest, core.evidence)

    async def infer(request: Request) -> Response:
        return await serve(request, SealedRequest, core.answer)

    async def live(_: Request) -> Response:
        return Response(b'{"live":true}', media_type="application/json")

    async def readiness(_: Request) -> Response:
        able = ready()
        return Response(json.dumps({"ready": able}), 200 if able else 503, media_type="application/json")

    app.add_route("/v1/evidence", evidence, methods=["POST"])
    app.add_route("/v1/infer", infer, methods=["POST"])
    app.add_route("/v2/health/live", live, methods=["GET"])
    app.add_route("/v2/health/ready", readiness, methods=["GET"])
    return app


async def _bounded(request: Any) -> bytes:
    """The body, never more of it than the limit, whatever its headers say."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY:
            raise InputError(2003, "request is too large", expected=f"at most {_MAX_BODY} bytes")
    return bytes(body)


class Connection:
    """A verified connection to a service: made only of evidence that was accepted.

    Args:
        url: Where the service listens; not trusted for anything.
        client: A fresh session.
        at: The clock that evidence is judged by.
        transport: For tests: an in-memory transport.
        timeout_s: Of each call.

    Raises:
        PeerError: 6601 when the service does not answer, or answers something unreadable; 6602 a redirect.
        CloisterError: as :class:`InferenceClient`.
    """

    def __init__(
        self,
        url: str,
        client: InferenceClient,
        *,
        at: Callable[[], datetime] = _utc_now,
        transport: httpx.BaseTransport | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        self._http = httpx.Client(
            base_url=url, timeout=timeout_s, transport=transport, follow_redirects=False, trust_env=False
        )
        self._client = client
        self.verdict = client.verify(_post(self._http, "/v1/evidence", client.hello(), EvidenceAnswer), at())

    def ask(self, inputs: tuple[Tensor, ...]) -> Prediction:
        """One prediction; without inputs, the model's card."""
        request, reply = self._client.ask(inputs)
        return self._client.read(_post(self._http, "/v1/infer", request, SealedAnswer), request, reply)

    def close(self) -> None:
        """Closes the connection."""
        self._http.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _post(http: httpx.Client, path: str, message: Message, answer: type[M]) -> M:
    try:
        with http.stream("POST", path, content=message.canonical()) as response:
            body = bytearray()
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > _MAX_BODY:
                    raise PeerError(6601, "the service's answer is too large")
    except httpx.HTTPError as error:
        raise PeerError(6601, f"the service at {http.base_url} does not answer: {error}") from error
    if response.status_code == 200:
        return parse_message(answer, bytes(body), what=answer.__name__, max_bytes=_MAX_BODY)
    if response.is_redirect:
        raise PeerError(6602, got=response.headers.get("location", "")[:200])
    _raise_refusal(bytes(body), response.status_code)
    raise AssertionError  # pragma: no cover  (the line above always raises)


def _raise_refusal(body: bytes, status: int) -> None:
    """Raises what the service said was wrong. Its words are a stranger's: only a known code and bounded text pass."""
    try:
        said = parse_json(body, what="refusal", max_bytes=1 << 16)["error"]
        code, what = int(said["code"]), str(said["what"])[:300]
    except (CloisterError, KeyError, TypeError, ValueError):
        raise PeerError(6601, f"the service answered with HTTP status {status}") from None
    raise error_for(code, f"the service says: {what}")
