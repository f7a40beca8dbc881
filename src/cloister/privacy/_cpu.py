"""Row kernels of a CPU: torch's tensors in, addresses out; the loops are in ``_conv_rows`` and its neighbours."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.autograd.graph import increment_version

from cloister.privacy import _operands as operands
from cloister.privacy._bias_rows import bias_rows, square_rows
from cloister.privacy._conv_rows import NOWHERE, Target, wide_rows
from cloister.privacy._embedding_rows import embedding_rows, embedding_squares, embedding_sum_rounded
from cloister.privacy._group_norms import GroupNorm, group_norm, group_norm_backward
from cloister.privacy._kernels import Biases, NormGradients, Order, Pair
from cloister.privacy._layer_norms import LayerNorm, Positions, layer_norm_backward
from cloister.privacy._linear_rows import linear_rows, outer_squares, outer_sum_rounded
from cloister.privacy._narrow_rows import is_narrow, narrow_rows
from cloister.privacy._packing import Images, Windows
from cloister.privacy._rounded_sum import release, sum_rounded

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CpuRowKernels"]

_CPU = torch.device("cpu")


class CpuRowKernels:
    """As :class:`cloister.privacy._kernels.RowKernels`, compiled, on torch's number of threads."""

    name = "cpu"

    def conv2d_rows(
        self,
        x: Tensor,
        dy: Tensor,
        rows: Tensor,
        squares: Tensor | None,
        *,
        kernel: Pair,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
        add: bool = False,
        order: Order = "weight",
        biases: Biases | None = None,
    ) -> None:
        """See the seam."""
        size = operands.check_conv2d(
            x,
            dy,
            kernel=kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            order=order,
            device=_CPU,
        )
        operands.check_rows(rows, squares, len(x), size, _CPU)
        sums = NOWHERE if biases is None else _target(biases.rows, biases.squares, add)
        if biases is not None:
            operands.check_rows(biases.rows, biases.squares, len(x), dy.shape[1], _CPU)
        if not rows.numel():
            return
        taps = kernel[0] * kernel[1]
        windows = Windows(*kernel, *stride, *padding, *dilation, groups)
        if biases is not None and (taps == 1 or is_narrow(windows, dy.shape[1])):  # such rows are made in another way
            self.bias_rows(dy, biases.rows, biases.squares, add=add)
            sums = NOWHERE
        if taps == 1 and stride == (1, 1) and padding == (0, 0):  # a picture's rows are one
            x, dy = _flat(x), _flat(dy)
        target = _target(rows, squares, add, turned=order == "weight")
        (left, x), (right, dy) = _readable(x), _readable(dy)
        if taps == 1 and stride == (1, 1) and padding == (0, 0) and groups == 1 and order == "weight":
            linear_rows(left, right, len(x), target)
            return
        if is_narrow(windows, right.channels):
            narrow_rows(left, right, windows, len(x), target)
        else:
            wide_rows(left, right, windows, len(x), target, sums)

    def linear_rows(self, x: Tensor, dy: Tensor, rows: Tensor, squares: Tensor | None, *, add: bool = False) -> None:
        """See the seam."""
        size = operands.check_linear(x, dy, _CPU)
        operands.check_rows(rows, squares, len(x), size, _CPU)
        if not x.numel() or not dy.numel():
            self._nothing(rows, squares, add)
            return
        target = _target(rows, squares, add)
        (left, x), (right, dy) = _readable(_positions(x)), _readable(_positions(dy))
        linear_rows(left, right, len(x), target)

    def outer_squares(self, x: Tensor, dy: Tensor, squares: Tensor) -> None:
        """See the seam."""
        operands.check_outer(x, dy, _CPU)
        operands.check_squares(squares, len(x), _CPU)
        (left, x), (right, dy) = _readable(_positions(x)), _readable(_positions(dy))
        outer_squares(left, right, len(x), _written(squares))

    def outer_sum_rounded(self, x: Tensor, dy: Tensor, factors: Tensor, total: Tensor) -> None:
        """See the seam."""
        size = operands.check_outer(x, dy, _CPU)
        operands.check_sum(factors, total, len(x), size, _CPU)
        scales = factors.float()
        (left, x), (right, dy) = _readable(_positions(x)), _readable(_positions(dy))
        outer_sum_rounded(left, right, len(x), scales.data_ptr(), _written(total))

    def embedding_rows(
        self, tokens: Tensor, dy: Tensor, rows: Tensor, squares: Tensor | None, *, add: bool = False
    ) -> None:
        """See the seam."""
        _, size = operands.check_matrix(rows)
        operands.check_rows(rows, squares, len(tokens), size, _CPU)
        operands.check_tokens(tokens, dy, size, _CPU)
        if not dy.numel():
            self._nothing(rows, squares, add)
            return
        which = tokens.contiguous()
        right, dy = _readable(_positions(dy))
        embedding_rows(which.data_ptr(), right, rows.shape[1], len(which), _target(rows, squares, add))

    def embedding_squares(self, tokens: Tensor, dy: Tensor, squares: Tensor) -> None:
        """See the seam."""
        operands.check_embedding(tokens, dy, _CPU)
        operands.check_squares(squares, len(tokens), _CPU)
        which = tokens.contiguous()
        right, dy = _readable(_positions(dy))
        embedding_squares(which.data_ptr(), right, len(which), _written(squares))

    def embedding_sum_rounded(self, tokens: Tensor, dy: Tensor, factors: Tensor, total: Tensor) -> None:
        """See the seam."""
        operands.check_sum(factors, total, len(tokens), len(total), _CPU)
        operands.check_tokens(tokens, dy, len(total), _CPU)
        which, scales = tokens.contiguous(), factors.float()
        right, dy = _readable(_positions(dy))
        embedding_sum_rounded(which.data_ptr(), right, len(which), scales.data_ptr(), _written(total))

    def bias_rows(self, dy: Tensor, rows: Tensor, squares: Tensor | None, *, add: bool = False) -> None:
        """See the seam."""
        operands.check_rows(rows, squares, len(dy), operands.check_bias(dy, _CPU), _CPU)
        right, dy = _readable(_channels(dy))
        bias_rows(right, len(dy), _target(rows, squares, add))

    def group_norm(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        *,
        groups: int,
        eps: float,
        rectified: bool = False,
        summand: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See the seam."""
        size = operands.check_group_norm(x, groups, _CPU)
        operands.check_channels(size, _CPU, weight, bias)
        operands.check_summand(summand, x, _CPU)
        count, positions = len(x), math.prod(x.shape[2:])
        images, laid = _readable(_channels(x))
        if not images.last:  # torch's own is faster there
            shape = count, size, positions, groups
            y, mean, deviation = torch.native_group_norm(x.contiguous(), weight, bias, *shape, eps)
            y = y if summand is None else y.add_(summand)
            return y.relu_() if rectified else y, mean, deviation
        y, mean, deviation = _like(x, last=True), *(x.new_empty(count, groups) for _ in range(2))
        other = None if summand is None else _dense(summand, last=True)
        norm = GroupNorm(
            groups,
            mean.data_ptr(),
            deviation.data_ptr(),
            _address(weight),
            _address(bias),
            eps,
            summand=_address(other),
            rectified=int(rectified),
        )
        group_norm(images, y.data_ptr(), norm, count)
        del laid, other  # they were read until here
        return y, mean, deviation

    def group_norm_backward(
        self,
        x: Tensor,
        dy: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        deviation: Tensor,
        *,
        input: bool = True,
        rectified: Tensor | None = None,
        summand: bool = False,
    ) -> NormGradients:
        """See the seam."""
        size = operands.check_norm(x, dy, mean, deviation, "group", _CPU)
        operands.check_channels(size, _CPU, weight)
        operands.check_summand(rectified, x, _CPU)
        count, groups = mean.shape
        means, deviations = mean.contiguous(), deviation.contiguous()
        left, laid = _readable(_channels(x))
        right, gradients = _readable(_channels(dy), last=bool(left.last))
        last = bool(left.last)
        y = None if rectified is None else _dense(rectified, last=last)
        dx, passed = (_like(x, last=last) if wanted else None for wanted in (input, summand and y is not None))
        weights, biases = (x.new_empty(count, size) for _ in range(2))
        norm = GroupNorm(
            groups,
            means.data_ptr(),
            deviations.data_ptr(),
            _address(weight),
            summand=_address(passed),
            rectified=_address(y),
        )
        group_norm_backward(left, right, _address(dx), weights.data_ptr(), biases.data_ptr(), norm, count)
        del laid, gradients, y  # they were read until here
        return NormGradients(weights, biases, dx, passed)

    def layer_norm_backward(
        self, x: Tensor, dy: Tensor, weight: Tensor | None, mean: Tensor, deviation: Tensor, *, input: bool = True
    ) -> NormGradients:
        """See the seam."""
        size = operands.check_norm(x.movedim(-1, 1), dy.movedim(-1, 1), mean, deviation, "position", _CPU)
        operands.check_channels(size, _CPU, weight)
        count, positions = len(x), math.prod(x.shape[1:-1])
        means, deviations = mean.contiguous(), deviation.contiguous()
        sides = [_rows_of(each.reshape(count, positions, size)) for each in (x, dy)]
        left, right = (Positions(each.data_ptr(), 4 * each.stride(0), 4 * each.stride(1)) for each in sides)
        dx = x.new_empty(x.shape) if input else None
        weights, biases = (x.new_empty(count, size) for _ in range(2))
        norm = LayerNorm(positions, size, means.data_ptr(), deviations.data_ptr(), _address(weight))
        layer_norm_backward(left, right, _address(dx), weights.data_ptr(), biases.data_ptr(), norm, count)
        return NormGradients(weights, biases, dx)

    def square_rows(self, rows: Tensor, squares: Tensor) -> None:
        """See the seam."""
        count, size = operands.check_matrix(rows)
        operands.check_rows(rows, squares, count, size, _CPU)
        square_rows(rows.data_ptr(), 4 * rows.stride(0), count, size, _written(squares))

    def sum_rounded(self, rows: Tensor, factors: Tensor, total: Tensor) -> None:
        """See the seam."""
        count, size = operands.check_matrix(rows)
        operands.check_rows(rows, None, count, size, _CPU)
        operands.check_sum(factors, total, count, size, _CPU)
        scales = factors.float()
        sum_rounded(rows.data_ptr(), 4 * rows.stride(0), count, size, scales.data_ptr(), _written(total))

    def release(self, total: Tensor, scale: float, released: Tensor) -> None:
        """See the seam."""
        operands.check_release(total, released, _CPU)
        release(_written(total), float(scale), _written(released), len(total))

    def _nothing(self, rows: Tensor, squares: Tensor | None, add: bool) -> None:
        """Adds rows of no positions."""
        if not add:
            rows.zero_()
        elif squares is not None:
            self.square_rows(rows, squares)


def _readable(tensor: Tensor, *, last: bool | None = None) -> tuple[Images, Tensor]:
    """Pictures where they lie, or a copy of them, and the tensor that must live as long as their address is used.

    Args:
        tensor: ``(B, C, H, W)``.
        last: To have channels last, or first; by default as they lie.
    """
    _, channels, height, width = tensor.shape
    each = 4 * channels * height * width
    if last is not True and tensor.is_contiguous():
        return Images(tensor.data_ptr(), each, 0, channels, height, width), tensor
    if last is not False and tensor.is_contiguous(memory_format=torch.channels_last):
        return Images(tensor.data_ptr(), each, 1, channels, height, width), tensor
    layouts = {False: (height * width, width, 1), True: (1, width * channels, channels)}
    for lies, wanted in layouts.items():
        if last in (None, lies) and all(
            size == 1 or stride == step
            for size, stride, step in zip(tensor.shape[1:], tensor.stride()[1:], wanted, strict=True)
        ):
            return Images(tensor.data_ptr(), 4 * tensor.stride(0), int(lies), *tensor.shape[1:]), tensor
    copied = tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    if copied.data_ptr() == tensor.data_ptr():  # torch calls it contiguous, because an axis has one element
        copied = tensor.clone(memory_format=torch.channels_last if last else torch.contiguous_format)
    return Images(copied.data_ptr(), 4 * copied.stride(0), int(bool(last)), *tensor.shape[1:]), copied


def _positions(tensor: Tensor) -> Tensor:
    """``(B, …, C)`` as pictures one position high, channels last."""
    flat = tensor.reshape(len(tensor), math.prod(tensor.shape[1:-1]), tensor.shape[-1])
    return flat.contiguous().permute(0, 2, 1).unsqueeze(2)


def _channels(tensor: Tensor) -> Tensor:
    """``(B, C, …)`` as pictures one position high."""
    return tensor.reshape(*tensor.shape[:2], 1, math.prod(tensor.shape[2:]))


def _rows_of(tensor: Tensor) -> Tensor:
    """``(B, T, C)`` with adjacent channels, without a copy where they are."""
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _like(x: Tensor, *, last: bool) -> Tensor:
    """Room for as many examples, which lie one behind the other, channels last or first."""
    return x.new_empty_strided(x.shape, _strides(x, last))  # no view: what a form returns may be written over


def _dense(x: Tensor, *, last: bool) -> Tensor:
    """Examples one behind the other, channels last or first; a copy unless they lie so."""
    return x if x.stride() == _strides(x, last) else _like(x, last=last).copy_(x)


def _strides(x: Tensor, last: bool) -> tuple[int, ...]:
    if last:
        return torch.empty(len(x), *x.shape[2:], x.shape[1], device="meta").movedim(-1, 1).stride()
    return torch.empty(x.shape, device="meta").stride()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _flat(tensor: Tensor) -> Tensor:
    """Pictures one position high, without a copy where channels lie first or last."""
    images, laid = _readable(tensor)
    if images.last:
        return laid.permute(0, 2, 3, 1).flatten(1, 2).permute(0, 2, 1).unsqueeze(2)
    return laid.flatten(2).unsqueeze(2)


def _target(rows: Tensor, squares: Tensor | None, add: bool, *, turned: bool = False) -> Target:
    return Target(
        _written(rows), 4 * rows.stride(0), 0 if squares is None else _written(squares), int(add), int(turned)
    )


def _written(tensor: Tensor) -> int:
    """The address of what is about to be written; torch counts who writes."""
    if not tensor.is_inference():
        increment_version(tensor)
    return tensor.data_ptr()
