"""Weight gradients of Linear layers, an example a row, compiled; and of those that need no row.

With several positions an example, a Linear is a 1×1 convolution in which inputs and outputs change sides: the row is
then written in the weight's own order. With one position the row is an outer product. Its norm is the product of two
norms, and the sum over examples of scaled, rounded rows is made in registers without any row
(:func:`cloister.privacy._vectors.rounded_tile`).
"""

from __future__ import annotations

import numpy as np
from numba.np.numpy_support import carray

from cloister._compiled import compiled
from cloister.privacy._conv_rows import Target, square_row, wide_rows
from cloister.privacy._packing import Images, Windows
from cloister.privacy._threads import scratch, share
from cloister.privacy._vectors import REGISTERS, WIDTH, pointer, rounded_tile

__all__ = ["LIMIT_BITS", "PASS", "linear_rows", "outer_rows", "outer_squares", "outer_sum_rounded"]

LIMIT_BITS = 27
"""A scaled coordinate beyond ``2**LIMIT_BITS`` counts as 0."""
PASS = (1 << (31 - LIMIT_BITS)) - 1
"""Rows whose rounded coordinates an int32 holds the sum of."""

_ROWS, _COLUMNS = (4, 4) if REGISTERS == 32 else (2, 4)  # of the tile: outputs, vectors of inputs
_POINT = Windows(1, 1, 1, 1, 0, 0, 1, 1, 1)


def linear_rows(x: Images, y: Images, count: int, target: Target) -> None:
    """Writes, or adds, ``count`` rows of the order (output, input).

    Args:
        x: The inputs, channels last, one position high.
        y: The gradients of the outputs, likewise.
        count: Examples.
        target: Where they go.
    """
    if x.width == 1:
        outer_rows(x, y, count, target)
    else:
        wide_rows(y, x, _POINT, count, target._replace(turned=0))


def outer_rows(x: Images, y: Images, count: int, target: Target) -> None:
    """The same for one position an example."""
    share(count, lambda first, last: _outer(x, y, target, first, last))


def outer_squares(x: Images, y: Images, count: int, squares: int) -> None:
    """Adds the squared norms of outer products to ``count`` float64 at an address."""
    _outer_squares(x, y, squares, 0, count)


def outer_sum_rounded(x: Images, y: Images, count: int, factors: int, total: int) -> None:
    """Adds the sum of scaled, rounded outer products to int64 of the order (output, input).

    Args:
        x: The inputs, one position an example.
        y: The gradients of the outputs, likewise.
        count: Examples.
        factors: Address of a float32 an example.
        total: Address of the sum.
    """
    size = 4 * (count * (x.channels + 2 * WIDTH * _COLUMNS + y.channels + _ROWS)) + 8 * _ROWS * WIDTH * _COLUMNS + 64

    def work(first: int, last: int) -> None:
        _outer_sum(x, y, count, factors, total, scratch(size), first, last)

    share(-(-y.channels // _ROWS), work)


@compiled
def _outer(x: Images, y: Images, target: Target, first: int, last: int) -> None:
    for example in range(first, last):
        left = carray(pointer(x.address + example * x.batch), (x.channels,), np.float32)
        right = carray(pointer(y.address + example * y.batch), (y.channels,), np.float32)
        start = target.rows + example * target.stride
        for output in range(y.channels):
            row = carray(pointer(start + 4 * output * x.channels), (x.channels,), np.float32)
            scale = right[output]
            if target.add:
                for index in range(x.channels):
                    row[index] += scale * left[index]
            else:
                for index in range(x.channels):
                    row[index] = scale * left[index]
        if target.squares:
            place = carray(pointer(target.squares + 8 * example), (1,), np.float64)
            if target.add:
                place[0] += square_row(start, x.channels * y.channels)
            else:
                place[0] += square_row(x.address + example * x.batch, x.channels) * square_row(
                    y.address + example * y.batch, y.channels
                )


@compiled
def _outer_squares(x: Images, y: Images, squares: int, first: int, last: int) -> None:
    for example in range(first, last):
        left = square_row(x.address + example * x.batch, x.channels)
        right = square_row(y.address + example * y.batch, y.channels)
        carray(pointer(squares + 8 * example), (1,), np.float64)[0] += left * right


@compiled
def _outer_sum(x: Images, y: Images, count: int, factors: int, total: int, scratch: int, first: int, last: int) -> None:
    """Outputs ``first·_ROWS`` to ``last·_ROWS``: examples side by side, then tile by tile."""
    width = (x.channels + WIDTH * _COLUMNS - 1) // (WIDTH * _COLUMNS) * (WIDTH * _COLUMNS)
    top, bottom = first * _ROWS, min(last * _ROWS, y.channels)
    height = (bottom - top + _ROWS - 1) // _ROWS * _ROWS
    values = carray(pointer(scratch), (count, width), np.float32)
    scales = carray(pointer(scratch + 4 * count * width), (count, height), np.float32)
    own = (scratch + 4 * count * (width + height) + 63) // 64 * 64
    tile = carray(pointer(own), (_ROWS, WIDTH * _COLUMNS), np.int64)
    by = carray(pointer(factors), (count,), np.float32)
    for example in range(count):
        left = carray(pointer(x.address + example * x.batch), (x.channels,), np.float32)
        right = carray(pointer(y.address + example * y.batch), (y.channels,), np.float32)
        values[example, : x.channels] = left
        values[example, x.channels :] = 0
        for output in range(height):
            scales[example, output] = right[top + output] * by[example] if top + output < bottom else 0
    for column in range(0, x.channels, WIDTH * _COLUMNS):
        valid = min(WIDTH * _COLUMNS, x.channels - column)
        for output in range(0, height, _ROWS):
            some = min(_ROWS, bottom - top - output)
            goes = total + 8 * ((top + output) * x.channels + column)
            whole = valid == WIDTH * _COLUMNS and some == _ROWS
            here, step = goes, 8 * x.channels
            if not whole:
                here, step = own, 8 * WIDTH * _COLUMNS
                tile[:] = 0
            for start in range(0, count, PASS):
                rounded_tile(
                    _COLUMNS, _ROWS, LIMIT_BITS,
                    scratch + 4 * (count * width + start * height + output), 4 * height,
                    scratch + 4 * (start * width + column), 4 * width,
                    min(PASS, count - start), here, step,
                )  # fmt: skip
            if not whole:
                for row in range(some):
                    place = carray(pointer(goes + 8 * row * x.channels), (valid,), np.int64)
                    for index in range(valid):
                        place[index] += tile[row, index]
