"""A model with its loss, and the batches that they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cloister.errors import InputError

__all__ = ["ForwardLoss", "Loss", "leaves", "resized"]

Loss = Callable[[nn.Module, Any], Tensor]
"""From a model and a batch to one loss a row: ``loss(model, batch) -> (B,)``."""


class ForwardLoss(nn.Module):
    """A model and its loss as one module, so that a loss may hold parameters and buffers too."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> Tensor:
        """One loss a row."""
        return self.loss(self.model, batch)


def leaves(batch: Any) -> dict[str, Tensor]:
    """A batch's tensors by their place in it: ``"0"``, ``"labels"``, ``"inputs.mask"``.

    Raises:
        InputError: 2831 when there is something else in it, or the tensors do not have as many rows each.
    """
    found: dict[str, Tensor] = {}
    for path, leaf in pytree.tree_flatten_with_path(batch)[0]:
        name = ".".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)
        if not isinstance(leaf, Tensor) or leaf.dim() == 0:
            raise InputError(2831, f"{name or 'the batch'} is no tensor with a row an example", got=type(leaf).__name__)
        found[name] = leaf
    rows = {name: len(leaf) for name, leaf in found.items()}
    if len(set(rows.values())) != 1 or 0 in rows.values():
        raise InputError(2831, "its tensors do not have as many rows each", got=str(rows)[:200])
    return found


def resized(batch: Any, rows: int) -> Any:
    """A batch of another size: its rows again and again."""
    leaves(batch)
    return pytree.tree_map(lambda leaf: leaf[torch.arange(rows, device=leaf.device) % len(leaf)], batch)
