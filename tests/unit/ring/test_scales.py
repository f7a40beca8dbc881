"""Scales of results: an exponent a place, where no scale varies along what is summed; seen on products themselves."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.ringworld import convolutions, matmuls, oracle
from torch import Tensor

from cloister.errors import InternalError
from cloister.ring import Conv2d, MatMul, Product, Quantised, result_exponents, survives
from cloister.ring._operators import Operand, Shape


def quantised(shape: Shape, axis: int | None, seed: int) -> tuple[Quantised, Tensor]:
    """Small integers with scales along an axis, and what they stand for, in int64."""
    generator = torch.Generator().manual_seed(seed)
    integers = torch.randint(-4, 5, shape, generator=generator, dtype=torch.int8)
    if axis is None:
        return Quantised(integers, 2, 8), integers.to(torch.int64) << 2
    exponents = torch.randint(0, 4, (shape[axis],), generator=generator)
    laid = exponents.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])
    return Quantised(integers, tuple(exponents.tolist()), 8, axis), integers.to(torch.int64) << laid


@given(matmuls() | convolutions(), st.data(), st.integers(0, 99))
def test_a_scaled_result_is_the_product_of_scaled_operands(product: Product, data: Any, seed: int) -> None:
    axes: list[int | None] = []
    for operand, shape in zip(product.operands, (product.left, product.right), strict=True):
        axis = data.draw(st.none() | st.integers(-len(shape), -1))
        axes.append(axis if survives(product, operand, axis) else None)
    (left, left_values), (right, right_values) = (
        quantised(shape, axis, seed + i)
        for i, (shape, axis) in enumerate(zip((product.left, product.right), axes, strict=True))
    )
    power = sum(torch.as_tensor(part) for part in result_exponents(product, left, right))
    integers = oracle(product, left.values, right.values).to(torch.int64)
    assert torch.broadcast_shapes(torch.as_tensor(power).shape, product.result) == product.result
    assert torch.equal(integers << power, oracle(product, left_values, right_values).to(torch.int64))


@given(matmuls() | convolutions(), st.data(), st.integers(0, 99))
def test_a_scale_along_what_is_summed_has_no_result(product: Product, data: Any, seed: int) -> None:
    operand = data.draw(st.sampled_from(product.operands))
    shape = product.shape(operand)
    axis = data.draw(st.integers(-len(shape), -1))
    if survives(product, operand, axis):
        return
    held = {
        name: quantised(product.shape(name), axis if name == operand else None, seed)[0] for name in product.operands
    }
    with pytest.raises(InternalError) as caught:
        result_exponents(product, *held.values())
    assert caught.value.code == 9702
    assert caught.value.got == f"axis {axis}"


LINEAR = ((8, 5), (7, 5))
IMAGES = ((2, 6, 5, 5), (4, 6, 3, 3))
GROUPS = ((2, 6, 5, 5), (4, 3, 3, 3))
DEPTHWISE = ((2, 6, 5, 5), (6, 1, 3, 3))
SURVIVES: list[tuple[Any, tuple[Shape, Shape], Any, Operand, set[int]]] = [
    (MatMul(), LINEAR, "forward", "x", {-2}),
    (MatMul(), LINEAR, "forward", "w", {-2}),
    (MatMul(), LINEAR, "input_gradient", "y", {-2}),
    (MatMul(), LINEAR, "input_gradient", "w", {-1}),
    (MatMul(), LINEAR, "weight_gradient", "x", {-1}),
    (MatMul(), LINEAR, "weight_gradient", "y", {-1}),
    (Conv2d(), IMAGES, "forward", "x", {-4}),
    (Conv2d(), IMAGES, "forward", "w", {-4}),
    (Conv2d(), IMAGES, "input_gradient", "y", {-4}),
    (Conv2d(), IMAGES, "input_gradient", "w", {-3}),
    (Conv2d(), IMAGES, "weight_gradient", "x", {-3}),
    (Conv2d(), IMAGES, "weight_gradient", "y", {-3}),
    (Conv2d(groups=2), GROUPS, "forward", "x", {-4}),
    (Conv2d(groups=2), GROUPS, "input_gradient", "w", {-3}),
    (Conv2d(groups=2), GROUPS, "weight_gradient", "x", {-3}),
    (Conv2d(groups=6), DEPTHWISE, "forward", "x", {-4, -3}),
    (Conv2d(groups=6), DEPTHWISE, "input_gradient", "y", {-4, -3}),
    (Conv2d(groups=6), DEPTHWISE, "input_gradient", "w", {-4}),
]


@pytest.mark.parametrize(("operator", "shapes", "role", "operand", "axes"), SURVIVES)
def test_which_scales_survive(
    operator: Any, shapes: tuple[Shape, Shape], role: Any, operand: Operand, axes: set[int]
) -> None:
    product = Product(operator, role, x=shapes[0], w=shapes[1])
    shape = product.shape(operand)
    found = {axis for axis in range(-len(shape), 0) if shape[axis] > 1 and survives(product, operand, axis)}
    assert found == axes
    assert survives(product, operand, None)


def test_one_scale_is_a_number_and_so_is_one_place() -> None:
    product = Product(MatMul(), "forward", x=(2, 1), w=(3, 1))
    left = Quantised(torch.zeros(2, 1, dtype=torch.int8), (5,), 8, -1)  # along what is summed, but it has one place
    right = Quantised(torch.zeros(3, 1, dtype=torch.int8), -7, 8)
    assert result_exponents(product, left, right) == (5, -7)
