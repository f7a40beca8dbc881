"""A table of rows as a model's one input: columns found by name, never by position."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import numpy as np

from cloister.errors import InputError
from cloister.serve._messages import ModelCard, Tensor
from cloister.serve._tensors import to_tensor

__all__ = ["Rows", "read_rows"]

_DTYPES = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "INT32": np.int32, "UINT8": np.uint8}


@dataclass(frozen=True, slots=True)
class Rows:
    """A request's input and what to call its rows.

    Attributes:
        tensor: The model's input, shape (rows, features).
        labels: One a row: the columns that the model does not take, joined; the row's number where there are none.
    """

    tensor: Tensor
    labels: tuple[str, ...]


def read_rows(data: bytes, card: ModelCard) -> Rows:
    """A CSV file with a header as the input of a model whose card names its features.

    Raises:
        InputError: 2606 when the model does not take one table, a feature has no column, or a cell is no number.
    """
    if card.features is None or len(card.inputs) != 1 or len(card.inputs[0].shape) != 2:
        raise InputError(2606, "this model does not take a table: use the library to send tensors")
    spec = card.inputs[0]
    if spec.datatype not in _DTYPES:
        raise InputError(2606, f"this model takes {spec.datatype}, which a table cannot give")
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        header = list(reader.fieldnames or [])
        table = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(2606, f"not a CSV table: {error}") from error
    missing = [name for name in card.features if name not in header]
    if missing or len(set(header)) != len(header):
        raise InputError(2606, "columns are missing or doubled", expected=list(card.features), got=header)
    if not table:
        raise InputError(2606, "the table has no rows")
    values = [[_number(row, name, line) for name in card.features] for line, row in enumerate(table, start=2)]
    others = [name for name in header if name not in card.features]
    labels = [" ".join(str(row[name]) for name in others) or f"row {i}" for i, row in enumerate(table, start=1)]
    array = np.array(values, dtype=_DTYPES[spec.datatype])
    return Rows(to_tensor(spec.name, array), tuple(labels))


def _number(row: dict[str, str | None], name: str, line: int) -> float:
    try:
        return float(row[name] or "")
    except ValueError:
        raise InputError(2606, f"line {line}, column {name!r} is not a number") from None
