"""A membership test: how well a model gives away which records it was trained on, at few false alarms.

Models are trained, each on its own half of the records, drawn by fair coins. Each in turn is the target; the others
show, record by record, how a model scores that had it and how one that had not. The likelihood ratio of the two
(normal, of the logit of a confidence) says which of both the target looks like.

What counts is not how often that is right on average, but how many members are found when hardly any other record may
be called one: the true positive rate at a false positive rate of 0.1 %. If training is (ε, δ)-private it is at most
``e^ε · 0.001 + δ``; guessing reaches 0.001.

>>> coins = np.random.default_rng(1).random((16, 2000)) < 0.5
>>> scores = np.random.default_rng(2).normal(3.0 * coins)
>>> found = membership_of(scores, coins)
>>> found.epsilon_bound > 1, found.low < found.true_positive_rate < found.high
(True, True)

*Source*: N. Carlini, S. Chien, M. Nasr, S. Song, A. Terzis, F. Tramèr, "Membership Inference Attacks From First
Principles", IEEE S&P 2022: the online test, with one variance for all records.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.privacy._audit_plots import membership_plot
from cloister.privacy._tails import interval

__all__ = ["Membership", "logit_confidence", "membership_of", "membership_test"]

_LEAST_MODELS = 4
_POINTS = 400


@dataclass(frozen=True, slots=True)
class Membership:
    """How well members are told from others.

    Attributes:
        models: That were trained.
        members: Pairs of a target and a record that it was trained on.
        others: Pairs of a target and a record that it was not.
        false_positive_rate: What was asked for; of the others, so many at most are called members.
        true_positive_rate: Of the members found there.
        low: Of its interval, at ``confidence``, as if pairs were independent and the threshold given. With few allowed
            false positives the threshold itself is a guess: then chance alone puts this above the false positive rate
            more often than it should.
        high: Of its interval.
        area: Under the whole curve: a half is guessing.
        epsilon_bound: What the rates at the threshold show of ε, with ``confidence``, at δ = 0; 0 when nothing.
        confidence: Of interval and bound, each.
        curve: (false positive rate, true positive rate), ascending, at some thresholds.
    """

    models: int
    members: int
    others: int
    false_positive_rate: float
    true_positive_rate: float
    low: float
    high: float
    area: float
    epsilon_bound: float
    confidence: float
    curve: tuple[tuple[float, float], ...]

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}

    def plot(self) -> str:
        """An SVG: the curve on logarithmic axes."""
        lines = (
            f"{self.true_positive_rate:.3%} of members at {self.false_positive_rate:.3%} false alarms, "
            f"{self.low:.3%} to {self.high:.3%}",
            f"area {self.area:.3f}; {self.models} models, {self.members} members, {self.others} others",
        )
        return membership_plot(
            self.curve, (self.false_positive_rate, self.true_positive_rate, self.low, self.high), lines
        )


def membership_test(
    train: Callable[[Sequence[int]], NDArray[np.float64]],
    records: int,
    *,
    models: int = 16,
    false_positive_rate: float = 1e-3,
    confidence: float = 0.95,
) -> Membership:
    """Trains models on random halves of the records, and tests.

    Args:
        train: Trains a fresh model on the records of these numbers, and scores *all* records with it, ``(records,)``:
            :func:`logit_confidence`.
        records: How many there are.
        models: How many are trained, 4 or more; 16 or more tell much more.
        false_positive_rate: At which members are counted.
        confidence: Of the interval.

    Raises:
        InputError: 2862 when a number is out of range, or scores are none.
    """
    coins = np.frombuffer(secrets.token_bytes(max(0, models * records)), np.uint8).reshape(models, records) & 1 == 1
    scores = np.stack([train(np.flatnonzero(each).tolist()) for each in coins])
    return membership_of(scores, coins, false_positive_rate=false_positive_rate, confidence=confidence)


def membership_of(
    scores: NDArray[np.float64],
    included: NDArray[np.bool_],
    *,
    false_positive_rate: float = 1e-3,
    confidence: float = 0.95,
) -> Membership:
    """The same of models that were trained elsewhere.

    Args:
        scores: ``(models, records)``.
        included: ``(models, records)``: what each was trained on, by fair coins.
        false_positive_rate: At which members are counted.
        confidence: Of the interval.

    Raises:
        InputError: 2862 when a number is out of range, or scores are none.
    """
    scores, included = np.asarray(scores, np.float64), np.asarray(included, bool)
    if scores.ndim != 2 or scores.shape != included.shape or len(scores) < _LEAST_MODELS:
        raise InputError(2862, expected=f"scores of {_LEAST_MODELS} models or more", got=str(scores.shape))
    if not (np.isfinite(scores).all() and 0 < false_positive_rate < 1 and 0 < confidence < 1):
        raise InputError(2862, expected="finite scores, and rates within 0 and 1")
    if included.all() or not included.any():
        raise InputError(2862, expected="members and others", got="all of one kind")
    ratios = _ratios(scores, included)
    members, others = np.sort(ratios[included]), np.sort(ratios[~included])
    allowed = math.floor(false_positive_rate * len(others))
    # above the threshold lie as many others as are allowed, or fewer where some are equal
    threshold = others[-1 - allowed]
    found, wrong = int((members > threshold).sum()), int((others > threshold).sum())
    low, high = interval(len(members), found, confidence=confidence)
    at_most = interval(len(others), wrong, confidence=confidence)[1]
    bound = max(0.0, math.log(low / at_most)) if low > 0 else 0.0
    return Membership(
        len(scores),
        len(members),
        len(others),
        false_positive_rate,
        found / len(members),
        low,
        high,
        _area(members, others),
        bound,
        confidence,
        _curve(members, others),
    )


def logit_confidence(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """``log(p/(1-p))`` of ``p = e^-loss``, the probability that a model gives to a record's own label.

    Args:
        losses: Cross-entropies, each 0 or more; taken to lie within 10^-12 and 50.
    """
    kept = np.clip(losses, 1e-12, 50.0)
    return -kept - np.log(-np.expm1(-kept))


def _ratios(scores: NDArray[np.float64], included: NDArray[np.bool_]) -> NDArray[np.float64]:
    """For each target and record the logarithm of the likelihood ratio; 0 where the others cannot tell."""
    found = np.zeros_like(scores)
    for target in range(len(scores)):
        shadows = np.arange(len(scores)) != target
        had, values = included[shadows], scores[shadows]
        means = [_mean(values, had), _mean(values, ~had)]
        variances = [_variance(values, mean, which) for mean, which in zip(means, (had, ~had), strict=True)]
        inside, outside = (
            np.square(scores[target] - mean) / (2 * variance) + math.log(variance) / 2
            for mean, variance in zip(means, variances, strict=True)
        )
        both = had.any(0) & (~had).any(0)
        found[target] = np.where(both, outside - inside, 0.0)
    return found


def _mean(values: NDArray[np.float64], which: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.where(which, values, 0.0).sum(0) / np.maximum(which.sum(0), 1)


def _variance(values: NDArray[np.float64], mean: NDArray[np.float64], which: NDArray[np.bool_]) -> float:
    return max(float(np.square(values - mean)[which].sum()) / max(1, int(which.sum())), 1e-12)


def _area(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """The chance that a member's ratio is above another's; equal ones count half."""
    below = np.searchsorted(others, members, "left") + np.searchsorted(others, members, "right")
    return float(below.mean() / 2 / len(others))


def _curve(members: NDArray[np.float64], others: NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    ranks = np.unique(np.geomspace(1, len(others), _POINTS).astype(int))
    thresholds = others[-ranks]
    rates = 1 - np.searchsorted(members, thresholds, "left") / len(members)
    return tuple(zip((ranks / len(others)).tolist(), rates.tolist(), strict=True))
