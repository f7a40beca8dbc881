"""A worker's own key: made once, kept in a file that only its owner reads, named in manifests by its public half.

The file is not encrypted. A worker runs unattended on a machine that nobody trusts; its key lets it be recognised, and
opens no session of the past.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from pydantic import Field

from cloister.errors import InputError
from cloister.wire import (
    B64,
    Message,
    Name,
    OpeningKey,
    Secret,
    canonical,
    parse_json,
    parse_message,
    require_format,
    write_atomic,
    write_private,
)

__all__ = ["WorkerIdentity"]

_FORMAT = "cloister/worker-key/v1"
_PUBLIC_FORMAT = "cloister/worker/v1"
_MAX_BYTES = 4096
_SEEDS = (32, 96)


class _KeyFile(Message):
    format: Literal["cloister/worker-key/v1"] = _FORMAT
    name: Name
    seed: B64 = Field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class WorkerIdentity:
    """A worker's name and the key that sessions are sealed to."""

    name: str
    opening_key: OpeningKey

    @classmethod
    def generate(cls, name: str, *, post_quantum: bool = False) -> WorkerIdentity:
        """A fresh one, in memory only.

        Raises:
            InputError: 2005 when ``name`` is not a name.
        """
        parse_message(_KeyFile, {"name": name, "seed": ""}, what=f"the name {name[:80]!r}", secret=True)
        return cls(name, OpeningKey.generate(post_quantum=post_quantum))

    @classmethod
    def load(cls, path: Path | str) -> WorkerIdentity:
        """The one in a key file.

        Raises:
            InputError: 2001 unreadable; 2014 readable by others; 2002, 2003, 2005 not a key file; 2004 of an unknown
                format.
        """
        what = f"key file '{path}'"
        value = parse_json(_read_owned(path), what=what, max_bytes=_MAX_BYTES)
        require_format(value, _FORMAT, what=what)
        file = parse_message(_KeyFile, value, what=what, secret=True)
        if len(file.seed) not in _SEEDS:
            raise InputError(2005, f"{what} does not hold a worker's key")
        return cls(file.name, OpeningKey(Secret(file.seed)))

    def save(self, folder: Path | str) -> Path:
        """Writes ``NAME.key`` (mode 0600) and ``NAME.pub`` into ``folder``; returns the key file's path.

        Raises:
            InputError: 2007 when one is there: a key is never replaced; 2001 when the folder cannot be written.
        """
        target = Path(folder)
        key_path, public_path = target / f"{self.name}.key", target / f"{self.name}.pub"
        for path in (key_path, public_path):
            if os.path.lexists(path):
                what = f"a worker's key is already there: '{path}'"
                raise InputError(2007, what, hint="choose another name or folder")
        file = _KeyFile(name=self.name, seed=self.opening_key.seed().reveal())
        public = {"format": _PUBLIC_FORMAT, "name": self.name, "key": str(self.opening_key.public)}
        try:
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(key_path, file.canonical() + b"\n")
            write_atomic(public_path, canonical(public) + b"\n")
        except OSError as error:
            raise InputError(2001, f"cannot write the worker's key: {error.strerror}: '{target}'") from error
        return key_path

    def __repr__(self) -> str:
        return f"<WorkerIdentity {self.name}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a worker's identity cannot be pickled")


def _read_owned(path: Path | str) -> bytes:
    """The file's bytes; its mode is that of the very file that is read."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
                what = f"the key file is readable by others: '{path}'"
                raise InputError(2014, what, expected="mode 0600", got=f"mode {mode & 0o777:04o}")
            return file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(2001, f"cannot read the key file: {error.strerror}: '{path}'") from error
