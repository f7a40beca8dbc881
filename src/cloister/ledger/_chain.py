"""A chain of digests: each covers the one before, its place, and what it stands for."""

from __future__ import annotations

import hmac
from typing import Any

from cloister.errors import IntegrityError
from cloister.wire import labelled_digest

__all__ = ["begin", "follow", "require_same", "same"]


def begin(label: str, header: Any) -> str:
    """The digest that a chain starts from: its header is covered by every later link."""
    return labelled_digest(label, {"header": header})


def follow(label: str, previous: str, index: int, body: Any) -> str:
    """The link of entry ``index``, after the link ``previous``."""
    return labelled_digest(label, {"previous": previous, "index": index, "body": body})


def same(one: str, other: str) -> bool:
    """Whether two digests are equal, compared in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())


def require_same(expected: str, got: str, *, what: str) -> None:
    """Returns when two digests are equal.

    Raises:
        IntegrityError: 5801 when they are not.
    """
    if not same(expected, got):
        raise IntegrityError(5801, what, expected=expected, got=got)
