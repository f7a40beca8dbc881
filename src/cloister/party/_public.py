"""The public half of an identity: what is sent to partners, read out and pinned."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from cloister.errors import InputError, IntegrityError
from cloister.wire import (
    B64,
    Message,
    Name,
    SealingKey,
    VerifyKey,
    canonical,
    parse_json,
    parse_message,
    require_format,
)

__all__ = ["PARTY_LABEL", "PublicIdentity", "fingerprint", "fingerprint_of", "require_fingerprint"]

PARTY_LABEL = "cloister/party/v1"
_FINGERPRINT_LABEL = b"cloister/party-fingerprint/v1\0"
_WORDS = 8  # 11 bits each: finding other keys with the same words costs 2^88 key pairs
_MAX_BYTES = 16 * 1024  # a hybrid HPKE key is 1.7 kB of text


class PublicIdentity(Message):
    """A name with its two public keys, signed by the first, so that nobody offers another's HPKE key as their own."""

    format: Literal["cloister/party/v1"] = "cloister/party/v1"
    name: Name
    sign: str
    hpke: str
    signature: B64

    @classmethod
    def parse(cls, data: bytes | dict[str, Any], *, what: str = "public identity") -> PublicIdentity:
        """Reads and checks a public identity.

        Raises:
            InputError: 2002, 2003, 2005 when it is not one; 2004 when its format is unknown.
            IntegrityError: 5001 when its own signature does not verify.
        """
        value = parse_json(data, what=what, max_bytes=_MAX_BYTES) if isinstance(data, bytes) else data
        require_format(value, PARTY_LABEL, what=what)
        public = parse_message(cls, value, what=what)
        public.require_self_signed()
        return public

    def require_self_signed(self) -> None:
        """Returns when both keys are usable and the first signed the name with both.

        Raises:
            InputError: 2005 when a key is not one.
            IntegrityError: 5001 when the signature does not verify.
        """
        SealingKey.parse(self.hpke)
        try:
            VerifyKey.parse(self.sign).verify(PARTY_LABEL, self.signed_bytes(), self.signature)
        except IntegrityError:
            raise IntegrityError(5001, f"the public identity '{self.name}' is not signed by its own key") from None

    def signed_bytes(self) -> bytes:
        """What the signature covers."""
        return _signed_bytes(self.name, self.sign, self.hpke)

    def same_keys(self, *, sign: str, hpke: str) -> bool:
        """Whether these are the two keys."""
        return (self.sign, self.hpke) == (sign, hpke)


def fingerprint(public: PublicIdentity) -> str:
    """Eight English words to read out: 88 bits of SHA-256 over the name and both keys.

    The words are those of BIP 39: no two share their first four letters.
    """
    return fingerprint_of(public.name, sign=public.sign, hpke=public.hpke)


def fingerprint_of(name: str, *, sign: str, hpke: str) -> str:
    """As :func:`fingerprint`, for a name and keys that stand elsewhere, as in a manifest."""
    from mnemonic import Mnemonic

    words = Mnemonic("english").wordlist
    bits = int.from_bytes(hashlib.sha256(_FINGERPRINT_LABEL + _signed_bytes(name, sign, hpke)).digest(), "big")
    return " ".join(words[(bits >> (256 - 11 * (i + 1))) & 2047] for i in range(_WORDS))


def require_fingerprint(public: PublicIdentity, words: str) -> None:
    """Returns when ``words``, as a person typed them, are this identity's; case, hyphens and spacing do not matter.

    Raises:
        InputError: 2012 otherwise.
    """
    typed = words.casefold().replace("-", " ").split()
    if typed != fingerprint(public).split():
        # The expected words stay unsaid: whoever can read them off the screen no longer asks by phone.
        raise InputError(
            2012, f"the fingerprint that was read out is not that of '{public.name}'", got=" ".join(typed)[:120]
        )


def _signed_bytes(name: str, sign: str, hpke: str) -> bytes:
    return canonical({"name": name, "sign": sign, "hpke": hpke})
