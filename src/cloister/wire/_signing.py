"""Ed25519 signatures over labelled payloads, and DSSE envelopes made of them.

Source: DSSE v1 (github.com/secure-systems-lab/dsse, protocol.md), RFC 8032.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cloister.errors import InputError, IntegrityError
from cloister.wire._canonical import canonical, digest, parse_json
from cloister.wire._models import B64, Message
from cloister.wire._secret import Secret

__all__ = ["Envelope", "SigningKey", "VerifyKey", "open_envelope", "sign_envelope"]

_PREFIX = "ed25519:"

_SMALL_ORDER = frozenset(
    bytes.fromhex(y)
    for y in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)
"""The y coordinates of the points of order 1, 2, 4 and 8: under such a "key" anybody's signature verifies."""


def _pae(label: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: no two (label, payload) pairs share one encoding."""
    name = label.encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)


class VerifyKey:
    """A public ed25519 key; its text form is ``ed25519:`` and 43 characters of unpadded base64url."""

    __slots__ = ("_key", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._key = Ed25519PublicKey.from_public_bytes(raw)

    @classmethod
    def parse(cls, text: str) -> VerifyKey:
        """Reads the text form.

        Raises:
            InputError: 2005 when it is not one, or one under which anybody can sign.
        """
        raw = _parse_key(text, _PREFIX, 32)
        if raw[:31] + bytes([raw[31] & 0x7F]) in _SMALL_ORDER:
            raise InputError(2005, "not a usable public key: anybody can sign under it", got=text)
        return cls(raw)

    def verify(self, label: str, payload: bytes, signature: bytes) -> None:
        """Returns when ``signature`` is this key's over ``payload`` under ``label``.

        Raises:
            IntegrityError: 5001 otherwise.
        """
        try:
            self._key.verify(signature, _pae(label, payload))
        except InvalidSignature:
            raise IntegrityError(5001, f"signature over {label!r} does not verify", expected=f"key {self}") from None

    @property
    def id(self) -> str:
        """SHA-256 of the raw key: the DSSE key id."""
        return digest(self.raw)

    def __str__(self) -> str:
        return _PREFIX + _b64url(self.raw)

    def __repr__(self) -> str:
        return f"VerifyKey({self})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VerifyKey) and other.raw == self.raw

    def __hash__(self) -> int:
        return hash(self.raw)


class SigningKey:
    """A private ed25519 key."""

    __slots__ = ("_key", "public")

    def __init__(self, seed: Secret) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed.reveal())
        self.public = VerifyKey(self._key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> SigningKey:
        """A fresh key."""
        return cls(Secret.random(32))

    def seed(self) -> Secret:
        """The 32-byte seed, for sealing to disk."""
        return Secret(self._key.private_bytes_raw())

    def sign(self, label: str, payload: bytes) -> bytes:
        """64 bytes over ``label`` and ``payload``."""
        return self._key.sign(_pae(label, payload))

    def __repr__(self) -> str:
        return f"<SigningKey of {self.public}>"

    def __reduce__(self) -> Any:
        raise TypeError("a signing key cannot be pickled")


class EnvelopeSignature(Message):
    """One signature of a DSSE envelope."""

    keyid: str
    sig: B64


class Envelope(Message):
    """A DSSE envelope: signed JSON with its label, readable by any DSSE tool."""

    payloadType: str
    payload: B64
    signatures: tuple[EnvelopeSignature, ...]


def sign_envelope(label: str, value: Any, *keys: SigningKey) -> Envelope:
    """Signs ``canonical(value)`` under ``label`` with each key."""
    payload = canonical(value)
    signatures = tuple(EnvelopeSignature(keyid=k.public.id, sig=k.sign(label, payload)) for k in keys)
    return Envelope(payloadType=label, payload=payload, signatures=signatures)


def open_envelope(envelope: Envelope, label: str, key: VerifyKey, *, max_bytes: int = 1 << 20) -> Any:
    """The JSON value inside, once ``key`` is shown to have signed it under ``label``.

    Raises:
        IntegrityError: 5001 when the label is another, or no signature of ``key`` verifies.
        InputError: 2002, 2003 when the authenticated payload is not small strict JSON.
    """
    if envelope.payloadType != label:
        raise IntegrityError(5001, "envelope was signed for another purpose", expected=label, got=envelope.payloadType)
    for signature in envelope.signatures[:16]:
        if signature.keyid == key.id:
            key.verify(label, envelope.payload, signature.sig)
            return parse_json(envelope.payload, what=label, max_bytes=max_bytes)
    raise IntegrityError(5001, f"envelope carries no signature of {key}", expected=key.id)


def _b64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _parse_key(text: str, prefix: str, size_bytes: int) -> bytes:
    body = text.removeprefix(prefix)
    try:
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except (binascii.Error, ValueError):
        raw = b""
    if not text.startswith(prefix) or len(raw) != size_bytes or _b64url(raw) != body:
        raise InputError(2005, "not a public key", expected=f"{prefix}<{size_bytes} bytes, base64url>", got=text[:80])
    return raw
