"""What guesses about fair coins show of ε: the more of many are right, the larger it must be.

Each of m canaries was in the data or not by a fair coin. Who sees only what was released guesses some of the coins and
abstains from the others. If the release is (ε, δ)-private, hardly more than a share ``e^ε/(1+e^ε)`` of the guesses can
be right, however they were made and whatever else is in the data: with r guesses,

    P[v or more right] ≤ β + 2mδ · max_i (P[v > X ≥ v-i] / i),   X ~ Binomial(r, e^ε/(1+e^ε)),  β = P[X ≥ v].

So a number of right guesses that is too unlikely at some ε contradicts that ε. All m coins are thrown in one run.

>>> shown = best_guesses([np.arange(200.0)], np.arange(200) >= 100)  # every coin is told apart
>>> shown.guessed, shown.right, round(shown.epsilon(1e-5, confidence=0.95), 2)
(200, 200, 3.71)
>>> shown.chance(1.0, 1e-12) < 1e-10
True

The second term does not fall below ``2mδ/r`` or so: for a verdict that is seldom wrong, ε is taken at a small δ.

*Source*: T. Steinke, M. Nasr, M. Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023, theorem 5.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloister.privacy._tails import log_masses

__all__ = ["Guesses", "best_guesses"]

SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
"""Of the coins that are guessed. All are tried, and each answer is corrected for there being so many."""

_MOST = 64.0


@dataclass(frozen=True, slots=True)
class Guesses:
    """How many coins there were, were guessed, and were guessed right, for each way of abstaining.

    Attributes:
        coins: m.
        tried: Pairs of guesses and right ones.
    """

    coins: int
    tried: tuple[tuple[int, int], ...]

    @property
    def guessed(self) -> int:
        """Of the pair that shows most."""
        return self._best[0]

    @property
    def right(self) -> int:
        """Of the pair that shows most."""
        return self._best[1]

    def chance(self, epsilon: float, delta: float) -> float:
        """At most the probability of such guesses, or better ones, if the release is (ε, δ)-private."""
        return min(1.0, len(self.tried) * min(_chance(self.coins, *pair, epsilon, delta) for pair in self.tried))

    def epsilon(self, delta: float, *, confidence: float) -> float:
        """The largest ε that these guesses contradict at δ; 0 when they contradict none. A lower bound of the real one.

        Args:
            delta: Of the guarantee.
            confidence: That it is one: if the real ε is E, the answer is above E with probability ``1 - confidence``
                at most.
        """
        if self.chance(0.0, delta) > 1 - confidence:
            return 0.0
        low, high = 0.0, _MOST
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if self.chance(middle, delta) <= 1 - confidence else (low, middle)
        return low

    @property
    def _best(self) -> tuple[int, int]:
        return min(self.tried, key=lambda pair: (_chance(self.coins, *pair, 0.0, 0.0), pair))


def best_guesses(scores: Sequence[NDArray[np.float64]], included: NDArray[np.bool_]) -> Guesses:
    """Guesses "in" where the score is highest and "out" where it is lowest, for each share of the coins.

    Args:
        scores: One or more ways of scoring, ``(m,)`` each, of what was released alone.
        included: ``(m,)``, the coins.
    """
    tried: list[tuple[int, int]] = []
    for score in scores:
        order = np.argsort(score, kind="stable")
        for share in SHARES:
            half = max(1, math.floor(len(order) * share / 2))
            right = int((~included[order[:half]]).sum() + included[order[-half:]].sum())
            tried.append((2 * half, right))
    return Guesses(len(included), tuple(tried))


def _chance(coins: int, guessed: int, right: int, epsilon: float, delta: float) -> float:
    if right == 0:
        return 1.0
    masses = np.exp(log_masses(guessed, 1 / (1 + math.exp(-epsilon))))
    tail = float(masses[right:].sum())
    below = np.cumsum(masses[:right][::-1])
    worst = float((below / np.arange(1, right + 1)).max())
    return min(1.0, (tail + 2 * coins * delta * worst) * (1 + 1e-9))
