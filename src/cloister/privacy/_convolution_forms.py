"""Private forms of convolutions along one axis or two."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cloister.errors import UnsupportedError
from cloister.privacy._contributions import Turned
from cloister.privacy._kernels import Biases, conv2d_weight
from cloister.privacy._makes import bias_rows, of_pictures
from cloister.privacy._offloaded import product_of
from cloister.privacy._outsourced import Entries
from cloister.privacy._roles import Roles, bare, own, require_data
from cloister.ring import Conv2d

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloister.offload import Apart
    from cloister.privacy._contributions import Make
    from cloister.privacy._kernels import Order
    from cloister.privacy._uses import Use
    from cloister.privacy._watch import Watch

__all__ = ["convolution", "convolution_whole"]


class _Convolution(torch.autograd.Function):
    """A convolution, padded alike on both sides."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        x: Tensor,
        w: Tensor,
        b: Tensor | None,
        use: Use,
        of: Roles,
        shape: _Shape,
        apart: Apart | None,
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.use, ctx.of, ctx.shape, ctx.apart = use, of, shape, apart
        if apart is not None:
            y = apart.forward(_picture(x))
            y = y if b is None else y.add_(b.reshape(-1, 1, 1))
            return y if x.dim() == 4 else own(y.squeeze(2))
        return torch.convolution(x, w, b, *shape[:3], False, [0] * len(shape[0]), shape[3])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        use: Use = ctx.use
        apart: Apart | None = ctx.apart
        if use.returned(dy):
            if ctx.of.weight is not None and apart is not None and apart.integers is not None:
                use.give_outsourced(ctx.of.weight, apart, _picture(dy), _pictures(use, x, w.shape, ctx.shape))
                if ctx.of.bias is not None:
                    use.give(ctx.of.bias, bias_rows(use, use.by_example(dy).transpose(1, 2)))
            else:
                _contribute(use, ctx.of, x, dy, w.shape, ctx.shape)
        dx = None
        if ctx.needs_input_grad[1] and apart is not None:
            dx = apart.toward_x(_picture(dy)).reshape(x.shape)
        elif ctx.needs_input_grad[1]:
            stride, padding, dilation, groups = ctx.shape
            dx, _, _ = torch.ops.aten.convolution_backward(
                dy, x, w, None, stride, padding, dilation, False, [0] * len(stride), groups, [True, False, False]
            )
        return None, dx, None, None, None, None, None, None


_Shape = tuple[list[int], list[int], list[int], int]
"""Stride, padding, dilation, groups."""


def _contribute(use: Use, of: Roles, x: Tensor, dy: Tensor, weight: torch.Size, shape: _Shape) -> None:
    """Rows of weight and bias: at once where nobody else adds to either, of the weight in the kernels' own order."""
    gradients = use.by_example(dy)
    if use.each > 1:  # an example's pictures behind each other, however the batch folds them
        x, dy = (use.by_example(side).flatten(0, 1) for side in (x, dy))
    stride, padding, dilation, groups = shape
    kernel = tuple(weight[2:])
    if len(kernel) == 1:  # a picture one row high
        x, dy = x.unsqueeze(2), dy.unsqueeze(2)
        kernel, stride, padding, dilation = (1, *kernel), [1, *stride], [0, *padding], [1, *dilation]
    options = {"kernel": kernel, "stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}
    kernels = use.kernels

    def back(row: Tensor) -> Tensor:
        return conv2d_weight(row, inputs=weight[1], kernel=options["kernel"]).reshape(weight)

    turns = math.prod(kernel) > 1  # one tap's rows are made as fast in the weight's own order
    if of.weight is not None and of.bias is not None:
        places = use.places(of.weight, of.bias, turned=back if turns else None)
        if places is not None:
            (rows, squares), biases = places
            order: Order = "kernel" if turns else "weight"
            kernels.conv2d_rows(x, dy, rows, squares, **options, groups=groups, order=order, biases=Biases(*biases))
            return

    def ordered(order: Order) -> Make:
        return of_pictures(
            use,
            lambda rows, squares, add, some: kernels.conv2d_rows(
                x[some], dy[some], rows, squares, **options, groups=groups, add=add, order=order
            ),
        )

    if of.weight is not None:
        use.give(of.weight, ordered("weight"), Turned(ordered("kernel"), back) if turns else None)
    if of.bias is not None:
        use.give(of.bias, bias_rows(use, gradients.transpose(1, 2)))


def _picture(tensor: Tensor) -> Tensor:
    """What runs along one axis as a picture one row high."""
    return tensor if tensor.dim() == 4 else tensor.unsqueeze(2)


def _flat(shape: _Shape) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Stride, padding and dilation by rows and columns."""
    stride, padding, dilation, _ = shape
    if len(stride) == 1:
        stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
    return (stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1])


def _apart(use: Use, x: Tensor, w: Tensor, of: Roles, shape: _Shape) -> Apart | None:
    operator = Conv2d(*_flat(shape), shape[3])
    x, w = _picture(x), _picture(w)
    positions = math.prod(operator.output(tuple(x.shape), tuple(w.shape))[2:])
    return product_of(use, operator, x, w, of.weight, entry=positions)


def _pictures(use: Use, x: Tensor, weight: torch.Size, shape: _Shape) -> Entries:
    """Entries that are pictures; a position's input is a window."""
    stride, padding, dilation = _flat(shape)
    kernel = (1, *weight[2:]) if len(weight) == 3 else tuple(weight[2:])
    count = len(x)
    return Entries(
        use.by_example(torch.arange(count, device=x.device).unsqueeze(1)).flatten(1),
        shape=weight,
        inputs=lambda values: F.unfold(values, kernel, dilation, padding, stride).mT,
        outputs=lambda values: values.flatten(2).mT,
        back=lambda total: total.reshape(weight),
    )


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
    apart = _apart(use, input, weight, of, shape)
    return _Convolution.apply(watch.anchor, input, *bare(weight, bias), use, of, shape, apart)  # type: ignore[return-value]


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
