"""Newton's method for logistic models, with every iterate released: rounds of one linear fit each.

At a public point w, with scores s = [1 x]·w, chances π = 1/(1 + e^-s) and labels t in {0, 1}, four times the loss is

    ½ Σ ω (s' - s)² - 4 Σ (t - π)(s' - s) + …            ω = 4π(1 - π), from 0 to 1

in the next scores s': a least-squares fit of the rows ``[√ω, √ω x, ρ]``, ``ρ = 4(t - π)/√ω``, that begins at w, with
four times the penalties. So curvature and mean squares of weighted columns keep the bounds of the unweighted ones.

* Weights below 1/256 are taken as 1/256, so that no residual is beyond bounds. That slows a round down and moves no
  fixed point: where the gradient vanishes, it does for any weights. (Cutting π off instead would move it.)
* A round never fails for what a party's rows are: where its residuals exceed their agreed mean square, their column is
  shortened to it. All that the others see of it is a shorter step. (Where shares are so small that rounding takes more
  than 2^-9, it may fail at home: ``docs/linear.md``, section 20.)
* What a round begins at is public; one beyond the agreed reach is refused by all alike, before it is computed.

*Leaks.* Everybody learns every iterate and a certificate's bit a round, not only the last. A cheater may use other rows
in each round, all within the bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from cloister.errors import RefusedError
from cloister.linear._gram import RowFactor
from cloister.linear._plan import ITERATE_BITS, LEAST_WEIGHT, Plan
from cloister.linear._scaling import Scaling

__all__ = ["PENALTY", "QUADRATIC", "RESIDUAL", "newton", "newton_plan", "require_reach", "weighted", "within"]

QUADRATIC = Fraction(85635, 1 << 20)
"""b_2 of the logistic loss in quadratic statistics, to 2^-20."""
PENALTY = 4
"""Times the logistic loss's penalties over N are those of a round."""
RESIDUAL = Fraction(6)
"""The mean square of ρ that is agreed: near the optimum it is about 4."""

_ROOM = 1 - 2.0**-9  # that rounding a factor to integers may take


def newton_plan(plan: Plan, *, l1: Fraction, l2: Fraction, reach: Fraction) -> Plan:
    """Of each round, from that of the fit before them.

    Args:
        plan: Of the same rows with responses.
        l1: Of a round: 4·l1_ratio/(C·N).
        l2: 4·(1 - l1_ratio)/(C·N).
        reach: The greatest norm of a point that a round begins at; with an l1 penalty the greatest sum of magnitudes.

    Raises:
        InputError: 2901 when a number is out of its range.
    """
    total = reach if l1 else reach * (math.isqrt(plan.columns - 1) + 1)
    return replace(plan, mean_squares=(*plan.mean_squares[:-1], RESIDUAL), l1=l1, l2=l2, reach=(reach, total))


def newton(
    plan: Plan, first: Sequence[int], *, rounds: int, fit_once: Callable[[tuple[int, ...]], tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """All iterates, the first among them.

    Args:
        plan: Of a round.
        first: D integers in ulp: the intercept, then the coefficients for scaled columns.
        rounds: How many.
        fit_once: One round that begins at the given point, :func:`cloister.linear._program.fit` with it as offset:
            on the emulator, or between parties.

    Raises:
        RefusedError: 3902 when a round would begin beyond the plan's reach, or did not converge.
    """
    points = [tuple(first)]
    for _ in range(rounds):
        require_reach(plan, points[-1])
        points.append(fit_once(points[-1]))
    return points


def require_reach(plan: Plan, point: Sequence[int]) -> None:
    """Raises 3902 when a round may not begin at ``point``: the bounds would not hold."""
    length, total = plan.reach or (Fraction(0), Fraction(0))
    far = sum(entry**2 for entry in point) > (length * 2**ITERATE_BITS) ** 2
    if far or sum(map(abs, point)) > total * 2**ITERATE_BITS:
        hint = "agree on a greater reach, or on a greater penalty where classes are all but separated"
        raise RefusedError(3902, "an iterate is beyond the agreed reach", expected=float(length), hint=hint)


def weighted(
    chunks: Iterable[NDArray[np.float64]], scaling: Scaling, point: Sequence[int]
) -> Iterator[NDArray[np.float64]]:
    """Rows of a round, ``[√ω √ω·X ρ]``.

    Args:
        chunks: Scaled ``[1 X y]`` of labels ±1.
        scaling: Theirs.
        point: In ulp.
    """
    weights = np.array([entry / 2**ITERATE_BITS for entry in point])
    zero = -scaling.centres[-1] / scaling.scales[-1]
    for chunk in chunks:
        chances = 0.5 + 0.5 * np.tanh(chunk[:, :-1] @ weights / 2)
        roots = np.sqrt(np.maximum(4 * chances * (1 - chances), float(LEAST_WEIGHT)))
        rows = chunk * roots[:, None]
        rows[:, -1] = 4 * ((chunk[:, -1] > zero) - chances) / roots
        yield rows


def within(plan: Plan, party: int, factor: RowFactor) -> RowFactor:
    """A factor that keeps the plan's bounds: columns that exceed theirs are shortened, a steep one as a whole."""
    most = np.array([1 / _ROOM, *map(float, plan.mean_squares)]) * _ROOM
    factor = factor.scaled(np.minimum(1, np.sqrt(most / np.maximum(factor.mean_squares(), 1e-300))))
    own = float(plan.curvatures[party] if plan.curvatures else plan.curvature) * _ROOM
    shorter = min(1.0, math.sqrt(own / max(factor.curvature(), 1e-300)))
    return factor if shorter == 1 else factor.scaled(np.append(np.full(factor.width - 1, shorter), 1.0))
