"""Whose a row is: labels and data sets that would have one person count as several."""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cloister.errors import CloisterError
from cloister.privacy import Groups, make_private


def grouped(labels: Any) -> list[list[int]]:
    groups = Groups.of(labels, most_rows=9)
    return [groups.rows(number).tolist() for number in range(len(groups))]


class Ward(Enum):
    NORTH = 1
    SOUTH = 2


ALIKE: dict[str, Any] = {
    "a tensor": torch.tensor([7, 7, 8, 9, 9]),
    "an array": np.array([7, 7, 8, 9, 9], np.int32),
    "an array's numbers": list(np.array([7, 7, 8, 9, 9])),
    "texts": np.array(["a", "a", "b", "c", "c"]),
    "pairs": [("a", 1), ("a", 1), ("a", 2), (Ward.NORTH, 1), (Ward.NORTH, 1)],
    "what comes one by one": iter([7, 7.0, 8, 9, 9]),
}


@pytest.mark.parametrize("name", ALIKE)
def test_labels_that_are_alike_are_one_group(name: str) -> None:
    assert grouped(ALIKE[name]) == [[0, 1], [2], [3, 4]]


class Patient:
    """Equal to nothing but itself."""


class Unknown:
    """Neither equal nor not."""

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        raise TypeError("unknown")


UNEQUAL: dict[str, Any] = {
    "a tensor's tensors": list(torch.tensor([7, 7, 8])),
    "a pair's tensor": [(torch.tensor(7), "a"), (torch.tensor(7), "a")],
    "nobody known": [7.0, math.nan, math.nan],
    "nobody known, in an array": np.array([7.0, math.nan]),
    "nobody known, in a tensor": torch.tensor([7.0, math.nan]),
    "nobody known, beside a ward": [("north", math.nan)],
    "no time": np.array(["NaT"], dtype="datetime64[s]").astype(object).tolist() + list(np.array(["NaT"], "M8[s]")),
    "rows of a table": torch.tensor([[7, 1], [7, 1]]),
    "a number": torch.tensor(7),
    "lists": [[7], [7]],
    "objects": [Patient(), Patient()],
    "objects that do not compare": [Unknown(), Unknown()],
}


@pytest.mark.parametrize("name", UNEQUAL)
def test_labels_that_are_equal_to_nothing_are_refused(name: str) -> None:
    """Each row would be somebody, and whoever has ten of them would be bounded ten times."""
    with pytest.raises(CloisterError) as refused:
        grouped(UNEQUAL[name])
    assert refused.value.code == 2814
    assert "7" not in f"{refused.value.what} {refused.value.got}"  # whose it is stays unsaid


class Views(Dataset[Tensor]):
    """Two views of each record, where many are asked for at once."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, row: int) -> Tensor:
        return torch.full((4,), float(row + 1))

    def __getitems__(self, rows: list[int]) -> list[Tensor]:
        return [self[row] for row in rows for _ in range(2)]


class Readable(Views):
    """What cannot be read is left out."""

    def __getitems__(self, rows: list[int]) -> list[Tensor]:
        return [self[row] for row in rows if row % 2 == 0]


class Distinct(Views):
    """As many views more as there are records, from some on."""

    def __getitems__(self, rows: list[int]) -> list[Tensor]:
        return [self[row] for row in rows] * (2 if len(rows) > 1 else 1)


def private(data: Dataset[Tensor], **settings: Any) -> tuple[Any, Any, Any]:
    model = nn.Linear(4, 2)
    return make_private(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(data, batch_size=4, **settings),
        clip=1.0,
        noise_multiplier="1",
        delta="1e-5",
        micro_batch=16,
        kernels="torch",
    )


def test_a_data_set_that_gives_more_rows_than_were_asked_for_is_refused_at_once() -> None:
    with pytest.raises(CloisterError) as refused:
        private(Views())
    assert refused.value.code == 2813


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("data", [Distinct(), Readable()], ids=["more", "fewer"])
def test_a_data_set_gives_a_row_for_each_that_was_drawn(data: Dataset[Tensor], workers: int) -> None:
    """Also where a worker process fetches them; and the refusal does not say how many were drawn."""
    model, optimizer, loader = private(data, num_workers=workers)
    before = model.weight.detach().clone()
    loader.sampler.sample = lambda step: np.array([0, 1, 2])
    with pytest.raises(CloisterError) as refused:
        next(iter(loader))
    assert refused.value.code == 2813
    assert (refused.value.expected, refused.value.got) == (None, None)
    assert optimizer.privacy.steps == 0
    assert torch.equal(model.weight, before)
