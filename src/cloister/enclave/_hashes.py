"""SHA-256 of many files, remembered by what the file system says about each.

The memory is a convenience of one user on one machine: an entry is used only while path, device, inode, size,
modification and change time are what they were. Whoever can set a file's change time, or write the user's cache
folder, can lie to it; such a person can change the launcher too. On hardware the platform measures, not this.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs

from cloister.errors import InputError
from cloister.wire import write_private

__all__ = ["FileHashes"]

_RACY_NS = 2_000_000_000  # a file changed this recently may change again within one tick of its clock: not remembered
_MAX_CACHE_BYTES = 256 << 20
_CHUNK = 1 << 20


class FileHashes:
    """Hashes of file contents; ``folder`` is where they are remembered, None for nowhere."""

    def __init__(self, folder: Path | None = None, *, remember: bool = True) -> None:
        chosen = folder or Path(platformdirs.user_cache_dir("cloister"))
        self._path = chosen / "hashes-v1.json" if remember else None
        self._known: dict[str, list[object]] = self._load()
        self.read = 0

    def of(self, files: Iterable[tuple[str, os.stat_result]]) -> dict[str, str]:
        """SHA-256 by path. Reads only what is not remembered, several files at a time.

        Raises:
            InputError: 2001 when a file cannot be read.
        """
        result: dict[str, str] = {}
        unknown: list[tuple[str, os.stat_result]] = []
        for path, status in files:
            known = self._known.get(path)
            if known is not None and known[:5] == _key(status):
                result[path] = str(known[5])
            else:
                unknown.append((path, status))
        if unknown:
            with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
                hashes = list(pool.map(_sha256, (path for path, _ in unknown)))
            now = time.time_ns()
            for (path, status), value in zip(unknown, hashes, strict=True):
                result[path] = value
                if now - max(status.st_mtime_ns, status.st_ctime_ns) > _RACY_NS:
                    self._known[path] = [*_key(status), value]
                else:
                    self._known.pop(path, None)
            self.read += len(unknown)
            self._save()
        return result

    def _load(self) -> dict[str, list[object]]:
        """What is remembered, if the file is this user's alone; a cache that is damaged is only slow."""
        if self._path is None:
            return {}
        try:
            with open(self._path, "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
                    return {}
                value = json.loads(file.read(_MAX_CACHE_BYTES))
        except (OSError, ValueError):
            return {}
        well_formed = isinstance(value, dict) and all(isinstance(e, list) and len(e) == 6 for e in value.values())
        return value if well_formed else {}

    def _save(self) -> None:
        if self._path is None:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self._path, json.dumps(self._known, separators=(",", ":")).encode())


def _key(status: os.stat_result) -> list[object]:
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _sha256(path: str) -> str:
    state = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                state.update(chunk)
    except OSError as error:
        raise InputError(2001, f"cannot read what is to be measured: {error.strerror}: '{path}'") from error
    return state.hexdigest()
