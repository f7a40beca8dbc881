"""Sums of ``int8`` entries weighted by elements of F_p: nearly all of a check's work.

An element is two limbs of 31 bits. An entry times a limb is below 2^38 in magnitude, a run has at most 2^16 terms, so a
sum stays below 2^54: no ``int64`` wraps. A run's two sums are then one element.

A limb is cast to ``int32`` and back where it is used. It is below 2^31, so that changes nothing; it tells the compiler
that a multiplication of 32-bit lanes suffices, which is three times faster than one of 64-bit lanes. Rows go in fours:
a limb, or a sum, is read once for all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister._compiled import compiled
from cloister.ring._field import Elements, addmod, reduce_signed, rotate

__all__ = ["dot_rows", "sum_rows"]

Word, Signed = np.uint64, np.int64

_31, _BITS_31 = Word(31), Word(2**31 - 1)
_RUN = 1 << 16
_TILE = 1024  # columns whose two sums stay in the first-level cache
_SHORT = 64  # rows shorter than this are summed several at a time


def _halves(elements: Elements) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two limbs of 31 bits, the lowest first."""
    return (elements & _BITS_31).astype(Signed), (elements >> _31).astype(Signed)


@compiled
def _join(low: Signed, high: Signed) -> Word:
    """``low + 2^31 · high`` in the field, of any two ``int64``."""
    return addmod(reduce_signed(low), rotate(reduce_signed(high), _31))


def dot_rows(matrices: NDArray[np.int8], vectors: Elements, which: NDArray[np.int64]) -> Elements:
    """Products of every row with every vector: ``out[g, i, k] = Σ_j matrices[g, i, j] · vectors[which[g], k, j]``.

    Takes two multiplications an entry and vector.

    Shapes: ``(G, n, L)`` int8, ``(V, m, L)`` elements, ``(G,)`` indices below V, to ``(G, n, m)`` elements.
    """
    out = np.zeros((*matrices.shape[:2], vectors.shape[1]), Word)
    _dot_rows(matrices, *_halves(vectors), which, out)
    return out


@compiled
def _dot_rows(matrices: Any, low: Any, high: Any, which: Any, out: Any) -> None:
    last, length = matrices.shape[1] - 1, matrices.shape[2]
    for g in range(matrices.shape[0]):
        for a in range(0, last + 1, 4):
            b, c, d = min(a + 1, last), min(a + 2, last), min(a + 3, last)  # the last rows may be read again
            for k in range(low.shape[1]):
                of_a = of_b = of_c = of_d = Word(0)
                for start in range(0, length, _RUN):
                    stop = min(start + _RUN, length)
                    row_a, row_b = matrices[g, a, start:stop], matrices[g, b, start:stop]
                    row_c, row_d = matrices[g, c, start:stop], matrices[g, d, start:stop]
                    lows, highs = low[which[g], k, start:stop], high[which[g], k, start:stop]
                    low_a = low_b = low_c = low_d = high_a = high_b = high_c = high_d = Signed(0)
                    for j in range(row_a.size):
                        by_low, by_high = Signed(np.int32(lows[j])), Signed(np.int32(highs[j]))
                        low_a += Signed(row_a[j]) * by_low
                        low_b += Signed(row_b[j]) * by_low
                        low_c += Signed(row_c[j]) * by_low
                        low_d += Signed(row_d[j]) * by_low
                        high_a += Signed(row_a[j]) * by_high
                        high_b += Signed(row_b[j]) * by_high
                        high_c += Signed(row_c[j]) * by_high
                        high_d += Signed(row_d[j]) * by_high
                    of_a, of_b = addmod(of_a, _join(low_a, high_a)), addmod(of_b, _join(low_b, high_b))
                    of_c, of_d = addmod(of_c, _join(low_c, high_c)), addmod(of_d, _join(low_d, high_d))
                out[g, a, k], out[g, b, k], out[g, c, k], out[g, d, k] = of_a, of_b, of_c, of_d


def sum_rows(matrices: NDArray[np.int8], factors: Elements, which: NDArray[np.int64]) -> Elements:
    """Sums of weighted rows: ``out[g, j] = Σ_i factors[which[g], i] · matrices[g, i, j]``.

    Takes two multiplications an entry.

    Shapes: ``(G, n, L)`` int8, ``(V, n)`` elements, ``(G,)`` indices below V, to ``(G, L)`` elements.
    """
    groups, count, length = matrices.shape
    out = np.zeros((groups, length), Word)
    if not 0 < length < _SHORT:
        _sum_rows(matrices, *_halves(factors), which, out)
    else:
        each = _halves(np.repeat(factors, length, axis=1))
        period = length * max(1, min(2 * _SHORT // length, count))
        _sum_short_rows(matrices.reshape(groups, count * length), *each, which, out, period)
    return out


@compiled
def _sum_rows(matrices: Any, low: Any, high: Any, which: Any, out: Any) -> None:
    count, length = matrices.shape[1], matrices.shape[2]
    low_sums, high_sums = np.zeros(_TILE, Signed), np.zeros(_TILE, Signed)
    for g in range(matrices.shape[0]):
        lows, highs = low[which[g]], high[which[g]]
        for start in range(0, length, _TILE):
            stop = min(start + _TILE, length)
            lower, upper = low_sums[: stop - start], high_sums[: stop - start]
            for first in range(0, count, _RUN):
                end = min(first + _RUN, count)
                lower[:] = 0
                upper[:] = 0
                for i in range(first, end - 3, 4):
                    row_a, row_b = matrices[g, i, start:stop], matrices[g, i + 1, start:stop]
                    row_c, row_d = matrices[g, i + 2, start:stop], matrices[g, i + 3, start:stop]
                    low_a, low_b = Signed(np.int32(lows[i])), Signed(np.int32(lows[i + 1]))
                    low_c, low_d = Signed(np.int32(lows[i + 2])), Signed(np.int32(lows[i + 3]))
                    high_a, high_b = Signed(np.int32(highs[i])), Signed(np.int32(highs[i + 1]))
                    high_c, high_d = Signed(np.int32(highs[i + 2])), Signed(np.int32(highs[i + 3]))
                    for j in range(row_a.size):
                        a, b, c, d = Signed(row_a[j]), Signed(row_b[j]), Signed(row_c[j]), Signed(row_d[j])
                        lower[j] += a * low_a + b * low_b + c * low_c + d * low_d
                        upper[j] += a * high_a + b * high_b + c * high_c + d * high_d
                for i in range(end - (end - first) % 4, end):
                    row_a = matrices[g, i, start:stop]
                    low_a, high_a = Signed(np.int32(lows[i])), Signed(np.int32(highs[i]))
                    for j in range(row_a.size):
                        lower[j] += Signed(row_a[j]) * low_a
                        upper[j] += Signed(row_a[j]) * high_a
                for j in range(stop - start):
                    out[g, start + j] = addmod(out[g, start + j], _join(lower[j], upper[j]))


@compiled
def _sum_short_rows(entries: Any, low: Any, high: Any, which: Any, out: Any, period: int) -> None:
    """As `_sum_rows`, of rows laid end to end: ``period`` is a whole number of rows, ``low`` and ``high`` repeat."""
    length, total = out.shape[1], entries.shape[1]
    low_sums, high_sums = np.zeros(period, Signed), np.zeros(period, Signed)
    for g in range(entries.shape[0]):
        for first in range(0, total, period * _RUN):
            low_sums[:] = 0
            high_sums[:] = 0
            for start in range(first, min(first + period * _RUN, total), period):
                stop = min(start + period, total)
                run, lows, highs = entries[g, start:stop], low[which[g], start:stop], high[which[g], start:stop]
                for j in range(run.size):
                    low_sums[j] += Signed(run[j]) * Signed(np.int32(lows[j]))
                    high_sums[j] += Signed(run[j]) * Signed(np.int32(highs[j]))
            for j in range(period):
                out[g, j % length] = addmod(out[g, j % length], _join(low_sums[j], high_sums[j]))
