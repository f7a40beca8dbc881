"""Reading: every block is copied to private memory, checked against the root there, and used from that copy."""

from __future__ import annotations

import hmac
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from cloister.errors import InputError, IntegrityError
from cloister.seal._descriptor import (
    TRAILER_BYTES,
    ImageDescriptor,
    check_image_id,
    decode_trailer,
    trailer_body,
)
from cloister.seal._luks import check_key, require_key
from cloister.seal._pipeline import CHUNK_BLOCKS, in_order
from cloister.seal._sealing import Progress
from cloister.seal._source import ByteSource, open_source
from cloister.seal._verity import BLOCK, DIGEST, FANOUT, HashRows, superblock
from cloister.seal._xts import Xts
from cloister.wire import Secret, digest

__all__ = ["ImageReader", "open_image", "read_descriptor", "verify_image"]

_log = logging.getLogger("cloister.seal")

_CACHED_BLOCKS = 2048  # verified hash blocks kept in private memory: 8 MiB
_SEARCH_BYTES = 1 << 20  # how far before the end a displaced descriptor is looked for


class VerifiedBlocks:
    """Blocks of an image, by number, each checked against the root on every read.

    Verified *hash* blocks are kept (a bounded number, in private memory); data blocks never are.
    """

    def __init__(self, source: ByteSource, descriptor: ImageDescriptor) -> None:
        self._source, self._descriptor = source, descriptor
        self._tree = descriptor.tree
        self._levels = self._tree.levels
        self._area = descriptor.hash_offset + BLOCK
        self._root = bytes.fromhex(descriptor.root)
        self._salt = bytes.fromhex(descriptor.salt)
        self._cache: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._lock = threading.RLock()
        self._rows = HashRows(self._salt, capacity=FANOUT)
        self._seen = bytearray(-(-descriptor.data_blocks // 8))  # which data blocks were right once: one bit each

    def rows(self, capacity: int) -> HashRows:
        """A private buffer for :meth:`fetch`."""
        return HashRows(self._salt, capacity=capacity)

    def fetch(self, rows: HashRows, first: int, count: int) -> None:
        """Copies data blocks ``first … first + count - 1`` into ``rows`` and checks them there.

        Raises:
            IntegrityError: 5201 the file has become shorter; 5207 a hash block, 5208, 5209 or 5211 a data block
                is not what the root says.
        """
        with self._lock:
            expected = self._expected(-1, first, count)
        rows.put(read_exactly(self._source, first * BLOCK, count * BLOCK))
        found = rows.digests(count)
        if not hmac.compare_digest(found, expected):
            self._refuse(first, found, expected)
        self._mark_seen(first, count)

    def _expected(self, level: int, first: int, count: int) -> bytes:
        """The digests that the level above states for ``count`` blocks of ``level`` (-1: the data)."""
        if level + 1 == len(self._levels):
            return self._root
        start = first // FANOUT
        blocks = self._hash_blocks(level + 1, start, (first + count - 1) // FANOUT - start + 1)
        skip = (first - start * FANOUT) * DIGEST
        return blocks[skip : skip + count * DIGEST]

    def _hash_blocks(self, level: int, first: int, count: int) -> bytes:
        """Verified hash blocks of one level, from the cache or in one wide read."""
        kept = [self._cache.get((level, index)) for index in range(first, first + count)]
        if all(block is not None for block in kept):
            for index in range(first, first + count):
                self._cache.move_to_end((level, index))
            return b"".join(block for block in kept if block is not None)
        parts: list[bytes] = []
        for start in range(first, first + count, FANOUT):
            parts.append(self._fetch_hash_blocks(level, start, min(FANOUT, first + count - start)))
        return b"".join(parts)

    def _fetch_hash_blocks(self, level: int, first: int, count: int) -> bytes:
        expected = self._expected(level, first, count)
        offset = self._area + (self._tree.first_block(level) + first) * BLOCK
        data = read_exactly(self._source, offset, count * BLOCK)
        found = self._rows.digests(self._rows.put(data))
        if not hmac.compare_digest(found, expected):
            bad = first + _first_difference(found, expected)
            raise IntegrityError(5207, f"hash block {bad} of level {level} is not what the root says")
        for index in range(count):
            self._cache[level, first + index] = data[index * BLOCK : (index + 1) * BLOCK]
        while len(self._cache) > _CACHED_BLOCKS:
            self._cache.popitem(last=False)
        return data

    def _refuse(self, first: int, found: bytes, expected: bytes) -> None:
        """Says which block is wrong, and how."""
        position = _first_difference(found, expected)
        block = first + position
        wrong = found[position * DIGEST : (position + 1) * DIGEST]
        if self._seen[block // 8] >> (block % 8) & 1:
            raise IntegrityError(5211, f"block {block} was right when it was read before, and has changed since")
        home = self._find_leaf(wrong)
        if home is not None:
            raise IntegrityError(5209, f"block {block} holds what belongs into block {home}")
        raise IntegrityError(
            5208,
            f"block {block} is not what the root says",
            expected=expected[position * DIGEST : (position + 1) * DIGEST].hex(),
            got=wrong.hex(),
        )

    def _find_leaf(self, wanted: bytes) -> int | None:
        """The block whose digest is ``wanted``, among all; reads the leaves of the tree once, only for a message."""
        total = self._descriptor.data_blocks
        step = CHUNK_BLOCKS * FANOUT
        for first in range(0, total, step):
            with self._lock:
                leaves = self._expected(-1, first, min(step, total - first))
            at = leaves.find(wanted)
            while at >= 0 and at % DIGEST:
                at = leaves.find(wanted, at + 1)
            if at >= 0:
                return first + at // DIGEST
        return None

    def _mark_seen(self, first: int, count: int) -> None:
        with self._lock:
            end = first + count
            whole_first, whole_end = -(-first // 8), end // 8
            if whole_first < whole_end:
                self._seen[whole_first:whole_end] = b"\xff" * (whole_end - whole_first)
            edges = [*range(first, min(whole_first * 8, end)), *range(max(whole_end * 8, first), end)]
            for block in edges:
                self._seen[block // 8] |= 1 << (block % 8)


def _first_difference(found: bytes, expected: bytes) -> int:
    for start in range(0, len(found), DIGEST):
        if found[start : start + DIGEST] != expected[start : start + DIGEST]:
            return start // DIGEST
    raise AssertionError("called on equal digests")


def read_exactly(source: ByteSource, offset: int, size: int) -> bytes:
    """``size`` bytes from ``offset``.

    Raises:
        IntegrityError: 5201 when the file ends before.
    """
    data = source.read(offset, size)
    if len(data) != size:
        raise IntegrityError(5201, "the file is cut short", expected=f"{size} bytes at {offset}", got=len(data))
    return data


def read_descriptor(source: ByteSource, *, image_id: str) -> ImageDescriptor:
    """The descriptor at the end of the file, once it is shown to be the one of ``image_id``.

    Raises:
        InputError: 2209 when ``image_id`` is none.
        IntegrityError: 5201, 5202, 5203, 5204, 5210.
    """
    check_image_id(image_id)
    size = source.size()
    start = max(0, size - _SEARCH_BYTES)
    block = read_exactly(source, size - TRAILER_BYTES, TRAILER_BYTES) if size >= TRAILER_BYTES else b""
    try:
        descriptor = decode_trailer(block, image_id=image_id)
    except IntegrityError as error:
        if error.code in (5201, 5203):
            _refuse_appended(read_exactly(source, start, size - start), image_id, size)
        raise
    if size != descriptor.size:
        code = 5201 if size < descriptor.size else 5202
        raise IntegrityError(code, "the file is not as long as its image", expected=descriptor.size, got=size)
    return descriptor


def _refuse_appended(tail: bytes, image_id: str, size: int) -> None:
    """When the expected descriptor stands before the end, what follows it was appended."""
    at = tail.find(b"cloister-image/1")
    while at >= 0:
        body = trailer_body(tail[at : at + TRAILER_BYTES])
        if body is not None and digest(body) == image_id:
            extra = len(tail) - at - TRAILER_BYTES
            raise IntegrityError(5202, "bytes follow the image", expected=size - extra, got=size)
        at = tail.find(b"cloister-image/1", at + 1)


def check_fixed_areas(source: ByteSource, descriptor: ImageDescriptor) -> bytes:
    """Compares the superblock, which is not under the root, and the header, to name it; returns the header.

    Raises:
        IntegrityError: 5201 cut short; 5205 LUKS header; 5206 verity superblock.
    """
    header = read_exactly(source, 0, descriptor.offset)
    if not hmac.compare_digest(digest(header), descriptor.header):
        raise IntegrityError(5205, "the LUKS header was edited", expected=descriptor.header, got=digest(header))
    stated = superblock(descriptor.data_blocks, bytes.fromhex(descriptor.salt))
    if read_exactly(source, descriptor.hash_offset, BLOCK) != stated:
        raise IntegrityError(5206, "the verity superblock is not the one that the descriptor fixes")
    return header


class _Bench:
    """One thread's private memory."""

    def __init__(self, blocks: VerifiedBlocks, key: Secret, capacity: int) -> None:
        self.rows = blocks.rows(capacity)
        self.xts = Xts(key, capacity=capacity, decrypt=True)
        self.plain = np.zeros((capacity, BLOCK // 8), np.uint64)


class ImageReader:
    """Random access to the verified plaintext of one image. Made by :func:`open_image`; a context manager.

    Each read fetches ciphertext into private memory, checks it against the root there and decrypts that same
    copy: storage that answers differently each time can only make a read fail.

    Attributes:
        descriptor: The image's authenticated descriptor.
        length: Bytes of plaintext: the squashfs and its padding.
    """

    def __init__(self, source: ByteSource, *, descriptor: ImageDescriptor, key: Secret) -> None:
        self.descriptor = descriptor
        self.length = descriptor.length
        self._source = source
        header = check_fixed_areas(source, descriptor)
        check_key(header, key)
        self._key = key
        self._blocks = VerifiedBlocks(source, descriptor)
        self._own = threading.local()

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes of plaintext from ``offset``; fewer only where the image ends. Safe from several threads.

        Raises:
            InputError: 2212 when the range is negative.
            IntegrityError: 5201, 5207, 5208, 5209, 5211 when a block is not what the root says.
        """
        if offset < 0 or size < 0:
            raise InputError(2212, "not a range of the image", got=f"{offset}+{size}")
        end = min(offset + size, self.length)
        if offset >= end:
            return b""
        first, last = offset // BLOCK, (end - 1) // BLOCK
        skip = offset - first * BLOCK
        if last - first < CHUNK_BLOCKS:
            bench = self._bench()
            return bytes(self._open(bench, first, last - first + 1)[skip : skip + end - offset])
        out = bytearray()
        for part in self._stream(first, last + 1):
            out += part
        return bytes(memoryview(out)[skip : skip + end - offset])

    def stream(self) -> Iterator[bytes]:
        """The whole plaintext in order, a few MiB at a time, read ahead by threads."""
        for part in self._stream(0, self.length // BLOCK):
            yield bytes(part)

    def copy_to(self, file: IO[bytes], *, progress: Progress | None = None) -> int:
        """Writes the whole plaintext to ``file`` in order; returns its length in bytes."""
        done = 0
        for part in self._stream(0, self.length // BLOCK):
            file.write(part)
            done += len(part)
            if progress:
                progress(done, self.length)
        return done

    def close(self) -> None:
        """Lets go of the file."""
        self._source.close()

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _bench(self) -> _Bench:
        bench: _Bench | None = getattr(self._own, "bench", None)
        if bench is None:
            bench = self._own.bench = _Bench(self._blocks, self._key, min(CHUNK_BLOCKS, self.length // BLOCK))
        return bench

    def _stream(self, first: int, end: int) -> Iterator[memoryview]:
        """Plaintext sectors ``first … end - 1``; each part is valid until the next is asked for."""
        capacity = min(CHUNK_BLOCKS, end - first)

        def work(bench: _Bench, start: int) -> memoryview:
            return self._open(bench, start, min(CHUNK_BLOCKS, end - start))

        starts = range(first, end, CHUNK_BLOCKS)
        yield from in_order(work, starts, bench=lambda: _Bench(self._blocks, self._key, capacity))

    def _open(self, bench: _Bench, sector: int, count: int) -> memoryview:
        """Fetch, check, decrypt: three steps on one private copy."""
        self._blocks.fetch(bench.rows, sector + self.descriptor.offset // BLOCK, count)
        bench.xts(bench.rows.blocks[:count], bench.plain[:count], first_sector=sector)
        return bench.plain[:count].data.cast("B")


def open_image(
    url: str | Path | ByteSource,
    *,
    image_id: str,
    key: Secret,
    storage_options: dict[str, Any] | None = None,
) -> ImageReader:
    """A reader of the image at ``url``, once it is shown to be ``image_id`` and ``key`` to be its key.

    Args:
        url: A path, an fsspec URL, or a :class:`ByteSource`. Untrusted in every respect.
        image_id: From the manifest, the registration or the owner; never from beside the file.
        key: The volume key.
        storage_options: For the fsspec file system.

    Raises:
        InputError: 2001, 2006, 2207 another key, 2208, 2209, 2210.
        IntegrityError: 5201 to 5206, 5210: the file is not this image.
        PeerError: 6201 when the storage fails.
    """
    require_key(key)
    source = _source(url, storage_options)
    try:
        reader = ImageReader(source, descriptor=read_descriptor(source, image_id=image_id), key=key)
    except BaseException:
        source.close()
        raise
    _log.info("opened: image %s, %d bytes", image_id, reader.descriptor.size)
    return reader


def verify_image(
    url: str | Path | ByteSource,
    *,
    image_id: str,
    storage_options: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> ImageDescriptor:
    """Checks the whole file against ``image_id``, without a key: header, every block, every hash, the exact size.

    It speaks of the file as it was while it was read; a reader checks again.

    Returns:
        The authenticated descriptor.

    Raises:
        InputError: 2001, 2006, 2208, 2209.
        IntegrityError: 5201 to 5211, for what is wrong.
        PeerError: 6201 when the storage fails.
    """
    source = _source(url, storage_options)
    try:
        descriptor = read_descriptor(source, image_id=image_id)
        check_fixed_areas(source, descriptor)
        blocks = VerifiedBlocks(source, descriptor)
        total = descriptor.data_blocks

        def work(rows: HashRows, first: int) -> int:
            count = min(CHUNK_BLOCKS, total - first)
            blocks.fetch(rows, first, count)
            return first + count

        starts = range(0, total, CHUNK_BLOCKS)
        for done in in_order(work, starts, bench=lambda: blocks.rows(min(CHUNK_BLOCKS, total))):
            if progress:
                progress(done * BLOCK, total * BLOCK)
    finally:
        source.close()
    _log.info("verified: image %s, %d bytes", image_id, descriptor.size)
    return descriptor


def _source(url: str | Path | ByteSource, storage_options: dict[str, Any] | None) -> ByteSource:
    return open_source(url, storage_options=storage_options) if isinstance(url, str | Path) else url
