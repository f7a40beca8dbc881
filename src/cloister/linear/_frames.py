"""Messages between parties as frames: bytes in, bytes out, no socket.

A frame is a header, the size of the body (4 bytes), the kind of the step (2), its number (4), and the body. Kinds are
names; a frame carries 16 bits of the name's hash. An abort is a frame of its own kind, 16 bytes in all, and may come in
the place of any other.

Rules:

* Who reads knows what is due. Size, kind and step are compared with it *before* memory is taken for the body: what is
  not due is 6903, whatever it may be.
* Between steps nothing is read but a header, so an abort is heard early and nobody can fill our memory.

>>> inbox = Inbox("bank-b")
>>> inbox.expect("open", 7, 3)
>>> _feed(inbox, frame("open", 7, b"abc"))
b'abc'
>>> inbox.expect("open", 8, 3)
>>> _feed(inbox, frame("open", 8, b"too long"))
Traceback (most recent call last):
    ...
cloister.errors._tree.PeerError: error[CLOISTER-6903]: bank-b sent what is not due
"""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache

from cloister.errors import PeerError, all_codes

__all__ = ["HEADER_BYTES", "PHASES", "Inbox", "abort_frame", "frame", "header", "kind_of"]

PHASES = ("session", "groups", "answers", "checks", "inputs", "online", "release")
"""Of a session; an abort says in which one."""

_HEADER = struct.Struct(">IHI")
_ABORT = struct.Struct(">HI")
_ABORT_KIND = 0
_AGAIN = 6906
HEADER_BYTES = _HEADER.size


@lru_cache(maxsize=256)
def kind_of(name: str) -> int:
    """16 bits for a step's kind, never those of an abort."""
    return 1 + int.from_bytes(hashlib.sha256(b"cloister/linear/kind\0" + name.encode()).digest()[:4], "big") % 0xFFFF


def header(kind: str, step: int, size_bytes: int) -> bytes:
    """What goes before a body."""
    return _HEADER.pack(size_bytes, kind_of(kind), step)


def frame(kind: str, step: int, body: bytes) -> bytes:
    """A whole message."""
    return header(kind, step, len(body)) + body


def abort_frame(step: int, code: int, phase: str) -> bytes:
    """That this party stops: by its code and in which phase, and nothing else."""
    return _HEADER.pack(_ABORT.size, _ABORT_KIND, step) + _ABORT.pack(code, PHASES.index(phase))


class Inbox:
    """One peer's frames, as they arrive.

    Args:
        peer: Its name, for messages.
    """

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._header = bytearray(HEADER_BYTES)
        self._due: tuple[str, int, int] | None = None
        self._message: bytes | None = None
        self._begin(self._header)

    def expect(self, kind: str, step: int, size_bytes: int) -> None:
        """Says what is due next; what has arrived already is compared at once.

        Raises:
            PeerError: 6903 when that is something else.
        """
        self._due, self._message = (kind, step, size_bytes), None
        self._judge()

    @property
    def message(self) -> bytes | None:
        """The body that was due, once it is there."""
        return self._message

    @property
    def between(self) -> bool:
        """Whether nothing of a frame has arrived that was not taken."""
        return self._into is self._header and self._filled == 0

    def space(self) -> memoryview:
        """Where the next bytes go; empty while a header waits for its step."""
        return memoryview(self._into)[self._filled :]

    def took(self, count: int) -> None:
        """``count`` bytes were written to :meth:`space`.

        Raises:
            PeerError: 6903 when the header is not the one that is due; 6905 when the peer aborted.
        """
        self._filled += count
        if self._filled < len(self._into):
            return
        if self._into is self._header:
            self._judge()
        elif self._kind() == _ABORT_KIND:
            self._aborted()
        else:
            self._complete()

    def _begin(self, into: bytearray) -> None:
        self._into, self._filled = into, 0

    def _kind(self) -> int:
        return int(_HEADER.unpack(self._header)[1])

    def _judge(self) -> None:
        """Of a complete header, when something is due or it says that the peer aborts."""
        if self._into is not self._header or self._filled < HEADER_BYTES:
            return
        size, kind, step = _HEADER.unpack(self._header)
        if kind == _ABORT_KIND:
            if size != _ABORT.size:
                raise PeerError(6903, f"{self._peer} sent what is not due", expected="an abort", got=f"{size} bytes")
            self._begin(bytearray(size))
        elif self._due is not None:
            name, number, due = self._due
            if (size, kind, step) != (due, kind_of(name), number):
                expected = f"'{name}', step {number}, {due} bytes"
                got = f"kind {kind:04x}, step {step}, {size} bytes"
                raise PeerError(6903, f"{self._peer} sent what is not due", expected=expected, got=got)
            self._begin(bytearray(due))
            if not due:
                self._complete()

    def _complete(self) -> None:
        self._message, self._due = bytes(self._into), None
        self._begin(self._header)

    def _aborted(self) -> None:
        code, place = _ABORT.unpack(bytes(self._into))
        if code == _AGAIN:  # all begin again, whoever said so first
            raise PeerError(_AGAIN, f"{self._peer} says that a proof left its box; begin again")
        page = all_codes().get(code)
        phase = PHASES[place] if place < len(PHASES) else "an unknown phase"
        why = f"{code}, {page.title}" if page else f"{code}, unknown here"
        raise PeerError(6905, f"{self._peer} stopped in {phase}", got=why)


def _feed(inbox: Inbox, data: bytes) -> bytes | None:
    """Everything at once, as far as the inbox takes it."""
    while data and len(space := inbox.space()):
        part = data[: len(space)]
        space[: len(part)] = part
        inbox.took(len(part))
        data = data[len(part) :]
    return inbox.message
