"""A party's own identity: its two private keys, made, stored and loaded."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cloister.errors import InputError
from cloister.party._keyfile import KEY_FORMAT, KeyFile, lock, unlock
from cloister.party._public import PARTY_LABEL, PublicIdentity
from cloister.wire import (
    OpeningKey,
    Secret,
    SigningKey,
    parse_json,
    parse_message,
    require_format,
    write_atomic,
    write_private,
)

__all__ = ["Identity", "create"]

_MAX_BYTES = 32 * 1024
_SIGN_SEED = 32
_HPKE_SEEDS = (32, 96)


@dataclass(frozen=True, slots=True, eq=False)
class Identity:
    """A name with its private keys: one to sign, one to open what is sealed to it."""

    name: str
    signing_key: SigningKey
    opening_key: OpeningKey

    @classmethod
    def generate(cls, name: str, *, post_quantum: bool = False) -> Identity:
        """A fresh identity, in memory only.

        Raises:
            InputError: 2005 when ``name`` is not a name.
        """
        identity = cls(name, SigningKey.generate(), OpeningKey.generate(post_quantum=post_quantum))
        PublicIdentity.parse(identity.public.as_json(), what=f"the name {name!r}")
        return identity

    @classmethod
    def load(cls, path: Path | str, passphrase: str | Callable[[], str]) -> Identity:
        """The identity in the key file at ``path``.

        Args:
            path: A ``NAME.key`` file.
            passphrase: The passphrase, or a function that asks for it once the file is known to be a usable one.

        Raises:
            InputError: 2001 unreadable; 2014 readable by others; 2003, 2002, 2005 not a key file; 2004 of an unknown
                format; 2016 hostile cost; 2011 wrong passphrase or damaged.
        """
        file = _parse(_read_owned(Path(path)), what=f"key file '{path}'")
        seeds = unlock(file, passphrase if isinstance(passphrase, str) else passphrase()).reveal()
        if len(seeds) - _SIGN_SEED not in _HPKE_SEEDS:
            raise InputError(2011, f"the key file '{path}' does not hold an identity")
        signing_key = SigningKey(Secret(seeds[:_SIGN_SEED]))
        identity = cls(file.public.name, signing_key, OpeningKey(Secret(seeds[_SIGN_SEED:])))
        if not file.public.same_keys(sign=str(identity.signing_key.public), hpke=identity.opening_key.public.text):
            raise InputError(2011, f"the key file '{path}' names other public keys than it holds")
        return identity

    @property
    def public(self) -> PublicIdentity:
        """The public half, signed by itself."""
        sign, hpke = str(self.signing_key.public), self.opening_key.public.text
        unsigned = PublicIdentity.model_construct(name=self.name, sign=sign, hpke=hpke)
        signature = self.signing_key.sign(PARTY_LABEL, unsigned.signed_bytes())
        return unsigned.model_copy(update={"signature": signature})

    def save(self, folder: Path | str, passphrase: str) -> Path:
        """Writes ``NAME.key`` (encrypted, mode 0600) and ``NAME.pub`` into ``folder``; returns the key file's path.

        Raises:
            InputError: 2017 empty passphrase; 2007 an identity of this name is there; 2001 the folder is not writable.
        """
        target = Path(folder)
        key_path, public_path = target / f"{self.name}.key", target / f"{self.name}.pub"
        for path in (key_path, public_path):
            if path.exists():
                raise InputError(2007, f"an identity is already there: '{path}'", hint="choose another name or folder")
        seeds = Secret(self.signing_key.seed().reveal() + self.opening_key.seed().reveal())
        file = lock(self.public, seeds, passphrase)
        try:
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(key_path, file.canonical() + b"\n")
            write_atomic(public_path, self.public.canonical() + b"\n")
        except OSError as error:
            raise InputError(2001, f"cannot write the identity: {error.strerror}: '{target}'") from error
        return key_path

    def __repr__(self) -> str:
        return f"<Identity {self.name}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an identity cannot be pickled")


def create(name: str, folder: Path | str, passphrase: str, *, post_quantum: bool = False) -> Identity:
    """Makes an identity and saves it in ``folder``: :meth:`Identity.generate`, then :meth:`Identity.save`."""
    identity = Identity.generate(name, post_quantum=post_quantum)
    identity.save(folder, passphrase)
    return identity


def _parse(data: bytes, *, what: str) -> KeyFile:
    value = parse_json(data, what=what, max_bytes=_MAX_BYTES)
    require_format(value, KEY_FORMAT, what=what)
    return parse_message(KeyFile, value, what=what, secret=True)


def _read_owned(path: Path) -> bytes:
    """The file's bytes; its mode is that of the very file that is read, whatever the path names a moment later."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise InputError(
                    2014,
                    f"the key file is readable by others: '{path}'",
                    expected="mode 0600",
                    got=f"mode {mode & 0o777:04o}",
                )
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(2001, f"cannot read the key file: {error.strerror}: '{path}'") from error
    return data
