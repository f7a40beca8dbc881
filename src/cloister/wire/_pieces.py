"""A long secret in sealed pieces: written as it comes, read back piece by piece.

``head ‖ piece ‖ piece ‖ …``: each piece is AES-256-GCM under a key of this file alone (HKDF-SHA-256 of the caller's
key, the file's salt and a label), its nonce the piece's number and whether it is the last, the head its context. So
pieces cannot be changed, dropped, moved, repeated, cut off or taken from another file.

Source: the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár, "Online Authenticated-Encryption and its
Nonce-Reuse Misuse-Resistance" (CRYPTO 2015), section 7; NIST SP 800-38D; RFC 5869.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.wire._secret import Secret

__all__ = ["PIECE_BYTES", "TAG_BYTES", "PieceWriter", "Pieces", "sealed_length"]

PIECE_BYTES = 1 << 24
TAG_BYTES = 16
_NONCE = struct.Struct(">QI")


def sealed_length(size_bytes: int) -> int:
    """How many bytes the pieces of ``size_bytes`` bytes take, without the head.

    >>> sealed_length(0), sealed_length(1 << 24), sealed_length((1 << 24) + 1)
    (16, 16777232, 16777249)
    """
    return size_bytes + TAG_BYTES * max(1, -(-size_bytes // PIECE_BYTES))


class Pieces:
    """Seals and opens the pieces of one file.

    Args:
        key: Secret, of any number of files.
        salt: Fresh for this file, and in its head: it makes the file's own key.
        label: What kind of file it is.
        head: The file's head, which every piece is bound to.
    """

    def __init__(self, key: Secret, *, salt: bytes, label: bytes, head: bytes) -> None:
        derived = HKDF(algorithm=SHA256(), length=32, salt=salt, info=label).derive(key.reveal())
        self._cipher, self._head = AESGCM(derived), head

    def seal(self, piece: bytes, *, number: int, last: bool) -> bytes:
        """One piece, sealed; each number once."""
        return self._cipher.encrypt(_NONCE.pack(number, last), piece, self._head)

    def open(self, read: Callable[[int], bytes], put: Callable[[bytes], Any], *, size_bytes: int) -> None:
        """Opens every piece, each authenticated before ``put`` gets it.

        Args:
            read: Gives so many of the bytes behind the head; fewer only at the end.
            put: Takes the plaintext, in order.
            size_bytes: How many bytes there are behind the head.

        Security: what ``put`` got is the file's only once this has returned: one that was cut off shows at its end.

        Raises:
            ValueError: something is not as it was sealed.
        """
        number, left = 0, size_bytes
        while True:
            piece = read(min(left, PIECE_BYTES + TAG_BYTES))
            left -= len(piece)
            try:
                put(self._cipher.decrypt(_NONCE.pack(number, left == 0), piece, self._head))
            except InvalidTag:
                raise ValueError(f"piece {number} is not as it was sealed") from None
            number += 1
            if left == 0:
                return


class PieceWriter:
    """Takes any number of bytes and writes sealed pieces: what ``torch.save`` and ``shutil.copyfileobj`` write to.

    Args:
        write: Takes each sealed piece.
        pieces: Seals them.
    """

    def __init__(self, write: Callable[[bytes], Any], pieces: Pieces) -> None:
        self._write, self._pieces = write, pieces
        self._held = bytearray()
        self._count = 0

    def write(self, data: Any, /) -> int:
        """Takes ``data``, any buffer; returns its length in bytes."""
        view = memoryview(data).cast("B")
        self._held += view
        while len(self._held) > PIECE_BYTES:  # the last piece is told from the others, so one is held back
            self._seal(bytes(self._held[:PIECE_BYTES]), last=False)
            del self._held[:PIECE_BYTES]
        return len(view)

    def flush(self) -> None:
        """Nothing: a piece is written when it is full."""

    def finish(self) -> None:
        """Writes the last piece; nothing may follow."""
        self._seal(bytes(self._held), last=True)

    def _seal(self, piece: bytes, *, last: bool) -> None:
        self._write(self._pieces.seal(piece, number=self._count, last=last))
        self._count += 1
