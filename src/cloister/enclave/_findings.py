"""What failed when a worker lied, for nobody but the parties whose data it was.

Told to the host, or to whoever runs the worker, it would answer a question about a private value. So the broker seals
one record a party, all of one size; here they are bound to their attempt by the session key's signature, because
anybody can seal something to a party.
"""

from __future__ import annotations

from collections.abc import Mapping

from cloister.errors import InputError, IntegrityError
from cloister.wire import (
    B64,
    Envelope,
    Message,
    Name,
    OpeningKey,
    SigningKey,
    VerifyKey,
    open_envelope,
    parse_message,
    sign_envelope,
)

__all__ = ["FINDINGS_LABEL", "RECORD_INFO", "SealedFindings", "open_findings", "sign_findings"]

FINDINGS_LABEL = "cloister/findings/v1"
RECORD_INFO = b"cloister offload evidence/v1"
"""What the records are sealed under, by the room that made them."""

_MAX_SEALED = 32 << 20  # 256 parties, 64 KiB each, twice in base64


class SealedFindings(Message):
    """One attempt's findings.

    Attributes:
        attempt: Digest of the attempt's grant.
        sealed: The record, sealed by HPKE, by party.
    """

    attempt: str
    sealed: dict[Name, B64]


def sign_findings(sealed: Mapping[str, bytes], *, attempt: str, key: SigningKey) -> Envelope:
    """The sealed records, signed by the session key as findings of this attempt."""
    return sign_envelope(FINDINGS_LABEL, SealedFindings(attempt=attempt, sealed=dict(sealed)).as_json(), key)


def open_findings(envelope: Envelope, *, party: str, key: OpeningKey, session: VerifyKey, attempt: str) -> bytes:
    """The record, for a party that may read it.

    Args:
        envelope: The findings as the host kept them.
        party: Who reads.
        key: The party's HPKE key.
        session: The signing key in the attempt's attested claims.
        attempt: Digest of the attempt's grant.

    Raises:
        InputError: 2502 when they are not for ``party``; 2005 when they are no findings.
        IntegrityError: 5001 when another key signed them; 5002 when they do not open; 5506 when they are another
            attempt's.
    """
    value = open_envelope(envelope, FINDINGS_LABEL, session, max_bytes=_MAX_SEALED)
    findings = parse_message(SealedFindings, value, what="findings", max_bytes=_MAX_SEALED)
    if findings.attempt != attempt:
        raise IntegrityError(5506, "the findings are another attempt's", expected=attempt, got=findings.attempt[:80])
    if party not in findings.sealed:
        raise InputError(2502, f"the findings are not for {party!r}", expected=", ".join(sorted(findings.sealed)))
    return key.open(findings.sealed[party], info=RECORD_INFO)
