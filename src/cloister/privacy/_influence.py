"""What an outlier does to other examples' part of a step: nothing, or the model mixes examples.

Tried beside the run, on a twin of the model as it is at a step, by an engine of the same settings that adds no noise:
a micro-batch of the first records, once with a carrier whose loss is 0 and once with an outlier in its place. Both
count nothing by themselves, so both sums are the others'. Rows that are kept apart are the same, bit for bit.

A try says what the model can do; whether it shows in what was released is for :mod:`cloister.privacy._wager` to find.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cloister.privacy._canaries import ORDINARY, Canaried, carried
from cloister.privacy._grid import GRID_SIGMA
from cloister.privacy._padding import PaddedCollate, blank

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from cloister.privacy._engine import Engine

__all__ = ["Influence"]


_AT_FIRST, _SELDOM = 4, 8


class Influence:
    """Of an outlier.

    Args:
        engine: The audited one.
        model: The one that is trained, with canaries.
        twin: Another like it, which is this object's own.
        collate: Of marked records.
        data: The records; as many of the first are tried as are expected in a micro-batch.
        outlier: Makes an outlier of a record.
        rows: Of a micro-batch.
    """

    def __init__(
        self,
        engine: Engine,
        model: nn.Module,
        twin: Canaried,
        *,
        collate: Callable[[list[Any]], Any],
        data: Any,
        outlier: Callable[[Any], Any],
        rows: int,
    ) -> None:
        self._audited, self._model, self._twin, self._rows = engine, model, twin, rows
        self._engine = dataclasses.replace(engine, model=twin, noise=_Nothing(), grouped=False)
        self._engine.plan = engine.plan  # what was found out about the model stays as it is
        records = [data[row] for row in range(min(len(data), max(1, rows // 2)))]
        last = twin.marks.stop  # the mark of an outlier
        padded = PaddedCollate(collate, blank((ORDINARY, records[0])), rows)
        some = [(ORDINARY, record) for record in records[: rows - 1]]
        device = next(iter(twin.parameters())).device
        self._batches = [
            pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, padded([*some, each]))
            for each in ((last, records[0]), (last, outlier(records[0])))
        ]
        self._tries, self._noticed = 0, False
        self._owners = torch.where(torch.arange(rows) <= len(some), torch.arange(rows), -1)

    def along(self) -> Tensor:
        """``(P,)``: what others add up to beside an outlier, less what they add up to without one.

        While nothing was ever seen of it, it is tried now and then only, and otherwise zero.
        """
        self._tries += 1
        if self._tries > _AT_FIRST and self._tries % _SELDOM and not self._noticed:
            return torch.zeros(self._engine.size)
        self._twin.load_state_dict(self._model.state_dict())
        self._twin.train(self._model.training)
        self._engine.clipping = copy.copy(self._audited.clipping)  # one that follows a quantile follows its own
        without, with_ = (self._sum(batch) for batch in self._batches)
        self._noticed = self._noticed or not torch.equal(without, with_)
        return with_ - without

    def _sum(self, batch: Any) -> Tensor:
        parameters = [parameter for parameter in self._twin.parameters() if parameter.requires_grad]
        self._engine.begin()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            losses = self._engine.forward(self._twin.__call__, (tuple(batch), {}), self._rows)
        (losses.sum() if self._engine.reduction == "sum" else losses.mean()).backward()
        self._engine.gather(self._owners)
        self._engine.release()
        summed = carried(parameters)
        for parameter in parameters:
            parameter.grad = None
        return summed


class _Nothing:
    """In place of noise."""

    sigma, distance = GRID_SIGMA, None

    def add_to(self, total: Tensor) -> None:
        """Leaves it."""

    def prefetch(self, *counts: int) -> None:
        """Has nothing to make."""
