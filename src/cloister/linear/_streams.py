"""Random bytes by number, and what is drawn from them: AES-256 in counter mode.

A stream is the keystream of AES-256-CTR (NIST SP 800-38A) from counter block zero, under the key HKDF-SHA-256(seed,
label), 32 bytes, without salt. Words of it are little-endian. Two kinds:

* :class:`SecretStream` draws its seed from the operating system and shows it to nobody: one a use. It gives nothing in
  a fork of its process, which would draw the same.
* :class:`PublicStream` expands a seed that all parties have: a coin toss, a hash.

What is drawn takes a number of bytes that depends on nothing but what is asked for, and no branch follows from a drawn
value. The exception is :func:`residues`, of public streams only. Distances are total variation, a value.

================  =======================================  ==========  ===================
draw              values                                   bytes each  distance
================  =======================================  ==========  ===================
`elements`        F_p: 184 bits, minus p if that or more   23          2^-114
`ternary`         -1, 0, 1                                 24          2^-128
`binomial`        21 bits minus 21 bits, in [-21, 21]      8           0
`box`             integers from a least to a most          16 more     2^-128
`residues`        modulo each prime of a basis             8           0; drawn again if at least q
================  =======================================  ==========  ===================
"""

from __future__ import annotations

import math
import os
import secrets
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from cloister.errors import InputError, InternalError
from cloister.linear import _draws
from cloister.linear import _field_kernels as kernels
from cloister.linear._elements import WORDS
from cloister.linear._field import ELEMENT_BYTES, Elements, unpacked
from cloister.linear._primes import Basis

__all__ = ["SEED_BYTES", "PublicStream", "SecretStream", "Stream", "binomial", "box", "elements", "residues", "ternary"]

SEED_BYTES = 32
MOST_BYTES = 1 << 30
"""Of one draw."""

_PIECE = bytes(1 << 16)  # zeros to be encrypted: with what comes of them, in a core's own cache
_Word = np.uint64


class Stream:
    """Bytes, each given once. Neither compared nor pickled nor copied; ``repr`` shows the label alone."""

    __slots__ = ("_keystream", "_label")

    def __init__(self, seed: bytes, label: str) -> None:
        key = HKDF(SHA256(), SEED_BYTES, salt=None, info=label.encode()).derive(seed)
        self._keystream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._label = label

    def draw(self, size_bytes: int) -> NDArray[np.uint8]:
        """The next bytes.

        Raises:
            InputError: 2912 for fewer than none or more than 2^30.
        """
        if not 0 <= size_bytes <= MOST_BYTES:
            raise InputError(2912, expected=f"0 to {MOST_BYTES} bytes", got=size_bytes)
        out = np.empty(size_bytes, np.uint8)
        for start in range(0, size_bytes, len(_PIECE)):
            piece = out.data[start : start + len(_PIECE)]
            self._keystream.update_into(_PIECE[: len(piece)], piece)
        return out

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next ``8 · count`` bytes as little-endian words."""
        return self.draw(8 * count).view("<u8").astype(_Word, copy=False)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._label!r}>"

    def __eq__(self, other: object) -> bool:
        raise TypeError("streams are not compared")

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a stream is neither pickled nor copied")


class PublicStream(Stream):
    """What every party expands alike.

    Args:
        seed: 32 bytes.
        label: What for.

    Raises:
        InputError: 2912 when the seed has another length.
    """

    __slots__ = ()

    def __init__(self, seed: bytes, label: str) -> None:
        if len(seed) != SEED_BYTES:
            raise InputError(2912, "not a stream's seed", expected=f"{SEED_BYTES} bytes", got=f"{len(seed)} bytes")
        super().__init__(seed, label)


class SecretStream(Stream):
    """Secret randomness for one use, under a seed of the operating system's.

    Args:
        label: What for.
    """

    __slots__ = ("_process",)

    def __init__(self, label: str) -> None:
        super().__init__(secrets.token_bytes(SEED_BYTES), label)
        self._process = os.getpid()

    def draw(self, size_bytes: int) -> NDArray[np.uint8]:
        """The next bytes.

        Raises:
            InputError: 2912 for fewer than none or more than 2^30.
            InternalError: 9901 in another process than the one that made the stream.
        """
        if os.getpid() != self._process:
            raise InternalError(9901, "the randomness of one process was about to be used in a fork of it")
        return super().draw(size_bytes)


# ---- draws -----------------------------------------------------------------------------------------------


def elements(stream: Stream, *shape: int) -> Elements:
    """Uniform field elements: ``(*shape, 3)`` words."""
    count = _count(shape)
    words = unpacked(stream.draw(ELEMENT_BYTES * count), count)
    kernels.brought_down(words, words)
    return words.reshape(*shape, WORDS)


def ternary(stream: Stream, *shape: int) -> NDArray[np.int8]:
    """Uniform in {-1, 0, 1}."""
    return box(stream, _count(shape), -1, 1).astype(np.int8).reshape(shape)


def binomial(stream: Stream, *shape: int) -> NDArray[np.int8]:
    """Centred binomial of 21 and 21 coins: in [-21, 21], variance 10.5."""
    out = np.empty(_count(shape), np.int8)
    _draws.binomial(stream.words(out.size), out)
    return out.reshape(shape)


def box(stream: Stream, count: int, least: int, most: int) -> NDArray[np.uint64]:
    """Integers from ``least`` to ``most``, both public: ``(count, W)`` words in two's complement, the lowest first.

    W words hold both with their sign: ``b // 64 + 1`` for b bits. A draw is ``⌊u · size / 2^bits⌋`` of 128 bits more
    than the size has words.

    Raises:
        InputError: 2912 when there are none, or they have more than 8 words.
    """
    size = most - least + 1
    if size < 1 or max(abs(least), abs(most)) >> 510:
        raise InputError(2912, "no such box", expected="least ≤ most, of at most 510 bits", got=size)
    width = max(least.bit_length(), most.bit_length()) // 64 + 1
    factors = _words(size, -(-size.bit_length() // 64))
    beside = factors.size + 2
    out = np.empty((_count((count,)), width), _Word)
    drawn, product = stream.words(beside * count).reshape(count, beside), np.empty(beside + factors.size, _Word)
    _draws.box(drawn, factors, _words(least, width), product, out)
    return out


def residues(stream: PublicStream, basis: Basis) -> NDArray[np.uint64]:
    """A uniform polynomial modulo each prime, ``(k, N)``: prime by prime, as many low bits of a word as the prime has.

    A word whose bits are no residue is passed over.
    """
    out = np.empty(basis.shape, _Word)
    for row, prime in zip(out, basis.primes, strict=True):
        made = 0
        while made < row.size:
            drawn = stream.words(row.size - made) & _Word((1 << prime.bit_length()) - 1)
            fits = drawn[drawn < prime]
            row[made : made + fits.size] = fits
            made += fits.size
    return out


def _words(value: int, count: int) -> NDArray[np.uint64]:
    """In two's complement, the lowest first."""
    return np.array([value >> (64 * place) & (2**64 - 1) for place in range(count)], _Word)


def _count(shape: tuple[int, ...]) -> int:
    if min(shape, default=0) < 0:
        raise InputError(2912, expected="no negative size", got=shape)
    return math.prod(shape)
