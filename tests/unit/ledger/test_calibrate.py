"""Calibration: the noise found keeps the guarantee, and a little less would not."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from cloister.errors import BudgetError, InputError
from cloister.ledger import Account, Gaussian, Laplace, Method, Relation, amount, calibrate, exact

TERMS: dict[str, Any] = {
    "epsilon": "2",
    "delta": "1e-5",
    "sampling_probability": "0.01",
    "steps": 500,
    "unit": "record",
    "relation": Relation.ADD_OR_REMOVE_ONE,
}


@pytest.mark.parametrize(
    ("method", "change"),
    [
        pytest.param(Method.PLD, {"steps": 50}, marks=pytest.mark.slow),
        (Method.PLD, {"sampling_probability": "1", "steps": 1}),
        (Method.RDP, {}),
        (Method.RDP, {"relation": Relation.REPLACE_ONE}),
        (Method.RDP, {"sampling_probability": "1", "steps": 1, "epsilon": "0.01"}),
        (Method.RDP, {"epsilon": "20", "steps": 3}),
    ],
)
def test_the_noise_is_enough_and_hardly_more_than_enough(method: Method, change: dict[str, Any]) -> None:
    terms = TERMS | change
    found = calibrate(**terms, by=method)
    allowed = exact(terms["epsilon"])
    assert found.spent.by is method
    assert exact(found.spent.epsilon or "500") <= allowed
    assert Account([found.event], by=method).epsilon("1e-5") == found.spent
    noise = exact(found.event.noise_multiplier)
    less = amount(Fraction(int(noise * 10_000 * Fraction(998, 1000)), 10_000))
    fewer = found.event.model_copy(update={"noise_multiplier": less})
    assert exact(Account([fewer], by=method).epsilon("1e-5").epsilon or "500") > allowed


def test_the_tight_method_needs_less_noise() -> None:
    once = TERMS | {"sampling_probability": "1", "steps": 1}
    tight, loose = (calibrate(**once, by=method).event.noise_multiplier for method in Method)
    assert exact(tight) < exact(loose)


def test_what_is_charged_besides_needs_more_noise() -> None:
    metric = Laplace(unit="record", relation=Relation.ADD_OR_REMOVE_ONE, noise_multiplier="2", count=1)
    alone = calibrate(**TERMS, by=Method.RDP)
    both = calibrate(**TERMS, besides=[metric], by=Method.RDP)
    assert exact(both.event.noise_multiplier) > exact(alone.event.noise_multiplier)
    assert exact(both.spent.epsilon or "500") <= 2


def test_what_is_besides_may_be_too_much_for_the_loose_method_alone() -> None:
    once = TERMS | {"sampling_probability": "1", "steps": 1}
    before = Gaussian(unit="record", relation=Relation.ADD_OR_REMOVE_ONE, noise_multiplier="2.1", count=1)
    alone = Account([before]).epsilon("1e-5")
    assert exact(alone.pld or "500") < 2 < exact(alone.rdp or "0")
    found = calibrate(**once, besides=[before])
    assert exact(alone.pld or "500") < exact(found.spent.epsilon or "500") <= 2


def test_slack_needs_more_noise_or_cannot_be_met() -> None:
    more = calibrate(**TERMS, slack="0.0000005", by=Method.RDP)
    assert exact(more.event.noise_multiplier) > exact(calibrate(**TERMS, by=Method.RDP).event.noise_multiplier)
    with pytest.raises(BudgetError) as caught:
        calibrate(**TERMS, slack="0.00001", by=Method.RDP)
    assert caught.value.code == 7803


def test_the_least_noise_is_the_answer_where_nothing_is_asked() -> None:
    found = calibrate(**(TERMS | {"epsilon": "400", "delta": "0.5", "steps": 1}), by=Method.RDP)
    assert exact(found.event.noise_multiplier) < Fraction(1, 4)


def test_no_noise_is_enough() -> None:
    metric = Laplace(unit="record", relation=Relation.ADD_OR_REMOVE_ONE, noise_multiplier="0.1", count=1)
    with pytest.raises(InputError) as caught:
        calibrate(**TERMS, besides=[metric], by=Method.RDP)
    assert caught.value.code == 2804


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"epsilon": "0"}, 2801),
        ({"epsilon": "-1"}, 2801),
        ({"delta": "0"}, 2801),
        ({"delta": "1"}, 2801),
        ({"steps": 0}, 2801),
        ({"steps": 2**41}, 2005),
        ({"sampling_probability": "0"}, 2801),
        ({"unit": "No Name"}, 2005),
        ({"slack": "2"}, 2801),
    ],
)
def test_terms_that_are_none_are_refused(change: dict[str, Any], code: int) -> None:
    with pytest.raises(InputError) as caught:
        calibrate(**(TERMS | change), by=Method.RDP)
    assert caught.value.code == code
