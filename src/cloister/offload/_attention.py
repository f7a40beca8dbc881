"""Attention on workers: the scores and the context are products, what lies between them is the enclave's.

Rules:

* Softmax, masks, scales and dropout are made in the enclave; torch's fused kernel runs only where both
  products stay.
* A row whose scores are all masked gives zeros, and no gradient, as in torch.
* ``nn.MultiheadAttention`` runs torch's own Python, so every option means what torch says it means; the kernel that
  torch uses in its place for inference is never taken, because a function mode is active.
"""

from __future__ import annotations

import math
from functools import cache
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cloister.offload._functional import matrix_product, stays

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloister.offload._passes import Call

__all__ = ["ATTENTION", "SCORES_AND_CONTEXT", "multi_head_attention_body"]

SCORES_AND_CONTEXT = ("scores", "context")
"""What attention's two products are called, in their order."""


def _scaled_dot_product(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    if stays(call, query, key, value) or min(query.dim(), key.dim(), value.dim()) < 2:
        return None
    if (is_causal and attn_mask is not None) or not 0 <= dropout_p <= 1:
        return None  # torch says why
    groups = 1
    if enable_gqa:
        if not query.dim() == key.dim() == value.dim() >= 3 or key.shape[-3] != value.shape[-3]:
            return None
        groups, left = divmod(query.shape[-3], key.shape[-3])
        if left or groups == 0:
            return None
    rows, keys = query.shape[-2], key.shape[-2]
    scaled = _grouped(query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale), groups)
    scores = matrix_product(call, scaled.shape, key.mT, SCORES_AND_CONTEXT[0])
    if scores is None:
        return None
    context = matrix_product(call, (*scores.batch, scaled.shape[-2], keys), value, SCORES_AND_CONTEXT[1])
    if context is None or (scores.route.reason is not None and context.route.reason is not None):
        return None
    weights = _softmax(_ungrouped(scores.make(scaled), groups, rows), _mask(attn_mask, is_causal, rows, keys))
    if dropout_p > 0:
        weights = torch.dropout(weights, dropout_p, True)
    return _ungrouped(context.make(_grouped(weights, groups)), groups, rows)


def _grouped(tensor: Tensor, groups: int) -> Tensor:
    """Rows of the query heads that share a key head, one after the other: ``(…, g·H, L, E)`` to ``(…, H, g·L, E)``."""
    if groups == 1:
        return tensor
    *leading, heads, rows, width = tensor.shape
    return tensor.reshape(*leading, heads // groups, groups * rows, width)


def _ungrouped(tensor: Tensor, groups: int, rows: int) -> Tensor:
    if groups == 1:
        return tensor
    *leading, heads, _, width = tensor.shape
    return tensor.reshape(*leading, heads * groups, rows, width)


def _mask(mask: Tensor | None, causal: bool, rows: int, keys: int) -> Tensor | None:
    return torch.ones(rows, keys, dtype=torch.bool).tril() if causal else mask


def _softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return scores.softmax(-1)
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    blind = (scores == -math.inf).all(-1, keepdim=True)
    # a row of -inf alone is nan after softmax, and its gradient stays nan whatever is filled in afterwards
    return scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)


def _multi_head(call: Call, *args: Any, **kwargs: Any) -> Any:
    return call.within(multi_head_attention_body(), SCORES_AND_CONTEXT)


@cache
def multi_head_attention_body() -> Callable[..., Any]:
    """Torch's own function, without the question whether somebody overrides it: that was asked already.

    Only that one name is another in it; asked again while the mode is active, it would come back here for ever.
    """
    function = F.multi_head_attention_forward
    assert isinstance(function, FunctionType)  # noqa: S101 - a plain Python function in every torch since 1.5
    body = FunctionType(
        function.__code__,
        {**function.__globals__, "has_torch_function": lambda _: False},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    body.__kwdefaults__ = function.__kwdefaults__
    return body


ATTENTION: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: _scaled_dot_product,
    torch.ops.aten.scaled_dot_product_attention.default: _scaled_dot_product,
    F.multi_head_attention_forward: _multi_head,
}
"""Offloaded forms, by function as torch hands it over."""
