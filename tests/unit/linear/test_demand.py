"""Masks have room: whatever cheaters add within what is proven, no masked value leaves its range or the field."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import product
from typing import Any

import pytest
from tests.unit.linear.test_linear_budget import load

from cloister.linear import _budget, _inputs
from cloister.linear._bounds import bound
from cloister.linear._budget import budget_of
from cloister.linear._demand import Demand, demand, slack_bits
from cloister.linear._elements import P
from cloister.linear._newton import newton_plan
from cloister.linear._plan import ITERATE_BITS, RELAXATION_BITS, SHIFT_BITS, Plan
from cloister.linear._projection import proven_bits
from cloister.linear._ranges import MODULUS_BITS, PROJECTIONS, SIGMA

RIDGE = Plan(method="ridge", rows=(500,) * 4, curvature=Fraction(20), mean_squares=(Fraction(2),) * 91)
LASSO = replace(RIDGE, method="lasso", l1=Fraction(1, 100))


def demands() -> Iterator[tuple[Any, Demand, bool]]:
    """Of every plan of the script, and of the reference plans for all numbers of parties and few to many columns."""
    script = load()
    for one in script.sessions():
        yield one.name, one.budget.needs, one.malicious
    for method, d, parties in product(("ridge", "lasso", "newton"), (1, 20, 90, 300), range(2, 9)):
        one = script.session(method, d, parties)
        level = bound(one.plan, fits=one.fits).level
        for malicious in (True, False):
            yield (method, d, parties), demand(one.plan, level=level, fits=one.fits, malicious=malicious), malicious


def most(needs: Demand, malicious: bool) -> dict[str, int]:
    """Of one party's masks, what a proof lets pass; without proofs what an honest one has."""
    return {name: (1 << proven_bits(size, many)) if malicious else size for name, (size, many) in needs.groups.items()}


def worst(needs: Demand, malicious: bool) -> dict[str, tuple[int, int]]:
    """Of every kind of opening: how far a masked value can be from 2^top when all parties are at the edge, and top."""
    n, cap = needs.parties, most(needs, malicious)
    value, hiding = 1 << needs.kept_bits, n * cap["hiding"]
    rounding = {SHIFT_BITS: n * cap["roundings"], RELAXATION_BITS: n << RELAXATION_BITS, 0: 0}
    out = {f"by {f}": ((value + hiding << f) + low + (n << f), needs.top(f)) for f, low in rounding.items()}
    for name, kind in zip(("coarse", "fine", "wide"), needs.comparisons, strict=True):
        above = n * cap["high"] + 2 << kind.below + kind.bits  # the value and the shared bits are below 2^bits each
        out[name] = above + (n << kind.below), needs.comparison_top(kind)
    return out


def test_no_mask_reaches_the_end_of_its_range_nor_the_field() -> None:
    tight = 0
    for name, needs, malicious in demands():
        found = worst(needs, malicious)
        for kind, (reach, top) in found.items():
            assert reach < 1 << top, (name, kind)
            if getattr(getattr(needs, kind, None), "count", 1):
                assert 1 << top + 1 <= 1 << MODULUS_BITS < P, (name, kind)
        tight += any(reach >= 1 << top - 1 for reach, top in found.values())
        assert needs.field_bits <= MODULUS_BITS
    assert tight > 100  # with a bit less there would be none


def test_a_cheater_shifts_a_truncation_by_no_more_than_is_said() -> None:
    for plan, fits in product((RIDGE, LASSO), (1, 4, 11)):
        needs = demand(plan, level=10, fits=fits)
        size, many = needs.groups["roundings"]
        assert 1 << proven_bits(size, many) == 1 << SHIFT_BITS + slack_bits(plan, fits=fits)


def test_groups_are_those_that_are_counted() -> None:
    for name, needs, _ in demands():
        found = needs.groups
        assert found["hiding"] == (1 << needs.hiding_bits - 1, needs.hidden), name
        assert found["high"] == (1 << needs.high_bits - 1, needs.compared), name


def test_openings_are_hidden_all_together() -> None:
    """By the widths alone: a value of 2^kept under a mask of 2^hiding, and what is above a comparison's shared bits."""
    for name, needs, _ in demands():
        hidden = Fraction(needs.hidden * 2 << needs.kept_bits, 1 << needs.hiding_bits)
        assert hidden <= Fraction(1, 1 << SIGMA + 3), name
        assert Fraction(needs.compared, 1 << needs.high_bits) <= Fraction(1, 1 << SIGMA + 5), name


def test_values_of_comparisons_fit_their_digits() -> None:
    for name, needs, _ in demands():
        level = needs.kept_bits - ITERATE_BITS - 4
        for kind, value in ((needs.coarse, level + ITERATE_BITS), (needs.fine, level + ITERATE_BITS)):
            assert 2 << value - kind.below <= 1 << kind.bits - 1, name
        assert 2 << 2 * (level + ITERATE_BITS) - needs.wide.below <= 1 << needs.wide.bits - 1, name


@pytest.mark.parametrize("plan", [RIDGE, LASSO], ids=["ridge", "lasso"])
@pytest.mark.parametrize("fits", [2, 4, 11])
def test_rounds_of_newtons_method_have_room_for_the_greater_of_both_plans(plan: Plan, fits: int) -> None:
    again = newton_plan(plan, l1=plan.l1, l2=plan.l2, reach=Fraction(8))
    budget = budget_of(plan, fits=fits, again=again)
    assert budget.level == max(bound(one, fits=fits).level for one in (plan, again))
    assert budget.needs == demand(plan, level=budget.level, fits=fits)


def test_an_honest_projection_of_an_input_stays_in_its_range() -> None:
    """``_budget._HONEST``: the squares of R, T and Z add up to 0.8 of what as many entries at their bound do."""
    for columns in range(2, 302):
        entries = columns * (columns + 1) // 2
        roots = [math.sqrt(k + 1) for k in range(columns)]  # entries of T's column k
        moved = sum(
            (2.0**40 * (roots[i] + roots[j]) / 2 + columns / 4) ** 2 for j in range(columns) for i in range(j + 1)
        )
        assert moved <= 0.8 * entries * float(_inputs._REST) ** 2
        assert columns <= 0.8 * entries
        assert columns + 1 <= 0.8 * (columns + 1) * (columns + 2) / 2
    assert 2 * math.exp(-36 / 0.8) <= 2.0**-_budget._HONEST
    assert PROJECTIONS * 3 * 11 * 8 * 2.0**-_budget._HONEST < 2.0 ** -(SIGMA + 8)
