"""A gambler who sees what was released and bets, at fair odds, on who was drawn. Nobody gets rich on what is not there.

How many outliers a step draws is decided by the sampler alone: a binomial number k of K with probability q. If outliers
change nothing, what was released tells nothing of it. Then a stake that becomes ``e^(xk) / (1-q+q·e^x)^K``, whatever x
was chosen after seeing what was released, is fair, and wealth ever reaches ``w`` with a probability of at most ``1/w``
(Ville 1939). So wealth is evidence, without a distribution assumed, over as many steps as one likes.

Gamblers look along two directions: that in which what was released moved with k, as far as it was seen before; and a
*hint*, what an outlier did to other examples' gradient in a try. Some bet more boldly than others. The wealth is the
mean of all.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

__all__ = ["Wager"]

BOLDNESS = (0.1, 0.2, 0.4, 0.8)
_FORGETS = 0.98  # a step: gradients change while a model trains
_FARTHEST = 3.0


class Wager:
    """Bets, a step each.

    Args:
        outliers: K, 1 or more.
        probability: q.
    """

    def __init__(self, outliers: int, probability: float) -> None:
        self._outliers, self._probability = outliers, probability
        self._gamblers = _Gambler(), _Gambler()
        self._mean, self._weight = torch.zeros(()), 0.0
        self._along = torch.zeros(())

    def see(self, released: Tensor, drawn: int, hint: Tensor | None = None) -> None:
        """A step: stakes are set by what was released, and then it shows who was there.

        Args:
            released: ``(P,)``.
            drawn: k.
            hint: ``(P,)``: where an outlier may push. Nothing that depends on who was drawn in this step.
        """
        for gambler, along in zip(self._gamblers, (self._along, hint), strict=True):
            length = 0.0 if along is None else float(along.norm())
            if along is not None and length > 0:
                gambler.bet(float(released @ along) / length, drawn, self._fair)
        away = drawn - self._outliers * self._probability
        centred = released - self._mean / self._weight if self._weight else torch.zeros_like(released)
        self._along = _FORGETS * self._along + away * centred
        self._mean = _FORGETS * self._mean + released
        self._weight = _FORGETS * self._weight + 1

    @property
    def improbability(self) -> float:
        """Natural logarithm of the wealth: ``e^-x`` bounds the chance of it."""
        wealth = np.concatenate([gambler.wealth for gambler in self._gamblers])
        most = float(wealth.max())
        return most + math.log(float(np.exp(wealth - most).mean()))

    def _fair(self, exponent: float) -> float:
        """Logarithm of what ``e^(xk)`` is on average."""
        return self._outliers * math.log1p(self._probability * math.expm1(exponent))


class _Gambler:
    """Looks along one direction, which may turn; each boldness has its own purse."""

    def __init__(self) -> None:
        self._mean = self._spread = self._weight = 0.0
        self.wealth = np.zeros(len(BOLDNESS))

    def bet(self, seen: float, drawn: int, fair: Callable[[float], float]) -> None:
        """Stakes by how far it lies from what was seen on average before."""
        lean = seen - self._mean / self._weight if self._weight else 0.0
        if self._spread > 0:
            lean_by = max(-_FARTHEST, min(_FARTHEST, lean * self._weight / self._spread))
            for place, bold in enumerate(BOLDNESS):
                self.wealth[place] += bold * lean_by * drawn - fair(bold * lean_by)
        self._mean = _FORGETS * self._mean + seen
        self._spread = _FORGETS * self._spread + abs(lean)
        self._weight = _FORGETS * self._weight + 1
