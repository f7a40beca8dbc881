"""What travels between owners, runners, launchers and key managers (docs/key-release.md), but for the log's entries.

Requests are canonical JSON. Every answer is a DSSE envelope under the key manager's signing key, with the label of its
class: an answer to one question never passes for the answer to another.

Longer than our cap of 400 lines: one table of messages, read side by side with the protocol.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Field

from cloister.attest import Evidence, SessionClaims
from cloister.keys._entries import Assurance, Attempt, Entry, KeyRule, KeyText, RunId, Sequence, SessionId
from cloister.wire import (
    B64,
    Digest,
    Envelope,
    Message,
    Name,
    SigningKey,
    Timestamp,
    VerifyKey,
    open_envelope,
    parse_message,
    sign_envelope,
)

__all__ = [
    "Acknowledged",
    "AdministratorShare",
    "AttemptGrant",
    "AttemptRequest",
    "Challenge",
    "ChallengeRequest",
    "Checkpoint",
    "CheckpointReceipt",
    "CheckpointRecord",
    "CollectChallengeRequest",
    "CollectRequest",
    "Collected",
    "ConsistencyProof",
    "EvidenceRequest",
    "KeyInstall",
    "KeyRelease",
    "LogReceipt",
    "ProofSteps",
    "Refusal",
    "Registration",
    "RegistrationReceipt",
    "RegistrationRequest",
    "ReleaseRequest",
    "ReleasedCheckpoint",
    "ReleasedInput",
    "ReleasedKeys",
    "Revocation",
    "RunGrant",
    "RunRequest",
    "ServiceEvidence",
    "Signed",
    "Suspension",
    "TreeHead",
    "UnlockProgress",
    "UnlockRequest",
    "open_signed",
    "sign_message",
]

MAX_ENVELOPE_BYTES = 16 << 20  # the largest answer: a page of the log, whose entries have 4 MiB

Nonce = Annotated[B64, Field(min_length=32, max_length=32)]
"""32 bytes that the verifier chose."""

Sealed = Annotated[B64, Field(max_length=1 << 20)]
ProofSteps = Annotated[tuple[Digest, ...], Field(max_length=64)]

S = TypeVar("S", bound="Signed")


class Signed(Message):
    """A message that only ever travels inside an envelope; ``LABEL`` is what its signature covers beside it."""

    LABEL: ClassVar[str] = ""


def sign_message(message: Signed, key: SigningKey) -> Envelope:
    """The message in an envelope under its own label."""
    return sign_envelope(message.LABEL, message.as_json(), key)


def open_signed(cls: type[S], envelope: Envelope, key: VerifyKey) -> S:
    """The message inside, once ``key`` is shown to have signed it as a ``cls``.

    Raises:
        IntegrityError: 5001 when the label is another's or no signature of ``key`` verifies.
        InputError: 2002, 2003, 2005 when the authenticated payload is not such a message.
    """
    value: Any = open_envelope(envelope, cls.LABEL, key, max_bytes=MAX_ENVELOPE_BYTES)
    return parse_message(cls, value, what=cls.LABEL, max_bytes=MAX_ENVELOPE_BYTES)


# ---- the log ---------------------------------------------------------------------------------------------------


class TreeHead(Signed):
    """The log at one size. Keep it: two heads of one key manager that are not consistent prove a fork."""

    LABEL = "cloister/keys/tree-head/v1"

    key_manager: KeyText
    size: int = Field(ge=1)
    root: Digest
    at: Timestamp


class LogReceipt(Message):
    """One entry, and the proof that the tree under ``head`` (a signed :class:`TreeHead`) holds it at ``index``."""

    index: int = Field(ge=0)
    entry: Entry
    head: Envelope
    proof: ProofSteps


class ConsistencyProof(Signed):
    """That the tree of size ``second`` extends the tree of size ``first`` (RFC 6962, 2.1.2)."""

    LABEL = "cloister/keys/consistency/v1"

    key_manager: KeyText
    first: int = Field(ge=1)
    second: int = Field(ge=1)
    proof: ProofSteps
    head: Envelope


class Refusal(Signed):
    """A refusal, as it was logged; without ``receipt`` it was no decision (a malformed request, an unknown page)."""

    LABEL = "cloister/keys/refusal/v1"

    key_manager: KeyText
    code: int = Field(ge=2000, le=9999)
    what: str = Field(max_length=2000)
    expected: str | None = Field(default=None, max_length=2000)
    got: str | None = Field(default=None, max_length=2000)
    hint: str | None = Field(default=None, max_length=2000)
    receipt: LogReceipt | None = None


class Acknowledged(Signed):
    """Done and committed: the entry in the receipt says what."""

    LABEL = "cloister/keys/acknowledged/v1"

    key_manager: KeyText
    manifest: Digest
    receipt: LogReceipt


# ---- the service's own evidence, and unlocking ---------------------------------------------------------------------


class EvidenceRequest(Message):
    """Asks the service to attest to ``nonce``."""

    nonce: Nonce


class UnlockProgress(Signed):
    """How many of the administrators' shares a locked service has, and how many it needs.

    Signed by the key in the evidence of this start.
    """

    LABEL = "cloister/keys/unlock-progress/v1"

    store: Digest
    threshold: int = Field(ge=1, le=255)
    received: int = Field(ge=0, le=255)


class ServiceEvidence(Signed):
    """The service's claims and evidence, signed by ``claims.sign``.

    That is the manifest's key, or, while ``locked``, a key of this start that signs nothing but its own evidence.
    """

    LABEL = "cloister/keys/evidence/v1"

    claims: SessionClaims
    evidence: Evidence
    locked: UnlockProgress | None = None


class AdministratorShare(Signed):
    """One administrator's share of the state key, as made at init.

    Sealed to that administrator's HPKE key, signed by the key manager. ``number`` is its place in Shamir's scheme.
    """

    LABEL = "cloister/keys/administrator-share/v1"

    key_manager: KeyText
    store: Digest
    number: int = Field(ge=1, le=255)
    administrator: Name
    threshold: int = Field(ge=1, le=255)
    sealed: Sealed


class UnlockRequest(Message):
    """A share for a locked service, sealed to the HPKE key in the evidence whose claims have this digest."""

    administrator: Name
    claims: Digest
    sealed: Sealed


# ---- agreement and keys --------------------------------------------------------------------------------------------


class KeyInstall(Signed):
    """An owner's key for one image under one manifest, with the owner's rule; signed by the owner."""

    LABEL = "cloister/key-install/v1"

    manifest: Digest
    image: Name
    sealed: Sealed
    rule: KeyRule


class Suspension(Signed):
    """A party's stop: nothing is released under the manifest any more. There is no way back but a new manifest."""

    LABEL = "cloister/suspension/v1"

    manifest: Digest
    party: Name
    reason: str = Field(max_length=500)
    at: Timestamp


class Revocation(Signed):
    """An owner's stop for one image."""

    LABEL = "cloister/revocation/v1"

    manifest: Digest
    image: Name
    at: Timestamp


# ---- runs, attempts, release ---------------------------------------------------------------------------------------


class RunRequest(Message):
    """Asks the registrar for a run."""

    manifest: Digest


class RunGrant(Signed):
    """A run, numbered by the registrar."""

    LABEL = "cloister/run-grant/v1"

    manifest: Digest
    run: RunId
    registrar: Name
    issued_at: Timestamp


class AttemptRequest(Message):
    """Asks the registrar for the next attempt of a stage, or the next start of a service."""

    run: Envelope
    consumer: Name


class AttemptGrant(Signed):
    """One attempt at a stage, or one start of a service."""

    LABEL = "cloister/attempt-grant/v1"

    manifest: Digest
    run: RunId
    consumer: Name
    attempt: Attempt
    issued_at: Timestamp


class ChallengeRequest(Message):
    """Asks for a nonce for the attempt."""

    grant: Envelope


class CollectChallengeRequest(Message):
    """Asks for a nonce for a party that collects an output."""

    manifest: Digest
    run: RunId
    output: Name
    party: Name


class Challenge(Signed):
    """A session: a nonce to attest to (or to sign), good once and until ``expires_at``."""

    LABEL = "cloister/keys/challenge/v1"

    key_manager: KeyText
    session: SessionId
    nonce: Nonce
    expires_at: Timestamp


class ReleaseRequest(Message):
    """The launcher's request: its claims, the evidence for them, and the attempt's grant."""

    session: SessionId
    claims: SessionClaims
    evidence: Evidence
    grant: Envelope


class KeyRelease(Signed):
    """The key manager's answer to an attested launcher.

    ``claims`` is the digest of the claims that were attested, so nobody else can hand this launcher a key. ``sealed``
    is HPKE to the attested key; ``hpke`` is where the launcher's share goes at registration.
    """

    LABEL = "cloister/key-release/v1"

    key_manager: KeyText
    claims: Digest
    manifest: Digest
    run: RunId
    consumer: Name
    attempt: Attempt
    session: SessionId
    hpke: KeyText
    sealed: Sealed
    receipt: LogReceipt


class ReleasedInput(Message):
    """This key manager's part of the key to an earlier stage's output, and the registered image id.

    ``grant`` is the digest of the producer's attempt grant: the salt of the key's derivation.
    """

    stage: Name
    attempt: Attempt
    grant: Digest
    image: Digest
    contribution: Annotated[B64, Field(min_length=32, max_length=32, repr=False)]
    share: Annotated[B64, Field(min_length=32, max_length=32, repr=False)]
    assurance: Assurance


class CheckpointRecord(Message):
    """Which checkpoint of a stage is the last: by its attempt, its number and the digest of its sealed bytes."""

    attempt: Attempt
    sequence: Sequence
    checkpoint: Digest


class ReleasedCheckpoint(Message):
    """This key manager's part of the key to a stage's checkpoints, and which one it knows as the last."""

    contribution: Annotated[B64, Field(min_length=32, max_length=32, repr=False)]
    last: CheckpointRecord | None = None


class ReleasedKeys(Message):
    """The plaintext of a release.

    Attributes:
        images: Key by image name, for those that this key manager holds.
        contribution: 32 fresh bytes for the attempt's outputs; stages only.
        inputs: By output name, for outputs of earlier stages to whose keys this key manager contributed.
        clients: Who may ask, as the manifest says; services only.
        checkpoint: For the stage's checkpoints; only where the manifest has terms for them.
    """

    images: dict[Name, Annotated[B64, Field(min_length=64, max_length=64)]] = Field(repr=False)
    contribution: Annotated[B64, Field(min_length=32, max_length=32)] | None = Field(default=None, repr=False)
    inputs: dict[Name, ReleasedInput]
    clients: tuple[Name, ...] | None = None
    checkpoint: ReleasedCheckpoint | None = None


class Checkpoint(Signed):
    """What the attempt saved; signed by the key that its evidence attested."""

    LABEL = "cloister/checkpoint/v1"

    manifest: Digest
    run: RunId
    stage: Name
    attempt: Attempt
    claims: Digest
    sequence: Sequence
    checkpoint: Digest


class CheckpointReceipt(Signed):
    """This checkpoint is the stage's last, until there is one of a larger number."""

    LABEL = "cloister/checkpoint-receipt/v1"

    key_manager: KeyText
    manifest: Digest
    run: RunId
    stage: Name
    attempt: Attempt
    sequence: Sequence
    checkpoint: Digest
    receipt: LogReceipt


class Registration(Signed):
    """What the attempt made; signed by the key that its evidence attested. Anybody may deliver it."""

    LABEL = "cloister/registration/v1"

    manifest: Digest
    run: RunId
    stage: Name
    attempt: Attempt
    claims: Digest
    outputs: dict[Name, Digest] = Field(min_length=1, max_length=64)
    shares: dict[Name, Sealed] = Field(min_length=1, max_length=64)
    receipt: Digest


class RegistrationRequest(Message):
    """Delivers a registration: bare to the registrar, elsewhere with the registrar's receipt."""

    registration: Envelope
    registrar: Envelope | None = None


class RegistrationReceipt(Signed):
    """The stage is done: this registration and no other."""

    LABEL = "cloister/registration-receipt/v1"

    key_manager: KeyText
    manifest: Digest
    run: RunId
    stage: Name
    attempt: Attempt
    registration: Digest
    outputs: dict[Name, Digest]
    receipt: LogReceipt


class CollectRequest(Signed):
    """A party's request for an output that the manifest releases to it; signed by the party over a fresh nonce."""

    LABEL = "cloister/collect/v1"

    manifest: Digest
    run: RunId
    output: Name
    party: Name
    session: SessionId
    nonce: Nonce


class Collected(Signed):
    """A :class:`ReleasedInput` sealed to the party's key in the manifest."""

    LABEL = "cloister/collected/v1"

    key_manager: KeyText
    manifest: Digest
    run: RunId
    output: Name
    party: Name
    session: SessionId
    sealed: Sealed
    receipt: LogReceipt
