"""The fused passes in torch alone: the same bits, in as many passes over memory as there are lines.

See :mod:`cloister.ring._fused` and :mod:`cloister.ring._recover`. This needs no compiler and is short enough to be seen
right; the fused passes are tested against it, and measured against it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cloister.ring._field import weigh_wide
from cloister.ring._fused import Quantisation
from cloister.ring._recover import Functional, Recovered, dequantise

__all__ = ["maximum", "quantise_words", "recover"]

_RUN = 256
_STEPS = 512.0
_FAR = float(1 << 20)


def maximum(values: Tensor, axis: int | None = None) -> Tensor:
    """See :func:`cloister.ring._fused.maximum`."""
    size = () if axis is None else (values.shape[axis],)
    if values.numel() == 0:
        return torch.zeros(size, dtype=torch.float32)
    bits = values.contiguous().view(torch.int32) & 0x7FFFFFFF
    others = [i for i in range(values.ndim) if axis is None or i != axis % values.ndim]
    return (bits.amax(others) if others else bits).contiguous().view(torch.float32)


def quantise_words(
    values: Tensor,
    exponent: int | Sequence[int],
    *,
    bits: int = 8,
    axis: int | None = None,
    noise: Tensor | None = None,
    masks: Sequence[tuple[Tensor, int]] = (),
) -> Quantisation:
    """See :func:`cloister.ring._fused.quantise_words`."""
    scale = torch.from_numpy(np.ldexp(np.float32(_STEPS), -np.atleast_1d(exponent).astype(np.int32)).astype(np.float32))
    along = [] if axis is None else [-1 if i == axis % values.ndim else 1 for i in range(values.ndim)]
    scale = scale.reshape(along)
    finite = values.isfinite()
    steps = (values.where(finite, 0.0) * scale).floor().clamp(-_FAR, _FAR).to(torch.int32)
    offset = 256 if noise is None else noise.reshape(values.shape).to(torch.int32) * 2 + 1
    rounded = (steps + offset) >> 9
    integers = rounded.clamp(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    masked = tuple(integers + words * point for words, point in masks)
    clipped = int((rounded != integers).sum())
    return Quantisation(integers.to(torch.int8), masked, int((~finite).sum()), clipped)


def recover(
    answers: Sequence[tuple[int, Tensor]],
    *,
    bound: int,
    pads: Sequence[tuple[int, Tensor]] = (),
    halve: bool = False,
    functional: Functional | None = None,
    exponents: Sequence[int | Tensor] | None = None,
    bias: Tensor | None = None,
) -> Recovered:
    """See :func:`cloister.ring._recover.recover`."""
    integers = torch.zeros_like(answers[0][1])
    for factor, words in (*answers, *pads):
        integers += words * factor
    odd = 0
    if halve:
        odd = int((integers & 1).sum())
        integers >>= 1
    beyond = int(((integers > bound) | (integers < -bound)).sum())
    sums = None if functional is None else _functional(integers, functional)
    values = integers if exponents is None else dequantise(integers, exponents, bias)
    return Recovered(values, odd, beyond, sums)


def _functional(integers: Tensor, functional: Functional) -> int:
    rows, inner = functional.row_factors.size, functional.inner.size
    words = integers.reshape(rows, inner).to(torch.int64)
    limbs = torch.from_numpy(functional.inner_limbs)
    runs = [  # of at most 256 products below 2^52 each
        (words[:, start : start + _RUN] * limb[start : start + _RUN]).sum(1)
        for limb in limbs
        for start in range(0, inner, _RUN)
    ]
    sums = torch.stack(runs).numpy()
    powers = np.repeat(np.array([1, 1 << 21, 1 << 42], np.uint64), len(runs) // 3)
    return int(weigh_wide(sums, powers, functional.row_factors))
