"""Sums, means, variances, covariance and correlation of joined rows, and the curvature that a fit of them needs.

What parties agree to open are entries of the summed statistics S over ``[1 X y]``, and nothing but them: the first row
for sums and means, the diagonal besides for variances, all for covariance and correlation. The rest follows in public.
Each is an agreement of its own (:func:`statistics`); from its result the parties can agree on a scaling for their
models.

Every party masks how its own sums were rounded, so an opened mean square is off by at most ``n·κ·2^-26``, of n parties
and a curvature κ, in the units of the scaling that was agreed. A variance that this could make of nothing is 0.

>>> rows = np.array([[1.0], [2.0], [3.0], [6.0]])
>>> found = statistics_local([(rows[:2], [0.0, 1.0]), (rows[2:], [1.0, 0.0])], opened=["means", "variances"])
>>> found.means.round(6), found.variances.round(6)
(array([3. , 0.5]), array([3.5 , 0.25]))
>>> round(Scaling.from_statistics(found).scales[1], 6)
0.5
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.ledger import Gaussian
from cloister.linear._local import bounds_of, read_parts, reduced
from cloister.linear._noise import Privacy, lift_of
from cloister.linear._plan import GRAM_BITS, Plan
from cloister.linear._roundings import MASK_BITS, own_roundings
from cloister.linear._rows import Part
from cloister.linear._scaling import Scaling
from cloister.linear._summary import pooled, summarise

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from cloister.linear._consent import Signed
    from cloister.party import Identity

__all__ = [
    "OPENED",
    "STATISTICS",
    "Opened",
    "Statistics",
    "entries_of",
    "statistics",
    "statistics_local",
    "statistics_of",
]

Opened = Literal["sums", "means", "variances", "covariance", "correlation"]
OPENED: tuple[Opened, ...] = ("sums", "means", "variances", "covariance", "correlation")
"""What a session can open: the curvature is agreed, not opened."""
Statistic = Opened | Literal["curvature"]
STATISTICS: tuple[Statistic, ...] = (*OPENED, "curvature")

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """What was opened, in units of the data; None what was not.

    Attributes:
        names: Of the features, then ``the response``.
        count: Of all rows.
        sums: (d + 1,).
        means: (d + 1,).
        variances: (d + 1,), of the rows there are (divided by their number); 0 where a column cannot be told from a
            constant.
        covariance: (d + 1, d + 1), as the variances.
        correlation: (d + 1, d + 1), within ±1; NaN in a column that is constant.
        curvature: Of the scaled rows, at most: the mean of the parties' own, weighted by their rows.
        event: With privacy: what this does to each party's records, as a ledger records it.
    """

    names: tuple[str, ...]
    count: int
    sums: Floats | None = None
    means: Floats | None = None
    variances: Floats | None = None
    covariance: Floats | None = None
    correlation: Floats | None = None
    curvature: float | None = None
    event: Gaussian | None = None

    def to_json(self) -> str:
        """An object with the names, the count and what was opened; numbers that are none are null."""
        found: dict[str, Any] = {"names": list(self.names), "count": self.count}
        for name in STATISTICS:
            value = getattr(self, name)
            if value is not None:
                found[name] = _listed(value) if isinstance(value, np.ndarray) else value
        if self.event is not None:
            found["event"] = self.event.as_json()
        return json.dumps(found, allow_nan=False)

    def table(self) -> Table:
        """A line a column, for people."""
        from rich.table import Table

        shown = {"sum": self.sums, "mean": self.means, "variance": self.variances}
        given = {title: values for title, values in shown.items() if values is not None}
        if self.variances is not None:
            given["deviation"] = np.sqrt(self.variances)
        if self.correlation is not None:
            given["correlation with the response"] = self.correlation[-1]
        made = Table(title=f"{self.count} rows", title_justify="left", box=None, pad_edge=False)
        made.add_column("column")
        for title in given:
            made.add_column(title, justify="right")
        for j, name in enumerate(self.names):
            made.add_row(name, *(f"{values[j]:.6g}" for values in given.values()))
        return made


def entries_of(opened: Sequence[Statistic], width: int) -> list[tuple[int, int]]:
    """The entries of S over ``[1 X y]``, of that width, that have to be opened, each of the upper triangle, in order.

    Raises:
        InputError: 2914 when a statistic is unknown or none is asked for.
    """
    if not opened or not set(opened) <= set(STATISTICS):
        raise InputError(2914, expected=f"some of {', '.join(STATISTICS)}", got=", ".join(opened) or "none")
    if {"covariance", "correlation"} & set(opened):
        return [(i, j) for i in range(width) for j in range(i, width)]
    row = [(0, j) for j in range(width)] if {"sums", "means", "variances"} & set(opened) else []
    return row + ([(j, j) for j in range(1, width)] if "variances" in opened else [])


def statistics_of(
    plan: Plan,
    scaling: Scaling,
    opened: Sequence[Statistic],
    values: Sequence[int],
    *,
    curvature: float | None = None,
    privacy: Privacy | None = None,
) -> Statistics:
    """What the opened integers say: the same bits on every machine, for files of models are compared with it.

    Noise is lifted by a public number to be a legal input (``docs/linear.md``, section 14), which is taken off the
    variances again. What it cut off below 0 is not: with much noise on few rows a variance is too large still.

    Args:
        plan: Of the rows.
        scaling: Of the rows.
        opened: What was agreed.
        values: The entries that :func:`entries_of` names, in its order.
        curvature: Where it was agreed.
        privacy: The noise in them.

    Raises:
        InputError: 2914 when there are not that many values, the number of rows is not positive, or a statistic is
            unknown.
    """
    width = plan.columns + 1
    entries = entries_of(opened, width)
    if len(values) != len(entries):
        raise InputError(2914, "not the entries that were agreed", expected=len(entries), got=len(values))
    summed = dict(zip(entries, map(int, values), strict=True))
    count = summed.get((0, 0), 1)
    if count <= 0:
        raise InputError(2914, "an opened number of rows is not positive", got=count)
    centres, scales = np.array(scaling.centres), np.array(scaling.scales)
    unit = Fraction(plan.curvature) / (1 << GRAM_BITS)  # of a mean square of 1
    lifts = Fraction(lift_of(privacy, width)) * plan.parties / (plan.count * unit) if privacy is not None else 0

    def central(i: int, j: int) -> Fraction:
        # exact integers: nothing is lost where a mean is large
        return summed[i, j] - Fraction(summed[0, i] * summed[0, j], count)

    def variance(j: int) -> Fraction:
        found = central(j, j) - lifts
        blur = plan.parties * ((1 << MASK_BITS) + 1) * (1 + abs(Fraction(summed[0, j], count))) ** 2
        return found if found > blur else Fraction(0)

    found: dict[str, Any] = {}
    if (0, 0) in summed:
        means = centres + scales * np.array([summed[0, j] / count for j in range(1, width)])
        found |= {"means": means, "sums": plan.count * means}
    if (1, 1) in summed:
        exact = [variance(j) for j in range(1, width)]
        found["variances"] = np.array([float(one * unit) for one in exact]) * scales * scales
        if (1, 2) in summed:
            inner = np.zeros((width - 1, width - 1))
            for i, j in entries:
                if 0 < i < j and exact[i - 1] and exact[j - 1]:
                    inner[i - 1, j - 1] = inner[j - 1, i - 1] = float(central(i, j) * unit)
            covariance = inner * np.outer(scales, scales) + np.diag(found["variances"])
            roots = np.sqrt(found["variances"])
            with np.errstate(invalid="ignore", divide="ignore"):
                correlation = np.clip(covariance / np.outer(roots, roots), -1.0, 1.0)
            found |= {"covariance": covariance, "correlation": correlation}
    found["curvature"] = curvature
    wanted = {name: value for name, value in found.items() if name in opened}
    event = privacy.event(columns=width, releases=1) if privacy is not None else None
    return Statistics((*scaling.names, "the response"), plan.count, **wanted, event=event)


def statistics_local(
    parts: Sequence[tuple[Any, Any] | Part],
    *,
    opened: Sequence[Statistic] = ("means", "variances", "covariance", "correlation", "curvature"),
    scaling: Scaling | None = None,
    privacy: Privacy | None = None,
) -> Statistics:
    """Statistics of rows that lie in one process, by the arithmetic of a session: what the parties would have got.

    Args:
        parts: As for ``Ridge.fit_local``.
        opened: What is agreed.
        scaling: Public, by default mean and standard deviation of all rows; any within a factor of 30 does.
        privacy: Noise that each party adds; the scaling has to be agreed then.

    Raises:
        InputError: 2914 for an unknown statistic; 2901 for noise without a scaling; else as for a fit.
    """
    rows = read_parts(parts)
    if scaling is None and privacy is not None:
        raise InputError(2901, "noise hides nothing that a scaling taken from the rows tells")
    agreed = scaling or Scaling.of(rows)
    factors = [reduced(agreed.chunks(part), len(agreed.names) + 2, privacy) for part in rows]
    bounds = bounds_of(factors, mean_square=None, curvature=None)
    plan = Plan(method="ridge", **{field.name: getattr(bounds, field.name) for field in fields(bounds)})
    summaries = [summarise(plan, party, factor, agreed.names) for party, factor in enumerate(factors)]
    total, entries = pooled(summaries), entries_of(opened, plan.columns + 1)
    added = np.sum([own_roundings(summary, entries) for summary in summaries], axis=0) if entries else []
    values = [int(total[entry] + more) for entry, more in zip(entries, added, strict=True)]
    return statistics_of(plan, agreed, opened, values, curvature=float(plan.curvature), privacy=privacy)


def statistics(
    agreement: Signed | str | Path,
    features: Any,
    response: Any,
    *,
    identity: Identity,
    home: Path | None = None,
    consent: bool = False,
    book: Path | None = None,
    listen: str | None = None,
) -> Statistics:
    """Statistics together with the other parties of an agreement, who do the same on their own rows at the same time.

    The arguments are those of ``Ridge.fit``, the agreement one of ``type: statistics``.

    Raises:
        InputError: 2915 when the agreement is not of statistics; else as ``Ridge.fit``.
    """
    from cloister.linear._agreed_fit import fit_statistics  # which brings people and networks with it

    return fit_statistics(
        agreement, features, response, identity=identity, home=home, consent=consent, book=book, listen=listen
    )


def _listed(values: Floats) -> Any:
    if values.ndim > 1:
        return [_listed(row) for row in values]
    return [float(value) if math.isfinite(value) else None for value in values]
