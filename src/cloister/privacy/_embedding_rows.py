"""Gradients of embeddings, an example a row, compiled; and their norms and rounded sums without any row.

A token that comes twice in an example has one gradient, the sum of both: its norm is not the sum of two norms, and it
is rounded once. So an example's gradients are first merged, each into the place of its token's first occurrence. That
takes the same steps for all tokens, but which memory they touch depends on them, as it does in every embedding's
forward.
"""

from __future__ import annotations

import numpy as np
from numba.np.numpy_support import carray

from cloister._compiled import compiled
from cloister.privacy._conv_rows import Target, square_row
from cloister.privacy._linear_rows import LIMIT_BITS
from cloister.privacy._packing import Images
from cloister.privacy._threads import share
from cloister.privacy._vectors import pointer

__all__ = ["embedding_rows", "embedding_squares", "embedding_sum_rounded"]

_LIMIT = np.float32(1 << LIMIT_BITS)
_NONE = np.float32(0)
_COLUMNS = 16  # that a thread takes at least: a cache line


def embedding_rows(tokens: int, y: Images, size: int, count: int, target: Target) -> None:
    """Writes, or adds, rows of the order (token, channel).

    Args:
        tokens: Address of an int64 a position, in range.
        y: The gradients of what was looked up, channels last, one position high.
        size: Floats of a row.
        count: Examples.
        target: Where they go.
    """
    share(count, lambda first, last: _rows(tokens, y, size, target, first, last))


def embedding_squares(tokens: int, y: Images, count: int, squares: int) -> None:
    """Adds the squared norms of the rows to ``count`` float64 at an address."""
    share(count, lambda first, last: _squares(tokens, y, squares, first, last))


def embedding_sum_rounded(tokens: int, y: Images, count: int, factors: int, total: int) -> None:
    """Adds the sum of the scaled, rounded rows to int64 at an address; ``factors`` of a float32 an example."""

    def work(first: int, last: int) -> None:
        _sum(tokens, y, count, factors, total, first * _COLUMNS, min(last * _COLUMNS, y.channels))

    share(-(-y.channels // _COLUMNS), work)


@compiled
def _rows(tokens: int, y: Images, size: int, target: Target, first: int, last: int) -> None:
    for example in range(first, last):
        start = target.rows + example * target.stride
        row = carray(pointer(start), (size,), np.float32)
        if not target.add:
            row[:] = 0
        which = carray(pointer(tokens + 8 * example * y.width), (y.width,), np.int64)
        values = carray(pointer(y.address + example * y.batch), (y.width, y.channels), np.float32)
        for position in range(y.width):
            place = carray(pointer(start + 4 * which[position] * y.channels), (y.channels,), np.float32)
            for channel in range(y.channels):
                place[channel] += values[position, channel]
        if target.squares:
            carray(pointer(target.squares + 8 * example), (1,), np.float64)[0] += square_row(start, size)


@compiled
def _merged(tokens: int, y: Images, example: int, first: int, last: int, into: np.ndarray) -> None:
    """Sums the gradients of equal tokens, in the order of positions, where the token is first."""
    which = carray(pointer(tokens + 8 * example * y.width), (y.width,), np.int64)
    values = carray(pointer(y.address + example * y.batch), (y.width, y.channels), np.float32)
    into[:] = 0
    for position in range(y.width):
        place = position
        for before in range(position):
            other = position - 1 - before
            place = other if which[other] == which[position] else place
        for channel in range(first, last):
            into[place, channel - first] += values[position, channel]


@compiled
def _squares(tokens: int, y: Images, squares: int, first: int, last: int) -> None:
    merged = np.empty((y.width, y.channels), np.float32)
    for example in range(first, last):
        _merged(tokens, y, example, 0, y.channels, merged)
        found = square_row(merged.ctypes.data, merged.size)
        carray(pointer(squares + 8 * example), (1,), np.float64)[0] += found


@compiled
def _sum(tokens: int, y: Images, count: int, factors: int, total: int, first: int, last: int) -> None:
    merged = np.empty((y.width, last - first), np.float32)
    by = carray(pointer(factors), (count,), np.float32)
    for example in range(count):
        _merged(tokens, y, example, first, last, merged)
        which = carray(pointer(tokens + 8 * example * y.width), (y.width,), np.int64)
        factor = by[example]
        for position in range(y.width):
            place = carray(pointer(total + 8 * (which[position] * y.channels + first)), (last - first,), np.int64)
            for channel in range(last - first):
                value = merged[position, channel] * factor
                value = value if abs(value) <= _LIMIT else _NONE
                place[channel] += np.int64(np.rint(value))
