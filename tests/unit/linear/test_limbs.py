"""Integers, field elements and residues into each other: exact against Python's integers, rounding as stated."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.exact_numbers import EDGES, field_integers, refused

from cloister.linear._field import P, from_ints, to_centred, to_ints
from cloister.linear._limbs import decode, from_centred, from_small, from_words, switch
from cloister.linear._primes import DROPPED, FULL, KEPT, Basis, largest
from cloister.linear._residues import Residues

OTHER = Basis(largest(17, 1, 64) + largest(62, 1, 64), 32)
Q, LESS, OFF = FULL.modulus, KEPT.modulus, DROPPED.modulus


def residues_of(values: list[int], basis: Basis) -> Residues:
    return np.array([[value % q for value in values] for q in basis.primes], np.uint64)


def words_of(values: list[int], count: int) -> np.ndarray:
    return np.array([[value >> 64 * k & 2**64 - 1 for k in range(count)] for value in values], np.uint64)


def rounded(value: Fraction) -> int:
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


# ---- to residues -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [1, 2, 3, 6, 8])
@given(data=st.data())
def test_integers_in_words(words: int, data: st.DataObject) -> None:
    end = 1 << 64 * words - 1
    values = data.draw(st.lists(st.integers(-end, end - 1) | st.sampled_from((0, -1, 1, -end, end - 1)), max_size=8))
    for basis in (FULL, OTHER):
        assert (
            from_words(words_of(values, words).reshape(-1, words), basis).tolist()
            == residues_of(values, basis).tolist()
        )


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int64])
def test_small_integers(kind: type) -> None:
    values = [np.iinfo(kind).min, -21, -1, 0, 1, 21, np.iinfo(kind).max]
    assert (from_small(np.array(values, kind), FULL) == residues_of([int(value) for value in values], FULL)).all()


def test_field_elements_are_taken_centred() -> None:
    values = [*EDGES, *field_integers(50, seed=1), P // 2, P // 2 + 1]
    x = from_ints(values)
    centred = [int(value) for value in to_centred(x)]
    for basis in (FULL, OTHER):
        assert (from_centred(x, basis) == residues_of(centred, basis)).all()
    assert max(centred) == P // 2
    assert min(centred) == -(P // 2)


# ---- switching and decoding ------------------------------------------------------------------------------


def test_switching_divides_and_rounds() -> None:
    generator = random.Random(2)
    steps = [generator.randrange(LESS) for _ in range(40)]
    near = [OFF * step + offset for step in steps for offset in (0, 1, -1, OFF // 2, OFF // 2 + 1, -(OFF // 2))]
    values = [generator.randrange(Q) for _ in range(300)] + [value % Q for value in near] + [0, 1, Q - 1, Q // 2]
    expected = [rounded(Fraction(value, OFF)) for value in values]
    made = switch(residues_of(values, FULL))
    exact = residues_of(expected, KEPT)
    halves = np.array([abs(value % OFF - OFF / 2) / OFF < 2**-50 for value in values])
    assert (made[:, ~halves] == exact[:, ~halves]).all()
    assert halves.sum() == 3 * len(steps) + 1  # q / 2, too, is half a step from a whole one
    low = residues_of([value // OFF for value in values], KEPT)
    high = residues_of([value // OFF + 1 for value in values], KEPT)
    assert ((made == low).all(axis=0) | (made == high).all(axis=0)).all()


def test_switching_for_other_moduli() -> None:
    kept, dropped = Basis(largest(40, 2, 64), 32), Basis(largest(50, 7, 64), 32)
    generator = random.Random(3)
    both = Basis(kept.primes + dropped.primes, 32)
    values = [generator.randrange(both.modulus) for _ in range(200)]
    expected = [rounded(Fraction(value, dropped.modulus)) for value in values]
    assert (switch(residues_of(values, both), kept, dropped) == residues_of(expected, kept)).all()


def test_decoding_scales_and_rounds() -> None:
    generator = random.Random(4)
    values = [generator.randrange(LESS) for _ in range(400)] + [0, 1, LESS - 1]
    expected = [-rounded(Fraction(P * value, LESS)) * Q % P for value in values]
    assert to_ints(decode(residues_of(values, KEPT))).tolist() == expected


def test_decoding_undoes_what_an_answer_does() -> None:
    """``⌊q′·(p^-1·m mod q)/q⌉`` and noise far below q′/p give back m, whatever m."""
    generator = random.Random(5)
    messages = field_integers(300, seed=5)
    noise = LESS // P // 4
    values = [
        (rounded(Fraction(pow(P, -1, Q) * m % Q * LESS, Q)) + generator.randint(-noise, noise)) % LESS for m in messages
    ]
    assert to_ints(decode(residues_of(values, KEPT))).tolist() == messages


def test_few_coefficients_and_other_orders() -> None:
    values = [5, Q - 7, Q // 3]
    x = residues_of(values, FULL)
    assert (switch(np.asfortranarray(x)) == switch(x)).all()
    assert switch(x[:, :0]).shape == (4, 0)
    assert decode(x[:4, :0]).shape == (0, 3)


# ---- what is refused -------------------------------------------------------------------------------------


def test_2911_other_shapes_and_kinds() -> None:
    for act in (
        lambda: from_words(np.zeros((2, 3)), FULL),
        lambda: from_words(np.zeros(3, np.uint64), FULL),
        lambda: from_words(np.zeros((3, 0), np.uint64), FULL),
        lambda: from_small(np.zeros(3, np.uint8), FULL),
        lambda: from_small(np.zeros((3, 1), np.int8), FULL),
        lambda: from_centred(np.zeros((3, 2), np.uint64), FULL),
        lambda: from_centred(np.zeros((3, 3, 3), np.uint64), FULL),
        lambda: switch(np.zeros((4, 3), np.uint64)),
        lambda: switch(np.zeros((2, 9, 3), np.uint64)),
        lambda: decode(np.zeros((9, 3), np.uint64)),
        lambda: decode(np.zeros((2, 4, 3), np.uint64)),
    ):
        refused(act, 2911)


def test_2911_more_primes_than_fractions_hold() -> None:
    many = Basis(largest(50, 8, 64), 32)
    refused(lambda: switch(np.zeros((10, 3), np.uint64), Basis(largest(40, 2, 64), 32), many), 2911)
