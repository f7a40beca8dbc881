"""Records in a file: tensors with a row a record, by the names that a certified program has for its batch's.

``records.safetensors`` holds, of each of the batch's tensors, all rows: ``0`` and ``1`` for a pair of inputs and
labels. Where the unit is a patient it also holds ``patient``, an int64 a row: the same number is the same person, in
every file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from cloister.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cloister.privacy._graph import Graph

__all__ = ["PATIENT", "RECORDS_FILE", "Records", "read_records", "write_records"]

RECORDS_FILE = "records.safetensors"
PATIENT = "patient"


class Records(Dataset[dict[str, Tensor]]):
    """Rows of several files, one after the other.

    Attributes:
        columns: ``(rows, …)`` by name.
        patients: ``(rows,)`` int64; None where nobody said whose a row is.
    """

    def __init__(self, columns: Mapping[str, Tensor], patients: Tensor | None) -> None:
        self.columns, self.patients = dict(columns), patients

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: column[row] for name, column in self.columns.items()}

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Tensor]]:
        """Many rows at once."""
        taken = torch.as_tensor(rows)
        columns = {name: column[taken] for name, column in self.columns.items()}
        return [{name: column[place] for name, column in columns.items()} for place in range(len(rows))]


def write_records(folder: Path, columns: Mapping[str, Tensor], *, patients: Tensor | None = None) -> None:
    """Writes a folder's records, to be sealed.

    Args:
        folder: Made where it is not there.
        columns: ``(rows, …)`` by name.
        patients: ``(rows,)`` int64.

    Raises:
        InputError: 2859 when they do not have as many rows each.
    """
    found = {name: column.contiguous() for name, column in columns.items()}
    if patients is not None:
        found[PATIENT] = patients.to(torch.int64).contiguous()
    _require_rows(found, str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(found, folder / RECORDS_FILE)


def read_records(folders: Sequence[Path], graph: Graph, *, by_patient: bool) -> Records:
    """The records of all folders, in order.

    Raises:
        InputError: 2859 when a file is missing, malformed, or has other tensors than the program's batch.
    """
    parts = [_read(folder, graph, by_patient) for folder in folders]
    columns = {row.name: torch.cat([part[row.name] for part in parts]) for row in graph.batch}
    return Records(columns, torch.cat([part[PATIENT] for part in parts]) if by_patient else None)


def _read(folder: Path, graph: Graph, by_patient: bool) -> dict[str, Tensor]:
    path = folder / RECORDS_FILE
    wanted = {row.name: (row.dtype, tuple(row.shape[1:])) for row in graph.batch}
    if by_patient:
        wanted[PATIENT] = ("int64", ())
    try:
        with safe_open(path, framework="pt") as file:
            missing = sorted(wanted.keys() - set(file.keys()))
            if missing:
                raise InputError(2859, f"'{path}' has no tensor '{missing[0]}'", got=sorted(file.keys()))
            found = {name: file.get_tensor(name) for name in wanted}
    except (OSError, SafetensorError) as error:
        raise InputError(2859, f"'{path}' cannot be read", got=type(error).__name__) from error
    for name, (dtype, shape) in wanted.items():
        got = str(found[name].dtype).removeprefix("torch."), tuple(found[name].shape[1:])
        if found[name].dim() == 0 or got != (dtype, shape):
            raise InputError(2859, f"'{name}' is not as the program has it", expected=(dtype, shape), got=got)
    _require_rows(found, str(path))
    return found


def _require_rows(found: Mapping[str, Tensor], where: str) -> None:
    rows = {len(column) if column.dim() else 0 for column in found.values()}
    if len(rows) != 1 or 0 in rows:
        raise InputError(2859, f"'{where}': its tensors do not have as many rows each", got=sorted(rows))
