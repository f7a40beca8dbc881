"""What the agreement fixes about one fit: sizes, penalties and steps, and the integers that the program computes with.

Rules:

* Everything here is public, and everything that a session opens follows from it in number, order and shape.
* Reals are exact fractions. An integer constant is rounded from its fraction, never by a float's own rounding, so all
  parties hold the same one.
* Units: columns are scaled by the agreement; then every entry is divided by √(N·κ), with N rows in all and κ the agreed
  curvature. So the pooled Gram matrix of ``[1 X]`` is at most the identity, and a penalty λ appears as λ/κ.

>>> squares = (Fraction(2),) * 3
>>> plan = Plan(method="lasso", rows=(600, 400), curvature=Fraction(8), mean_squares=squares, l1=Fraction(1, 10))
>>> plan.columns, plan.count, constants(plan).split == round(2**46 * Fraction(2, 5) / 8)
(3, 1000, True)
>>> sum(size for _, size in roundings(plan)) == 20 * (16 * 3 + 3 + 2) + 3 + 2 + 1
True
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from cloister.errors import InputError
from cloister.linear._chebyshev import STEP_BITS, coefficients

__all__ = [
    "COMPARE_BITS",
    "COUNT_SLACK_BITS",
    "CURVATURE_SLACK_BITS",
    "FACTOR_BITS",
    "FINE_BITS",
    "GRAM_BITS",
    "ITERATE_BITS",
    "LEAST_WEIGHT",
    "MOST_FEATURES",
    "MOST_PARTIES",
    "PARTIES_HINT",
    "RELAXATION",
    "RELAXATION_BITS",
    "RESOLUTION_BITS",
    "SHIFT_BITS",
    "Constants",
    "Plan",
    "constants",
    "exact",
    "roundings",
]

MOST_PARTIES, MOST_FEATURES = 8, 300

FACTOR_BITS = 23
"""Fractional bits of a triangular factor."""
GRAM_BITS = 2 * FACTOR_BITS
ITERATE_BITS = 36
"""Fractional bits of iterates: an ulp is 2^-36."""
SHIFT_BITS = GRAM_BITS + STEP_BITS
"""That a step's result is truncated by."""
RELAXATION, RELAXATION_BITS = Fraction(29, 16), 4
RESOLUTION_BITS, FINE_BITS = 18, 24
"""Fractional bits to which a threshold is decided: in a round, in the certificate."""
COMPARE_BITS = 20
"""Low bits (of ulp²) that the certificate's comparison leaves out."""

CURVATURE_SLACK_BITS, COUNT_SLACK_BITS = 12, 14
"""Of what is proven: the curvature of all rows together up to a factor 1 + 2^-12, each number of rows up to 1 ± 2^-14.

Of a party's curvature what is left has a factor up to Z, which is at most D times its greatest entry, whatever the
party's share: 2^-34·D·2^56 of 2^46 for D = 301, and the sum of eight is less than 2^-12.
"""

LEAST_WEIGHT = Fraction(1, 256)
"""Of a row in a round of Newton's method, where the greatest is 1: so a count of rows is 1/256 to 1 of theirs."""

_BEYOND = Fraction(1, 1024)  # that the steps' interval reaches beyond the proven spectrum
_MOST_MEAN_SQUARE = 1024  # S_i stays below 2^63, whatever its rows
_MOST_STEPS = 500
_HINTS = {  # of what is not given by its own name
    "rows of a party": "leave out a party that has no rows",
    "mean square": "agree on scales that fit the columns",
    "l1": "it follows from alpha and l1_ratio, or C and the number of rows: give a smaller penalty",
    "l2": "it follows from alpha or C and the number of rows: give a smaller penalty",
}
PARTIES_HINT = "one party alone needs no protocol; of more than 8, those that trust each other join their rows first"


def exact(number: object) -> Fraction:
    """A number as it was written: 0.1 is a tenth.

    >>> exact("0.1"), exact(-2.5e-3)
    (Fraction(1, 10), Fraction(-1, 400))

    Raises:
        InputError: 2901 when it is none.
    """
    try:
        return Fraction(str(number))
    except (ValueError, ZeroDivisionError):
        raise InputError(2901, "not a number", got=number, hint="give a finite number, such as 0.1") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One fit, as it was agreed.

    Attributes:
        method: ``ridge`` is solved by Chebyshev's iteration, ``lasso`` (also the elastic net) by ADMM around it.
        rows: Of each party.
        curvature: κ: the mean of the parties' curvatures, weighted by their rows.
        curvatures: κ_i, the greatest eigenvalue that party i's own mean of ``[1 X]ᵀ[1 X]`` may have. Empty: κ for each.
        mean_squares: Of each scaled feature, then of the response, that no party may exceed.
        l1: λ1, in units of the scaled response; positive for ``lasso``.
        l2: λ2.
        theta: ADMM's penalty in standardised units.
        rounds: Of ADMM.
        half: Steps; each round takes them twice, so that what is left of the error is a square, hence positive.
        steps: Of ``ridge``.
        floor: Curvature that ``ridge`` takes as the least, besides λ2.
        tolerance: The certificate's: of the proximal gradient, in standardised units.
        reach: Of a round of Newton's method: the greatest Euclidean norm, and the greatest sum of magnitudes, of the
            public point that it begins at. Its rows have weights, and the first column holds their roots. Else None.

    Raises:
        InputError: 2909 when there are too many features or not 2 to 8 parties; 2901 when a number is out of its range.
    """

    method: Literal["ridge", "lasso"]
    rows: tuple[int, ...]
    curvature: Fraction
    mean_squares: tuple[Fraction, ...]
    curvatures: tuple[Fraction, ...] = ()
    l1: Fraction = Fraction(0)
    l2: Fraction = Fraction(0)
    theta: Fraction = Fraction(2, 5)
    rounds: int = 20
    half: int = 8
    steps: int = 200
    floor: Fraction = Fraction(3, 100)
    tolerance: Fraction = Fraction(1, 4096)
    reach: tuple[Fraction, Fraction] | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.parties <= MOST_PARTIES:
            expected = f"2 to {MOST_PARTIES}"
            raise InputError(2909, "not that many parties", expected=expected, got=self.parties, hint=PARTIES_HINT)
        if not 1 <= self.features <= MOST_FEATURES:
            expected, hint = f"1 to {MOST_FEATURES}", "select features"
            raise InputError(2909, "not that many features", expected=expected, got=self.features, hint=hint)
        for name, value, least, most in (
            ("rows of a party", min(self.rows), 1, None),
            ("mean square", min(self.mean_squares), Fraction(1, 1024), None),
            ("mean square", max(self.mean_squares), 0, _MOST_MEAN_SQUARE),
            ("curvature", self.curvature, 1, 1 << 16),
            ("l1", self.l1, 0, 1 << 10),
            ("l2", self.l2, 0, 1 << 10),
            ("theta", self.theta, Fraction(1, 1024), 1 << 10),
            ("floor", self.floor, Fraction(1, 1 << 16), 1),
            ("rounds", self.rounds, 1, _MOST_STEPS),
            ("half", self.half, 2, 64),
            ("steps", self.steps, 2, _MOST_STEPS),
            ("tolerance", self.tolerance, Fraction(1, 1 << 20), 1),
        ):
            if value < least or (most is not None and value > most):
                expected = f"{least} or more" if most is None else f"{least} to {most}"
                hint = _HINTS.get(name, f"give {name} a value of this range")
                raise InputError(2901, f"{name} is out of its range", expected=expected, got=float(value), hint=hint)
        if self.method == "lasso" and not self.l1:
            raise InputError(2901, "no l1 penalty", hint="give a positive alpha and l1_ratio, or fit a ridge model")
        if self.reach is not None and not 0 <= self.reach[0] <= self.reach[1] <= 1 << 10:
            hint = "give a smaller reach"
            raise InputError(
                2901, "reach is out of its range", expected="0 to 1024", got=float(self.reach[1]), hint=hint
            )
        self._require_shares()

    def _require_shares(self) -> None:
        if self.curvatures:
            weighted = sum(n * k for n, k in zip(self.rows, self.curvatures, strict=True))
            if min(self.curvatures) < 1 or weighted != self.count * self.curvature:
                raise InputError(2901, "the curvature is not the weighted mean of the parties' own")
        least = Fraction(min(self.rows)) / (self.count * self.curvature)
        if least < Fraction(1, 1 << 2 * (FACTOR_BITS - COUNT_SLACK_BITS)):
            hint = "leave the smallest party out, or agree on a smaller curvature"
            raise InputError(2901, "a party has too small a share of the rows", got=float(least), hint=hint)

    @property
    def parties(self) -> int:
        """How many take part."""
        return len(self.rows)

    @property
    def count(self) -> int:
        """N: rows in all."""
        return sum(self.rows)

    @property
    def features(self) -> int:
        """d, without the intercept."""
        return len(self.mean_squares) - 1

    @property
    def columns(self) -> int:
        """D = d + 1: of ``[1 X]``."""
        return len(self.mean_squares)

    def share(self, party: int) -> Fraction:
        """n_i·κ_i / (N·κ): of the identity that bounds the pooled Gram matrix."""
        own = self.curvatures[party] if self.curvatures else self.curvature
        return Fraction(self.rows[party]) * own / (self.count * self.curvature)


@dataclass(frozen=True, slots=True)
class Constants:
    """The integers of a plan.

    Attributes:
        split: θ̂ = 2^46·θ/κ; 0 for ridge.
        penalty: λ̂ = 2^46·λ2/κ of every column, 0 for the intercept.
        threshold: τ̂ = 2^36·λ1/θ, of a round.
        fine_threshold: κ̂ = 2^36·λ1/κ, of the certificate.
        steps: (β, γ) of each step, in units of 2^-6.
        residual: The greatest sum of squares that the certificate accepts, in ulp².
    """

    split: int
    penalty: tuple[int, ...]
    threshold: int
    fine_threshold: int
    steps: tuple[tuple[int, int], ...]
    residual: int


@lru_cache(maxsize=64)
def constants(plan: Plan) -> Constants:
    """The integers of ``plan``; computed once."""
    kappa, theta = plan.curvature, plan.theta
    penalty = (0, *([round(2**GRAM_BITS * plan.l2 / kappa)] * plan.features))
    residual = (2**ITERATE_BITS * plan.tolerance / kappa) ** 2
    if plan.method == "ridge":
        low = (plan.l2 + plan.floor) / kappa
        steps = coefficients(low, low + 1 + _BEYOND, plan.steps)
        return Constants(0, penalty, 0, 0, steps, int(residual))
    low = theta / kappa
    return Constants(
        split=round(2**GRAM_BITS * low),
        penalty=penalty,
        threshold=round(2**ITERATE_BITS * plan.l1 / theta),
        fine_threshold=round(2**ITERATE_BITS * plan.l1 / kappa),
        steps=coefficients(low, low + 1 + plan.l2 / kappa + _BEYOND, plan.half),
        residual=int(residual),
    )


def roundings(plan: Plan) -> Iterator[tuple[int, int]]:
    """(bits, values) of each truncation, threshold and comparison in the program's order: the shape of a coin table."""
    step = (SHIFT_BITS, plan.columns)
    if plan.method == "ridge":
        yield from (step for _ in range(plan.steps))
    else:
        for _ in range(plan.rounds):
            yield from (step for _ in range(2 * plan.half))
            yield RELAXATION_BITS, plan.columns
            yield ITERATE_BITS - RESOLUTION_BITS, plan.features
    yield step
    if plan.method == "lasso":
        yield ITERATE_BITS - FINE_BITS, plan.features
    yield COMPARE_BITS, 1
