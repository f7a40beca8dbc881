"""The bundle: everything that an offline audit of a run needs, in one JSON file.

The runner, who gathers it, is trusted for nothing: each part is signed by somebody else, and what it leaves out shows.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from cloister.attest import Collateral, Evidence, SessionClaims
from cloister.manifest import SignedManifest
from cloister.wire import (
    Digest,
    Envelope,
    Message,
    Name,
    Timestamp,
    parse_json,
    parse_message,
    require_format,
)

__all__ = ["MAX_BUNDLE_BYTES", "AttemptRecord", "Bundle", "Collaterals", "KeyManagerRecord", "parse_bundle"]

MAX_BUNDLE_BYTES = 64 << 20
BUNDLE_FORMAT: Final = "cloister/bundle/v2"


class AttemptRecord(Message):
    """One attempt of a stage or start of a service, as the runner saw it.

    Attributes:
        consumer: The stage or service.
        grant: The registrar's grant.
        claims: What the launcher attested to; None when it never came so far.
        evidence: The evidence, without its collateral.
        collateral: Digest of the collateral in the bundle's table.
        releases: Each key manager's answer.
        registration: The launcher's, for a stage that ended.
        registered: Each key manager's receipt for it.
        receipt: The launcher's stage receipt.
        code: Why the attempt failed, where it did; on the host's word alone.
    """

    consumer: Name
    attempt: int = Field(ge=1)
    grant: Envelope
    claims: SessionClaims | None = None
    evidence: Evidence | None = None
    collateral: Digest | None = None
    releases: dict[Name, Envelope] = Field(default_factory=dict, max_length=64)
    registration: Envelope | None = None
    registered: dict[Name, Envelope] = Field(default_factory=dict, max_length=64)
    receipt: Envelope | None = None
    code: int | None = None


class KeyManagerRecord(Message):
    """What one key manager says: its own evidence, and what its log holds for an audit of the run.

    Attributes:
        evidence: Signed service evidence.
        collateral: Digest of the collateral in the bundle's table.
        head: The signed tree head that ``account`` and ``refusals`` are proven in.
        account: Signed pages, in order: every entry of the *manifest* that an audit counts, so that keys, suspensions
            and uses by other runs come along. What strangers can lengthen is not among them.
        refusals: A signed page: the first refusals that name the run, and how many there are.
        consistency: That the log continues a head which a party holds; made where the party's head was given.
    """

    evidence: Envelope
    collateral: Digest | None = None
    head: Envelope
    account: tuple[Envelope, ...] = Field(min_length=1, max_length=4096)
    refusals: Envelope
    consistency: Envelope | None = None


Collaterals = dict[Digest, Collateral]


class Bundle(Message):
    """A run, ready for audit.

    Attributes:
        format: Of this file; another is refused.
        made_at: The host's word for when it was made: a label, which nobody signs and no check reads.
        signed: The agreement.
        run: The registrar's run grant.
        attempts: Every attempt at a stage, every start of a service.
        key_managers: What each key manager of the manifest says.
        collaterals: The evidence's collateral, once each, by digest.
        inference: Receipts of predictions.
    """

    format: Literal["cloister/bundle/v2"] = BUNDLE_FORMAT
    made_at: Timestamp
    signed: SignedManifest
    run: Envelope
    attempts: tuple[AttemptRecord, ...] = Field(max_length=4096)
    key_managers: dict[Name, KeyManagerRecord] = Field(max_length=64)
    collaterals: Collaterals
    inference: tuple[Envelope, ...] = Field(default=(), max_length=4096)


def parse_bundle(data: bytes) -> Bundle:
    """A bundle from its bytes.

    Raises:
        InputError: 2003 larger than 64 MiB; 2002 not strict JSON; 2004 another format; 2005 a field is wrong.
    """
    value = parse_json(data, what="bundle", max_bytes=MAX_BUNDLE_BYTES)
    require_format(value, BUNDLE_FORMAT, what="bundle")
    return parse_message(Bundle, value, what="bundle", max_bytes=MAX_BUNDLE_BYTES)
