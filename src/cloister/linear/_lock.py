"""One process at a time: a lock that ends with its process, however that ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloister.errors import InputError

__all__ = ["locked"]


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Holds the lock of a file that it makes, in a folder that it makes; on Windows it holds nothing.

    Args:
        path: Of the lock; what is in the file does not count.
        wait: For the process that has it; else it is refused.

    Raises:
        InputError: 2555 when another process has it and is not waited for.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        raise InputError(2555, "another process runs this agreement here") from None
    try:
        yield
    finally:
        os.close(handle)
