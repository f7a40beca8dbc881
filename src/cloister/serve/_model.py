"""A served model as its launcher has it: a process in a sandbox of its own, two pipes, and nothing taken on trust.

The model comes from a party's stage, and its runtime is a large parser: whoever takes it over finds no key, no network,
no file of the host and no other process. The launcher keeps keys, evidence and HTTP, and writes frames (``_onnx``).
What comes back is bounded before it is read, and its sizes are compared before anything is made of it.

A process that dies, does not answer in time or says nonsense costs the request that met it a 66xx, and is ended; the
next request starts another. After a second failure in a row that waits, from a second up to a minute: until then
requests are told that the model is down, and the service says that it is not ready.

What this does not give: a process that was taken over lives until it is ended, and may answer one request with what it
remembers of another.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import math
import os
import select
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import Field, ValidationError

from cloister.enclave import Sandboxed
from cloister.errors import CloisterError, InputError, InternalError, PeerError, error_for
from cloister.serve._messages import Tensor, TensorSpec
from cloister.serve._onnx import HEAD, head
from cloister.serve._tensors import check_inputs, size_bytes
from cloister.wire import Message, parse_message

__all__ = ["SandboxedModel", "sealed_file"]

LOAD_S = 300  # a runtime optimises a large graph for minutes; a hostile one must not hold the start for ever
MAX_HEADER_BYTES = 1 << 16  # 64 tensors with their names and shapes
MAX_DATA_BYTES = 64 << 20  # in base64 twice, as a sealed answer is, this still fits into an HTTP body
_PAUSES_S = (0, 1, 4, 16, 60)  # before the first, second, … restart in a row
_CHUNK_BYTES = 1 << 20
_DOWN = 6606
_LOADING_CODES, _ASKING_CODES = frozenset({8601, 8602}), frozenset({2604})
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
# Isolated, and no bytecode but what it compiles itself: nothing measures the __pycache__ beside a source.
_PYTHON = ("python", "-I", "-B", "-X", "pycache_prefix=/dev/null/bytecode")
_PROGRAM = (str(Path(__file__).with_name("_onnx.py")),)
_log = logging.getLogger("cloister.serve")


class SandboxedModel:
    """Predictions by a process that is started at once, and again after it failed. Safe for several threads.

    Args:
        model: Descriptor of a ``sealed_file`` that holds the ONNX model, with every weight inside. It is closed with
            this object, and if this object cannot be made.
        sandbox: A fresh sandbox for each start, with the service's memory and processes.
        time_s: What one request may take.

    Raises:
        UnsupportedError: 8601 when the runtime cannot load it, or an input is not a dense tensor of a known type; 8602
            when a weight lies outside the file.
        PeerError: 6603, 6604, 6605 when the process dies, hangs or says nonsense while it loads.
        RefusedError: 3501 without bubblewrap.
    """

    def __init__(self, model: int, *, sandbox: Callable[[], Sandboxed], time_s: float) -> None:
        self._sandbox, self._time_s = sandbox, time_s
        self._lock = threading.Lock()
        self._failures, self._again_at = 0, 0.0
        self._process: _Process | None = None
        self._model = model
        try:
            self._process = _Process(model, sandbox)
        except BaseException:
            os.close(model)
            raise
        self.inputs = self._process.inputs
        """Name, datatype and shape of each input."""

    @property
    def ready(self) -> bool:
        """Whether the next request finds a process, or may start one."""
        process = self._process
        return (process is not None and process.alive) or time.monotonic() >= self._again_at

    def predict(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Runs the model.

        Raises:
            InputError: 2604 when the inputs are not what the model takes, or it fails on them.
            PeerError: 6603 when the process ended, 6604 when it did not answer in time, 6605 when it answered
                nonsense, 6606 when it failed repeatedly and is not started again yet.
        """
        check_inputs(inputs, self.inputs)
        if not self._lock.acquire(timeout=min(self._time_s, threading.TIMEOUT_MAX)):
            raise PeerError(6604, "the model is busy with earlier requests")
        try:
            outputs = self._living().ask(inputs, time_s=self._time_s)
        except InputError:
            self._failures = 0  # it answered
            raise
        except CloisterError as error:
            self._failed(error)
            raise
        else:
            self._failures = 0
            return outputs
        finally:
            self._lock.release()

    def close(self) -> None:
        """Ends the process and forgets the model."""
        process = self._process
        if process is not None:
            process.stop()  # whoever waits for it learns so, and lets go
        with self._lock:
            if self._process is not None:
                self._process.close()
            self._process, self._again_at = None, math.inf
            if self._model >= 0:
                os.close(self._model)
            self._model = -1

    def _living(self) -> _Process:
        """The process; another one where the last one ended."""
        if self._process is not None and not self._process.alive:
            self._failed(PeerError(6603))
        if self._process is None:
            wait_s = self._again_at - time.monotonic()
            if wait_s > 0:
                raise PeerError(6606, got=f"{self._failures} failures in a row")
            self._process = _Process(self._model, self._sandbox)
        return self._process

    def _failed(self, error: CloisterError) -> None:
        """Ends what is left of the process, and says when the next may start."""
        if error.code == _DOWN:
            return
        if self._process is not None:
            self._process.close()
            self._process = None
        pause_s = _PAUSES_S[min(self._failures, len(_PAUSES_S) - 1)]
        self._failures += 1
        self._again_at = time.monotonic() + pause_s
        _log.warning("%s; failure %d in a row, the next start not before %d s", error, self._failures, pause_s)


class _Header(Message):
    """What the process says before any data."""

    code: int | None = None
    tensors: tuple[TensorSpec, ...] = Field(default=(), max_length=64)


class _Process:
    """One life of the model's process. The thread that starts it waits for its end: bubblewrap dies with that thread.

    Args:
        model: Descriptor of the model's file, which nobody can write any more.
        sandbox: Where it runs.
    """

    def __init__(self, model: int, sandbox: Callable[[], Sandboxed]) -> None:
        asked, self._questions = os.pipe()
        self._answers, said = os.pipe()
        os.set_blocking(self._questions, False)
        os.set_blocking(self._answers, False)
        self._stop = threading.Event()
        self._over_memory = False
        self._error: CloisterError | None = None
        self._closed = False
        passed = (asked, said, model)
        self._thread = threading.Thread(target=self._hold, args=(sandbox, passed), daemon=True)
        self._thread.start()
        try:
            header, data = self._frame(time.monotonic() + LOAD_S, codes=_LOADING_CODES)
            if data or any(size < -1 for spec in header.tensors for size in spec.shape):
                raise _nonsense("what it takes")
        except BaseException:
            self.close()
            raise
        self.inputs = header.tensors

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    def ask(self, inputs: tuple[Tensor, ...], *, time_s: float) -> tuple[Tensor, ...]:
        """One question and its answer.

        Raises:
            InputError: 2604 when the model fails on these inputs.
            PeerError: 6603, 6604, 6605 as for the model.
        """
        deadline = time.monotonic() + time_s
        triples = [(tensor.name, tensor.datatype, tensor.shape) for tensor in inputs]
        parts = [tensor.data for tensor in inputs]
        self._write([head(triples, sum(map(len, parts))), *parts], deadline)
        header, data = self._frame(deadline, codes=_ASKING_CODES)
        return _tensors(header.tensors, data)

    def stop(self) -> None:
        """Lets it be ended, without waiting for that."""
        self._stop.set()

    def close(self) -> None:
        """Ends it; when this returns nothing of it is alive."""
        self._stop.set()
        self._thread.join()
        if not self._closed:
            self._closed = True
            os.close(self._questions)
            os.close(self._answers)

    def _hold(self, sandbox: Callable[[], Sandboxed], passed: tuple[int, int, int]) -> None:
        asked, said, _ = passed
        try:
            with sandbox() as confined:
                ended = confined.hold((*_PYTHON, *_PROGRAM, *map(str, passed)), pass_fds=passed, stop=self._stop)
            self._over_memory = ended.ended == "memory"
        except CloisterError as error:
            self._error = error
        except Exception as error:
            self._error = InternalError(9001, type(error).__name__)
        finally:
            os.close(asked)
            os.close(said)  # only now does the launcher read the end of what was said

    def _ended(self) -> CloisterError:
        self._thread.join()
        if self._error is not None:
            return self._error
        return PeerError(6603, "the model took more memory than the service has" if self._over_memory else None)

    def _frame(self, deadline: float, *, codes: frozenset[int]) -> tuple[_Header, bytes]:
        """The next frame: sizes first, then the header, then as many bytes as its tensors have."""
        header_bytes, data_bytes = HEAD.unpack(self._read(HEAD.size, deadline))
        if header_bytes > MAX_HEADER_BYTES or data_bytes > MAX_DATA_BYTES:
            raise _nonsense(f"{header_bytes} + {data_bytes} bytes")
        text, data = self._read(header_bytes, deadline), self._read(data_bytes, deadline)
        try:
            header = parse_message(_Header, text, what="model's frame", max_bytes=MAX_HEADER_BYTES, secret=True)
        except InputError:
            raise _nonsense("a header that cannot be read") from None
        if header.code is not None:
            if header.code not in codes or header.tensors or data:
                raise _nonsense("a code that it may not say")
            raise error_for(header.code)
        return header, data

    def _read(self, size: int, deadline: float) -> bytes:
        found = bytearray()
        while len(found) < size:
            _wait(self._answers, select.POLLIN, deadline)
            chunk = os.read(self._answers, min(size - len(found), _CHUNK_BYTES))
            if not chunk:
                raise self._ended()
            found += chunk
        return bytes(found)

    def _write(self, parts: Iterable[bytes], deadline: float) -> None:
        for part in parts:
            left = memoryview(part)
            while left:
                _wait(self._questions, select.POLLOUT, deadline)
                try:
                    left = left[os.write(self._questions, left[:_CHUNK_BYTES]) :]
                except BrokenPipeError:
                    raise self._ended() from None


def _wait(handle: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(handle, event)
    while not poll.poll(min(max(0.0, deadline - time.monotonic()), 3600.0) * 1000):
        if time.monotonic() >= deadline:
            raise PeerError(6604)


def _tensors(specs: tuple[TensorSpec, ...], data: bytes) -> tuple[Tensor, ...]:
    """The tensors that a frame's data is, one after the other."""
    if sum(map(size_bytes, specs)) != len(data):
        raise _nonsense("other sizes than its shapes")
    ends = list(itertools.accumulate(map(size_bytes, specs), initial=0))
    if len({spec.name for spec in specs}) != len(specs):
        raise _nonsense("two tensors of one name")
    try:  # a tensor's own type takes no size below zero
        return tuple(
            Tensor(name=spec.name, datatype=spec.datatype, shape=spec.shape, data=data[start:end])
            for spec, start, end in zip(specs, ends, ends[1:], strict=False)
        )
    except ValidationError:
        raise _nonsense("a tensor that cannot be sent") from None


def _nonsense(got: str) -> PeerError:
    return PeerError(6605, got=got)


def sealed_file(content: bytes) -> int:
    """Descriptor of a file in memory that nobody can change any more: each start of a model reads the same."""
    handle = os.memfd_create("model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(os.dup(handle), "wb") as file:
        file.write(content)
    fcntl.fcntl(handle, fcntl.F_ADD_SEALS, _SEALS)
    return handle
