"""Where ciphertext is written to: all of it or nothing."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from cloister.errors import CloisterError, InputError, PeerError
from cloister.seal._source import remote_filesystem, split_url

__all__ = ["ByteSink", "open_sink", "remove_file"]


_SYNC_BYTES = 16 << 20


class ByteSink(Protocol):
    """Takes bytes in order; they exist under the target's name only after ``commit``."""

    def write(self, data: bytes | memoryview) -> None:
        """Appends."""
        ...

    def commit(self, size: int) -> None:
        """Makes the ``size`` bytes written visible under the target's name, durably."""
        ...

    def abort(self) -> None:
        """Leaves nothing behind."""
        ...


class LocalSink:
    """A temporary file in the target's folder, synced and then linked under its name."""

    def __init__(self, target: Path, *, overwrite: bool) -> None:
        if not overwrite and target.exists():
            raise InputError(2007, f"the image already exists: '{target}'")
        self._target, self._overwrite = target, overwrite
        try:
            handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        except OSError as error:
            raise InputError(2001, f"cannot write to '{target.parent}': {error.strerror}") from error
        self._temporary = Path(name)
        self._file = os.fdopen(handle, "wb", buffering=0)
        self._unsynced = 0
        self._syncing: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="cloister-seal-sync")

    def write(self, data: bytes | memoryview) -> None:
        """Appends."""
        view = memoryview(data)
        self._unsynced += len(view)
        try:
            while view:
                view = view[self._file.write(view) :]
            self._sync_behind()
        except OSError as error:
            raise PeerError(6201, f"writing the image failed: {error.strerror}: '{self._target}'") from error

    def _sync_behind(self) -> None:
        """Brings what is written to the disk while the next chunks are computed: the sync at the end finds little."""
        if self._unsynced >= _SYNC_BYTES and (self._syncing is None or self._syncing.done()):
            if self._syncing:
                self._syncing.result()
            self._unsynced = 0
            self._syncing = self._pool.submit(_sync, self._file.fileno())

    def commit(self, size: int) -> None:
        """Syncs and renames; without ``overwrite`` a target that has appeared meanwhile is not replaced."""
        try:
            if self._syncing:
                self._syncing.result()
            self._pool.shutdown()
            if os.name == "posix":
                os.fchmod(self._file.fileno(), 0o644)  # ciphertext: its readers are the storage's business
            os.fsync(self._file.fileno())
            self._file.close()
            if self._overwrite or not hasattr(os, "link"):
                os.replace(self._temporary, self._target)
            else:
                os.link(self._temporary, self._target)
                self._temporary.unlink()
            _sync_folder(self._target.parent)
        except FileExistsError as error:
            raise InputError(2007, f"the image already exists: '{self._target}'") from error
        except OSError as error:
            raise PeerError(6201, f"writing the image failed: {error.strerror}: '{self._target}'") from error

    def abort(self) -> None:
        """Removes the temporary file."""
        self._pool.shutdown()  # before the handle that it syncs is closed, and its number given to another file
        self._file.close()
        self._temporary.unlink(missing_ok=True)


_sync = os.fdatasync if hasattr(os, "fdatasync") else os.fsync  # macOS and Windows have the latter alone


def _sync_folder(folder: Path) -> None:
    """A rename is durable only when its folder is."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class RemoteSink:
    """An upload behind an fsspec URL, within a transaction of the storage's own file system object."""

    def __init__(self, url: str, *, overwrite: bool, storage_options: dict[str, Any] | None) -> None:
        self._url = url
        self._filesystem, self._path = remote_filesystem(url, storage_options=storage_options)
        if not overwrite and self._call(lambda: self._filesystem.exists(self._path)):
            raise InputError(2007, f"the image already exists: '{url}'")
        self._completing = False  # complete() also cleans up after its own failure, and is not called twice
        self._transaction = self._filesystem.transaction
        self._call(self._transaction.start)
        self._file: Any = self._call(lambda: self._filesystem.open(self._path, "wb"))

    def write(self, data: bytes | memoryview) -> None:
        """Appends."""
        self._call(lambda: self._file.write(data))

    def commit(self, size: int) -> None:
        """Completes the upload and asks the storage how large it is."""
        self._call(self._file.close)
        self._completing = True
        self._call(lambda: self._transaction.complete(commit=True))
        self._call(self._filesystem.invalidate_cache)
        found = self._call(lambda: self._filesystem.info(self._path)).get("size")
        if found != size:
            raise PeerError(6201, f"storage kept another size of '{self._url}'", expected=size, got=found)

    def abort(self) -> None:
        """Discards the upload. What a storage without transactions may have kept has no valid descriptor."""
        from fsspec.spec import AbstractBufferedFile  # pyright: ignore[reportMissingTypeStubs]

        if self._completing:
            return
        if isinstance(self._file, AbstractBufferedFile):
            self._file.closed = True  # closing would complete the upload
        self._call(lambda: self._transaction.complete(commit=False))

    def _call(self, operation: Any) -> Any:
        try:
            return operation()
        except CloisterError:
            raise
        except Exception as error:  # each storage library has its own tree of errors
            raise PeerError(6201, f"storage failed on '{self._url}': {type(error).__name__}: {error}") from error


def remove_file(url: str | Path, *, storage_options: dict[str, Any] | None = None) -> None:
    """Removes the file behind ``url``; one that is not there is no error.

    Raises:
        InputError: 2006, 2208, 2213 when there is no such storage.
        PeerError: 6201 when the storage does not remove it.
    """
    path, text = split_url(url)
    try:
        if path is not None:
            path.unlink(missing_ok=True)
            return
        filesystem, place = remote_filesystem(text, storage_options=storage_options)
        filesystem.rm_file(place)
    except CloisterError:
        raise
    except FileNotFoundError:
        return
    except Exception as error:  # each storage library has its own tree of errors
        raise PeerError(6201, f"storage failed on '{url}': {type(error).__name__}: {error}") from error


def open_sink(url: str | Path, *, overwrite: bool, storage_options: dict[str, Any] | None = None) -> ByteSink:
    """The sink behind ``url``; a path without a scheme is a local file.

    Raises:
        InputError: 2007 when the target exists and may not be replaced; 2001, 2006, 2208 when it cannot be written.
    """
    path, text = split_url(url)
    if path is not None:
        return LocalSink(path, overwrite=overwrite)
    return RemoteSink(text, overwrite=overwrite, storage_options=storage_options)
