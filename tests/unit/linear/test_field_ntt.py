"""Slots: values at the roots of X^N + 1, products of polynomials, and back."""

from __future__ import annotations

import numpy as np
import pytest
from tests.exact_numbers import field_integers, negacyclic, refused

from cloister.linear import _field as field
from cloister.linear._field import P, from_ints, to_ints
from cloister.linear._field_ntt import to_coefficients, to_slots

SIZES = [1, 2, 4, 16, 64]


def root(slots: int) -> int:
    candidates = (pow(base, (P - 1) // (2 * slots), P) for base in range(2, 100))
    return next(root for root in candidates if pow(root, slots, P) == P - 1)


@pytest.mark.parametrize("slots", SIZES)
def test_slots_are_values_at_the_stated_roots(slots: int) -> None:
    x, psi = field_integers(slots, seed=slots), root(slots)
    places = [
        int(format(place, f"0{slots.bit_length() - 1}b")[::-1] or "0", 2) if slots > 1 else 0 for place in range(slots)
    ]
    points = [pow(psi, 2 * place + 1, P) for place in places]
    expected = [sum(c * pow(point, k, P) for k, c in enumerate(x)) % P for point in points]
    assert to_ints(to_slots(from_ints(x))).tolist() == expected


@pytest.mark.parametrize("slots", SIZES)
def test_products_of_slots_are_products_of_polynomials(slots: int) -> None:
    x, y = field_integers(slots, seed=1), field_integers(slots, seed=2)
    made = to_coefficients(field.multiply(to_slots(from_ints(x)), to_slots(from_ints(y))))
    assert to_ints(made).tolist() == negacyclic(x, y, P)


@pytest.mark.parametrize("value", [0, 1, P - 1, P // 2])
@pytest.mark.parametrize("slots", [64, 32768])
def test_all_alike_come_back(slots: int, value: int) -> None:
    """The greatest sums on the way; and N = 32768 as it is used."""
    x = np.ascontiguousarray(np.broadcast_to(from_ints(value), (slots, 3)))
    assert (to_coefficients(to_slots(x)) == x).all()
    assert (to_slots(to_coefficients(x)) == x).all()


def test_full_size_comes_back_and_multiplies_by_x() -> None:
    """X·f has the coefficients of f one place on, and the last one negated at the front."""
    slots = 32768
    x = from_ints(field_integers(slots, seed=3))
    shift = np.zeros((slots, 3), np.uint64)
    shift[1] = from_ints(1)
    made = to_coefficients(field.multiply(to_slots(x), to_slots(shift)))
    assert (made[1:] == x[:-1]).all()
    assert (made[0] == field.negate(x[-1])).all()
    assert (to_coefficients(to_slots(x)) == x).all()


def test_several_at_once_and_none_is_changed() -> None:
    x = from_ints(np.array(field_integers(16, seed=4), object).reshape(2, 8))
    before = x.copy()
    assert (to_slots(x)[1] == to_slots(x[1])).all()
    assert (x == before).all()


@pytest.mark.parametrize("shape", [(3,), (3, 3), (0, 3), (6, 3), (1 << 17, 3)])
def test_2911_other_sizes_are_refused(shape: tuple[int, ...]) -> None:
    for act in (to_slots, to_coefficients):
        refused(lambda act=act: act(np.zeros(shape, np.uint64)), 2911)
