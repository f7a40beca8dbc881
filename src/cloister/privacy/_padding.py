"""Batches of one shape, whoever was sampled: rows that nobody owns fill what is left.

A padding row is a sample whose tensors, arrays and numbers are zero, given to the user's collate function with the
others. It always gets the same number of samples, also for a step in which nobody was drawn, so it needs no special
case. What it makes is compared with the first batch: where a shape follows the data, it would say something of it.

A collate function must treat every row by itself. That it does is tried on two records, in two orders and beside
padding: a row's values may depend neither on its neighbours nor on chance. MixUp and CutMix are caught here; what is
tried on two records is not proven for all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cloister.errors import InputError
from cloister.privacy._foreign import foreign

__all__ = ["PaddedCollate", "blank", "form", "require_rowwise"]

Collate = Callable[[list[Any]], Any]

_TRIALS = 3


def blank(sample: Any) -> Any:
    """The same structure with zeros: a row that nobody owns.

    Raises:
        InputError: 2813 for what has no zero.
    """
    if isinstance(sample, Tensor):
        return torch.zeros_like(sample)
    if isinstance(sample, np.ndarray) and sample.dtype != object:
        return np.zeros_like(sample)
    if isinstance(sample, (bool, int, float, complex, str, bytes, np.number, np.bool_)):
        return type(sample)()
    if sample is None:
        return None
    if isinstance(sample, Mapping):
        values = {key: blank(value) for key, value in sample.items()}
        return values if type(sample) in (dict, defaultdict) else type(sample)(values)  # pyright: ignore[reportCallIssue]
    if isinstance(sample, tuple) and hasattr(sample, "_fields"):
        return type(sample)(*map(blank, sample))
    if isinstance(sample, (list, tuple)):
        return type(sample)(map(blank, sample))
    name = type(sample).__name__
    hint = "turn it into a tensor in the data set"
    raise InputError(2813, f"a sample holds {name}, which has no zero", expected="tensors", got=name, hint=hint)


class PaddedCollate:
    """The user's collate function, always called with ``size`` samples. Goes to worker processes; holds no secret.

    Args:
        collate: The user's.
        padding: A blank sample.
        size: Rows of a batch.
    """

    def __init__(self, collate: Collate, padding: Any, size: int) -> None:
        self.collate, self.padding, self.size = collate, padding, size

    def __call__(self, samples: list[Any]) -> Any:
        """A batch, its first rows the samples, the others padding."""
        return self.collate([*samples, *[self.padding] * (self.size - len(samples))])


def form(batch: Any) -> tuple[Any, ...]:
    """What must be the same for every batch: structure, types, shapes and dtypes; no values."""
    if isinstance(batch, Tensor):
        return ("tensor", tuple(batch.shape), str(batch.dtype))
    if isinstance(batch, np.ndarray):
        return ("array", batch.shape, str(batch.dtype))
    if isinstance(batch, Mapping):
        return ("mapping", *((str(key), form(value)) for key, value in batch.items()))
    if isinstance(batch, (list, tuple)):
        return ("sequence", *map(form, batch))
    return (type(batch).__name__,)


def require_rowwise(collate: Collate, samples: Sequence[Any], padding: Any, size: int) -> tuple[Any, ...]:
    """The form of every batch, once it has shown that rows do not depend on each other.

    Args:
        collate: The user's function.
        samples: Two records.
        padding: A blank one.
        size: Rows of a batch.

    Raises:
        InputError: 2813 when a tensor has another number of rows, or a row depends on others or on chance.
    """
    padded = PaddedCollate(collate, padding, size)
    with foreign(lambda error: InputError(2813, f"the collate function fails on padding: {type(error).__name__}")):
        empty, alone = padded([]), [padded([samples[0]]), padded([samples[-1]])]
    expected = form(empty)
    leaves = list(_tensors(empty))
    if not leaves or any(not leaf.dim() or leaf.shape[0] != size for leaf in leaves):
        raise InputError(2813, "not one row a record", expected=f"tensors whose first axis is {size}", got=expected)
    orders = [(), (0,), (1,), (0, 1), (1, 0)]
    for order in orders * _TRIALS:
        rows = order[:size]
        batch = padded([samples[-which] for which in rows])
        for other in (batch, *alone):
            if form(other) != expected:
                raise InputError(2813, "a batch's shape follows its rows", expected=expected, got=form(other))
        wanted = [*(alone[which] for which in rows), *[empty] * (size - len(rows))]
        if not _rows_are(batch, wanted):
            raise InputError(2813, "the collate function gives a row that depends on others, or on chance")
    return expected


def _rows_are(batch: Any, wanted: Sequence[Any]) -> bool:
    """Whether each row of a batch is the first one of another, all of one form; what is no number counts as equal."""
    for place, leaf in enumerate(_tensors(batch)):
        firsts = torch.stack([list(_tensors(other))[place][0] for other in wanted])
        if not bool(((leaf == firsts) | ((leaf != leaf) & (firsts != firsts))).all()):
            return False
    return True


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, np.ndarray) and batch.dtype.kind in "biufc":
        yield torch.from_numpy(batch)
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from _tensors(value)
