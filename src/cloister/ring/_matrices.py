"""Every product as products of matrices of limbs: what all our kernels share, whatever multiplies the limbs.

A convolution's windows are copied side by side a few images at a time (never all of them: the copy is ``h·w`` times as
large as an image). Its input gradient is the convolution of the output's gradient in phases (``_windows``), its
weight gradient the same windows contracted over images and pixels. Convolutions with few channels a group, such as
depthwise ones, would be many tiny matrices; they go to ``_narrow``.

Memory beside operands and result: for matrix products the right operand once more as limbs (as many bytes for the
``int8`` arithmetic, 4 to 8 times as many for ``fp64``); for convolutions the same of the weights, or of the result
where that is the weights'; and ``scratch_bytes``, a few times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from cloister.ring._kernels import check_operands
from cloister.ring._narrow import is_narrow, narrow_correlation, narrow_weights
from cloister.ring._operators import Conv2d, Product
from cloister.ring._windows import Axis, forward_axes, framed, phases, windows

if TYPE_CHECKING:
    from torch import Tensor

    from cloister.ring._limbs import Arithmetic

__all__ = ["MatrixKernels"]


class MatrixKernels:
    """Exact products by an exact product of matrices of limbs.

    Args:
        arithmetic: What multiplies the matrices.
        scratch_bytes: About how large a copy of windows, or of a matrix's limbs, is at once.
    """

    name = "matrices"

    def __init__(self, arithmetic: Arithmetic, *, scratch_bytes: int) -> None:
        self.arithmetic = arithmetic
        self.scratch_bytes = scratch_bytes

    def product(self, product: Product, left: Tensor, right: Tensor) -> Tensor:
        """As :meth:`cloister.ring.RingKernels.product`."""
        check_operands(product, left, right)
        if not (left.numel() and right.numel()):
            return torch.zeros(product.result, dtype=torch.int32, device=left.device)
        out = torch.empty(product.result, dtype=torch.int32, device=left.device)
        if isinstance(product.operator, Conv2d):
            self._convolve(product, product.operator, left, right, out)
        else:
            self._matmul(product, left, right, out)
        return out

    # ---- matrix products -----------------------------------------------------------------------------------

    def _matmul(self, product: Product, left: Tensor, right: Tensor, out: Tensor) -> None:
        if product.role == "forward":
            a, b = left, right
        elif product.role == "input_gradient":
            a, b = left, right.mT
        else:
            a, b = right.mT, left.mT
        groups = math.prod(product.x[:-2])
        a, b = a.reshape(groups, *a.shape[-2:]), b.reshape(groups, *b.shape[-2:])
        out = out.view(groups, *product.result[-2:])
        counts = self._limbs(a, b)
        row_bytes = max(a.shape[2] * counts[0] * self.arithmetic.itemsize, b.shape[1] * 4)
        rows = max(1, self.scratch_bytes // row_bytes)
        together = max(1, rows // a.shape[1])
        for group in range(0, groups, together):
            which = slice(group, group + together)
            others = self._matrix(b[which], counts[1], descending=True)
            for row in range(0, a.shape[1], rows):
                part = self._matrix(a[which, row : row + rows], counts[0])
                out[which, row : row + rows] = self.arithmetic.multiply(part, others)

    def _matrix(self, values: Tensor, count: int, *, descending: bool = False) -> Tensor:
        """``(G, M, K)`` integers to ``(G, M, count, K)`` limbs, their last two axes one in memory."""
        if values.stride(2) != 1 and values.stride(1) == 1 and not self.arithmetic.contraction_last:
            limbs = self.arithmetic.split(values.mT.contiguous(), count, axis=1, descending=descending)
            return limbs.permute(0, 3, 1, 2)
        return self.arithmetic.split(values.contiguous(), count, axis=2, descending=descending)

    # ---- convolutions --------------------------------------------------------------------------------------

    def _convolve(self, product: Product, operator: Conv2d, left: Tensor, right: Tensor, out: Tensor) -> None:
        if product.role == "weight_gradient":
            rows, columns = forward_axes(operator, product.x, product.w)
            if is_narrow(product.w, operator.groups):
                narrow_weights(left, right, rows, columns, out)
            else:
                self._weights(left, right, rows, columns, operator.groups, out)
            return
        if product.role == "forward":
            rows, columns = forward_axes(operator, product.x, product.w)
            self._correlate(left, right, rows, columns, operator.groups, out)
            return
        out.zero_()  # no tap may reach a pixel at all
        swapped = _swapped(right, operator.groups)
        for row in phases(operator, 0, product.x[2], product.w[2]):
            for column in phases(operator, 1, product.x[3], product.w[3]):
                target = out[:, :, row.first :: operator.stride[0], column.first :: operator.stride[1]]
                taps = swapped[:, :, row.taps][:, :, :, column.taps]
                self._correlate(left, taps, row.axis, column.axis, operator.groups, target)

    def _correlate(self, images: Tensor, weights: Tensor, rows: Axis, columns: Axis, groups: int, out: Tensor) -> None:
        """``(B, C, H, W)`` and ``(O, C / groups, h, w)``: each window's sum, to ``out`` ``(B, O, H', W')``."""
        if is_narrow(tuple(weights.shape), groups):
            narrow_correlation(images, weights, rows, columns, out)
            return
        outputs, each = weights.shape[:2]
        counts = self._limbs(images, weights)
        filters = weights.reshape(groups, outputs // groups, each, -1).transpose(2, 3).flatten(2)
        matrix = self.arithmetic.split(filters.contiguous(), counts[1], axis=2, descending=True)
        for which, some in self._pieces(images, rows, columns, groups, filters.shape[2] * counts[0]):
            read = self._windows(images[which], some, columns, groups, counts[0], channels_last=True)
            found = self._rows(read, matrix).view(groups, -1, some.count, columns.count, outputs // groups)
            first = (some.start - rows.start) // rows.step
            target = out[which, :, first : first + some.count]
            target.copy_(found.permute(1, 0, 4, 2, 3).reshape(target.shape))

    def _rows(self, read: Tensor, matrix: Tensor) -> Tensor:
        """Windows as ``windows`` gives them, times ``(G, O, limbs, terms)``: ``(G, windows, O)``."""
        copied = read.reshape(read.shape[0], -1, read.shape[4], matrix.shape[3])
        return self.arithmetic.multiply(copied.contiguous(), matrix)  # a view's rows overlap where windows do

    def _weights(self, images: Tensor, gradients: Tensor, rows: Axis, columns: Axis, groups: int, out: Tensor) -> None:
        """``(B, C, H, W)`` and ``(B, O, H', W')``: their sum over images and places, for each tap, to ``out``."""
        outputs, each = out.shape[:2]
        total = out.new_zeros(groups, outputs // groups, rows.taps * columns.taps * each)
        counts = self._limbs(images, gradients)
        for which, some in self._pieces(images, rows, columns, groups, total.shape[2] * counts[0]):
            first = (some.start - rows.start) // rows.step
            last = self.arithmetic.contraction_last
            read = self._windows(images[which], some, columns, groups, counts[0], channels_last=not last)
            count = read.shape[1] * some.count * columns.count
            if last:
                matrix = read.permute(0, 5, 6, 7, 4, 1, 2, 3).reshape(groups, -1, counts[0], count).contiguous()
            else:
                read = read.permute(0, 4, 1, 2, 3, 5, 6, 7).reshape(groups, counts[0], count, -1).contiguous()
                matrix = read.permute(0, 3, 1, 2)
            other = gradients[which, :, first : first + some.count]
            other = other.reshape(other.shape[0], groups, outputs // groups, -1).permute(1, 2, 0, 3).flatten(2)
            limbs = self.arithmetic.split(other.contiguous(), counts[1], axis=2, descending=True)
            total += self.arithmetic.multiply(matrix, limbs).mT
        found = total.view(outputs, rows.taps, columns.taps, each)
        out.copy_(found.permute(0, 3, 1, 2))

    def _windows(
        self, images: Tensor, rows: Axis, columns: Axis, groups: int, count: int, *, channels_last: bool
    ) -> Tensor:
        limbs = self.arithmetic.split(framed(images, rows, columns, channels_last=channels_last), count, axis=0)
        return windows(limbs.permute(0, 1, 4, 2, 3) if channels_last else limbs, rows, columns, groups)

    def _pieces(
        self, images: Tensor, rows: Axis, columns: Axis, groups: int, limbs: int
    ) -> Iterator[tuple[slice, Axis]]:
        """Some images, or some rows of one image's windows, so that their copy is about ``scratch_bytes``."""
        row_bytes = columns.count * groups * limbs * self.arithmetic.itemsize
        some = max(1, self.scratch_bytes // row_bytes)
        together = max(1, some // rows.count)
        for image in range(0, images.shape[0], together):
            for row in range(0, rows.count, some):
                yield slice(image, image + together), rows.narrow(row, min(some, rows.count - row))

    def _limbs(self, a: Tensor, b: Tensor) -> tuple[int, int]:
        return self.arithmetic.limbs(a.dtype, b.dtype), self.arithmetic.limbs(b.dtype, a.dtype)


def _swapped(weights: Tensor, groups: int) -> Tensor:
    """Filters an input channel instead of an output channel: ``(O, C / groups, …)`` to ``(C, O / groups, …)``."""
    outputs, each, height, width = weights.shape
    grouped = weights.reshape(groups, outputs // groups, each, height, width)
    return grouped.transpose(1, 2).reshape(groups * each, outputs // groups, height, width)
