"""The enclave's passes over memory: one to quantise and mask, one to unmask, check and scale.

What decides the speed of outsourcing is not the products but what the enclave does to each word before and after, and
that is bound by memory. So each pass reads its inputs once and writes its outputs once; in between, a block of words
stays in the nearest cache while a few short loops run over it, each simple enough for vector instructions.

=================  =====================================================  =============================================
pass               reads                                                  writes
=================  =====================================================  =============================================
`maximum`          fp32 values                                            one number, or one a channel
`quantise_words`   fp32 values, rounding bytes, mask words                int8 integers, one or two masked tensors
`recover`          up to three answers and three pads                     fp32 values or int32 integers
=================  =====================================================  =============================================

One core each, without the GIL: cut a batch to use several. :mod:`cloister.ring._multipass` does the same in torch, bit
for bit, in many passes.

Nothing here raises for what a worker answered: what is odd or too large is counted, and the caller records it.

**The functional of a check** is ``Σ_rj row[r] · y[r, j] · inner[j]`` over F_p. The pass sums integers only: runs of at
most 256 products of a word, at most 2^31 in magnitude, and a limb below 2^21, so that each sum is below 2^60; the sums,
a tenth of the answer at most, are then weighed in the field.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.graph import increment_version

from cloister.errors import InputError
from cloister.ring._compiled import compiled
from cloister.ring._field import weigh_wide
from cloister.ring._layout import Scaling, channels, scaling

__all__ = ["Functional", "Quantisation", "Recovered", "dequantise", "maximum", "quantise_words", "recover"]

_ROUNDING_BITS = 8  # a rounding byte k stands for (2k + 1) / 512, the middle of its interval
_STEPS = 1 << (_ROUNDING_BITS + 1)
_BLOCK = 2048  # words of a block: 8 KiB
_RUN = 256  # products of a word and a limb in one sum
_NARROW = 64  # shorter rows are summed by columns
_LIMBS = np.array([1, 1 << 21, 1 << 42], np.uint64)
_NONE_8, _NONE_U8, _NONE_32 = np.zeros(1, np.int8), np.zeros(1, np.uint8), np.zeros(1, np.int32)
_NONE_F32 = np.zeros(1, np.float32)

_i8, _i32, _i64, _f32 = np.int8, np.int32, np.int64, np.float32
_LIMB, _21, _42 = np.uint64((1 << 21) - 1), np.uint64(21), np.uint64(42)
_u64 = np.uint64  # of an index: a signed one may count from the end, which keeps a loop from being vectorised
_LOW, _HIGH = np.float32(-(1 << 20)), np.float32(1 << 20)  # beyond what any number of bits holds
_INFINITY = np.float32(np.inf)
_ABS = np.int32(0x7FFFFFFF)
_NEAREST, _DOWN = np.int32(_STEPS // 2), np.int32(_ROUNDING_BITS + 1)


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
class Quantisation:
    """What one pass of `quantise_words` gives.

    Attributes:
        values: int8 integers. Secret.
        masked: int32, ``values + point · words`` modulo 2^32, in the order in which masks were given.
        unbounded: How many inputs were infinite or no number; they became 0.
        clipped: How many did not fit the bits.
    """

    values: Tensor
    masked: tuple[Tensor, ...]
    unbounded: int
    clipped: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Recovered:
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


def maximum(values: Tensor, axis: int | None = None) -> Tensor:
    """The greatest magnitude, in one read. Infinite where a value is infinite, no number where one is no number.

    Args:
        values: float32.
        axis: For one a place along this axis.

    Returns:
        float32 of shape ``()`` or ``(values.shape[axis],)``; zeros for an empty tensor.

    Raises:
        InputError: 2702 for another dtype or device.
    """
    source = _flat(values, torch.float32, values.shape)
    view = channels(values.shape, axis)
    size = view.period if view.repeats == 0 else view.inner
    found = np.zeros(size, np.int32)
    if source.size:
        _maximum(source.view(np.int32), view.rows, view.inner, view.period, view.repeats > 0, found)
    if view.repeats > 0:
        found = found.reshape(-1, view.repeats).max(1)
    most = torch.from_numpy(found).view(torch.float32)
    return most[0] if axis is None else most


def quantise_words(
    values: Tensor,
    exponent: int | Sequence[int],
    *,
    bits: int = 8,
    axis: int | None = None,
    noise: Tensor | None = None,
    masks: Sequence[tuple[Tensor, int]] = (),
    out: Tensor | None = None,
    masked_out: Sequence[Tensor] | None = None,
) -> Quantisation:
    """Rounds fp32 values to integers of a few bits, and adds masks, in one pass.

    An integer is ``floor(value / 2^exponent + u)``, clipped to ``[-2^(bits-1), 2^(bits-1) - 1]``, where u is
    ``(2k + 1)/512`` for a rounding byte k, or a half without bytes. This is computed exactly: no float is rounded.

    Args:
        values: float32, any shape. Other than contiguous ones are copied first.
        exponent: -100 to 127; one, or one a place along ``axis``.
        bits: 2 to 8.
        axis: Of the exponents.
        noise: uint8, as many as values; None rounds to the nearest, a half upwards.
        masks: At most two of ``(words, point)``: int32 words in the shape of ``values``, and what they are multiplied by.
        out: Where the integers go; new memory if left out.
        masked_out: The same for the masked tensors.

    Raises:
        InputError: 2702 when a dtype or shape is another; 2705 when a number is outside its range.
    """
    exponents = [exponent] if isinstance(exponent, int) else list(exponent)
    view = channels(values.shape, axis)
    wanted = 1 if axis is None else values.shape[axis]
    if not 2 <= bits <= 8 or len(exponents) != wanted or not all(-100 <= e <= 127 for e in exponents) or len(masks) > 2:
        raise InputError(2705, expected="2 to 8 bits, exponents from -100 to 127, two masks", got=f"{bits} bits")
    source = _flat(values, torch.float32, values.shape)
    bytes_ = _NONE_U8 if noise is None else _flat(noise, torch.uint8, (values.numel(),))
    words = [_flat(mask, torch.int32, values.shape) for mask, _ in masks]
    points = [_i32(point) for _, point in masks] + [_i32(0)] * 2
    with torch.inference_mode(False):  # so that torch counts who writes into them
        target = torch.empty(values.shape, dtype=torch.int8) if out is None else out
        sums = [torch.empty(values.shape, dtype=torch.int32) for _ in masks] if masked_out is None else [*masked_out]
    if len(sums) != len(masks):
        raise InputError(2702, expected="an output for each mask", got=f"{len(sums)}")
    integers = _flat(target, torch.int8, values.shape, written=True)
    masked = [_flat(tensor, torch.int32, values.shape, written=True) for tensor in sums]
    scales = np.ldexp(_f32(_STEPS), -np.array(exponents)).astype(np.float32)
    unbounded, clipped = _quantise(
        source,
        view.rows,
        view.inner,
        np.repeat(scales, view.repeats) if view.repeats else scales,
        view.period,
        view.repeats > 0,
        bytes_,
        noise is not None,
        _i32(-(1 << (bits - 1))),
        _i32((1 << (bits - 1)) - 1),
        integers,
        len(masks),
        *(words + [_NONE_32] * 2)[:2],
        *points[:2],
        *(masked + [_NONE_32] * 2)[:2],
    )
    increment_version([target, *sums])
    return Quantisation(target, tuple(sums), int(unbounded), int(clipped))


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
    terms = [(_flat(words, torch.int32, shape), _i32(factor)) for factor, words in answers]
    blinds = [(_flat(words, torch.int32, shape), _i32(factor)) for factor, words in pads]
    inner = None if functional is None else functional.inner.size
    plan = scaling(shape, inner, exponents or (), bias if exponents is not None else None)
    scaled = exponents is not None and plan is not None
    plan = plan or _unscaled(shape, functional)
    kind = torch.float32 if scaled else torch.int32
    with torch.inference_mode(False):
        target = out if out is not None and out.dtype == kind else torch.empty(shape, dtype=kind)
    written = _flat(target, kind, shape, written=True)
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
        target = dequantise(target, exponents, bias)
    return Recovered(target, int(odd), int(beyond), check.value())


def _unscaled(shape: Sequence[int], functional: Functional | None) -> Scaling:
    rows, inner = (1, math.prod(shape)) if functional is None else (functional.row_factors.size, functional.inner.size)
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


def _flat(tensor: Tensor, dtype: torch.dtype, shape: Sequence[int], *, written: bool = False) -> NDArray[Any]:
    """The words of a tensor, in order."""
    fits = tensor.dtype == dtype and tuple(tensor.shape) == tuple(shape) and tensor.device.type == "cpu"
    if not fits or (written and not tensor.is_contiguous()):
        raise InputError(
            2702,
            expected=f"{dtype} {tuple(shape)} in this machine's memory{', contiguous' if written else ''}",
            got=f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device.type}",
        )
    return tensor.detach().contiguous().reshape(-1).numpy()


@compiled
def _maximum(bits, rows, inner, period, by_column, found):  # noqa: ANN001, ANN202
    """Magnitudes are compared as integers: of two positive floats the larger one has the larger bits, NaN the largest."""
    for r in range(rows):
        first = r * inner
        if by_column:
            for j in range(inner):
                found[j] = max(found[j], _i32(bits[first + j] & _ABS))
        else:
            most = found[r % period]
            for j in range(inner):
                most = max(most, _i32(bits[first + j] & _ABS))
            found[r % period] = most


@compiled
def _quantise(  # noqa: ANN202, PLR0913
    values, rows, inner, scales, period, by_column, noise, stochastic, low, high, integers,  # noqa: ANN001
    masks, words_0, words_1, point_0, point_1, masked_0, masked_1,  # noqa: ANN001
):  # fmt: skip
    block = np.empty(_BLOCK, np.int32)
    unbounded = _i64(0)
    clipped = _i64(0)
    for r in range(rows):
        scale = scales[0 if by_column else r % period]
        for start in range(0, inner, _BLOCK):
            n = _u64(min(_BLOCK, inner - start))
            column = _u64(start)
            at = _u64(r * inner + start)
            count = _i32(0)
            # in steps of 1/512: the scaling is by a power of two, so this floor is the true one
            if by_column:
                for j in range(n):
                    value = values[at + j]
                    bad = not (abs(value) < _INFINITY)
                    count = _i32(count + _i32(bad))
                    value = _f32(0) if bad else value
                    block[j] = _i32(min(max(np.floor(value * scales[column + j]), _LOW), _HIGH))
            else:
                for j in range(n):
                    value = values[at + j]
                    bad = not (abs(value) < _INFINITY)
                    count = _i32(count + _i32(bad))
                    value = _f32(0) if bad else value
                    block[j] = _i32(min(max(np.floor(value * scale), _LOW), _HIGH))
            unbounded += count
            count = _i32(0)
            if stochastic:
                for j in range(n):
                    step = _i32(block[j] + _i32(_i32(noise[at + j]) * _i32(2) + _i32(1)))
                    rounded = _i32(step >> _DOWN)
                    kept = _i32(min(max(rounded, low), high))
                    count = _i32(count + _i32(rounded != kept))
                    block[j] = kept
                    integers[at + j] = _i8(kept)
            else:
                for j in range(n):
                    rounded = _i32(_i32(block[j] + _NEAREST) >> _DOWN)
                    kept = _i32(min(max(rounded, low), high))
                    count = _i32(count + _i32(rounded != kept))
                    block[j] = kept
                    integers[at + j] = _i8(kept)
            clipped += count
            if masks > 0:
                for j in range(n):
                    masked_0[at + j] = _i32(block[j] + _i32(point_0 * words_0[at + j]))
            if masks > 1:
                for j in range(n):
                    masked_1[at + j] = _i32(block[j] + _i32(point_1 * words_1[at + j]))
    return unbounded, clipped


@compiled
def _recover(  # noqa: ANN202, PLR0913
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
