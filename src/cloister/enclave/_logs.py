"""What a script prints, for nobody but the parties that the manifest names.

The sealed log has one length whatever was printed: its size would otherwise be a way to tell the host something.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.errors import InputError, IntegrityError
from cloister.wire import (
    B64,
    Envelope,
    Message,
    Name,
    OpeningKey,
    SealingKey,
    SigningKey,
    VerifyKey,
    labelled_digest,
    open_envelope,
    parse_message,
    sign_envelope,
)

__all__ = ["LOG_LABEL", "MAX_LOG_BYTES", "SealedLog", "open_log", "seal_log"]

LOG_LABEL = "cloister/log/v1"
MAX_LOG_BYTES = 256 * 1024  # the end of what a script prints; the rest is dropped as it comes
_LENGTH_BYTES = 4
_MAX_SEALED = 1 << 20
_ONE_MESSAGE = bytes(12)  # the key seals one message only, so that the nonce never repeats under it


class SealedLog(Message):
    """One attempt's log: AES-256-GCM under a key that is sealed to each reader.

    Attributes:
        attempt: Digest of the attempt's grant.
        readers: The key, sealed by HPKE, by party.
        sealed: The padded log.
    """

    attempt: str
    readers: dict[Name, B64]
    sealed: B64


def seal_log(text: bytes, *, readers: Mapping[str, SealingKey], attempt: str, key: SigningKey) -> Envelope:
    """The end of ``text``, padded, sealed to every reader, signed by the session key."""
    kept = text[-MAX_LOG_BYTES:]
    padded = (len(kept).to_bytes(_LENGTH_BYTES, "big") + kept).ljust(_LENGTH_BYTES + MAX_LOG_BYTES, b"\0")
    secret = os.urandom(32)
    box = AESGCM(secret).encrypt(_ONE_MESSAGE, padded, attempt.encode())
    sealed = {party: reader.seal(secret, info=_info(attempt, party)) for party, reader in readers.items()}
    return sign_envelope(LOG_LABEL, SealedLog(attempt=attempt, readers=sealed, sealed=box).as_json(), key)


def open_log(envelope: Envelope, *, party: str, key: OpeningKey, session: VerifyKey, attempt: str) -> bytes:
    """What the script printed, for a party that may read it.

    Args:
        envelope: The sealed log as the host kept it.
        party: Who reads.
        key: The party's HPKE key.
        session: The signing key in the attempt's attested claims.
        attempt: Digest of the attempt's grant.

    Raises:
        InputError: 2502 when the log is not for ``party``; 2005 when it is no log.
        IntegrityError: 5001 when another key signed it; 5002 when it does not open; 5506 when it is another attempt's.
    """
    value = open_envelope(envelope, LOG_LABEL, session, max_bytes=_MAX_SEALED)
    log = parse_message(SealedLog, value, what="sealed log")
    if log.attempt != attempt:
        raise IntegrityError(5506, expected=attempt, got=log.attempt[:80])
    if party not in log.readers:
        raise InputError(2502, f"the log is not for {party!r}", expected=", ".join(sorted(log.readers)))
    secret = key.open(log.readers[party], info=_info(attempt, party))
    try:
        padded = AESGCM(secret).decrypt(_ONE_MESSAGE, log.sealed, attempt.encode())
    except (InvalidTag, ValueError):
        raise IntegrityError(5002) from None
    return padded[_LENGTH_BYTES : _LENGTH_BYTES + int.from_bytes(padded[:_LENGTH_BYTES], "big")]


def _info(attempt: str, party: str) -> bytes:
    return bytes.fromhex(labelled_digest(LOG_LABEL, {"attempt": attempt, "party": party}))
