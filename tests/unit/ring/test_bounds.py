"""Bounds of exact products: what fits the ring, what is cut, and that no part's sums can leave it."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.ringworld import convolutions, matmuls, oracle

from cloister.errors import InputError, UnsupportedError
from cloister.ring import HALVED_LIMIT, RING_LIMIT, Conv2d, MatMul, Product, magnitude, parts

BITS = st.integers(2, 8)
ROLES: Any = ["forward", "input_gradient", "weight_gradient"]


@given(st.integers(1, 200), BITS, BITS)
def test_the_magnitude_is_that_of_the_largest_integers(terms: int, left: int, right: int) -> None:
    least = -(2 ** (left - 1)), -(2 ** (right - 1))
    assert magnitude(terms, left, right) == terms * least[0] * least[1]


@pytest.mark.parametrize(("left", "right"), [(1, 8), (8, 1), (9, 8), (8, 9), (0, 0)])
def test_integers_have_2_to_8_bits(left: int, right: int) -> None:
    for act in (
        lambda: magnitude(3, left, right),
        lambda: parts(Product(MatMul(), "forward", x=(2, 3), w=(4, 3)), left_bits=left, right_bits=right),
    ):
        with pytest.raises(InputError) as caught:
            act()
        assert caught.value.code == 2705


@pytest.mark.parametrize(
    ("terms", "limit", "count"),
    [(131_071, RING_LIMIT, 1), (131_072, RING_LIMIT, 2), (65_535, HALVED_LIMIT, 1), (65_536, HALVED_LIMIT, 2)],
)
@pytest.mark.parametrize("role", ROLES)
def test_a_sum_is_cut_from_the_first_term_that_could_wrap(role: Any, terms: int, limit: int, count: int) -> None:
    x, w = {"forward": ((1, terms), (1, terms)), "input_gradient": ((1, 1), (terms, 1))}.get(role, ((terms, 1), (1, 1)))
    made = parts(Product(MatMul(), role, x=x, w=w), limit=limit)
    assert len(made) == count
    assert all(magnitude(part.product.terms, 8, 8) < limit for part in made)
    assert sum(part.product.terms for part in made) == terms


@given(matmuls() | convolutions(), BITS, BITS, st.sampled_from((2**8, 2**14, 2**20, HALVED_LIMIT, RING_LIMIT)))
def test_every_part_fits_and_together_they_are_the_product(product: Product, left: int, right: int, limit: int) -> None:
    options = {"left_bits": left, "right_bits": right, "limit": limit}
    try:
        made = parts(product, **options)
    except UnsupportedError:
        assume(False)
    operands = [
        torch.full(shape, -(2 ** (bits - 1)), dtype=torch.int8)
        for shape, bits in ((product.left, left), (product.right, right))
    ]
    total = torch.zeros(product.result, dtype=torch.int64)
    for part in made:
        sliced = [
            operand.narrow(axis, start, stop - start)
            for operand, (axis, start, stop) in zip(operands, (part.left, part.right), strict=True)
        ]
        answer = oracle(part.product, *sliced)
        assert part.product.result == product.result
        assert not answer.numel() or int(answer.to(torch.int64).abs().max()) < limit
        assert magnitude(part.product.terms, left, right) < limit or len(made) == 1
        total += answer
    assert torch.equal(total.to(torch.int32), oracle(product, *operands))


def test_a_layer_that_cannot_be_cut_finely_enough_is_unsupported() -> None:
    product = Product(Conv2d(groups=2), "forward", x=(1, 2 * 70_000, 1, 1), w=(2, 70_000, 1, 1))
    assert len(parts(product, limit=RING_LIMIT)) == 1
    with pytest.raises(UnsupportedError) as caught:
        parts(product, limit=HALVED_LIMIT, layer="features.0")
    assert caught.value.code == 8701
    assert "layer 'features.0'" in str(caught.value)
    with pytest.raises(UnsupportedError) as caught:
        parts(product, limit=HALVED_LIMIT)
    assert "layer" not in str(caught.value).split(":")[1]


def test_only_shapes_and_bits_decide() -> None:
    """A pure function of the product: nothing of an operand is asked for."""
    product = Product(MatMul(), "weight_gradient", x=(600_000, 4), w=(3, 4))
    assert parts(product) == parts(product)
    assert len(parts(product, left_bits=6, right_bits=6)) == 1
