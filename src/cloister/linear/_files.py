"""Record batches from files, column by column, through pyarrow; its errors become ours, without the values they quote.

A CSV's block, a Parquet file's pages or an Arrow file's batch is in memory at a time. Needs the extra ``linear``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cloister.errors import InputError
from cloister.linear._rows import CHUNK

__all__ = ["other_separator", "read_batches", "refuse", "separator_of"]

_BUFFER_BYTES = 1 << 18  # of a Parquet column that is decompressed at a time
_IPC = b"ARROW1"  # what an IPC file begins with; a stream does not


@dataclass(frozen=True, slots=True)
class _Asked:
    """For what: a file, the columns, and which of them are text in a CSV."""

    path: Path
    wanted: tuple[str, ...]
    text: frozenset[str]
    separator: str
    header: tuple[str, ...] | None


def read_batches(
    path: Path, wanted: tuple[str, ...], *, text: frozenset[str], separator: str, header: tuple[str, ...] | None
) -> Iterator[Any]:
    """A file's record batches with the wanted columns, numbers as they are there.

    Args:
        path: Its ending says how it is read.
        wanted: Columns, each once.
        text: Those of them that are text in a CSV; the others are numbers.
        separator: Between a CSV's fields.
        header: Names of a CSV's columns; None: its first line has them.

    Raises:
        InputError: 2006 without pyarrow; 2906, 2908, 2913 as for a source.
    """
    read = next((read for ends, read in _READERS.items() if path.name.lower().endswith(ends)), None)
    if read is None:
        known = ", ".join(ending for endings in _READERS for ending in endings)
        raise InputError(2913, f"'{path.name}' is of no kind that is read here", expected=known)
    with _refusing(path):
        yield from read(_Asked(path, wanted, text, separator, header))


def separator_of(path: Path) -> str:
    """Between the fields of a file of this name, unless somebody says otherwise."""
    return "\t" if ".tsv" in (suffix.lower() for suffix in path.suffixes) else ","


def other_separator(names: Sequence[str]) -> str | None:
    """A hint, where what was read as one name looks like several."""
    found = next((mark for mark in ";\t|," if len(names) == 1 and mark in names[0]), None)
    return None if found is None else f"the file seems to be separated by {found!r}"


def refuse(code: int, what: str, column: str, row: int) -> NoReturn:
    """Raises with the place, and never the value."""
    raise InputError(code, f"{what} in column '{column}', row {row}")


def _csv(asked: _Asked) -> Iterator[Any]:
    import pyarrow
    import pyarrow.csv

    parsed = pyarrow.csv.ParseOptions(delimiter=asked.separator)
    _require(asked, asked.header or pyarrow.csv.open_csv(asked.path, parse_options=parsed).schema.names)

    def opened(number: Any) -> Any:
        kinds = {name: pyarrow.string() if name in asked.text else number for name in asked.wanted}
        return pyarrow.csv.open_csv(
            asked.path,
            read_options=pyarrow.csv.ReadOptions(column_names=asked.header),
            parse_options=parsed,
            convert_options=pyarrow.csv.ConvertOptions(column_types=kinds, include_columns=asked.wanted),
        )

    try:
        yield from opened(pyarrow.float64())
    except pyarrow.ArrowInvalid as error:
        if "conversion error" not in str(error):
            raise
        _find_text(opened(pyarrow.string()), [name for name in asked.wanted if name not in asked.text])
        raise


def _find_text(batches: Iterable[Any], columns: Sequence[str]) -> None:
    """Raises 2908 for the first value that is no number: in a pass of its own, since Arrow does not name its place."""
    start = 0
    for batch in batches:
        for column in columns:
            for row, text in enumerate(batch.column(column).to_pylist()):
                if not _is_number(text):
                    refuse(2908, "text where a number is due", column, start + row)
        start += batch.num_rows


def _is_number(text: str) -> bool:
    import pyarrow.csv

    try:
        float(text)
    except ValueError:
        return text in pyarrow.csv.ConvertOptions().null_values  # missing: another fault
    return True


def _parquet(asked: _Asked) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(asked.path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
        _require(asked, file.schema_arrow.names)
        yield from file.iter_batches(batch_size=CHUNK, columns=list(asked.wanted))


def _ipc(asked: _Asked) -> Iterator[Any]:
    import pyarrow
    import pyarrow.ipc

    with pyarrow.memory_map(str(asked.path)) as file:
        if file.read(len(_IPC)) == _IPC:
            reader = pyarrow.ipc.open_file(file)
            _require(asked, reader.schema.names)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
            return
        file.seek(0)
        reader = pyarrow.ipc.open_stream(file)
        _require(asked, reader.schema.names)
        yield from reader


def _require(asked: _Asked, names: Sequence[str]) -> None:
    for column in asked.wanted:
        if names.count(column) != 1:
            got = "it is missing" if column not in names else "it is there twice"
            what, hint = f"column '{column}' of '{asked.path.name}'", other_separator(names)
            raise InputError(2906, what, expected="one such column", got=got, hint=hint)


_READERS: Mapping[tuple[str, ...], Callable[[_Asked], Iterator[Any]]] = {
    (".csv", ".csv.gz", ".csv.bz2", ".tsv", ".tsv.gz"): _csv,
    (".parquet",): _parquet,
    (".arrow", ".feather"): _ipc,
}


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Arrow's errors as ours: they may quote a value, so they are not chained."""
    try:
        pyarrow = importlib.import_module("pyarrow")
    except ImportError:
        raise InputError(2006, "reading rows from files needs pyarrow", hint='pip install "cloister[linear]"') from None
    try:
        yield
    except pyarrow.ArrowKeyError as error:
        raise InputError(2906, f"'{path.name}' lacks a column", got=str(error)) from None
    except (pyarrow.ArrowException, OSError) as error:
        got = "it is damaged, or of another kind" if isinstance(error, pyarrow.ArrowException) else type(error).__name__
        raise InputError(2913, f"'{path.name}' cannot be read", got=got) from None
