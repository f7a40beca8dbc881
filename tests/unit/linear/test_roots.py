"""Square roots of public elements: every square has its even root, and nothing else has one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tests.exact_numbers import EDGES, field_integers, refused

from cloister.linear import _field as field
from cloister.linear._field import P, from_ints, to_ints
from cloister.linear._roots import square_roots

ELEMENTS = st.integers(0, P - 1) | st.sampled_from(EDGES)


def generator_of_the_roots_of_unity() -> int:
    base = next(base for base in range(2, 100) if pow(base, (P - 1) // 2, P) == P - 1)
    return pow(base, (P - 1) >> 64, P)


@given(st.lists(ELEMENTS, min_size=1, max_size=8))
def test_a_square_has_its_even_root(values: list[int]) -> None:
    roots, exists = square_roots(from_ints([value**2 for value in values]))
    assert exists.all()
    expected = [value % P if value % 2 == 0 else -value % P for value in values]
    assert to_ints(roots).tolist() == expected


@given(st.lists(ELEMENTS, min_size=1, max_size=8))
def test_what_is_no_square_has_none(values: list[int]) -> None:
    roots, exists = square_roots(from_ints(values))
    assert exists.tolist() == [pow(value, (P - 1) // 2, P) <= 1 for value in values]
    assert (to_ints(roots)[~exists] == 0).all()
    assert (field.multiply(roots, roots)[exists] == from_ints(values)[exists]).all()


def test_roots_of_unity_of_every_order() -> None:
    """Where the digits of the exponent are all zeros, all ones, or one bit."""
    g = generator_of_the_roots_of_unity()
    squares = [
        pow(g, exponent, P) for k in range(1, 64) for exponent in (1 << k, (1 << 64) - (1 << k), (1 << k + 1) - 2)
    ]
    roots, exists = square_roots(from_ints(squares))
    assert exists.all()
    assert (to_ints(field.multiply(roots, roots)) == squares).all()
    _, exists = square_roots(from_ints([pow(g, exponent, P) for exponent in (1, 3, 2**64 - 1)]))
    assert not exists.any()


def test_shapes() -> None:
    x = from_ints(np.array(field_integers(6, seed=1), object).reshape(2, 3))
    roots, exists = square_roots(field.multiply(x, x))
    assert (roots.shape, exists.shape) == ((2, 3, 3), (2, 3))
    assert square_roots(from_ints(4))[0].shape == (3,)
    refused(lambda: square_roots(np.zeros((2, 3))), 2911)
