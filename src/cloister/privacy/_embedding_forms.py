"""Private forms of tables that are read by number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cloister.errors import UnsupportedError
from cloister.privacy._roles import require_data

if TYPE_CHECKING:
    from cloister.privacy._contributions import Make
    from cloister.privacy._slots import Source
    from cloister.privacy._uses import Use
    from cloister.privacy._watch import Watch

__all__ = ["embedding", "embedding_table"]


class _Embedding(torch.autograd.Function):
    """Rows of a table; the padding's row gets no gradient."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, tokens: Tensor, w: Tensor, padding: int | None, use: Use, source: Source
    ) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.use, ctx.source, ctx.padding = use, source, padding
        return F.embedding(tokens, w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[None, ...]:
        (tokens,) = ctx.saved_tensors
        use: Use = ctx.use
        if use.returned(dy):
            some, gradient = use.by_example(tokens).flatten(1), use.by_example(dy).flatten(1, -2)
            if ctx.padding is not None:
                gradient = gradient.masked_fill((some == ctx.padding).unsqueeze(-1), 0.0)
            kernels = use.kernels
            if not use.give_thin(
                ctx.source,
                lambda squares: kernels.embedding_squares(some, gradient, squares),
                lambda factors, total: kernels.embedding_sum_rounded(some, gradient, factors, total),
            ):
                make: Make = lambda rows, squares, add, part: kernels.embedding_rows(  # noqa: E731
                    some[part], gradient[part], rows, squares, add=add
                )
                use.give(ctx.source, make)
        return None, None, None, None, None, None


def embedding(
    watch: Watch,
    func: Any,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Rows of a table, as ``functional.embedding`` is called."""
    require_data(watch, func, input)
    if max_norm is not None or scale_grad_by_freq or sparse:
        raise UnsupportedError(8855, got="embedding with max_norm, scale_grad_by_freq or sparse")
    source = watch.source(weight)
    if source is None:
        raise UnsupportedError(8855, got="embedding of a parameter that is no weight")
    if padding_idx is not None:
        padding_idx %= weight.shape[0]
    use = watch.uses.begin("embedding", (source,), input)
    return _Embedding.apply(watch.anchor, input, weight.detach(), padding_idx, use, source)  # type: ignore[return-value]


def embedding_table(
    watch: Watch,
    func: Any,
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Rows of a table, as ``torch.embedding`` is called: the table first, -1 for no padding."""
    padding = None if padding_idx == -1 else padding_idx
    return embedding(watch, func, indices, weight, padding, scale_grad_by_freq=scale_grad_by_freq, sparse=sparse)
