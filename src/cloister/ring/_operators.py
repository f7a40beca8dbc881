"""Linear operators as trilinear forms: one geometry, three products.

A linear layer and its two gradients are the partial derivatives of one form ``T(x, w, y) = <f(x, w), y>``:

===================  ==========  ==========================================
role                 operands    result
===================  ==========  ==========================================
``forward``          ``x, w``    ``y``, the layer's output
``input_gradient``   ``y, w``    ``x``, where ``y`` holds the output's gradient
``weight_gradient``  ``x, y``    ``w``, where ``y`` holds the output's gradient
===================  ==========  ==========================================

Every protocol and every check of this package is written once, for a bilinear product, and so holds for all three.
Nothing here looks at a value: shapes are public, and bounds and splits follow from them alone.

>>> product = Product(Conv2d(padding=(1, 1)), "forward", x=(8, 64, 32, 32), w=(128, 64, 3, 3))
>>> product.result, product.terms
((8, 128, 32, 32), 576)
>>> [part.product.terms for part in Product(MatMul(), "weight_gradient", x=(100, 5), w=(7, 5)).split(60)]
[50, 50]
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, NamedTuple

from cloister.errors import InputError

__all__ = ["Conv2d", "MatMul", "Operand", "Operator", "Part", "Product", "Role", "Shape"]

Role = Literal["forward", "input_gradient", "weight_gradient"]
Operand = Literal["x", "w", "y"]
Shape = tuple[int, ...]

_OPERANDS: dict[Role, tuple[Operand, Operand]] = {
    "forward": ("x", "w"),
    "input_gradient": ("y", "w"),
    "weight_gradient": ("x", "y"),
}
_RESULT: dict[Role, Operand] = {"forward": "y", "input_gradient": "x", "weight_gradient": "w"}
_CONTRACTED: dict[Role, Literal["inputs", "outputs", "batch"]] = {
    "forward": "inputs",
    "input_gradient": "outputs",
    "weight_gradient": "batch",
}


@dataclass(frozen=True, slots=True)
class MatMul:
    """``y = x · wᵀ``, as in ``torch.nn.Linear``, over any number of leading axes that both operands share.

    Shapes: ``x`` is ``(*N, B, I)``, ``w`` is ``(*N, O, I)``, ``y`` is ``(*N, B, O)``. Attention's ``QKᵀ`` is
    ``x = Q, w = K``; its ``PV`` is ``x = P, w = Vᵀ``.
    """

    def output(self, x: Shape, w: Shape) -> Shape:
        """The shape of ``y``. Raises :class:`InputError` 2700 when the operands do not fit."""
        if len(x) < 2 or len(x) != len(w) or x[:-2] != w[:-2] or x[-1] != w[-1]:
            raise InputError(2700, expected="x (*N, B, I) and w (*N, O, I)", got=f"x {x} and w {w}")
        return (*x[:-1], w[-2])

    def terms(self, role: Role, x: Shape, w: Shape) -> int:
        """How many products one element of the result sums."""
        return {"forward": x[-1], "input_gradient": w[-2], "weight_gradient": x[-2]}[role]

    def contracted(self, role: Role) -> dict[Operand, int]:
        """The axis, counted from the end, along which each operand of ``role`` is summed."""
        axes: dict[str, dict[Operand, int]] = {
            "inputs": {"x": -1, "w": -1},
            "outputs": {"y": -1, "w": -2},
            "batch": {"x": -2, "y": -2},
        }
        return axes[_CONTRACTED[role]]

    def multiplications(self, x: Shape, w: Shape) -> int:
        """Integer multiplications of any of the three products."""
        return math.prod(x) * w[-2]


@dataclass(frozen=True, slots=True)
class Conv2d:
    """Two-dimensional cross-correlation, as in ``torch.nn.Conv2d``, with zeros around the borders.

    Shapes: ``x`` is ``(B, C, H, W)``, ``w`` is ``(O, C / groups, h, w)``, ``y`` is ``(B, O, H', W')``. Depthwise is
    ``groups == C``. The border is public, so it is never masked: it is padded on shares.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def output(self, x: Shape, w: Shape) -> Shape:
        """The shape of ``y``. Raises :class:`InputError` 2700 when the operands do not fit."""
        if min(self.stride) < 1 or min(self.dilation) < 1 or min(self.padding) < 0 or self.groups < 1:
            raise InputError(2700, expected="stride, dilation and groups of 1 or more, padding of 0 or more", got=self)
        fits = len(x) == 4 == len(w) and x[1] == w[1] * self.groups and w[0] % self.groups == 0
        if not fits or min(w[2:]) < 1:
            raise InputError(
                2700,
                expected=f"x (B, C, H, W) and w (O, C/{self.groups}, h, w) with {self.groups} dividing O",
                got=f"x {x} and w {w}",
            )
        sizes: list[int] = []
        for axis in (0, 1):
            reach = self.dilation[axis] * (w[2 + axis] - 1) + 1
            size = (x[2 + axis] + 2 * self.padding[axis] - reach) // self.stride[axis] + 1
            if size < 1:
                raise InputError(2700, expected="an image at least as large as the kernel", got=f"x {x} and w {w}")
            sizes.append(size)
        return (x[0], w[0], *sizes)

    def terms(self, role: Role, x: Shape, w: Shape) -> int:
        """How many products one element of the result sums, at most (fewer at borders and with strides)."""
        if role == "forward":
            return math.prod(w[1:])
        if role == "input_gradient":
            return w[0] // self.groups * w[2] * w[3]
        y = self.output(x, w)
        return x[0] * y[2] * y[3]

    def contracted(self, role: Role) -> dict[Operand, int]:
        """The axis, counted from the end, along which each operand of ``role`` is summed.

        With groups, channels are not one axis that can be cut, and the answer is empty.
        """
        if role == "weight_gradient":
            return {"x": -4, "y": -4}
        if self.groups > 1:
            return {}
        return {"x": -3, "w": -3} if role == "forward" else {"y": -3, "w": -4}

    def multiplications(self, x: Shape, w: Shape) -> int:
        """Integer multiplications of any of the three products, borders included."""
        return math.prod(self.output(x, w)) * math.prod(w[1:])


Operator = MatMul | Conv2d


class Part(NamedTuple):
    """One summand of a product that was cut along its contracted axis.

    Attributes:
        product: The product of the slices, with the whole product's result shape.
        left: ``(axis, start, stop)`` of the left operand, the axis counted from the end.
        right: The same of the right operand.
    """

    product: Product
    left: tuple[int, int, int]
    right: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Product:
    """One of the three products of an operator at given shapes.

    Attributes:
        operator: The geometry.
        role: Which of the three.
        x: Shape of the layer's input, whatever the role.
        w: Shape of the layer's weight, whatever the role.

    Raises:
        InputError: 2700 when the shapes do not fit the operator.
    """

    operator: Operator
    role: Role
    x: Shape = field(kw_only=True)
    w: Shape = field(kw_only=True)

    def __post_init__(self) -> None:
        self.operator.output(self.x, self.w)

    @property
    def y(self) -> Shape:
        """Shape of the layer's output and of its gradient."""
        return self.operator.output(self.x, self.w)

    @property
    def operands(self) -> tuple[Operand, Operand]:
        """Which tensors of the form are multiplied, left and right."""
        return _OPERANDS[self.role]

    @property
    def left(self) -> Shape:
        """Shape of the left operand."""
        return self.shape(self.operands[0])

    @property
    def right(self) -> Shape:
        """Shape of the right operand."""
        return self.shape(self.operands[1])

    @property
    def result(self) -> Shape:
        """Shape of the result."""
        return self.shape(_RESULT[self.role])

    @property
    def terms(self) -> int:
        """How many products one element of the result sums, at most: ``K`` in the bounds."""
        return self.operator.terms(self.role, self.x, self.w)

    @property
    def multiplications(self) -> int:
        """Integer multiplications, borders included."""
        return self.operator.multiplications(self.x, self.w)

    def shape(self, operand: Operand) -> Shape:
        """Shape of one tensor of the form."""
        return {"x": self.x, "w": self.w, "y": self.y}[operand]

    def split(self, most: int) -> tuple[Part, ...]:
        """Cuts the product along its contracted axis into summands of at most ``most`` terms each.

        The cut depends on shapes and ``most`` alone. The answers' sum, over the integers, is the product.

        Raises:
            InputError: 2701 when no cut along one axis is fine enough.
        """
        axes = self.operator.contracted(self.role)
        length = self.shape(self.operands[0])[axes[self.operands[0]]] if axes else 1
        if self.terms <= most:
            each, count = self.terms, 1
        else:
            each = self.terms // length
            count = -(-length // (most // each)) if each <= most else 0
        if not count:
            raise InputError(
                2701,
                expected=f"at most {most} terms in a sum",
                got=f"{each} in the smallest part of {self.role} for x {self.x} and w {self.w}",
            )
        edges = [length * i // count for i in range(count + 1)]
        left, right = self.operands
        return tuple(
            Part(
                self._narrowed(axes, stop - start),
                (axes.get(left, -1), start, stop) if axes else (-1, 0, self.left[-1]),
                (axes.get(right, -1), start, stop) if axes else (-1, 0, self.right[-1]),
            )
            for start, stop in pairwise(edges)
        )

    def _narrowed(self, axes: dict[Operand, int], size: int) -> Product:
        def cut(shape: Shape, axis: int | None) -> Shape:
            if axis is None:
                return shape
            place = len(shape) + axis
            return (*shape[:place], size, *shape[place + 1 :])

        # the output's gradient is cut where the weight or the input is, so x and w say it all
        return replace(self, x=cut(self.x, axes.get("x")), w=cut(self.w, axes.get("w")))
