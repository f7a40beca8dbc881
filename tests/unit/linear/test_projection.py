"""Ranges: what is in them passes, what the projections and bits are, and how many elements they take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tests.linear_dealer import Dealer
from tests.linear_mesh import codes, run_parties, together

from cloister.linear import _field as field
from cloister.linear import _projection as projection
from cloister.linear._commitments import commit
from cloister.linear._field import P, from_ints
from cloister.linear._party import Party
from cloister.linear._projection import Group, prove_bits, prove_ranges, proven_bits, range_bits
from cloister.linear._quadratic import QuadraticCheck, masks_needed
from cloister.linear._ranges import PROJECTIONS
from cloister.linear._streams import PublicStream
from cloister.linear._supply import Pool

PARTIES = 3


def ranges(values: list[list[int]], bound: int) -> list[Any]:
    """Each party's values in one group."""
    many, dealer = len(values[0]), Dealer(PARTIES)
    size = many + range_bits([(bound, many)]) + masks_needed(PARTIES)

    def act(party: Party) -> int:
        pool = Pool(dealer.held(party, size))
        known = commit(party, "values", pool, from_ints(values[party.number]))
        check = QuadraticCheck()
        prove_ranges(party, pool, check, [Group("x", known, bound)], party.toss(), "test")
        check.run(party, pool, 5906, "test")
        return pool.left

    return run_parties(PARTIES, act)


@pytest.mark.parametrize(("many", "bound"), [(1, 1), (5, 3), (300, 2**52), (40, 2**120)])
def test_values_within_the_bound_pass(many: int, bound: int) -> None:
    """All at the ends: no group of so many projects further."""
    ends = [[bound] * many, [-bound] * many, [bound * (-1) ** k for k in range(many)]]
    assert ranges(ends, bound) == [0] * PARTIES


@pytest.mark.parametrize(
    ("many", "bound", "bits"),
    [(4278, 2**23, 33), (4186, 2**40, 50), (4186, 2**44, 54), (1, 1, 4), (1, 2, 5), (45451, 2**120, 132)],
)
def test_bits_are_those_of_the_tail(many: int, bound: int, bits: int) -> None:
    """Sections 9 and 10: 33, 50 and 54 bits; and the least power of two that the tail allows, or the next."""
    assert proven_bits(bound, many) == bits
    least = math.log2(bound) + 0.5 * math.log2(many * 51 * math.log(2))
    assert least <= bits - 1 < least + 1.02


def test_a_projection_is_a_sum_of_quarters_and_halves() -> None:
    values = from_ints([[1 << 8 * k for k in range(20)]] * 3)  # each entry's factor shows in the sum
    found = projection._projected(projection.Shared(values), PublicStream(bytes(32), "x"))
    assert found.shape == (PROJECTIONS,)
    sums = field.to_centred(found.rows[0])
    factors = np.array([[((int(v) + (1 << 160) // 255) >> 8 * k & 255) - 1 for k in range(20)] for v in sums])
    assert set(factors.ravel()) == {-1, 0, 1}
    counts = np.bincount(factors.ravel() + 1)
    assert abs(counts[1] - 640) < 120
    assert abs(counts[0] - counts[2]) < 160
    assert len({tuple(row) for row in factors}) == PROJECTIONS


@pytest.mark.parametrize("bits", [1, 7, 64, 65, 183])
def test_bits_of_values(bits: int) -> None:
    values = sorted({0, 1, 2**bits - 1, 2 ** (bits - 1), 0x5555555555555555555555555555555555555555555555 % 2**bits})
    found = projection._bits_of(from_ints(values), bits)
    assert [sum(int(bit) << k for k, bit in enumerate(row)) for row in found] == values
    assert set(found.ravel()) <= {0, 1}


@pytest.mark.parametrize("value", [2**20, 2**20 + 5, P - 1, P // 2])
def test_6906_an_own_value_that_is_out_of_its_range(value: int) -> None:
    dealer = Dealer(2)

    def act(party: Party) -> None:
        pool = Pool(dealer.held(party, 30))
        own = value if party.number == 0 else 2**20 - 1
        known = commit(party, "values", pool, from_ints([own]))
        prove_bits(party, pool, QuadraticCheck(), [(known, 20)], "test")

    assert codes(run_parties(2, act)) == [6906, 6905]


def test_several_ranges_at_once() -> None:
    dealer = Dealer(2)
    values = from_ints([0, 5, 2**30 - 1, 1])

    def act(party: Party) -> None:
        pool = Pool(dealer.held(party, 4 + 2 * 3 + 2 * 30 + 1))
        known = commit(party, "values", pool, values)
        check = QuadraticCheck()
        prove_bits(party, pool, check, [(known[:2], 3), (known[2:], 30)], "test")
        check.run(party, pool, 5906, "test")
        assert pool.left == 0

    together(2, act)
