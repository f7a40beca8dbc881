"""dm-verity, format version 1: the tree's shape, its superblock, its hashes.

Source: kernel documentation ``admin-guide/device-mapper/verity``; cryptsetup, ``lib/verity/verity.c``.
"""

from __future__ import annotations

import hashlib
import struct
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from cloister.wire import digest

__all__ = ["BLOCK", "DIGEST", "FANOUT", "SALT", "HashRows", "Tree", "TreeBuilder", "superblock"]

BLOCK = 4096  # bytes: data block, hash block and encryption sector alike
DIGEST = 32  # bytes of a SHA-256
FANOUT = BLOCK // DIGEST  # digests in one hash block
SALT = 32  # bytes
_SPOOL_BYTES = 8 << 20  # a level of the tree stays in memory up to here, beyond it in a temporary file

U64 = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Tree:
    """The shape of the tree over ``data_blocks`` blocks."""

    data_blocks: int

    @property
    def levels(self) -> tuple[int, ...]:
        """Hash blocks in each level, leaves first. One data block has no level: its digest is the root."""
        counts: list[int] = []
        count = self.data_blocks
        while count > 1:
            count = -(-count // FANOUT)
            counts.append(count)
        return tuple(counts)

    @property
    def blocks(self) -> int:
        """Hash blocks in all."""
        return sum(self.levels)

    def first_block(self, level: int) -> int:
        """Where ``level`` begins, in blocks after the superblock's: the top of the tree is stored first."""
        return sum(self.levels[level + 1 :])


def superblock(data_blocks: int, salt: bytes) -> bytes:
    """The superblock's 4096 bytes. Its uuid is derived from the salt, so that no bit of it is free."""
    identifier = uuid.UUID(digest(b"cloister/verity-uuid\0" + salt)[:32], version=4)
    head = struct.pack(
        "<8sII16s32sIIQH6s256s168s",
        b"verity\0\0",
        1,  # superblock version
        1,  # hash type: salt before data
        identifier.bytes,
        b"sha256",
        BLOCK,
        BLOCK,
        data_blocks,
        len(salt),
        b"",
        salt,
        b"",
    )
    return head.ljust(BLOCK, b"\0")


class HashRows:
    """A private buffer of rows ``salt ‖ block``, hashed one row a call.

    The salt stands ready before each block, so a block costs one call of SHA-256 over 4128 bytes: no copy of a
    prepared state, no concatenation. ``blocks`` is where the caller puts the data.

    Shapes: ``blocks``: (capacity, 512) uint64, rows 4128 bytes apart.
    """

    def __init__(self, salt: bytes, *, capacity: int) -> None:
        rows: U64 = np.zeros((capacity, (SALT + BLOCK) // 8), np.uint64)
        rows[:, : SALT // 8] = np.frombuffer(salt, np.uint64)
        self.blocks: U64 = rows[:, SALT // 8 :]
        whole = rows.data.cast("B")
        size = SALT + BLOCK
        self._rows = [whole[start : start + size] for start in range(0, capacity * size, size)]

    def digests(self, count: int) -> bytes:
        """The digests of the first ``count`` blocks, one after the other."""
        sha256 = hashlib.sha256
        return b"".join([sha256(row).digest() for row in self._rows[:count]])

    def put(self, data: bytes | bytearray | memoryview) -> int:
        """Copies whole blocks in; returns how many."""
        blocks = np.frombuffer(data, np.uint64).reshape(-1, BLOCK // 8)
        self.blocks[: len(blocks)] = blocks
        return len(blocks)


class TreeBuilder:
    """Takes the data blocks' digests in order; gives the root and the hash area.

    Memory is bounded: each level beyond a few MiB is spooled to a temporary file (it holds digests of ciphertext,
    which are public).
    """

    def __init__(self, salt: bytes, *, data_blocks: int) -> None:
        self._rows = HashRows(salt, capacity=FANOUT)
        self._counts = Tree(data_blocks).levels
        self._spools: list[IO[bytes]] = [tempfile.SpooledTemporaryFile(_SPOOL_BYTES) for _ in self._counts]  # noqa: SIM115
        self._root = b""

    def add(self, digests: bytes) -> None:
        """Appends leaf digests."""
        if self._spools:
            self._spools[0].write(digests)
        else:
            self._root = digests

    def finish(self) -> bytes:
        """Builds the levels above the leaves and returns the root."""
        for level, spool in enumerate(self._spools):
            spool.write(bytes(-spool.tell() % BLOCK))
            above = self._spools[level + 1] if level + 1 < len(self._spools) else None
            spool.seek(0)
            while data := spool.read(FANOUT * BLOCK):
                digests = self._rows.digests(self._rows.put(data))
                if above is None:
                    self._root = digests
                else:
                    above.write(digests)
        return self._root

    def area(self) -> Iterator[bytes]:
        """The tree's blocks in the order of the file: top first."""
        for spool in reversed(self._spools):
            spool.seek(0)
            while data := spool.read(FANOUT * BLOCK):
                yield data

    def close(self) -> None:
        """Drops the spools."""
        for spool in self._spools:
            spool.close()

    def __enter__(self) -> TreeBuilder:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
