"""Canaries: records whose gradient is known, and that are in the data by a fair coin.

What is audited is a training, so canaries go the way of records: the loader draws them, the engine bounds, rounds and
sums them, noise covers them. Each has

* a *direction*: its own places among all trained parameters, which no other canary has, with random signs. It has norm
  1, and directions are orthogonal. A canary that is in has a loss that is linear in the parameters along its direction,
  :data:`REACH` times as steep as the clipping norm, so a right engine shortens it to exactly that norm. One that is
  out has the loss 0 and changes nothing; so the number of records is the same whatever the coins say.
* a *carrier*, a record of the data set that stands where its input would be: the model runs on it, its loss is dropped.

*Outliers* are a third kind: carriers far outside the data whose loss is 0. What one of them does to other examples'
gradients is nothing, or the model mixes examples.

A canary lives in objects of this module only: a data set, a loader and a model that wrap copies. None of the user's
own objects knows of it, so none can be left with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from cloister.errors import InputError
from cloister.privacy._analysable import require_analysable
from cloister.privacy._run_key import RunKey
from cloister.privacy._stream import CHUNK_BYTES, Chunks

__all__ = ["FIRST", "ORDINARY", "REACH", "Canaried", "Directions", "carried", "far_out", "with_canaries"]

ORDINARY, FIRST = 1, 2
"""Marks of rows: 0 is padding, 1 a record, then the canaries, then the outliers."""

REACH = 1024.0
_FAR = 100.0

RowLoss = Callable[[nn.Module, Any], Tensor]


class Directions:
    """Orthogonal directions among the trained parameters, drawn by the operating system's generator.

    Args:
        count: How many.
        size: Trained parameters.

    Attributes:
        places: ``(count, each)`` int64: where each has its entries.
        signs: ``(count, each)`` float32: its entries, of norm 1.

    Raises:
        InputError: 2860 with fewer than 8, or with fewer parameters than directions.
    """

    def __init__(self, count: int, size: int) -> None:
        if not 8 <= count <= size:
            raise InputError(2860, expected=f"8 to {size} canaries, as many as trained parameters", got=count)
        each, stream = size // count, Chunks(RunKey().derive("canaries"))
        words = _words(stream, 0, size)
        self.places = torch.from_numpy(np.argsort(words)[: count * each].reshape(count, each))
        signs = np.where(_words(stream, 1, count * each) >> np.uint64(63), 1.0, -1.0) / np.sqrt(each)
        self.signs = torch.from_numpy(signs.reshape(count, each)).float()

    def scores(self, vector: Tensor) -> NDArray[np.float64]:
        """``(count,)``: the inner product with each."""
        found = vector.double()[self.places] * self.signs
        return found.sum(1).numpy()


class Canaried(nn.Module):
    """A model and its loss, with canaries: ``(marks, batch)`` in, a loss a row out.

    Args:
        model: The user's, or rather a copy.
        loss: ``loss(model, batch) -> (B,)``.
        directions: Of the canaries.
        included: ``(canaries,)`` bool: the coins.
        steepness: Of a canary's loss along its direction.

    Attributes:
        marks: Of the canaries; the next is the first outlier's.
    """

    def __init__(
        self, model: nn.Module, loss: RowLoss, directions: Directions, included: NDArray[np.bool_], steepness: float
    ) -> None:
        super().__init__()
        self.model, self.loss = model, loss
        weights = directions.signs * torch.from_numpy(included).unsqueeze(1) * steepness
        self._places: Tensor
        self._weights: Tensor
        self.register_buffer("_places", directions.places)
        self.register_buffer("_weights", weights)
        self.marks = range(FIRST, FIRST + len(included))

    def forward(self, marks: Tensor, batch: Any) -> Tensor:
        """The rows' losses; those of padding mean nothing."""
        losses = self.loss(self.model, batch)
        if losses.shape != marks.shape:
            raise InputError(2850, "no loss a row", expected=f"{len(marks)} losses", got=tuple(losses.shape))
        number = marks - FIRST
        canary = (number >= 0) & (number < len(self._places))
        number = torch.where(canary, number, 0)
        trained = [parameter.flatten() for parameter in self.model.parameters() if parameter.requires_grad]
        along = functional.embedding(self._places[number], torch.cat(trained).unsqueeze(1)).squeeze(2)
        weights = self._weights[number] * canary.unsqueeze(1)
        return torch.where(marks <= ORDINARY, losses, (along * weights).sum(1))


class _Marked(Dataset[Any]):
    """The records, then the canaries' carriers, then the outliers', each with its mark."""

    def __init__(self, data: Any, canaries: int, outliers: int, outlier: Callable[[Any], Any]) -> None:
        self.data, self.canaries, self.outliers, self._outlier = data, canaries, outliers, outlier

    def __len__(self) -> int:
        return len(self.data) + self.canaries + self.outliers

    def __getitem__(self, row: int) -> tuple[int, Any]:
        number = row - len(self.data)
        if number < 0:
            return ORDINARY, self.data[row]
        record = self.data[number % len(self.data)]
        return FIRST + number, record if number < self.canaries else self._outlier(record)


class _Collate:
    """Marks beside what the user's function makes of the records. Goes to worker processes."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, samples: list[tuple[int, Any]]) -> tuple[Tensor, Any]:
        marks, records = zip(*samples, strict=True)
        return torch.tensor(marks, dtype=torch.int64), self._collate(list(records))


def with_canaries(
    loader: DataLoader[Any], canaries: int, outliers: int, outlier: Callable[[Any], Any]
) -> DataLoader[Any]:
    """A loader of the same records with canaries and outliers after them; the same expected batch.

    Raises:
        RefusedError: 3810 when the loader cannot be analysed.
    """
    require_analysable(loader)
    return DataLoader(
        _Marked(loader.dataset, canaries, outliers, outlier),
        batch_size=loader.batch_size,
        shuffle=True,
        drop_last=loader.drop_last,
        collate_fn=_Collate(loader.collate_fn),
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )


def carried(parameters: Any) -> Tensor:
    """``(P,)``: the gradients that an optimizer is given, of all trained parameters, in the model's order."""
    return torch.cat([parameter.grad.detach().flatten() for parameter in parameters if parameter.requires_grad]).cpu()


def far_out(record: Any) -> Any:
    """A record with all its floating-point tensors a hundred times as large, and nothing else changed."""
    if isinstance(record, Tensor):
        return record * _FAR if record.is_floating_point() else record
    if isinstance(record, np.ndarray):
        return record * record.dtype.type(_FAR) if record.dtype.kind == "f" else record
    if isinstance(record, Mapping):
        return {key: far_out(value) for key, value in record.items()}
    if isinstance(record, tuple) and hasattr(record, "_fields"):
        return type(record)(*map(far_out, record))
    if isinstance(record, (list, tuple)):
        return type(record)(map(far_out, record))
    return record


def _words(stream: Chunks, number: int, count: int) -> NDArray[np.uint64]:
    each = CHUNK_BYTES // 8
    starts = enumerate(range(0, count, each))
    return np.concatenate([stream.words(number, chunk, min(each, count - start)).copy() for chunk, start in starts])
