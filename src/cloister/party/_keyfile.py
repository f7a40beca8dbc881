"""A secret under a passphrase: scrypt, then AES-256-GCM with the whole header as associated data.

Source: RFC 7914 (scrypt), NIST SP 800-38D (GCM).
"""

from __future__ import annotations

import unicodedata
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import Field

from cloister.errors import InputError
from cloister.party._public import PublicIdentity
from cloister.wire import B64, Message, Secret, canonical

__all__ = ["KEY_FORMAT", "KeyFile", "lock", "unlock"]

KEY_FORMAT = "cloister/party-key/v1"
_COST = 1 << 17  # 128 MiB and about a third of a second a guess
# The file names its cost: bounded, or a hostile file picks how much of our memory it takes (at most 256 MiB).
_LEAST, _MOST = 1 << 15, 1 << 18
_BLOCK = 8
_SALT, _NONCE = 16, 12


class Kdf(Message):
    """How the passphrase becomes a key."""

    name: Literal["scrypt"] = "scrypt"
    n: int
    r: int
    p: int
    salt: B64


class KeyFile(Message):
    """A private identity at rest. Everything but ``sealed`` is authenticated beside it."""

    format: Literal["cloister/party-key/v1"] = "cloister/party-key/v1"
    public: PublicIdentity
    kdf: Kdf
    nonce: B64 = Field(min_length=_NONCE, max_length=_NONCE)
    sealed: B64 = Field(max_length=1024)

    def header(self) -> bytes:
        """The associated data."""
        return canonical({key: value for key, value in self.as_json().items() if key != "sealed"})


def lock(public: PublicIdentity, secret: Secret, passphrase: str) -> KeyFile:
    """Seals ``secret`` for disk, under a fresh salt and nonce.

    Raises:
        InputError: 2017 when the passphrase is empty.
    """
    if not passphrase.strip():
        raise InputError(2017, "an empty passphrase protects nothing")
    kdf = Kdf(n=_COST, r=_BLOCK, p=1, salt=Secret.random(_SALT).reveal())
    draft = KeyFile(public=public, kdf=kdf, nonce=Secret.random(_NONCE).reveal(), sealed=b"")
    sealed = AESGCM(_derive(kdf, passphrase)).encrypt(draft.nonce, secret.reveal(), draft.header())
    return draft.model_copy(update={"sealed": sealed})


def unlock(file: KeyFile, passphrase: str) -> Secret:
    """The secret.

    Raises:
        InputError: 2016 when the file asks for a derivation out of bounds; 2011 when the passphrase is wrong or the
            file was changed.
    """
    kdf = file.kdf
    cost_is_sane = _LEAST <= kdf.n <= _MOST and kdf.n & (kdf.n - 1) == 0 and kdf.r == _BLOCK and kdf.p == 1
    if not cost_is_sane or not 8 <= len(kdf.salt) <= 64:
        raise InputError(
            2016,
            expected=f"scrypt, n a power of two from {_LEAST} to {_MOST}, r={_BLOCK}, p=1",
            got=f"n={kdf.n}, r={kdf.r}, p={kdf.p}",
        )
    try:
        return Secret(AESGCM(_derive(kdf, passphrase)).decrypt(file.nonce, file.sealed, file.header()))
    except InvalidTag:
        raise InputError(
            2011, f"cannot open the identity '{file.public.name}': wrong passphrase, or the file was changed"
        ) from None


def _derive(kdf: Kdf, passphrase: str) -> bytes:
    """The 32-byte key; NFC, so that one passphrase typed on two systems is one passphrase."""
    typed = unicodedata.normalize("NFC", passphrase).encode("utf-8", "surrogatepass")
    return Scrypt(salt=kdf.salt, length=32, n=kdf.n, r=kdf.r, p=kdf.p).derive(typed)
