"""Gradients of biases, an example a row, compiled: the sums of ``dy`` over an example's positions.

They are made in float64, many beside each other, and rounded once.
"""

from __future__ import annotations

import numpy as np
from numba.np.numpy_support import carray

from cloister._compiled import compiled
from cloister.privacy._conv_rows import Target, square_row
from cloister.privacy._packing import Images
from cloister.privacy._threads import share
from cloister.privacy._vectors import pointer

__all__ = ["bias_rows", "square_rows"]

_LANES = 32  # sums beside each other, where the order of one would be a chain


def bias_rows(y: Images, count: int, target: Target) -> None:
    """Writes, or adds, sums over positions."""
    share(count, lambda first, last: _bias(y, target, first, last))


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
