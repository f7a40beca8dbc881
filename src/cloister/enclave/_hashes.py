"""SHA-256 of many files, remembered by what the file system says about each.

The memory is a convenience of one user on one machine: an entry is used only while path, device, inode, size,
modification and change time are what they were. The whole is authenticated under a key in the user's own home, which
no variable names, so another cache folder brings no hashes with it. Whoever can set a file's change time or read that
home can still lie: the memory is for simulated evidence, which is that user's word already. A launcher on hardware
remembers nothing. Each environment has a memory of its own, of what was asked for last, so it is as large as what is
installed and no larger.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import stat
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs

from cloister.enclave._remembered import USER_KEY, read_user_key, user_folder
from cloister.errors import InputError
from cloister.wire import write_private

__all__ = ["FileHashes", "memory"]

_RACY_NS = 2_000_000_000  # a file changed this recently may change again within one tick of its clock: not remembered
_MAX_CACHE_BYTES = 256 << 20
_CHUNK = 1 << 20
_KEY_BYTES = 32
_LABEL = b"cloister/hashes/v2\0"
_ENVIRONMENTS = 8  # how many have a memory; the one that was not used for longest loses it


class FileHashes:
    """Hashes of file contents.

    Args:
        folder: Where they are remembered; the user's cache by default.
        remember: Whether they are.
        key: Authenticates what is remembered; the user's own by default.
    """

    def __init__(self, folder: Path | None = None, *, remember: bool = True, key: bytes | None = None) -> None:
        chosen = folder or Path(platformdirs.user_cache_dir("cloister"))
        self._key = (key or _user_key()) if remember else None
        self._path = memory(chosen) if self._key else None
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
            self._known = {path: entry for path, entry in self._known.items() if path in result}
            self._save()
        return result

    def _load(self) -> dict[str, list[object]]:
        """What is remembered, if the file is this user's alone; a cache that is damaged is only slow."""
        if self._path is None or self._key is None:
            return {}
        try:
            with open(self._path, "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
                    return {}
                data = file.read(_MAX_CACHE_BYTES)
            if not hmac.compare_digest(data[:_KEY_BYTES], _tag(self._key, data[_KEY_BYTES:])):
                return {}
            value = json.loads(data[_KEY_BYTES:])
        except (OSError, ValueError):
            return {}
        well_formed = isinstance(value, dict) and all(isinstance(e, list) and len(e) == 6 for e in value.values())
        return value if well_formed else {}

    def _save(self) -> None:
        if self._path is None or self._key is None:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            data = json.dumps(self._known, separators=(",", ":")).encode()
            write_private(self._path, _tag(self._key, data) + data)
            kept = sorted(self._path.parent.glob("hashes-v2*"), key=lambda path: path.stat().st_mtime)
            for old in kept[:-_ENVIRONMENTS]:
                old.unlink(missing_ok=True)


def memory(folder: Path, prefix: str = sys.prefix) -> Path:
    """Where the hashes of one Python environment are remembered."""
    return folder / f"hashes-v2.{hashlib.sha256(prefix.encode()).hexdigest()[:16]}"


def _tag(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, _LABEL + data, "sha256")


def _user_key() -> bytes | None:
    """The user's key, made at first use; None where there is no home to keep it in."""
    with contextlib.suppress(OSError, KeyError):
        home = user_folder()
        path = home / USER_KEY
        if not path.exists():
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = home / f".{USER_KEY}.{secrets.token_hex(8)}"
            write_private(fresh, secrets.token_bytes(_KEY_BYTES))
            with contextlib.suppress(FileExistsError):
                os.link(fresh, path)  # complete or not there, and never another's replaced
            fresh.unlink()
    return read_user_key()


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
