"""The sum of scaled, rounded rows, compiled: what the noise is added to.

Every row is scaled by its example's factor, rounded to integers, halves to even, and only then summed, so the sum is
exact and in any order the same. A vector's worth of columns of as many rows as int32 bears is summed in registers, then
added to the int64 total.
"""

from __future__ import annotations

import numpy as np
from numba.np.numpy_support import carray

from cloister._compiled import compiled
from cloister.privacy._linear_rows import LIMIT_BITS, PASS
from cloister.privacy._threads import share
from cloister.privacy._vectors import WIDTH, pointer, rounded_tile

__all__ = ["release", "sum_rounded"]

_VECTORS = 8
_COLUMNS = _VECTORS * WIDTH
_PIECE = 1 << 14  # columns of a thread's share, at least


def sum_rounded(rows: int, stride: int, count: int, size: int, factors: int, total: int) -> None:
    """Adds ``Σ rint(row · factor)`` to the total.

    Args:
        rows: Address of the first row, float32.
        stride: Bytes between rows.
        count: Rows.
        size: Columns.
        factors: Address of a float32 a row.
        total: Address of an int64 a column.
    """
    share(-(-size // _COLUMNS), lambda first, last: _sum(rows, stride, count, size, factors, total, first, last))


def release(total: int, scale: float, released: int, size: int) -> None:
    """Writes the total, scaled, as float32, and empties it: one pass over both.

    Args:
        total: Address of an int64 a column.
        scale: float64.
        released: Address of a float32 a column.
        size: Columns.
    """
    share(-(-size // _PIECE), lambda first, last: _release(total, scale, released, size, first, last))


@compiled
def _release(total: int, scale: float, released: int, size: int, first: int, last: int) -> None:
    start, end = first * _PIECE, min(last * _PIECE, size)
    sums = carray(pointer(total + 8 * start), (end - start,), np.int64)
    goes = carray(pointer(released + 4 * start), (end - start,), np.float32)
    for index in range(end - start):
        goes[index] = np.float32(np.float64(sums[index]) * scale)
    sums[:] = 0


@compiled
def _sum(rows: int, stride: int, count: int, size: int, factors: int, total: int, first: int, last: int) -> None:
    for start in range(0, count, PASS):
        some = min(PASS, count - start)
        for piece in range(first, last):
            column = piece * _COLUMNS
            source = rows + start * stride + 4 * column
            if column + _COLUMNS <= size:
                rounded_tile(
                    _VECTORS, 1, LIMIT_BITS, factors + 4 * start, 4, source, stride, some, total + 8 * column, 0
                )
                continue
            left = size - column
            values, sums = np.zeros((some, _COLUMNS), np.float32), np.zeros(_COLUMNS, np.int64)
            for row in range(some):
                values[row, :left] = carray(pointer(source + row * stride), (left,), np.float32)
            rounded_tile(
                _VECTORS, 1, LIMIT_BITS, factors + 4 * start, 4, values.ctypes.data, 4 * _COLUMNS, some,
                sums.ctypes.data, 0,
            )  # fmt: skip
            place = carray(pointer(total + 8 * column), (left,), np.int64)
            for index in range(left):
                place[index] += sums[index]
