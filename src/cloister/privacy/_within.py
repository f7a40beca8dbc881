"""Calls that a record can make fail, made so that none does: what it points at is brought within what there is.

Whether a private training failed is seen by whoever hosts it. A label that no class has, or a word that no embedding
has, would end it, so each attempt would tell one bit of whether such a record was drawn, and no noise hides that. Where
that matters (:mod:`cloister.privacy._stage`), such places count as the nearest that there is, an integer that is
divided by zero is divided by one, and a probability is brought into 0 to 1. A record that is not as the program expects
has a gradient of little use, bounded as any other's. What still ends a program is an inverse of a matrix that has none,
or an integer to a negative power.

A loss's ``ignore_index`` stays what it is. Numbers that are no numbers make nothing fail: such a row counts as nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["WITHIN"]

Arguments = list[Any]
"""Of an operator, in its schema's order, without those that are given by name only."""


_MASKS = (torch.bool, torch.uint8)


def _embedding(weight: Tensor, indices: Tensor, *others: Any) -> Arguments:
    return [weight, indices.clamp(0, len(weight) - 1), *others]


def _along(tensor: Tensor, dim: int, index: Tensor, *others: Any) -> Arguments:
    return [tensor, dim, index.clamp(0, max(0, tensor.shape[dim] - 1)), *others]


def _index(tensor: Tensor, indices: Sequence[Tensor | None], *others: Any) -> Arguments:
    """A mask fits by its shape, or never; it is no place."""
    found = [
        index if index is None or index.dtype in _MASKS else index.clamp(-tensor.shape[axis], tensor.shape[axis] - 1)
        for axis, index in enumerate(indices)
    ]
    return [tensor, found, *others]


def _one_hot(tensor: Tensor, classes: int) -> Arguments:
    return [tensor.clamp(0, classes - 1), classes]


def _nll_loss(scores: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int) -> Arguments:
    classes = scores.shape[0] if scores.dim() == 1 else scores.shape[1]
    within = torch.where(target == ignore_index, target, target.clamp(0, classes - 1))
    return [scores, within, weight, reduction, ignore_index]


def _divided(numerator: Any, denominator: Any, *others: Any) -> Arguments:
    if isinstance(denominator, Tensor) and not denominator.is_floating_point() and denominator.dtype != torch.bool:
        denominator = torch.where(denominator == 0, 1, denominator)
    return [numerator, denominator, *others]


def _bernoulli(probabilities: Tensor, *others: Any) -> Arguments:
    return [probabilities.nan_to_num(0.0).clamp(0, 1), *others]


def _cross_entropy(found: Tensor, target: Tensor, *others: Any) -> Arguments:
    return [each.nan_to_num(0.0).clamp(0, 1) for each in (found, target)] + [*others]


WITHIN: dict[str, Callable[..., Arguments]] = {
    f"aten::{name}": function
    for function, names in {
        _embedding: "embedding.default",
        _along: (
            "gather.default index_select.default scatter.src scatter.value scatter.reduce scatter.value_reduce"
            " scatter_add.default scatter_reduce.two"
        ),
        _index: "index.Tensor _unsafe_index.Tensor index_put.default _unsafe_index_put.default",
        _one_hot: "one_hot.default",
        _nll_loss: "nll_loss_forward.default nll_loss2d_forward.default",
        _bernoulli: "bernoulli.default",
        _cross_entropy: "binary_cross_entropy.default",
        _divided: "div.Tensor_mode floor_divide.default remainder.Tensor fmod.Tensor",
    }.items()
    for name in names.split()
}
"""By operator: its arguments, as they may be given."""
