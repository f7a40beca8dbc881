"""A fit in one process, with the arithmetic of a session and none of its secrecy: what the parties would have got.

Rows of all parties lie in one place here. It answers, before anybody signs: does this agreement converge, which bounds
do our data need, what does the fixed point cost in accuracy?
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.linear._budget import require_sound
from cloister.linear._emulator import CoinTable, Emulator
from cloister.linear._gram import RowFactor
from cloister.linear._noise import Privacy, noised
from cloister.linear._plan import ITERATE_BITS, MOST_PARTIES, PARTIES_HINT, Plan, exact
from cloister.linear._program import fit
from cloister.linear._rows import Part, read_rows
from cloister.linear._scaling import Scaling
from cloister.linear._summary import pooled, summarise

__all__ = ["Bounds", "Fitted", "bounds_of", "fit_factors", "fit_rows", "read_parts", "reduced"]

_UNIT = 64  # bounds that are taken from data are rounded up to multiples of 1/64
_ROOM = 1 + 2.0**-9  # and leave the rounding of the factors some room
_LEAST_MEAN_SQUARE = Fraction(2)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What every party's rows keep, beside the penalties: the part of a plan that data decide.

    Attributes:
        rows: Of each party.
        mean_squares: Of the features, then of the response.
        curvature: κ.
        curvatures: κ_i, or empty when κ holds for each party.
    """

    rows: tuple[int, ...]
    mean_squares: tuple[Fraction, ...]
    curvature: Fraction
    curvatures: tuple[Fraction, ...]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A model of scaled columns, the intercept first, in ulp of 2^-36, with what it was fitted by."""

    ulps: tuple[int, ...]
    plan: Plan
    scaling: Scaling

    @property
    def model(self) -> tuple[float, ...]:
        """In scaled units."""
        return tuple(entry / 2**ITERATE_BITS for entry in self.ulps)


def read_parts(parts: Sequence[tuple[Any, Any] | Part]) -> list[Part]:
    """The rows of each party; raises 2909 unless there are 2 to 8, else as :func:`cloister.linear._rows.read_rows`."""
    if not 2 <= len(parts) <= MOST_PARTIES:
        expected = f"2 to {MOST_PARTIES}"
        raise InputError(2909, "not that many parties", expected=expected, got=len(parts), hint=PARTIES_HINT)
    return [read_rows(*part) if isinstance(part, tuple | list) else part for part in parts]


def fit_rows(
    parts: Sequence[Part],
    *,
    scaling: Scaling | None,
    mean_square: object,
    curvature: object,
    plan_of: Callable[[Bounds, Scaling], Plan],
    coins: CoinTable | None = None,
    privacy: Privacy | None = None,
) -> Fitted:
    """Scales, summarises and fits, each party's rows by themselves.

    Args:
        parts: Of each party.
        scaling: Public; by default mean and standard deviation of all rows.
        mean_square: Of every scaled column, agreed; None takes what these rows need.
        curvature: κ, agreed; None takes each party's own.
        plan_of: Makes the plan.
        coins: Of all roundings; drawn by default.
        privacy: Noise that each party adds.

    Raises:
        InputError: 2901 to 2909, as the agreement, the columns and the bounds have it.
        RefusedError: 3902 when the fit did not converge.
    """
    scaling = scaling or Scaling.of(parts)
    factors = [reduced(scaling.chunks(part), len(scaling.names) + 2, privacy) for part in parts]
    plan = plan_of(bounds_of(factors, mean_square=mean_square, curvature=curvature), scaling)
    return Fitted(fit_factors(plan, factors, scaling.names, coins=coins), plan, scaling)


def fit_factors(
    plan: Plan,
    factors: Sequence[RowFactor],
    names: Sequence[str],
    *,
    coins: CoinTable | None = None,
    offset: Sequence[int] = (),
) -> tuple[int, ...]:
    """The emulator's model of these factors, in ulp; raises as :func:`fit_rows`."""
    require_sound(plan)
    summaries = [summarise(plan, i, factor, names) for i, factor in enumerate(factors)]
    return fit(Emulator(plan, coins or CoinTable.draw(plan)), plan, pooled(summaries), offset)


def reduced(
    chunks: Iterable[NDArray[np.float64]], width: int, privacy: Privacy | None, *, counted: bool = True
) -> RowFactor:
    """The factor of scaled rows, with noise where it was agreed; see :func:`cloister.linear._noise.noised`."""
    if privacy is not None:
        return noised(chunks, privacy, width=width, counted=counted)
    factor = RowFactor(width)
    for chunk in chunks:
        factor.add(chunk)
    return factor


def bounds_of(factors: Sequence[RowFactor], *, mean_square: object, curvature: object) -> Bounds:
    """The agreed bounds, or the least round ones that these factors keep."""
    rows = tuple(factor.count for factor in factors)
    width = factors[0].width - 1
    if mean_square is None:
        found = [max(values) for values in zip(*(factor.mean_squares()[1:] for factor in factors), strict=True)]
        mean_squares = tuple(max(_LEAST_MEAN_SQUARE, _up(value)) for value in found)
    else:
        mean_squares = (exact(mean_square),) * width
    if curvature is not None:
        return Bounds(rows, mean_squares, exact(curvature), ())
    curvatures = tuple(_up(factor.curvature()) for factor in factors)
    weighted = sum((n * own for n, own in zip(rows, curvatures, strict=True)), Fraction(0))
    return Bounds(rows, mean_squares, weighted / sum(rows), curvatures)


def _up(value: float) -> Fraction:
    if not math.isfinite(value):
        raise InputError(
            2902, "a column's squares are beyond all numbers", hint="agree on a scaling that fits the data"
        )
    return Fraction(math.ceil(value * _ROOM * _UNIT), _UNIT)
