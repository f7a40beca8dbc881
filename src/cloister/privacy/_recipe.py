"""A recipe: all of a training that its guarantee does not depend on, as data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field

from cloister.ledger import Amount
from cloister.wire import Message

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

__all__ = ["Recipe"]


class Recipe(Message):
    """How gradients become steps.

    Attributes:
        optimizer: ``sgd`` or ``adam``.
        learning_rate: At the beginning.
        momentum: Of SGD.
        weight_decay: L2 penalty's factor.
        schedule: ``constant``, or ``cosine``: down to nothing at the last step.
        micro_batch: Rows at a time; about 64 when left out. Memory against time, nothing else.
    """

    format: Literal["cloister/training-recipe/v1"] = "cloister/training-recipe/v1"
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: Amount
    momentum: Amount = "0"
    weight_decay: Amount = "0"
    schedule: Literal["constant", "cosine"] = "constant"
    micro_batch: Annotated[int, Field(ge=1, le=1 << 20)] | None = None

    def optimizer_of(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Torch's optimizer of these parameters."""
        rate, decay = float(self.learning_rate), float(self.weight_decay)
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
        return torch.optim.SGD(parameters, lr=rate, momentum=float(self.momentum), weight_decay=decay)

    def rows_at_a_time(self, most_rows: int) -> int | None:
        """Of a micro-batch: whole units of ``most_rows`` rows, one at least."""
        return None if self.micro_batch is None else -(-self.micro_batch // most_rows) * most_rows

    def rate_at(self, step: int, *, of: int) -> float:
        """The learning rate of a step, counted from 0."""
        share = 1.0 if self.schedule == "constant" else (1 + math.cos(math.pi * step / of)) / 2
        return float(self.learning_rate) * share
