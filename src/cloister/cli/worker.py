"""``cloister worker``: the operator's commands, to make a worker's key and to serve."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli._voice import Json, show
from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.offload import WorkerServer

__all__ = ["register"]

_worker = typer.Typer(name="worker", help="Lend an accelerator that nobody has to trust.", no_args_is_help=True)


@_worker.command()
def init(
    name: Annotated[str, typer.Argument(help="as manifests shall call it: lower-case letters and digits, - or .")],
    folder: Annotated[Path, typer.Option("--dir", help="where its two files go")] = Path(),
    post_quantum: Annotated[
        bool, typer.Option("--post-quantum", help="hybrid ML-KEM-768 + X25519 (a longer key in the manifest)")
    ] = False,
    json: Json = False,
) -> None:
    """Make a worker's key: NAME.key (stays here) and NAME.pub (for whoever drafts the manifest)."""
    from cloister.party import WorkerIdentity

    identity = WorkerIdentity.generate(name, post_quantum=post_quantum)
    key_path = identity.save(folder)
    facts = {
        "name": identity.name,
        "key": str(identity.opening_key.public),
        "key_file": str(key_path),
        "public_file": str(key_path.with_suffix(".pub")),
    }
    text = (
        f"worker       {facts['name']}\n"
        f"key          {facts['key']}   (manifests name it)\n"
        f"key file     {facts['key_file']}   (not encrypted; stays on this machine)\n"
        f"public file  {facts['public_file']}   (send it to whoever drafts the manifest)"
    )
    show(facts, text, json=json)


@_worker.command()
def serve(
    key: Annotated[Path, typer.Option("--key", help="the key file that 'cloister worker init' wrote")],
    listen: Annotated[
        str, typer.Option("--listen", help="HOST:PORT; port 0 takes a free one. Let only the enclaves' hosts reach it")
    ] = "127.0.0.1:8430",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    memory: Annotated[str, typer.Option(help="for the tensors of one session, such as '16 GiB'")] = "8 GiB",
    sessions: Annotated[int, typer.Option(min=1, max=64, help="at a time")] = 2,
    json: Json = False,
) -> None:
    """Serve a worker until it is told to stop (SIGTERM)."""
    _require_torch()
    from cloister.manifest import size_bytes
    from cloister.offload import Limits, WorkerServer, device_named
    from cloister.party import WorkerIdentity

    memory_bytes = size_bytes(memory)
    if memory_bytes is None:
        raise InputError(2328, f"not a size: {memory[:40]!r}", expected="such as '16 GiB'")
    limits = Limits(sessions=sessions, memory_bytes=memory_bytes)
    server = WorkerServer(WorkerIdentity.load(key), device=device_named(device), limits=limits)
    address = server.listen(listen)
    with _stopped_by_signals(server):
        facts = {
            "name": server.identity.name,
            "key": str(server.identity.opening_key.public),
            "listen": address,
            "device": str(server.device),
            "kernels": server.kernels.name,
            "memory_bytes": memory_bytes,
            "sessions": sessions,
        }
        show(facts, json=json)
        server.serve()


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.add_typer(_worker)


def _require_torch() -> None:
    """Raises :class:`InputError` 2006 without the extra ``torch``."""
    if find_spec("torch") is None or find_spec("numba") is None:
        raise InputError(2006, "a worker needs torch and numba", hint='pip install "cloister[torch]"')


@contextmanager
def _stopped_by_signals(server: WorkerServer) -> Iterator[None]:
    """SIGTERM and SIGINT end the service in order; what they did before comes back afterwards."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: server.stop()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
