"""What an audited run shows, held against what it claims: each finding a test that a right engine seldom fails.

A step releases, in units of the clipping norm, ``Σ contributions + z · noise``. A canary that is in and drawn adds 1
along its direction. So a run that is as it claims to be has, whatever the model and the data are:

====================  ==============================================================================================
``guesses``           coins that are guessed by what was released, no more often right than ε allows
``noise``             in each parameter no less energy than its noise alone would have: a chi-square, plus what
                      records add. One parameter without noise is enough to be seen
``reach``             a canary adds 1 at most, each time: its score with and without being drawn
``rate``              as many rows in all as probability q gives
``sizes``             batches of other sizes: independent draws are seldom all equally many
``once``              canaries drawn once an epoch as often as by chance; shuffling draws each once
``repeats``           nobody twice in a step
``isolation``         outliers whose loss is 0 change nothing (:mod:`cloister.privacy._wager`)
====================  ==============================================================================================

``guesses``, ``rate``, ``sizes``, ``once``, ``repeats`` and ``isolation`` hold without any assumption but the claim.
``noise`` takes the noise for Gaussian, which it claims to be. ``reach`` bounds a sum of increments that are symmetric
if noise is: ``P[S ≥ x √V] ≤ e^(-x²/2)`` (de la Peña 1999); what other records add along a direction, whose signs were
drawn by coins, makes it one of many symmetric things more.

The false alarm that was asked for is shared evenly among the eight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from cloister.errors import IntegrityError
from cloister.privacy._canaries import FIRST, ORDINARY, Directions
from cloister.privacy._tails import few_squares, lower_tail, most_variance, two_sided, upper_tail
from cloister.privacy._wager import Wager

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

__all__ = ["CHECKS", "Finding", "Terms", "Witness"]

CHECKS = ("guesses", "noise", "reach", "rate", "sizes", "once", "repeats", "isolation")


@dataclass(frozen=True, slots=True)
class Finding:
    """One test.

    Attributes:
        name: Of :data:`CHECKS`.
        chance: At most the probability that a run which is as it claims shows this, or more.
        expected: By the claim, in words.
        got: What was seen, in words.
        contradicted: Whether the chance is too small to believe the claim.
    """

    name: str
    chance: float
    expected: str
    got: str
    contradicted: bool

    def as_json(self) -> dict[str, Any]:
        """For a report."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Terms:
    """What is claimed of each step.

    Attributes:
        probability: q: of each record, in each step.
        records: That may be drawn: canaries and outliers included.
        noise: z: the noise's standard deviation over the clipping norm.
        epoch_steps: Steps of an epoch.
        outliers: How many there are.
    """

    probability: float
    records: int
    noise: float
    epoch_steps: int
    outliers: int


@dataclass(slots=True)
class Witness:
    """Sees every step: who was fed, and what was released.

    Args:
        terms: The claim.
        directions: Of the canaries.
        included: ``(m,)``: the coins.
        sizes: Elements of each trained parameter, by name.
    """

    terms: Terms
    directions: Directions
    included: NDArray[np.bool_]
    sizes: Mapping[str, int]
    steps: int = 0
    rows: list[int] = field(default_factory=list)
    repeats: int = 0
    _drawn: list[NDArray[np.int64]] = field(default_factory=list)
    _scores: list[NDArray[np.float64]] = field(default_factory=list)
    _energies: NDArray[np.float64] = field(init=False)
    _wager: Wager = field(init=False)

    def __post_init__(self) -> None:
        self._energies = np.zeros(len(self.sizes))
        self._wager = Wager(self.terms.outliers, self.terms.probability)

    def see(self, marks: Iterable[Tensor], released: Tensor, hint: Tensor | None = None) -> None:
        """A step.

        Args:
            marks: Of the rows that the model was fed for it, micro-batch by micro-batch.
            released: ``(P,)``: its gradient, times the expected batch, over the clipping norm.
            hint: ``(P,)``: where an outlier pushes other examples' gradients, if anywhere.

        Raises:
            IntegrityError: 5860 when it is not finite.
        """
        if not bool(released.isfinite().all()):
            raise IntegrityError(5860, got=f"step {self.steps}")
        fed = torch.cat([ORDINARY * torch.zeros(0, dtype=torch.int64), *marks]).cpu().numpy()
        marked = np.bincount(fed[fed >= FIRST] - FIRST, minlength=len(self.included) + self.terms.outliers)
        self.rows.append(int((fed >= ORDINARY).sum()))
        self.repeats += int((marked > 1).sum())
        self._drawn.append(marked[: len(self.included)])
        self._scores.append(self.directions.scores(released))
        parts = released.double().square().split(list(self.sizes.values()))
        self._energies += np.array([float(part.sum()) for part in parts])
        self._wager.see(released, int(marked[len(self.included) :].sum()), hint)
        self.steps += 1

    # ---- what it shows ------------------------------------------------------------------------------------------

    @property
    def scores(self) -> NDArray[np.float64]:
        """``(m,)``: of each canary, over all steps, of what was released alone."""
        return np.sum(self._scores, axis=0)

    @property
    def pulses(self) -> NDArray[np.float64]:
        """``(m,)``: the same by what stands out: how much likelier each step's score is if the canary comes at times.

        For what changes slowly, as other records' gradients do along a direction, drowns a sum over steps where
        there is little noise. The noise is taken as large as it looks from step to step. Of what was released alone.
        """
        scores = np.stack(self._scores)
        typical = np.median(scores, axis=0)
        spread = max(float(np.median(np.abs(scores - typical))) / 0.6745, 1e-6)
        exponents = np.minimum(((scores - typical) - 0.5) / spread**2, 600.0)
        q = self.terms.probability
        return np.log1p(q * np.expm1(exponents)).sum(0) if q < 1 else exponents.sum(0)

    def reach(self, chance: float) -> tuple[float, float]:
        """What a canary adds each time: as estimated, and a bound that is above the truth with this chance at most."""
        presence, centre, scores = self._contrast()
        weight = float(((presence - centre) * presence).sum())
        if weight <= 0:
            return math.nan, 0.0
        estimate = float(((presence - centre) * scores).sum()) / weight
        spread = math.sqrt(float(np.square((presence - centre) * (scores - estimate * presence)).sum()))
        return estimate, max(0.0, estimate - math.sqrt(-2 * math.log(chance)) * spread / weight)

    def noise(self, chance: float) -> tuple[float, float]:
        """The standard deviation along directions whose canary was not there: as seen, and a bound from above."""
        scores, there = np.stack(self._scores), (np.stack(self._drawn) > 0) & self.included
        silent = scores[~there]
        variance = float(np.square(silent).mean())
        return math.sqrt(variance), math.sqrt(most_variance(silent.size, variance, confidence=1 - chance))

    def checks(self) -> dict[str, tuple[float, str, str]]:
        """Of all findings but the guesses: chance, expected, got."""
        return {
            "noise": self._noise(),
            "reach": self._reach(),
            "rate": self._rate(),
            "sizes": self._sizes(),
            "once": self._once(),
            "repeats": (0.0 if self.repeats else 1.0, "nobody twice in a step", f"{self.repeats} times"),
            "isolation": (
                min(1.0, math.exp(-min(700.0, self._wager.improbability))),
                "outliers without a loss change nothing",
                f"wealth of 10^{self._wager.improbability / math.log(10):.1f} by betting on them",
            ),
        }

    def _noise(self) -> tuple[float, str, str]:
        sizes = list(self.sizes.values())
        ratios = self._energies / (np.array(sizes) * self.steps * max(self.terms.noise, 1e-300) ** 2)
        chances = [few_squares(size * self.steps, ratio) for size, ratio in zip(sizes, ratios, strict=True)]
        least = int(np.argmin(chances))
        shown = math.sqrt(ratios[least]) * self.terms.noise
        got = f"{shown:.4g} in {list(self.sizes)[least]}"
        return min(1.0, len(chances) * chances[least]), f"a deviation of {self.terms.noise:.4g} or more", got

    def _reach(self) -> tuple[float, str, str]:
        presence, centre, scores = self._contrast()
        increments = (presence - centre) * (scores - presence)
        spread = math.sqrt(float(np.square(increments).sum()))
        excess = float(increments.sum())
        distance = excess / spread if spread else math.copysign(math.inf, excess)
        chance = math.exp(-(distance**2) / 2) if distance > 0 else 1.0
        return chance, "1 clipping norm at most", f"{self.reach(0.5)[0]:.3f}"

    def _rate(self) -> tuple[float, str, str]:
        trials, total = self.steps * self.terms.records, sum(self.rows)
        chance = two_sided(trials, self.terms.probability, total)
        return chance, f"about {trials * self.terms.probability:.0f} rows", str(total)

    def _sizes(self) -> tuple[float, str, str]:
        count, q = self.terms.records, self.terms.probability
        half = math.sqrt(count * q * (1 - q)) / 2
        low, high = math.ceil(count * q - half), math.floor(count * q + half)
        near = 1 - upper_tail(count, q, high + 1) - lower_tail(count, q, low - 1)
        got = sum(low <= rows <= high for rows in self.rows)
        expected = f"about {near * self.steps:.0f} of {self.steps} batches of {low} to {high} rows"
        return two_sided(self.steps, min(1.0, max(0.0, near)), got), expected, str(got)

    def _once(self) -> tuple[float, str, str]:
        each, q = self.terms.epoch_steps, self.terms.probability
        epochs = self.steps // each
        if not epochs:
            return 1.0, "an epoch or more", f"{self.steps} steps"
        counts = np.stack(self._drawn[: epochs * each]).reshape(epochs, each, -1).sum(1)
        chance = math.exp(math.log(each) + math.log(q) + (each - 1) * math.log1p(-q)) if q < 1 else float(each == 1)
        got = int((counts == 1).sum())
        expected = f"about {chance * counts.size:.0f} of {counts.size} times once an epoch"
        return two_sided(counts.size, min(1.0, chance), got), expected, str(got)

    def _contrast(self) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
        """Presence of canaries, its mean beforehand, and scores: by draws, which each step has of its own.

        Where everybody is drawn in every step there are only the coins, one for all steps together.
        """
        scores = np.stack(self._scores)
        if self.terms.probability < 1:
            drawn = (np.stack(self._drawn) > 0)[:, self.included]
            return drawn.astype(np.float64), self.terms.probability, scores[:, self.included]
        return self.steps * self.included.astype(np.float64), self.steps / 2, scores.sum(0)
