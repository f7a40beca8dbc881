"""Events: facts with a unit and a relation, strict when read, merged without changing what they say."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from pydantic import ValidationError

from cloister.errors import InputError
from cloister.ledger import Gaussian, Laplace, Relation, SampledGaussian, Selection, Unaccounted, sampled_gaussian
from cloister.ledger._events import merged, slack_of
from cloister.wire import parse_message

KIND: dict[str, Any] = {"unit": "record", "relation": Relation.ADD_OR_REMOVE_ONE}
STEP = SampledGaussian(**KIND, sampling_probability="1/100", noise_multiplier="1.1", count=10, slack="0.0001")
METRIC = Laplace(**KIND, noise_multiplier="20", count=1)


def test_an_event_has_no_default_relation_and_no_default_unit() -> None:
    for missing in KIND:
        rest = {key: value for key, value in KIND.items() if key != missing}
        with pytest.raises(ValidationError):
            Gaussian(**rest, noise_multiplier="1", count=1)


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": "1.10"},
        {"noise_multiplier": "01"},
        {"noise_multiplier": "1e0"},
        {"noise_multiplier": "0.01"},
        {"noise_multiplier": "0"},
        {"noise_multiplier": "2000000000000"},
        {"sampling_probability": "2/200"},
        {"sampling_probability": "0.01"},
        {"sampling_probability": "0/1"},
        {"sampling_probability": "3/2"},
        {"slack": "1.5"},
        {"slack": "-1"},
    ],
)
def test_a_number_in_another_form_or_out_of_range_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_message(SampledGaussian, STEP.as_json() | change, what="event")
    assert caught.value.code == 2801


@pytest.mark.parametrize(
    "change",
    [
        {"count": 0},
        {"count": 2**40 + 1},
        {"count": "10"},
        {"count": True},
        {"relation": "add-or-remove"},
        {"unit": "Record"},
        {"noise_multiplier": 1},
        {"more": 1},
        {"kind": "gaussian"},
    ],
)
def test_a_field_of_another_shape_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        parse_message(SampledGaussian, STEP.as_json() | change, what="event")
    assert caught.value.code == 2005


def test_an_event_survives_its_canonical_bytes() -> None:
    selection = Selection(**KIND, trial=(STEP, METRIC), distribution="poisson", mean="8")
    assert parse_message(Selection, selection.canonical(), what="event") == selection


def test_a_training_is_written_as_people_write_it() -> None:
    terms: dict[str, Any] = {"sampling_probability": "1e-2", "noise_multiplier": "1.10", "steps": 10, "slack": "1e-4"}
    assert sampled_gaussian(**KIND, **terms) == STEP
    for change, code in (({"steps": 0}, 2005), ({"slack": "x"}, 2801), ({"sampling_probability": "0"}, 2801)):
        with pytest.raises(InputError) as caught:
            sampled_gaussian(**KIND, **(terms | change))
        assert caught.value.code == code


def test_a_selection_is_of_one_kind_and_of_a_possible_mean() -> None:
    other = STEP.model_copy(update={"unit": "patient"})
    with pytest.raises(InputError) as caught:
        Selection(**KIND, trial=(STEP, other), distribution="poisson", mean="8")
    assert caught.value.code == 2802
    for mean in ("0.5", "1048577"):
        with pytest.raises(InputError) as caught:
            Selection(**KIND, trial=(STEP,), distribution="geometric", mean=mean)
        assert caught.value.code == 2801


def test_slack_adds_and_a_selection_multiplies_it() -> None:
    assert slack_of(STEP) == Fraction(1, 10_000)
    assert slack_of(Selection(**KIND, trial=(STEP, STEP), distribution="poisson", mean="8")) == Fraction(16, 10_000)
    assert slack_of(Unaccounted(**KIND, reason="float noise")) == 0


def test_merging_adds_counts_of_equal_mechanisms_only() -> None:
    void = Unaccounted(**KIND, reason="float noise")
    other = STEP.model_copy(update={"noise_multiplier": "1.2", "slack": "0"})
    assert merged([STEP, METRIC, other, void, STEP]) == [
        STEP.model_copy(update={"count": 20, "slack": "0"}),
        METRIC,
        other,
        void,
    ]
