"""What a stage's script says to its launcher's broker: products of numbered tensors, and nothing that leaves by itself.

Commands and answers are JSON behind a length, in two pipes. A command that needs no answer is not waited for; the first
one that fails is the last that is done, and the next answer says why.
"""

from __future__ import annotations

import os
import select
import struct
from collections import defaultdict
from typing import Annotated, Literal

from pydantic import Field

from cloister.errors import PeerError
from cloister.offload._commands import Form
from cloister.offload._meter import Use
from cloister.ring import Role, RoundingState
from cloister.wire import Message

__all__ = [
    "MAX_ANSWER_BYTES",
    "MAX_ORDER_BYTES",
    "Ask",
    "Begin",
    "Close",
    "Collect",
    "Forget",
    "Hide",
    "Measure",
    "Open",
    "Order",
    "Prepare",
    "Reply",
    "Rounding",
    "Said",
    "Settle",
    "Tell",
    "Used",
    "Where",
    "receive",
    "send",
]

MAX_ORDER_BYTES = 1 << 16
MAX_ANSWER_BYTES = 1 << 22  # a report of a thousand layers
_LENGTH = struct.Struct("<I")

Number = Annotated[int, Field(ge=0, lt=1 << 53)]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
LayerName = Annotated[str, Field(max_length=512)]


class Where(Message):
    """Where a rounding stream stands."""

    key: Hex
    counter: Number

    @classmethod
    def of(cls, state: RoundingState) -> Where:
        """As it travels."""
        return cls(key=state.key, counter=state.counter)

    def state(self) -> RoundingState:
        """As the ring has it."""
        return RoundingState(self.key, self.counter)


class Used(Message):
    """What one layer took: :class:`~cloister.offload._meter.Use`, its times in nanoseconds."""

    layer: LayerName
    products: dict[Role, int]
    checks: int
    multiplications: int
    sent_bytes: int
    received_bytes: int
    nanoseconds: dict[str, int]
    bits: int
    clipped: int

    @classmethod
    def of(cls, layer: str, use: Use) -> Used:
        """As it travels."""
        return cls(
            layer=layer,
            products=dict(use.products),
            checks=use.checks,
            multiplications=use.multiplications,
            sent_bytes=use.sent_bytes,
            received_bytes=use.received_bytes,
            nanoseconds={stage: round(seconds * 1e9) for stage, seconds in use.seconds.items()},
            bits=use.bits,
            clipped=use.clipped,
        )

    def use(self) -> Use:
        """As it was counted."""
        seconds = {stage: count / 1e9 for stage, count in self.nanoseconds.items()}
        return Use(
            defaultdict(int, self.products),
            self.checks,
            self.multiplications,
            self.sent_bytes,
            self.received_bytes,
            seconds,
            self.bits,
            self.clipped,
        )


class Open(Message):
    """A model was converted. Answered."""

    verb: Literal["open"] = "open"
    model: Number
    bits: Annotated[int, Field(ge=2, le=8)]
    rounding: Where


class Begin(Message):
    """A forward pass of a model begins."""

    verb: Literal["begin"] = "begin"
    model: Number
    training: bool
    again: bool


class Hide(Message):
    """A tensor lies at ``at``: take it in. Its shape is what the form says of the stream."""

    verb: Literal["hide"] = "hide"
    model: Number
    operand: Number
    layer: LayerName
    stream: Literal["x", "w", "y"]
    form: Form
    at: Number
    axis: Annotated[int, Field(ge=-8, le=7)] | None = None
    exponent: Annotated[int, Field(ge=-100, le=127)] | None = None
    stochastic: bool
    public: bool


class Ask(Message):
    """Begin a product of two operands."""

    verb: Literal["ask"] = "ask"
    model: Number
    product: Number
    layer: LayerName
    form: Form
    left: Number
    right: Number


class Collect(Message):
    """Wait for a product and put it at ``at``. Answered."""

    verb: Literal["collect"] = "collect"
    model: Number
    product: Number
    at: Number


class Forget(Message):
    """Nobody needs these any more."""

    verb: Literal["forget"] = "forget"
    model: Number
    operands: Annotated[tuple[Number, ...], Field(max_length=1024)] = ()
    products: Annotated[tuple[Number, ...], Field(max_length=1024)] = ()


class Settle(Message):
    """Whether a check failed so far. Answered."""

    verb: Literal["settle"] = "settle"
    model: Number


class Prepare(Message):
    """Make ahead what some passes need. Answered."""

    verb: Literal["prepare"] = "prepare"
    model: Number
    passes: Annotated[int, Field(ge=0, le=1 << 20)]


class Measure(Message):
    """What products cost with these workers. Answered."""

    verb: Literal["measure"] = "measure"
    model: Number


class Rounding(Message):
    """Where the rounding stands, or is to go on. Answered."""

    verb: Literal["rounding"] = "rounding"
    model: Number
    state: Where | None = None


class Tell(Message):
    """What was counted; with ``clear``, begin anew. Answered."""

    verb: Literal["tell"] = "tell"
    model: Number
    clear: bool = False


class Close(Message):
    """The model is not offloaded any more."""

    verb: Literal["close"] = "close"
    model: Number


Command = Annotated[
    Open | Begin | Hide | Ask | Collect | Forget | Settle | Prepare | Measure | Rounding | Tell | Close,
    Field(discriminator="verb"),
]


class Order(Message):
    """One command."""

    command: Command


class Said(Message):
    """An error, told to the script: what its own model or its own workers did. Never which check failed."""

    code: int
    what: str
    expected: str | None = None
    got: str | None = None
    hint: str | None = None


class Reply(Message):
    """An answer: an error, or what the command gives.

    Attributes:
        error: Of this command, or of one before it that was not answered.
        failed: Whether a check failed so far.
        count: Products that were prepared; blinding that was late.
        one_product: Of the mode.
        rounding: Where it stands.
        uses: What was counted, by layer.
        check_error: The greatest error of one check, as a fraction.
        costs: The planner's numbers, as Python writes floats in hexadecimal.
    """

    error: Said | None = None
    failed: bool = False
    count: int = 0
    one_product: bool = False
    rounding: Where | None = None
    uses: tuple[Used, ...] = ()
    check_error: Annotated[str, Field(pattern=r"^\d{1,30}/\d{1,30}$")] | None = None
    costs: dict[str, str] = Field(default_factory=dict)


def send(handle: int, body: bytes, *, until: int | None = None) -> None:
    """Writes one message.

    Args:
        handle: A pipe's writing end.
        body: At most 4 GiB.
        until: A descriptor that becomes readable when nobody is to wait any longer; the handle is then non-blocking.

    Raises:
        PeerError: 6712 when the other side is gone, or nobody waits any longer.
    """
    rest = memoryview(_LENGTH.pack(len(body)) + body)
    while rest:
        try:
            _wait(handle, select.POLLOUT, until)
            rest = rest[os.write(handle, rest) :]
        except BlockingIOError:  # less room than one atomic write
            continue
        except BrokenPipeError:
            raise PeerError(6712) from None


def receive(handle: int, *, most_bytes: int, until: int | None = None) -> bytes:
    """Reads one message.

    Raises:
        PeerError: 6712 when the other side is gone, nobody waits any longer, or it is longer than ``most_bytes``.
    """
    (size,) = _LENGTH.unpack(_exactly(handle, _LENGTH.size, until))
    if size > most_bytes:
        raise PeerError(6712, expected=f"at most {most_bytes} bytes", got=f"{size} bytes")
    return _exactly(handle, size, until)


def _exactly(handle: int, size: int, until: int | None) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        _wait(handle, select.POLLIN, until)
        part = os.read(handle, size - len(parts))
        if not part:
            raise PeerError(6712)
        parts += part
    return bytes(parts)


def _wait(handle: int, event: int, until: int | None) -> None:
    if until is None:
        return  # the call itself waits
    poll = select.poll()
    poll.register(handle, event)
    poll.register(until, select.POLLIN)
    if any(number == until for number, _ in poll.poll()):
        raise PeerError(6712)
