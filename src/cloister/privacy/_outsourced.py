"""A weight's clipped gradient that workers sum: one product over a whole micro-batch, of integers that were bounded.

An example's gradient of a weight is ``Σ_t dy_t ⊗ x_t`` over its positions. Where rows of it cost more than two norms
(:func:`pays`), none is made. In backward the norm is taken from x and dy alone; when all norms are known, dy is scaled
by its example's factor, and ``Σ_b`` over the micro-batch is one product of the offloading, with the input as it was
hidden for the forward.

Rules:

* Workers sum integers: ``x̂``, the input as it was rounded, and ``D``, dy scaled and rounded. Each row of the input has
  a unit of its own (:mod:`cloister.offload._apart`), a power of two that moves over to dy. All examples share the unit
  u of D alone, which follows from shapes, bits and the clipping: from nothing that an example holds.
* D takes two integers of the offloading's bits, ``base · high + low``, side by side in one product: what an example may
  contribute at most is thousands of times what its rounding may be worth.
* u is a whole number of the grid's steps. So what example b contributes is ``u · x̂_bᵀ D_b``, a vector of integers, and
  the sum of all is exact: products are cut so short that float32 holds them to the last digit, and added as int64.
* What is bounded is what is sent. After D is rounded, each example's norm is taken again, of its integers.
  Whoever is beyond the radius is shortened, rounded again and taken again; whoever still is, is left out. Both rounds
  are always made, for all examples.
* An example whose D would not fit is shortened, not cut off: as with its norm, all its gradient by one factor. A row of
  padding has the factor 0, and costs and looks like any other.

*Proof* that an example's integers have a norm of at most Δ. Let b be an example, A the parameters whose rows are
rounded in the enclave, B the others, f its factor, n the norm of its gradient of A, m that of its integers of B, both
as computed. Here ``f² n² + m² ≤ R²`` or nothing of b is summed (:meth:`~cloister.privacy._contributions.Contributions
.bound`). As computed, n and m fall short of the true norms by at most a relative 2^-18; so do, with float32's rounding
of factor and scaled row, the true ones of ``R (1 + 2^-22)(1 + 2^-50)/(1 - 2^-18) < R/(1 - 2^-17)``. Integers of B are
not rounded any more; rounding those of A moves the whole vector by at most ``√P/2``, P the size of both. With
``R = (Δ - √P/2)(1 - 2^-17)``, the grid's (:mod:`cloister.privacy._grid`), the norm is at most Δ. And b is in the sum by
its own integers alone: f, x̂ and D are functions of b, of shapes, and of rounding bytes that nobody knows. □

m is computed in float64 from ``Σ_ts (x̂_t·x̂_s)(D_t·D_s)``, whose inner products are integers below 2^53 and exact. Their
T² products cancel where positions point against each other; the sum is raised by what its rounding may then be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from cloister.offload import Apart
    from cloister.offload._products import Promise

__all__ = ["MOST_TERMS", "Entries", "Outsourced", "pays", "unit_of"]

MOST_TERMS = 1 << 10
"""Terms of a sum of products of two 8-bit integers, whose float32 is exact: each is at most 2^14."""

_MULTIPLY, _KEEP, _THIN = 1, 20, 6
"""In the enclave, of one number of an example's row: for each position a multiplication; that it is written, measured,
scaled and rounded; or, of a Linear of one position, all of it at once."""
_NORM, _SEND, _RECOVER = 4, 1500, 1000
"""Outsourced: a multiplication of a norm, in float64; one number of dy, scaled, rounded twice, hidden and checked; one
number of a sum, which comes in two halves from every worker. All in fiftieths of a nanosecond, as measured."""


def pays(*, examples: int, positions: int, inputs: int, outputs: int, thin: bool) -> bool:
    """Whether a weight's gradient is summed by workers: whether that costs the enclave less, from shapes alone.

    Inside, every example's row is made and rounded. Outside, norms are taken of inner products of positions; dy goes
    out once more, and a sum comes back for each product.

    Args:
        examples: Of the micro-batch.
        positions: Of an example.
        inputs: Numbers that an output is the sum of: a convolution's taps are in it.
        outputs: Of a position.
        thin: Whether a row need not be made to be summed: a Linear of one position.

    >>> pays(examples=256, positions=1, inputs=2048, outputs=512, thin=True)  # a large Linear
    True
    >>> pays(examples=16, positions=1, inputs=2048, outputs=512, thin=True)  # of few examples
    False
    >>> pays(examples=64, positions=1024, inputs=27, outputs=64, thin=False)  # a first convolution
    False
    >>> pays(examples=64, positions=4, inputs=4608, outputs=512, thin=False)  # a last one
    True
    """
    rows = examples * inputs * outputs * (_THIN if thin else _KEEP + _MULTIPLY * positions)
    products = -(-examples * positions // MOST_TERMS)
    norms = examples * positions**2 * (inputs + 3 * outputs) * _NORM
    sent, recovered = examples * positions * outputs * _SEND, products * inputs * outputs * _RECOVER
    return positions <= MOST_TERMS and norms + sent + recovered < rows


def unit_of(radius: float, *, bits: int, positions: int, inputs: int) -> int:
    """u: what 1 in D is worth in the sum, in steps of the grid; a power of two.

    An input's row that is not zero has a number of at least half the greatest integer. So has an example's norm of x̂,
    and more the more numbers there are: a 64th of the greatest for each is taken for granted. (Whoever has less is
    shortened.) The greatest D is then worth the radius.

    Args:
        radius: Of the weight's clipping group, in steps.
        bits: Of every operand.
        positions: Of an example.
        inputs: Numbers that an output is the sum of.

    >>> unit_of(2.0**24, bits=8, positions=1, inputs=512)
    32
    """
    base = 1 << (bits - 1)
    norm = max(base / 2, math.sqrt(positions * inputs) * base / 64)
    return 1 << max(0, math.ceil(math.log2(radius / (norm * _greatest(bits)))))


def _greatest(bits: int) -> int:
    """The greatest D: its high part is the greatest integer of so many bits."""
    base = 1 << (bits - 1)
    return base * (base - 1)


class Entries:
    """How a use's operands have their examples: entries along the first axis, positions in each.

    Args:
        places: ``(examples, entries of each)`` int64: numbers of entries.
        inputs: Of the input's integers: ``(entries, positions, numbers)``.
        outputs: Of a gradient: the same.
        back: Of a sum ``(outputs, inputs, …)``: a view of the parameter's shape.
        shape: The parameter's.
    """

    def __init__(
        self,
        places: Tensor,
        *,
        shape: torch.Size,
        inputs: Callable[[Tensor], Tensor],
        outputs: Callable[[Tensor], Tensor],
        back: Callable[[Tensor], Tensor],
    ) -> None:
        self.places, self.shape = places, shape
        self.inputs, self.outputs, self.back = inputs, outputs, back
        self.owners = torch.empty(places.numel(), dtype=torch.int64, device=places.device)
        numbers = torch.arange(len(places), device=places.device).unsqueeze(1)
        self.owners[places.flatten()] = numbers.expand(places.shape).flatten()

    def gram(self, values: Tensor, positions: Callable[[Tensor], Tensor]) -> Tensor:
        """``(examples, T, T)`` float64: inner products of an example's positions."""
        found: list[Tensor] = []
        each = max(1, _CHUNK_ELEMENTS // max(1, values[:1].numel() * self.places.shape[1]))
        for some in self.places.split(each):
            rows = positions(values[some.flatten()].double())
            rows = rows.reshape(len(some), -1, rows.shape[-1])
            found.append(rows @ rows.mT)
        return torch.cat(found)


_CHUNK_ELEMENTS = 1 << 18  # before a convolution's windows are laid out


class Outsourced:
    """The gradient of one weight of one micro-batch, from its backward to the sum.

    Args:
        apart: Made the forward; has the input's integers.
        dy: float32, entries first, as the layer's output.
        entries: How both have their examples.
        radius: Of the weight's clipping group, in steps.
    """

    def __init__(self, apart: Apart, dy: Tensor, entries: Entries, radius: float) -> None:
        integers = apart.integers
        assert integers is not None  # noqa: S101 - it was made to keep them
        self._apart, self._entries = apart, entries
        shape = (len(dy),) + (1,) * (dy.dim() - 1)
        # a row of zeros counts for nothing, whatever its gradient: it must not shorten its example
        self._dy = torch.where(integers.empty.reshape(shape), 0.0, dy.detach() * integers.units.reshape(shape))
        self._dy = torch.where(integers.units.isnan().reshape(shape), math.nan, self._dy)
        self._gram = entries.gram(integers.values, entries.inputs)
        positions = self._gram.shape[1]
        inputs = math.prod(apart.weight_shape[1:])
        self._unit = unit_of(radius, bits=apart.bits, positions=positions, inputs=inputs)
        self._greatest = _greatest(apart.bits)
        self._bytes: Tensor | None = None
        self._rounded = self._dy
        self._promises: list[Promise] = []

    def squares(self) -> Tensor:
        """``(examples,)`` float64: squared norms, before dy is scaled; the input is rounded already."""
        return self._products(self._dy)

    def most(self) -> Tensor:
        """``(examples,)`` float64: the factor beyond which an example's D does not fit."""
        greatest = self._dy.abs().flatten(1).amax(1).nan_to_num(0.0, 0.0, 0.0).double()
        found = torch.zeros(len(self._entries.places), dtype=torch.float64, device=greatest.device)
        found.scatter_reduce_(0, self._entries.owners, greatest, "amax")
        return self._greatest * self._unit / found.clamp(min=1e-300)

    def round(self, factors: Tensor) -> Tensor:
        """Scales and rounds; the same bytes round every time.

        Args:
            factors: ``(examples,)`` float64.

        Returns:
            ``(examples,)`` float64: squared norms of the integers that will be summed, in steps.
        """
        scale = (factors / self._unit).float()[self._entries.owners].reshape(-1, *(1,) * (self._dy.dim() - 1))
        if self._apart.rounding is None:
            below: Tensor | float = 0.5
        else:
            if self._bytes is None:
                self._bytes = self._apart.rounding.next(self._dy.numel()).view(self._dy.shape)
            below = (self._bytes.float() + 0.5) / 256
        made = torch.where(scale == 0, 0.0, self._dy * scale + below).floor().nan_to_num_(0.0, 0.0, 0.0)
        self._rounded = made.clamp_(-self._greatest, self._greatest)
        return self._products(self._rounded) * float(self._unit) ** 2

    def ask(self, kept: Tensor) -> None:
        """Has the sum made of what was rounded last.

        Args:
            kept: ``(examples,)`` bool: whose is in it.
        """
        shape = (-1, *(1,) * (self._dy.dim() - 1))
        made = torch.where(kept[self._entries.owners].reshape(shape), self._rounded, 0.0)
        base = 1 << (self._apart.bits - 1)
        high = ((made + base // 2) / base).floor()
        halves = torch.cat([high, made - base * high], 1)
        self._promises = self._apart.toward_weight(halves.to(torch.int8))

    def add_to(self, total: Tensor) -> None:
        """Adds the sum, in steps, to ``(size,)`` int64."""
        base = 1 << (self._apart.bits - 1)
        for promise in self._promises:
            for half, worth in zip(promise.result().chunk(2), (base, 1), strict=True):
                integers = half.to(torch.int64)
                total.view(self._entries.shape).add_(self._entries.back(integers), alpha=worth * self._unit)
        self._promises = []

    def _products(self, values: Tensor) -> Tensor:
        other = self._entries.gram(values, self._entries.outputs)
        found = (self._gram * other).sum((1, 2))
        traces = [gram.diagonal(dim1=1, dim2=2).sum(1) for gram in (self._gram, other)]
        return found.clamp(min=0) + traces[0] * traces[1] * (self._gram.shape[1] ** 2 * 2.0**-52)
