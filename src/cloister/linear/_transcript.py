"""Hashes under a label, and the transcript: a running hash of all that every party of a session sees alike."""

from __future__ import annotations

import hashlib

__all__ = ["DIGEST_BYTES", "Transcript", "labelled"]

DIGEST_BYTES = 32


def labelled(label: str, *parts: bytes | int) -> bytes:
    """SHA-256 of a label, a zero byte, and each part with its length; an integer counts as 8 bytes."""
    return _absorb(hashlib.sha256(), label, parts).digest()


def _absorb(running: hashlib._Hash, label: str, parts: tuple[bytes | int, ...]) -> hashlib._Hash:
    running.update(label.encode() + b"\0")
    for part in parts:
        data = part.to_bytes(8, "little") if isinstance(part, int) else part
        running.update(len(data).to_bytes(8, "little"))
        running.update(data)
    return running


class Transcript:
    """Broadcasts and opened values of a session in their order; honest parties hold equal ones, with no secret in them.

    Args:
        session: What the parties agreed to call the session, 32 bytes.
    """

    def __init__(self, session: bytes) -> None:
        self._running = _absorb(hashlib.sha256(), "transcript", (session,))

    def add(self, label: str, *parts: bytes | int) -> None:
        """Takes in what all have seen."""
        _absorb(self._running, label, parts)

    def digest(self) -> bytes:
        """Of everything so far, 32 bytes."""
        return self._running.copy().digest()
