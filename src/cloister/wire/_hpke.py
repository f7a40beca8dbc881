"""HPKE (RFC 9180), single shot, with mandatory context.

Two suites: ``x25519`` (DHKEM X25519, HKDF-SHA256, AES-256-GCM), short enough for a person's manifest, and
``mlkem768-x25519`` (the hybrid KEM of draft-ietf-hpke-pq), the default wherever only machines see the key: sealed
health data is worth recording today and breaking later.
"""

from __future__ import annotations

from typing import Any, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from cloister.errors import InputError, IntegrityError
from cloister.wire._secret import Secret
from cloister.wire._signing import _b64url, _parse_key  # pyright: ignore[reportPrivateUsage]

__all__ = ["OpeningKey", "SealingKey"]

_X25519, _HYBRID = "x25519:", "mlkem768-x25519:"
_MLKEM_PUBLIC, _X_PUBLIC = 1184, 32
_CLASSIC_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_HYBRID_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


class SealingKey:
    """A public HPKE key; its text form starts with the suite's name."""

    __slots__ = ("_key", "_raw", "_suite", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        if text.startswith(_HYBRID):
            self._raw = _parse_key(text, _HYBRID, _MLKEM_PUBLIC + _X_PUBLIC)
            try:
                self._key: Any = hpke.MLKEM768X25519PublicKey(
                    MLKEM768PublicKey.from_public_bytes(self._raw[:_MLKEM_PUBLIC]),
                    X25519PublicKey.from_public_bytes(self._raw[_MLKEM_PUBLIC:]),
                )
            except ValueError as error:
                raise InputError(2005, f"not a usable public key: {error}", expected=_HYBRID) from error
            self._suite = _HYBRID_SUITE
        else:
            self._raw = _parse_key(text, _X25519, _X_PUBLIC)
            self._key = X25519PublicKey.from_public_bytes(self._raw)
            self._suite = _CLASSIC_SUITE
        _require_contributory(self._raw[-_X_PUBLIC:])

    @classmethod
    def parse(cls, text: str) -> SealingKey:
        """Reads the text form.

        Raises:
            InputError: 2005 when it is not one.
        """
        return cls(text)

    def seal(self, plaintext: bytes, *, info: bytes) -> bytes:
        """``enc ‖ ciphertext``; only the private key and the same ``info`` open it."""
        if not info:
            raise InputError(2005, "a sealed message needs a context")
        return self._suite.encrypt(plaintext, self._key, info=info)

    @property
    def raw(self) -> bytes:
        """The key's bytes, for fingerprints."""
        return self._raw

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"SealingKey({self.text[:28]}…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SealingKey) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


class OpeningKey:
    """A private HPKE key, made from a seed: 32 bytes for ``x25519``, 96 for ``mlkem768-x25519``."""

    __slots__ = ("_key", "_seed", "_suite", "public")

    def __init__(self, seed: Secret) -> None:
        raw = seed.reveal()
        self._seed = seed
        x_key = X25519PrivateKey.from_private_bytes(raw[:32])
        x_public = x_key.public_key().public_bytes_raw()
        if len(raw) == 96:
            pq_key = MLKEM768PrivateKey.from_seed_bytes(raw[32:])
            self._key: Any = hpke.MLKEM768X25519PrivateKey(pq_key, x_key)
            self.public = SealingKey(_HYBRID + _b64url(pq_key.public_key().public_bytes_raw() + x_public))
            self._suite = _HYBRID_SUITE
        elif len(raw) == 32:
            self._key = x_key
            self.public = SealingKey(_X25519 + _b64url(x_public))
            self._suite = _CLASSIC_SUITE
        else:
            raise InputError(2005, "not an HPKE seed", expected="32 or 96 bytes", got=f"{len(raw)} bytes")

    @classmethod
    def generate(cls, *, post_quantum: bool = True) -> OpeningKey:
        """A fresh key; the hybrid unless told otherwise."""
        return cls(Secret.random(96 if post_quantum else 32))

    def seed(self) -> Secret:
        """The seed, for sealing to disk."""
        return self._seed

    def open(self, sealed: bytes, *, info: bytes) -> bytes:
        """The plaintext.

        Raises:
            IntegrityError: 5002 when ``sealed`` was not made for this key and this ``info``, or was changed.
        """
        try:
            return self._suite.decrypt(sealed, self._key, info=info)
        except (InvalidTag, ValueError):
            raise IntegrityError(5002) from None

    def __repr__(self) -> str:
        return f"<OpeningKey of {self.public!r}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an opening key cannot be pickled")


def _require_contributory(raw: bytes) -> None:
    """Refuses a point of small order here, where it is read: sealing to it fails later, in the middle of an answer."""
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(raw))
    except ValueError:
        raise InputError(2005, "not a usable public key: a point of small order", expected=_X25519) from None
