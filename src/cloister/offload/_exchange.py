"""One mode at work: tensors go out in pieces, products come back as words.

:class:`Exchange` is the enclave's half of every mode; the tables of :mod:`cloister.offload._schemes` say which pieces
and which sums.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cloister.errors import InputError, InternalError
from cloister.offload._arithmetic import Answers
from cloister.offload._commands import Compute, Cut, Drop, Expand, Put, Stream, Term, form_of
from cloister.offload._operands import Operand, Released
from cloister.ring import THE_MASK, MaskKey, MaskLedger, MaskSource, hide, quantise

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Future
    from typing import Literal

    from torch import Tensor

    from cloister.offload._arithmetic import Asked, Quantising
    from cloister.offload._blinding import Blinding
    from cloister.offload._commands import Command
    from cloister.offload._meter import Meter
    from cloister.offload._schemes import Piece, Scheme
    from cloister.offload._workers import Worker
    from cloister.ring import Mask, Masked, Part, Product, StreamAhead

__all__ = ["Exchange"]

_MOST_DROPPED = 256


class Exchange:
    """The enclave's half of one mode.

    Args:
        scheme: The mode's table.
        workers: As many as the mode has, in its order; started here.
        blinding: Where the products of masks come from, for a mode that makes them ahead.
        meter: Counts bytes.
        ahead: How much keystream may wait, with that of others.

    Raises:
        InputError: 2714 for another number of workers, or two of one name.

    Security: keys of masks are drawn here, and stay here but for those that the mode deals. Whatever leaves is an
    ``Operand``'s piece, made by :func:`cloister.ring.hide` under a mask that the ledger has bound.
    """

    checked = True

    def __init__(
        self,
        scheme: Scheme,
        workers: Sequence[Worker],
        *,
        blinding: Blinding | None = None,
        meter: Meter,
        ahead: StreamAhead | None = None,
    ) -> None:
        names = [worker.name for worker in workers]
        if len(names) != scheme.workers or len(set(names)) != len(names):
            raise InputError(
                2714, expected=f"{scheme.workers} workers of different names", got=", ".join(names) or "none"
            )
        self.limit = scheme.limit
        self.one_product = blinding is not None
        self._scheme = scheme
        self._workers = list(workers)
        self._names = names
        self._blinding = blinding
        self._sites: list[tuple[Product, list[Part], Operand]] = []
        self._meter = meter
        self._ledger = MaskLedger()
        self._lock = threading.RLock()
        self._released = Released(len(names))
        self._drawn: defaultdict[Stream, list[int]] = defaultdict(list)
        self._next_handle = 0
        self._sources = _sources(scheme, ahead)
        self._pads = {worker: MaskSource("pad") for worker in scheme.padded}
        for index, worker in enumerate(self._workers):
            streams = self._dealt(index)
            worker.start(streams)
            for stream in streams:
                if stream == "pad":
                    self._pads[index] = self._pads[index].on(worker.device)
                else:
                    self._sources[stream] = self._sources[stream].on(worker.device)

    def operand(
        self, stream: Literal["x", "w", "y"], values: Tensor, how: Quantising, *, public: bool, product: Product
    ) -> Operand:
        """See :class:`Arithmetic`."""
        pieces = self._scheme.public if public and self._scheme.public else self._scheme.secret
        with self._lock:
            masks = {name: self._mask(name, stream, values, product) for name in _streams(pieces)}
            if not any(piece.mask for piece in pieces):
                quantised, masked = quantise(values, **how.options()), ()
            else:
                points = [(masks[name], self._points(pieces, name)) for name in masks]
                hidden = hide(values, ledger=self._ledger, masks=points, **how.options())
                quantised, masked = hidden.quantised, hidden.masked
            handles = {
                (piece.worker, piece.name): self._send(piece, quantised.values, masks.get(piece.stream), masked)
                for piece in pieces
            }
        own = masks.get("mask")
        return Operand(quantised, handles, mask=None if own is None else own.id, released=self._released)

    def ask(self, part: Part, left: Operand, right: Operand, *, product: Product, index: int, whole: bool) -> Asked:
        """See :class:`Arithmetic`."""
        form = form_of(part.product)
        cuts = (None, None) if whole else (_cut(part.left), _cut(part.right))
        asked: list[tuple[int, Future[Tensor | None]]] = []
        pads: list[tuple[int, Tensor]] = []
        with self._lock:
            for worker in range(len(self._workers)):
                terms = tuple(
                    Term(sign=term.sign, left=left.handles[worker, term.left], right=right.handles[worker, term.right])
                    for term in self._scheme.terms
                    if term.worker == worker
                )
                pad = self._pads[worker].next(part.product.result) if worker in self._pads else None
                if pad is not None:
                    pads.append((-self._scheme.coefficients[worker], pad.words))
                command = Compute(
                    form=form, terms=terms, left=cuts[0], right=cuts[1], pad=None if pad is None else pad.id.counter
                )
                asked.append((self._scheme.coefficients[worker], self._submit(worker, command)))
            if self._blinding is not None:
                pads.append((-1, self._blinding.take(part, index, product, left, right)))
                if index == 0:
                    self._sites.append((product, [], right))
                self._sites[-1][1].append(part)
        return _Awaited(self, asked, pads)

    def close(self) -> None:
        """See :class:`Arithmetic`."""
        for source in self._sources.values():
            source.forget()
        for worker in self._workers:
            worker.close()

    def _mask(self, name: str, stream: Stream, values: Tensor, product: Product) -> Mask:
        shape = tuple(values.shape)
        if name == "mask" and self._blinding is not None:
            return self._blinding.mask(self._sources[stream], shape, product)
        which: Stream = "share" if name == "share" else stream
        self._drawn[which].append(math.prod(shape))
        return self._sources[which].next(shape)

    def _points(self, pieces: Sequence[Piece], stream: str) -> dict[str, int]:
        points: dict[str, int] = {}
        for piece in pieces:
            if piece.stream == stream and piece.mask:
                point = piece.mask if piece.sign else THE_MASK
                if points.setdefault(self._names[piece.worker], point) != point:
                    raise InternalError(9701, "a worker was about to see a second point of one mask")
        return points

    def _send(self, piece: Piece, values: Tensor, mask: Mask | None, masked: Sequence[Masked]) -> int:
        handle = self._next_handle
        self._next_handle += 1
        worker, shape = piece.worker, tuple(values.shape)
        if piece.mask == 0 or mask is None:
            self._submit(worker, Put(handle=handle, dtype="int8", shape=shape), values)
        elif piece.sign == 0:
            stream: Stream = "share" if piece.stream == "share" else _stream_of(mask)
            self._submit(worker, Expand(handle=handle, stream=stream, counter=mask.id.counter, shape=shape))
        else:
            name = self._names[worker]
            words = next(each for each in masked if each.mask == mask.id and each.worker == name).words_for(name)
            self._submit(worker, Put(handle=handle, dtype="int32", shape=shape), words)
        return handle

    def _submit(self, index: int, command: Command, tensor: Tensor | None = None) -> Future[Tensor | None]:
        worker = self._workers[index]
        if released := self._released.take(index, _MOST_DROPPED):
            worker.submit(Drop(handles=released))
        if tensor is not None:
            self._meter.sent(index, tensor.nbytes)
        return worker.submit(command, tensor)

    def _dealt(self, index: int) -> Mapping[Stream, MaskKey]:
        """The keys that a worker may expand, noted in the ledger before it has them."""
        keys: dict[Stream, MaskKey] = {}
        for piece in (*self._scheme.secret, *self._scheme.public):
            if piece.worker == index and piece.mask and not piece.sign:
                streams: tuple[Stream, ...] = ("share",) if piece.stream == "share" else ("x", "w", "y")
                keys.update({stream: self._sources[stream].key for stream in streams})
        for stream in keys:
            self._ledger.deal(self._sources[stream].role, self._names[index])
        if index in self._pads:
            keys["pad"] = self._pads[index].key
        return keys

    def begin(self, *, training: bool) -> None:
        """See :class:`Arithmetic`. The keystream of a pass like the last one is made ahead, by threads of its own."""
        self._sites = []
        drawn, self._drawn = self._drawn, defaultdict(list)
        for stream, sizes in drawn.items():
            if (training or stream != "y") and self._blinding is None:
                self._sources[stream].prefetch(*sizes)

    def prepare(self, passes: int) -> int:
        """See :class:`Arithmetic`."""
        if self._blinding is None:
            return 0
        for _ in range(passes):
            for product, parts, weight in self._sites:
                source = self._sources["x" if product.role == "forward" else "y"]
                self._blinding.prepare(source, product, tuple(parts), weight)
        return passes * len(self._sites)

    @property
    def late(self) -> int:
        """See :class:`Arithmetic`."""
        return 0 if self._blinding is None else self._blinding.made_late

    def received(self, index: int, tensor: Tensor) -> None:
        """Counts an answer."""
        self._meter.received(index, tensor.nbytes)

    @property
    def names(self) -> tuple[str, ...]:
        """The workers, in the mode's order."""
        return tuple(self._names)

    @property
    def halved(self) -> bool:
        """Whether answers sum up to twice the product."""
        return self._scheme.halved


@dataclass(frozen=True, slots=True)
class _Awaited:
    exchange: Exchange
    asked: Sequence[tuple[int, Future[Tensor | None]]]
    pads: Sequence[tuple[int, Tensor]] = field(repr=False)

    def answers(self) -> Answers:
        words: list[tuple[int, Tensor]] = []
        for index, (coefficient, future) in enumerate(self.asked):
            answer = future.result()
            assert answer is not None  # noqa: S101 - a worker answers a compute with a tensor, or raises
            self.exchange.received(index, answer)
            words.append((coefficient, answer))
        return Answers(words, self.pads, self.exchange.halved, self.exchange.names)


def _cut(at: tuple[int, int, int]) -> Cut:
    axis, start, stop = at
    return Cut(axis=axis, start=start, stop=stop)


def _streams(pieces: Sequence[Piece]) -> list[str]:
    """The keystreams that hide an operand, its own first."""
    return sorted({piece.stream for piece in pieces if piece.mask})


def _stream_of(mask: Mask) -> Stream:
    role: str = mask.id.role
    assert role in ("x", "w", "y")  # noqa: S101 - see _sources
    return role  # pyright: ignore[reportReturnType]


def _sources(scheme: Scheme, ahead: StreamAhead | None) -> dict[Stream, MaskSource]:
    """A source for each tensor of the form, named as the stream is."""
    streams: list[Stream] = ["x", "w", "y"]
    if any(piece.stream == "share" for piece in scheme.secret):
        streams.append("share")
    return {stream: MaskSource(stream, ahead=ahead) for stream in streams}
