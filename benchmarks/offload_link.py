"""A worker's link on loopback: how fast a tensor travels, against a plain TCP socket and against AES-256-GCM alone.

Each size is put (enclave to worker) and got (worker to enclave) with three means in turn, in the same run:

* ``link``: one command of :class:`~cloister.offload.SocketWorker`, submitted and waited for. The worker's kernels
  answer a product with a tensor that lies ready, so that no multiplication is timed.
* ``plain``: the same bytes over a TCP socket from memory to memory, and a byte back. Nothing is encrypted.
* ``cipher``: AES-256-GCM over the same bytes in this process, in parts of 1 MiB into a buffer: put encrypts, got
  decrypts.

The other side is a process of its own, so that the two sides' ciphers may run at the same time where there are two
cores. A link that did one thing after the other would take plain + 2 x cipher; the table's last column says how much of
that it takes. ``stream`` keeps several tensors in flight, as training does. Medians of interleaved rounds.

    python benchmarks/offload_link.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from _machine import machine
from cloister.offload import (
    Compute,
    Drop,
    Limits,
    Put,
    SocketWorker,
    Term,
    WorkerServer,
    form_of,
)
from cloister.offload._frames import PART_BYTES
from cloister.party import WorkerIdentity
from cloister.ring import MatMul, Product
from cloister.wire import SealingKey

MIB = 1 << 20
SIZES_MIB = (1, 4, 16, 64)
STREAMED = 8  # tensors in flight
REQUEST = struct.Struct(">cQ")
ROW = 1024  # words


class Ready:
    """Kernels whose results lie ready: made once for each shape, in the round that is not counted."""

    name = "ready"

    def __init__(self) -> None:
        self._results: dict[tuple[int, ...], torch.Tensor] = {}

    def product(self, product: Product, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """One of the shape."""
        if product.result not in self._results:
            self._results[product.result] = torch.ones(product.result, dtype=torch.int32)
        return self._results[product.result]


def serve() -> None:
    """The other process: a worker, and a socket that takes and gives bytes. Ends with its input."""
    identity = WorkerIdentity.generate("bench")
    server = WorkerServer(identity, kernels=Ready(), limits=Limits(sessions=1))
    plain = socket.create_server(("127.0.0.1", 0))
    link = server.listen("127.0.0.1:0")
    threads = [threading.Thread(target=work) for work in (server.serve, lambda: _plain(plain))]
    for thread in threads:
        thread.start()
    key = str(identity.opening_key.public)
    print(json.dumps({"link": link, "plain": plain.getsockname()[1], "key": key}), flush=True)
    sys.stdin.read()
    server.stop()
    for thread in threads:
        thread.join()


def _plain(listening: socket.socket) -> None:
    with listening:
        taken, _ = listening.accept()
    taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = memoryview(bytearray(max(SIZES_MIB) * MIB))
    request = bytearray(REQUEST.size)
    while _filled(taken, memoryview(request)):
        verb, size = REQUEST.unpack(request)
        if verb == b"p":
            _filled(taken, buffer[:size])
            taken.sendall(b"!")
        else:
            taken.sendall(buffer[:size])


def _filled(source: socket.socket, into: memoryview) -> bool:
    got = 0
    while got < len(into):
        count = source.recv_into(into[got:])
        if not count:
            return False
        got += count
    return True


@contextmanager
def _other_process() -> Iterator[dict[str, object]]:
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield json.loads(process.stdout.readline())
        process.stdin.close()


class Means:
    """The three ways to move a tensor, each a call that returns when it is done."""

    def __init__(self, facts: dict[str, object]) -> None:
        self.worker = SocketWorker("bench", url=f"tcp://{facts['link']}", key=SealingKey.parse(str(facts["key"])))
        self.worker.start({})
        self.socket = socket.create_connection(("127.0.0.1", int(str(facts["plain"]))))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._cipher = AESGCM(os.urandom(32))
        self._nonce = 0
        self._handle = 10
        self._into = memoryview(bytearray(max(SIZES_MIB) * MIB))
        self._column(1, ROW)

    def close(self) -> None:
        """Ends both."""
        self.worker.close()
        self.socket.close()

    def put(self, tensor: torch.Tensor, count: int = 1) -> Callable[[], None]:
        """Puts the tensor so often, all at once; what was put is dropped before the call ends, in its time."""

        def call() -> None:
            handles = tuple(range(self._handle, self._handle + count))
            self._handle += count
            shape = tuple(tensor.shape)
            for handle in handles:
                self.worker.submit(Put(handle=handle, dtype="int32", shape=shape), tensor)
            self.worker.submit(Drop(handles=handles)).result()

        return call

    def got(self, tensor: torch.Tensor, count: int = 1) -> Callable[[], None]:
        """Has the worker answer a product of the tensor's shape so often."""
        rows = tensor.shape[0]
        handle = self._handle
        self._handle += 1
        self._column(handle, rows)
        product = Product(MatMul(), "forward", x=(rows, 1), w=(ROW, 1))
        command = Compute(form=form_of(product), terms=(Term(sign=1, left=handle, right=1),))

        def call() -> None:
            for future in [self.worker.submit(command) for _ in range(count)]:
                answer = future.result()
                assert answer is not None
                assert answer.shape == tensor.shape

        return call

    def _column(self, handle: int, rows: int) -> None:
        """An operand of one column, so that the worker has next to nothing to read."""
        column = torch.ones(rows, 1, dtype=torch.int32)
        self.worker.submit(Put(handle=handle, dtype="int32", shape=(rows, 1)), column).result()

    def plain_put(self, data: memoryview) -> Callable[[], None]:
        """Sends the bytes and waits until they were read."""

        def call() -> None:
            self.socket.sendall(REQUEST.pack(b"p", len(data)))
            self.socket.sendall(data)
            assert self.socket.recv(1) == b"!"

        return call

    def plain_got(self, data: memoryview) -> Callable[[], None]:
        """Asks for as many bytes and reads them."""

        def call() -> None:
            self.socket.sendall(REQUEST.pack(b"g", len(data)))
            assert _filled(self.socket, self._into[: len(data)])

        return call

    def encrypted(self, data: memoryview) -> Callable[[], None]:
        """Encrypts the bytes, part by part, into one buffer."""
        sealed = memoryview(bytearray(PART_BYTES + 16))

        def call() -> None:
            for start in range(0, len(data), PART_BYTES):
                part = data[start : start + PART_BYTES]
                self._nonce += 1
                self._cipher.encrypt_into(self._nonce.to_bytes(12, "big"), part, b"", sealed[: len(part) + 16])

        return call

    def decrypted(self, data: memoryview) -> Callable[[], None]:
        """One part again and again: it lies in a core's cache, as what just came from a socket does."""
        part, nonce = data[:PART_BYTES], bytes(12)
        sealed = AESGCM.encrypt(self._cipher, nonce, bytes(part), b"")

        def call() -> None:
            for start in range(0, len(data), PART_BYTES):
                self._cipher.decrypt_into(nonce, sealed, b"", self._into[start : start + len(part)])

        return call


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(rounds: int) -> list[dict[str, float | str]]:
    """One row for each size and direction; seconds for one tensor."""
    rows: list[dict[str, float | str]] = []
    with _other_process() as facts:
        means = Means(facts)
        for size_mib in SIZES_MIB:
            tensor = torch.randint(-(1 << 31), 1 << 31, (size_mib * MIB // 4 // ROW, ROW), dtype=torch.int64).int()
            array: Any = tensor.numpy()
            data = memoryview(array).cast("B")
            for way in ("put", "got"):
                link = means.put if way == "put" else means.got
                calls = {
                    "link": (link(tensor), 1),
                    "stream": (link(tensor, STREAMED), STREAMED),
                    "plain": ((means.plain_put if way == "put" else means.plain_got)(data), 1),
                    "cipher": ((means.encrypted if way == "put" else means.decrypted)(data), 1),
                }
                spent: dict[str, list[float]] = {name: [] for name in calls}
                for turn in range(rounds + 1):  # the first is not counted: pages that nobody had touched
                    for name, (call, count) in calls.items():
                        seconds = _seconds(call) / count
                        if turn:
                            spent[name].append(seconds)
                rows.append({"way": way, "size_mib": size_mib, **{n: statistics.median(s) for n, s in spent.items()}})
        means.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    rounds = 3 if options.quick else 15
    rows = measure(rounds)
    print(f"{machine()}; medians of {rounds} rounds, in MiB/s")
    print("way   MiB     link   stream    plain   cipher   link:plain   link:cipher   of one after the other")
    for row in rows:
        size = float(row["size_mib"])
        link, stream, plain, cipher = (float(row[name]) for name in ("link", "stream", "plain", "cipher"))
        rates = "".join(f"{size / seconds:9.0f}" for seconds in (link, stream, plain, cipher))
        ratios = f"{plain / link:11.2f} x {cipher / link:11.2f} x {link / (plain + 2 * cipher):17.0%}"
        print(f"{row['way']:<4}{size:5.0f}{rates}{ratios}")
    if options.json:
        facts = {"machine": machine(), "rounds": rounds, "streamed": STREAMED, "seconds": rows}
        options.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
