"""Sealing: squashfs → padding → AES-XTS → verity, in one streaming pass."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cloister.errors import InputError, RefusedError
from cloister.seal._descriptor import ImageDescriptor, encode_trailer
from cloister.seal._luks import HEADER_BYTES, KEY_BYTES, luks_header, require_key
from cloister.seal._pipeline import CHUNK_BLOCKS, CHUNK_BYTES, in_order
from cloister.seal._sink import ByteSink, open_sink
from cloister.seal._source import split_url
from cloister.seal._squash import squash_folder
from cloister.seal._verity import BLOCK, SALT, HashRows, TreeBuilder, superblock
from cloister.seal._xts import Xts
from cloister.wire import Secret, digest

__all__ = ["Progress", "SealedImage", "padded_length", "seal_file", "seal_folder"]

_log = logging.getLogger("cloister.seal")  # ids and padded sizes: what the storage sees anyway

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

_SMALLEST = 64 * 1024  # bytes: the first bucket


@dataclass(frozen=True, slots=True)
class SealedImage:
    """An image that has been written, and the key that opens it.

    Attributes:
        descriptor: What fixes the image; ``descriptor.id`` is public.
        key: The volume key; it stays with the owner.
        url: Where the ciphertext lies.
        content_bytes: Size of the squashfs before padding; known to whoever holds the key.
    """

    descriptor: ImageDescriptor
    key: Secret
    url: str
    content_bytes: int

    @property
    def id(self) -> str:
        """The image's id."""
        return self.descriptor.id


def padded_length(size_bytes: int) -> int:
    """The bucket that ``size_bytes`` falls into: what an observer of the ciphertext learns instead of the size.

    Padmé: of a number with E + 1 bits only the upper ones, about as many as E has bits, may be set. Rounded up to
    whole blocks, 64 KiB at least; beyond 64 KiB the overhead is at most 6.25 %, falling with the size.

    Source: Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and Communication with PURBs", PoPETs
    2019, section 4.

    >>> padded_length(1), padded_length(1_000_000), padded_length(1_000_000_000)
    (65536, 1015808, 1006632960)
    """
    size = max(size_bytes, _SMALLEST)
    exponent = size.bit_length() - 1
    free_bits = exponent - exponent.bit_length()
    unit = max(1 << free_bits, BLOCK)
    return -(-size // unit) * unit


def seal_folder(
    folder: Path | str,
    url: Path | str,
    *,
    key: Secret | None = None,
    scratch: Path | str | None = None,
    overwrite: bool = False,
    storage_options: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> SealedImage:
    """Makes one sealed image of ``folder`` and writes it to ``url``.

    Args:
        folder: What to seal. Nobody may write to it meanwhile; a change is noticed and refused.
        url: Where to: a path, ``file:``, ``memory:``, or with the extra ``s3:``, ``abfs:``, ``gs:``.
        key: 64 bytes for this image alone. Fresh random ones by default.
        scratch: Where the squashfs, which is *plaintext*, lies meanwhile: by default the system's folder for
            temporary files; within an enclave its private memory file system. Removed in every case but a crash.
        overwrite: Replace an image that is there.
        storage_options: For the fsspec file system.
        progress: Called with bytes done and bytes in all.

    Raises:
        InputError: 2001, 2007, 2008, 2009, 2201 to 2206, 2208, 2210, 2211.
        RefusedError: 3201 when ``key`` has sealed before.
        PeerError: 6201 when the storage fails.
    """
    path, _ = split_url(url)
    if path is not None and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise InputError(2211, "the image would lie inside the folder that it is made of", got=str(url))
    with tempfile.TemporaryDirectory(prefix="cloister-seal-", dir=scratch) as private:  # mode 0700
        squashfs = Path(private) / "content.squashfs"
        squash_folder(folder, squashfs)
        return seal_file(
            squashfs, url, key=key, overwrite=overwrite, storage_options=storage_options, progress=progress
        )


def seal_file(
    file: Path | str,
    url: Path | str,
    *,
    key: Secret | None = None,
    overwrite: bool = False,
    storage_options: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> SealedImage:
    """As :func:`seal_folder`, for a file system image that exists already. Works on every platform."""
    key = require_key(Secret.random(KEY_BYTES) if key is None else key)
    with _open_content(Path(file)) as content:
        content_bytes = os.fstat(content.fileno()).st_size
        sink = open_sink(url, overwrite=overwrite, storage_options=storage_options)
        try:
            _spend(key)
            descriptor = _seal(content, content_bytes, sink, key, progress)
            sink.commit(descriptor.size)
        except BaseException:
            sink.abort()
            raise
    _log.info("sealed: image %s, %d bytes", descriptor.id, descriptor.size)
    return SealedImage(descriptor, key, str(url), content_bytes)


def _open_content(file: Path) -> FileIO:
    try:
        content = FileIO(file, "rb")
    except OSError as error:
        raise InputError(2001, f"cannot read the file: {error.strerror}: '{file}'") from error
    if not stat.S_ISREG(os.fstat(content.fileno()).st_mode):
        content.close()
        raise InputError(2001, f"not an ordinary file: '{file}'")
    return content


_spent: set[str] = set()
_spent_lock = threading.Lock()


def _spend(key: Secret) -> None:
    """XTS is deterministic: a second image under the same key would show which blocks are equal to the first's.

    A sealing that fails has spent its key too, since the storage may have kept what it received. This memory is the
    process's; across processes the rule is kept by whoever derives keys.
    """
    mark = digest(b"cloister/spent-image-key\0" + key.reveal())
    with _spent_lock:
        if mark in _spent:
            raise RefusedError(3201, "this key has sealed an image before")
        _spent.add(mark)


def _seal(
    content: FileIO, content_bytes: int, sink: ByteSink, key: Secret, progress: Progress | None
) -> ImageDescriptor:
    length = padded_length(content_bytes)
    salt = os.urandom(SALT)
    header = luks_header(key, length=length)
    data_blocks = (HEADER_BYTES + length) // BLOCK
    with TreeBuilder(salt, data_blocks=data_blocks) as tree:
        rows = HashRows(salt, capacity=HEADER_BYTES // BLOCK)
        tree.add(rows.digests(rows.put(header)))
        sink.write(header)
        for chunk in _encrypt(content, length, key, salt):
            tree.add(chunk.digests)
            sink.write(chunk.ciphertext)
            if progress:
                progress(chunk.end, length)
        root = tree.finish()
        descriptor = ImageDescriptor(
            root=root.hex(),
            salt=salt.hex(),
            data_blocks=data_blocks,
            offset=HEADER_BYTES,
            length=length,
            hash_offset=HEADER_BYTES + length,
            header=digest(header),
        )
        sink.write(superblock(data_blocks, salt))
        for blocks in tree.area():
            sink.write(blocks)
    sink.write(encode_trailer(descriptor))
    return descriptor


class _Chunk(NamedTuple):
    ciphertext: memoryview  # valid until the next chunk is asked for
    digests: bytes
    end: int


class _Bench:
    """One thread's buffers."""

    def __init__(self, key: Secret, salt: bytes, capacity: int) -> None:
        self.xts = Xts(key, capacity=capacity)
        self.rows = HashRows(salt, capacity=capacity)
        self.plain = np.zeros((capacity, BLOCK // 8), np.uint64)
        self.cipher = np.zeros((capacity, BLOCK // 8), np.uint64)


def _encrypt(content: FileIO, length: int, key: Secret, salt: bytes) -> Iterator[_Chunk]:
    """The ciphertext in order, with its blocks' digests; what follows the end of the file is encrypted zeros."""
    capacity = min(CHUNK_BLOCKS, length // BLOCK)
    lock = threading.Lock()

    def work(bench: _Bench, offset: int) -> _Chunk:
        count = min(CHUNK_BYTES, length - offset) // BLOCK
        plain, rows = bench.plain[:count], bench.rows.blocks[:count]
        _read_padded(content.fileno(), plain.data.cast("B"), offset, lock)
        bench.xts(plain, rows, first_sector=offset // BLOCK)
        digests = bench.rows.digests(count)
        np.copyto(bench.cipher[:count], rows)
        return _Chunk(bench.cipher[:count].data.cast("B"), digests, offset + count * BLOCK)

    yield from in_order(work, range(0, length, CHUNK_BYTES), bench=lambda: _Bench(key, salt, capacity))


def _read_padded(handle: int, buffer: memoryview, offset: int, lock: threading.Lock) -> None:
    """Fills ``buffer`` from ``offset``; zeros after the end of the file."""
    done = 0
    while done < len(buffer):
        if hasattr(os, "preadv"):
            got = os.preadv(handle, [buffer[done:]], offset + done)
        else:
            with lock:
                os.lseek(handle, offset + done, os.SEEK_SET)
                data = os.read(handle, len(buffer) - done)
            got = len(data)
            buffer[done : done + got] = data
        if got == 0:
            break
        done += got
    buffer[done:] = bytes(len(buffer) - done)
