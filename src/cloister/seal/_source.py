"""Where ciphertext is read from: a local file, an fsspec URL, or anything with the same two methods."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any, Protocol

from cloister.errors import CloisterError, InputError, PeerError

__all__ = [
    "PLAIN_SCHEMES",
    "ByteSource",
    "LocalSource",
    "RemoteSource",
    "allow_scheme",
    "open_source",
    "remote_filesystem",
    "split_url",
]

_EXTRAS = {"s3": "s3", "s3a": "s3", "abfs": "azure", "abfss": "azure", "az": "azure", "gs": "gcs", "gcs": "gcs"}


class ByteSource(Protocol):
    """Untrusted storage: whatever it returns is checked before it is used, and it may answer differently each time."""

    def size(self) -> int:
        """Bytes in the file."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """At most ``size`` bytes from ``offset``, in memory that the source does not keep; fewer only at the end."""
        ...

    def close(self) -> None:
        """Lets go of the file."""
        ...


class LocalSource:
    """A file of this machine. Read by copy, never mapped: a mapping could change between check and use."""

    def __init__(self, path: Path) -> None:
        try:
            self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            raise InputError(2001, f"cannot read the image: {error.strerror}: '{path}'") from error
        if not stat.S_ISREG(os.fstat(self._handle).st_mode):
            self.close()
            raise InputError(2001, f"the image is not an ordinary file: '{path}'")

    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self._handle).st_size

    def read(self, offset: int, size: int) -> bytes:
        """See :meth:`ByteSource.read`."""
        try:
            data = _pread(self._handle, size, offset)
            while len(data) < size and (more := _pread(self._handle, size - len(data), offset + len(data))):
                data += more
        except OSError as error:
            raise PeerError(6201, f"reading the image failed: {error.strerror}") from error
        return data

    def close(self) -> None:
        """Closes the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _pread(handle: int, size: int, offset: int) -> bytes:
    if sys.platform == "win32":  # no pread: the handle is this object's own, but threads share its position
        with _SEEKING:
            os.lseek(handle, offset, os.SEEK_SET)
            return os.read(handle, size)
    return os.pread(handle, size, offset)


if sys.platform == "win32":
    import threading

    _SEEKING = threading.Lock()


class RemoteSource:
    """A file behind an fsspec URL, read by ranges."""

    def __init__(self, url: str, *, storage_options: dict[str, Any] | None = None) -> None:
        self._filesystem, self._path = remote_filesystem(url, storage_options=storage_options)
        self._url = url
        self._call("invalidate_cache")

    def size(self) -> int:
        """Bytes in the file, as the storage says."""
        size = self._call("info", self._path).get("size")
        if not isinstance(size, int):
            raise PeerError(6201, f"storage does not say how large '{self._url}' is")
        return size

    def read(self, offset: int, size: int) -> bytes:
        """See :meth:`ByteSource.read`."""
        data = self._call("cat_file", self._path, start=offset, end=offset + size)
        if not isinstance(data, bytes) or len(data) > size:
            raise PeerError(6201, f"storage answers a range of '{self._url}' with something else")
        return data

    def close(self) -> None:
        """Nothing is held open."""

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        try:
            return getattr(self._filesystem, method)(*arguments, **options)
        except FileNotFoundError as error:
            raise InputError(2001, f"no such image: '{self._url}'") from error
        except CloisterError:
            raise
        except Exception as error:  # each storage library has its own tree of errors
            raise PeerError(6201, f"storage failed on '{self._url}': {type(error).__name__}: {error}") from error


def split_url(url: str | Path) -> tuple[Path | None, str]:
    """``(path, url)``: the path for a local file (``file:`` or no scheme), else None."""
    text = str(url)
    if isinstance(url, Path) or ":" not in text or (os.name == "nt" and text[1:2] == ":"):
        return Path(text), text
    if text.startswith("file:"):
        return Path(text.removeprefix("file:").removeprefix("//")), text
    return None, text


PLAIN_SCHEMES = frozenset({"file", "memory", "s3", "s3a", "abfs", "abfss", "az", "gs", "gcs"})
"""Storage that only stores: bytes in, the same bytes out."""

_allowed = set(PLAIN_SCHEMES)


def allow_scheme(scheme: str) -> None:
    """Lets this process open URLs of another of fsspec's protocols, such as ``sftp``.

    For a data owner's own commands, on URLs that the owner typed. A launcher never calls it.

    Raises:
        InputError: 2208 when fsspec does not know the scheme.
    """
    from fsspec.registry import known_implementations, registry  # pyright: ignore[reportMissingTypeStubs]

    if scheme not in known_implementations and scheme not in registry:
        raise InputError(2208, f"no storage for URLs of '{scheme}:'", got=scheme)
    _allowed.add(scheme)


def remote_filesystem(url: str, *, storage_options: dict[str, Any] | None = None) -> tuple[Any, str]:
    """The fsspec file system of ``url``, not shared with anyone, and the path in it.

    Security: a launcher opens places that its host names. Most of fsspec's protocols wrap another, or run code over
    what they read (``reference:`` renders templates), so only plain storage is let through; :func:`allow_scheme` adds
    others, in a data owner's own process.

    Raises:
        InputError: 2006 when its extra is not installed; 2208 when the scheme is not known; 2213 when it is not plain
            storage.
    """
    import fsspec  # pyright: ignore[reportMissingTypeStubs]

    scheme = url.partition(":")[0]
    if "::" in url or scheme not in _allowed:
        raise InputError(2213, f"'{scheme}:' is not plain storage", expected=", ".join(sorted(_allowed)), got=url[:80])
    try:
        filesystem, path = fsspec.url_to_fs(url, **{**(storage_options or {}), "skip_instance_cache": True})  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        hint = f"pip install 'cloister[{extra}]'" if extra else "install the fsspec implementation of this scheme"
        raise InputError(2006, f"URLs of '{scheme}:' need an extra that is not installed", hint=hint) from error
    except ValueError as error:
        raise InputError(2208, f"no storage for URLs of '{scheme}:'", got=url[:80]) from error
    return filesystem, str(path)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def open_source(url: str | Path, *, storage_options: dict[str, Any] | None = None) -> ByteSource:
    """The source behind ``url``; a path without a scheme is a local file."""
    path, text = split_url(url)
    return LocalSource(path) if path is not None else RemoteSource(text, storage_options=storage_options)
