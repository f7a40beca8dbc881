"""Integers of a few bits each, side by side in bytes: how polynomials are sent.

Rows of words follow each other, each with its own number of bits a value, the lowest bit first, without a gap. What is
left of the last byte is zero. Everything here is on its way to a peer or from one: public.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cloister._compiled import compiled
from cloister.errors import InputError, PeerError
from cloister.linear._primes import Basis

__all__ = ["pack", "packed_bytes", "residue_bits", "unpack", "unpack_residues"]

Words = NDArray[np.uint64]

_Word = np.uint64
_0, _1, _6, _63 = (_Word(n) for n in (0, 1, 6, 63))


def residue_bits(basis: Basis) -> list[int]:
    """Of a residue modulo each prime."""
    return [prime.bit_length() for prime in basis.primes]


def packed_bytes(bits: Sequence[int], count: int) -> int:
    """Of rows with ``count`` values each."""
    return -(-count * sum(bits) // 8)


def pack(rows: Words, bits: Sequence[int]) -> bytes:
    """Rows ``(R, n)``, each value below 2 to the power of its row's bits, from 1 to 64.

    Raises:
        InputError: 2911 for another shape.
    """
    if rows.dtype != _Word or rows.ndim != 2 or rows.shape[0] != len(bits):
        raise InputError(2911, expected=f"({len(bits)}, n) uint64", got=f"{rows.shape} {rows.dtype}")
    size_bytes = packed_bytes(bits, rows.shape[1])
    out = np.zeros(size_bytes // 8 + 1, _Word)
    _pack(np.ascontiguousarray(rows), np.array(bits, np.int64), out)
    return out.astype("<u8", copy=False).view(np.uint8)[:size_bytes].tobytes()


def unpack(data: bytes, bits: Sequence[int], count: int, *, party: int) -> Words:
    """The rows, ``(R, count)``, that a party sent.

    Raises:
        PeerError: 6903 for more or fewer bytes, or ones behind the last value.
    """
    total = count * sum(bits)
    if len(data) != packed_bytes(bits, count):
        expected = f"{packed_bytes(bits, count)} bytes"
        raise PeerError(6903, f"party {party} sent polynomials of another size", expected=expected, got=len(data))
    if total % 8 and data[-1] >> total % 8:
        raise PeerError(6903, f"party {party} sent more than its polynomials")
    padded = np.zeros(len(data) // 8 + 2, "<u8")
    padded.view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
    out = np.empty((len(bits), count), _Word)
    _unpack(padded.astype(_Word, copy=False), np.array(bits, np.int64), out)
    return out


def unpack_residues(data: bytes, basis: Basis, count: int, *, party: int, polynomials: int = 1) -> Words:
    """Residues, ``(polynomials, k, count)``, that a party sent.

    Raises:
        PeerError: 6903 for more or fewer bytes, or a value that is no residue.
    """
    rows = unpack(data, residue_bits(basis) * polynomials, count, party=party)
    out = rows.reshape(polynomials, len(basis.primes), count)
    if (out >= np.array(basis.primes, _Word)[:, None]).any():
        raise PeerError(6903, f"party {party} sent what is no residue")
    return out


# ---- compiled --------------------------------------------------------------------------------------------


@compiled
def _pack(rows: Words, bits: NDArray[np.int64], out: Words) -> None:
    place, filled, word = 0, 0, _0
    for r in range(rows.shape[0]):
        width = bits[r]
        for i in range(rows.shape[1]):
            value = rows[r, i]
            word |= value << _Word(filled)
            filled += width
            if filled >= 64:
                out[place] = word
                place, filled = place + 1, filled - 64
                word = (value >> _Word(width - 1 - filled)) >> _1  # of a whole word nothing is left
    out[place] = word


@compiled
def _unpack(words: Words, bits: NDArray[np.int64], out: Words) -> None:
    position = _0
    for r in range(out.shape[0]):
        width = _Word(bits[r])
        mask = (((_1 << (width - _1)) - _1) << _1) | _1
        for i in range(out.shape[1]):
            place, offset = position >> _6, position & _63
            out[r, i] = ((words[place] >> offset) | ((words[place + _1] << _1) << (_63 - offset))) & mask
            position += width
