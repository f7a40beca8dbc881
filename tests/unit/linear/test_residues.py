"""Residues: every operation against Python's integers, for the smallest primes, the greatest, and edges of both."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from tests.exact_numbers import refused

from cloister._compiled import _OPTIONS
from cloister.linear import _residues as residues
from cloister.linear._primes import DROPPED, KEPT, Basis, largest
from cloister.linear._residues import Residues, moduli

SMALL = Basis(largest(17, 1, 64) + largest(33, 1, 64) + largest(53, 2, 64) + largest(62, 2, 64), 32)
BASES = [SMALL, Basis(KEPT.primes + DROPPED.primes, 16)]


def edges(q: int) -> list[int]:
    bits = q.bit_length()
    return sorted(
        {0, 1, 2, q - 1, q - 2, q // 2, q // 2 + 1, (1 << bits - 1) - 1, 1 << bits - 1, 2**32 % q, (2**32 - 1) % q}
    )


def pairs(basis: Basis) -> tuple[Residues, Residues]:
    """Each prime's edges with each other, and random ones."""
    generator = random.Random(1)
    rows = []
    for q in basis.primes:
        chosen = list(itertools.product(edges(q), edges(q)))[:120]
        chosen += [(generator.randrange(q), generator.randrange(q)) for _ in range(200 - len(chosen))]
        rows.append(chosen)
    both = np.array(rows, np.uint64)
    return both[..., 0].copy(), both[..., 1].copy()


def expected(basis: Basis, act: Callable[..., int], *operands: Residues) -> list[list[int]]:
    return [
        [act(*map(int, values)) % q for values in zip(*(operand[row] for operand in operands), strict=True)]
        for row, q in enumerate(basis.primes)
    ]


@pytest.mark.parametrize("basis", BASES)
def test_operations_are_those_of_the_integers(basis: Basis) -> None:
    a, b = pairs(basis)
    c = a[:, ::-1].copy()
    assert residues.add(a, b, basis).tolist() == expected(basis, lambda x, y: x + y, a, b)
    assert residues.subtract(a, b, basis).tolist() == expected(basis, lambda x, y: x - y, a, b)
    assert residues.multiply(a, b, basis).tolist() == expected(basis, lambda x, y: x * y, a, b)
    assert residues.multiply_add(a, b, c, basis).tolist() == expected(basis, lambda x, y, z: x * y + z, a, b, c)
    for factor in (0, 1, -1, 2**200 + 12345, -(3**100)):
        assert residues.scale(a, factor, basis).tolist() == expected(basis, lambda x, f=factor: x * f, a)


@pytest.mark.parametrize("basis", BASES)
def test_the_greatest_sum_of_a_product(basis: Basis) -> None:
    top = np.array([[q - 1] * 9 for q in basis.primes], np.uint64)
    assert residues.multiply_add(top, top, top, basis).tolist() == [[0] * 9] * len(basis.primes)


def test_further_axes() -> None:
    a, b = pairs(SMALL)
    both = residues.multiply(np.stack([a, b]), np.stack([b, b]), SMALL)
    assert (both[0] == residues.multiply(a, b, SMALL)).all()
    assert (both[1] == residues.multiply(b, b, SMALL)).all()
    turned = np.stack([a, b], axis=-1)[..., 0]
    assert (residues.multiply(turned, turned, SMALL) == residues.multiply(a, a, SMALL)).all()


# ---- words -----------------------------------------------------------------------------------------------

WORDS = st.integers(0, 2**64 - 1) | st.sampled_from((0, 2**32 - 1, 2**32, 2**63, 2**64 - 2**32, 2**64 - 1))


@njit(**_OPTIONS)
def run(v: int, w: Residues, known: Residues, row: int, out: Residues) -> None:
    modulus = residues.modulus_of(known, row)
    out[0] = residues.shoup(v, w[0], w[1], modulus)
    out[1] = residues.loose(v, modulus)
    out[2] = residues.canonical(v, modulus)


@given(WORDS, WORDS, st.integers(0, len(SMALL.primes) - 1))
def test_products_by_a_known_factor_are_loose_for_any_word(v: int, w: int, row: int) -> None:
    q = SMALL.primes[row]
    bits, out = q.bit_length(), np.empty(3, np.uint64)
    delta = (1 << bits) - q
    for factor in (w % q, 0, q - 1):
        run(np.uint64(v), residues.shoup_factors([factor], q)[0], moduli(SMALL), row, out)
        assert int(out[0]) % q == v * factor % q
        assert int(out[0]) <= (1 << bits) - 1 + 3 * delta < 2 * q


@given(WORDS, st.integers(0, len(SMALL.primes) - 1))
def test_words_come_down_to_loose_and_canonical_ones(v: int, row: int) -> None:
    q = SMALL.primes[row]
    bits, factor, out = q.bit_length(), residues.shoup_factors([1], q)[0], np.empty(3, np.uint64)
    wide, narrow = v % (4 << bits), v % (2 * q)
    run(np.uint64(wide), factor, moduli(SMALL), row, out)
    assert (int(out[1]) % q, int(out[1]) < 2 * q) == (wide % q, True)
    run(np.uint64(narrow), factor, moduli(SMALL), row, out)
    assert int(out[2]) == narrow % q


@njit(**_OPTIONS)
def run_high(a: int, b: int) -> int:
    return residues.about_high(a, b)


@given(WORDS, WORDS)
def test_the_rough_high_word_is_at_most_two_too_small(a: int, b: int) -> None:
    assert 0 <= (a * b >> 64) - int(run_high(np.uint64(a), np.uint64(b))) <= 2


@pytest.mark.parametrize("q", SMALL.primes)
def test_quotients_of_factors(q: int) -> None:
    factors = [*edges(q), *range(200)]
    modulus = tuple(moduli(Basis((q,), 32))[0])
    out = np.empty(len(factors), np.uint64)
    residues.quotients(np.array(factors, np.uint64), modulus, out)
    assert out.tolist() == [(factor << 64) // q for factor in factors]


@pytest.mark.parametrize(
    "other", [np.zeros((6, 4)), np.zeros((5, 4), np.uint64), np.zeros(6, np.uint64), np.zeros((6, 5), np.uint64)]
)
def test_2911_arrays_that_do_not_fit(other: np.ndarray) -> None:
    x = np.zeros((6, 4), np.uint64)
    for act in (residues.add, residues.subtract, residues.multiply):
        refused(lambda act=act: act(x, other, SMALL), 2911)
        refused(lambda act=act: act(other, x, SMALL), 2911)
    refused(lambda: residues.multiply_add(x, x, other, SMALL), 2911)
    if other.shape != (6, 5):
        refused(lambda: residues.scale(other, 2, SMALL), 2911)
