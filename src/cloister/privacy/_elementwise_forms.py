"""Private forms of what treats every element by itself: a parameter is spread to the examples, each with a copy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cloister.errors import UnsupportedError
from cloister.privacy._makes import values
from cloister.privacy._names import name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cloister.privacy._contributions import Make
    from cloister.privacy._slots import Source
    from cloister.privacy._uses import Use
    from cloister.privacy._watch import Watch

__all__ = ["alike", "attention", "elementwise", "filled", "joined", "prelu", "spread"]

_LAST_TWO = (-2, -1)
_PRODUCTS = frozenset(("matmul", "__matmul__", "bmm", "scaled_dot_product_attention"))
_MOST_SQUARE = 1 << 28  # elements of the gradients an example of a tensor that has every example's copy


class _Spread(torch.autograd.Function):
    """A parameter with an axis of examples: each has a copy, and the gradient of its own copy."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        parameter: Tensor,
        use: Use,
        source: Source,
        padded: tuple[int, ...],
        across: tuple[int, ...],
    ) -> Tensor:
        ctx.use, ctx.source, ctx.padded = use, source, padded
        return use.spread(parameter.reshape(padded), across)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[None, ...]:
        use: Use = ctx.use
        if use.returned(dy):
            use.give(ctx.source, _copies(use, dy, ctx.padded))
        return None, None, None, None, None, None


def _copies(use: Use, dy: Tensor, padded: tuple[int, ...]) -> Make:
    """Rows from the gradient of every example's copy; of a tensor that had the copies itself, zero for all others'."""
    gradient, size = use.by_example(dy), math.prod(padded)
    if dy.numel() != size:
        return values(use, gradient[:, 0] if use.each == 1 else gradient.sum(1))
    if size * use.examples > _MOST_SQUARE:
        raise UnsupportedError(8855, got="a parameter that is expanded to every example, and large")
    places = use.by_example(torch.arange(size, device=dy.device).reshape(padded))
    rows = dy.new_zeros(use.examples, size)
    return values(use, rows.scatter_(1, *(each.reshape(use.examples, -1) for each in (places, gradient))))


def spread(watch: Watch, func: Any, value: Any, data: Tensor, *, across: tuple[int, ...] | None = None) -> Any:
    """A source with a copy an example, of as many axes as the data have; anything else as it is.

    Args:
        watch: The watch.
        func: Meets it.
        value: The source.
        data: What it is met with.
        across: Axes along which the function does more than put entry to entry; known by its name when left out.

    Raises:
        UnsupportedError: 8855 for a parameter of more axes than the data.
    """
    source = watch.source(value)
    if source is None:
        return value
    if value.dim() > data.dim():
        raise UnsupportedError(8855, got=f"{func.__name__} with a parameter of more axes than the data has")
    use = watch.uses.begin(func.__name__, (source,), data)
    padded = (1,) * (data.dim() - value.dim()) + tuple(value.shape)
    if across is None:
        across = _LAST_TWO if name_of(func) in _PRODUCTS else ()
    axes = tuple(axis % data.dim() for axis in across)
    return _Spread.apply(watch.anchor, value.detach(), use, source, padded, axes)


def elementwise(watch: Watch, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Any function that treats every element by itself."""
    if any(isinstance(value, Tensor) for value in kwargs.values()):
        raise UnsupportedError(8855, got=f"{func.__name__} with a tensor that is named")
    data = _widest(watch, args)

    def each(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(spread(watch, func, item, data) for item in value)
        return spread(watch, func, value, data)

    return func(*map(each, args), **kwargs)


def joined(watch: Watch, func: Any, tensors: Sequence[Tensor], dim: int = 0, **other: Any) -> Tensor:
    """Tensors side by side, along another axis than that of the examples (8855)."""
    dim = other.pop("axis", dim)
    if other:
        raise UnsupportedError(8855, got=f"{func.__name__} with {', '.join(other)}")
    data = _widest(watch, tensors)
    return func([spread(watch, func, each, data, across=(dim,)) for each in tensors], dim)


def filled(watch: Watch, func: Any, input: Tensor, mask: Tensor, value: Any) -> Tensor:
    """A parameter in the place of some elements, or of all others."""
    return elementwise(watch, torch.where, mask, value, input)


def _widest(watch: Watch, args: Sequence[Any]) -> Tensor:
    """The data of most axes."""
    flat: list[Any] = []
    for value in args:
        flat.extend(value if isinstance(value, (tuple, list)) else (value,))
    found = [value for value in flat if isinstance(value, Tensor) and watch.is_data(value)]
    return max(found, key=lambda each: each.dim())


def attention(watch: Watch, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Scaled dot-product attention with a mask, or queries, that are parameters: copied to every example."""
    names = ("query", "key", "value", "attn_mask")
    given = dict(zip(names, args, strict=False)) | {name: kwargs.pop(name) for name in names if name in kwargs}
    data = _widest(watch, tuple(given.values()))
    return func(*(spread(watch, func, given.get(name), data) for name in names), *args[len(names) :], **kwargs)


def alike(watch: Watch, func: Any, tensor: Tensor, other: Tensor) -> Tensor:
    """What takes of the second tensor its shape or its element type only, so that nothing meets."""
    name = name_of(func)
    if name == "type_as":
        return watch.again(Tensor.to, tensor, other.dtype)
    return watch.again(Tensor.expand if name == "expand_as" else Tensor.reshape, tensor, other.shape)


def prelu(watch: Watch, func: Any, input: Tensor, weight: Tensor) -> Tensor:
    """Negative elements times a slope a channel."""
    slope = watch.again(Tensor.reshape, weight, (-1,) + (1,) * (input.dim() - 2) if input.dim() > 1 else (-1,))
    return torch.where(input > 0, input, elementwise(watch, torch.mul, input, slope))
