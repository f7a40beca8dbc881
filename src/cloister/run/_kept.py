"""What a launcher seals for parties, as the host keeps it: with all that a party needs to know whose it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar

from pydantic import Field

from cloister.attest import Evidence, SessionClaims, check_session
from cloister.enclave import StageFailure, StageResult
from cloister.errors import InputError, RefusedError
from cloister.keys import AttemptGrant, appraise_tee, open_signed, require_tee
from cloister.manifest import Manifest
from cloister.wire import Digest, Envelope, Message, Name, VerifyKey, parse_json, parse_message, require_format

__all__ = ["Kept", "KeptSession", "kept_of", "parse_kept", "session_of"]

K = TypeVar("K", bound="Kept")


class Kept(Message):
    """Of one attempt: what says which launcher signed the rest.

    Attributes:
        manifest: The manifest's id.
        stage: The stage.
        attempt: Which attempt of it.
        grant: The registrar's attempt grant.
        claims: What the launcher attested to.
        evidence: The evidence over the claims, with its collateral.
    """

    manifest: Digest
    stage: Name
    attempt: int = Field(ge=1)
    grant: Envelope
    claims: SessionClaims
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class KeptSession:
    """Whose session it was, once the evidence is shown to be that of the launcher that the manifest names.

    Attributes:
        grant: The attempt's grant.
        key: What the launcher signs with.
        assurance: What the evidence rests on.
    """

    grant: AttemptGrant
    key: VerifyKey
    assurance: Literal["hardware", "simulated"]

    def facts(self) -> dict[str, str]:
        """Of which run and stage, and how sure that is."""
        return {"run": self.grant.run, "stage": self.grant.consumer, "assurance": self.assurance}


def kept_of(
    cls: type[K],
    manifest: Manifest,
    said: StageResult | StageFailure,
    *,
    stage: str,
    attempt: int,
    grant: Envelope,
    **sealed: Envelope | None,
) -> K | None:
    """What the launcher sealed, with what it attested to; None where it sealed nothing, or attested to nothing."""
    facts: dict[str, Any] = {"claims": said.claims, "evidence": said.evidence, **sealed}
    if None in facts.values():
        return None
    return cls(manifest=manifest.id, stage=stage, attempt=attempt, grant=grant, **facts)


def parse_kept(cls: type[K], data: bytes, *, what: str, max_bytes: int) -> K:
    """What was kept, from its bytes.

    Raises:
        InputError: 2003 too large; 2002 not strict JSON; 2004 another format; 2005 a field is wrong.
    """
    value = parse_json(data, what=what, max_bytes=max_bytes)
    require_format(value, cls.model_fields["format"].default, what=what)
    return parse_message(cls, value, what=what, max_bytes=max_bytes)


def session_of(kept: Kept, manifest: Manifest, *, at: datetime) -> KeptSession:
    """The session that ``kept`` is of; nothing about it is trusted.

    Args:
        kept: As the host handed it over.
        manifest: The agreement, whose signatures the caller has checked.
        at: The moment that the evidence is judged by.

    Raises:
        RefusedError: 3502 when it is of another manifest or attempt than it says.
        AttestationError: when the evidence is not that of the launcher that the manifest names.
        InputError: 2501 when the manifest has no such stage.
        IntegrityError: 5001 when the registrar did not sign the grant.
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
    return KeptSession(grant, VerifyKey.parse(kept.claims.sign), verdict.assurance)
