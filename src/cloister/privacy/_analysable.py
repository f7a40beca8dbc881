"""Which data loaders can be trusted to say what is sampled: none. Which can be replaced by Poisson sampling: these.

A private run draws the records itself. From the user's loader it takes the data set, the batch size as the *expected*
one, and what concerns how rows are fetched. Whatever else somebody set on a loader was meant to change which rows are
drawn, how often, or in which order, and would be lost: so it is refused by its name, with what to do instead.

A row that stands in the data set twice is drawn twice as often, and its owner counts twice: a subset that names an
index twice, a concatenation of a data set with itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from cloister.errors import RefusedError

__all__ = ["require_analysable"]

_PLAIN = "a plain torch.utils.data.DataLoader"


def require_analysable(loader: DataLoader[Any]) -> None:
    """Returns where a loader's records can be drawn by Poisson sampling in its place.

    Raises:
        RefusedError: 3810, naming what is in the way.
    """
    if type(loader) is not DataLoader:
        raise _refused(f"{type(loader).__name__} as a loader", _PLAIN, "give the DataLoader that it was made from")
    data: Any = loader.dataset
    if isinstance(data, IterableDataset) or not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        name = type(data).__name__
        raise _refused(f"{name}, which is read in its own order", "a map-style data set", "index the records")
    if not len(data):
        raise _refused("a data set without records", "one record or more", "check where the data comes from")
    if loader.batch_size is None:
        given = type(loader.batch_sampler).__name__
        raise _refused(
            "batch_size=None" if loader.batch_sampler is None else f"the batch sampler {given}",
            "batch_size",
            "give batch_size instead: it becomes the expected one",
        )
    _require_plain_sampler(loader)
    if not getattr(loader, "in_order", True):
        raise _refused("in_order=False", "batches in the order that they were drawn in", "leave in_order out")
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        raise _refused(
            f"{torch.distributed.get_world_size()} processes, each of which would draw from all records",
            "one process",
            "train in one process",
        )
    _require_single_rows(data)


def _require_plain_sampler(loader: DataLoader[Any]) -> None:
    sampler: Any = loader.sampler
    if type(sampler) not in (RandomSampler, SequentialSampler):
        name = type(sampler).__name__
        hint = "leave the sampler out; to train on some records, give torch.utils.data.Subset"
        if name == "WeightedRandomSampler":
            hint = "leave the sampler out and weight the loss instead: weights change how often a record is drawn"
        raise _refused(f"the sampler {name}", "shuffle=True or False", hint)
    if isinstance(sampler, RandomSampler) and (sampler.replacement or sampler.num_samples != len(sampler.data_source)):
        raise _refused(
            "a RandomSampler with replacement or num_samples", "shuffle=True or False", "set how many steps are made"
        )
    if sampler.data_source is not loader.dataset:
        raise _refused("a sampler of another data set", "one of the loader's", "leave the sampler out")


def _require_single_rows(data: Any) -> None:
    where, index = _origins(data)
    order = np.lexsort((index, where))
    if ((np.diff(where[order]) == 0) & (np.diff(index[order]) == 0)).any():
        hint = "weight the loss instead: a record that is there twice is drawn twice as often"
        raise _refused("a data set that has records more than once", "each record once", hint)


def _origins(data: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row the data set that it is kept in, and its place there, as far as torch's own wrappers show it."""
    if isinstance(data, Subset):
        where, index = _origins(data.dataset)
        taken = np.asarray(list(data.indices), np.int64)
        return where[taken], index[taken]  # -1 is the last one here, too
    if isinstance(data, ConcatDataset):
        parts = [_origins(part) for part in data.datasets]
        return np.concatenate([where for where, _ in parts]), np.concatenate([index for _, index in parts])
    count = len(data)
    return np.full(count, id(data), np.int64), np.arange(count)


def _refused(got: str, expected: str, hint: str) -> RefusedError:
    return RefusedError(3810, f"a private run cannot sample for {got}", expected=expected, got=got, hint=hint)
