"""The secret behind a run's randomness: which records are sampled, and what noise hides them.

Who has it takes the noise off again. Sampling and noise each derive keys of their own from it, under labels that say
what for, so no byte of one is a byte of the other.

* By default a key is drawn from the operating system and never leaves the process.
* Who wants to go on after a crash exactly as before keeps it elsewhere than the checkpoint: in a sealed one, or
  :meth:`RunKey.wrap` for a file that others may read. A state in a checkpoint (:class:`StreamState`) holds a position
  and a proof of whose it is, nothing more.
* A key is one run's. Two runs under one key draw the same records in every step, and an account that adds up what
  each of them spent would tell too little.

>>> key = RunKey()
>>> key
<RunKey>
>>> under = Secret.random(32)
>>> RunKey.unwrap(key.wrap(under), under).derive("noise").matches(key.derive("noise"))
True
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Any, NamedTuple, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.errors import InputError, IntegrityError, RefusedError
from cloister.wire import Secret

__all__ = ["KEY_BYTES", "RunKey", "StreamState"]

KEY_BYTES = 32
POSITIONS = 1 << 64
_NONCE_BYTES, _TAG_BYTES = 12, 16
_WRAP = b"cloister/privacy/wrapped-run-key/v1"
_DERIVE = b"cloister/privacy/run-key/v1"


class RunKey:
    """32 secret bytes. Neither pickled nor copied nor printed.

    Args:
        secret: What was kept; fresh from the operating system when left out.

    Raises:
        InputError: 2812 when it has another length.
    """

    __slots__ = ("_secret", "_used")

    def __init__(self, secret: Secret | None = None) -> None:
        self._secret = Secret.random(KEY_BYTES) if secret is None else secret
        if len(self._secret) != KEY_BYTES:
            raise InputError(2812, "not a run's key", expected=f"{KEY_BYTES} bytes", got=f"{len(self._secret)} bytes")
        self._used = False

    def derive(self, label: str, *context: bytes) -> Secret:
        """A key for one purpose and one context: HMAC-SHA-256, each part framed by its length."""
        framed = b"".join(len(part).to_bytes(8, "big") + part for part in (_DERIVE, label.encode(), *context))
        return Secret(hmac.digest(self._secret.reveal(), framed, hashlib.sha256))

    def begin(self) -> None:
        """Marks the key as a run's.

        Raises:
            RefusedError: 3853 when it is one's already.
        """
        if self._used:
            raise RefusedError(3853)
        self._used = True

    def wrap(self, under: Secret) -> bytes:
        """The key, encrypted and authenticated under another of 32 bytes, for whoever holds that: AES-256-GCM."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + AESGCM(under.reveal()).encrypt(nonce, self._secret.reveal(), _WRAP)

    @classmethod
    def unwrap(cls, wrapped: bytes, under: Secret) -> RunKey:
        """The key that was wrapped.

        Raises:
            InputError: 2812 when the bytes have not a wrapped key's length.
            IntegrityError: 5810 when they were wrapped under another key, or changed.
        """
        expected = _NONCE_BYTES + KEY_BYTES + _TAG_BYTES
        if len(wrapped) != expected:
            raise InputError(2812, "not a wrapped key", expected=f"{expected} bytes", got=f"{len(wrapped)} bytes")
        nonce, sealed = wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:]
        try:
            return cls(Secret(AESGCM(under.reveal()).decrypt(nonce, sealed, _WRAP)))
        except InvalidTag:
            raise IntegrityError(5810, "a wrapped key does not open") from None

    def __repr__(self) -> str:
        return "<RunKey>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a run's key is neither pickled nor copied: wrap it")


class StreamState(NamedTuple):
    """What a checkpoint keeps of a stream: where it stands. No key, and nothing that a key follows from.

    Attributes:
        position: Of the next release or step.
        proof: HMAC-SHA-256, in hexadecimal, over position and context under a key derived for this alone: a state of
            another run, of other terms or with a changed position is refused.
    """

    position: int
    proof: str

    @classmethod
    def make(cls, position: int, key: RunKey, *context: bytes) -> StreamState:
        """The state at a position."""
        proof = key.derive("state", position.to_bytes(8, "big"), *context)
        return cls(position, proof.reveal().hex())

    @classmethod
    def read(cls, saved: Any, key: RunKey, *context: bytes) -> int:
        """The position that a saved state proves.

        Raises:
            InputError: 2812 when it is no state.
            IntegrityError: 5810 when it is another key's, of another context, or changed.
        """
        try:
            position, proof = saved
            made = cls.make(position, key, *context)
            given = str(proof)
        except (TypeError, ValueError, OverflowError, AttributeError):
            raise InputError(2812) from None
        if not hmac.compare_digest(given.encode(), made.proof.encode()):
            raise IntegrityError(5810)
        return made.position
