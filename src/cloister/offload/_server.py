"""A worker's process: it listens, and for each connection keeps one coprocessor until that connection ends.

Rules:

* Nothing that comes is trusted, and everything is bounded: sessions, memory, the size of each message, and the time for
  each step. Whoever is idle or slow loses the session.
* A session's failure is its own. The other side is told a code, the log a code and counts; never content.
* One thread receives and decrypts while another computes and answers, in the order of the commands.

Anybody who reaches the port can open a session: let only the enclaves' hosts reach it.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from cloister.errors import CloisterError, InputError, PeerError, all_codes
from cloister.offload._commands import Command, Put
from cloister.offload._connection import Connection, endpoint
from cloister.offload._coprocessor import DEFAULT_MEMORY_BYTES, Coprocessor
from cloister.offload._messages import DTYPES, FAILED, REFUSALS, Answer, Begin, Order, Ready, dealt, octets, put_bytes
from cloister.offload._session import BUSY, UNOPENED, Link, answer, refusal
from cloister.ring import RingKernels, kernels_for
from cloister.wire import Message, OpeningKey, parse_message

__all__ = ["Limits", "WorkerKey", "WorkerServer"]

M = TypeVar("M", bound=Message)

_log = logging.getLogger("cloister.offload")

_HANDSHAKES = 16  # connections beyond the sessions that may be saying who they are
_WAITING = 256  # commands in line; who sends more without taking answers fills his own buffers, not our memory
_BACKLOG = 64
_POLL_S = 0.2
_STOP_S = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What strangers may take of a worker.

    Attributes:
        sessions: At a time.
        memory_bytes: For the tensors that one session keeps, those that are just coming included; and for what a
            product needs while it is made, with what is kept. What the kernels themselves need comes on top.
        handshake_s: From the connection to the session's first message.
        step_s: For each record to arrive or to be taken.
        idle_s: Between two commands, answering included.
    """

    sessions: int = 2
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    handshake_s: float = 10.0
    step_s: float = 60.0
    idle_s: float = 1800.0


class WorkerKey(Protocol):
    """What a worker is known by: :class:`cloister.party.WorkerIdentity` is one, kept in a file."""

    @property
    def name(self) -> str:
        """As manifests call it."""
        ...

    @property
    def opening_key(self) -> OpeningKey:
        """What sessions are sealed to."""
        ...


class WorkerServer:
    """A worker on a socket.

    Args:
        identity: Whose sessions it can open.
        device: Where tensors are kept and multiplied; the CPU when left out.
        kernels: Who multiplies; the fastest for the device when left out.
        limits: What strangers may take of it.

    Raises:
        InputError: 2791 when there are no kernels for the device; 2792 when it does not multiply exactly.
    """

    def __init__(
        self,
        identity: WorkerKey,
        *,
        device: torch.device | None = None,
        kernels: RingKernels | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.identity = identity
        self.device = device or torch.device("cpu")
        self.kernels = kernels or kernels_for(self.device)
        self.limits = limits or Limits()
        self._listening: socket.socket | None = None
        self._stopping = threading.Event()
        self._free = threading.BoundedSemaphore(self.limits.sessions)
        self._lock = threading.Lock()
        self._live: dict[threading.Thread, Connection] = {}

    def listen(self, address: str) -> str:
        """Takes ``HOST:PORT``, a free port for 0; returns the address that was taken.

        Raises:
            InputError: 2005 when that is no address.
            PeerError: 6708 when it cannot be taken.
        """
        host, port = endpoint(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name == "posix":  # elsewhere it would let another process take the same address
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
            listening.listen(_BACKLOG)
        except OSError as error:
            listening.close()
            raise PeerError(6708, f"cannot listen on {address}: {error.strerror}") from None
        listening.settimeout(_POLL_S)
        self._listening = listening
        shown = f"[{host}]" if ":" in host else host
        return f"{shown}:{listening.getsockname()[1]}"

    def serve(self) -> None:
        """Takes connections until :meth:`stop`, then ends the sessions and returns."""
        if self._listening is None:
            raise RuntimeError("listen() comes first")
        with self._listening:
            while not self._stopping.is_set():
                try:
                    taken, _ = self._listening.accept()
                except TimeoutError:
                    continue
                except OSError as error:
                    _log.error("cannot take a connection: %s", error.strerror)
                    self._stopping.wait(_POLL_S)
                    continue
                self._begin(taken)
        self._end_sessions()

    def stop(self) -> None:
        """Lets :meth:`serve` return; safe in a signal handler."""
        self._stopping.set()

    def _begin(self, taken: socket.socket) -> None:
        with self._lock:
            if len(self._live) >= self.limits.sessions + _HANDSHAKES:
                _log.warning("refused: too many connections")
                taken.close()
                return
            try:
                connection = Connection(taken)
            except OSError:  # gone before it began
                taken.close()
                return
            thread = threading.Thread(target=self._attend, args=(connection,), name="cloister-session", daemon=True)
            self._live[thread] = connection
        try:
            thread.start()
        except RuntimeError:  # the system has no thread to give
            _log.error("refused: no thread for a connection")
            with self._lock:
                del self._live[thread]
            connection.close()

    def _attend(self, connection: Connection) -> None:
        """One connection, from its first byte to its last."""
        peer = connection.peer
        try:
            self._converse(connection, peer)
        except CloisterError as error:
            _log.warning("%s: session ended: %s %s", peer, error.code, all_codes()[error.code].title)
        except Exception as error:
            _log.error("%s: session ended: %s", peer, type(error).__name__)
        finally:
            connection.shut()
            with self._lock:
                del self._live[threading.current_thread()]
                connection.close()

    def _converse(self, connection: Connection, peer: str) -> None:
        deadline = time.monotonic() + self.limits.handshake_s
        held = False
        try:
            said, link = connection.receive(
                answer(self.identity.name, self.identity.opening_key), deadline=lambda: deadline
            )
            held = self._free.acquire(blocking=False)
            if not held:
                connection.send(refusal(BUSY), deadline=deadline)
                connection.finish()
                raise PeerError(6703, got=f"{self.limits.sessions} sessions")
            connection.send(said, deadline=deadline)
            session = self._ready(connection, link, deadline)
            _log.info("%s: session opened", peer)
            session.run()
            _log.info("%s: session ended; %s", peer, session.counts)
        except CloisterError as error:
            if error.code in (5713, 6702):
                connection.send(refusal(UNOPENED), deadline=deadline)
                connection.finish()
            raise
        finally:
            if held:
                self._free.release()

    def _ready(self, connection: Connection, link: Link, deadline: float) -> _Session:
        reading = link.inbound.message(lambda body, size: None, most_bytes=0)
        body = connection.receive(reading, deadline=lambda: deadline)
        keys = dealt(_parsed(Begin, body))
        coprocessor = Coprocessor(self.kernels, keys=keys, device=self.device, memory_bytes=self.limits.memory_bytes)
        ready = Ready(kernels=self.kernels.name, device=str(self.device), memory_bytes=self.limits.memory_bytes)
        for piece in link.outbound.message(ready.canonical()):
            connection.send(piece, deadline=deadline)
        return _Session(connection, link, coprocessor, self.limits)

    def _end_sessions(self) -> None:
        with self._lock:
            live = dict(self._live)
            for connection in live.values():
                connection.shut()
        until = time.monotonic() + _STOP_S
        for thread in live:  # a product that is being made is not waited for beyond this
            thread.join(max(0.0, until - time.monotonic()))


@dataclass(slots=True)
class _Step:
    """One command that arrived, or the code that ends the session."""

    command: Command | None = None
    tensor: Tensor | None = None
    size_bytes: int = 0
    code: int | None = None


class _Session:
    """The conversation after its beginning."""

    def __init__(self, connection: Connection, link: Link, coprocessor: Coprocessor, limits: Limits) -> None:
        self._connection, self._link, self._limits = connection, link, limits
        self._coprocessor = coprocessor
        self._changed = threading.Condition()
        self._steps: deque[_Step] = deque()
        self._doing = False
        self._coming_bytes = 0
        self._over = False
        self._commands = self._products = 0

    @property
    def counts(self) -> str:
        """For the log."""
        return f"{self._commands} commands, {self._products} products"

    def run(self) -> None:
        """Until the other side ends it.

        Raises:
            CloisterError: why it ended, unless the other side just went.
        """
        worker = threading.Thread(target=self._work, name="cloister-commands", daemon=True)
        worker.start()
        try:
            while True:
                self._add(self._next())
        except CloisterError as error:
            if error.code == 6706:  # nobody is there to be answered
                with self._changed:
                    self._steps.clear()
                return
            ending = PeerError(6711) if error.code == 6705 else error
            self._add(_Step(code=ending.code))
            raise ending from None
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()
            worker.join()

    def _next(self) -> _Step:
        """The next command, with its tensor where there is one and it has room."""
        step = _Step()
        first = True

        def deadline() -> float:
            nonlocal first
            allowed, first = (self._limits.idle_s, False) if first else (self._limits.step_s, False)
            return time.monotonic() + allowed

        def accept(body: bytes, size: int) -> memoryview | None:
            step.command = _parsed(Order, body).command
            wanted = put_bytes(step.command) if isinstance(step.command, Put) else 0
            if size != wanted:
                raise PeerError(6707, expected=f"a tensor of {wanted} bytes", got=f"{size} bytes")
            if not isinstance(step.command, Put) or not self._has_room(size):
                return None  # a put without memory is read, verified, and refused in its turn
            step.size_bytes = size
            try:
                step.tensor = torch.empty(step.command.shape, dtype=DTYPES[step.command.dtype])
            except RuntimeError:  # the machine has less than its operator promised
                return None
            return octets(step.tensor)

        self._connection.receive(self._link.inbound.message(accept), deadline=deadline)
        return step

    def _has_room(self, size: int) -> bool:
        """Whether a tensor may have memory; waits until what is in line is done, since that may make room."""
        with self._changed:
            while True:
                try:
                    self._coprocessor.require_room(self._coming_bytes + size)
                except PeerError:
                    if not (self._steps or self._doing):
                        return False
                    self._changed.wait()
                else:
                    self._coming_bytes += size
                    return True

    def _add(self, step: _Step) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._steps) < _WAITING)
            self._steps.append(step)
            self._changed.notify_all()

    def _work(self) -> None:
        """The second thread: does what came, answers, and lets the first one end when that fails."""
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._steps or self._over)
                    if not self._steps:
                        return
                    step = self._steps.popleft()
                    self._doing = True
                if step.code is not None:
                    self._say(Answer(refused=step.code))
                    self._connection.finish()
                    return
                self._do(step)
                with self._changed:
                    self._doing = False
                    self._coming_bytes -= step.size_bytes
                    self._changed.notify_all()
        except CloisterError as error:
            if error.code != 6706:
                _log.warning("session ended: %s %s", error.code, all_codes()[error.code].title)
        finally:
            with self._changed:
                self._doing = False
                self._steps.clear()
                self._changed.notify_all()
            self._connection.shut()

    def _do(self, step: _Step) -> None:
        assert step.command is not None  # noqa: S101 - a step without a code has a command
        self._commands += 1
        try:
            if isinstance(step.command, Put) and step.tensor is None:
                raise PeerError(6701)
            result = self._coprocessor.execute(step.command, step.tensor)
            octets_of_result = None if result is None else octets(result)
        except (InputError, PeerError) as error:
            self._say(Answer(refused=error.code if error.code in REFUSALS else FAILED))
        except Exception as error:  # of a kernel or its device: this command's fault, not the process's
            _log.error("a %s failed: %s", step.command.verb, type(error).__name__)
            self._say(Answer(refused=FAILED))
        else:
            self._products += result is not None
            self._say(Answer(), octets_of_result)

    def _say(self, said: Answer, tensor: memoryview | None = None) -> None:
        for piece in self._link.outbound.message(said.canonical(), tensor):
            self._connection.send(piece, deadline=time.monotonic() + self._limits.step_s)


def _parsed(cls: type[M], body: bytes) -> M:
    """An authentic body as a message. Raises :class:`PeerError` 6707 when it is none."""
    try:
        return parse_message(cls, body, what=cls.__name__.lower(), max_bytes=len(body), secret=True)
    except InputError:
        raise PeerError(6707, expected=cls.__name__.lower()) from None
