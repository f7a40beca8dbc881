"""Tails of the distributions that an audit counts with: what chance alone gives so often, or more often.

Binomial tails are summed term by term from the tail's edge outwards, in logarithms, with what is left out bounded by a
geometric series; every answer is rounded up by more than floating point loses, so that a verdict that rests on one
errs towards "not contradicted".

>>> round(upper_tail(10, 0.5, 9), 6), round(lower_tail(10, 0.5, 1), 6)
(0.010742, 0.010742)
>>> [round(bound, 4) for bound in interval(100, 3, confidence=0.95)]
[0.0062, 0.0852]

*Source*: C. J. Clopper, E. S. Pearson, "The use of confidence or fiducial limits illustrated in the case of the
binomial", Biometrika 1934, for the interval; H. Chernoff, Annals of Mathematical Statistics 1952, for the chi-square.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["few_squares", "interval", "log_masses", "lower_tail", "most_variance", "two_sided", "upper_tail"]

_UP = 1 + 1e-6
_WIDE = 50  # standard deviations: what is further out is below 10^-500, or in the geometric rest


def log_masses(count: int, probability: float) -> NDArray[np.float64]:
    """``(count + 1,)``: logarithm of the probability of each number of successes.

    Args:
        count: Trials.
        probability: Of success, above 0 and below 1.
    """
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    numbers = np.arange(count + 1)
    chosen = factorials[-1] - factorials - factorials[::-1]
    return chosen + numbers * math.log(probability) + (count - numbers) * math.log1p(-probability)


def upper_tail(count: int, probability: float, least: int) -> float:
    """``P[X ≥ least]`` for a binomial X, rounded up.

    Args:
        count: Trials.
        probability: Of success, 0 to 1.
        least: Successes.
    """
    if least <= 0:
        return 1.0
    if least > count or probability == 0:
        return 0.0
    if probability == 1:
        return 1.0
    if least <= count * probability:
        return min(1.0, (1 - _beyond(count, 1 - probability, count - least + 1)) * _UP)
    return min(1.0, _beyond(count, probability, least) * _UP)


def lower_tail(count: int, probability: float, most: int) -> float:
    """``P[X ≤ most]`` for a binomial X, rounded up."""
    return upper_tail(count, 1 - probability, count - most)


def two_sided(count: int, probability: float, got: int) -> float:
    """How often a binomial is at least as far out as ``got``, on either side: twice the smaller tail."""
    return min(1.0, 2 * min(upper_tail(count, probability, got), lower_tail(count, probability, got)))


def interval(count: int, successes: int, *, confidence: float) -> tuple[float, float]:
    """Clopper's and Pearson's: whatever the probability is, it lies within with at least this confidence.

    Args:
        count: Trials, 1 or more.
        successes: Of them.
        confidence: Above 0 and below 1.
    """
    side = (1 - confidence) / 2
    low = 0.0 if successes == 0 else _where(lambda p: upper_tail(count, p, successes) > side)
    high = 1.0 if successes == count else _where(lambda p: lower_tail(count, p, successes) <= side)
    return low, high


def few_squares(degrees: int, ratio: float) -> float:
    """At least the probability that a chi-square variable is this far below its mean, or further.

    Args:
        degrees: Of freedom.
        ratio: The variable over ``degrees``.
    """
    if ratio >= 1:
        return 1.0
    return 0.0 if ratio <= 0 else math.exp(degrees / 2 * (math.log(ratio) + 1 - ratio))


def most_variance(degrees: int, variance: float, *, confidence: float) -> float:
    """The largest variance with which normal numbers, ``degrees`` of mean zero, may have shown this one."""
    if variance == 0:
        return 0.0
    return variance / _where(lambda ratio: few_squares(degrees, ratio) >= 1 - confidence)


def _beyond(count: int, probability: float, least: int) -> float:
    """The sum of the masses from ``least`` on, which lies above the mean: they fall."""
    if least > count:
        return 0.0
    window = min(count - least, math.ceil(_WIDE * math.sqrt(count * probability * (1 - probability))) + 1000)
    numbers = np.arange(least, least + window, dtype=np.float64)
    odds = math.log(probability) - math.log1p(-probability)
    first = math.lgamma(count + 1) - math.lgamma(least + 1) - math.lgamma(count - least + 1)
    first += least * math.log(probability) + (count - least) * math.log1p(-probability)
    logs = first + np.concatenate([[0.0], np.cumsum(np.log((count - numbers) / (numbers + 1)) + odds)])
    masses = np.exp(logs)
    last = least + window
    ratio = (count - last) / (last + 1) * math.exp(odds)  # of the next mass to the last one; later ones are smaller
    rest = masses[-1] * ratio / (1 - ratio) if ratio < 1 else 1.0
    return float(masses.sum() + rest)


def _where(holds: Callable[[float], bool]) -> float:
    """The place in 0 to 1 from which on a condition holds."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
