"""Differential privacy: each party adds the whole noise to its own statistics, before anything else is done with them.

Whatever follows is post-processing: the protocol, its transcript, the certificate's bit, the model, and a coalition of
all the others. So (ε, δ) of a party's records holds by that party's noise alone, even if every assumption of the
protocol fails.

1. A scaled row ``[1 x y]`` is shrunk to a norm of at most C, rounded to 12 bits, and shrunk again where rounding went
   beyond. The 1 stays: how many rows there are is public.
2. The Gram matrix of these integers is exact: sums stay below 2^53 in floats, then below 2^63 in integers.
3. To every entry of its upper triangle, but the count, goes a draw of the exact discrete Gaussian of σ = multiplier·C².
   One record moves the triangle by ``‖v vᵀ‖ ≤ ‖v‖² ≤ C²``, against a record of nothing but the 1.
4. What is left is made a legal input again, in public steps: the count's Schur complement, plus ν = σ(2√D + 6) on the
   diagonal, which is more than the noise's own norm but rarely, eigenvalues cut off at 0.

A row of a Newton round has weights where others have the 1: there the count has noise as all entries do.

The scaling has to be agreed: one that is taken from the rows tells of them without noise.

>>> privacy = Privacy(clip=4.0, noise_multiplier="10")
>>> privacy.event(columns=91, releases=1).noise_multiplier
'10'
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.ledger import Book, Charge, Event, Gaussian, Method, Relation, amount, exact, noise_slack
from cloister.linear._gaussian import discrete_gaussian
from cloister.linear._gram import RowFactor, triangular
from cloister.linear._plan import LEAST_WEIGHT

__all__ = ["Privacy", "charge", "lift_of", "noised"]

_BITS = 12
_ONE = 1 << _BITS
_MOST_CLIP = 64
_EXACT = 1 << 53  # below, sums of integers in float64 are exact in any order
_MOST_SUM = 1 << 62
_MOST_SIGMA = 1 << 55  # a draw is below 2^61 but with a chance of e^-2048, so sum and draw stay below 2^63


@dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    """How much one record may say, and the noise that hides it: the same for all parties, part of the agreement.

    Attributes:
        clip: C: the greatest norm of a scaled ``[1 x y]``; above 1, at most 64.
        noise_multiplier: σ/C².
        unit: Whose presence is hidden. One row is one unit.

    Raises:
        InputError: 2901 when ``clip`` is out of its range or there is more noise than sums hold, 2801 when the
            multiplier is no positive number.
    """

    clip: str | float
    noise_multiplier: str | float
    unit: str = "record"

    def __post_init__(self) -> None:
        if not 1 < self._square <= _MOST_CLIP**2:
            expected, hint = f"above 1, at most {_MOST_CLIP}", "the 1 of a row counts too: try 4"
            raise InputError(2901, "clip is out of its range", expected=expected, got=self.clip, hint=hint)
        if self.sigma > _MOST_SIGMA:
            most = math.floor(_MOST_SIGMA / self.reach)
            hint = "give less noise, or agree on a smaller clip"
            expected, got = f"at most {most} with this clip", self.noise_multiplier
            raise InputError(2901, "the noise exceeds what sums hold", expected=expected, got=got, hint=hint)
        self.event(columns=2, releases=1)

    @property
    def reach(self) -> int:
        """C² in units of the rounded Gram matrix, 2^-24, rounded down: what one record moves it by at most."""
        return math.floor(self._square * _ONE**2)

    @property
    def sigma(self) -> Fraction:
        """σ in the same units."""
        return exact(str(self.noise_multiplier)) * self._square * _ONE**2

    @property
    def _square(self) -> Fraction:
        return exact(str(self.clip)) ** 2

    def event(self, *, columns: int, releases: int) -> Gaussian:
        """What a fit does to each party's records.

        Args:
            columns: D + 1, of ``[1 X y]``.
            releases: 1, or a Newton fit's rounds and the fit that they begin from.
        """
        draws = releases * columns * (columns + 1) // 2
        return Gaussian(
            unit=self.unit,
            relation=Relation.REPLACE_SPECIAL,
            noise_multiplier=amount(str(self.noise_multiplier), what="a noise multiplier"),
            count=releases,
            slack=noise_slack(sigma=self.sigma, draws=draws, sampler_distance=Fraction(0)),
        )


def charge(books: Sequence[Book], event: Event, *, delta: str, by: Method = Method.PLD) -> list[Book]:
    """The books of all parties after this event: to be stored before any data are opened.

    Each charge has an id of its own: noise is drawn anew for every fit, so none is ever the same charge twice.

    Raises:
        InputError: 2802 when a book is of another unit or relation.
        BudgetError: 7801 when a budget would be exceeded; then none is charged.
    """
    return [
        book.charge(
            Charge(
                id=secrets.token_hex(32),
                owner=book.budget.owner,
                unit=event.unit,
                relation=event.relation,
                events=(event,),
                delta=amount(delta, what="delta"),
            ),
            after=book.head,
            by=by,
        )
        for book in books
    ]


def noised(chunks: Iterable[NDArray[np.float64]], privacy: Privacy, *, width: int, counted: bool = True) -> RowFactor:
    """The factor of a party's rows, with all the noise in it.

    Args:
        chunks: Scaled ``[1 X y]``, (rows, width), finite.
        privacy: What was agreed.
        width: D + 1.
        counted: The first column is 1 and its sum is public; False: it holds weights of at most 1.

    Raises:
        InputError: 2901 when there are so many rows that sums are not exact.
    """
    total, count = np.zeros((width, width), np.int64), 0
    for chunk in chunks:
        clipped = clip_rows(chunk, privacy, counted=counted)
        count += len(clipped)
        most = privacy.reach
        if len(clipped) * most >= _EXACT or count * most >= _MOST_SUM:
            raise InputError(2901, "so many rows cannot be summed exactly", expected="a smaller clip")
        total += (clipped.T @ clipped).astype(np.int64)
    for i in range(width):
        for j in range(i if i else int(counted), width):
            total[i, j] += discrete_gaussian(privacy.sigma**2)
    upper = np.triu(total).astype(np.float64)
    gram = (upper + np.triu(upper, 1).T) / _ONE**2
    return RowFactor.of(_legal(gram, lift_of(privacy, width), count, counted=counted), count)


def lift_of(privacy: Privacy, width: int) -> float:
    """ν: what each party's sums of squares are greater by, in scaled units, of ``[1 X y]`` of that width."""
    return float(privacy.sigma) / _ONE**2 * (2 * math.sqrt(width - 1) + 6)


def clip_rows(chunk: NDArray[np.float64], privacy: Privacy, *, counted: bool) -> NDArray[np.float64]:
    """Rows as integers in units of 2^-12, each of a norm of at most C: exactly."""
    first = int(counted)
    most = privacy.reach - _ONE**2 * first
    with np.errstate(over="ignore"):
        lengths = np.sqrt((chunk[:, first:] ** 2).sum(axis=1)) * _ONE
    shrunk = chunk[:, first:] * (_ONE * np.minimum(1.0, math.sqrt(most) / np.maximum(lengths, 1.0)))[:, None]
    rounded = np.rint(shrunk)
    beyond = (rounded**2).sum(axis=1) > most
    rounded[beyond] = np.trunc(shrunk[beyond])
    # what floats rounded up is left out: the bound holds without trust in them
    rounded[~((rounded**2).sum(axis=1) <= most)] = 0
    return np.column_stack([np.full(len(chunk), float(_ONE)), rounded]) if counted else rounded


def _legal(gram: NDArray[np.float64], lift: float, count: int, *, counted: bool) -> NDArray[np.float64]:
    """A positive semi-definite matrix with the count in its corner, from a noisy one."""
    if not counted:
        gram = gram + lift * np.eye(len(gram))
        factor = triangular(gram)
        legal = factor.T @ factor
        corner = min(max(legal[0, 0], float(LEAST_WEIGHT) * count), float(count))
        scale = np.ones(len(gram))
        scale[0] = math.sqrt(corner / max(legal[0, 0], 1e-300))
        return legal * np.outer(scale, scale)
    sums = gram[0, 1:]
    inner = triangular(gram[1:, 1:] - np.outer(sums, sums) / count + lift * np.eye(len(sums)))
    out = gram.copy()
    out[0, 0] = count
    out[1:, 1:] = inner.T @ inner + np.outer(sums, sums) / count
    return out
