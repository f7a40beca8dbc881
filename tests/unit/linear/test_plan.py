"""Constants are rounded from fractions; what is out of range has its code; the order of roundings is the program's."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from cloister.errors import InputError
from cloister.linear._bounds import bound
from cloister.linear._budget import budget_of, require_sound
from cloister.linear._plan import Plan, constants

LASSO = Plan(
    method="lasso",
    rows=(600, 400),
    curvature=Fraction("7.3"),
    mean_squares=(Fraction(2),) * 4,
    l1=Fraction("0.03"),
    l2=Fraction("0.007"),
)


def test_the_integers_are_nearest_to_the_exact_quotients() -> None:
    found = constants(LASSO)
    assert abs(found.split - 2**46 * Fraction("0.4") / Fraction("7.3")) <= Fraction(1, 2)
    assert found.penalty[0] == 0
    assert all(
        abs(entry - 2**46 * Fraction("0.007") / Fraction("7.3")) <= Fraction(1, 2) for entry in found.penalty[1:]
    )
    assert abs(found.threshold - 2**36 * Fraction("0.03") / Fraction("0.4")) <= Fraction(1, 2)
    assert abs(found.fine_threshold - 2**36 * Fraction("0.03") / Fraction("7.3")) <= Fraction(1, 2)
    assert found.residual == (2**36 * Fraction(1, 4096) / Fraction("7.3")) ** 2 // 1
    assert len(found.steps) == 8


@pytest.mark.parametrize(
    "change",
    [
        {"curvature": Fraction(1, 2)},
        {"l1": Fraction(0)},
        {"l1": Fraction(-1)},
        {"l2": Fraction(-1, 100)},
        {"theta": Fraction(0)},
        {"rounds": 0},
        {"half": 1},
        {"half": 65},
        {"tolerance": Fraction(0)},
        {"mean_squares": (Fraction(2), Fraction(0), Fraction(2), Fraction(2))},
        {"mean_squares": (Fraction(2), Fraction(2000), Fraction(2), Fraction(2))},
        {"rows": (10, 0)},
        {"rows": (10_000_000, 10)},  # the number of rows could not be proven to 2^-14
        {"curvatures": (Fraction(8), Fraction(8))},  # their mean is not κ
        {"method": "ridge", "steps": 1},
        {"method": "ridge", "floor": Fraction(0)},
    ],
)
def test_2901_numbers_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refused:
        replace(LASSO, **change)
    assert refused.value.code == 2901


@pytest.mark.parametrize(
    "change",
    [{"rows": (10,)}, {"rows": (10,) * 9}, {"mean_squares": (Fraction(2),) * 302}, {"mean_squares": (Fraction(2),)}],
)
def test_2909_more_than_the_parameters_are_proven_for(change: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refused:
        replace(LASSO, **change)
    assert refused.value.code == 2909


def test_a_party_may_have_a_curvature_of_its_own() -> None:
    plan = replace(LASSO, curvature=Fraction(8), curvatures=(Fraction(5), Fraction(25, 2)))
    assert [plan.share(0), plan.share(1)] == [Fraction(3, 8), Fraction(5, 8)]


@pytest.mark.parametrize(
    "change",
    [
        {"l1": Fraction(1, 10**9), "l2": Fraction(0)},  # the optimum may be huge
        {"curvature": Fraction(5000)},  # the steps do not contract
        {"method": "ridge", "curvature": Fraction(60000), "steps": 20},
        {"method": "ridge", "l2": Fraction(1000)},  # steps of less than 1/64 of a gradient
    ],
)
def test_2901_plans_that_the_field_or_the_steps_do_not_carry(change: dict[str, Any]) -> None:
    plan = replace(LASSO, **change)
    with pytest.raises(InputError) as refused:
        require_sound(plan)
    assert refused.value.code == 2901


def test_a_sound_plan_has_room_everywhere() -> None:
    assert require_sound(LASSO).exceeded == []
    assert budget_of(replace(LASSO, half=2, curvature=Fraction(5000))).exceeded != []
    assert bound(LASSO).level == require_sound(LASSO).level


def test_2901_a_hint_names_what_was_given() -> None:
    for change, word in (
        ({"l2": Fraction(1 << 11)}, "alpha"),
        ({"half": 65}, "half"),
        ({"tolerance": Fraction(2)}, "tolerance"),
    ):
        with pytest.raises(InputError) as refused:
            replace(LASSO, **change)
        assert word in str(refused.value.hint)
