"""Gradients of what is added or multiplied channel by channel, an example a row, compiled: biases, weights of norms.

A bias's gradient is the sum of ``dy`` over an example's positions, a norm's weight's that of ``dy · (x - mean) ·
deviation``. Sums are made in float64, many beside each other, and rounded once.
"""

from __future__ import annotations

import numpy as np
from numba.np.numpy_support import carray

from cloister.privacy._conv_rows import Target, square_row
from cloister.privacy._packing import Images
from cloister.privacy._threads import share
from cloister.privacy._vectors import pointer
from cloister.ring._compiled import compiled

__all__ = ["affine_rows", "bias_rows", "square_rows"]

_LANES = 32  # sums beside each other, where the order of one would be a chain


def bias_rows(y: Images, count: int, target: Target) -> None:
    """Writes, or adds, sums over positions."""
    share(count, lambda first, last: _bias(y, target, first, last))


def affine_rows(
    x: Images, y: Images, count: int, target: Target, means: int, deviations: int, statistics: int, by_position: bool
) -> None:
    """Writes, or adds, sums over positions of the gradient times the normalised input.

    Args:
        x: The inputs, laid out as ``y``.
        y: The gradients of the outputs.
        count: Examples.
        target: Where they go.
        means: Address of ``statistics`` float32 an example.
        deviations: The same of their reciprocal standard deviations.
        statistics: One a group of channels, or one a position.
        by_position: Which of the two.
    """
    work = _by_position if by_position else _by_group
    share(count, lambda first, last: work(x, y, target, means, deviations, statistics, first, last))


def square_rows(rows: int, stride: int, count: int, size: int, squares: int) -> None:
    """Adds rows' squared norms to ``count`` float64 at an address."""
    share(count, lambda first, last: _square(rows, stride, size, squares, first, last))


@compiled
def _square(rows: int, stride: int, size: int, squares: int, first: int, last: int) -> None:
    for example in range(first, last):
        carray(pointer(squares + 8 * example), (1,), np.float64)[0] += square_row(rows + example * stride, size)


@compiled
def _put(sums: np.ndarray, target: Target, example: int) -> None:
    start = target.rows + example * target.stride
    row = carray(pointer(start), (sums.size,), np.float32)
    for channel in range(sums.size):
        row[channel] = np.float32(sums[channel] + np.float64(row[channel])) if target.add else np.float32(sums[channel])
    if target.squares:
        carray(pointer(target.squares + 8 * example), (1,), np.float64)[0] += square_row(start, sums.size)


@compiled
def _bias(y: Images, target: Target, first: int, last: int) -> None:
    positions = y.height * y.width
    sums, lanes = np.empty(y.channels), np.empty(_LANES)
    for example in range(first, last):
        start = y.address + example * y.batch
        sums[:] = 0
        if y.last:
            for position in range(positions):
                values = carray(pointer(start + 4 * position * y.channels), (y.channels,), np.float32)
                for channel in range(y.channels):
                    sums[channel] += np.float64(values[channel])
        else:
            for channel in range(y.channels):
                lanes[:] = 0
                for at in range(0, positions, _LANES):
                    some = min(_LANES, positions - at)
                    values = carray(pointer(start + 4 * (channel * positions + at)), (some,), np.float32)
                    for lane in range(some):
                        lanes[lane] += np.float64(values[lane])
                for lane in range(_LANES):
                    sums[channel] += lanes[lane]
        _put(sums, target, example)


@compiled
def _by_group(
    x: Images, y: Images, target: Target, means: int, deviations: int, groups: int, first: int, last: int
) -> None:
    positions, each = y.height * y.width, y.channels // groups
    sums, lanes, mean, deviation = np.empty(y.channels), np.empty(_LANES), np.empty(y.channels), np.empty(y.channels)
    for example in range(first, last):
        left, right = x.address + example * x.batch, y.address + example * y.batch
        for channel in range(y.channels):
            at = 4 * (example * groups + channel // each)
            mean[channel] = carray(pointer(means + at), (1,), np.float32)[0]
            deviation[channel] = carray(pointer(deviations + at), (1,), np.float32)[0]
        sums[:] = 0
        if y.last:
            for position in range(positions):
                a = carray(pointer(left + 4 * position * y.channels), (y.channels,), np.float32)
                b = carray(pointer(right + 4 * position * y.channels), (y.channels,), np.float32)
                for channel in range(y.channels):
                    sums[channel] += (np.float64(a[channel]) - mean[channel]) * np.float64(b[channel])
        else:
            for channel in range(y.channels):
                lanes[:] = 0
                middle = mean[channel]
                for at in range(0, positions, _LANES):
                    some = min(_LANES, positions - at)
                    a = carray(pointer(left + 4 * (channel * positions + at)), (some,), np.float32)
                    b = carray(pointer(right + 4 * (channel * positions + at)), (some,), np.float32)
                    for lane in range(some):
                        lanes[lane] += (np.float64(a[lane]) - middle) * np.float64(b[lane])
                for lane in range(_LANES):
                    sums[channel] += lanes[lane]
        for channel in range(y.channels):
            sums[channel] *= deviation[channel]
        _put(sums, target, example)


@compiled
def _by_position(
    x: Images, y: Images, target: Target, means: int, deviations: int, positions: int, first: int, last: int
) -> None:
    """Channels last only: a layer norm's channels are."""
    sums = np.empty(y.channels)
    for example in range(first, last):
        mean = carray(pointer(means + 4 * example * positions), (positions,), np.float32)
        deviation = carray(pointer(deviations + 4 * example * positions), (positions,), np.float32)
        left, right = x.address + example * x.batch, y.address + example * y.batch
        sums[:] = 0
        for position in range(positions):
            a = carray(pointer(left + 4 * position * y.channels), (y.channels,), np.float32)
            b = carray(pointer(right + 4 * position * y.channels), (y.channels,), np.float32)
            middle, scale = np.float64(mean[position]), np.float64(deviation[position])
            for channel in range(y.channels):
                sums[channel] += (np.float64(a[channel]) - middle) * scale * np.float64(b[channel])
        _put(sums, target, example)
