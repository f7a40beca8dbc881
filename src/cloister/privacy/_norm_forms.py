"""Private forms of norms with a weight and a bias: of layers and groups, and those that come down to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cloister.errors import UnsupportedError
from cloister.privacy._elementwise_forms import elementwise
from cloister.privacy._makes import values
from cloister.privacy._roles import Roles, bare, require_data

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloister.privacy._kernels import NormGradients
    from cloister.privacy._uses import Use
    from cloister.privacy._watch import Watch

__all__ = [
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "native_batch_norm",
    "native_layer_norm",
    "rectified_group_norm",
    "rms_norm",
]


class _Saved(NamedTuple):
    """What a backward needs of its forward."""

    x: Tensor
    weight: Tensor | None
    mean: Tensor
    deviation: Tensor
    rectified: Tensor | None  # the result, where a ReLU was its end


class _Norm(torch.autograd.Function):
    """A norm with a weight and a bias; its means and deviations are kept."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        x: Tensor,
        w: Tensor | None,
        b: Tensor | None,
        summand: Tensor | None,
        norm: _Layers | _Groups,
        of: Roles,
    ) -> Tensor:
        w, b = (None if each is None else each.contiguous() for each in (w, b))
        y, mean, deviation = norm.forward(x, w, b, summand)
        ctx.save_for_backward(x, w, mean, deviation, y if norm.rectified else None)
        ctx.norm, ctx.of = norm, of
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        use: Use = ctx.norm.use
        contributes = use.returned(dy)
        wanted = ctx.needs_input_grad
        found = ctx.norm.backward(dy, _Saved(*ctx.saved_tensors), input=wanted[1], summand=wanted[4])
        for source, rows in ((ctx.of.weight, found.weight), (ctx.of.bias, found.bias)):
            if contributes and source is not None:
                use.give(source, values(use, rows))
        return None, found.input, None, None, found.summand, None, None


@dataclass(frozen=True, slots=True)
class _Layers:
    """Each position is normalised over the last axes."""

    use: Use
    shape: list[int]
    eps: float
    rectified: ClassVar = False

    def forward(
        self, x: Tensor, w: Tensor | None, b: Tensor | None, summand: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_layer_norm(x, self.shape, w, b, self.eps)

    def backward(self, dy: Tensor, of: _Saved, *, input: bool, summand: bool) -> NormGradients:
        use, axes = self.use, len(self.shape)
        inputs, gradients, means, deviations = (
            use.by_example(each).flatten(-axes) for each in (of.x, dy, of.mean, of.deviation)
        )
        weight = None if of.weight is None else of.weight.flatten()
        statistics = means.squeeze(-1), deviations.squeeze(-1)
        found = use.kernels.layer_norm_backward(inputs, gradients, weight, *statistics, input=input)
        if found.input is None:
            return found
        return found._replace(input=use.as_data(found.input).reshape(of.x.shape))


@dataclass(frozen=True, slots=True)
class _Groups:
    """Channels of an example are normalised together, in groups; a sum and a ReLU may follow."""

    use: Use
    groups: int
    eps: float
    rectified: bool = False

    def forward(
        self, x: Tensor, w: Tensor | None, b: Tensor | None, summand: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        options = {"rectified": self.rectified, "summand": summand}
        return self.use.kernels.group_norm(x, w, b, groups=self.groups, eps=self.eps, **options)

    def backward(self, dy: Tensor, of: _Saved, *, input: bool, summand: bool) -> NormGradients:
        options = {"input": input, "rectified": of.rectified, "summand": summand}
        found = self.use.kernels.group_norm_backward(of.x, dy, of.weight, of.mean, of.deviation, **options)
        weight, bias = (self.use.by_example(each).sum(1) for each in (found.weight, found.bias))
        return found._replace(weight=weight, bias=bias)


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
    norm = _Layers(use, list(normalized_shape), eps)
    return _Norm.apply(watch.anchor, input, *bare(weight, bias), None, norm, of)  # type: ignore


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
    norm = _Groups(use, num_groups, eps)
    return _Norm.apply(watch.anchor, input, *bare(weight, bias), None, norm, of)  # type: ignore


def rectified_group_norm(
    watch: Watch,
    func: Any,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    summand: Tensor | None,
) -> Tensor:
    """A group norm, what is added to it, and a ReLU; see :mod:`cloister.privacy._shortcuts`."""
    require_data(watch, func, input, weight, bias)
    of = Roles(watch, weight, bias)
    use = watch.uses.begin("group_norm", of.all, input)
    norm = _Groups(use, num_groups, eps, rectified=True)
    return _Norm.apply(watch.anchor, input, *bare(weight, bias), summand, norm, of)  # type: ignore


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
