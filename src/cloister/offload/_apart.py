"""Products in which nothing of an example depends on another: what private training asks of a multiplier.

A scale that follows from a whole tensor ties its examples together: the largest entry of one decides how all the
others are rounded. Harmless for training, it breaks differential privacy, whose proof needs each example's gradient to
be a function of that example alone. So under a private forward:

* Every slice of an operand that the product does *not* sum over has a scale of its own: a row of a matrix, a group of
  channels of one picture. An entry of the result then depends on the two slices that it is the product of and on
  nothing else, exactly as in the product that is not offloaded. Where examples lie need not be known: whoever is kept
  apart by the exact product is kept apart by this one. (A scale that follows a position within an example would do no
  harm either; one along what is summed could not be taken out of the result.)
* The scale is a power of two and is taken out before anything is hidden: integers come in with one fixed, public scale
  and leave nothing to be chosen by whoever hides them. The result is scaled back in the enclave.
* A slice with an entry that is infinite or no number goes out as zeros, and the entries made of it come back as no
  number: as in the exact product, and without a word to anybody. No example can stop the training of all others.
* A weight has one scale, and is hidden once: it is what was released, and says nothing new of anybody.
* Rounding is to the nearest, or by bytes that are drawn fresh, secret and independent of all data. Which bytes an
  example gets depends on its place in the micro-batch, and so on how many come before it; as they are uniform and
  nobody knows them, that changes no distribution: exchange the bytes with the places.

>>> import torch
>>> rows = torch.tensor([[0.5, -0.25], [1e30, 2e30], [float("nan"), 0.0]])
>>> made = integers_of(rows, over=(-1,), bits=8, rounding=None)
>>> made.values.tolist(), made.units.flatten().tolist()[:1]
([[64, -32], [50, 101], [0, 0]], [0.0078125])
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from cloister.offload._router import weight_of
from cloister.ring import Conv2d, Product, quantise, survives

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cloister.offload._engine import Engine
    from cloister.offload._layers import Layer
    from cloister.offload._products import Hidden, Promise, StreamOf
    from cloister.ring import Operand, Role, RoundingStream

__all__ = ["Apart", "Integers", "integers_of"]

_LEAST = -100  # as in the ring: what is smaller rounds like any other small value


@dataclass(frozen=True, slots=True, repr=False)
class Integers:
    """A tensor as integers, each slice with a unit of its own: it is ``values · units``, rounded.

    Attributes:
        values: int8.
        units: float32 powers of two that broadcast; no number for a slice that is not finite.
        empty: bool, as the units: slices that hold zeros alone, as far as anybody sees.
    """

    values: Tensor
    units: Tensor
    empty: Tensor


def integers_of(values: Tensor, *, over: tuple[int, ...], bits: int, rounding: RoundingStream | None) -> Integers:
    """Rounds a tensor, each slice by a power of two that lets its greatest magnitude take all bits.

    Args:
        values: float32.
        over: Axes along which a slice runs; all others number the slices.
        bits: 2 to 8.
        rounding: Stochastic by these bytes; to the nearest if left out.
    """
    most = values.detach().abs().amax(over, keepdim=True)
    finite = most < math.inf
    exponents = torch.frexp(torch.where(finite, most, 0.0)).exponent.clamp(min=_LEAST)
    scaled = (values.detach() * _power(bits - 1 - exponents)).nan_to_num_(0.0, 0.0, 0.0)
    made = quantise(scaled, bits=bits, exponent=0, rounding=rounding)
    units = torch.where(finite, _power(exponents - (bits - 1)), math.nan)
    return Integers(made.values, units, (most == 0) | ~finite)


def _power(exponents: Tensor) -> Tensor:
    """``2^exponents`` exactly, -126 to 127: torch's own may be off by a bit."""
    return ((exponents.to(torch.int32) + 127) << 23).view(torch.float32)


class Apart:
    """One product of a layer in a private forward, and its gradient towards the input, and the weight where asked.

    Args:
        engine: Has products made.
        layer: Whose it is.
        x: Shape of the left operand.
        w: The right one: a weight, or, with ``data``, what depends on examples.
        rounding: Bytes for stochastic rounding; None rounds to the nearest.
        data: Whether the right operand has examples, and gets a gradient.
        together: Rows of the left operand, or pictures, in one product, for who will ask for the weight's gradient.

    Attributes:
        shape: Of the left operand.
        rounding: As given.
        integers: The left operand's, kept for the weight's gradient.
    """

    __slots__ = ("_data", "_engine", "_hidden", "_layer", "_together", "_w", "_x", "integers", "rounding", "shape")

    def __init__(
        self,
        engine: Engine,
        layer: Layer,
        x: Sequence[int],
        w: Tensor,
        *,
        rounding: RoundingStream | None,
        data: bool = False,
        together: int | None = None,
    ) -> None:
        self._engine, self._layer, self._data, self._together = engine, layer, data, together
        self._w = w.detach() if weight_of(w) is None else w
        self._x: Tensor | None = None
        self._hidden: list[Hidden] = []
        self.shape, self.rounding = tuple(x), rounding
        self.integers: Integers | None = None

    @property
    def bits(self) -> int:
        """Of every operand."""
        return self._engine.numerics.bits

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Of the right operand."""
        return tuple(self._w.shape)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's forward product; with ``together``, ``integers`` are the input's then, until it is all gone."""
        integers, hidden = self._engine.shared(x, self._kind, lambda: self._input(x))
        if self._together is not None:  # for the weight's gradient; otherwise the workers may forget it now
            self.integers, self._hidden = integers, hidden
        if self._data:  # its gradient has other slices, and so other scales
            self._x = x.detach()
        return self._made("forward", hidden, integers)

    def toward_x(self, dy: Tensor) -> Tensor:
        """The gradient of the input."""
        integers = self._rounded("input_gradient", "y", dy)
        hidden = [self._hide("input_gradient", "y", some) for some in self._pieces(integers.values)]
        return self._made("input_gradient", hidden, integers)

    def toward_data(self, dy: Tensor) -> Tensor:
        """The gradient of a right operand that is data."""
        assert self._x is not None  # noqa: S101 - forward came first
        product = self._product("weight_gradient", self.shape[0])
        left, right = self._rounded("weight_gradient", "x", self._x), self._rounded("weight_gradient", "y", dy)
        operands = (self._hide("weight_gradient", "x", left.values), self._hide("weight_gradient", "y", right.values))
        made = self._engine.ask(self._layer, product, *operands).result()
        return made.mul_(left.units).mul_(right.units.mT)

    def toward_weight(self, gradients: Tensor) -> list[Promise]:
        """Asks for sums over all rows of input integers times gradient integers; with the input as it is hidden.

        Args:
            gradients: int8, shaped as the layer's output, but of any number of channels; any groups but one are
                refused by the caller.

        Returns:
            Parts of the sum, each ``(channels, …)`` as a weight of so many outputs: integers in float32, exactly, where
            ``together`` is small enough.
        """
        promises: list[Promise] = []
        for hidden, some in zip(self._hidden, self._pieces(gradients), strict=True):
            channels = some.shape[1]
            w = (channels, *self._w.shape[1:])
            product = Product(self._layer.operator, "weight_gradient", x=(len(some), *self.shape[1:]), w=w)
            operand = self._hide("weight_gradient", "y", some, product)
            promises.append(self._engine.ask(self._layer, product, hidden, operand))
        return promises

    # ---- inside ------------------------------------------------------------------------------------------------

    @property
    def _kind(self) -> object:
        """What decides how an input is cut and scaled, beside its shape."""
        operator = self._layer.operator
        return self._together, operator.groups if isinstance(operator, Conv2d) else 0

    def _input(self, x: Tensor) -> tuple[Integers, list[Hidden]]:
        integers = self._rounded("forward", "x", x)
        return integers, [self._hide("forward", "x", some) for some in self._pieces(integers.values)]

    def _made(self, role: Role, hidden: Sequence[Hidden], left: Integers) -> Tensor:
        """A product with the weight: asked for piece by piece, then scaled back."""
        weight, units = self._weight(role)
        promises = [
            self._engine.ask(self._layer, self._product(role, count), each, weight)
            for each, count in zip(hidden, self._counts(len(left.values)), strict=True)
        ]
        parts = [promise.result() for promise in promises]
        made = parts[0] if len(parts) == 1 else torch.cat(parts)
        operator = self._layer.operator
        if isinstance(operator, Conv2d):
            made.unflatten(1, (operator.groups, -1)).mul_(left.units)
        else:
            made.mul_(left.units)
        return made if units is None else made.mul_(units.mT if role == "forward" else units)

    def _weight(self, role: Role) -> tuple[Hidden, Tensor | None]:
        """The right operand: a weight by the engine's own ways, data in slices."""
        product = self._product(role, self._counts(self.shape[0])[0])
        if not self._data and weight_of(self._w) is not None:
            return self._engine.weight(self._layer, self._w, product, training=True), None
        if self._data:
            integers = self._rounded(role, "w", self._w)
        else:  # computed from weights: one scale for all
            every = tuple(range(self._w.dim()))
            integers = integers_of(self._w, over=every, bits=self.bits, rounding=self.rounding)
        units = integers.units if self._data else integers.units.reshape(1, 1)
        return self._hide(role, "w", integers.values, product), units

    def _rounded(self, role: Role, operand: Operand, values: Tensor) -> Integers:
        """Integers with a unit for each slice that this product does not sum over."""
        operator = self._layer.operator
        if isinstance(operator, Conv2d):
            view = values.reshape(len(values), operator.groups, -1, *values.shape[2:])
            made = integers_of(view, over=(2, 3, 4), bits=self.bits, rounding=self.rounding)
            return Integers(made.values.view(values.shape), made.units, made.empty)
        axis = -1 if survives(self._product(role, self.shape[0]), operand, -2) else -2
        return integers_of(values, over=(axis,), bits=self.bits, rounding=self.rounding)

    def _hide(self, role: Role, stream: StreamOf, integers: Tensor, product: Product | None = None) -> Hidden:
        product = product or self._product(role, len(integers))
        return self._engine.products.hide(
            self._layer.name, stream, integers.float(), product=product, axis=None, stochastic=False, public=False,
            exponent=0,
        )  # fmt: skip

    def _product(self, role: Role, count: int) -> Product:
        return Product(self._layer.operator, role, x=(count, *self.shape[1:]), w=tuple(self._w.shape))

    def _counts(self, count: int) -> list[int]:
        most = self._together or count
        return [min(most, count - start) for start in range(0, count, most)]

    def _pieces(self, values: Tensor) -> Sequence[Tensor]:
        return values.split(self._counts(len(values)))
