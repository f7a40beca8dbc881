"""Code that a closed process compiled from measured source before, for the next one: for simulated evidence only.

A closed process reads no ``__pycache__``, because nothing measures that, so it compiles some hundred modules anew, for
every stage. Where there is no TEE, evidence is this user's word already, and what the same user's
processes compiled may be believed as much: it is kept in one file, authenticated under the key in the user's own home
that remembered hashes have too (:mod:`cloister.enclave._hashes`). An entry is used only for the very bytes of source
that it was made from. On a machine with a TEE nothing is remembered or read.

It imports the standard library alone, because it is read before anything else.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import hmac
import importlib.machinery
import importlib.util
import json
import marshal
import os
import pwd
import secrets
import stat
import sys
from pathlib import Path
from types import CodeType

__all__ = ["USER_KEY", "Memory", "read_user_key", "remember", "user_folder"]

_TEE = Path("/sys/kernel/config/tsm/report")  # where Linux reports to its TEE, if it runs in one
USER_KEY = "hashes.key"  # in the user's folder

_LABEL = b"cloister/code/v1\0"
_KEY_BYTES = _TAG_BYTES = 32
_LENGTH_BYTES = 8
_MAX_BYTES = 128 << 20


def user_folder() -> Path:
    """Cloister's folder in the home that the system's accounts name; no variable moves it."""
    return Path(pwd.getpwuid(os.geteuid()).pw_dir) / ".cache" / "cloister"


def read_user_key() -> bytes | None:
    """The user's key; None where there is none that only this user can read."""
    with contextlib.suppress(OSError, KeyError):
        path = user_folder() / USER_KEY
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            status, key = os.fstat(file.fileno()), file.read(_KEY_BYTES + 1)
        own = status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o077
        return key if own and len(key) == _KEY_BYTES else None
    return None


def remember(never: str) -> None:
    """Lets modules of this process come from what earlier ones compiled, and leaves what it compiled to later ones.

    Args:
        never: The ``pycache_prefix`` of a closed process. Under another one, which the process chose itself later,
            modules come from there.
    """
    cache, key = os.environ.get("XDG_CACHE_HOME"), read_user_key()
    if _TEE.exists() or not cache or key is None:
        return
    memory = Memory(Path(cache) / "cloister", key)

    class Loader(importlib.machinery.SourceFileLoader):
        """From source, or from what the same source once gave."""

        def get_code(self, fullname: str) -> CodeType | None:
            if sys.pycache_prefix != never:
                return super().get_code(fullname)
            path = self.get_filename(fullname)
            return memory.code(path, self.get_data(path), self)

    found = importlib.machinery
    loaders = (
        (found.ExtensionFileLoader, found.EXTENSION_SUFFIXES),
        (Loader, found.SOURCE_SUFFIXES),
        (found.SourcelessFileLoader, found.BYTECODE_SUFFIXES),
    )  # the interpreter's own order
    sys.path_hooks.insert(0, found.FileFinder.path_hook(*loaders))
    sys.path_importer_cache.clear()
    atexit.register(memory.save)


class Memory:
    """What one user's closed processes compiled for one Python environment.

    Args:
        folder: Where it is kept.
        key: Authenticates it.
    """

    def __init__(self, folder: Path, key: bytes) -> None:
        python = f"{sys.implementation.cache_tag} {importlib.util.MAGIC_NUMBER.hex()} {sys.prefix}"
        self._context = hashlib.sha256(python.encode()).digest()
        self._path = folder / f"code-v1.{self._context.hex()[:16]}"
        self._key = key
        self._known = self._load()
        self._fresh: dict[str, tuple[str, bytes]] = {}

    def code(self, path: str, source: bytes, loader: importlib.machinery.SourceFileLoader) -> CodeType:
        """The code of ``source``, which lies at ``path``."""
        mark = hashlib.sha256(source).hexdigest()
        known, blob = self._known.get(path, ("", b""))
        if known == mark:
            made: CodeType = marshal.loads(blob)  # noqa: S302 - ours: authenticated, and of this source
            return made
        made = loader.source_to_code(source, path)
        self._fresh[path] = mark, marshal.dumps(made)
        return made

    def save(self) -> None:
        """Adds what was compiled to what is kept, whoever else added to it meanwhile; failing, it is only slow."""
        if not self._fresh:
            return
        known = {path: entry for path, entry in self._load().items() if os.path.exists(path)} | self._fresh
        head = json.dumps({path: [mark, len(blob)] for path, (mark, blob) in known.items()}).encode()
        body = b"".join((len(head).to_bytes(_LENGTH_BYTES, "big"), head, *(blob for _, blob in known.values())))
        fresh = self._path.with_name(f".{self._path.name}.{secrets.token_hex(8)}")
        if len(body) > _MAX_BYTES:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
                file.write(self._tag(body) + body)
            os.replace(fresh, self._path)
        except OSError:
            with contextlib.suppress(OSError):
                fresh.unlink()

    def _load(self) -> dict[str, tuple[str, bytes]]:
        """Mark and code by path, if this user's processes wrote it; whatever else lies there is as good as nothing."""
        try:
            with open(os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                data = file.read(_TAG_BYTES + _MAX_BYTES + 1)
        except OSError:
            return {}
        body = data[_TAG_BYTES:]
        if len(body) > _MAX_BYTES or not hmac.compare_digest(data[:_TAG_BYTES], self._tag(body)):
            return {}
        start = _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "big")
        known: dict[str, tuple[str, bytes]] = {}
        for path, (mark, size) in json.loads(body[_LENGTH_BYTES:start]).items():
            known[path] = mark, body[start : start + size]
            start += size
        return known

    def _tag(self, body: bytes) -> bytes:
        return hmac.digest(self._key, _LABEL + self._context + body, "sha256")
