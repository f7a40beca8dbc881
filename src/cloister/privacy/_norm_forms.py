"""Private forms of norms with a weight and a bias: of layers and groups, and those that come down to them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cloister.errors import UnsupportedError
from cloister.privacy._elementwise_forms import elementwise
from cloister.privacy._makes import bias_rows, of_pictures
from cloister.privacy._roles import Roles, bare, require_data

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloister.privacy._contributions import Make
    from cloister.privacy._uses import Use
    from cloister.privacy._watch import Watch

__all__ = [
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "native_batch_norm",
    "native_layer_norm",
    "rms_norm",
]


class _LayerNorm(torch.autograd.Function):
    """A layer norm; its mean and deviation are kept for the weight's rows."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        x: Tensor,
        w: Tensor | None,
        b: Tensor | None,
        shape: list[int],
        eps: float,
        use: Use,
        of: Roles,
    ) -> Tensor:
        y, mean, deviation = torch.native_layer_norm(x, shape, w, b, eps)
        ctx.save_for_backward(x, w, mean, deviation)
        ctx.shape, ctx.use, ctx.of = shape, use, of
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w, mean, deviation = ctx.saved_tensors
        use: Use = ctx.use
        if use.returned(dy):
            axes = len(ctx.shape)
            inputs, gradient = (use.by_example(each).flatten(-axes).flatten(1, -2).transpose(1, 2) for each in (x, dy))
            if ctx.of.weight is not None:
                means, deviations = (use.by_example(each).flatten(1) for each in (mean, deviation))
                make: Make = lambda rows, squares, add, some: use.kernels.affine_rows(  # noqa: E731
                    inputs[some], gradient[some], rows, squares,
                    mean=means[some], deviation=deviations[some], per="position", add=add,
                )  # fmt: skip
                use.give(ctx.of.weight, make)
            if ctx.of.bias is not None:
                use.give(ctx.of.bias, bias_rows(use, gradient))
        dx = None
        if ctx.needs_input_grad[1]:
            dx, _, _ = torch.ops.aten.native_layer_norm_backward(
                dy, x, ctx.shape, mean, deviation, w, None, [True, False, False]
            )
        return None, dx, None, None, None, None, None, None


def layer_norm(
    watch: Watch,
    func: Any,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """Each position is normalised over the last axes."""
    require_data(watch, func, input, weight, bias)
    of = Roles(watch, weight, bias)
    use = watch.uses.begin("layer_norm", of.all, input)
    shape = list(normalized_shape)
    return _LayerNorm.apply(watch.anchor, input, *bare(weight, bias), shape, eps, use, of)  # type: ignore


class _GroupNorm(torch.autograd.Function):
    """A group norm; its mean and deviation are kept for the weight's rows."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        x: Tensor,
        w: Tensor | None,
        b: Tensor | None,
        groups: int,
        eps: float,
        use: Use,
        of: Roles,
    ) -> Tensor:
        count, channels = x.shape[:2]
        size = math.prod(x.shape[2:])
        y, mean, deviation = torch.native_group_norm(x, w, b, count, channels, size, groups, eps)
        ctx.save_for_backward(x, w, mean, deviation)
        ctx.sizes, ctx.use, ctx.of = (count, channels, size, groups), use, of
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w, mean, deviation = ctx.saved_tensors
        use: Use = ctx.use
        dy = dy.contiguous(memory_format=_format(x))
        if use.returned(dy):
            if ctx.of.weight is not None:
                count, _, _, groups = ctx.sizes
                means, deviations = mean.view(count, groups), deviation.view(count, groups)
                make: Make = lambda rows, squares, add, some: use.kernels.affine_rows(  # noqa: E731
                    x[some], dy[some], rows, squares,
                    mean=means[some], deviation=deviations[some], per="group", add=add,
                )  # fmt: skip
                use.give(ctx.of.weight, of_pictures(use, make))
            if ctx.of.bias is not None:
                use.give(ctx.of.bias, bias_rows(use, use.by_example(dy).transpose(1, 2)))
        dx = None
        if ctx.needs_input_grad[1]:
            dx, _, _ = torch.ops.aten.native_group_norm_backward(
                dy, x, mean, deviation, w, *ctx.sizes, [True, False, False]
            )
        return None, dx, None, None, None, None, None, None


def _format(x: Tensor) -> torch.memory_format:
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def group_norm(
    watch: Watch,
    func: Any,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """Channels ``(B, C, …)`` of an example are normalised together, in groups."""
    require_data(watch, func, input, weight, bias)
    of = Roles(watch, weight, bias)
    use = watch.uses.begin("group_norm", of.all, input)
    x = input.contiguous(memory_format=_format(input))
    return _GroupNorm.apply(watch.anchor, x, *bare(weight, bias), num_groups, eps, use, of)  # type: ignore


def native_layer_norm(
    watch: Watch,
    func: Any,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer norm, and beside it the mean and the inverse deviation, of which nobody takes a derivative."""
    with torch.no_grad():
        _, mean, deviation = torch.native_layer_norm(input, list(normalized_shape), None, None, eps)
    return layer_norm(watch, func, input, normalized_shape, weight, bias, eps), mean, deviation


def instance_norm(
    watch: Watch,
    func: Any,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    """A group norm whose groups are single channels."""
    if running_mean is not None or running_var is not None or not use_input_stats:
        raise UnsupportedError(8855, got=f"{func.__name__} with statistics of former batches")
    return group_norm(watch, func, input, input.shape[1], weight, bias, eps)


def rms_norm(
    watch: Watch,
    func: Any,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Each position is divided by the root of its mean square, then scaled."""
    require_data(watch, func, input, weight)
    return elementwise(watch, torch.mul, torch.rms_norm(input, list(normalized_shape), None, eps), weight)


def batch_norm(
    watch: Watch,
    func: Any,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    """With stored statistics: every element by itself. With the batch's own it never comes here (8852)."""
    require_data(watch, func, input, weight, bias, running_mean, running_var)
    made = torch.batch_norm(input, None, None, running_mean, running_var, training, momentum, eps, cudnn_enabled)
    return _of_channels(watch, made, weight, bias)


def native_batch_norm(
    watch: Watch,
    func: Any,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, and beside it two tensors that are empty."""
    require_data(watch, func, input, weight, bias, running_mean, running_var)
    made, *rest = func(input, None, None, running_mean, running_var, momentum, eps)
    return (_of_channels(watch, made, weight, bias), *rest)


def _of_channels(watch: Watch, made: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """A factor and a summand for each channel of ``(B, C, …)``."""
    for meet, parameter in ((torch.mul, weight), (torch.add, bias)):
        if parameter is not None:
            a_channel = watch.again(Tensor.reshape, parameter, (-1,) + (1,) * (made.dim() - 2))
            made = elementwise(watch, meet, made, a_channel)
    return made
