"""What scripts print, as the host keeps it: sealed, with all that a named party needs to read and to believe it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final, Literal

from pydantic import Field

from cloister.attest import Evidence, SessionClaims, check_session
from cloister.enclave import StageFailure, StageResult, open_log
from cloister.errors import InputError, RefusedError
from cloister.keys import AttemptGrant, appraise_tee, open_signed, require_tee
from cloister.manifest import Manifest
from cloister.wire import (
    Digest,
    Envelope,
    Message,
    Name,
    OpeningKey,
    VerifyKey,
    parse_json,
    parse_message,
    require_format,
)

__all__ = ["KeptLog", "keep_log", "parse_log", "read_log"]

LOG_FORMAT: Final = "cloister/kept-log/v1"
MAX_KEPT_BYTES = 4 << 20  # a sealed log has 350 kB of base64, evidence and collateral at most 3 MB


class KeptLog(Message):
    """One attempt's sealed log. The host can read nothing in it; the file may be handed to its readers as it is.

    Attributes:
        format: Of this file; another is refused.
        manifest: The manifest's id.
        stage: The stage.
        attempt: Which attempt of it.
        grant: The registrar's attempt grant.
        claims: What the launcher attested to.
        evidence: The evidence over the claims, with its collateral.
        log: The sealed log, signed by the attested key.
    """

    format: Literal["cloister/kept-log/v1"] = LOG_FORMAT
    manifest: Digest
    stage: Name
    attempt: int = Field(ge=1)
    grant: Envelope
    claims: SessionClaims
    evidence: Evidence
    log: Envelope


def keep_log(
    manifest: Manifest, *, stage: str, attempt: int, grant: Envelope, said: StageResult | StageFailure
) -> KeptLog | None:
    """The log of an attempt, where the manifest names readers and the launcher sent one."""
    if said.log is None or said.claims is None or said.evidence is None:
        return None
    return KeptLog(
        manifest=manifest.id,
        stage=stage,
        attempt=attempt,
        grant=grant,
        claims=said.claims,
        evidence=said.evidence,
        log=said.log,
    )


def parse_log(data: bytes) -> KeptLog:
    """A kept log from its bytes.

    Raises:
        InputError: 2003 too large; 2002 not strict JSON; 2004 another format; 2005 a field is wrong.
    """
    value = parse_json(data, what="sealed log", max_bytes=MAX_KEPT_BYTES)
    require_format(value, LOG_FORMAT, what="sealed log")
    return parse_message(KeptLog, value, what="sealed log", max_bytes=MAX_KEPT_BYTES)


def read_log(
    kept: KeptLog, manifest: Manifest, *, party: str, key: OpeningKey, at: datetime
) -> tuple[bytes, Mapping[str, str]]:
    """What the script printed, and the assurance behind it, for a party that the manifest names.

    Args:
        kept: As the host handed it over; nothing about it is trusted.
        manifest: The agreement, whose signatures the caller has checked.
        party: Who reads.
        key: The party's HPKE key.
        at: The moment that the evidence is judged by.

    Raises:
        RefusedError: 3502 when it is of another manifest or attempt than it says.
        AttestationError: when the evidence is not that of the launcher that the manifest names.
        InputError: 2502 when the log is not for ``party``; 2501 when the manifest has no such stage.
        IntegrityError: 5001, 5002, 5506 when it was not signed by the attested key, or not about this attempt.
    """
    stage = manifest.stages.get(kept.stage)
    if stage is None:
        raise InputError(2501, f"the manifest has no stage '{kept.stage}'", expected=", ".join(manifest.stages))
    grant = open_signed(AttemptGrant, kept.grant, VerifyKey.parse(manifest.key_managers[manifest.registrar].sign))
    wanted = (manifest.id, kept.stage, kept.attempt)
    if (grant.manifest, grant.consumer, grant.attempt) != wanted:
        raise RefusedError(3502, expected=wanted, got=(grant.manifest, grant.consumer, grant.attempt))
    tee = manifest.tees[stage.tee]
    verdict = appraise_tee(tee, kept.evidence, at=at)
    require_tee(tee, kept.evidence, verdict)
    name, nonce = next(iter(kept.claims.nonces.items()))
    check_session(
        verdict,
        kept.claims,
        purpose="stage",
        nonce_name=name,
        nonce=nonce,
        manifest=manifest.id,
        run=grant.run,
        stage=grant.consumer,
        attempt=grant.attempt,
    )
    session = VerifyKey.parse(kept.claims.sign)
    text = open_log(kept.log, party=party, key=key, session=session, attempt=grant.digest())
    return text, {"run": grant.run, "stage": grant.consumer, "assurance": verdict.assurance}
