"""The enclave's pass over memory that quantises and masks.

What decides the speed of outsourcing is not the products but what the enclave does to each word before and after, and
that is bound by memory. So each pass reads its inputs once and writes its outputs once; in between, a block of words
stays in the nearest cache while a few short loops run over it, each simple enough for vector instructions.

=================  =====================================================  =============================================
pass               reads                                                  writes
=================  =====================================================  =============================================
`maximum`          fp32 values                                            one number, or one a channel
`quantise_words`   fp32 values, rounding bytes, mask words                int8 integers, one or two masked tensors
`mask_words`       int8 integers, mask words                              one or two masked tensors
`recover`          up to three answers and three pads                     fp32 values or int32 integers
=================  =====================================================  =============================================

One core each, without the GIL: cut a batch to use several. The last one is in :mod:`cloister.ring._recover`;
:mod:`cloister.ring._multipass` does the same in torch, bit for bit, in many passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from cloister._compiled import compiled
from cloister.errors import InputError
from cloister.ring._layout import channels, flat
from cloister.ring._words import Guarded

__all__ = ["EXPONENTS", "Quantisation", "mask_words", "maximum", "quantise_words"]

EXPONENTS = (-100, 127)  # so that 2^9 over 2^exponent is an fp32 number, and no subnormal one

_ROUNDING_BITS = 8  # a rounding byte k stands for (2k + 1) / 512, the middle of its interval
_STEPS = 1 << (_ROUNDING_BITS + 1)
_BLOCK = 2048  # words of a block: 8 KiB
_NONE_U8, _NONE_32 = np.zeros(1, np.uint8), np.zeros(1, np.int32)

_i8, _i32, _i64, _f32 = np.int8, np.int32, np.int64, np.float32
_u64 = np.uint64  # of an index: a signed one may count from the end, which keeps a loop from being vectorised
_LOW, _HIGH = np.float32(-(1 << 20)), np.float32(1 << 20)  # beyond what any number of bits holds
_INFINITY = np.float32(np.inf)
_ABS = np.int32(0x7FFFFFFF)
_NEAREST, _DOWN = np.int32(_STEPS // 2), np.int32(_ROUNDING_BITS + 1)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Quantisation(Guarded):
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
    source = flat(values, torch.float32, values.shape)
    if not source.size:
        return torch.zeros(() if axis is None else values.shape[axis])
    view = channels(values.shape, axis)
    found = np.zeros(view.period if view.repeats == 0 else view.inner, np.int32)
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
        masks: At most two of ``(words, point)``: int32 words in the shape of ``values``, and their factor.
        out: Where the integers go; new memory if left out.
        masked_out: The same for the masked tensors.

    Raises:
        InputError: 2702 when a dtype or shape is another; 2705 when a number is outside its range.
    """
    exponents = [exponent] if isinstance(exponent, int) else list(exponent)
    view = channels(values.shape, axis)
    wanted = 1 if axis is None else values.shape[axis]
    if (
        not 2 <= bits <= 8
        or len(exponents) != wanted
        or not all(EXPONENTS[0] <= e <= EXPONENTS[1] for e in exponents)
        or len(masks) > 2
    ):
        raise InputError(2705, expected="2 to 8 bits, exponents from -100 to 127, two masks", got=f"{bits} bits")
    source = flat(values, torch.float32, values.shape)
    bytes_ = _NONE_U8 if noise is None else flat(noise, torch.uint8, (values.numel(),))
    words = [flat(mask, torch.int32, values.shape) for mask, _ in masks]
    points = [_i32(point) for _, point in masks] + [_i32(0)] * 2
    with torch.inference_mode(False):  # so that torch counts who writes into them
        target = torch.empty(values.shape, dtype=torch.int8) if out is None else out
        sums = [torch.empty(values.shape, dtype=torch.int32) for _ in masks] if masked_out is None else [*masked_out]
    if len(sums) != len(masks):
        raise InputError(2702, expected="an output for each mask", got=f"{len(sums)}")
    integers = flat(target, torch.int8, values.shape, written=True)
    masked = [flat(tensor, torch.int32, values.shape, written=True) for tensor in sums]
    scales = np.ldexp(_f32(_STEPS), -np.array(exponents, np.int32)).astype(np.float32)
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


def mask_words(values: Tensor, masks: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, ...]:
    """Adds masks to integers: ``values + point · words`` modulo 2^32, for each of at most two ``(words, point)``.

    Shapes: int8 values and int32 words of one shape, to int32.

    Raises:
        InputError: 2702 when a dtype or shape is another; 2705 for a third mask.
    """
    if len(masks) > 2:
        raise InputError(2705, expected="two masks", got=len(masks))
    integers = flat(values, torch.int8, values.shape)
    words = [flat(mask, torch.int32, values.shape) for mask, _ in masks]
    points = [_i32(point) for _, point in masks] + [_i32(0)] * 2
    with torch.inference_mode(False):
        sums = [torch.empty(values.shape, dtype=torch.int32) for _ in masks]
    masked = [flat(tensor, torch.int32, values.shape, written=True) for tensor in sums]
    _mask(integers, len(masks), *(words + [_NONE_32] * 2)[:2], *points[:2], *(masked + [_NONE_32] * 2)[:2])
    increment_version(sums)
    return tuple(sums)


@compiled
def _maximum(bits, rows, inner, period, by_column, found):  # noqa: ANN001, ANN202
    """Compares magnitudes as integers: of two positive floats the larger has the larger bits, and NaN the largest."""
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
def _quantise(  # noqa: ANN202
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
def _mask(integers, masks, words_0, words_1, point_0, point_1, masked_0, masked_1):  # noqa: ANN001, ANN202
    for start in range(0, integers.size, _BLOCK):
        n, at = _u64(min(_BLOCK, integers.size - start)), _u64(start)
        if masks > 0:
            for j in range(n):
                masked_0[at + j] = _i32(_i32(integers[at + j]) + _i32(point_0 * words_0[at + j]))
        if masks > 1:
            for j in range(n):
                masked_1[at + j] = _i32(_i32(integers[at + j]) + _i32(point_1 * words_1[at + j]))
