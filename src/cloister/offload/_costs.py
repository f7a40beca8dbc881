"""What a product costs where: the planner's model, measured on this machine and these workers.

A product that leaves the enclave costs it a pass over each operand (round, mask), a pass over each answer (unmask,
bound, check, scale), the link, and the worker's multiplications. One that stays costs the enclave's own
multiplications. All of it follows from shapes, so a plan says nothing about data.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from cloister.offload._commands import Compute, Drop, Put, Term, form_of
from cloister.ring import MaskLedger, MaskSource, MatMul, Product, draw, hide, magnitude, recover

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cloister.offload._meter import Meter
    from cloister.offload._schemes import Scheme
    from cloister.offload._workers import Worker
    from cloister.ring import Role

__all__ = ["Costs", "Estimate"]

_SIDE = 256  # of the trial product
_HEIGHT = 2048
_ROUNDS = 5
_WORD_BYTES = 4
_ROLES: tuple[Role, ...] = ("forward", "input_gradient", "weight_gradient")


@dataclass(frozen=True, slots=True)
class Estimate:
    """Predicted seconds of one layer's products.

    Attributes:
        offloaded: With the workers.
        resident: In the enclave.
    """

    offloaded: float
    resident: float


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds, by what they grow with.

    Attributes:
        multiply_s: A multiplication in the enclave, fp32.
        hide_s: A word that is rounded, masked and put on its way, with its part of the link.
        recover_s: A word of an answer: its way back, unmasked, checked, scaled.
        worker_s: A multiplication of the slowest worker.
        call_s: A product, however small.
    """

    multiply_s: float
    hide_s: float
    recover_s: float
    worker_s: float
    call_s: float

    @classmethod
    def measure(cls, workers: Sequence[Worker], scheme: Scheme, *, meter: Meter) -> Costs:
        """Times a few products of random numbers; takes about a second.

        Args:
            workers: Started, with nothing under the highest handles.
            scheme: The mode that will be used.
            meter: Counts the bytes, which belong to no layer.
        """
        small, large = (_round_trip(workers, rows, scheme, meter) for rows in (8, _HEIGHT))
        words = _HEIGHT * _SIDE
        multiplications = words * _SIDE * max(1, scheme.products / scheme.workers)
        hide_s, recover_s, multiply_s = _passes(scheme)
        way = max(large.put - small.put, 0.0) / words
        compute = max(large.compute - small.compute, 1e-9)
        # what comes back takes the link as long as what went out
        worker = max(compute - way * words, compute / 10) / multiplications
        return cls(multiply_s, hide_s + way, recover_s + way, worker, small.compute)

    def estimate(self, product: Product, scheme: Scheme, *, training: bool) -> Estimate:
        """The cost of a layer's products: the forward one, and in training the two gradients.

        Args:
            product: The forward product.
            scheme: The mode.
            training: Whether gradients are made.
        """
        roles = _ROLES if training else _ROLES[:1]
        sent = math.prod(product.x) + (math.prod(product.y) if training else 0)
        if training:  # an inference's weights are shared once for all
            sent += math.prod(product.w)
        back = sum(math.prod(Product(product.operator, role, x=product.x, w=product.w).result) for role in roles)
        each = scheme.products / scheme.workers
        offloaded = (
            sent * self.hide_s
            + back * self.recover_s
            + len(roles) * (self.call_s + product.multiplications * each * self.worker_s)
        )
        return Estimate(offloaded, len(roles) * product.multiplications * self.multiply_s)

    def as_json(self) -> dict[str, Any]:
        """The same numbers, by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Trip:
    put: float
    compute: float


_HANDLES = ((1 << 53) - 2, (1 << 53) - 1)


def _round_trip(workers: Sequence[Worker], rows: int, scheme: Scheme, meter: Meter) -> _Trip:
    """Median seconds of sending an operand to the slowest worker, and of a product with its answer."""
    left = torch.randint(-(1 << 31), 1 << 31, (rows, _SIDE), dtype=torch.int64).to(torch.int32)
    public = bool(scheme.public)
    right = torch.randint(-128, 128, (_SIDE, _SIDE), dtype=torch.int64).to(torch.int8 if public else torch.int32)
    form = form_of(Product(MatMul(), "forward", x=(rows, _SIDE), w=(_SIDE, _SIDE)))
    multiply = Compute(form=form, terms=(Term(sign=1, left=_HANDLES[0], right=_HANDLES[1]),))
    puts: list[float] = []
    computes: list[float] = []
    for _ in range(_ROUNDS):
        trips: list[_Trip] = []
        for index, worker in enumerate(workers):
            put = _timed(
                lambda worker=worker: worker.submit(Put(handle=_HANDLES[0], dtype="int32", shape=(rows, _SIDE)), left)
            )
            kind = "int8" if public else "int32"
            worker.submit(Put(handle=_HANDLES[1], dtype=kind, shape=(_SIDE, _SIDE)), right).result()
            trips.append(_Trip(put, _timed(lambda worker=worker: worker.submit(multiply))))
            worker.submit(Drop(handles=_HANDLES)).result()
            meter.sent(index, left.nbytes + right.nbytes)
            meter.received(index, rows * _SIDE * _WORD_BYTES)
        puts.append(max(trip.put for trip in trips))
        computes.append(max(trip.compute for trip in trips))
    return _Trip(statistics.median(puts), statistics.median(computes))


def _timed(submit: Callable[[], Any]) -> float:
    start = time.perf_counter()
    submit().result()
    return time.perf_counter() - start


def _passes(scheme: Scheme) -> tuple[float, float, float]:
    """Seconds a word of hiding and of recovering, and seconds a multiplication, in the enclave."""
    shape = (_HEIGHT, _SIDE)
    values, weights = torch.randn(shape), torch.randn(_SIDE, _SIDE)
    product = Product(MatMul(), "forward", x=shape, w=(_SIDE, _SIDE))
    source = MaskSource("trial")
    points = [point for piece in scheme.secret if piece.sign and (point := piece.mask)]
    hides: list[float] = []
    recovers: list[float] = []
    multiplies: list[float] = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        mask = source.next(shape)
        hidden = hide(values, ledger=MaskLedger(), masks=[(mask, {str(i): p for i, p in enumerate(points)})])
        hides.append(time.perf_counter() - start)
        start = time.perf_counter()
        words = [(coefficient, mask.words) for coefficient in scheme.coefficients]
        challenge = draw(product)
        bound = magnitude(_SIDE, 8, 8)
        made = recover(words, bound=bound, functional=challenge, halve=scheme.halved, exponents=[-12])
        right = hidden.quantised.values[:_SIDE]
        challenge.judge(hidden.quantised.values, right, value=made.functional or 0)
        recovers.append(time.perf_counter() - start)
        start = time.perf_counter()
        _ = values @ weights.T
        multiplies.append(time.perf_counter() - start)
    hide_s, recover_s, multiply_s = (
        statistics.median(times[1:]) / math.prod(shape) for times in (hides, recovers, multiplies)
    )
    return hide_s, recover_s, multiply_s / _SIDE
