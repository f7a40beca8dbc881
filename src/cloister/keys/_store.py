"""Where the log and the sealed secrets lie. Its keeper is the host: nothing that is read back is trusted unseen.

The seam is :class:`KeyStore`. Its one rule: :meth:`KeyStore.append` takes the size that the caller believes in, and
either everything of a commit is durable, or nothing is; so two processes on one store cannot fork its log.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cloister.errors import InputError

__all__ = ["SCHEMA_VERSION", "Commit", "KeyStore", "MemoryStore", "StoreMoved", "require_schema", "store_at"]

SCHEMA_VERSION = "1"


class StoreMoved(Exception):
    """The store holds more entries than the caller knew."""


@dataclass(frozen=True, slots=True)
class Commit:
    """What one transaction adds.

    Attributes:
        leaves: New log entries, in order.
        put: Sealed secrets by id; an id is written once.
        erase: Ids of secrets to erase.
        head: The signed head of the tree that the leaves lead to.
    """

    leaves: tuple[bytes, ...]
    head: bytes
    put: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    erase: tuple[str, ...] = ()


class KeyStore(Protocol):
    """The store of one key manager.

    Contract: ``create`` works once; ``append`` is durable when it returns, all or nothing, and raises
    :class:`StoreMoved` when ``size`` is not the stored size; ``read`` and ``boxes`` return what was appended.
    Methods may be called from several threads. Every method raises ``PeerError`` 6406 when the database fails.
    """

    def create(self, meta: Mapping[str, bytes], first: Commit) -> None:
        """Makes the store.

        Raises:
            InputError: 2403 when it is made already.
        """
        ...

    def meta(self) -> dict[str, bytes]:
        """What ``create`` was given, and ``schema``; empty when the store is not made."""
        ...

    def size(self) -> int:
        """How many entries."""
        ...

    def head(self) -> tuple[int, bytes]:
        """Size and signed head, of one moment."""
        ...

    def read(self, start: int, stop: int) -> list[bytes]:
        """The entries from ``start`` up to ``stop``."""
        ...

    def boxes(self, ids: Iterable[str] | None = None) -> dict[str, bytes]:
        """Sealed secrets by id: these, or all."""
        ...

    def append(self, size: int, commit: Commit) -> None:
        """Adds a commit after the first ``size`` entries.

        Raises:
            StoreMoved: the store has another size.
        """
        ...

    def close(self) -> None:
        """Lets go of the database."""
        ...


def require_schema(meta: Mapping[str, bytes]) -> None:
    """Returns when the store's schema is this release's.

    Raises:
        InputError: 2403 when the store is not made; 2402 when it has another schema.
    """
    if not meta:
        raise InputError(2403, "the store holds no key manager", hint="make one with 'cloister keys init'")
    found = meta.get("schema", b"?").decode("utf-8", "replace")
    if found != SCHEMA_VERSION:
        raise InputError(2402, expected=f"schema {SCHEMA_VERSION}", got=f"schema {found[:40]}")


def store_at(url: str) -> KeyStore:
    """The store at a SQLAlchemy URL: ``sqlite:///FILE``, ``postgresql+psycopg://…``.

    Raises:
        InputError: 2006 without the extra ``serve``; 2405 when the URL or its driver is not usable.
    """
    try:
        from cloister.keys._sql import SqlStore
    except ImportError:
        raise InputError(2006, "a store needs SQLAlchemy", hint="pip install 'cloister[serve]'") from None
    return SqlStore(url)


class MemoryStore:
    """The reference :class:`KeyStore`: a list and two dictionaries."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._meta: dict[str, bytes] = {}
        self._leaves: list[bytes] = []
        self._boxes: dict[str, bytes] = {}
        self._head = b""

    def create(self, meta: Mapping[str, bytes], first: Commit) -> None:
        with self._lock:
            if self._meta:
                raise InputError(2403, "the store holds a key manager already")
            self._meta = {**meta, "schema": SCHEMA_VERSION.encode()}
            self._add(first)

    def meta(self) -> dict[str, bytes]:
        with self._lock:
            return dict(self._meta)

    def size(self) -> int:
        with self._lock:
            return len(self._leaves)

    def head(self) -> tuple[int, bytes]:
        with self._lock:
            return len(self._leaves), self._head

    def read(self, start: int, stop: int) -> list[bytes]:
        with self._lock:
            return self._leaves[start:stop]

    def boxes(self, ids: Iterable[str] | None = None) -> dict[str, bytes]:
        with self._lock:
            return {name: box for name, box in self._boxes.items() if ids is None or name in set(ids)}

    def append(self, size: int, commit: Commit) -> None:
        with self._lock:
            if size != len(self._leaves):
                raise StoreMoved
            self._add(commit)

    def close(self) -> None:
        pass

    def _add(self, commit: Commit) -> None:
        self._leaves += commit.leaves
        self._boxes.update(commit.put)
        for name in commit.erase:
            self._boxes.pop(name, None)
        self._head = commit.head
