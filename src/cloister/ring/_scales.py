"""Which scales a product's operands may have, and what scale its result then has.

The result of a bilinear product has one scale a place only if no scale varies along an axis that is summed over: then
the exponents of the operands, each laid along the axes of the result that it follows, add up. A channel scale of W in
a forward product follows the outputs; in the input gradient it would vary along what is summed, so W is quantised anew
there, under a new mask.

>>> from cloister.ring._operators import MatMul
>>> linear = Product(MatMul(), "forward", x=(8, 5), w=(7, 5))
>>> survives(linear, "w", -2), survives(linear, "w", -1)
(True, False)
>>> survives(Product(MatMul(), "input_gradient", x=(8, 5), w=(7, 5)), "w", -2)
False
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cloister.errors import InternalError
from cloister.ring._operators import Conv2d, MatMul, Operand, Product, Role
from cloister.ring._words import Quantised

__all__ = ["Exponents", "result_exponents", "survives"]

Exponents = int | Tensor

_MATMUL: dict[Role, dict[Operand, dict[int, int]]] = {  # operand's axis -> the result's axis that follows it
    "forward": {"x": {-2: -2}, "w": {-2: -1}},
    "input_gradient": {"y": {-2: -2}, "w": {-1: -1}},
    "weight_gradient": {"x": {-1: -1}, "y": {-1: -2}},
}


def survives(product: Product, operand: Operand, axis: int | None) -> bool:
    """Whether an operand whose scale varies along ``axis`` may enter the product as it is.

    Args:
        product: What is to be computed.
        operand: One of ``product.operands``.
        axis: Counted from the end; None for one scale.
    """
    shape = product.shape(operand)
    if axis is None or shape[axis] == 1:
        return True
    return _placed(product, operand, axis, torch.zeros(shape[axis], dtype=torch.int32)) is not None


def result_exponents(product: Product, left: Quantised, right: Quantised) -> tuple[Exponents, Exponents]:
    """The exponents of the result, as two summands: one of each operand.

    Returns:
        Numbers, or int32 tensors that broadcast to ``product.result``.

    Raises:
        InternalError: 9702 when a scale varies along an axis that is summed over.
    """
    first, second = product.operands
    return _exponents(product, first, left), _exponents(product, second, right)


def _exponents(product: Product, operand: Operand, quantised: Quantised) -> Exponents:
    if isinstance(quantised.exponent, int) or quantised.axis is None:
        return quantised.exponent if isinstance(quantised.exponent, int) else quantised.exponent[0]
    if len(quantised.exponent) == 1:
        return quantised.exponent[0]
    placed = _placed(product, operand, quantised.axis, torch.tensor(quantised.exponent, dtype=torch.int32))
    if placed is None:
        what = f"no scale along what {product.role} sums over"
        raise InternalError(9702, expected=what, got=f"axis {quantised.axis}")
    return placed


def _placed(product: Product, operand: Operand, axis: int, exponents: Tensor) -> Tensor | None:
    """The exponents along the result's axes that follow ``axis``; None when it is summed over."""
    rank = len(product.result)
    if isinstance(product.operator, MatMul):
        follows = axis if axis < -2 else _MATMUL[product.role][operand].get(axis)
        return None if follows is None else _along(exponents, follows, rank)
    return _placed_images(product, product.operator, operand, axis, exponents)


def _placed_images(product: Product, operator: Conv2d, operand: Operand, axis: int, exponents: Tensor) -> Tensor | None:
    groups = operator.groups
    outputs, inputs = product.w[0] // groups, product.w[1]  # of one group
    match product.role, operand, axis:
        case ("forward", "x", -4) | ("input_gradient", "y", -4):  # the sample
            return _along(exponents, -4, 4)
        case ("forward", "w", -4):  # the output
            return _along(exponents, -3, 4)
        case ("forward", "x", -3) if inputs == 1:  # depthwise: a group's only input
            return _along(exponents.repeat_interleave(outputs), -3, 4)
        case ("input_gradient", "y", -3) | ("input_gradient", "w", -4) if outputs == 1:  # a group's only output
            return _along(exponents.repeat_interleave(inputs), -3, 4)
        case ("input_gradient", "w", -3):  # the input, the same in all groups
            return _along(exponents.repeat(groups), -3, 4)
        case ("weight_gradient", "y", -3):
            return _along(exponents, -4, 4)
        case ("weight_gradient", "x", -3) if groups == 1:
            return _along(exponents, -3, 4)
        case ("weight_gradient", "x", -3):  # (group, input): the same for all outputs of a group
            return exponents.reshape(groups, inputs).repeat_interleave(outputs, 0).reshape(product.w[0], inputs, 1, 1)
        case _:
            return None


def _along(exponents: Tensor, axis: int, rank: int) -> Tensor:
    shape = [1] * rank
    shape[axis] = math.prod(exponents.shape)
    return exponents.reshape(shape)
