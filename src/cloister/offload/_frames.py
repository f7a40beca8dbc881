"""Messages of a worker's link as authenticated records: bytes in, bytes out, no socket.

A message is a header of fixed size, a body and, where there is one, a tensor::

    header   size of the body, size of the tensor     4 + 8 bytes      + 16 of tag
    body     canonical JSON                           at most 128 KiB  + 16
    tensor   little-endian, row by row, in parts      1 MiB, the last part shorter, + 16 each

Rules:

* Each direction of a session has a key of its own (AES-256-GCM). A record's nonce is its number; both sides count, and
  no number travels. So a record that was dropped, repeated, moved or taken from elsewhere fails like a changed one.
* What a record is, and whether it ends its message, is authenticated with it.
* What comes is authenticated, then bounded, then given memory, then read; in this order.
* A tensor is encrypted from where it lies and decrypted to where it will stay: no copy on either side but those of
  the cipher and the system. Nobody is given a tensor before its last record was verified.

>>> import io
>>> key = Secret.random(KEY_BYTES)
>>> sent = b"".join(bytes(piece) for piece in Outbound(key).message(b"{}", memoryview(b"a tensor")))
>>> tensor, source = bytearray(8), io.BytesIO(sent)
>>> reading = Inbound(key).message(lambda body, size: memoryview(tensor))
>>> complete(reading, source.readinto), bytes(tensor)
(b'{}', b'a tensor')
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.errors import IntegrityError, PeerError
from cloister.wire import Secret

__all__ = [
    "KEY_BYTES",
    "MAX_BODY_BYTES",
    "MAX_RECORDS",
    "PART_BYTES",
    "PIECE_BYTES",
    "Inbound",
    "Outbound",
    "Reading",
    "complete",
]

T = TypeVar("T")

Reading = Generator[int, memoryview, T]
"""Yields how many bytes it needs next, is sent exactly these, and returns what they were."""

KEY_BYTES = 32
PART_BYTES = 1 << 20  # what is encrypted stays in a core's cache until the system has copied it
MAX_BODY_BYTES = 1 << 17  # a command that drops 4096 handles has 70 kB
MAX_RECORDS = 1 << 32  # a petabyte a direction, far below what AES-GCM allows a key; then the session ends
_TAG = 16
PIECE_BYTES = PART_BYTES + _TAG  # the most that a reading asks for at a time
_SIZES = struct.Struct(">IQ")
_HEADER_BYTES = _SIZES.size + _TAG
_MORE, _LAST = b"cloister/link/v1/more/", b"cloister/link/v1/last/"
_BUFFER_BYTES = _HEADER_BYTES + MAX_BODY_BYTES + _TAG + PART_BYTES + _TAG


class _Way:
    """One direction of one session: the cipher and the number of the next record."""

    def __init__(self, key: Secret) -> None:
        self._cipher = AESGCM(key.reveal())
        self.records = 0

    def _number(self) -> bytes:
        """The next record's nonce; counted before it is used, so that no failure brings one back."""
        if self.records >= MAX_RECORDS:
            raise PeerError(6710, expected=f"at most {MAX_RECORDS} records")
        self.records += 1
        return self.records.to_bytes(12, "big")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} after {self.records} records>"


class Outbound(_Way):
    """What one side sends. For one thread."""

    def __init__(self, key: Secret) -> None:
        super().__init__(key)
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))

    def message(self, body: bytes, tensor: memoryview | None = None) -> Iterator[memoryview]:
        """The pieces of one message, in order, each to be sent before the next is asked for: they share one buffer.

        Args:
            body: At most :data:`MAX_BODY_BYTES`.
            tensor: Bytes (format ``B``), read in place.

        Raises:
            PeerError: 6710 when the session's keys are used up.
        """
        size = 0 if tensor is None else len(tensor)
        filled = self._seal(b"header", _SIZES.pack(len(body), size), 0)
        filled = self._seal(b"body", body, filled, last=not size)
        for start in range(0, size, PART_BYTES):
            part = tensor[start : start + PART_BYTES]  # type: ignore[index]  # there is one: its size is not 0
            filled = self._seal(b"part", part, filled, last=start + len(part) == size)
            yield self._buffer[:filled]
            filled = 0
        if filled:
            yield self._buffer[:filled]

    def _seal(self, kind: bytes, data: bytes | memoryview, at: int, *, last: bool = False) -> int:
        end = at + len(data) + _TAG
        self._cipher.encrypt_into(self._number(), data, _meaning(kind, last), self._buffer[at:end])
        return end


class Inbound(_Way):
    """What one side receives. For one thread."""

    def message(
        self, accept: Callable[[bytes, int], memoryview | None], *, most_bytes: int = 1 << 40
    ) -> Reading[bytes]:
        """Reads one message.

        Args:
            accept: Called with the authentic body and the tensor's size in bytes. It returns the memory (format ``B``,
                exactly that size) in which the tensor will be, or None: then the tensor is verified and forgotten.
            most_bytes: A tensor that is larger is refused before anything else of its message is read.

        Returns:
            The body.

        Raises:
            IntegrityError: 5711 when a record is not the one that the other side made for this place.
            PeerError: 6707 when an authentic size is out of bounds; 6710 when the session's keys are used up.
        """
        sizes = bytearray(_SIZES.size)
        self._open(b"header", (yield _HEADER_BYTES), memoryview(sizes))
        body_size, size = _SIZES.unpack(sizes)
        if not 0 < body_size <= MAX_BODY_BYTES or size > most_bytes:
            raise PeerError(
                6707,
                expected=f"a body of 1 to {MAX_BODY_BYTES} bytes and a tensor of at most {most_bytes}",
                got=f"{body_size} and {size}",
            )
        body = bytearray(body_size)
        self._open(b"body", (yield body_size + _TAG), memoryview(body), last=not size)
        into = accept(bytes(body), size)
        forgotten = memoryview(bytearray(min(size, PART_BYTES))) if into is None else None
        for start in range(0, size, PART_BYTES):
            length = min(PART_BYTES, size - start)
            sealed = yield length + _TAG
            part = into[start : start + length] if into is not None else forgotten[:length]  # type: ignore[index]
            self._open(b"part", sealed, part, last=start + length == size)
        return bytes(body)

    def _open(self, kind: bytes, sealed: memoryview, into: memoryview, *, last: bool = False) -> None:
        number = self._number()
        try:
            self._cipher.decrypt_into(number, sealed, _meaning(kind, last), into)
        except InvalidTag:
            raise IntegrityError(5711, got=f"record {self.records}, {kind.decode()}") from None


def _meaning(kind: bytes, last: bool) -> bytes:
    """What is authenticated with a record besides its number."""
    return (_LAST if last else _MORE) + kind


def complete(reading: Reading[T], fill: Callable[[memoryview], Any], *, buffer: memoryview | None = None) -> T:
    """Runs a reading to its end.

    Args:
        reading: What to run.
        fill: Fills the whole of the memory that it is given with the next bytes, or raises.
        buffer: :data:`PIECE_BYTES` to be used again and again.
    """
    buffer = memoryview(bytearray(PIECE_BYTES)) if buffer is None else buffer
    try:
        wanted = next(reading)
        while True:
            fill(buffer[:wanted])
            wanted = reading.send(buffer[:wanted])
    except StopIteration as ended:
        return ended.value
    finally:
        reading.close()
