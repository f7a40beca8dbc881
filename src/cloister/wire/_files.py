"""Files: bounded reads, atomic writes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from cloister.errors import InputError

__all__ = ["read_bounded", "write_atomic", "write_private"]


def read_bounded(path: Path | str, *, max_bytes: int, what: str) -> bytes:
    """The file's bytes, never more than ``max_bytes`` of them.

    Raises:
        InputError: 2001 when it cannot be read; 2003 when it is larger.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise InputError(2001, f"cannot read {what}: {error.strerror}: '{path}'") from error
    if len(data) > max_bytes:
        raise InputError(2003, f"{what} is too large: '{path}'", expected=f"at most {max_bytes} bytes")
    return data


def write_atomic(path: Path | str, data: bytes, *, mode: int = 0o644) -> None:
    """Writes all of ``data`` or nothing: a temporary file in the same folder, synced, then renamed."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)  # mkstemp made it private; never wider than this on the way
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_private(path: Path | str, data: bytes) -> None:
    """As :func:`write_atomic`, readable by the owner alone (mode 0600)."""
    write_atomic(path, data, mode=0o600)
