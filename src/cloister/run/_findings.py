"""What failed when a worker lied, as the host keeps it: sealed to the parties whose data it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from cloister.enclave import StageFailure, StageResult, open_findings
from cloister.errors import InputError
from cloister.manifest import Manifest
from cloister.run._kept import Kept, kept_of, parse_kept, session_of
from cloister.wire import Envelope, OpeningKey, parse_json

__all__ = ["Findings", "KeptFindings", "keep_findings", "parse_findings", "read_findings"]

FINDINGS_FORMAT: Final = "cloister/kept-findings/v1"
MAX_FINDINGS_BYTES = 48 << 20  # 256 parties, 64 KiB each, in base64 three times; evidence and collateral
_MAX_RECORD_BYTES = 1 << 20


class KeptFindings(Kept):
    """One attempt's findings. The host can read nothing in them; the file may be handed to its readers as it is.

    Attributes:
        format: Of this file; another is refused.
        findings: The sealed records, signed by the attested key.
    """

    format: Literal["cloister/kept-findings/v1"] = FINDINGS_FORMAT
    findings: Envelope


@dataclass(frozen=True, slots=True)
class Findings:
    """What a party reads.

    Attributes:
        count: How many products were wrong.
        failures: The first of them: layer, step, workers, and what did not hold.
        session: Of which run and stage it is, and the assurance behind it.
    """

    count: int
    failures: tuple[Mapping[str, Any], ...]
    session: Mapping[str, str]


def keep_findings(
    manifest: Manifest, *, stage: str, attempt: int, grant: Envelope, said: StageResult | StageFailure
) -> KeptFindings | None:
    """The findings of an attempt, where its launcher sent any."""
    found = said.findings if isinstance(said, StageFailure) else None
    return kept_of(KeptFindings, manifest, said, stage=stage, attempt=attempt, grant=grant, findings=found)


def parse_findings(data: bytes) -> KeptFindings:
    """Kept findings from their bytes.

    Raises:
        InputError: 2003 too large; 2002 not strict JSON; 2004 another format; 2005 a field is wrong.
    """
    return parse_kept(KeptFindings, data, what="findings", max_bytes=MAX_FINDINGS_BYTES)


def read_findings(kept: KeptFindings, manifest: Manifest, *, party: str, key: OpeningKey, at: datetime) -> Findings:
    """What failed, for a party whose data it was.

    Args:
        kept: As the host handed it over; nothing about it is trusted.
        manifest: The agreement, whose signatures the caller has checked.
        party: Who reads.
        key: The party's HPKE key.
        at: The moment that the evidence is judged by.

    Raises:
        RefusedError: 3502 when they are of another manifest or attempt than they say.
        AttestationError: when the evidence is not that of the launcher that the manifest names.
        InputError: 2502 when they are not for ``party``; 2501 when the manifest has no such stage; 2002, 2005 when the
            record inside is none.
        IntegrityError: 5001, 5002, 5506 when they were not signed by the attested key, or not about this attempt.
    """
    session = session_of(kept, manifest, at=at)
    record = open_findings(kept.findings, party=party, key=key, session=session.key, attempt=session.grant.digest())
    value = parse_json(record, what="finding", max_bytes=_MAX_RECORD_BYTES)
    if not isinstance(value, dict) or value.get("format") != 1 or not isinstance(value.get("failures"), list):
        raise InputError(2005, "the record is not one of findings")
    failures = tuple(each for each in value["failures"] if isinstance(each, dict))
    return Findings(int(value.get("count", len(failures))), failures, session.facts())
