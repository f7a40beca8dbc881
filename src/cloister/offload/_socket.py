"""A worker in another process or on another machine, behind one authenticated link.

* One thread encrypts and sends, one receives and decrypts; commands are answered in the order of their submission.
* ``submit`` waits while more than ``in_flight_bytes`` of tensors, sent and expected, are unanswered.
* The worker takes each command within ``answer_s`` of its turn, and its whole answer is there ``answer_s`` after that.
* The first failure of the link is the last event of the session: every future that is open carries that error, and so
  does every later one. Nothing is sent twice. Who wants to go on makes another worker, which has other keys, and masks
  everything anew.
"""

from __future__ import annotations

import copy
import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from cloister.errors import CloisterError, InputError, InternalError, PeerError, error_for
from cloister.offload._commands import Command, Compute, Put, Stream
from cloister.offload._connection import Connection, endpoint
from cloister.offload._messages import ENDING, Answer, Order, Ready, begin, fits, octets
from cloister.offload._session import Link, Proposal
from cloister.ring import MaskKey
from cloister.wire import Message, SealingKey, parse_message

__all__ = ["SocketWorker"]

M = TypeVar("M", bound=Message)


@dataclass(slots=True)
class _Pending:
    """One command on its way."""

    body: bytes
    tensor: memoryview | None
    shape: tuple[int, ...] | None  # of the answer's tensor
    future: Future[Tensor | None] = field(default_factory=Future)
    size_bytes: int = 0  # sent and expected
    sent: bool = False

    def __post_init__(self) -> None:
        self.future.set_running_or_notify_cancel()  # cancelled by its owner, it would leave an answer without a place

    @property
    def answer_bytes(self) -> int:
        return 0 if self.shape is None else 4 * math.prod(self.shape)


class SocketWorker:
    """A :class:`~cloister.offload._workers.Worker` over TCP. One session: after :meth:`close`, make another.

    Args:
        name: As the manifest calls it.
        url: ``tcp://HOST:PORT``.
        key: Its key in the manifest.
        connect_s: How long connecting and the session's beginning may take.
        answer_s: How long a command may take to be sent, and then to be answered.
        in_flight_bytes: When ``submit`` begins to wait. A single larger command is sent alone.

    Raises:
        InputError: 2005 when the URL is none.

    Security: the link shows nobody but the worker what is sent, and no byte that the worker did not send is used. What
    the worker itself answers is a claim: the enclave checks it.
    """

    def __init__(
        self,
        name: str,
        *,
        url: str,
        key: SealingKey,
        connect_s: float = 10.0,
        answer_s: float = 120.0,
        in_flight_bytes: int = 256 << 20,
    ) -> None:
        self.name = name
        self.ready: Ready | None = None
        self._address = endpoint(url)
        self._key = key
        self._connect_s, self._answer_s, self._most_bytes = connect_s, answer_s, in_flight_bytes
        self._connection: Connection | None = None
        self._changed = threading.Condition()
        self._unsent: deque[_Pending] = deque()
        self._unanswered: deque[_Pending] = deque()
        self._in_flight_bytes = 0
        self._error: CloisterError | None = None
        self._broken = False  # nothing can be sent any more
        self._closed = False
        self._threads: tuple[threading.Thread, ...] = ()

    @property
    def device(self) -> str:
        """See :class:`~cloister.offload._workers.Worker`."""
        return "cpu" if self.ready is None else self.ready.device

    def start(self, keys: Mapping[Stream, MaskKey]) -> None:
        """See :class:`~cloister.offload._workers.Worker`.

        Raises:
            PeerError: 6702 when the worker speaks another version; 6703 when it refuses; 6704 when it cannot be
                reached; 6705 when it does not answer in time; 6706 when the link breaks; 6707 when it talks nonsense.
            IntegrityError: 5712 when it is another worker; 5711 when somebody changed what was sent.
        """
        if self._connection is not None or self._closed:
            raise RuntimeError("a worker is started once")
        deadline = time.monotonic() + self._connect_s
        try:
            self._connection = Connection.open(*self._address, deadline=deadline)
            link = self._begin(self._connection, keys, deadline)
        except CloisterError as error:
            self.close()
            raise self._named(error) from None
        self._threads = tuple(
            threading.Thread(target=self._run, args=(work, link), name=f"{self.name} {work.__name__}", daemon=True)
            for work in (self._send, self._receive)
        )
        for thread in self._threads:
            thread.start()

    def submit(self, command: Command, tensor: Tensor | None = None) -> Future[Tensor | None]:
        """See :class:`~cloister.offload._workers.Worker`; waits while too much is in flight."""
        if self._connection is None:
            raise RuntimeError("submit() comes between start() and close()")
        pending = self._pending(command, tensor)
        size = pending.size_bytes = (0 if pending.tensor is None else len(pending.tensor)) + pending.answer_bytes
        with self._changed:
            while self._in_flight_bytes and self._in_flight_bytes + size > self._most_bytes and not self._ended:
                self._changed.wait()
            if self._closed:
                raise RuntimeError("submit() comes between start() and close()")
            if pending.future.done():
                return pending.future
            if self._error is not None:
                pending.future.set_exception(copy.copy(self._error))
            else:
                self._in_flight_bytes += size
                self._unsent.append(pending)
                self._unanswered.append(pending)
                self._changed.notify_all()
        return pending.future

    def close(self) -> None:
        """See :class:`~cloister.offload._workers.Worker`; commands that are not answered are cancelled."""
        with self._changed:
            self._closed = True
            left = self._take_all()
        if self._connection is not None:
            self._connection.shut()
            for thread in self._threads:
                if thread is not threading.current_thread():  # whom a future's callback lets close it
                    thread.join()
            self._connection.close()
        for pending in left:
            pending.future.set_exception(CancelledError())

    def _begin(self, connection: Connection, keys: Mapping[Stream, MaskKey], deadline: float) -> Link:
        proposal = Proposal(self.name, self._key)
        connection.send(proposal.opening, deadline=deadline)
        link = connection.receive(proposal.answered(), deadline=lambda: deadline)
        for piece in link.outbound.message(begin(keys).canonical()):
            connection.send(piece, deadline=deadline)
        reading = link.inbound.message(lambda body, size: None, most_bytes=0)
        said = connection.receive(reading, deadline=lambda: deadline)
        self.ready = _parsed(Ready, said)
        return link

    def _pending(self, command: Command, tensor: Tensor | None) -> _Pending:
        """The command as it travels; its future carries the refusal already where nothing needs to be asked."""
        if isinstance(command, Put) and tensor is not None and fits(command, tensor):
            return _Pending(Order(command=command).canonical(), octets(tensor), None)
        pending = _Pending(Order(command=command).canonical(), None, None)
        try:
            if isinstance(command, Put) or tensor is not None:
                raise InputError(2711, expected="a tensor as announced after a put, and none after others")
            if isinstance(command, Compute):
                pending.shape = command.form.product().result
        except InputError as error:
            pending.future.set_exception(error)
        return pending

    @property
    def _answer_is_due(self) -> bool:
        """Whether the other side has said, or will have to say, something about the command that is next."""
        return bool(self._unanswered) and (self._unanswered[0].sent or self._broken)

    @property
    def _ended(self) -> bool:
        return self._closed or self._error is not None

    def _take_all(self) -> list[_Pending]:
        """Everything that is unanswered; only with the lock."""
        left = list(self._unanswered)
        self._unsent.clear()
        self._unanswered.clear()
        self._in_flight_bytes = 0
        self._changed.notify_all()
        return left

    def _run(self, work: object, link: Link) -> None:
        """A thread: whatever goes wrong in it ends the session."""
        try:
            work(link)  # type: ignore[operator]
        except CloisterError as error:
            self._fail(error)
        except Exception as error:
            self._fail(InternalError(9001, f"{type(error).__name__} in a worker's link"))

    def _fail(self, error: CloisterError) -> None:
        with self._changed:
            if self._ended:
                return
            self._error = self._named(error)
            left = self._take_all()
        assert self._connection is not None  # noqa: S101 - its threads run
        self._connection.shut()
        for pending in left:
            pending.future.set_exception(copy.copy(self._error))

    def _send(self, link: Link) -> None:
        assert self._connection is not None  # noqa: S101 - its threads run
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unsent or self._ended)
                if self._ended:
                    return
                pending = self._unsent.popleft()
            whole = self._transmit(pending, link)
            with self._changed:
                pending.sent = whole
                self._broken = not whole
                pending.tensor = None
                self._changed.notify_all()
            if not whole:
                return

    def _transmit(self, pending: _Pending, link: Link) -> bool:
        """Sends one command; False when the link broke.

        Why it did is for the other thread to find out: the worker may have said so before it left.
        """
        assert self._connection is not None  # noqa: S101 - its threads run
        deadline = time.monotonic() + self._answer_s
        try:
            for piece in link.outbound.message(pending.body, pending.tensor):
                self._connection.send(piece, deadline=deadline)
        except PeerError as error:
            if error.code != 6706:
                raise
            return False
        return True

    def _receive(self, link: Link) -> None:
        assert self._connection is not None  # noqa: S101 - its threads run
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._answer_is_due or self._ended)
                if self._ended:
                    return
                pending = self._unanswered[0]
            answer = _Answering(pending)
            deadline = time.monotonic() + self._answer_s
            reading = link.inbound.message(answer.accept, most_bytes=pending.answer_bytes)
            self._connection.receive(reading, deadline=lambda until=deadline: until)
            if answer.refused in ENDING:
                raise error_for(answer.refused, got="said by the worker")
            with self._changed:
                if self._ended:
                    return
                self._unanswered.popleft()
                self._in_flight_bytes -= pending.size_bytes
                self._changed.notify_all()
            if answer.refused is None:
                pending.future.set_result(answer.tensor)
            else:
                refused = error_for(answer.refused, got="said by the worker")
                pending.future.set_exception(self._named(refused))

    def _named(self, error: CloisterError) -> CloisterError:
        return error_for(error.code, f"worker '{self.name}': {error.what}", error.expected, error.got, error.hint)


def _parsed(cls: type[M], body: bytes) -> M:
    """A worker's message. Raises :class:`PeerError` 6707 when it is none, and quotes nothing of it."""
    try:
        return parse_message(cls, body, what="worker's message", secret=True)
    except InputError:
        raise PeerError(6707, expected=cls.__name__.lower()) from None


class _Answering:
    """What comes back for one command, as it comes."""

    def __init__(self, pending: _Pending) -> None:
        self._pending = pending
        self.refused: int | None = None
        self.tensor: Tensor | None = None

    def accept(self, body: bytes, size: int) -> memoryview | None:
        """Where the tensor goes. Raises :class:`PeerError` 6707 when that is no answer to the command."""
        self.refused = _parsed(Answer, body).refused
        wanted = 0 if self.refused is not None else self._pending.answer_bytes
        if size != wanted:
            raise PeerError(6707, expected=f"a tensor of {wanted} bytes", got=f"{size} bytes")
        if not size:
            return None
        self.tensor = torch.empty(self._pending.shape or (), dtype=torch.int32)
        return octets(self.tensor)
