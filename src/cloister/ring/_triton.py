# Triton's compiler reads a kernel's annotations itself, and its constants are numbers where it runs.
# ruff: noqa: ANN001, ANN202
# pyright: reportArgumentType=false, reportOperatorIssue=false
"""Kernels of a GPU in Triton: the ten products of two matrices' limbs in one kernel, windows read where they lie.

Words are cut into four limbs of 8 bits *once*, in a pass of its own, and not by the multiplying kernel: a tile of four
``int32`` accumulators, which fills a multiprocessor's registers, is at most 128 × 64, so each word would be cut again
for every 64 columns, and cutting costs the integer units about as long as the ten products take the tensor cores. The
bytes that are read stay the same: four limbs are as long as their word.

The accumulators hold ``S_s = Σ_{i+j=s} a_i · b_j`` for s = 0…3. At most four pairs of limbs share one, each term at
most 2^14, so after 32,767 terms it is flushed: tensor cores may saturate at 2^31, and some of Triton's instructions
for int8 do. ``S_0 + S_1·2^8 + S_2·2^16 + S_3·2^24`` is made in ordinary int32 arithmetic, which wraps.

Forward and input gradient are implicit: a row of the left matrix is a window, read from the framed limbs by its strides
and never copied out, as long as a group has a multiple of 16 channels (aligned vectors). Otherwise, and in the weight
gradient, whose contraction runs over pixels while tensor cores want contracted bytes side by side, some windows at a
time are copied. Convolutions with few channels a group take torch's plain int32 passes, which memory limits anyway.

This module imports Triton: :func:`cloister.ring.kernels_for` says so where it is missing. With
``TRITON_INTERPRET=1`` set before that, it runs on a CPU, slowly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from cloister.errors import InputError
from cloister.ring._cuda import require_exact, scratch_bytes
from cloister.ring._limbs import Int8Arithmetic
from cloister.ring._matrices import MatrixKernels

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TritonKernels"]

_RUN = 32_767  # terms before a flush: 4 · 32,767 · 2^14 < 2^31
_VECTOR = 16
_GRID = 65_535  # CUDA's limit on a grid's second axis
_BLOCK = 1024


@triton.jit
def _cut(words, limbs, size, inner, BLOCK: tl.constexpr):
    """``(outer, inner)`` int32 words to ``(outer, 4, inner)`` int8 limbs, the lightest first."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    half = -0x7F7F7F80
    digits = (tl.load(words + at, mask=inside, other=0) + half) ^ half
    target = limbs + at // inner * inner * 4 + at % inner
    tl.store(target, digits.to(tl.int8), mask=inside)
    tl.store(target + inner, (digits >> 8).to(tl.int8), mask=inside)
    tl.store(target + 2 * inner, (digits >> 16).to(tl.int8), mask=inside)
    tl.store(target + 3 * inner, (digits >> 24).to(tl.int8), mask=inside)


@triton.jit
def _multiply(
    a,
    b,
    out,
    rows,
    columns,
    places,  # windows of one image
    across,  # windows of one of its rows
    taps,
    taps_across,
    channels,
    a_group,  # strides, in limbs
    a_image,
    a_row,
    a_column,
    a_limb,
    a_tap_row,
    a_tap_column,
    b_group,
    b_row,
    b_limb,
    A: tl.constexpr,  # limbs of a, the lightest first
    B: tl.constexpr,  # limbs of b, the heaviest first
    FLUSH: tl.constexpr,  # whether there are more terms than one accumulator may hold
    RUN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TOGETHER: tl.constexpr,  # tiles of rows that share their columns in the cache
):
    group = tl.program_id(1).to(tl.int64)
    across_n = tl.cdiv(columns, BLOCK_N)
    band = tl.program_id(0) // (TOGETHER * across_n)
    height = tl.minimum(tl.cdiv(rows, BLOCK_M) - band * TOGETHER, TOGETHER)
    within = tl.program_id(0) % (TOGETHER * across_n)
    m = (band * TOGETHER + within % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = within // height * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)

    window = tl.where(m < rows, m, 0)  # what lies outside is computed from the first, and not stored
    image, place = (window // places).to(tl.int64), window % places
    start = image * a_image + (place // across).to(tl.int64) * a_row + (place % across).to(tl.int64) * a_column
    left = a + group * a_group + start[:, None] + k[None, :]
    right = b + group * b_group + tl.where(n < columns, n, 0).to(tl.int64)[None, :] * b_row + k[:, None]

    blocks = tl.cdiv(channels, BLOCK_K)
    steps = taps * blocks
    s0 = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    s1 = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    s2 = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    s3 = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for step in range(0, steps):
        tap, channel = step // blocks, step % blocks * BLOCK_K
        mine = left + ((tap // taps_across).to(tl.int64) * a_tap_row + tap % taps_across * a_tap_column + channel)
        theirs = right + (tap * channels + channel)
        inside = channel + k < channels
        a0 = tl.load(mine, mask=inside[None, :], other=0)
        b0 = tl.load(theirs + (B - 1) * b_limb, mask=inside[:, None], other=0)
        s0 = tl.dot(a0, b0, s0, out_dtype=tl.int32)
        if A == 4:
            a1 = tl.load(mine + a_limb, mask=inside[None, :], other=0)
            a2 = tl.load(mine + 2 * a_limb, mask=inside[None, :], other=0)
            a3 = tl.load(mine + 3 * a_limb, mask=inside[None, :], other=0)
            s1 = tl.dot(a1, b0, s1, out_dtype=tl.int32)
            s2 = tl.dot(a2, b0, s2, out_dtype=tl.int32)
            s3 = tl.dot(a3, b0, s3, out_dtype=tl.int32)
        if B == 4:
            b1 = tl.load(theirs + 2 * b_limb, mask=inside[:, None], other=0)
            b2 = tl.load(theirs + b_limb, mask=inside[:, None], other=0)
            b3 = tl.load(theirs, mask=inside[:, None], other=0)
            s1 = tl.dot(a0, b1, s1, out_dtype=tl.int32)
            s2 = tl.dot(a0, b2, s2, out_dtype=tl.int32)
            s3 = tl.dot(a0, b3, s3, out_dtype=tl.int32)
            if A == 4:
                s2 = tl.dot(a1, b1, s2, out_dtype=tl.int32)
                s3 = tl.dot(a1, b2, s3, out_dtype=tl.int32)
                s3 = tl.dot(a2, b1, s3, out_dtype=tl.int32)
        if FLUSH:  # noqa: SIM102 - known when the kernel is compiled, unlike the step
            if step % (RUN // BLOCK_K) == RUN // BLOCK_K - 1:
                total += s0 + (s1 << 8) + (s2 << 16) + (s3 << 24)
                s0 = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
                s1 = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
                s2 = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
                s3 = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    total += s0 + (s1 << 8) + (s2 << 16) + (s3 << 24)
    target = out + (group * rows + m.to(tl.int64)[:, None]) * columns + n[None, :]
    tl.store(target, total, mask=(m < rows)[:, None] & (n < columns)[None, :])


_INTERPRETED = not isinstance(_multiply, triton.runtime.JITFunction)
# rows, columns and terms of a tile, warps, stages of the pipeline. Eight limbs of 64 terms in 3 stages: 144 KiB
_TILES = ((128, 64, 64, 8, 3), (128, 64, 128, 8, 2), (64, 128, 64, 8, 3), (64, 64, 128, 4, 3), (128, 128, 128, 8, 3))
_SMALL = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 128}  # for the interpreter: sizes that tests fill and overlap
_launched: Any = _multiply
if not _INTERPRETED:
    _launched = triton.autotune(
        configs=[
            triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages)
            for m, n, k, warps, stages in _TILES
        ],
        key=["columns", "taps", "channels", "A", "B", "FLUSH"],  # not rows: batches vary
        do_bench=lambda call, quantiles: triton.testing.do_bench(call, warmup=5, rep=20, quantiles=quantiles),
    )(_multiply)


class TritonKernels(MatrixKernels):
    """Exact products by one fused kernel of int8 products.

    Args:
        device: A CUDA device; a CPU where Triton's interpreter is on.

    Raises:
        InputError: 2791 on a CPU without the interpreter; 2792 when the device does not multiply exactly.
    """

    name = "triton"

    def __init__(self, device: torch.device) -> None:
        if (device.type == "cpu") != _INTERPRETED:
            raise InputError(
                2791,
                "compiled Triton kernels run on GPUs, interpreted ones on CPUs",
                got=f"{device}, {'interpreted' if _INTERPRETED else 'compiled'}",
            )
        arithmetic = _Fused()
        require_exact(arithmetic, device)
        super().__init__(arithmetic, scratch_bytes=scratch_bytes(device))

    def _rows(self, read: Tensor, matrix: Tensor) -> Tensor:
        if read.shape[7] % _VECTOR or read.stride(7) != 1:
            return super()._rows(read, matrix)
        return _launch(read, matrix)


class _Fused(Int8Arithmetic):
    """The int8 arithmetic with the sums of all weights in one kernel."""

    contraction_last = True

    def split(self, values: Tensor, count: int, *, axis: int, descending: bool = False) -> Tensor:
        """As :meth:`cloister.ring._limbs.Arithmetic.split`."""
        if count == 1 or descending or values.numel() == 0:
            return super().split(values, count, axis=axis, descending=descending)
        limbs = torch.empty((*values.shape[:axis], 4, *values.shape[axis:]), dtype=torch.int8, device=values.device)
        grid = (triton.cdiv(values.numel(), _BLOCK),)
        _cut[grid](values, limbs, values.numel(), limbs.stride(axis), BLOCK=_BLOCK)
        return limbs

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        """As :meth:`cloister.ring._limbs.Arithmetic.multiply`: one kernel, any number of terms."""
        extra = -a.shape[3] % _VECTOR
        if extra:
            a, b = (torch.nn.functional.pad(limbs, (0, extra)) for limbs in (a, b))
        if a.stride(3) != 1:
            a = a.contiguous()
        return _launch(a[:, :, None, None, :, None, None, :], b)


def _launch(read: Tensor, matrix: Tensor) -> Tensor:
    """Windows ``(G, B, H', W', limbs, h, w, C)`` times ``(G, O, limbs, h·w·C)``: ``(G, B·H'·W', O)`` int32."""
    groups, images, height, width, limbs, taps_down, taps_across, channels = read.shape
    if matrix.stride(3) != 1:
        matrix = matrix.contiguous()
    rows, columns, terms = images * height * width, matrix.shape[1], matrix.shape[3]
    if groups > _GRID:
        parts = zip(read.split(_GRID), matrix.split(_GRID), strict=True)
        return torch.cat([_launch(some, others) for some, others in parts])
    out = torch.empty(groups, rows, columns, dtype=torch.int32, device=read.device)

    def grid(meta: dict[str, Any]) -> tuple[int, int]:
        return triton.cdiv(rows, meta["BLOCK_M"]) * triton.cdiv(columns, meta["BLOCK_N"]), groups

    _launched[grid](
        read,
        matrix,
        out,
        rows,
        columns,
        height * width,
        width,
        taps_down * taps_across,
        taps_across,
        channels,
        *read.stride()[:7],
        *matrix.stride()[:3],
        A=limbs,
        B=matrix.shape[2],
        FLUSH=terms > _RUN,
        RUN=_RUN,
        TOGETHER=8,
        **(_SMALL if _INTERPRETED else {}),
    )
    return out
