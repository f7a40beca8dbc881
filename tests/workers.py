"""Workers on loopback for tests: a server in this process, or `cloister worker serve` in one of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from cloister.errors import CloisterError
from cloister.offload._commands import Compute, Drop, Expand, Put, Term, form_of
from cloister.offload._connection import Connection
from cloister.offload._server import Limits, WorkerServer
from cloister.offload._socket import SocketWorker
from cloister.party import WorkerIdentity
from cloister.ring import MatMul, Product

__all__ = [
    "IDENTITY",
    "PREFIX",
    "SERVE",
    "STRANGER",
    "Serving",
    "WorkerProcess",
    "changed_prefix",
    "code_of",
    "compute",
    "dialled",
    "drop",
    "expand_to",
    "matmul",
    "put",
    "refused",
    "serving",
    "waits_for",
    "words",
    "worker_at",
]

IDENTITY = WorkerIdentity.generate("gpu")
STRANGER = WorkerIdentity.generate("gpu")
"""Another worker that calls itself the same."""

PREFIX = struct.Struct(">8sHHI")
"""What a session's first two messages begin with: magic, version, status, size."""

SERVE = ("-m", "cloister", "--log-level", "info", "worker", "serve")
"""What Python runs as a worker."""

LIMITS = Limits(memory_bytes=256 << 20, handshake_s=5.0, step_s=5.0, idle_s=20.0)


class Serving:
    """A server on a thread of this process."""

    def __init__(self, identity: WorkerIdentity = IDENTITY, *, limits: Limits = LIMITS, kernels=None) -> None:
        self.server = WorkerServer(identity, limits=limits, kernels=kernels)
        self.address = self.server.listen("127.0.0.1:0")
        self.thread = threading.Thread(target=self.server.serve, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()


@contextmanager
def serving(identity: WorkerIdentity = IDENTITY, *, limits: Limits = LIMITS, kernels=None):
    server = Serving(identity, limits=limits, kernels=kernels)
    try:
        yield server
    finally:
        server.stop()


def worker_at(address: str, identity: WorkerIdentity = IDENTITY, **options) -> SocketWorker:
    """An unstarted worker; five seconds are long on loopback."""
    options = {"connect_s": 5.0, "answer_s": 10.0, **options}
    return SocketWorker(identity.name, url=f"tcp://{address}", key=identity.opening_key.public, **options)


def dialled(address: str) -> Connection:
    """A bare connection, for those who do not keep to the protocol."""
    host, _, port = address.rpartition(":")
    return Connection(socket.create_connection((host, int(port)), timeout=5))


class WorkerProcess:
    """``cloister worker serve`` in a process of its own.

    Args:
        folder: For its key and its log.
        options: Of the command.
        address: Where it listens.
        identity: Whose key it has.
        program: What is run in its place, and takes its options.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        address: str = "127.0.0.1:0",
        identity: WorkerIdentity = IDENTITY,
        program: Sequence[str] = SERVE,
    ) -> None:
        key = folder / f"{identity.name}.key"
        if not key.exists():
            identity.save(folder)
        self.log = folder / f"{identity.name}.log"
        command = [sys.executable, *program, "--key", str(key), "--listen", address, "--json", *options]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        said = ""
        for line in self.process.stdout:
            said += line
            if line.rstrip() == "}":
                break
        self.facts = json.loads(said)
        self.address = self.facts["listen"]

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> int:
        """SIGKILL, whatever state it is in."""
        with suppress(ProcessLookupError):
            self.send(signal.SIGKILL)
        self.process.stdout.close()
        return self.process.wait(10)


def refused(code: int, call, *arguments) -> CloisterError:
    """The error with that code which the call raises."""
    with pytest.raises(CloisterError) as caught:
        call(*arguments)
    assert caught.value.code == code
    return caught.value


def code_of(future) -> int:
    """With which code a command failed."""
    with pytest.raises(CloisterError) as caught:
        future.result(20)
    return caught.value.code


def changed_prefix(message: bytes, **fields) -> bytes:
    """A session's first or second message with another magic, version, status or size."""
    magic, version, status, size = PREFIX.unpack(message[: PREFIX.size])
    values = {"magic": magic, "version": version, "status": status, "size": size, **fields}
    return PREFIX.pack(*values.values()) + message[PREFIX.size :]


def waits_for(condition, seconds: float = 10.0) -> None:
    """Returns once ``condition()`` holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.01)


def words(*shape: int, seed: int = 0) -> torch.Tensor:
    """Ring words that use all 32 bits."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(1 << 31), 1 << 31, shape, generator=generator, dtype=torch.int64).to(torch.int32)


def matmul(rows: int, inner: int, columns: int) -> Product:
    return Product(MatMul(), "forward", x=(rows, inner), w=(columns, inner))


def put(handle: int, tensor: torch.Tensor) -> tuple[Put, torch.Tensor]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Put(handle=handle, dtype=dtype, shape=tuple(tensor.shape)), tensor


def expand_to(handle: int, stream: str, counter: int, *shape: int) -> Expand:
    return Expand(handle=handle, stream=stream, counter=counter, shape=shape)


def compute(product: Product, *terms: tuple[int, int, int], **more) -> Compute:
    """Terms as (sign, left, right)."""
    return Compute(
        form=form_of(product), terms=tuple(Term(sign=s, left=left, right=right) for s, left, right in terms), **more
    )


def drop(*handles: int) -> Drop:
    return Drop(handles=handles)
