"""Multiples into residues, sums of products, polynomials turned by powers of X: exact against Python's integers."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tests.exact_numbers import negacyclic, refused
from tests.linear_lattice import integers, plain, words

from cloister.linear import _ntt
from cloister.linear._elements import P
from cloister.linear._polynomials import add_multiple, products, subtract_turned, words_of
from cloister.linear._primes import DROPPED, FULL, Basis
from cloister.linear._residues import Residues

TOY = Basis(FULL.primes, 64)
Q = TOY.modulus


def residues(values: list[int], basis: Basis = TOY) -> Residues:
    return np.array([[value % q for value in values] for q in basis.primes], np.uint64)


def drawn(count: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.choice((0, 1, Q - 1, generator.randrange(Q))) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("factor", [1, -7, P, pow(P, -1, Q)])
def test_multiples_of_integers_in_words(count: int, factor: int) -> None:
    generator, end = random.Random(count), 1 << 64 * count - 1
    size = 2500  # more than two blocks
    values = [generator.choice((end - 1, -end, -1, 0, generator.randrange(-end, end))) for _ in range(size)]
    before = drawn(size, 1)
    total = residues(before)
    add_multiple(total, words(values, count), factor, TOY)
    assert (total == residues([x + factor * y for x, y in zip(before, values, strict=True)])).all()


def test_small_integers_in_words() -> None:
    values = np.arange(-128, 128).astype(np.int8)
    total = np.zeros((len(DROPPED.primes), 256), np.uint64)
    add_multiple(total, words_of(values), 3, DROPPED)
    assert (total == residues([3 * int(value) for value in values], DROPPED)).all()


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("multiple", [1, 2])
def test_sums_of_products(width: int, multiple: int) -> None:
    lefts, rights = ([drawn(64, 10 * k + side) for k in range(width)] for side in (1, 2))
    stacked = [np.stack([_ntt.forward(residues(x), TOY) for x in side]) for side in (lefts, rights)]
    terms = [negacyclic(x, y, Q) for x, y in zip(lefts, rights, strict=True)]
    expected = [multiple * sum(column) % Q for column in zip(*terms, strict=True)]
    assert plain(products(stacked[0], stacked[1], TOY, multiple=multiple), TOY) == expected


def test_sums_of_the_greatest_residues() -> None:
    most = np.broadcast_to(np.array(TOY.primes, np.uint64)[:, None] - np.uint64(1), (7, *TOY.shape)).copy()
    assert integers(products(most, most, TOY, multiple=2), TOY) == [14] * 64


@pytest.mark.parametrize("exponent", [0, 1, 63, 64, 65, 127])
def test_turning_by_a_power_of_x(exponent: int) -> None:
    before, x = drawn(64, 3), drawn(64, 4)
    power = [0] * 64
    power[exponent % 64] = -1 if exponent >= 64 else 1
    total = residues(before)
    subtract_turned(total, residues(x), exponent, TOY)
    turned = negacyclic(x, power, Q)
    assert integers(total, TOY) == [(a - b) % Q for a, b in zip(before, turned, strict=True)]


def test_2911_other_shapes() -> None:
    rows, one = np.zeros(TOY.shape, np.uint64), np.zeros((64, 1), np.uint64)
    for act in (
        lambda: add_multiple(rows[:8], one, 1, TOY),
        lambda: add_multiple(rows, one[:5], 1, TOY),
        lambda: add_multiple(rows, one[:, :0], 1, TOY),
        lambda: add_multiple(rows, np.zeros((64, 1)), 1, TOY),
        lambda: add_multiple(rows[:, ::2], one[:32], 1, TOY),
        lambda: products(rows, rows, TOY),
        lambda: products(rows[None], rows[None, :, :5], TOY),
        lambda: products(rows[None][:0], rows[None][:0], TOY),
        lambda: products(rows[None], rows[None], TOY, multiple=3),
        lambda: subtract_turned(rows, rows[:, :5], 0, TOY),
        lambda: subtract_turned(rows, rows, 128, TOY),
        lambda: subtract_turned(rows, rows, -1, TOY),
        lambda: subtract_turned(rows[:, ::2], rows[:, ::2], 0, TOY),
    ):
        refused(act, 2911)
