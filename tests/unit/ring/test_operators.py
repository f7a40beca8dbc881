"""Operators: shapes and all three products are torch's own, terms are counted right, and parts add up to the whole."""

import math

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st
from tests.ringworld import convolutions, matmuls, oracle, tensor
from torch import Tensor
from torch.nn import functional

from cloister.errors import InputError
from cloister.ring import Conv2d, MatMul, Operator, Part, Product

ROLES = ("forward", "input_gradient", "weight_gradient")
PRODUCTS = matmuls() | convolutions()


def torchs(product: Product, left: Tensor, right: Tensor) -> Tensor:
    """The product by torch's own layer and its automatic gradients, in fp64: exact for operands this small."""
    given = dict(zip(product.operands, (left.double(), right.double()), strict=True))
    x, w = (given.get(name, torch.zeros(product.shape(name)).double()).requires_grad_() for name in ("x", "w"))
    operator = product.operator
    if isinstance(operator, MatMul):
        y = x @ w.mT
    else:
        y = functional.conv2d(x, w, None, operator.stride, operator.padding, operator.dilation, operator.groups)
    assert tuple(y.shape) == product.y
    if product.role == "forward":
        return y.detach()
    wanted = x if product.role == "input_gradient" else w
    return torch.autograd.grad(y, wanted, given["y"])[0]


@given(PRODUCTS, st.integers(0, 99))
def test_the_three_products_are_torchs_layer_and_its_gradients(product: Product, seed: int) -> None:
    left, right = tensor(product.left, torch.int8, seed), tensor(product.right, torch.int8, seed + 1)
    found = torchs(product, left, right)
    assert tuple(found.shape) == product.result
    assert torch.equal(oracle(product, left, right), found.to(torch.int32))


@given(PRODUCTS)
def test_no_element_sums_more_terms_than_counted(product: Product) -> None:
    ones = [torch.ones(shape, dtype=torch.int8) for shape in (product.left, product.right)]
    sums = oracle(product, *ones)
    without_border = isinstance(product.operator, MatMul) or product.operator.padding == (0, 0)
    if without_border:
        assert int(sums.sum()) == product.multiplications
    assert int(sums.sum()) <= product.multiplications
    if math.prod(product.result):
        assert int(sums.max()) <= product.terms
        if without_border and product.role != "input_gradient":
            assert int(sums.min()) == product.terms


def test_a_pixel_that_every_tap_reaches_sums_all_terms() -> None:
    product = Product(Conv2d(padding=(1, 1), groups=2), "input_gradient", x=(1, 4, 5, 5), w=(6, 2, 3, 3))
    assert product.terms == 3 * 9
    sums = oracle(product, *(torch.ones(shape, dtype=torch.int8) for shape in (product.left, product.right)))
    assert int(sums[0, 0, 2, 2]) == product.terms


def cut(product: Product, most: int) -> tuple[Part, ...]:
    """The parts, where there is a cut."""
    axis = product.operator.contracted(product.role).get(product.operands[0])
    if product.terms > most and (axis is None or product.terms // product.left[axis] > most):
        with pytest.raises(InputError) as error:
            product.split(most)
        assert error.value.code == 2701
        reject()
    return product.split(most)


@given(PRODUCTS, st.integers(1, 200), st.integers(0, 99))
def test_parts_add_up_to_the_product(product: Product, most: int, seed: int) -> None:
    left, right = tensor(product.left, torch.int32, seed), tensor(product.right, torch.int8, seed + 1)
    found = cut(product, most)
    total = torch.zeros(product.result, dtype=torch.int32)
    for part in found:
        sides = [
            side.narrow(axis, start, stop - start)
            for side, (axis, start, stop) in ((left, part.left), (right, part.right))
        ]
        assert [tuple(side.shape) for side in sides] == [part.product.left, part.product.right]
        assert part.product.result == product.result
        assert part.product.terms <= most
        total += oracle(part.product, *sides)
    assert torch.equal(total, oracle(product, left, right))


@given(PRODUCTS)
def test_a_product_that_is_small_enough_stays_whole(product: Product) -> None:
    (part,) = product.split(max(product.terms, 1))
    assert part.product == product


@pytest.mark.parametrize(
    ("operator", "role", "x", "w", "most", "parts"),
    [
        (MatMul(), "forward", (3, 100), (4, 100), 33, 4),
        (MatMul(), "input_gradient", (3, 100), (4, 100), 1, 4),
        (MatMul(), "weight_gradient", (300, 100), (4, 100), 299, 2),
        (Conv2d(), "forward", (1, 10, 5, 5), (2, 10, 3, 3), 45, 2),
        (Conv2d(), "input_gradient", (1, 10, 5, 5), (12, 10, 3, 3), 35, 4),
        (Conv2d(), "weight_gradient", (7, 1, 5, 5), (1, 1, 3, 3), 18, 4),
    ],
)
def test_a_cut_is_as_coarse_as_it_may_be(
    operator: Operator, role: str, x: tuple, w: tuple, most: int, parts: int
) -> None:
    assert len(Product(operator, role, x=x, w=w).split(most)) == parts


@pytest.mark.parametrize(
    ("operator", "role", "x", "w", "most"),
    [
        (MatMul(), "forward", (3, 100), (4, 100), 0),
        (Conv2d(), "forward", (1, 10, 5, 5), (2, 10, 3, 3), 8),
        (Conv2d(), "weight_gradient", (7, 1, 5, 5), (1, 1, 3, 3), 8),
        (Conv2d(groups=2), "forward", (1, 10, 5, 5), (2, 5, 3, 3), 44),
        (Conv2d(groups=2), "input_gradient", (1, 10, 5, 5), (4, 5, 3, 3), 17),
    ],
)
def test_what_cannot_be_cut_finely_enough_is_refused(
    operator: Operator, role: str, x: tuple, w: tuple, most: int
) -> None:
    with pytest.raises(InputError) as error:
        Product(operator, role, x=x, w=w).split(most)
    assert error.value.code == 2701


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("operator", "x", "w"),
    [
        (MatMul(), (3,), (3,)),
        (MatMul(), (2, 3), (4, 5)),
        (MatMul(), (2, 3), (4, 3, 1)),
        (MatMul(), (2, 5, 3), (3, 4, 3)),
        (Conv2d(), (1, 3, 5, 5), (4, 2, 3, 3)),
        (Conv2d(), (3, 5, 5), (4, 3, 3, 3)),
        (Conv2d(), (1, 3, 5, 5), (4, 3, 3)),
        (Conv2d(), (1, 3, 5, 5), (4, 3, 6, 1)),
        (Conv2d(), (1, 3, 5, 5), (4, 3, 0, 1)),
        (Conv2d(dilation=(1, 3)), (1, 3, 5, 5), (4, 3, 1, 3)),
        (Conv2d(groups=2), (1, 4, 5, 5), (3, 2, 3, 3)),
        (Conv2d(groups=3), (1, 4, 5, 5), (3, 2, 3, 3)),
        (Conv2d(groups=0), (1, 0, 5, 5), (3, 2, 3, 3)),
        (Conv2d(stride=(0, 1)), (1, 3, 5, 5), (4, 3, 3, 3)),
        (Conv2d(dilation=(1, 0)), (1, 3, 5, 5), (4, 3, 3, 3)),
        (Conv2d(padding=(-1, 0)), (1, 3, 5, 5), (4, 3, 3, 3)),
    ],
)
def test_operands_that_do_not_fit_are_refused(operator: Operator, role: str, x: tuple, w: tuple) -> None:
    with pytest.raises(InputError) as error:
        Product(operator, role, x=x, w=w)
    assert error.value.code == 2700


def test_products_are_values() -> None:
    one, other = (Product(Conv2d(stride=(2, 2)), "forward", x=(1, 2, 5, 5), w=(3, 2, 3, 3)) for _ in range(2))
    assert one == other
    assert len({one, other, Product(Conv2d(), "forward", x=one.x, w=one.w)}) == 2
