"""The launcher's side: one attempt, from fresh keys to registration. Sans-IO; :func:`obtain` adds the asking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloister.attest import Attester, Evidence, SessionClaims
from cloister.errors import IntegrityError, RefusedError
from cloister.keys._binding import derive_checkpoint_key, derive_output_key, release_info, share_info
from cloister.keys._client import KeyManagerClient
from cloister.keys._entries import Assurance, CheckpointEntry, ReleaseEntry
from cloister.keys._messages import (
    AttemptGrant,
    Challenge,
    Checkpoint,
    CheckpointReceipt,
    CheckpointRecord,
    KeyRelease,
    LogReceipt,
    Registration,
    ReleasedCheckpoint,
    ReleasedInput,
    ReleasedKeys,
    ReleaseRequest,
    open_signed,
    sign_message,
)
from cloister.keys._plan import Agreement, Consumer
from cloister.keys._receipts import require_receipt
from cloister.manifest import Manifest, contributors_of
from cloister.wire import Envelope, OpeningKey, SealingKey, Secret, SigningKey, VerifyKey, parse_message

__all__ = ["Checkpoints", "Granted", "Obtained", "StageSession", "combine_checkpoints", "combine_parts", "obtain"]


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """What a stage's checkpoints are sealed with, and the last of them.

    Attributes:
        key: 32 bytes; the same for every attempt of the stage in its run.
        last: The last one that any key manager knows; None when none was saved.
    """

    key: Secret
    last: CheckpointRecord | None


@dataclass(frozen=True, slots=True)
class Granted:
    """What the key managers released, agreed upon by all of them.

    Attributes:
        images: Key by image name.
        inputs: Image id and key by output name, for outputs of earlier stages.
        receipts: Each key manager's log receipt.
        assurance: ``simulated`` when anything that flowed in was.
        clients: For a service: who may ask; empty means anyone.
        checkpoints: For a stage that may save them.
    """

    images: Mapping[str, Secret]
    inputs: Mapping[str, tuple[str, Secret]]
    receipts: Mapping[str, LogReceipt]
    assurance: Assurance
    clients: tuple[str, ...] = ()
    checkpoints: Checkpoints | None = None


class StageSession:
    """One attempt at a stage, or one start of a service, inside the enclave.

    Use it once: :meth:`claims`, attest to them, :meth:`request` a release of each key manager, :meth:`open` the
    answers, :meth:`output_key` for each output, :meth:`registration`.

    Args:
        manifest: The agreement, whose signatures the caller has checked.
        consumer: The stage or service.

    Raises:
        RefusedError: 3428 when the manifest has none of that name.
    """

    def __init__(self, manifest: Manifest, consumer: str) -> None:
        self.manifest = manifest
        registrar = Agreement.of(manifest, name=manifest.registrar)
        self._agreement, self._consumer = registrar, registrar.consumer(consumer)
        self._opening, self.sign = OpeningKey.generate(), SigningKey.generate()
        self._share = Secret.random(32)
        self._grant: AttemptGrant | None = None
        self._envelope: Envelope | None = None
        self._claims: SessionClaims | None = None
        self._challenges: dict[str, Challenge] = {}
        self._contributions: dict[str, Secret] = {}
        self._managers: dict[str, SealingKey] = {}

    @property
    def contributors(self) -> tuple[str, ...]:
        """The key managers to ask, sorted."""
        return self._consumer.contributors

    def claims(self, grant: Envelope, challenges: Mapping[str, Challenge]) -> SessionClaims:
        """What to attest to: every key manager's nonce, this session's keys, this attempt.

        Raises:
            IntegrityError: 5402 when the registrar did not sign the grant; 5407 when a challenge is missing.
            RefusedError: 3424 when the grant is of another manifest or consumer.
        """
        opened = self._agreement.open_attempt(grant)
        if opened.consumer != self._consumer.name:
            raise RefusedError(3424, expected=self._consumer.name, got=opened.consumer)
        if set(challenges) != set(self.contributors):
            raise IntegrityError(5407, expected=", ".join(self.contributors), got=", ".join(sorted(challenges)))
        claims = SessionClaims(
            purpose=self._consumer.purpose,
            nonces={name: challenges[name].nonce for name in self.contributors},
            hpke=str(self._opening.public),
            sign=str(self.sign.public),
            manifest=self.manifest.id,
            run=opened.run,
            stage=opened.consumer,
            attempt=opened.attempt,
        )
        self._grant, self._envelope, self._claims, self._challenges = opened, grant, claims, dict(challenges)
        return claims

    def request(self, name: str, evidence: Evidence) -> ReleaseRequest:
        """The release request for one key manager."""
        _, envelope, claims = self._ready()
        session = self._challenges[name].session
        return ReleaseRequest(session=session, claims=claims, evidence=evidence, grant=envelope)

    def open(self, releases: Mapping[str, Envelope]) -> Granted:
        """The keys, once the answers are shown to be genuine.

        Each must be its key manager's own, about this very session, logged, and in agreement with the others.

        Raises:
            IntegrityError: 5001 not signed by the key manager; 5407 about something else; 5411 its receipt is;
                5003 its receipt does not hold; 5002 not sealed to this session; 5409 other keys than the manifest's;
                5408 the key managers disagree.
        """
        if set(releases) != set(self.contributors):
            raise IntegrityError(5407, expected=", ".join(self.contributors), got=", ".join(sorted(releases)))
        images, parts = dict[str, Secret](), dict[str, dict[str, ReleasedInput]]()
        receipts, tainted, clients = dict[str, LogReceipt](), False, tuple[str, ...]()
        saved = dict[str, ReleasedCheckpoint]()
        for name in self.contributors:
            release, entry = self._authentic(name, releases[name])
            keys = self._unsealed(name, release)
            images |= {image: Secret(key) for image, key in keys.images.items()}
            for output, part in keys.inputs.items():
                parts.setdefault(output, {})[name] = part
            if keys.contribution is not None:
                self._contributions[name] = Secret(keys.contribution)
            if keys.checkpoint is not None:
                saved[name] = keys.checkpoint
            self._managers[name] = SealingKey.parse(release.hpke)
            receipts[name], clients = release.receipt, keys.clients or ()
            tainted |= entry.assurance == "simulated"
        grant, _, _ = self._ready()
        inputs = {
            output: combine_parts(self.manifest, run=grant.run, output=output, parts=parts.get(output, {}))
            for output in self._consumer.inputs
        }
        checkpoints = None
        if saved:
            checkpoints = combine_checkpoints(self.manifest, run=grant.run, stage=grant.consumer, parts=saved)
        return Granted(images, inputs, receipts, "simulated" if tainted else "hardware", clients, checkpoints)

    def output_key(self, output: str) -> Secret:
        """The 64-byte key that this attempt, and no other, seals ``output`` with.

        Raises:
            RefusedError: 3432 when the stage has no such output.
        """
        grant, _, _ = self._ready()
        if output not in self._consumer.outputs:
            raise RefusedError(3432, f"stage {self._consumer.name!r} has no output {output!r}")
        return derive_output_key(
            self._contributions,
            share=self._share,
            grant=grant.digest(),
            manifest=grant.manifest,
            run=grant.run,
            stage=grant.consumer,
            attempt=grant.attempt,
            output=output,
        )

    def registration(self, *, outputs: Mapping[str, str], receipt_digest: str) -> Envelope:
        """What the attempt made, signed by the attested key, with the launcher's share for every contributor."""
        grant, _, claims = self._ready()
        place = {"manifest": grant.manifest, "run": grant.run, "stage": grant.consumer}
        shares = {
            name: key.seal(self._share.reveal(), info=share_info(**place, attempt=grant.attempt, key_manager=name))
            for name, key in self._managers.items()
        }
        registration = Registration(
            manifest=grant.manifest,
            run=grant.run,
            stage=grant.consumer,
            attempt=grant.attempt,
            claims=claims.digest(),
            outputs=dict(outputs),
            shares=shares,
            receipt=receipt_digest,
        )
        return sign_message(registration, self.sign)

    def checkpoint(self, *, sequence: int, checkpoint: str) -> Envelope:
        """That the attempt saved its state as number ``sequence``, in sealed bytes of this digest."""
        grant, _, claims = self._ready()
        saved = Checkpoint(
            manifest=grant.manifest,
            run=grant.run,
            stage=grant.consumer,
            attempt=grant.attempt,
            claims=claims.digest(),
            sequence=sequence,
            checkpoint=checkpoint,
        )
        return sign_message(saved, self.sign)

    def require_saved(self, receipt: CheckpointReceipt, *, sequence: int, checkpoint: str) -> None:
        """Returns when an authentic receipt is for this very checkpoint.

        Raises:
            IntegrityError: 5407 when it is for another; 5411 when its log entry is.
        """
        grant, _, _ = self._ready()
        wanted = (grant.manifest, grant.run, grant.consumer, grant.attempt, sequence, checkpoint)
        said: Any
        for said, code in ((receipt, 5407), (receipt.receipt.entry, 5411)):
            fits = isinstance(said, CheckpointReceipt | CheckpointEntry)
            if not fits or wanted != (
                said.manifest, said.run, said.stage, said.attempt, said.sequence, said.checkpoint,
            ):  # fmt: skip
                raise IntegrityError(code, "the receipt is for another checkpoint", expected=sequence)

    def _ready(self) -> tuple[AttemptGrant, Envelope, SessionClaims]:
        if self._grant is None or self._envelope is None or self._claims is None:
            raise RuntimeError("claims() comes first")
        return self._grant, self._envelope, self._claims

    def _authentic(self, name: str, envelope: Envelope) -> tuple[KeyRelease, ReleaseEntry]:
        grant, _, claims = self._ready()
        key = VerifyKey.parse(self.manifest.key_managers[name].sign)
        release = open_signed(KeyRelease, envelope, key)
        said = (release.manifest, release.run, release.consumer, release.attempt, release.session, release.claims)
        wanted = (
            grant.manifest,
            grant.run,
            grant.consumer,
            grant.attempt,
            self._challenges[name].session,
            claims.digest(),
        )
        if said != wanted or release.key_manager != str(key):
            raise IntegrityError(5407, f"the answer of {name!r} is about something else")
        require_receipt(release.receipt, key)
        entry: Any = release.receipt.entry
        if not isinstance(entry, ReleaseEntry) or (
            entry.manifest, entry.run, entry.consumer, entry.attempt, entry.session, entry.claims, entry.grant,
        ) != (*wanted, grant.digest()):  # fmt: skip
            raise IntegrityError(5411, f"the receipt of {name!r} is about something else", got=entry.kind)
        return release, entry

    def _unsealed(self, name: str, release: KeyRelease) -> ReleasedKeys:
        info = release_info(
            manifest=release.manifest,
            run=release.run,
            stage=release.consumer,
            attempt=release.attempt,
            session=release.session,
        )
        plaintext = self._opening.open(release.sealed, info=info)
        keys = parse_message(ReleasedKeys, plaintext, what="released keys", secret=True)
        mine: Consumer = Agreement.of(self.manifest, name=name).consumer(self._consumer.name)
        parts = {out for out, stage in mine.inputs.items() if name in contributors_of(self.manifest, stage)}
        whole = (keys.contribution is None) == mine.is_service
        saves = self._agreement.saves(self._consumer.name)
        whole = whole and (keys.checkpoint is not None) == saves
        if set(keys.images) != set(mine.images) or set(keys.inputs) != parts or not whole:
            expected, got = sorted({*mine.images, *parts}), sorted({*keys.images, *keys.inputs})
            raise IntegrityError(5409, f"by {name!r}", expected=", ".join(expected), got=", ".join(got))
        return keys


def combine_parts(
    manifest: Manifest, *, run: str, output: str, parts: Mapping[str, ReleasedInput]
) -> tuple[str, Secret]:
    """Image id and key of a registered output, from every contributor's part.

    Raises:
        IntegrityError: 5409 when a contributor's part is missing; 5408 when they disagree.
    """
    stage = next((name for name, each in manifest.stages.items() if output in each.outputs), "")
    expected = set(contributors_of(manifest, stage)) if stage else set[str]()
    if not expected or set(parts) != expected:
        raise IntegrityError(
            5409, f"parts of {output!r}", expected=", ".join(sorted(expected)), got=", ".join(sorted(parts))
        )
    first = next(iter(parts.values()))
    for name, part in parts.items():
        same = (part.stage, part.attempt, part.grant, part.image) == (stage, first.attempt, first.grant, first.image)
        if not same or not Secret(part.share).matches(Secret(first.share)):
            raise IntegrityError(
                5408, f"{name!r} names another attempt, image or share for {output!r}", expected=first.image
            )
    key = derive_output_key(
        {name: Secret(part.contribution) for name, part in parts.items()},
        share=Secret(first.share),
        grant=first.grant,
        manifest=manifest.id,
        run=run,
        stage=stage,
        attempt=first.attempt,
        output=output,
    )
    return first.image, key


def combine_checkpoints(
    manifest: Manifest, *, run: str, stage: str, parts: Mapping[str, ReleasedCheckpoint]
) -> Checkpoints:
    """The key of a stage's checkpoints and the last of them, from every contributor's part.

    An attempt that was killed while it told the key managers of a checkpoint leaves them at different numbers; the
    largest is the last, so nothing goes back below what any honest one of them knows. Where all are honest a larger
    number is never of an older attempt: that one could have written only before its successor got keys there.

    Raises:
        IntegrityError: 5409 when a contributor's part is missing; 5408 when two know one number for two checkpoints,
            or a larger number is an older attempt's.
    """
    expected = contributors_of(manifest, stage)
    if tuple(sorted(parts)) != expected:
        raise IntegrityError(
            5409, f"checkpoints of {stage!r}", expected=", ".join(expected), got=", ".join(sorted(parts))
        )
    known = {name: part.last for name, part in parts.items() if part.last is not None}
    last = max(known.values(), key=lambda each: each.sequence, default=None)
    for name, each in known.items():
        if last is not None and (each.attempt > last.attempt or (each.sequence == last.sequence and each != last)):
            raise IntegrityError(
                5408,
                f"{name!r} knows another last checkpoint of {stage!r}",
                expected=f"number {last.sequence} of attempt {last.attempt}",
                got=f"number {each.sequence} of attempt {each.attempt}",
            )
    contributions = {name: Secret(part.contribution) for name, part in parts.items()}
    return Checkpoints(derive_checkpoint_key(contributions, manifest=manifest.id, run=run, stage=stage), last)


@dataclass(frozen=True, slots=True)
class Obtained:
    """A session with its keys, and what was said to get them.

    Attributes:
        session: For output keys and the registration.
        claims: What was attested to.
        evidence: The evidence over them.
        releases: Each key manager's signed answer.
        granted: The keys.
    """

    session: StageSession
    claims: SessionClaims
    evidence: Evidence
    releases: Mapping[str, Envelope]
    granted: Granted


def obtain(
    session: StageSession, grant: Envelope, *, clients: Mapping[str, KeyManagerClient], attester: Attester
) -> Obtained:
    """Challenge, attest, release: against every contributor.

    Raises:
        CloisterError: a key manager's refusal under its own code; 6xxx when one does not answer; 54xx as
            :meth:`StageSession.open`.
    """
    challenges = {name: clients[name].challenge(grant) for name in session.contributors}
    claims = session.claims(grant, challenges)
    evidence = attester.attest(claims.report_data())
    releases = {name: clients[name].release(session.request(name, evidence)) for name in session.contributors}
    return Obtained(session, claims, evidence, releases, session.open(releases))
