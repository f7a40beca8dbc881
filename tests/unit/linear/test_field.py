"""F_p: every operation against Python's integers, at the ends of every word, and what is refused."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from tests.exact_numbers import EDGES, field_integers, refused

from cloister._compiled import _OPTIONS
from cloister.linear import _field as field
from cloister.linear import _field_kernels as kernels
from cloister.linear._elements import accumulate, butterfly, inverse_butterfly, reduced, reduced_sum
from cloister.linear._field import Elements, P, from_ints, to_centred, to_ints

ELEMENTS = st.integers(0, P - 1) | st.sampled_from(EDGES)
SIGNED = st.integers(-(2**63), 2**63 - 1) | st.sampled_from((0, -1, 1, -(2**63), 2**63 - 1, 2**62))
PAIRS = [*zip(*itertools.product(EDGES, EDGES), strict=True)]

# ---- the prime -------------------------------------------------------------------------------------------


def test_p_is_prime_and_has_roots_of_unity_of_order_2_to_64() -> None:
    """Proven: Brillhart, Lehmer and Selfridge, 1975, for a factored part of p - 1 above the cube root of p."""
    factored = 2**64
    assert (P - 1) % factored == 0
    assert P ** (1 / 3) < factored < math.isqrt(P)
    base = next(base for base in range(2, 100) if pow(base, (P - 1) // 2, P) == P - 1)
    assert pow(base, P - 1, P) == 1
    assert math.gcd(pow(base, (P - 1) // 2, P) - 1, P) == 1
    square, linear = divmod(P // factored, factored)  # p = square·F² + linear·F + 1
    rest = linear**2 - 4 * square
    assert rest < 0 or math.isqrt(rest) ** 2 != rest
    assert P.bit_length() == 184


# ---- entry by entry --------------------------------------------------------------------------------------


def test_sums_differences_and_products_of_all_edges() -> None:
    left, right = PAIRS
    a, b = from_ints(left), from_ints(right)
    assert to_ints(field.add(a, b)).tolist() == [(x + y) % P for x, y in zip(left, right, strict=True)]
    assert to_ints(field.subtract(a, b)).tolist() == [(x - y) % P for x, y in zip(left, right, strict=True)]
    assert to_ints(field.multiply(a, b)).tolist() == [x * y % P for x, y in zip(left, right, strict=True)]


@given(ELEMENTS, ELEMENTS)
def test_sums_differences_and_products_are_those_of_the_integers(x: int, y: int) -> None:
    a, b = from_ints([x]), from_ints([y])
    assert to_ints(field.add(a, b)).item() == (x + y) % P
    assert to_ints(field.subtract(a, b)).item() == (x - y) % P
    assert to_ints(field.multiply(a, b)).item() == x * y % P
    assert to_ints(field.negate(a)).item() == -x % P


def test_leading_axes_are_broadcast() -> None:
    x = field_integers(24, seed=1)
    a, b = from_ints(np.array(x[:20], object).reshape(4, 5)), from_ints(x[20:])[:, None]
    expected = np.array(x[:20], object).reshape(4, 5) * np.array(x[20:], object)[:, None] % P
    assert (to_ints(field.multiply(a, b)) == expected).all()
    assert (to_ints(field.multiply(b, a)) == expected).all()
    assert field.add(a[:0], b[:0]).shape == (0, 5, 3)


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_inverses_and_no_inverse_of_zero(count: int) -> None:
    values = [*field_integers(count, seed=2), 0, 1, P - 1, 0]
    expected = [pow(x, -1, P) if x else 0 for x in values]
    assert to_ints(field.inverse(from_ints(values))).tolist() == expected
    assert to_ints(field.inverse(from_ints([0]))).tolist() == [0]


# ---- what butterflies and sums may be given --------------------------------------------------------------

ANY = st.integers(0, 2 * P - 1) | st.sampled_from((0, 1, P - 1, P, P + 1, 2**184 - 1, 2**184, 2 * P - 1, 2 * P - 2))


@njit(**_OPTIONS)
def run_butterflies(x: Elements, out: Elements) -> None:
    u, v, w = kernels.element(x, 0), kernels.element(x, 1), kernels.element(x, 2)
    one, two = butterfly(u, v, w)
    three, four = inverse_butterfly(u, v, w)
    kernels.store(out, 0, one)
    kernels.store(out, 1, two)
    kernels.store(out, 2, three)
    kernels.store(out, 3, four)


def words(*values: int) -> Elements:
    """As they are, not reduced."""
    return np.array([[value >> 64 * k & 2**64 - 1 for k in range(3)] for value in values], np.uint64)


@given(ANY, ANY, ELEMENTS)
def test_butterflies_of_loose_values_are_loose(u: int, v: int, w: int) -> None:
    out = np.empty((4, 3), np.uint64)
    run_butterflies(words(u, v, w), out)
    made = to_ints(out).tolist()
    assert [value % P for value in made] == [(u + v * w) % P, (u - v * w) % P, (u + v) % P, (u - v) * w % P]
    assert max(made) < 2 * P


@njit(**_OPTIONS)
def run_reduced(x: Elements, out: Elements) -> None:
    kernels.store(out, 0, reduced(kernels.element(x, 0)))


@given(
    st.integers(0, 2**192 - 1) | st.sampled_from([k * P + d for k in range(256) for d in (-1, 0, 1) if k * P + d >= 0])
)
def test_any_three_words_are_reduced(value: int) -> None:
    out = np.empty((1, 3), np.uint64)
    run_reduced(words(value), out)
    assert to_ints(out).item() == value % P


@njit(**_OPTIONS)
def run_sum(total: Elements, x: Elements, out: Elements) -> None:
    start = (total[0], total[1], total[2], total[3], total[4], total[5], total[6])
    kernels.store(out, 0, reduced_sum(accumulate(start, kernels.element(x, 0), kernels.element(x, 1))))


@given(st.integers(0, 2**400 - 1 - P**2) | st.sampled_from((0, 2**400 - 1 - P**2, 2**384 - 1)), ELEMENTS, ELEMENTS)
def test_a_sum_that_is_as_great_as_it_may_be(total: int, x: int, y: int) -> None:
    out = np.empty((1, 3), np.uint64)
    run_sum(np.array([total >> 64 * k & 2**64 - 1 for k in range(7)], np.uint64), words(x, y), out)
    assert to_ints(out).item() == (total + x * y) % P


# ---- sums ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [0, 1, 7, 300])
def test_inner_products(terms: int) -> None:
    x, y = field_integers(terms, seed=3), field_integers(terms, seed=4)
    assert to_ints(field.dot(from_ints(x), from_ints(y))).item() == sum(a * b for a, b in zip(x, y, strict=True)) % P


def test_the_greatest_inner_product() -> None:
    greatest = np.broadcast_to(from_ints(P - 1), (5000, 3))
    assert to_ints(field.dot(greatest, greatest)).item() == 5000


def test_inner_products_of_rows_and_one_row() -> None:
    x, y = np.array(field_integers(12, seed=5), object).reshape(3, 4), np.array(field_integers(4, seed=6), object)
    expected = [int(value) for value in (x * y).sum(axis=1) % P]
    assert to_ints(field.dot(from_ints(x), from_ints(y))).tolist() == expected
    assert to_ints(field.dot(from_ints(y), from_ints(x))).tolist() == expected
    assert to_ints(field.matvec(from_ints(x), from_ints(y))).tolist() == expected
    assert to_ints(field.matvec(from_ints(x).transpose(1, 0, 2), from_ints(x[:, 0]))).tolist() == [
        int(value) for value in (x.T @ x[:, 0]) % P
    ]


# ---- in and out ------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-(2**300), 2**300), max_size=5))
def test_integers_come_back_modulo_p(values: list[int]) -> None:
    x = from_ints(values)
    assert to_ints(x).tolist() == [value % P for value in values]
    assert to_centred(x).tolist() == [(value + P // 2) % P - P // 2 for value in values]


def test_shapes_of_integers() -> None:
    assert from_ints(5).shape == (3,)
    assert to_ints(from_ints(5)).shape == ()
    assert from_ints([[1, 2, 3]]).shape == (1, 3, 3)


@given(st.lists(SIGNED, max_size=5))
def test_signed_words_keep_their_sign(values: list[int]) -> None:
    assert to_centred(field.from_int64(np.array(values, np.int64))).tolist() == values


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64])
def test_narrow_integers_keep_their_sign(kind: type) -> None:
    ends = np.iinfo(kind)
    assert to_centred(field.from_int64(np.array([ends.min, -1, 0, ends.max], kind))).tolist() == [
        ends.min,
        -1,
        0,
        ends.max,
    ]


@pytest.mark.parametrize("other", [np.ones(2), np.ones(2, np.uint64), np.ones(2, bool), np.array([1, 2], object)])
def test_2911_other_kinds_of_integers_are_refused(other: np.ndarray) -> None:
    refused(lambda: field.from_int64(other), 2911)


def test_bytes_are_23_little_endian_and_come_back() -> None:
    values = [*EDGES, *field_integers(20, seed=7)]
    data = field.to_bytes(from_ints(values))
    assert data == b"".join(value.to_bytes(23, "little") for value in values)
    assert (field.from_bytes(data, (len(values),)) == from_ints(values)).all()
    assert field.from_bytes(b"", (0, 4)).shape == (0, 4, 3)
    assert field.from_bytes(data[:46], (2, 1)).shape == (2, 1, 3)


@pytest.mark.parametrize("value", [P, P + 1, P + 2**64, 2**184 - 2**64, 2**184 - 1])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_2910_p_and_more_are_no_elements(value: int, place: int) -> None:
    numbers = [P - 1, 0, P - 2]
    numbers[place] = value
    data = b"".join(number.to_bytes(23, "little") for number in numbers)
    refused(lambda: field.from_bytes(data, (3,)), 2910)


@pytest.mark.parametrize(("size", "shape"), [(22, (1,)), (24, (1,)), (0, (1,)), (46, (1,)), (23, (-1, -1)), (0, (-1,))])
def test_2910_other_lengths_are_refused(size: int, shape: tuple[int, ...]) -> None:
    refused(lambda: field.from_bytes(bytes(size), shape), 2910)


def test_equality() -> None:
    x = from_ints(field_integers(6, seed=8)).reshape(2, 3, 3)
    assert field.equal(x, x.copy())
    assert field.equal(x, np.asfortranarray(x))
    for place in range(18):
        other = x.copy()
        other.reshape(-1)[place] ^= np.uint64(1)
        assert not field.equal(x, other)
    refused(lambda: field.equal(x, x[:1]), 2911)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.zeros(3, np.int64), np.zeros(3, np.uint64)),
        (np.zeros((2, 4), np.uint64), np.zeros(3, np.uint64)),
        (np.zeros((2, 3), np.uint64), np.zeros((3, 3), np.uint64)),
        (np.zeros((), np.uint64), np.zeros(3, np.uint64)),
    ],
)
def test_2911_arrays_that_do_not_fit(a: np.ndarray, b: np.ndarray) -> None:
    for act in (field.add, field.subtract, field.multiply, field.dot, field.matvec, field.equal):
        refused(lambda act=act: act(a, b), 2911)


def test_2911_a_sum_that_is_too_long_for_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(field, "_MOST_TERMS", 4)
    x = from_ints([1] * 5)
    refused(lambda: field.dot(x, x), 2911)
    refused(lambda: field.matvec(x[None], x), 2911)
    assert to_ints(field.dot(x[:4], x[:4])).item() == 4


def test_arrays_in_another_order() -> None:
    x = from_ints(np.array(field_integers(12, seed=9), object).reshape(3, 4))
    turned = x.transpose(1, 0, 2)
    assert (field.multiply(turned, turned) == field.multiply(x, x).transpose(1, 0, 2)).all()
    assert field.to_bytes(turned) == field.to_bytes(np.ascontiguousarray(turned))
    assert (to_ints(turned) == to_ints(x).T).all()


def test_digits_of_an_exponent() -> None:
    exponent = random.Random(1).randrange(2**180)
    assert int("".join(f"{digit:x}" for digit in kernels.digits(exponent)), 16) == exponent
