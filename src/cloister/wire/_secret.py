"""Bytes that must not be printed, compared, pickled or encoded by accident."""

from __future__ import annotations

import hmac
import secrets
from typing import NoReturn

__all__ = ["Secret"]


class Secret:
    """Secret bytes. ``reveal()`` is the only way out, so that every use can be found by searching for it.

    >>> Secret(b"k" * 32)
    <Secret 32 bytes>
    """

    __slots__ = ("_bytes",)

    def __init__(self, value: bytes) -> None:
        self._bytes = bytes(value)

    @classmethod
    def random(cls, size_bytes: int) -> Secret:
        """Fresh bytes from the operating system's CSPRNG."""
        return cls(secrets.token_bytes(size_bytes))

    def reveal(self) -> bytes:
        """The bytes themselves."""
        return self._bytes

    def matches(self, other: Secret) -> bool:
        """Constant-time comparison."""
        return hmac.compare_digest(self._bytes, other._bytes)

    def __len__(self) -> int:
        return len(self._bytes)

    def __repr__(self) -> str:
        return f"<Secret {len(self._bytes)} bytes>"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        raise TypeError("secrets are compared with .matches()")

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret cannot be pickled")

    def __copy__(self) -> NoReturn:
        raise TypeError("a secret is not copied")
