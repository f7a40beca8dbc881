"""The enclave's pass over memory that unmasks, holds to the bound, sums up for the check and scales.

As in :mod:`cloister.ring._fused`, each word is read once and written once, and a block of words stays in the nearest
cache in between. Nothing here raises for what a worker answered: what is odd or too large is counted, and the caller
records it.

**The functional of a check** is ``Σ_rj row[r] · y[r, j] · inner[j]`` over F_p. The pass sums integers only: runs of at
most 256 products of a word, at most 2^31 in magnitude, and a limb below 2^21, so that each sum is below 2^60; the sums,
a tenth of the answer at most, are then weighed in the field.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.graph import increment_version

from cloister._compiled import compiled
from cloister.errors import InputError
from cloister.ring._field import weigh_wide
from cloister.ring._layout import Scaling, flat, scaling
from cloister.ring._words import Guarded

__all__ = ["Functional", "Recovered", "dequantise", "recover"]

_BLOCK = 2048  # words of a block: 8 KiB
_RUN = 256  # products of a word and a limb in one sum
_NARROW = 64  # shorter rows are summed by columns
_LIMBS = np.array([1, 1 << 21, 1 << 42], np.uint64)
_NONE_32, _NONE_F32 = np.zeros(1, np.int32), np.zeros(1, np.float32)

_i32, _i64, _f32 = np.int32, np.int64, np.float32
_LIMB, _21, _42 = np.uint64((1 << 21) - 1), np.uint64(21), np.uint64(42)
_u64 = np.uint64  # of an index: a signed one may count from the end, which keeps a loop from being vectorised


class Functional(Protocol):
    """What a check's challenge says of itself: a rank-one functional on an answer seen as ``(rows, inner)``."""

    @property
    def row_factors(self) -> NDArray[np.uint64]:
        """``(rows,)`` elements of F_p."""
        ...

    @property
    def inner(self) -> NDArray[np.uint64]:
        """``(inner,)`` elements of F_p."""
        ...

    @property
    def inner_limbs(self) -> NDArray[np.int64]:
        """``(3, inner)`` limbs of 21 bits of ``inner``, the lowest first."""
        ...


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Recovered(Guarded):
    """What one pass of `recover` gives. Secret, all of it: which count is not zero tells about private values.

    Attributes:
        values: fp32, or int32 integers where no exponent was given.
        odd: How many sums were odd that had to be even.
        beyond: How many integers were larger than the public bound.
        functional: The check's functional of the integers, in ``[0, p)``; None without a check.
    """

    values: Tensor
    odd: int
    beyond: int
    functional: int | None


def recover(
    answers: Sequence[tuple[int, Tensor]],
    *,
    bound: int,
    pads: Sequence[tuple[int, Tensor]] = (),
    halve: bool = False,
    functional: Functional | None = None,
    exponents: Sequence[int | Tensor] | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> Recovered:
    """Unmasks an answer, holds it to its bound, sums it up for its check and scales it, in one pass.

    The integer is ``Σ coefficient · words`` modulo 2^32, read as signed; halved where asked, after it was seen to be
    even.

    Args:
        answers: One to three of ``(coefficient, words)``: int32 words, all of one shape.
        bound: Greatest magnitude that the product can have, below 2^31.
        pads: At most three more, of the same kind.
        halve: For an answer that comes twice.
        functional: Of the check.
        exponents: Summands of the result's exponent, numbers or int32 tensors that broadcast to the shape:
            ``fp32(integer · 2^Σ)``, rounded once. None gives the integers themselves.
        bias: float32 that broadcasts to the shape, added in fp32.
        out: Where the values go; new memory if left out.

    Raises:
        InputError: 2702 when a dtype or shape is another, or the functional's is; 2705 for more tensors than fit.
    """
    if not 1 <= len(answers) <= 3 or len(pads) > 3 or not 0 <= bound < 1 << 31:
        raise InputError(2705, expected="one to three answers, up to three pads, a bound below 2^31", got=len(answers))
    shape = answers[0][1].shape
    if shape.numel() == 0:
        raise InputError(2702, expected="at least one element", got=tuple(shape))
    terms = [(flat(words, torch.int32, shape), _i32(factor)) for factor, words in answers]
    blinds = [(flat(words, torch.int32, shape), _i32(factor)) for factor, words in pads]
    inner = None if functional is None else functional.inner.size
    plan = scaling(shape, inner, exponents or (), bias if exponents is not None else None)
    scaled = exponents is not None and plan is not None
    in_two = exponents is not None and plan is None  # scales that no pass over rows can apply
    plan = plan or _unscaled(shape, functional)
    kind = torch.float32 if scaled else torch.int32
    with torch.inference_mode(False):
        target = torch.empty(shape, dtype=kind) if out is None or in_two else out
    written = flat(target, kind, shape, written=True)
    check = _Sums(plan.rows, plan.inner, functional)
    unused = (_NONE_32, _i32(0))
    odd, beyond = _recover(
        *(part for term in [*terms, unused, unused][:3] for part in term),
        len(terms),
        *(part for blind in [*blinds, unused, unused, unused][:3] for part in blind),
        len(blinds),
        plan.rows,
        plan.inner,
        halve,
        _i32(bound),
        functional is not None,
        check.narrow,
        check.factors,
        check.limbs,
        check.sums,
        scaled,
        *plan[2:],
        _NONE_32 if scaled else written,
        written if scaled else _NONE_F32,
    )
    increment_version(target)
    if exponents is not None and not scaled:
        values = dequantise(target, exponents, bias)
        target = values if out is None else out.copy_(values)
    return Recovered(target, int(odd), int(beyond), check.value())


def _unscaled(shape: Sequence[int], functional: Functional | None) -> Scaling:
    rows, inner = (1, math.prod(shape)) if functional is None else (functional.row_factors.size, functional.inner.size)
    if rows * inner != math.prod(shape):
        raise InputError(2702, expected=f"an answer of {rows} rows of {inner}", got=tuple(shape))
    return Scaling(rows, inner, np.ones(1), np.ones(1), _NONE_F32, _NONE_F32)


class _Sums:
    """The integer sums of a functional, and what the field makes of them.

    Rows of some length are summed along themselves, a run at a time: one sum a run and limb of the inner factors.
    Short ones are summed along the columns, up to 256 rows of a block at a time: one sum a column and limb of the row
    factors.
    """

    def __init__(self, rows: int, inner: int, functional: Functional | None) -> None:
        self.narrow = inner < _NARROW
        self._functional = functional
        self._runs = -(-inner // _RUN)
        self.factors, self.limbs, self.sums = np.zeros(1, np.uint64), _NONE_32, np.zeros((1, 1), np.int64)
        if functional is None:
            return
        if (functional.row_factors.size, functional.inner.size) != (rows, inner):
            raise InputError(2702, expected=f"a check of {rows} rows of {inner}", got=functional.row_factors.size)
        if self.narrow:
            self.factors = np.ascontiguousarray(functional.row_factors)
            together = max(1, _BLOCK // inner)
            runs = rows // together * -(-together // _RUN) + -(-(rows % together) // _RUN)
            self.sums = np.empty((3 * runs, inner), np.int64)
        else:
            self.limbs = functional.inner_limbs.astype(np.int32).reshape(-1)
            self.sums = np.empty((3, rows * self._runs), np.int64)

    def value(self) -> int | None:
        if self._functional is None:
            return None
        if self.narrow:
            return int(weigh_wide(self.sums, np.tile(_LIMBS, len(self.sums) // 3), self._functional.inner))
        return int(weigh_wide(self.sums, _LIMBS, np.repeat(self._functional.row_factors, self._runs)))


def dequantise(integers: Tensor, exponents: Sequence[int | Tensor], bias: Tensor | None = None) -> Tensor:
    """``fp32(integer · 2^Σ) + bias``, for sums of parts: what `recover` does to an unsplit answer, bit for bit.

    Args:
        integers: int32 or int64, below 2^53 in magnitude.
        exponents: As for `recover`.
        bias: As for `recover`.
    """
    power = sum((e.to(torch.int64) if isinstance(e, Tensor) else torch.tensor(e) for e in exponents), torch.tensor(0))
    scale = torch.from_numpy(np.ldexp(np.float64(1), np.atleast_1d(power.numpy()))).reshape(power.shape)
    values = integers.to(torch.float64).mul_(scale).to(torch.float32)
    return values.add_(0.0 if bias is None else bias.detach() + 0.0)  # no zero of the answer is negative


@compiled
def _recover(  # noqa: ANN202
    y0, c0, y1, c1, y2, c2, answers, z0, d0, z1, d1, z2, d2, pads,  # noqa: ANN001
    rows, inner, halve, bound, check, narrow, factors, limb, sums,  # noqa: ANN001
    scaled, row_scales, column_scales, row_bias, column_bias, integers, values,  # noqa: ANN001
):  # fmt: skip
    block, turned = np.empty(_BLOCK, np.int32), np.empty(_BLOCK, np.int32)
    limb_0, limb_1, limb_2 = np.empty(_RUN, np.int32), np.empty(_RUN, np.int32), np.empty(_RUN, np.int32)
    odd = _i64(0)
    beyond = _i64(0)
    lowest = _i32(1 if halve else 0)
    together = max(1, _BLOCK // inner)  # rows of a block, whole where they are short
    stride = _u64(inner)
    run = 0
    scale_step, bias_step = _u64(row_scales.size > 1), _u64(row_bias.size > 1)
    by_row = row_scales.size > 1 or row_bias.size > 1
    by_column = column_scales.size > 1 or column_bias.size > 1
    for top in range(0, rows, together):
        bottom = min(top + together, rows)
        for start in range(top * inner, bottom * inner, _BLOCK):
            stop = min(start + _BLOCK, bottom * inner)
            at, n = _u64(start), _u64(stop - start)
            if answers == 1:
                for j in range(n):
                    block[j] = _i32(c0 * y0[at + j])
            elif answers == 2:
                for j in range(n):
                    block[j] = _i32(_i32(c0 * y0[at + j]) + _i32(c1 * y1[at + j]))
            else:
                for j in range(n):
                    block[j] = _i32(_i32(_i32(c0 * y0[at + j]) + _i32(c1 * y1[at + j])) + _i32(c2 * y2[at + j]))
            if pads > 0:
                for j in range(n):
                    block[j] = _i32(block[j] + _i32(d0 * z0[at + j]))
            if pads > 1:
                for j in range(n):
                    block[j] = _i32(block[j] + _i32(d1 * z1[at + j]))
            if pads > 2:
                for j in range(n):
                    block[j] = _i32(block[j] + _i32(d2 * z2[at + j]))
            some_odd = _i32(0)
            some_beyond = _i32(0)
            for j in range(n):
                word = block[j]
                some_odd = _i32(some_odd + _i32(word & lowest))
                word = _i32(word >> lowest)
                block[j] = word
                some_beyond = _i32(some_beyond + _i32((word > bound) | (word < -bound)))
            odd += some_odd
            beyond += some_beyond
            if not scaled:
                for j in range(n):
                    integers[at + j] = block[j]
            elif not by_row and not by_column:
                scale = row_scales[0] * column_scales[0]
                added = _f32(row_bias[0] + column_bias[0])
                for j in range(n):
                    values[at + j] = _f32(_f32(np.float64(block[j]) * scale) + added)
            if narrow and (check or (scaled and by_row and not by_column)):
                words = _u64(bottom - top)
                for column in range(stride):  # the rows of the block side by side, so that vectors are long
                    here = column * words
                    for j in range(words):
                        turned[here + j] = block[column + j * stride]
            if narrow and check:
                for first in range(top, bottom, _RUN):
                    length = min(_RUN, bottom - first)
                    for j in range(_u64(length)):
                        factor = factors[_u64(first) + j]
                        limb_0[j] = _i32(factor & _LIMB)
                        limb_1[j] = _i32((factor >> _21) & _LIMB)
                        limb_2[j] = _i32(factor >> _42)
                    for column in range(stride):
                        here = column * _u64(bottom - top) + _u64(first - top)
                        sum_0 = sum_1 = sum_2 = _i64(0)
                        for j in range(_u64(length)):
                            word = _i64(turned[here + j])
                            sum_0 += word * _i64(limb_0[j])
                            sum_1 += word * _i64(limb_1[j])
                            sum_2 += word * _i64(limb_2[j])
                        sums[run, column], sums[run + 1, column], sums[run + 2, column] = sum_0, sum_1, sum_2
                    run += 3
            if narrow and scaled and by_row and not by_column:
                for column in range(stride):
                    here, to = column * _u64(bottom - top), at + column
                    for j in range(_u64(bottom - top)):
                        scale = row_scales[(_u64(top) + j) * scale_step] * column_scales[0]
                        added = _f32(row_bias[(_u64(top) + j) * bias_step] + column_bias[0])
                        value = _f32(np.float64(turned[here + j]) * scale)
                        values[to + j * stride] = _f32(value + added)
                continue
            if (narrow or not check) and not (scaled and (by_row or by_column)):
                continue
            for r in range(start // inner, (stop - 1) // inner + 1):
                begin = max(r * inner, start)
                end = min((r + 1) * inner, stop)
                to, here, column = _u64(begin), _u64(begin - start), _u64(begin - r * inner)
                length = _u64(end - begin)
                if check and not narrow:
                    run = r * ((inner + _RUN - 1) // _RUN) + (begin - r * inner) // _RUN
                    for first in range(0, end - begin, _RUN):
                        from_0 = _u64(begin - r * inner + first)
                        from_1, from_2 = from_0 + _u64(inner), from_0 + _u64(2 * inner)
                        word_0 = here + _u64(first)
                        sum_0 = sum_1 = sum_2 = _i64(0)
                        for j in range(_u64(min(_RUN, end - begin - first))):
                            word = _i64(block[word_0 + j])
                            sum_0 += word * _i64(limb[from_0 + j])
                            sum_1 += word * _i64(limb[from_1 + j])
                            sum_2 += word * _i64(limb[from_2 + j])
                        sums[0, run], sums[1, run], sums[2, run] = sum_0, sum_1, sum_2
                        run += 1
                if not scaled or not (by_row or by_column):
                    continue
                scale = row_scales[r if row_scales.size > 1 else 0]
                added = row_bias[r if row_bias.size > 1 else 0]
                if not by_column:
                    scale *= column_scales[0]
                    added = _f32(added + column_bias[0])
                    for j in range(length):
                        values[to + j] = _f32(_f32(np.float64(block[here + j]) * scale) + added)
                elif column_scales.size > 1 and column_bias.size > 1:
                    for j in range(length):
                        value = _f32(np.float64(block[here + j]) * (scale * column_scales[column + j]))
                        values[to + j] = _f32(value + _f32(added + column_bias[column + j]))
                elif column_scales.size > 1:
                    added = _f32(added + column_bias[0])
                    for j in range(length):
                        value = _f32(np.float64(block[here + j]) * (scale * column_scales[column + j]))
                        values[to + j] = _f32(value + added)
                else:
                    scale *= column_scales[0]
                    for j in range(length):
                        value = _f32(np.float64(block[here + j]) * scale)
                        values[to + j] = _f32(value + _f32(added + column_bias[column + j]))
    return odd, beyond
