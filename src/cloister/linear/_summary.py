"""What a party puts into a fit: its factor in integers, their exact Gram matrix, and the bounds, checked at home.

``R_i = round(2^23·R/√(N·κ))`` is upper triangular, and its d + 2 rows are themselves a legal data set; ``S_i =
R_iᵀR_i`` holds over the integers. What a party could not prove in a session it refuses here, before anybody hears of
it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.linear._gram import RowFactor
from cloister.linear._plan import (
    COUNT_SLACK_BITS,
    FACTOR_BITS,
    GRAM_BITS,
    LEAST_WEIGHT,
    Plan,
)

__all__ = ["Summary", "pooled", "summarise"]

_NEAR = 1 - Fraction(1, 1 << 20)  # what is left must have a Cholesky factor in float64


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Summary:
    """One party's input: as secret as its rows.

    Attributes:
        factor: R_i, (D+1, D+1) int64, upper triangular.
        statistics: S_i = R_iᵀR_i, (D+1, D+1) int64, exact.
        correction: What the unrounded factor's Gram matrix rounds to, less S_i: (D+1, D+1) int64.
    """

    factor: NDArray[np.int64]
    statistics: NDArray[np.int64]
    correction: NDArray[np.int64]

    def __repr__(self) -> str:
        return f"<Summary of {len(self.factor)} columns>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a summary cannot be pickled")


def summarise(plan: Plan, party: int, rows: RowFactor, names: Sequence[str]) -> Summary:
    """One party's integers, once its rows keep every bound of the plan.

    Args:
        plan: What was agreed.
        party: Its place in the plan.
        rows: The factor of its scaled ``[1 X y]``.
        names: Of the features, for messages.

    Raises:
        InputError: 2906 when there are not D + 1 columns, 2907 when the rows are not as many as declared, 2902 when a
            column exceeds its mean square, 2903 when the rows' curvature exceeds the party's.
    """
    if rows.width != plan.columns + 1:
        raise InputError(2906, expected=f"{plan.features} features", got=f"{rows.width - 2}")
    if rows.count != plan.rows[party]:
        raise InputError(2907, expected=plan.rows[party], got=rows.count)
    _require_mean_squares(plan, rows.mean_squares(), names)
    scale = 2.0**FACTOR_BITS / math.sqrt(plan.count * plan.curvature)
    triangle = rows.triangle * scale
    factor = np.rint(triangle).astype(np.int64)
    statistics = factor.T @ factor
    _require_integers(plan, party, statistics, names)
    _require_weights(plan, party, statistics)
    _require_curvature(plan, party, statistics)
    return Summary(factor, statistics, np.rint(triangle.T @ triangle).astype(np.int64) - statistics)


def pooled(summaries: Sequence[Summary]) -> NDArray[np.int64]:
    """S, the sum of all parties' statistics."""
    return np.sum([summary.statistics for summary in summaries], axis=0)


def _require_mean_squares(plan: Plan, found: NDArray[np.float64], names: Sequence[str]) -> None:
    for name, most, value in zip((*names, "the response"), plan.mean_squares, found[1:], strict=True):
        if not value <= float(most) * (1 + 1e-3):  # the integers decide; this keeps them from overflowing
            _refuse(name, most, value)


def _require_integers(plan: Plan, party: int, statistics: NDArray[np.int64], names: Sequence[str]) -> None:
    unit = Fraction(plan.rows[party] << GRAM_BITS) / (plan.count * plan.curvature)  # of a mean square of 1
    for name, most, value in zip((*names, "the response"), plan.mean_squares, np.diag(statistics)[1:], strict=True):
        if int(value) > unit * most:
            _refuse(name, most, float(int(value) / unit))


def _require_weights(plan: Plan, party: int, statistics: NDArray[np.int64]) -> None:
    """Of a round of Newton's method: the corner is from 1/256 to 1 of the rows; of others it is their number."""
    unit = Fraction(plan.rows[party] << GRAM_BITS) / (plan.count * plan.curvature)
    share, slack = int(statistics[0, 0]) / unit, Fraction(1, 1 << COUNT_SLACK_BITS)
    least = 1 if plan.reach is None else LEAST_WEIGHT
    if not least * (1 - slack) <= share <= 1 + slack:
        raise InputError(2907, "the first column does not hold the rows", expected=float(least), got=float(share))


def _refuse(name: str, most: Fraction, found: float) -> NoReturn:
    raise InputError(
        2902, f"column '{name}' exceeds its agreed mean square", expected=f"at most {float(most):g}", got=f"{found:.4g}"
    )


def _require_curvature(plan: Plan, party: int, statistics: NDArray[np.int64]) -> None:
    most = plan.share(party) * (1 << GRAM_BITS)
    columns = plan.columns
    found = Fraction(float(np.linalg.eigvalsh(statistics[:columns, :columns].astype(np.float64))[-1]))
    if found > most * _NEAR:
        own = plan.curvatures[party] if plan.curvatures else plan.curvature
        needed = math.ceil(found / most / _NEAR * own * 64) / 64
        raise InputError(2903, expected=f"a curvature of at least {needed:g}", got=f"{float(own):g}")
