"""Private forms of products of matrices: a weight on the right, turned or not; in front or of more axes, copied."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cloister.errors import UnsupportedError
from cloister.privacy._elementwise_forms import spread
from cloister.privacy._makes import bias_rows
from cloister.privacy._offloaded import product_of
from cloister.privacy._outsourced import Entries
from cloister.privacy._roles import Roles, bare, own, require_data
from cloister.ring import MatMul

if TYPE_CHECKING:
    from cloister.offload import Apart
    from cloister.privacy._contributions import Make
    from cloister.privacy._slots import Source
    from cloister.privacy._uses import Use
    from cloister.privacy._watch import Watch

__all__ = ["addmm", "linear", "matmul"]


class _Linear(torch.autograd.Function):
    """``x @ w.T + b``; with ``swapped``, ``x @ w + b``."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        x: Tensor,
        w: Tensor,
        b: Tensor | None,
        use: Use,
        of: Roles,
        swapped: bool,
        apart: Apart | None,
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.use, ctx.of, ctx.swapped, ctx.apart = use, of, swapped, apart
        if apart is None:
            return own(F.linear(x, w.mT if swapped else w, b))
        y = apart.forward(x.reshape(-1, x.shape[-1]))
        y = y if b is None else y.add_(b)
        return own(y.reshape(*x.shape[:-1], -1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        use: Use = ctx.use
        apart: Apart | None = ctx.apart
        if use.returned(dy):
            some_x, some_dy = (use.by_example(each).flatten(1, -2) for each in (x, dy))
            left, right = (some_dy, some_x) if ctx.swapped else (some_x, some_dy)
            if ctx.of.weight is not None and apart is not None and apart.integers is not None:
                use.give_outsourced(ctx.of.weight, apart, dy.reshape(-1, dy.shape[-1]), _rows(use, x, w, ctx.swapped))
            elif ctx.of.weight is not None and not _outer(use, ctx.of.weight, left, right):
                make: Make = lambda rows, squares, add, some: use.kernels.linear_rows(  # noqa: E731
                    left[some], right[some], rows, squares, add=add
                )
                use.give(ctx.of.weight, make)
            if ctx.of.bias is not None:
                use.give(ctx.of.bias, bias_rows(use, some_dy.movedim(-1, 1)))
        dx = None
        if ctx.needs_input_grad[1]:
            if apart is None:
                dx = F.linear(dy, w if ctx.swapped else w.mT)
            else:
                dx = apart.toward_x(dy.reshape(-1, dy.shape[-1])).reshape(x.shape)
        return None, dx, None, None, None, None, None, None


def _rows(use: Use, x: Tensor, w: Tensor, swapped: bool) -> Entries:
    """Entries that are rows, of one position each."""
    leading = x.shape[:-1]
    numbers = torch.arange(math.prod(leading), device=x.device).reshape(*leading, 1)
    return Entries(
        use.by_example(numbers).flatten(1),
        shape=w.shape,
        inputs=lambda values: values.unsqueeze(1),
        outputs=lambda values: values.unsqueeze(1),
        back=lambda total: total.mT if swapped else total,
    )


def _outer(use: Use, source: Source, x: Tensor, dy: Tensor) -> bool:
    """Contributes without rows, where an example has one position."""
    if x.shape[1] != 1:
        return False
    x, dy, kernels = x[:, 0], dy[:, 0], use.kernels
    return use.give_thin(
        source,
        lambda squares: kernels.outer_squares(x, dy, squares),
        lambda factors, total: kernels.outer_sum_rounded(x, dy, factors, total),
    )


def linear(watch: Watch, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``input @ weight.T + bias``."""
    require_data(watch, func, input, weight, bias)
    of = Roles(watch, weight, bias)
    use = watch.uses.begin("linear", of.all, input)
    apart = product_of(use, MatMul(), input.reshape(-1, input.shape[-1]), weight, of.weight)
    return _Linear.apply(watch.anchor, input, *bare(weight, bias), use, of, False, apart)  # type: ignore[return-value]


def matmul(watch: Watch, func: Any, input: Tensor, other: Tensor) -> Tensor:
    """``input @ other``: a weight on the right as in a Linear; one on the left, or of more axes, copied to examples."""
    if other.dim() == 2 and watch.source(other) is not None and input.dim() >= 2:
        return _swapped(watch, func, input, other, None)
    data = input if watch.is_data(input) else other
    if data.dim() < 3 or min(input.dim(), other.dim()) < 2:
        raise UnsupportedError(8855, got=f"{func.__name__} with a parameter beside data of {data.dim()} axes")
    return func(*(spread(watch, func, each, data) for each in (input, other)))


def addmm(watch: Watch, func: Any, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Any:
    """``mat1 @ mat2 + input``."""
    if beta != 1 or alpha != 1 or input.dim() != 1:
        raise UnsupportedError(8855, got=f"{func.__name__} with factors, or with a bias of more than one axis")
    return _swapped(watch, func, mat1, mat2, input)


def _swapped(watch: Watch, func: Any, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    require_data(watch, func, x, w, b)
    of = Roles(watch, w, b)
    use = watch.uses.begin("matmul", of.all, x)
    apart = product_of(use, MatMul(), x.reshape(-1, x.shape[-1]), w.mT, of.weight)
    return _Linear.apply(watch.anchor, x, *bare(w, b), use, of, True, apart)  # type: ignore[return-value]
