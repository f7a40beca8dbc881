"""How much noise a guarantee needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

from cloister.errors import InputError
from cloister.ledger._account import Account, Spent
from cloister.ledger._events import Event, SampledGaussian, sampled_gaussian
from cloister.ledger._numbers import amount, exact, float_up
from cloister.ledger._relation import Method, Relation

__all__ = ["Calibrated", "calibrate"]

_GRID = 10**4
_LEAST, _MOST = math.ceil(_GRID / 64), 2**20 * _GRID


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A noise multiplier and what it costs.

    Attributes:
        event: The training, with the noise multiplier found.
        spent: The account of it and of what was charged besides: its ε is within the one asked for.
    """

    event: SampledGaussian
    spent: Spent


def calibrate(
    *,
    epsilon: str,
    delta: str,
    sampling_probability: str,
    steps: int,
    unit: str,
    relation: Relation,
    slack: str = "0",
    besides: Sequence[Event] = (),
    by: Method = Method.PLD,
) -> Calibrated:
    """The least noise, to four digits and rounded up, with which a training is (epsilon, delta)-private.

    Args:
        epsilon: Above 0, decimal text.
        delta: Above 0, below 1, decimal text.
        sampling_probability: Of each unit in each step; decimal or fraction.
        steps: At least 1.
        unit: Whose presence is hidden.
        relation: When two datasets are neighbours.
        slack: Total variation distance of the real training to the ideal one.
        besides: Other events that the same guarantee must cover: released metrics, other trainings.
        by: ``Method.PLD`` needs the extra ``privacy``.

    Raises:
        InputError: 2801 for a number out of range; 2802 when ``besides`` is of another unit or relation; 2804 when
            no noise is enough; 2005 for a count or unit that is none; 2006 without the extra.
        BudgetError: 7803 when the slack alone is more than ``delta``.
    """
    allowed = exact(epsilon, what="epsilon")
    if allowed <= 0 or not 0 < exact(delta, what="delta") < 1 or steps < 1:
        raise InputError(2801, expected="epsilon, delta and steps above 0, delta below 1")

    @cache
    def found(noise: int, method: Method) -> Calibrated:
        event = sampled_gaussian(
            unit=unit,
            relation=relation,
            sampling_probability=sampling_probability,
            noise_multiplier=amount(Fraction(noise, _GRID)),
            steps=steps,
            slack=slack,
        )
        return Calibrated(event, Account([event, *besides], by=method).epsilon(delta))

    def cost(noise: int, method: Method) -> float:
        """The ε over the one allowed: enough at most 1, exactly."""
        spent = found(noise, method).spent.epsilon
        return math.inf if spent is None else float_up(exact(spent) / allowed)

    # the loose answer is fast and needs more noise than the tight one: it says where to begin
    noise = _solve(_GRID, lambda noise: cost(noise, Method.RDP))
    if by is Method.PLD and (noise is not None or cost(_MOST, by) <= 1):  # what is besides may be too much for one only
        noise = _solve(noise or _GRID, lambda noise: cost(noise, by))
    if noise is None:
        raise InputError(2804, expected=f"epsilon {epsilon} at delta {delta}", got=f"{steps} steps at any noise")
    return found(noise, by)


def _solve(begin: int, cost: Callable[[int], float]) -> int | None:
    """The least noise that costs at most 1, to a part in 2000; None when none does.

    Each probe may take seconds, so a secant is followed, and its two sides are probed in turn until they are close.
    """
    high, costs = begin, {begin: cost(begin)}
    while costs[high] > 1:
        if high == _MOST:
            return None
        high = min(_MOST, high * 2)
        costs[high] = cost(high)
    low = max((noise for noise in costs if costs[noise] > 1), default=high)
    while costs[low] <= 1:
        if low == _LEAST:
            return low
        high, low = low, max(_LEAST, int(low * min(0.97, max(0.5, math.sqrt(costs[low])))))
        costs[low] = cost(low)
    turn = 0
    while high - low > max(1, high // 2000):
        turn += 1
        middle = (low + high) // 2 if turn % 4 == 0 else _between(low, high, costs, 1 if turn % 2 else -1)
        costs[middle] = cost(middle)
        low, high = (low, middle) if costs[middle] <= 1 else (middle, high)
    return high


def _between(low: int, high: int, costs: dict[int, float], side: int) -> int:
    """Where a power law through both ends costs 1, a little to the side of it."""
    if costs[high] <= 0 or costs[low] == math.inf:
        return (low + high) // 2
    part = math.log(costs[low]) / math.log(costs[low] / costs[high])
    guess = round(low * (high / low) ** part) + side * max(1, high // 5000)
    return min(high - 1, max(low + 1, guess))
