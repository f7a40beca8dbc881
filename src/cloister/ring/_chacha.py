# Triton's compiler reads a kernel's annotations itself, and its constants are numbers where it runs.
# ruff: noqa: ANN001, ANN202
# pyright: reportArgumentType=false, reportOperatorIssue=false
"""ChaCha20's keystream on a GPU, for masks that are expanded where they are used.

Bit for bit what ``cryptography`` gives on a CPU: the block function of RFC 8439 (2.3) with a 64-bit block counter in
words 12 and 13 and a 64-bit nonce in words 14 and 15. A GPU's own generators (Philox) are no CSPRNG; ChaCha20 is
additions, exclusive ors and rotations only.

This module needs Triton: the rest of the room imports it only where a GPU expands masks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from cloister.wire import Secret

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["chacha_words"]

_BLOCK_WORDS = 16
_BLOCKS = 128  # of one program
_CONSTANTS = b"expand 32-byte k"


def chacha_words(key: Secret, nonce: int, count: int, *, device: str, first: int = 0) -> Tensor:
    """Some words of a keystream.

    Args:
        key: 32 bytes.
        nonce: In ``[0, 2^64)``.
        count: How many words.
        device: A CUDA device; Triton's interpreter takes ``"cpu"``.
        first: The block that they begin with, of 16 words each.

    Returns:
        ``(count,)`` int32 words. Secret.
    """
    blocks = -(-count // _BLOCK_WORDS)
    words = torch.empty(blocks * _BLOCK_WORDS, dtype=torch.int32, device=device)
    state = bytearray(_CONSTANTS + key.reveal() + bytes(8) + nonce.to_bytes(8, "little"))
    start = torch.frombuffer(state, dtype=torch.int32).to(device)
    if blocks:
        _chacha20[(triton.cdiv(blocks, _BLOCKS),)](start, words, blocks, first, BLOCKS=_BLOCKS)
    return words[:count]


@triton.jit
def _quarter(a, b, c, d):
    a += b
    d ^= a
    d = (d << 16) | (d >> 16)
    c += d
    b ^= c
    b = (b << 12) | (b >> 20)
    a += b
    d ^= a
    d = (d << 8) | (d >> 24)
    c += d
    b ^= c
    b = (b << 7) | (b >> 25)
    return a, b, c, d


@triton.jit
def _chacha20(start, out, blocks, first, BLOCKS: tl.constexpr):
    """``out[16·i + j]`` is word j of block ``first + i``; ``start`` holds the state's 16 words, its counter zero."""
    place = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    block = place + first
    zero = tl.zeros((BLOCKS,), tl.uint32)
    k0 = zero + tl.load(start + 0).to(tl.uint32, bitcast=True)
    k1 = zero + tl.load(start + 1).to(tl.uint32, bitcast=True)
    k2 = zero + tl.load(start + 2).to(tl.uint32, bitcast=True)
    k3 = zero + tl.load(start + 3).to(tl.uint32, bitcast=True)
    k4 = zero + tl.load(start + 4).to(tl.uint32, bitcast=True)
    k5 = zero + tl.load(start + 5).to(tl.uint32, bitcast=True)
    k6 = zero + tl.load(start + 6).to(tl.uint32, bitcast=True)
    k7 = zero + tl.load(start + 7).to(tl.uint32, bitcast=True)
    k8 = zero + tl.load(start + 8).to(tl.uint32, bitcast=True)
    k9 = zero + tl.load(start + 9).to(tl.uint32, bitcast=True)
    k10 = zero + tl.load(start + 10).to(tl.uint32, bitcast=True)
    k11 = zero + tl.load(start + 11).to(tl.uint32, bitcast=True)
    k12 = block.to(tl.uint32)
    k13 = (block >> 32).to(tl.uint32)
    k14 = zero + tl.load(start + 14).to(tl.uint32, bitcast=True)
    k15 = zero + tl.load(start + 15).to(tl.uint32, bitcast=True)
    x0, x1, x2, x3, x4, x5, x6, x7 = k0, k1, k2, k3, k4, k5, k6, k7
    x8, x9, x10, x11, x12, x13, x14, x15 = k8, k9, k10, k11, k12, k13, k14, k15
    for _ in range(10):
        x0, x4, x8, x12 = _quarter(x0, x4, x8, x12)
        x1, x5, x9, x13 = _quarter(x1, x5, x9, x13)
        x2, x6, x10, x14 = _quarter(x2, x6, x10, x14)
        x3, x7, x11, x15 = _quarter(x3, x7, x11, x15)
        x0, x5, x10, x15 = _quarter(x0, x5, x10, x15)
        x1, x6, x11, x12 = _quarter(x1, x6, x11, x12)
        x2, x7, x8, x13 = _quarter(x2, x7, x8, x13)
        x3, x4, x9, x14 = _quarter(x3, x4, x9, x14)
    at = out + place * 16
    inside = place < blocks
    tl.store(at + 0, (x0 + k0).to(tl.int32, bitcast=True), mask=inside)
    tl.store(at + 1, (x1 + k1).to(tl.int32, bitcast=True), mask=inside)
    tl.store(at + 2, (x2 + k2).to(tl.int32, bitcast=True), mask=inside)
    tl.store(at + 3, (x3 + k3).to(tl.int32, bitcast=True), mask=inside)
    tl.store(at + 4, (x4 + k4).to(tl.int32, bitcast=True), mask=inside)
    tl.store(at + 5, (x5 + k5).to(tl.int32, bitcast=True), mask=inside)
    tl.store(at + 6, (x6 + k6).to(tl.int32, bitcast=True), mask=inside)
    tl.store(at + 7, (x7 + k7).to(tl.int32, bitcast=True), mask=inside)
    tl.store(at + 8, (x8 + k8).to(tl.int32, bitcast=True), mask=inside)
    tl.store(at + 9, (x9 + k9).to(tl.int32, bitcast=True), mask=inside)
    tl.store(at + 10, (x10 + k10).to(tl.int32, bitcast=True), mask=inside)
    tl.store(at + 11, (x11 + k11).to(tl.int32, bitcast=True), mask=inside)
    tl.store(at + 12, (x12 + k12).to(tl.int32, bitcast=True), mask=inside)
    tl.store(at + 13, (x13 + k13).to(tl.int32, bitcast=True), mask=inside)
    tl.store(at + 14, (x14 + k14).to(tl.int32, bitcast=True), mask=inside)
    tl.store(at + 15, (x15 + k15).to(tl.int32, bitcast=True), mask=inside)
