"""A script's half of a stage's offloading: tensors into shared memory, orders to the launcher's broker."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections import deque
from contextlib import suppress
from fractions import Fraction
from typing import TYPE_CHECKING, NoReturn

from cloister.errors import InputError, IntegrityError, PeerError, error_for
from cloister.offload._arena import Arena, Region, Regions
from cloister.offload._commands import form_of
from cloister.offload._costs import Costs
from cloister.offload._orders import (
    MAX_ANSWER_BYTES,
    Ask,
    Begin,
    Close,
    Collect,
    Forget,
    Hide,
    Measure,
    Open,
    Order,
    Prepare,
    Reply,
    Rounding,
    Settle,
    Tell,
    Where,
    receive,
    send,
)
from cloister.offload._products import Tally
from cloister.offload._stage import StageTerms
from cloister.offload._verdict import Verdict
from cloister.ring import RoundingStream
from cloister.ring._process import ThisProcess
from cloister.wire import parse_message

if TYPE_CHECKING:
    from torch import Tensor

    from cloister.offload._orders import Command
    from cloister.offload._products import StreamOf
    from cloister.ring import Product, RoundingState

__all__ = ["Brokered", "Channel", "channel_of", "close_channel"]

_WORD = 4
_FORGOTTEN = 1024


class Channel:
    """The way to the broker, shared by all models of a script.

    Args:
        terms: With descriptors.

    Raises:
        InputError: 2728 when they are not those of a broker.
    """

    def __init__(self, terms: StageTerms) -> None:
        if terms.memory is None or terms.orders is None or terms.answers is None:
            raise InputError(2728, got="no descriptors")
        self._process = ThisProcess()
        self.over = False
        try:
            self._arena = Arena(terms.memory)
            self._orders, self._answers = os.dup(terms.orders), os.dup(terms.answers)
        except (OSError, ValueError) as error:
            raise InputError(2728, got=str(error)) from None
        self._regions = Regions(self._arena.size_bytes)
        self._lock = threading.RLock()
        self._returned: deque[Region] = deque()  # results that nobody refers to; filled by finalisers
        self._read: list[Region] = []  # free once the broker has answered anything
        self._models = 0

    def number(self) -> int:
        """A number for a model."""
        with self._lock:
            self._models += 1
            return self._models

    def tell(self, command: Command) -> None:
        """Sends a command that is not answered."""
        self._process.require()
        with self._lock:
            if self.over:
                raise PeerError(6712)
            send(self._orders, Order(command=command).canonical())

    def ask(self, command: Command) -> Reply:
        """Sends a command and waits for its answer.

        Raises:
            PeerError: 6712 when the broker is gone.
            CloisterError: what a command failed at, this one or one before.
        """
        with self._lock:
            self.tell(command)
            body = receive(self._answers, most_bytes=MAX_ANSWER_BYTES)
            for region in self._read:
                self._regions.give(region)
            self._read.clear()
        reply = parse_message(Reply, body, what="answer", max_bytes=MAX_ANSWER_BYTES)
        if reply.error is not None:
            said = reply.error
            raise error_for(said.code, said.what, said.expected, said.got, said.hint)
        return reply

    def close(self) -> None:
        """The broker has ended; what was known stays known."""
        with self._lock:
            if not self.over:
                self.over = True
                os.close(self._orders)
                os.close(self._answers)

    def put(self, values: Tensor, command: Hide, model: int) -> None:
        """Sends a tensor with its command; its memory is free again after the next answer."""
        with self._lock:
            region = self._take(_WORD * values.numel(), model)
            self._arena.tensor(region[0], tuple(values.shape)).copy_(values)
            self.tell(command.model_copy(update={"at": region[0]}))
            self._read.append(region)

    def fetch(self, product: int, shape: tuple[int, ...], model: int) -> Tensor:
        """Waits for a product, where the broker puts it."""
        count = 1
        for length in shape:
            count *= length
        with self._lock:
            region = self._take(_WORD * count, model)
            tensor = self._arena.lent(region, shape, self._returned)
            self.ask(Collect(model=model, product=product, at=region[0]))
        return tensor

    def _take(self, size_bytes: int, model: int) -> Region:
        for attempt in range(3):
            while self._returned:
                self._regions.give(self._returned.popleft())
            region = self._regions.take(size_bytes)
            if region is not None:
                return region
            if attempt == 0 and self._read:
                self.ask(Settle(model=model))
            else:
                gc.collect()
        raise InputError(2727, "script and launcher share no more memory", expected=f"{size_bytes} bytes that are free")


_channels: dict[str, Channel] = {}


def channel_of(terms: StageTerms) -> Channel:
    """The channel of a stage: one, however many models a script converts."""
    if terms.session not in _channels:
        _channels[terms.session] = Channel(terms)
    return _channels[terms.session]


def close_channel(session: str) -> None:
    """Ends a stage's channel, where script and launcher are one process; elsewhere it dies with the script."""
    channel = _channels.pop(session, None)
    if channel is not None:
        channel.close()


class _Operand:
    """A tensor that the broker has."""

    __slots__ = ("__weakref__", "axis", "number")

    def __init__(self, number: int, axis: int | None, released: deque[int]) -> None:
        self.number = number
        self.axis = axis
        weakref.finalize(self, released.append, number).atexit = False


class _Promised:
    """A product that the broker was asked for."""

    __slots__ = ("__weakref__", "_brokered", "_left", "_number", "_right", "_shape", "_unwanted")

    def __init__(
        self, brokered: Brokered, number: int, shape: tuple[int, ...], operands: tuple[_Operand, _Operand]
    ) -> None:
        self._brokered, self._number, self._shape = brokered, number, shape
        self._left, self._right = operands
        self._unwanted = weakref.finalize(self, brokered.unwanted.append, number)
        self._unwanted.atexit = False

    def result(self) -> Tensor:
        self._unwanted.detach()
        return self._brokered.fetch(self._number, self._shape)


class Brokered:
    """:class:`~cloister.offload._products.Products` of a model in a stage.

    Args:
        terms: The stage's.
        bits: Of every operand.

    Raises:
        PeerError: 67xx when a worker cannot be reached.
    """

    def __init__(self, terms: StageTerms, *, bits: int) -> None:
        self._channel = channel_of(terms)
        self._model = self._channel.number()
        self._numbers = 0
        self._released: deque[int] = deque()
        self.unwanted: deque[int] = deque()
        self._unseen = self._failed = self._closed = False
        self.verdict = Verdict(elsewhere=self._asked)
        where = Where.of(RoundingStream.seeded().state)
        self.one_product = self._channel.ask(Open(model=self._model, bits=bits, rounding=where)).one_product

    def begin(self, *, training: bool, again: bool) -> None:
        """See :class:`~cloister.offload._products.Products`."""
        if not again:
            self.settle()
        self._forget()
        self._channel.tell(Begin(model=self._model, training=training, again=again))

    def hide(
        self, layer: str, stream: StreamOf, values: Tensor, *, product: Product, axis: int | None, stochastic: bool,
        public: bool, exponent: int | None = None,
    ) -> _Operand:  # fmt: skip
        """See :class:`~cloister.offload._products.Products`."""
        number = self._next()
        command = Hide(
            model=self._model,
            operand=number,
            layer=layer[:512],
            stream=stream,
            form=form_of(product),
            at=0,
            axis=axis,
            exponent=exponent,
            stochastic=stochastic,
            public=public,
        )
        self._channel.put(values, command, self._model)
        return _Operand(number, axis, self._released)

    def ask(self, layer: str, product: Product, left: _Operand, right: _Operand) -> _Promised:
        """See :class:`~cloister.offload._products.Products`."""
        number = self._next()
        self._channel.tell(
            Ask(
                model=self._model,
                product=number,
                layer=layer[:512],
                form=form_of(product),
                left=left.number,
                right=right.number,
            )
        )
        return _Promised(self, number, tuple(product.result), (left, right))

    def fetch(self, number: int, shape: tuple[int, ...]) -> Tensor:
        """Waits for a product."""
        self._unseen = True
        return self._channel.fetch(number, shape, self._model)

    def settle(self) -> None:
        """See :class:`~cloister.offload._products.Products`."""
        self.verdict.settle()

    def prepare(self, passes: int) -> int:
        """See :class:`~cloister.offload._products.Products`."""
        return self._channel.ask(Prepare(model=self._model, passes=passes)).count

    @property
    def rounding(self) -> RoundingState:
        """See :class:`~cloister.offload._products.Products`."""
        return self._rounded(None)

    @rounding.setter
    def rounding(self, state: RoundingState) -> None:
        self._rounded(Where.of(state))

    def costs(self) -> Costs:
        """What products cost with the stage's workers; see :meth:`Costs.measure`."""
        said = self._channel.ask(Measure(model=self._model)).costs
        return Costs(**{name: float.fromhex(value) for name, value in said.items()})

    def tally(self) -> Tally:
        """See :class:`~cloister.offload._products.Products`."""
        return self._told(clear=False)

    def clear(self) -> None:
        """See :class:`~cloister.offload._products.Products`."""
        self._told(clear=True)

    def close(self) -> None:
        """See :class:`~cloister.offload._products.Products`."""
        if not self._closed:
            self._asked()  # what was found so far stays known
            self._closed = True
            with suppress(PeerError):
                self._channel.tell(Close(model=self._model))

    def _told(self, *, clear: bool) -> Tally:
        reply = self._channel.ask(Tell(model=self._model, clear=clear))
        error = None if reply.check_error is None else Fraction(reply.check_error)
        return Tally({used.layer: used.use() for used in reply.uses}, error, reply.count)

    def _rounded(self, state: Where | None) -> RoundingState:
        where = self._channel.ask(Rounding(model=self._model, state=state)).rounding
        if where is None:
            self._nonsense()
        return where.state()

    def _asked(self) -> bool:
        """Whether a check failed; asks only when a product came since the last answer."""
        if self._unseen and not (self._failed or self._closed or self._channel.over):
            self._unseen = False
            try:
                self._failed = self._channel.ask(Settle(model=self._model)).failed
            except IntegrityError as error:
                if error.code != 5701:
                    raise
                self._failed = True
        return self._failed

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers

    def _forget(self) -> None:
        """Gives up what nobody refers to; told here, and not by a finaliser."""
        while self._released or self.unwanted:
            operands = tuple(self._released.popleft() for _ in range(min(_FORGOTTEN, len(self._released))))
            products = tuple(self.unwanted.popleft() for _ in range(min(_FORGOTTEN, len(self.unwanted))))
            self._channel.tell(Forget(model=self._model, operands=operands, products=products))

    @staticmethod
    def _nonsense() -> NoReturn:
        raise PeerError(6712, "the broker's answer does not fit the question")
