"""What scripts print, as the host keeps it: sealed, with all that a named party needs to read and to believe it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final, Literal

from cloister.enclave import StageFailure, StageResult, open_log
from cloister.manifest import Manifest
from cloister.run._kept import Kept, kept_of, parse_kept, session_of
from cloister.wire import Envelope, OpeningKey

__all__ = ["KeptLog", "keep_log", "parse_log", "read_log"]

LOG_FORMAT: Final = "cloister/kept-log/v1"
MAX_KEPT_BYTES = 4 << 20  # a sealed log has 350 kB of base64, evidence and collateral at most 3 MB


class KeptLog(Kept):
    """One attempt's sealed log. The host can read nothing in it; the file may be handed to its readers as it is.

    Attributes:
        format: Of this file; another is refused.
        log: The sealed log, signed by the attested key.
    """

    format: Literal["cloister/kept-log/v1"] = LOG_FORMAT
    log: Envelope


def keep_log(
    manifest: Manifest, *, stage: str, attempt: int, grant: Envelope, said: StageResult | StageFailure
) -> KeptLog | None:
    """The log of an attempt, where the manifest names readers and the launcher sent one."""
    return kept_of(KeptLog, manifest, said, stage=stage, attempt=attempt, grant=grant, log=said.log)


def parse_log(data: bytes) -> KeptLog:
    """A kept log from its bytes.

    Raises:
        InputError: 2003 too large; 2002 not strict JSON; 2004 another format; 2005 a field is wrong.
    """
    return parse_kept(KeptLog, data, what="sealed log", max_bytes=MAX_KEPT_BYTES)


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
    session = session_of(kept, manifest, at=at)
    text = open_log(kept.log, party=party, key=key, session=session.key, attempt=session.grant.digest())
    return text, session.facts()
