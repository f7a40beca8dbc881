"""One party's rows, read once: numbers only, nothing missing, columns by name where they have names.

Messages name columns and counts of this party's own data; they are for its owner and are sent to nobody.

>>> read_rows([[1.0, 2.0], [3.0, 4.0]], [0, 1]).names
('x0', 'x1')
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.linear._plan import MOST_FEATURES

__all__ = [
    "CHUNK",
    "Part",
    "Rows",
    "column_of",
    "is_missing",
    "named",
    "read_features",
    "read_rows",
    "require_columns",
    "unnamed",
]

CHUNK = 4096
"""Rows that are worked on at a time: with 90 columns they fit a core's cache."""


class Part(Protocol):
    """One party's rows, wherever they lie; they can be gone through more than once."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the features."""
        ...

    def chunks(self) -> Iterator[Rows]:
        """All rows in order, a few thousand at a time."""
        ...


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Rows:
    """Features and response of some rows.

    Attributes:
        names: Of the features: a data frame's, or x0, x1, ….
        features: (rows, d) float64, finite.
        response: (rows,) float64, finite.
    """

    names: tuple[str, ...]
    features: NDArray[np.float64]
    response: NDArray[np.float64]

    def chunks(self) -> Iterator[Rows]:
        """As for :class:`Part`."""
        for start in range(0, len(self), CHUNK):
            part = slice(start, start + CHUNK)
            yield Rows(self.names, self.features[part], self.response[part])

    def __len__(self) -> int:
        return len(self.response)

    def __repr__(self) -> str:
        return f"<Rows {self.features.shape}>"


def read_rows(features: Any, response: Any) -> Rows:
    """Checks one party's data and makes numbers of it.

    Args:
        features: (rows, d): an array, a list of lists, or a data frame with named columns.
        response: (rows,).

    Raises:
        InputError: 2904 when a value is missing or not finite, 2906 when the shapes are not those, 2907 when features
            and response differ in rows, 2908 when a column holds text, 2909 when there are more than 300 features.
    """
    names, table = read_features(features)
    column = column_of(response)
    if len(column) != len(table):
        raise InputError(2907, "features and response differ in their rows", expected=len(table), got=len(column))
    if not len(table):
        raise InputError(2907, "there are no rows", expected="1 or more", got=0)
    return Rows(names, table, _numbers(column[:, None], ("the response",))[:, 0])


def column_of(response: Any) -> NDArray[Any]:
    """A response's values, whatever they are, (rows,); raises 2906 when it has another shape."""
    column = _array(response)
    if column.ndim != 1:
        hint = "give y.ravel()" if column.ndim == 2 and column.shape[1] == 1 else _dense(response)
        raise InputError(2906, "the response is not one column", expected="(rows,)", got=column.shape, hint=hint)
    return column


def read_features(features: Any) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """The features' names and their numbers; raises as :func:`read_rows`."""
    table = _array(features)
    if table.ndim != 2 or not table.shape[1]:
        hint = _dense(features) or "give one row a record: X.reshape(-1, 1) of a single column"
        raise InputError(2906, "the features are not a table", expected="(rows, columns)", got=table.shape, hint=hint)
    if table.shape[1] > MOST_FEATURES:
        raise InputError(2909, "too many features", expected=f"at most {MOST_FEATURES}", got=table.shape[1])
    labels = getattr(features, "columns", None)
    names = unnamed(table.shape[1]) if labels is None else tuple(str(name) for name in labels)
    return names, _numbers(table, names)


def require_columns(names: tuple[str, ...], agreed: tuple[str, ...]) -> None:
    """Raises 2906 unless the columns are the agreed ones, in the agreed order; an array's are taken as they come."""
    if names not in (agreed, unnamed(len(agreed))):
        what = "the columns come in another order" if sorted(names) == sorted(agreed) else None
        raise InputError(2906, what, expected=named(agreed), got=named(names))


def is_missing(value: object) -> bool:
    """None, NaN, and what says neither that it is itself nor that it is not: pandas' NA."""
    try:
        return value is None or bool(value != value)
    except TypeError:
        return True


def named(names: tuple[str, ...]) -> str:
    """For a message: the first few."""
    return ", ".join(names[:8]) + (f", … ({len(names)})" if len(names) > 8 else "")


def unnamed(many: int) -> tuple[str, ...]:
    """What an array's columns are called."""
    return tuple(f"x{j}" for j in range(many))


def _array(data: Any) -> NDArray[Any]:
    """What is masked is missing."""
    if isinstance(data, np.ma.MaskedArray) and data.dtype.kind in "biuf":
        return np.ma.filled(data.astype(np.float64), np.nan)
    return np.asarray(data)


def _dense(data: Any) -> str | None:
    return "give its .toarray(): sparse matrices are not read" if hasattr(data, "toarray") else None


def _numbers(table: NDArray[Any], names: tuple[str, ...]) -> NDArray[np.float64]:
    if table.dtype.kind == "O":
        columns = [_column(column, name) for name, column in zip(names, table.T, strict=True)]
        table = np.array(columns).T
    elif table.dtype.kind not in "biuf":
        _refuse_text(names[0] if len(names) == 1 else None)
    numbers = np.ascontiguousarray(table, dtype=np.float64)
    bad = ~np.isfinite(numbers)
    if bad.any():
        j = int(bad.any(axis=0).argmax())
        at = f"column '{names[j]}' has {int(bad[:, j].sum())} missing or infinite values"
        raise InputError(2904, at, expected="finite numbers", got=f"first in row {int(bad[:, j].argmax())}")
    return numbers


def _column(column: NDArray[Any], name: str) -> NDArray[np.float64]:
    if any(isinstance(value, str | bytes) for value in column):
        _refuse_text(name)
    try:
        return np.array([np.nan if is_missing(value) else float(value) for value in column])
    except (TypeError, ValueError):
        _refuse_text(name)


def _refuse_text(name: str | None) -> NoReturn:
    what = "the features do not hold numbers only" if name is None else f"column '{name}' does not hold numbers"
    hint = "make a column of 0 and 1 of each agreed category, at every party; drop or convert the rest"
    raise InputError(2908, what, expected="numbers", got="text or another type", hint=hint)
