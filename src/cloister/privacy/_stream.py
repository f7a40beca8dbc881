"""Uniform bytes by number: AES-256 in counter mode, in chunks that can be made in any order and by any thread.

Chunk c of draw d is the keystream of AES-256-GCM (NIST SP 800-38D) under the 96-bit nonce ``d ‖ c``, 64 and 32 bits,
big-endian: the counter blocks ``d ‖ c ‖ 2``, ``d ‖ c ‖ 3``, …, encrypted. The tag is thrown away. Nothing is
authenticated here; of the ways to count with AES, this is the one that libraries make fastest.

The key is one for each purpose; a draw's number is used once. Encrypting n blocks under one key tells them from random
ones with probability below n²/2^129.
"""

from __future__ import annotations

import threading

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from cloister.errors import InternalError
from cloister.privacy._run_key import POSITIONS
from cloister.ring._process import ThisProcess
from cloister.wire import Secret

__all__ = ["CHUNK_BYTES", "Chunks", "Numbers"]

CHUNK_BYTES = 1 << 17  # of keystream: stays in a core's second cache beside the table
_TAG_BYTES = 16
_ZEROS = memoryview(bytes(CHUNK_BYTES))


class Chunks:
    """Makes chunks; one a thread, since its memory is written again for each.

    Args:
        key: 32 bytes, of this purpose alone.
    """

    def __init__(self, key: Secret) -> None:
        self._cipher = AESGCM(key.reveal())
        self._made = np.empty(CHUNK_BYTES + _TAG_BYTES, np.uint8)

    def words(self, draw: int, chunk: int, count: int = CHUNK_BYTES // 8) -> NDArray[np.uint64]:
        """The first ``count`` words of a chunk, little-endian; they last until the next call.

        Without the GIL for most of it. The memory is this object's own.
        """
        nonce = draw.to_bytes(8, "big") + chunk.to_bytes(4, "big")
        size = 8 * count
        self._cipher.encrypt_into(nonce, _ZEROS[:size], None, self._made.data[: size + _TAG_BYTES])
        return self._made[:size].view("<u8")


class Numbers:
    """Consecutive numbers, each given once, in one process. Safe to use from several threads.

    Args:
        first: The first that is given.
    """

    def __init__(self, first: int = 0) -> None:
        self._process = ThisProcess()
        self._lock = threading.Lock()
        self.next = first

    def require(self) -> None:
        """Returns in the process that the numbers are counted in.

        Raises:
            InternalError: 9810 in a fork of it, which has the same key and the same numbers.
        """
        try:
            self._process.require()
        except InternalError:
            raise InternalError(9810, "the randomness of one process was about to be used in a fork of it") from None

    def take(self) -> int:
        """The next.

        Raises:
            InternalError: 9810 when all 2^64 are used, or in a fork of the process.
        """
        self.require()
        with self._lock:
            number = self.next
            if number >= POSITIONS:
                raise InternalError(9810, "every number of a stream is used up")
            self.next = number + 1
            return number
