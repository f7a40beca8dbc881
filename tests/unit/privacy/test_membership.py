"""A membership test finds what is there, counts it as it says, and finds nothing where nothing is."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.stats

from cloister.errors import InputError
from cloister.privacy import logit_confidence, membership_of, membership_test

MODELS, RECORDS = 12, 1500


def coins(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((MODELS, RECORDS)) < 0.5


def scored(apart: float, seed: int = 1) -> np.ndarray:
    """Records that differ in how hard they are, and members who score so much higher."""
    random = np.random.default_rng(seed)
    return random.normal(0, 3, RECORDS) + random.normal(0, 1, (MODELS, RECORDS)) + apart * coins()


def test_scores_of_chance_show_nothing() -> None:
    found = membership_of(scored(0.0), coins())
    assert found.low <= 0.001 <= found.high
    assert found.area == pytest.approx(0.5, abs=0.02)
    assert found.epsilon_bound == 0
    assert found.members + found.others == MODELS * RECORDS


@pytest.mark.parametrize("apart", [1.0, 2.0, 4.0])
def test_what_the_best_test_finds_is_found(apart: float) -> None:
    """Two normal distributions of variance one: nobody finds more than the ratio of their densities."""
    found = membership_of(scored(apart), coins())
    best = scipy.stats.norm.sf(scipy.stats.norm.isf(0.001) - apart)
    assert found.true_positive_rate <= best * 1.35 + 0.003
    assert found.true_positive_rate >= best * 0.25  # means of five models each are not the true ones
    assert found.low < found.true_positive_rate < found.high
    exact = scipy.stats.binomtest(round(found.true_positive_rate * found.members), found.members)
    assert (found.low, found.high) == pytest.approx(tuple(exact.proportion_ci(0.95, method="exact")), abs=1e-5)
    assert found.epsilon_bound > (apart >= 2)
    assert found.area > scipy.stats.norm.cdf(apart / 2**0.5) - 0.06


def test_no_more_others_are_called_members_than_are_allowed() -> None:
    scores, included = np.round(scored(2.0)), coins()  # many are equal
    for rate in (0.2, 0.01, 0.0001):
        found = membership_of(scores, included, false_positive_rate=rate)
        assert found.epsilon_bound >= 0
        assert found.curve[0][0] >= 1 / found.others
    assert membership_of(np.zeros_like(scores), included).true_positive_rate == 0


def test_a_randomised_response_keeps_its_epsilon() -> None:
    """Each score tells the coin with e/(1+e): no bound is above one, whatever the records are."""
    random = np.random.default_rng(5)
    told = random.random((MODELS, RECORDS)) < 1 / (1 + np.exp(-1.0))
    scores = np.where(told, coins(), ~coins()).astype(float)
    found = membership_of(scores + random.normal(0, 1e-3, scores.shape), coins(), false_positive_rate=0.2)
    assert 0.6 < found.epsilon_bound < 1.0


def test_the_logit_is_that_of_the_probability() -> None:
    probability = np.array([0.001, 0.5, 0.999])
    assert logit_confidence(-np.log(probability)) == pytest.approx(np.log(probability / (1 - probability)))
    assert np.isfinite(logit_confidence(np.array([0.0, 1e9]))).all()


def test_models_are_trained_on_fair_halves_and_scored_on_all() -> None:
    seen: list[int] = []

    def train(rows: object) -> np.ndarray:
        assert isinstance(rows, list)
        seen.append(len(rows))
        made = np.random.default_rng(len(seen)).normal(size=RECORDS)
        made[rows] += 5.0
        return made

    found = membership_test(train, RECORDS, models=6, false_positive_rate=0.01)
    assert len(seen) == found.models == 6
    assert all(600 < count < 900 for count in seen)
    assert len(set(seen)) > 1
    assert found.true_positive_rate > 0.9
    made = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert made["true_positive_rate"] == found.true_positive_rate
    assert ElementTree.fromstring(found.plot()).tag.endswith("svg")  # noqa: S314 - our own


@pytest.mark.parametrize(
    ("scores", "included", "settings"),
    [
        (np.zeros((3, 9)), np.zeros((3, 9)), {}),
        (np.zeros((4, 9)), np.zeros((4, 8)), {}),
        (np.zeros(9), np.zeros(9), {}),
        (np.full((4, 9), np.nan), np.zeros((4, 9)), {}),
        (np.zeros((4, 9)), np.zeros((4, 9)), {}),
        (np.zeros((4, 9)), np.eye(4, 9), {"false_positive_rate": 0.0}),
        (np.zeros((4, 9)), np.eye(4, 9), {"confidence": 1.0}),
    ],
)
def test_what_cannot_be_counted_is_refused(scores: np.ndarray, included: np.ndarray, settings: dict) -> None:
    with pytest.raises(InputError) as refused:
        membership_of(scores, included, **settings)
    assert refused.value.code == 2862
