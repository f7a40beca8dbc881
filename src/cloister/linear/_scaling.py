"""Public affine scaling: what a column's zero and unit are, the same for every party, part of the agreement.

A penalty acts on scaled columns, and all bounds are in their units, so a scale that is far off shows as a mean square
that nobody may exceed. Every party scales its own rows; coefficients are given back in the units of the data.

>>> from cloister.linear._rows import read_rows
>>> scaling = Scaling.of([read_rows([[1.0], [3.0]], [0.0, 10.0])])
>>> scaling.centres, scaling.scales
((2.0, 5.0), (1.0, 5.0))
>>> scaling.unscale([0.0, 1.0])  # one unit of x1 for one of the response
(array([5.]), -5.0)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.linear._rows import Part, require_columns

if TYPE_CHECKING:
    from cloister.linear._statistics import Statistics

__all__ = ["Scaling"]

_CONSTANT = 1e-12  # of a column's magnitude: a smaller deviation is the rounding of its mean


@dataclass(frozen=True, slots=True)
class Scaling:
    """``(value - centre) / scale`` for every feature and then the response.

    Attributes:
        names: Of the features.
        centres: d + 1 numbers.
        scales: d + 1 positive numbers.

    Raises:
        InputError: 2906 when there are not d + 1 numbers, 2904 when one is not finite, 2905 when a scale is not
            positive.
    """

    names: tuple[str, ...]
    centres: tuple[float, ...]
    scales: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.names) + 1 == len(self.centres) == len(self.scales):
            raise InputError(2906, "one centre and one scale a feature, and one for the response")
        if not all(map(math.isfinite, (*self.centres, *self.scales))):
            raise InputError(2904, "a centre or a scale is not finite")
        for name, scale in zip((*self.names, "the response"), self.scales, strict=True):
            if scale <= 0:
                raise InputError(2905, f"column '{name}' has no positive scale", got=scale)

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Scaling:
        """Mean and standard deviation of all rows, as scikit-learn's ``StandardScaler`` has them.

        For rows that lie in one place; parties that trust nobody agree on round numbers, or fit statistics first.

        Raises:
            InputError: 2905 when a column is constant, 2906 when the parts' columns differ.
        """
        names = parts[0].names
        moments = _Moments(len(names) + 1)
        for part in parts:
            require_columns(part.names, names)
            for rows in part.chunks():
                moments.add(np.column_stack([rows.features, rows.response]))
        scales = np.sqrt(moments.squares / moments.count)
        for name, scale, most in zip((*names, "the response"), scales, moments.largest, strict=True):
            if scale <= _CONSTANT * most:
                raise InputError(2905, f"column '{name}' is constant over all rows")
        return cls(names, tuple(map(float, moments.means)), tuple(map(float, scales)))

    @classmethod
    def from_statistics(cls, statistics: Statistics) -> Scaling:
        """Mean and standard deviation, from statistics that were opened.

        Raises:
            InputError: 2914 when means or variances are not among them, 2905 when a column is constant, or varies by
                less than the units of the statistics could tell.
        """
        means, variances = statistics.means, statistics.variances
        if means is None or variances is None:
            raise InputError(2914, "a scaling needs means and variances", got="statistics without them")
        for name, variance in zip(statistics.names, variances, strict=True):
            if not variance > 0:
                hint = "leave the column out, or agree on statistics with a centre near its mean and a narrower scale"
                raise InputError(2905, f"column '{name}' is constant over all rows", hint=hint)
        return cls(statistics.names[:-1], tuple(map(float, means)), tuple(map(float, np.sqrt(variances))))

    def chunks(self, part: Part) -> Iterator[NDArray[np.float64]]:
        """The scaled ``[1 X y]``, (rows, d + 2), a few thousand rows at a time.

        Raises:
            InputError: 2906 when the columns are not the agreed ones.
        """
        require_columns(part.names, self.names)
        centres, scales = np.array(self.centres), np.array(self.scales)
        for rows in part.chunks():
            table = np.empty((len(rows), len(centres) + 1))
            table[:, 0] = 1
            table[:, 1:-1] = rows.features
            table[:, -1] = rows.response
            table[:, 1:] -= centres
            table[:, 1:] /= scales
            yield table

    def unscale(self, model: Sequence[float]) -> tuple[NDArray[np.float64], float]:
        """Coefficients and intercept in the units of the data, of a model (the intercept first) in scaled units."""
        response_centre, response_scale = self.centres[-1], self.scales[-1]
        coefficients = np.array(model[1:], dtype=np.float64) * response_scale / np.array(self.scales[:-1])
        shift = math.fsum(coefficients * np.array(self.centres[:-1]))  # the same on every machine: it is compared
        return coefficients, response_centre + response_scale * float(model[0]) - shift


class _Moments:
    """Means and sums of squared deviations, merged chunk by chunk (Chan, Golub, LeVeque 1983): no digit is lost."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.means, self.squares, self.largest = np.zeros(width), np.zeros(width), np.zeros(width)

    def add(self, table: NDArray[np.float64]) -> None:
        rows = len(table)
        means = table.mean(axis=0)
        moved, total = means - self.means, self.count + rows
        self.squares += ((table - means) ** 2).sum(axis=0) + moved**2 * (self.count * rows / total)
        self.means += moved * (rows / total)
        self.largest = np.maximum(self.largest, np.abs(table).max(axis=0))
        self.count = total
