"""Where a convolution reads: windows of an image that is framed by its zeros.

Along one axis, window ``i`` reads at ``start + i·step + t·spread`` for each tap ``t``. All three products of a
convolution read so; the input's gradient in ``stride`` phases, one for each remainder of a pixel's place, each of them
an ordinary convolution with stride 1 of the taps that reach such pixels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from cloister.ring._operators import Conv2d, Shape

__all__ = ["Axis", "Phase", "forward_axes", "framed", "phases", "windows"]


class Axis(NamedTuple):
    """Windows along one axis of an image.

    Attributes:
        start: Where the first window's first tap reads; negative in the frame.
        step: From one window to the next.
        spread: From one tap to the next.
        taps: How many there are.
        count: How many windows.
    """

    start: int
    step: int
    spread: int
    taps: int
    count: int

    @property
    def reach(self) -> int:
        """Length of what the windows read, frame included."""
        return (self.count - 1) * self.step + (self.taps - 1) * self.spread + 1

    def narrow(self, first: int, count: int) -> Axis:
        """Some of the windows."""
        return self._replace(start=self.start + first * self.step, count=count)


class Phase(NamedTuple):
    """Pixels ``first, first + stride, …`` of the input's gradient.

    Attributes:
        first: The first pixel.
        axis: What they read of the output's gradient.
        taps: The kernel's taps that they are made of, in the order in which ``axis`` reads.
    """

    first: int
    axis: Axis
    taps: list[int]


def forward_axes(operator: Conv2d, x: Shape, w: Shape) -> tuple[Axis, Axis]:
    """What the outputs read of ``x``, by rows and by columns."""
    y = operator.output(x, w)
    rows, columns = (
        Axis(-operator.padding[axis], operator.stride[axis], operator.dilation[axis], w[2 + axis], y[2 + axis])
        for axis in (0, 1)
    )
    return rows, columns


def phases(operator: Conv2d, axis: int, size: int, taps: int) -> list[Phase]:
    """What the pixels of the input's gradient read along one axis. Pixels that no tap reaches are in no phase.

    Args:
        operator: The geometry.
        axis: 0 for rows, 1 for columns.
        size: The image's size along the axis.
        taps: The kernel's size along the axis.
    """
    stride, padding, dilation = operator.stride[axis], operator.padding[axis], operator.dilation[axis]
    found: list[Phase] = []
    for first in range(min(stride, size)):
        # output p has its tap t on pixel p·stride + t·dilation - padding
        reached = [tap for tap in range(taps) if (first + padding - tap * dilation) % stride == 0]
        if reached:
            reached.reverse()  # so that places ascend
            start = (first + padding - reached[0] * dilation) // stride
            spread = dilation // math.gcd(dilation, stride)
            count = -(-(size - first) // stride)
            found.append(Phase(first, Axis(start, 1, spread, len(reached), count), reached))
    return found


def framed(images: Tensor, rows: Axis, columns: Axis, *, channels_last: bool) -> Tensor:
    """What the windows of both axes read, with zeros where that is outside the image.

    Shapes: ``(B, C, H, W)`` to contiguous ``(B, rows.reach, columns.reach, C)``, or with ``C`` in its own place.
    """
    batch, channels, height, width = images.shape
    top, left = max(rows.start, 0), max(columns.start, 0)
    bottom, right = min(rows.start + rows.reach, height), min(columns.start + columns.reach, width)
    shape = (batch, rows.reach, columns.reach, channels)
    inside = (slice(top - rows.start, bottom - rows.start), slice(left - columns.start, right - columns.start))
    part = images[:, :, top : max(top, bottom), left : max(left, right)]
    whole = part.shape[2:] == shape[1:3]
    if channels_last:
        frame = images.new_empty(shape) if whole else images.new_zeros(shape)
        target = frame.permute(0, 3, 1, 2)
    elif whole:
        return part.contiguous()
    else:
        frame = target = images.new_zeros((batch, channels, *shape[1:3]))
    if part.numel():
        target[:, :, inside[0], inside[1]].copy_(part)
    return frame


def windows(frame: Tensor, rows: Axis, columns: Axis, groups: int) -> Tensor:
    """A view of all windows, without copying.

    Shapes: ``(L, B, C, rows.reach, columns.reach)``, of any strides, to
    ``(groups, B, rows.count, columns.count, L, rows.taps, columns.taps, C / groups)``.
    """
    limb, image, channel, row, column = frame.stride()
    each = frame.shape[2] // groups
    return frame.as_strided(
        (groups, frame.shape[1], rows.count, columns.count, frame.shape[0], rows.taps, columns.taps, each),
        (
            each * channel,
            image,
            rows.step * row,
            columns.step * column,
            limb,
            rows.spread * row,
            columns.spread * column,
            channel,
        ),
    )
