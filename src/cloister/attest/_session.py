"""What a TEE says about itself in one session, and the check that the evidence is about that."""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from cloister.attest._claims import Verdict
from cloister.attest._times import parse_time
from cloister.errors import AttestationError
from cloister.wire import B64, Digest, Message, Timestamp

__all__ = ["NONCE_BYTES", "Purpose", "SessionClaims", "check_session"]

NONCE_BYTES = 32
Purpose = Literal["stage", "service", "key-manager"]
_Text = Annotated[str, StringConstraints(min_length=1, max_length=256)]
_Key = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
_Nonce = Annotated[B64, Field(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]


class SessionClaims(Message):
    """What report data commits to: for whom, with which keys, for which piece of work.

    Attributes:
        version: 1.
        purpose: What the TEE is about to do; evidence for one purpose is none for another.
        nonces: Name of each verifier → the 32 bytes that it chose. One attestation answers several key managers.
        hpke: Public key that answers are sealed to.
        sign: Public key that the TEE signs with from here on.
        manifest: The agreement it works under.
        run: The run, as the key managers named it.
        stage: The stage of that manifest.
        attempt: Which attempt at that stage.
        image: What a service serves.
        not_after: When these claims stop being good.
    """

    version: Literal[1] = 1
    purpose: Purpose
    nonces: Annotated[dict[_Text, _Nonce], Field(min_length=1, max_length=64)]
    hpke: _Key
    sign: _Key
    manifest: Digest | None = None
    run: _Text | None = None
    stage: _Text | None = None
    attempt: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    image: Digest | None = None
    not_after: Timestamp | None = None

    def report_data(self) -> bytes:
        """The 64 bytes to attest to: SHA-256 of the canonical claims, then 32 zero bytes."""
        return hashlib.sha256(self.canonical()).digest() + bytes(32)


def check_session(
    verdict: Verdict,
    claims: SessionClaims,
    *,
    purpose: Purpose,
    nonce_name: str,
    nonce: bytes,
    manifest: str | None = None,
    run: str | None = None,
    stage: str | None = None,
    attempt: int | None = None,
    image: str | None = None,
    at: datetime | None = None,
) -> None:
    """Returns only when the accepted evidence of ``verdict`` is about ``claims`` and these are what was asked for.

    An argument left at None is not compared, except that ``not_after`` is always checked.

    Args:
        verdict: Of an appraisal with the caller's policy; it must be accepted.
        claims: What the TEE sent beside its evidence.
        purpose: What the caller would use it for.
        nonce_name: The name under which the caller's nonce travels.
        nonce: The caller's own, used once.
        manifest: The agreement that the caller works under.
        run: The run.
        stage: The stage.
        attempt: The attempt.
        image: What the service must serve.
        at: Now; the verdict's own time when None.

    Raises:
        AttestationError: whatever ``verdict.require()`` raises; 4150 report data is of other claims; 4151 the nonce
            is missing or not the caller's; 4152 another purpose; 4153 another manifest; 4154 another run; 4155 another
            stage; 4156 another attempt; 4157 past ``not_after``; 4158 another image.
    """
    verdict.require()
    expected = claims.report_data().hex()
    if not hmac.compare_digest(str(verdict.value("tee.report_data")), expected):
        raise AttestationError(4150, expected=expected, got=verdict.value("tee.report_data"))
    if claims.purpose != purpose:
        raise AttestationError(4152, expected=purpose, got=claims.purpose)
    if not hmac.compare_digest(claims.nonces.get(nonce_name, b""), nonce) or len(nonce) != NONCE_BYTES:
        raise AttestationError(4151, f"the nonce of {nonce_name!r} is not the one that was given out")
    if claims.not_after is not None and (at or verdict.at) > parse_time(claims.not_after):
        raise AttestationError(4157, expected=f"before {claims.not_after}", got=str(at or verdict.at))
    for code, wanted, said in (
        (4153, manifest, claims.manifest),
        (4154, run, claims.run),
        (4155, stage, claims.stage),
        (4156, attempt, claims.attempt),
        (4158, image, claims.image),
    ):
        if wanted is not None and said != wanted:
            raise AttestationError(code, expected=wanted, got=said)
