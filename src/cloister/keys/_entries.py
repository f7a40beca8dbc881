"""The entries of the log: every decision a key manager made, in the words that an auditor reads.

An entry's leaf is its canonical JSON. The state of a key manager is the fold of its entries, so an entry carries all
that a later decision needs, and no secret.

Evolution: fields are never removed and never change their meaning; a new decision is a new ``kind``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from cloister.errors import IntegrityError
from cloister.manifest import SignedManifest
from cloister.wire import Digest, Message, Name, Timestamp, canonical, parse_json

__all__ = [
    "Action",
    "Assurance",
    "Attempt",
    "AttemptEntry",
    "CheckpointEntry",
    "CollectEntry",
    "Entry",
    "GenesisEntry",
    "KeyEntry",
    "KeyRule",
    "KeyText",
    "ManifestEntry",
    "RefusalEntry",
    "RegistrationEntry",
    "ReleaseEntry",
    "RevocationEntry",
    "RunEntry",
    "RunId",
    "Sequence",
    "SessionId",
    "SuspensionEntry",
    "TraceStep",
    "parse_entry",
]

MAX_TRACE = 512  # steps of one decision that an entry shows
MAX_ENTRY_BYTES = 2 << 20  # a manifest of 1024 images and 256 stages, signed by 256 parties

Assurance = Literal["hardware", "simulated"]

RunId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
SessionId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Attempt = Annotated[int, Field(ge=1, le=1_000_000)]
Sequence = Annotated[int, Field(ge=1, le=1 << 48)]
KeyText = Annotated[str, StringConstraints(max_length=2048)]


class TraceStep(Message):
    """One rule of a decision: what it was about, how it came out, why; ``policy`` is an owner's policy in full."""

    rule: str = Field(max_length=100)
    outcome: Literal["passed", "failed"]
    reason: str = Field(default="", max_length=2000)
    policy: dict[str, Any] | None = None


Action = Literal[
    "install-manifest",
    "install-key",
    "run",
    "attempt",
    "challenge",
    "release",
    "register",
    "checkpoint",
    "collect-challenge",
    "collect",
    "suspend",
    "revoke",
]

Trace = Annotated[tuple[TraceStep, ...], Field(max_length=MAX_TRACE)]


class KeyRule(Message):
    """An owner's own terms for a key, on top of the manifest's.

    Attributes:
        uses: How often the key may be released; never more than the manifest's ``uses``.
        until: Not after this time; never after the manifest's.
        simulated: The owner's own consent to SIMULATED evidence: without it *and* the manifest's, none is accepted.
        policy: A further condition over the normalised claims, in the policy grammar.
    """

    uses: int = Field(ge=1, le=1_000_000)
    until: Timestamp | None = None
    simulated: bool = False
    policy: dict[str, Any] | None = None


class GenesisEntry(Message):
    """The first entry: whose log this is."""

    kind: Literal["genesis"] = "genesis"
    at: Timestamp
    key_manager: KeyText
    hpke: KeyText


class ManifestEntry(Message):
    """A manifest that every required party signed; ``name`` is what it calls this key manager."""

    kind: Literal["manifest"] = "manifest"
    at: Timestamp
    manifest: Digest
    name: Name
    signed: SignedManifest


class KeyEntry(Message):
    """An owner's key was installed; ``statement`` is the digest of what the owner signed."""

    kind: Literal["key"] = "key"
    at: Timestamp
    manifest: Digest
    image: Name
    owner: Name
    rule: KeyRule
    statement: Digest


class RunEntry(Message):
    """A run was granted."""

    kind: Literal["run"] = "run"
    at: Timestamp
    manifest: Digest
    run: RunId


class AttemptEntry(Message):
    """An attempt of a stage, or a start of a service, was granted."""

    kind: Literal["attempt"] = "attempt"
    at: Timestamp
    manifest: Digest
    run: RunId
    consumer: Name
    attempt: Attempt


class ReleaseEntry(Message):
    """Keys were released to an attested launcher.

    Attributes:
        grant: Digest of the attempt grant.
        claims: Digest of the attested claims.
        evidence: Digest of the quote.
        sign: The attested signing key: only it can register this attempt.
        images: Input images whose keys left.
        inputs: Image id, by output name, of earlier outputs whose key parts left.
        trace: The rules that were checked, in order.
    """

    kind: Literal["release"] = "release"
    at: Timestamp
    manifest: Digest
    run: RunId
    consumer: Name
    attempt: Attempt
    session: SessionId
    grant: Digest
    claims: Digest
    evidence: Digest
    sign: KeyText
    assurance: Assurance
    images: tuple[Name, ...]
    inputs: dict[Name, Digest]
    trace: Trace


class RegistrationEntry(Message):
    """A stage ended with this registration."""

    kind: Literal["registration"] = "registration"
    at: Timestamp
    manifest: Digest
    run: RunId
    stage: Name
    attempt: Attempt
    registration: Digest
    outputs: dict[Name, Digest]
    receipt: Digest


class CheckpointEntry(Message):
    """An attempt saved its state, and the host keeps it.

    Attributes:
        sequence: Its number; larger than any before it of this stage in this run.
        checkpoint: Digest of the sealed bytes.
        statement: Digest of what the attested key signed.
    """

    kind: Literal["checkpoint"] = "checkpoint"
    at: Timestamp
    manifest: Digest
    run: RunId
    stage: Name
    attempt: Attempt
    sequence: Sequence
    checkpoint: Digest
    statement: Digest


class CollectEntry(Message):
    """A party took its part of an output's key."""

    kind: Literal["collect"] = "collect"
    at: Timestamp
    manifest: Digest
    run: RunId
    output: Name
    party: Name
    image: Digest
    statement: Digest
    assurance: Assurance


class SuspensionEntry(Message):
    """A party suspended the manifest."""

    kind: Literal["suspension"] = "suspension"
    at: Timestamp
    manifest: Digest
    party: Name
    reason: str = Field(max_length=500)
    statement: Digest


class RevocationEntry(Message):
    """An owner revoked an image's key; the key is erased from the store."""

    kind: Literal["revocation"] = "revocation"
    at: Timestamp
    manifest: Digest
    image: Name
    owner: Name
    statement: Digest


class RefusalEntry(Message):
    """A request was refused: which, with which code, and how far the decision came."""

    kind: Literal["refusal"] = "refusal"
    at: Timestamp
    action: Action
    code: int = Field(ge=2000, le=9999)
    what: str = Field(max_length=2000)
    manifest: Digest | None = None
    run: RunId | None = None
    subject: Name | None = None
    attempt: Attempt | None = None
    trace: Trace


Entry = Annotated[
    GenesisEntry
    | ManifestEntry
    | KeyEntry
    | RunEntry
    | AttemptEntry
    | ReleaseEntry
    | RegistrationEntry
    | CheckpointEntry
    | CollectEntry
    | SuspensionEntry
    | RevocationEntry
    | RefusalEntry,
    Field(discriminator="kind"),
]

_ENTRY: TypeAdapter[Any] = TypeAdapter(Entry)


def parse_entry(leaf: bytes) -> Any:
    """The entry whose canonical bytes are ``leaf``.

    Raises:
        IntegrityError: 5405 when the bytes are no entry that this release knows, or are not its canonical bytes.
        InputError: 2002, 2003 when they are not small strict JSON.
    """
    value = parse_json(leaf, what="log entry", max_bytes=MAX_ENTRY_BYTES)
    try:
        entry = _ENTRY.validate_json(canonical(value))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise IntegrityError(5405, f"log entry is not readable: {first['msg'].lower()}") from None
    if entry.canonical() != leaf:
        raise IntegrityError(5405, "log entry is not in canonical form")
    return entry
