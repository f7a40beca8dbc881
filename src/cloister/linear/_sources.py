"""Rows from files, a few thousand at a time: CSV (also compressed), Parquet, Arrow IPC; by pyarrow (extra ``linear``).

Rules:

* Memory is a few chunks, whatever the file's size. A file is read again for every pass over its rows.
* Columns are taken by name, in the agreed order, wherever they stand in the file; others are not read.
* A column of categories becomes a column of 0 and 1 for each value of the *agreed* list, in its order. What is not in
  the list is refused, never written as zeros. Numbers and truth values are compared as they are written.
* Messages name columns and rows, counted from 0 without the header, and never a value.

>>> from tempfile import TemporaryDirectory
>>> with TemporaryDirectory() as folder:
...     file = Path(folder) / "rows.csv"
...     _ = file.write_text(chr(10).join(["age,sex,cost", "40,f,10", "50,m,12"]), encoding="utf-8")
...     source = read_source(file, features=["age", "sex"], response="cost", categories={"sex": ["f", "m"]})
...     [rows] = source.chunks()
>>> source.names, rows.features.tolist(), rows.response.tolist()
(('age', 'sex=f', 'sex=m'), [[40.0, 1.0, 0.0], [50.0, 0.0, 1.0]], [10.0, 12.0])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cloister.errors import InputError
from cloister.linear._files import read_batches, refuse, separator_of
from cloister.linear._labels import places, text_of
from cloister.linear._plan import MOST_FEATURES
from cloister.linear._rows import CHUNK, Rows, named

__all__ = ["Source", "read_source"]

_NUMBERS = ("is_integer", "is_floating", "is_decimal", "is_boolean")  # of pyarrow's types


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Source:
    """One party's rows in a file: a :class:`cloister.linear._rows.Part`.

    Attributes:
        path: Of the file.
        features: Columns of the file, in the agreed order.
        response: Another column.
        categories: The agreed list of each column that holds categories.
        separator: Between a CSV's fields.
        header: Names of a CSV's columns; None: its first line has them.
        progress: Is told how many rows have been read in this pass.
    """

    path: Path
    features: tuple[str, ...]
    response: str
    categories: Mapping[str, tuple[Any, ...]]
    separator: str
    header: tuple[str, ...] | None
    progress: Callable[[int], object] | None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the features, a category's as ``column=value``."""
        return tuple(name for column in self.features for name in self._columns(column))

    def chunks(self) -> Iterator[Rows]:
        """All rows in order, at most 4096 at a time.

        Raises:
            InputError: 2904 where a value is missing or not finite, 2906 when a column is not in the file, 2907 when
                the file has no rows, 2908 where text is no number or a category is not in its list, 2913 when the
                file cannot be read.
        """
        start = 0
        wanted = (*self.features, self.response)
        batches = read_batches(
            self.path, wanted, text=frozenset(self.categories), separator=self.separator, header=self.header
        )
        for batch in batches:
            for offset in range(0, batch.num_rows, CHUNK):
                rows = self._rows(batch.slice(offset, CHUNK), start)
                start += len(rows)
                yield rows
                if self.progress is not None:
                    self.progress(start)
        if not start:
            raise InputError(2907, f"'{self.path.name}' has no rows", expected="1 or more", got=0)

    def __repr__(self) -> str:
        return f"<Source {self.path.name}>"

    def _columns(self, column: str) -> tuple[str, ...]:
        listed = self.categories.get(column)
        return (column,) if listed is None else tuple(f"{column}={value}" for value in listed)

    def _rows(self, batch: Any, start: int) -> Rows:
        table = np.empty((len(self.names) + 1, batch.num_rows))  # a column lies as in the file: fast to fill
        at = 0
        for column in (*self.features, self.response):
            values, listed = batch.column(column), self.categories.get(column)
            if listed is None:
                table[at] = _numbers(values, column, start)
                at += 1
                continue
            codes = _codes(values, listed, column, start)
            for code in range(len(listed)) if column != self.response else (1,):
                table[at] = codes == code
                at += 1
        return Rows(self.names, table[:-1].T, table[-1])


def read_source(
    path: str | Path,
    *,
    features: Sequence[str],
    response: str,
    categories: Mapping[str, Sequence[Any]] | None = None,
    separator: str | None = None,
    header: Sequence[str] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Source:
    """One party's rows in a file; nothing is read yet.

    Args:
        path: ``.csv`` or ``.tsv`` (also ``.gz``, ``.bz2``), ``.parquet``, ``.arrow``, ``.feather``.
        features: Columns in the agreed order.
        response: Another column.
        categories: For each column that holds categories its agreed values; of a response exactly two, 0 and 1.
        separator: Between a CSV's fields; by default a comma, in ``.tsv`` a tab.
        header: Names of a CSV's columns when its first line has none.
        progress: Called with the number of rows read so far in this pass, after each chunk.

    Raises:
        InputError: 2906 when a column is named twice or a list belongs to none, 2908 when a list has a value twice or
            too few, 2909 when there are more than 300 features.
    """
    columns = (*features, response)
    lists = {column: tuple(values) for column, values in (categories or {}).items()}
    if len(set(columns)) != len(columns) or not set(lists) <= set(columns) or not features:
        raise InputError(2906, "columns are named twice, or not at all", got=named((*columns, *lists)))
    for column, values in lists.items():
        least, most = (2, 2) if column == response else (2, MOST_FEATURES)
        if not least <= len(values) <= most or len({text_of(value) for value in values}) != len(values):
            expected = "two" if most == 2 else f"2 to {most}"
            raise InputError(2908, f"the list of column '{column}' is none", expected=f"{expected} different values")
    path = Path(path)
    separator = separator or separator_of(path)
    source = Source(
        path, tuple(features), response, lists, separator, None if header is None else tuple(header), progress
    )
    if len(source.names) > MOST_FEATURES:
        raise InputError(2909, "too many features", expected=f"at most {MOST_FEATURES}", got=len(source.names))
    return source


def _numbers(values: Any, column: str, start: int) -> Any:
    import pyarrow

    kind = values.type
    if pyarrow.types.is_dictionary(kind):
        values, kind = values.dictionary_decode(), kind.value_type
    if not any(getattr(pyarrow.types, test)(kind) for test in _NUMBERS):
        raise InputError(2908, f"column '{column}' does not hold numbers", expected="numbers", got=str(kind))
    numbers = values.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False)
    bad = ~np.isfinite(numbers)  # a missing one is NaN by now
    if bad.any():
        refuse(2904, "a missing or infinite value", column, start + int(bad.argmax()))
    return numbers


def _codes(values: Any, listed: tuple[Any, ...], column: str, start: int) -> Any:
    """The place of each value in the agreed list."""
    import pyarrow

    if pyarrow.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pyarrow.types.is_string_view(values.type):  # which is not encoded yet
        values = values.cast(pyarrow.string())
    missing = values.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
    if missing.any():
        refuse(2904, "a missing value", column, start + int(missing.argmax()))
    kind = values.type
    known = (*_NUMBERS, "is_string", "is_large_string")
    if not any(getattr(pyarrow.types, test)(kind) for test in known):
        raise InputError(2908, f"column '{column}' cannot hold categories", expected="text or numbers", got=str(kind))
    unique = values.dictionary_encode()  # so that only what differs becomes a Python object
    codes = np.array(places(unique.dictionary.to_pylist(), listed))[unique.indices.to_numpy()]
    unknown = codes < 0
    if unknown.any():
        refuse(2908, "a category that is not in the agreed list", column, start + int(unknown.argmax()))
    return codes
