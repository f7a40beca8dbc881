"""What kernels are given, held to what they take: whoever writes to addresses must know every shape first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from cloister.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from cloister.privacy._kernels import Pair

__all__ = [
    "check_bias",
    "check_channels",
    "check_conv2d",
    "check_embedding",
    "check_group_norm",
    "check_linear",
    "check_matrix",
    "check_norm",
    "check_outer",
    "check_release",
    "check_rows",
    "check_squares",
    "check_sum",
    "check_summand",
    "check_tokens",
]


def check_rows(rows: Tensor, squares: Tensor | None, count: int, size: int, device: torch.device) -> None:
    """Raises 2821 unless rows, and squares where there are any, can be written."""
    _require("rows", rows, torch.float32, (count, size), device)
    if size > 1 and rows.stride(1) != 1:
        raise InputError(2821, expected="rows whose columns are adjacent", got=f"strides {rows.stride()}")
    if squares is not None:
        check_squares(squares, count, device)


def check_matrix(rows: Tensor) -> tuple[int, int]:
    """How many rows and columns; raises 2821 where it has other axes."""
    if rows.dim() != 2:
        raise InputError(2821, expected="two axes", got=tuple(rows.shape))
    return rows.shape[0], rows.shape[1]


def check_squares(squares: Tensor, count: int, device: torch.device) -> None:
    """Raises 2821 unless squares can be added to."""
    _require("squares", squares, torch.float64, (count,), device)
    _require_contiguous("squares", squares)


def check_sum(factors: Tensor, total: Tensor, count: int, size: int, device: torch.device) -> None:
    """Raises 2821 unless rows can be summed so."""
    _require("factors", factors, torch.float64, (count,), device)
    _require("total", total, torch.int64, (size,), device)
    _require_contiguous("total", total)


def check_release(total: Tensor, released: Tensor, device: torch.device) -> None:
    """Raises 2821 unless a total can be released so."""
    _require("total", total, torch.int64, (len(released),), device)
    _require("released", released, torch.float32, (len(released),), device)
    _require_contiguous("total", total)
    _require_contiguous("released", released)


def check_conv2d(
    x: Tensor,
    dy: Tensor,
    *,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    order: str,
    device: torch.device,
) -> int:
    """A row's size; raises 2821 or 2822 unless dy can be the gradient of this convolution of x."""
    if x.dim() != 4 or dy.dim() != 4:
        raise InputError(2821, expected="four axes", got=f"{tuple(x.shape)} and {tuple(dy.shape)}")
    if min(*kernel, *stride, *dilation, groups) < 1 or min(padding) < 0 or order not in ("weight", "kernel"):
        got = f"kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation}, order '{order}'"
        raise InputError(2822, got=got)
    sizes = tuple(
        (x.shape[2 + axis] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    )
    if x.shape[1] % groups or dy.shape[1] % groups or min(sizes) < 1:
        raise InputError(2822, got=f"{groups} groups of {tuple(x.shape)}, giving {tuple(dy.shape)}")
    _require("x", x, torch.float32, tuple(x.shape), device)
    _require("dy", dy, torch.float32, (x.shape[0], dy.shape[1], *sizes), device)
    return dy.shape[1] * (x.shape[1] // groups) * kernel[0] * kernel[1]


def check_linear(x: Tensor, dy: Tensor, device: torch.device) -> int:
    """A row's size; raises 2821 unless dy can be the gradient of a Linear of x."""
    if x.dim() < 2 or dy.dim() != x.dim():
        raise InputError(2821, expected="as many axes, two or more", got=f"{tuple(x.shape)} and {tuple(dy.shape)}")
    _require("x", x, torch.float32, tuple(x.shape), device)
    _require("dy", dy, torch.float32, (*x.shape[:-1], dy.shape[-1]), device)
    return x.shape[-1] * dy.shape[-1]


def check_outer(x: Tensor, dy: Tensor, device: torch.device) -> int:
    """A row's size; raises 2821 unless each example has one position."""
    if x.dim() != 2:
        raise InputError(2821, expected="one position an example", got=tuple(x.shape))
    return check_linear(x, dy, device)


def check_embedding(tokens: Tensor, dy: Tensor, device: torch.device) -> None:
    """Raises 2821 unless dy can be the gradient of what was looked up at these tokens."""
    if tokens.dim() != 2 or dy.dim() != 3:
        raise InputError(2821, expected="(B, T) and (B, T, D)", got=f"{tuple(tokens.shape)} and {tuple(dy.shape)}")
    _require("tokens", tokens, torch.int64, tuple(dy.shape[:2]), device)
    _require("dy", dy, torch.float32, tuple(dy.shape), device)


def check_tokens(tokens: Tensor, dy: Tensor, size: int, device: torch.device) -> None:
    """Raises 2821 unless dy can be the gradient of an embedding of so many floats at these tokens."""
    check_embedding(tokens, dy, device)
    width = dy.shape[2]
    vocabulary = size // width if width else 0
    if vocabulary * width != size:
        raise InputError(2821, expected=f"a whole number of tokens of {width}", got=size)
    if tokens.numel():
        low, high = (int(end) for end in tokens.aminmax())
        if low < 0 or high >= vocabulary:
            raise InputError(2821, "a token is outside the vocabulary", expected=f"0 to {vocabulary - 1}")


def check_bias(dy: Tensor, device: torch.device) -> int:
    """A row's size; raises 2821 unless dy has examples and channels."""
    if dy.dim() < 2:
        raise InputError(2821, expected="two axes or more", got=tuple(dy.shape))
    _require("dy", dy, torch.float32, tuple(dy.shape), device)
    return dy.shape[1]


def check_norm(x: Tensor, dy: Tensor, mean: Tensor, deviation: Tensor, per: str, device: torch.device) -> int:
    """A row's size; raises 2821 unless these are a norm's."""
    size = check_bias(dy, device)
    _require("x", x, torch.float32, tuple(dy.shape), device)
    if per == "position":
        wanted: tuple[int, ...] = (dy.shape[0], *dy.shape[2:])
    elif per == "group" and mean.dim() == 2 and mean.shape[1] and size % mean.shape[1] == 0:
        wanted = (dy.shape[0], mean.shape[1])
    else:
        raise InputError(2821, expected="a mean of each position, or of each group of channels", got=tuple(mean.shape))
    for name, tensor in (("mean", mean), ("deviation", deviation)):
        _require(name, tensor, torch.float32, wanted, device)
    return size


def check_group_norm(x: Tensor, groups: int, device: torch.device) -> int:
    """How many channels; raises 2821 unless they are so many groups."""
    size = check_bias(x, device)
    if groups < 1 or size % groups:
        raise InputError(2821, expected="groups of equally many channels", got=f"{groups} groups of {size}")
    return size


def check_channels(size: int, device: torch.device, *parameters: Tensor | None) -> None:
    """Raises 2821 unless each parameter is absent or has a float for each channel."""
    for parameter in parameters:
        if parameter is not None:
            _require("weight or bias", parameter, torch.float32, (size,), device)
            _require_contiguous("weight or bias", parameter)


def check_summand(summand: Tensor | None, x: Tensor, device: torch.device) -> None:
    """Raises 2821 unless it is absent, or as large as what it is added to."""
    if summand is not None:
        _require("summand", summand, torch.float32, tuple(x.shape), device)


def _require(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape or tensor.device.type != device.type:
        raise InputError(
            2821,
            f"{name} does not fit",
            expected=f"{dtype} of shape {shape} on {device.type}",
            got=f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device.type}",
        )


def _require_contiguous(name: str, tensor: Tensor) -> None:
    if math.prod(tensor.shape) > 1 and not tensor.is_contiguous():
        raise InputError(2821, f"{name} does not lie in one piece", got=f"strides {tensor.stride()}")
