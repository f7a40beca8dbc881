"""AES-256-XTS over 4096-byte sectors, in wide calls.

A sector has 256 cipher blocks; block ``b`` is encrypted as ``E1(p ⊕ t) ⊕ t`` with ``t = E2(iv) · α^b`` in
GF(2^128). Calling XTS once a sector costs ten times more than the AES itself, so the tweaks of hundreds of
sectors are computed at once and the AES is one ECB call over megabytes.

How the tweaks are computed. Write ``b = 8k + j``. Eight values ``T·α^j`` are made by shifts. Multiplying by ``α^8``
moves every byte up by one place, so the 16 bytes of ``T·α^(8k+j)`` are a *window* that slides over one stream of
bytes: 48 bytes a (sector, j) hold all 32 windows. Only the lowest byte of a window differs from the stream (it is
the part of the top byte's reduction that the stream has already merged with its neighbour), so it is written
apart. Everything but the copy of the windows touches an eighth of the tweaks' size or less.

Source: IEEE 1619-2018, 5.2; the IV is dm-crypt's ``plain64``, which counts 512-byte units at every sector size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from cloister.seal._luks import KEY_BYTES
from cloister.seal._verity import BLOCK
from cloister.wire import Secret

__all__ = ["Xts"]

U64 = NDArray[np.uint64]
_WORDS = BLOCK // 8
_SLICE = 128  # sectors: a slice's three buffers take 512 KiB each
_STREAM = 6  # words of a stream: 48 bytes hold 32 windows of 16
_J = np.arange(8, dtype=np.uint64)
_ONE, _TWO, _SEVEN = np.uint64(1), np.uint64(2), np.uint64(7)
_63, _62, _57 = np.uint64(63), np.uint64(62), np.uint64(57)
# keep bits inside their byte when a word of eight bytes is shifted by 1, 2, 7
_BYTE_1, _BYTE_2, _BYTE_7 = np.uint64(0xFEFEFEFEFEFEFEFE), np.uint64(0xFCFCFCFCFCFCFCFC), np.uint64(0x8080808080808080)
_UNITS = np.uint64(BLOCK // 512)


class Xts:
    """Encrypts or decrypts runs of sectors under one key. Not for use by two threads at once.

    Args:
        key: 64 bytes: the data key, then the tweak key.
        capacity: Most sectors in one call; fixes the scratch memory (about 2 KiB a sector, and 1.5 MiB).
        decrypt: The direction.
    """

    def __init__(self, key: Secret, *, capacity: int, decrypt: bool = False) -> None:
        raw = key.reveal()
        if len(raw) != KEY_BYTES:
            raise ValueError(f"XTS takes {KEY_BYTES} key bytes")
        data: Cipher[Any] = Cipher(algorithms.AES(raw[:32]), modes.ECB())  # noqa: S305 - the core of XTS
        tweak: Cipher[Any] = Cipher(algorithms.AES(raw[32:]), modes.ECB())  # noqa: S305
        self._data: CipherContext = data.decryptor() if decrypt else data.encryptor()
        self._tweak: CipherContext = tweak.encryptor()
        self._words: U64 = np.zeros((_STREAM, capacity, 8), np.uint64)
        self._bytes, self._spare = (np.zeros((4, capacity, 8), np.uint64) for _ in range(2))
        self._c, self._d = (np.zeros((capacity, 8), np.uint64) for _ in range(2))
        self._stream: U64 = np.zeros((capacity, 8, _STREAM), np.uint64)
        self._low: U64 = np.zeros((capacity, 8, 5), np.uint64)
        self._tweaks: U64 = np.zeros((_SLICE, _WORDS), np.uint64)
        self._before: U64 = np.zeros((_SLICE, _WORDS), np.uint64)
        self._after: U64 = np.zeros(_SLICE * _WORDS + 2, np.uint64)  # ECB wants a block of slack
        self._windows, self._blocks, self._lowest = self._views(capacity)

    def _views(self, capacity: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.uint8]]:
        """The windows over the streams, a slice's tweaks as 16-byte items, and the tweaks' lowest bytes."""
        stride = _STREAM * 8
        every: NDArray[Any] = np.ndarray(
            (capacity, 8, 33), dtype="V16", buffer=self._stream.data, strides=(8 * stride, stride, 1)
        )
        windows = every[:, :, 32:0:-1].transpose(0, 2, 1)  # (sector, k, j): window k begins k bytes lower
        blocks = self._tweaks.view("V16").reshape(_SLICE, 32, 8)
        lowest = self._tweaks.view(np.uint8).reshape(_SLICE, 32, 8, 16)[..., 0]
        return windows, blocks, lowest

    def __call__(self, source: U64, target: U64, *, first_sector: int) -> None:
        """Transforms ``source`` into ``target``; they may be the same memory.

        Shapes: both (n, 512) uint64 with n ≤ capacity, rows contiguous.
        """
        self._compute_streams(first_sector, len(source))
        for start in range(0, len(source), _SLICE):
            end = min(start + _SLICE, len(source))
            self._transform(source[start:end], target[start:end], start)

    def _transform(self, source: U64, target: U64, start: int) -> None:
        """One slice: its tweaks, and the AES between two XORs."""
        count = len(source)
        size = count * _WORDS
        self._blocks[:count] = self._windows[start : start + count]
        by_window = self._low[start : start + count].view(np.uint8)[:, :, 32:0:-1]
        self._lowest[:count] = by_window.transpose(0, 2, 1)
        tweaks, before = self._tweaks[:count], self._before[:count]
        np.bitwise_xor(source, tweaks, out=before)
        self._data.update_into(before.reshape(-1).view(np.uint8).data, self._after[: size + 2].view(np.uint8).data)
        np.bitwise_xor(self._after[:size].reshape(count, _WORDS), tweaks, out=target)

    def _compute_streams(self, first_sector: int, count: int) -> None:
        iv: U64 = np.zeros((count, 2), np.uint64)
        iv[:, 0] = np.arange(first_sector, first_sector + count, dtype=np.uint64) * _UNITS
        t: U64 = np.frombuffer(self._tweak.update(iv.data.cast("B")), np.uint64).reshape(count, 2)
        low, high = t[:, :1], t[:, 1:]
        word = self._words[:, :count]  # word[i] is the i-th word of every stream
        top, next_, c, d = word[5], word[4], self._c[:count], self._d[:count]

        # T·α^j for j = 0..7; shifting right in two steps makes 64 - 0 come out as zero
        np.right_shift(high, _ONE, out=c)
        np.right_shift(c, _63 - _J, out=c)
        _reduce_low(c, next_, d)
        np.left_shift(low, _J, out=d)
        np.bitwise_xor(next_, d, out=next_)
        np.right_shift(low, _ONE, out=top)
        np.right_shift(top, _63 - _J, out=top)
        np.left_shift(high, _J, out=d)
        np.bitwise_or(top, d, out=top)
        self._low[:count, :, 4] = next_  # of which window 0 takes the lowest byte

        # The stream, from its high end down: word[i] = low(0x87·word[i+2]) ⊕ carry(0x87·word[i+1])
        _reduce_high(top, c, d)
        np.bitwise_xor(next_, c, out=next_)
        for index in (3, 2, 1, 0):
            _reduce_low(word[index + 2], c, d)
            _reduce_high(word[index + 1], word[index], d)
            np.bitwise_xor(word[index], c, out=word[index])
        self._stream[:count] = word.transpose(1, 2, 0)

        # The lowest byte of window k ≥ 1: the low 8 bits of 0x87·(the byte that was on top one step before)
        _reduce_bytes(word[2:], self._bytes[:, :count], self._spare[:, :count])
        self._low[:count, :, :4] = self._bytes[:, :count].transpose(1, 2, 0)


def _reduce_low(c: U64, out: U64, scratch: U64) -> None:
    """The low 64 bits of the carry-less product 0x87·c: x^128 = x^7 + x^2 + x + 1."""
    np.left_shift(c, _ONE, out=out)
    np.bitwise_xor(out, c, out=out)
    np.left_shift(c, _TWO, out=scratch)
    np.bitwise_xor(out, scratch, out=out)
    np.left_shift(c, _SEVEN, out=scratch)
    np.bitwise_xor(out, scratch, out=out)


def _reduce_high(c: U64, out: U64, scratch: U64) -> None:
    """The bits of 0x87·c beyond the 64th."""
    np.right_shift(c, _63, out=out)
    np.right_shift(c, _62, out=scratch)
    np.bitwise_xor(out, scratch, out=out)
    np.right_shift(c, _57, out=scratch)
    np.bitwise_xor(out, scratch, out=out)


def _reduce_bytes(c: U64, out: U64, scratch: U64) -> None:
    """The low 8 bits of 0x87·byte, for each byte of each word."""
    np.left_shift(c, _ONE, out=out)
    np.bitwise_and(out, _BYTE_1, out=out)
    np.bitwise_xor(out, c, out=out)
    np.left_shift(c, _TWO, out=scratch)
    np.bitwise_and(scratch, _BYTE_2, out=scratch)
    np.bitwise_xor(out, scratch, out=out)
    np.left_shift(c, _SEVEN, out=scratch)
    np.bitwise_and(scratch, _BYTE_7, out=scratch)
    np.bitwise_xor(out, scratch, out=out)
