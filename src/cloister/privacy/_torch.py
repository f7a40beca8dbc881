"""Row kernels of plain torch: any device, no compiler. What the compiled ones are compared with, and CUDA's.

A convolution's windows are copied side by side, ``taps`` times the input's memory, and multiplied example by example.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from cloister.privacy import _operands as operands
from cloister.privacy._kernels import LIMIT, Biases, NormGradients, Order, Pair

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TorchRowKernels"]

_COLUMNS = 1 << 18  # of rows that are rounded at once


class TorchRowKernels:
    """As :class:`cloister.privacy._kernels.RowKernels`, by torch.

    Args:
        device: Where everything lies.
    """

    name = "torch"

    def __init__(self, device: torch.device) -> None:
        self.device = device

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
        geometry = {"stride": stride, "padding": padding, "dilation": dilation}
        size = operands.check_conv2d(x, dy, kernel=kernel, **geometry, groups=groups, order=order, device=self.device)
        operands.check_rows(rows, squares, len(x), size, self.device)
        if not rows.numel():
            return
        read = F.unfold(x, kernel, **geometry).view(len(x), groups, -1, dy.shape[2] * dy.shape[3])
        made = dy.reshape(len(x), groups, -1, read.shape[3]) @ read.mT
        if order == "kernel":
            taps = kernel[0] * kernel[1]
            made = made.view(len(x), groups, dy.shape[1] // groups, -1, taps).permute(0, 4, 3, 1, 2)
        self._put(made.reshape(len(x), -1), rows, squares, add)
        if biases is not None:
            self.bias_rows(dy, biases.rows, biases.squares, add=add)

    def linear_rows(self, x: Tensor, dy: Tensor, rows: Tensor, squares: Tensor | None, *, add: bool = False) -> None:
        """See the seam."""
        size = operands.check_linear(x, dy, self.device)
        operands.check_rows(rows, squares, len(x), size, self.device)
        left, right = (side.reshape(len(x), math.prod(x.shape[1:-1]), side.shape[-1]) for side in (dy, x))
        self._put((left.mT @ right).flatten(1), rows, squares, add)

    def outer_squares(self, x: Tensor, dy: Tensor, squares: Tensor) -> None:
        """See the seam."""
        operands.check_outer(x, dy, self.device)
        operands.check_squares(squares, len(x), self.device)
        squares += x.double().square().sum(1) * dy.double().square().sum(1)

    def outer_sum_rounded(self, x: Tensor, dy: Tensor, factors: Tensor, total: Tensor) -> None:
        """See the seam."""
        size = operands.check_outer(x, dy, self.device)
        operands.check_sum(factors, total, len(x), size, self.device)
        scales, sums = dy * factors.float().unsqueeze(1), total.view(dy.shape[1], x.shape[1])
        for left, right in zip(scales, x, strict=True):
            sums += _rounded(left.unsqueeze(1) * right)

    def embedding_rows(
        self, tokens: Tensor, dy: Tensor, rows: Tensor, squares: Tensor | None, *, add: bool = False
    ) -> None:
        """See the seam."""
        _, size = operands.check_matrix(rows)
        operands.check_rows(rows, squares, len(tokens), size, self.device)
        operands.check_tokens(tokens, dy, size, self.device)
        made = dy.new_zeros(len(tokens), size // max(1, dy.shape[2]), dy.shape[2])
        made.scatter_add_(1, tokens.unsqueeze(2).expand(dy.shape), dy)
        self._put(made.flatten(1), rows, squares, add)

    def embedding_squares(self, tokens: Tensor, dy: Tensor, squares: Tensor) -> None:
        """See the seam."""
        operands.check_embedding(tokens, dy, self.device)
        operands.check_squares(squares, len(tokens), self.device)
        squares += _merged(tokens, dy).double().square().sum((1, 2))

    def embedding_sum_rounded(self, tokens: Tensor, dy: Tensor, factors: Tensor, total: Tensor) -> None:
        """See the seam."""
        operands.check_sum(factors, total, len(tokens), len(total), self.device)
        operands.check_tokens(tokens, dy, len(total), self.device)
        values = _rounded(_merged(tokens, dy) * factors.float()[:, None, None])
        total.view(-1, dy.shape[2]).index_add_(0, tokens.flatten(), values.flatten(0, 1))

    def bias_rows(self, dy: Tensor, rows: Tensor, squares: Tensor | None, *, add: bool = False) -> None:
        """See the seam."""
        operands.check_rows(rows, squares, len(dy), operands.check_bias(dy, self.device), self.device)
        self._put(dy.double().flatten(2).sum(2).float() if dy.dim() > 2 else dy, rows, squares, add)

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
        size = operands.check_group_norm(x, groups, self.device)
        operands.check_channels(size, self.device, weight, bias)
        operands.check_summand(summand, x, self.device)
        shape = len(x), size, math.prod(x.shape[2:]), groups
        y, mean, deviation = torch.native_group_norm(_dense(x), weight, bias, *shape, eps)
        y = y if summand is None else y.add_(summand)
        return y.relu_() if rectified else y, mean, deviation

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
        size = operands.check_norm(x, dy, mean, deviation, "group", self.device)
        operands.check_channels(size, self.device, weight)
        operands.check_summand(rectified, x, self.device)
        if rectified is not None:
            dy = torch.ops.aten.threshold_backward(dy, rectified, 0)
        passed = dy if summand and rectified is not None else None
        count, groups = mean.shape
        positions = math.prod(x.shape[2:])
        values = x.double().reshape(count, groups, size // groups * positions)
        gradients = dy.double().reshape(count, size, positions)
        normal = (values - mean.unsqueeze(2)) * deviation.unsqueeze(2)
        weights = (normal.view_as(gradients) * gradients).sum(2)
        dx = None
        if input:
            laid = _dense(x)
            dy = dy.contiguous(memory_format=_format(laid))
            shape = count, size, positions, groups
            backward = torch.ops.aten.native_group_norm_backward
            statistics = mean.contiguous(), deviation.contiguous()
            dx, _, _ = backward(dy, laid, *statistics, weight, *shape, [True, False, False])
        return NormGradients(weights.float(), gradients.sum(2).float(), dx, passed)

    def layer_norm_backward(
        self, x: Tensor, dy: Tensor, weight: Tensor | None, mean: Tensor, deviation: Tensor, *, input: bool = True
    ) -> NormGradients:
        """See the seam."""
        size = operands.check_norm(x.movedim(-1, 1), dy.movedim(-1, 1), mean, deviation, "position", self.device)
        operands.check_channels(size, self.device, weight)
        means, deviations = mean.contiguous().unsqueeze(-1), deviation.contiguous().unsqueeze(-1)
        gradients = dy.double()
        products = (x.double() - means) * deviations * gradients
        weights, biases = (each.flatten(1, -2).sum(1) if x.dim() > 2 else each for each in (products, gradients))
        dx = None
        if input:
            backward = torch.ops.aten.native_layer_norm_backward
            sides = dy.contiguous(), x.contiguous()
            dx, _, _ = backward(*sides, [size], means, deviations, weight, None, [True, False, False])
        return NormGradients(weights.float(), biases.float(), dx)

    def square_rows(self, rows: Tensor, squares: Tensor) -> None:
        """See the seam."""
        operands.check_rows(rows, squares, *operands.check_matrix(rows), self.device)
        squares += torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()

    def sum_rounded(self, rows: Tensor, factors: Tensor, total: Tensor) -> None:
        """See the seam."""
        count, size = operands.check_matrix(rows)
        operands.check_rows(rows, None, count, size, self.device)
        operands.check_sum(factors, total, count, size, self.device)
        scales = factors.float().unsqueeze(1)
        for start in range(0, rows.shape[1], _COLUMNS):
            some = slice(start, start + _COLUMNS)
            total[some] += _rounded(rows[:, some] * scales).sum(0)

    def release(self, total: Tensor, scale: float, released: Tensor) -> None:
        """See the seam."""
        operands.check_release(total, released, self.device)
        released.copy_(total.double() * scale)
        total.zero_()

    def _put(self, values: Tensor, rows: Tensor, squares: Tensor | None, add: bool) -> None:
        if add:
            rows += values
        else:
            rows.copy_(values)
        if squares is not None:
            self.square_rows(rows, squares)


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=_format(x))


def _format(x: Tensor) -> torch.memory_format:
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _rounded(values: Tensor) -> Tensor:
    return torch.where(values.abs() <= LIMIT, values.round(), 0.0).to(torch.int64)


def _merged(tokens: Tensor, dy: Tensor) -> Tensor:
    """Gradients of equal tokens of an example summed where the token is first; zeros elsewhere."""
    length = tokens.shape[1]
    places = torch.arange(length, device=tokens.device)
    equal = tokens.unsqueeze(2) == tokens.unsqueeze(1)
    first = torch.where(equal, places, length).amin(2) if length else tokens
    return torch.zeros_like(dy).scatter_add_(1, first.unsqueeze(2).expand(dy.shape), dy)
