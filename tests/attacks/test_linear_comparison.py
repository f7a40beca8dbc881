"""Comparisons over all values, roundings, masks and secret signs of small sizes, and what is seen of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from tests.linear_dealer import Dealer
from tests.linear_mesh import codes, run_parties, together
from tests.unit.linear.test_online import plan

from cloister.linear._budget import budget_of, require_sound
from cloister.linear._comparison import Comparer, prepare
from cloister.linear._demand import Comparisons, Demand, demand
from cloister.linear._elements import P
from cloister.linear._field import to_ints
from cloister.linear._online import Online
from cloister.linear._party import Party
from cloister.linear._plan import COMPARE_BITS, SHIFT_BITS, Plan
from cloister.linear._supply import Comparand, Supply

SMALL = demand(plan("lasso", features=1, parties=2, rounds=2, half=2), level=5)
BELOW = 1  # so a rounding is by one bit, and Σr' of two parties is 0, 1 or 2


def needs_of(digits: int, sides: int, count: int) -> Demand:
    kind: Comparisons = replace(SMALL.coarse, count=count, below=BELOW, digits=digits, sides=sides)
    return replace(SMALL, coarse=kind, fine=replace(SMALL.fine, count=0), wide=replace(SMALL.wide, count=0))


def rounded(value: int, coin: int) -> int:
    return (value + coin - (1 << BELOW - 1)) >> BELOW


def compared(cases: list[tuple[int, int, int, tuple[int, ...]]], bounds: tuple[int, ...], digits: int) -> list[Any]:
    """For each (t, Σr', r_c, secret bits of the signs): the decisions, whether the tests were zero, what was opened."""
    needs = needs_of(digits, len(bounds), len(cases))
    dealer = Dealer(2, needs)
    kind = needs.coarse
    values, lows, comparands, signs = (np.array(part, object) for part in zip(*cases, strict=True))
    bits = (comparands[:, None] >> np.arange(kind.bits).astype(object)) & 1

    def act(party: Party) -> Any:
        stock = dealer.stock(party)
        comparand = Comparand(dealer.shared(party, lows), dealer.shared(party, bits), stock.coarse.high)
        supply = Supply(replace(stock, coarse=comparand, signs=dealer.shared(party, signs.reshape(-1))))
        prepared = prepare(party, supply, "coarse", kind)
        comparer = Comparer(party, supply, kind, needs.comparison_top(kind))
        opened: list[Any] = []
        original = party.open
        party.open = lambda shared: opened.append(original(shared)) or opened[-1]  # type: ignore[method-assign]
        reached = comparer.at_least(dealer.shared(party, values), prepared, bounds)
        return to_ints(original(reached)), to_ints(opened[-1]).reshape(len(cases), len(bounds))

    first, second = together(2, act)
    assert (first[0] == second[0]).all()
    return [first[0].T, first[1]]


def within(digits: int, bounds: tuple[int, ...]) -> list[int]:
    """All values of which t̃ - T is in the comparison's range, whatever the rounding."""
    half = 1 << 2 * digits
    far = range(-4 * half, 4 * half)
    return [t for t in far if all(-half <= rounded(t, coin) - T < half for coin in range(3) for T in bounds)]


@pytest.mark.parametrize("bounds", [(0,), (3,), (-2,), (1, -1), (2, -2), (0, 0)])
def test_every_value_rounding_mask_and_sign(bounds: tuple[int, ...]) -> None:
    values = within(1, bounds)
    assert len(values) >= 4
    cases = list(product(values, range(3), range(8), product(range(2), repeat=len(bounds))))
    reached, opened = compared(cases, bounds, 1)
    coins: Counter[Any] = Counter()
    for case, found, tests in zip(cases, reached, opened, strict=True):
        expected = [int(rounded(case[0], case[1]) >= bound) for bound in bounds]
        assert found.tolist() == expected, case
        coins[case[:3]] += 0
        for side, test in enumerate(tests):
            coins[case[0], case[1], case[2], side] += int(test == 0)
    # a test is zero for one of the two secret signs, whatever the value is: the coin says nothing
    pairs = 1 << len(bounds) - 1
    assert {count for key, count in coins.items() if len(key) == 4} == {pairs}


@pytest.mark.parametrize("bounds", [(1, -1), (-5,), (7, -7)])
def test_every_value_and_mask_of_two_digits(bounds: tuple[int, ...]) -> None:
    cases = list(product(within(2, bounds), range(3), range(32), product(range(2), repeat=len(bounds))))
    reached, _ = compared(cases, bounds, 2)
    for case, found in zip(cases, reached, strict=True):
        assert found.tolist() == [int(rounded(case[0], case[1]) >= bound) for bound in bounds], case


def test_what_is_not_zero_is_uniform_whatever_is_compared() -> None:
    """The opened product has a uniform factor: its size says nothing of how many digits differ."""
    tail: list[int] = []
    for value in (-6, 5):
        _, opened = compared([(value, 1, mask % 8, (1,)) for mask in range(400)], (0,), 1)
        found = [int(entry) for entry in opened.reshape(-1) if entry]
        assert len(set(found)) == len(found)
        tail.append(sum(entry > P // 2 for entry in found))
        assert abs(tail[-1] - len(found) / 2) < 4 * len(found) ** 0.5
        assert min(found) > P >> 30


def test_what_lies_above_the_bits_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the greatest values, too: without high masks their sign would show there."""
    seen: list[Any] = []
    masked = Comparer._masked
    monkeypatch.setattr(Comparer, "_masked", lambda self, *rest: seen.append(masked(self, *rest)) or seen[-1])
    compared([(-8, 1, mask % 8, (1,)) for mask in range(64)], (0,), 1)
    high = [int(value) >> BELOW + 3 for value in seen[0]]
    assert len(set(high)) == len(high)


def test_5911_a_masked_value_that_left_its_range() -> None:
    """A cheater's high mask far beyond its width: nobody decides by what wrapped."""
    needs = needs_of(1, 1, 4)
    kind = needs.coarse
    dealer = Dealer(2, needs)

    def act(party: Party) -> Any:
        stock = dealer.stock(party)
        wide = dealer.shared(party, [1 << 120] * 4)
        supply = Supply(replace(stock, coarse=replace(stock.coarse, high=wide)))
        comparer = Comparer(party, supply, kind, needs.comparison_top(kind))
        return comparer.at_least(dealer.shared(party, [0] * 4), prepare(party, supply, "coarse", kind), (0,))

    found = codes(run_parties(2, act))
    assert 5911 in found
    assert set(found) <= {5911, 6905}


HIGH_LEVEL = Plan(
    method="lasso",
    rows=(10_000,) * 4,
    curvature=Fraction(90),
    mean_squares=(Fraction(2),) * 91,
    l1=Fraction(1, 1000),
    rounds=20,
    half=8,
)
"""Values to 2^13 are possible in it: the certificate's masked sum of squares is wider than any truncation."""


def test_no_masked_value_of_a_plan_with_room_can_wrap() -> None:
    accepted = 0
    for parties, l1, rounds in product((2, 4, 8), (Fraction(1, 1000), Fraction(1, 100), Fraction(1, 4)), (20, 40)):
        case = replace(HIGH_LEVEL, rows=(10_000,) * parties, l1=l1, rounds=rounds)
        budget = budget_of(case)
        if not budget.exceeded:
            needs = demand(case, level=budget.level)
            tops = [needs.top(SHIFT_BITS), *(needs.comparison_top(kind) for kind in needs.comparisons)]
            assert 1 << max(tops) + 1 < P
            accepted += 1
    assert accepted > 8


def test_the_certificate_decides_what_it_should_at_the_highest_level() -> None:
    whole = demand(HIGH_LEVEL, level=require_sound(HIGH_LEVEL).level)
    most = 1 << 60
    totals = [0, most - (1 << 40), most + (1 << 40), 1 << 80] * 8
    needs = replace(
        SMALL,
        parties=4,
        wide=replace(whole.wide, count=len(totals)),
        high_bits=whole.high_bits,
        room_bits=whole.room_bits,
    )
    dealer = Dealer(4, needs)

    def act(party: Party) -> Any:
        online = Online(party, needs, Supply(dealer.stock(party)))
        return to_ints(party.open(online.at_most(dealer.shared(party, totals), most, COMPARE_BITS))).tolist()

    assert together(4, act) == [[1, 1, 0, 0] * 8] * 4
