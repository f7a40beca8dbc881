"""Private forms of convolutions along one axis or two."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cloister.errors import UnsupportedError
from cloister.privacy._contributions import Turned
from cloister.privacy._kernels import conv2d_weight
from cloister.privacy._makes import bias_rows, of_pictures
from cloister.privacy._roles import Roles, bare, require_data

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloister.privacy._contributions import Make
    from cloister.privacy._kernels import Order
    from cloister.privacy._uses import Use
    from cloister.privacy._watch import Watch

__all__ = ["convolution", "convolution_whole"]


class _Convolution(torch.autograd.Function):
    """A convolution, padded alike on both sides."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, x: Tensor, w: Tensor, b: Tensor | None, use: Use, of: Roles, shape: _Shape
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.use, ctx.of, ctx.shape = use, of, shape
        return torch.convolution(x, w, b, *shape[:3], False, [0] * len(shape[0]), shape[3])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        use: Use = ctx.use
        if use.returned(dy):
            if ctx.of.weight is not None:
                use.give(ctx.of.weight, *_convolution_rows(use, x, dy, w.shape, ctx.shape))
            if ctx.of.bias is not None:
                use.give(ctx.of.bias, bias_rows(use, use.by_example(dy).transpose(1, 2)))
        dx = None
        if ctx.needs_input_grad[1]:
            stride, padding, dilation, groups = ctx.shape
            dx, _, _ = torch.ops.aten.convolution_backward(
                dy, x, w, None, stride, padding, dilation, False, [0] * len(stride), groups, [True, False, False]
            )
        return None, dx, None, None, None, None, None


_Shape = tuple[list[int], list[int], list[int], int]
"""Stride, padding, dilation, groups."""


def _convolution_rows(use: Use, x: Tensor, dy: Tensor, weight: torch.Size, shape: _Shape) -> tuple[Make, Turned | None]:
    """Rows in the weight's order, and in the kernels' own where that is faster: of more taps than one."""
    stride, padding, dilation, groups = shape
    kernel = tuple(weight[2:])
    if len(kernel) == 1:  # a picture one row high
        x, dy = x.unsqueeze(2), dy.unsqueeze(2)
        kernel, stride, padding, dilation = (1, *kernel), [1, *stride], [0, *padding], [1, *dilation]
    options = {"kernel": kernel, "stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}

    kernels = use.kernels

    def ordered(order: Order) -> Make:
        return of_pictures(
            use,
            lambda rows, squares, add, some: kernels.conv2d_rows(
                x[some], dy[some], rows, squares, **options, groups=groups, add=add, order=order
            ),
        )

    if math.prod(kernel) == 1:
        return ordered("weight"), None
    back = functools.partial(conv2d_weight, inputs=weight[1], kernel=options["kernel"])
    return ordered("weight"), Turned(ordered("kernel"), lambda row: back(row).reshape(weight))


def convolution(
    watch: Watch,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """A convolution as ``torch.conv1d`` and ``torch.conv2d`` are called."""
    require_data(watch, func, input, weight, bias)
    spatial = weight.dim() - 2
    if input.dim() != weight.dim():
        raise UnsupportedError(8858, got=f"{func.__name__} of one example without an axis for it")
    strides, dilations = _each(stride, spatial), _each(dilation, spatial)
    if padding == "same":
        spans = [step * (size - 1) for step, size in zip(dilations, weight.shape[2:], strict=True)]
        if any(span % 2 for span in spans):
            edges = [edge for span in reversed(spans) for edge in (span // 2, span - span // 2)]
            input, spans = F.pad(input, edges), [0] * spatial
        paddings = [span // 2 for span in spans]
    else:
        paddings = [0] * spatial if padding == "valid" else _each(padding, spatial)  # type: ignore[arg-type]
    of = Roles(watch, weight, bias)
    use = watch.uses.begin(func.__name__, of.all, input)
    shape = strides, paddings, dilations, groups
    return _Convolution.apply(watch.anchor, input, *bare(weight, bias), use, of, shape)  # type: ignore[return-value]


def convolution_whole(
    watch: Watch,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """A convolution as ``torch.convolution`` is called."""
    if transposed or weight.dim() not in (3, 4):
        raise UnsupportedError(8855, got=f"{func.__name__}, transposed or along more than two axes")
    return convolution(watch, func, input, weight, bias, stride, padding, dilation, groups)


def _each(value: int | Sequence[int], count: int) -> list[int]:
    found = [value] * count if isinstance(value, int) else list(value)
    return found * count if len(found) == 1 else found
