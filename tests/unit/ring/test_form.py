"""The trilinear form with a rank-one tensor in the result's place: equal to the product's, in any order of work."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.ringworld import convolutions, matmuls, oracle, tensor

from cloister.ring import _form
from cloister.ring._field import P, uniform
from cloister.ring._form import axes, evaluate, multiplications, outer
from cloister.ring._operators import Conv2d, MatMul, Product

ORDERS = [("images summed first", 0, 1 << 20), ("images summed last", 10**9, 1), ("as shapes say", 10, 1 << 20)]


def by_definition(product: Product, vectors: tuple[np.ndarray, ...], left: torch.Tensor, right: torch.Tensor) -> int:
    """``<product, R>``, with the product itself and with plain integers."""
    result = oracle(product, left, right).numpy().astype(object).reshape(-1)
    return int(sum(result * outer(vectors).astype(object))) % P


def drawn(product: Product) -> tuple[np.ndarray, ...]:
    return tuple(uniform(length) for length in axes(product))


@pytest.mark.parametrize(("field", "largest"), [order[1:] for order in ORDERS], ids=[order[0] for order in ORDERS])
def test_the_form_is_the_functional_of_the_product(field: int, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_form, "_FIELD", field)
    monkeypatch.setattr(_form, "_LARGEST", largest)

    @given(matmuls() | convolutions(), st.integers(0, 99))
    def holds(product: Product, seed: int) -> None:
        vectors = drawn(product)
        left, right = tensor(product.left, torch.int8, seed), tensor(product.right, torch.int8, seed + 1)
        found = evaluate(product, vectors, left.numpy(), right.numpy())
        assert found == by_definition(product, vectors, left, right)

    holds()


@given(matmuls() | convolutions())
def test_the_vectors_are_an_axis_each_and_span_the_result(product: Product) -> None:
    assert outer(drawn(product)).size == np.prod(product.result)
    if isinstance(product.operator, Conv2d):
        assert axes(product) == product.result


KERNELS: dict[str, Callable[..., int]] = {
    "dot_rows": lambda matrices, vectors, which: 2 * matrices.size * vectors.shape[1],
    "sum_rows": lambda matrices, factors, which: 2 * matrices.size,
    "dot_fields": lambda left, right: left.size * right.shape[0],
    "correlate": lambda images, taps, s, p, d, size: images.shape[0] * size * images.shape[2] * taps.size,
    "outer_product": lambda left, right: left.size * right.size,
}
GEOMETRIES: list[tuple[Any, tuple[int, ...], tuple[int, ...]]] = [
    (MatMul(), (2, 3, 4, 5), (2, 3, 6, 5)),
    (MatMul(), (70, 5), (6, 5)),
    (Conv2d((2, 3), (1, 2), (1, 2), 2), (3, 4, 9, 12), (6, 2, 3, 3)),
    (Conv2d((1, 1), (1, 1)), (40, 4, 9, 12), (6, 4, 3, 3)),
    (Conv2d((1, 1), (1, 1), groups=4), (2, 4, 9, 12), (4, 1, 3, 3)),
    (Conv2d(), (2, 4, 9, 12), (6, 4, 1, 1)),
]


@pytest.mark.parametrize(("operator", "x", "w"), GEOMETRIES)
@pytest.mark.parametrize("role", ["forward", "input_gradient", "weight_gradient"])
def test_multiplications_are_those_that_the_kernels_make(
    operator: Any, x: tuple[int, ...], w: tuple[int, ...], role: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0
    for name, cost in KERNELS.items():
        original = getattr(_form, name)

        def counted(*arguments: Any, kernel: Any = original, cost: Any = cost) -> Any:
            nonlocal made
            made += cost(*arguments)
            return kernel(*arguments)

        monkeypatch.setattr(_form, name, counted)
    product = Product(operator, role, x=x, w=w)
    vectors = tuple(uniform(length) for length in axes(product))
    left, right = tensor(product.left, torch.int8, 1), tensor(product.right, torch.int8, 2)
    evaluate(product, vectors, left.numpy(), right.numpy())
    assert made == multiplications(product)


@pytest.mark.parametrize("role", ["forward", "input_gradient", "weight_gradient"])
@pytest.mark.parametrize(
    ("operator", "x", "w", "part"),
    [
        (Conv2d(padding=(1, 1)), (64, 512, 28, 28), (512, 512, 3, 3), 0.001),
        (MatMul(), (256, 4096), (4096, 4096), 0.01),
        (Conv2d(padding=(1, 1)), (1, 64, 224, 224), (64, 64, 3, 3), 0.02),
    ],
    ids=["VGG, large batch", "linear", "VGG, one image"],
)
def test_the_form_costs_a_small_part_of_the_product(
    operator: Any, x: tuple[int, ...], w: tuple[int, ...], role: Any, part: float
) -> None:
    product = Product(operator, role, x=x, w=w)
    assert multiplications(product) < part * product.multiplications
