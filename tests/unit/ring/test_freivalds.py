"""Checks of right answers hold, whatever the operator, role and shape; a challenge is secret, fresh and used once."""

import copy
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.ringworld import LAYOUTS, convolutions, matmuls, oracle, tensor
from torch import Tensor

from cloister.errors import InputError
from cloister.ring._field import P
from cloister.ring._freivalds import Check, check, draw, multiplications
from cloister.ring._operators import Conv2d, MatMul, Product

ROLES = ("forward", "input_gradient", "weight_gradient")


@given(matmuls() | convolutions(), st.integers(0, 99), LAYOUTS, LAYOUTS)
def test_a_right_answer_holds(product: Product, seed: int, of_left: str, of_right: str) -> None:
    left = tensor(product.left, torch.int8, seed, layout=of_left)
    right = tensor(product.right, torch.int8, seed + 1, layout=of_right)
    answer = oracle(product, left, right)
    for given_ in (answer, answer.to(torch.int64), answer.mT.contiguous().mT):
        found = check(product, left, right, given_)
        assert found.holds
        assert found.error <= Fraction(4, P)
        assert found.soundness_bits >= 58


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("one", "other"), [(-128, -128), (-128, 127), (127, 127)])
def test_the_longest_sums_of_the_largest_integers_hold(role: Any, one: int, other: int) -> None:
    terms = 131_071  # of 2^14 each: the most whose sum int32 holds
    shapes = {"forward": ((2, terms), (3, terms)), "input_gradient": ((2, 3), (terms, 3))}
    x, w = shapes.get(role, ((terms, 2), (3, 2)))
    product = Product(MatMul(), role, x=x, w=w)
    left = torch.full(product.left, one, dtype=torch.int8)
    right = torch.full(product.right, other, dtype=torch.int8)
    answer = torch.full(product.result, one * other * terms)
    assert check(product, left, right, answer.to(torch.int32)).holds
    assert check(product, left, right, answer).holds
    answer[-1, -1] += 1
    assert not check(product, left, right, answer).holds


@pytest.mark.parametrize("role", ROLES)
def test_a_sum_of_parts_beyond_int32_holds(role: Any) -> None:
    product = Product(Conv2d(padding=(1, 1)), role, x=(512, 3, 32, 32), w=(2, 3, 3, 3))
    left = torch.full(product.left, -128, dtype=torch.int8)
    right = torch.full(product.right, -128, dtype=torch.int8)
    answer = torch.full(product.result, 1 << 14)
    if role == "weight_gradient":  # 2^19 terms: the sum of parts exceeds 2^31
        rows = torch.tensor([31, 32, 31])
        answer *= 512 * rows[:, None] * rows[None]
        assert int(answer.max()) > 2**31
    else:
        rows = torch.tensor([2] + [3] * 30 + [2])
        answer *= rows[:, None] * rows[None] * (3 if role == "forward" else 2)
    assert check(product, left, right, answer).holds
    answer.view(-1)[-1] -= 2**32
    assert not check(product, left, right, answer).holds


def example() -> tuple[Product, Tensor, Tensor, Tensor]:
    product = Product(Conv2d((2, 1), (1, 1), groups=2), "forward", x=(3, 4, 7, 5), w=(6, 2, 3, 3))
    left, right = tensor(product.left, torch.int8, 1), tensor(product.right, torch.int8, 2)
    return product, left, right, oracle(product, left, right)


def test_the_factors_are_the_functional_of_the_answer() -> None:
    for role, split in (("forward", 2), ("input_gradient", 2), ("weight_gradient", 1)):
        product = Product(Conv2d((2, 1), (1, 1), groups=2), role, x=(3, 4, 7, 5), w=(6, 2, 3, 3))
        challenge = draw(product)
        assert challenge.row_factors.size == np.prod(product.result[:split])
        assert challenge.inner_limbs.shape == (3, np.prod(product.result[split:]))
        answer = tensor(product.result, torch.int32, 3)
        functional = np.outer(challenge.row_factors.astype(object), challenge.inner.astype(object)).reshape(-1)
        assert challenge.value(answer) == sum(functional * answer.numpy().reshape(-1).astype(object)) % P
    challenge = draw(Product(MatMul(), "forward", x=(2, 3, 5), w=(2, 4, 5)))
    assert (challenge.row_factors.size, challenge.inner.size) == (6, 4)


def test_a_check_is_asked_whether_it_holds() -> None:
    product, left, right, answer = example()
    found = check(product, left, right, answer)
    assert isinstance(found, Check)
    assert found.multiplications == multiplications(product) > 0
    with pytest.raises(TypeError, match="holds"):
        bool(found)


def test_every_challenge_is_fresh_in_all_its_vectors() -> None:
    product, *_ = example()
    first, second = draw(product), draw(product)
    assert first.error == Fraction(4, P)
    assert draw(Product(MatMul(), "forward", x=(2, 3), w=(2, 3))).error == Fraction(2, P)
    for one, other in zip(first._vectors, second._vectors, strict=True):
        assert not (one == other).any()
    joined = np.concatenate(first._vectors)
    assert len(np.unique(joined)) == joined.size


def test_a_challenge_judges_one_answer() -> None:
    product, left, right, answer = example()
    challenge = draw(product)
    assert challenge.judge(left, right, value=challenge.value(answer)).holds
    with pytest.raises(InputError) as caught:
        challenge.judge(left, right, value=challenge.value(answer))
    assert caught.value.code == 2709


def test_a_challenge_is_not_shown_nor_copied() -> None:
    product, *_ = example()
    challenge = draw(product)
    assert repr(challenge) == str(challenge) == "<Challenge of 4 vectors>"
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            way(challenge)


def test_other_shapes_and_types_are_refused() -> None:
    product, left, right, answer = example()
    challenge = draw(product)
    for wrong in (answer.to(torch.int16), answer[:-1], answer.to(torch.float32), answer.to("meta")):
        with pytest.raises(InputError) as caught:
            challenge.value(wrong)
        assert caught.value.code == 2702
    for operands in ((left.to(torch.int32), right), (left, right.to(torch.uint8)), (left[..., 1:], right)):
        with pytest.raises(InputError) as caught:
            challenge.expected(*operands)
        assert caught.value.code == 2702


def test_vectors_longer_than_a_draw_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        draw(Product(MatMul(), "forward", x=(1 << 24, 1), w=(1, 1)))
    assert caught.value.code == 2708
