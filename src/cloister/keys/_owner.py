"""A party's side: verify the service before trusting it with anything, keep its tree heads, install, stop, collect."""

from __future__ import annotations

import secrets as secretlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cloister.attest import Verdict, check_session
from cloister.errors import AttestationError, IntegrityError, RefusedError
from cloister.keys._binding import collect_info, install_info
from cloister.keys._claimant import combine_parts
from cloister.keys._client import KeyManagerClient
from cloister.keys._entries import Assurance, CollectEntry, KeyEntry, KeyRule
from cloister.keys._messages import (
    Acknowledged,
    CollectChallengeRequest,
    CollectRequest,
    KeyInstall,
    ReleasedInput,
    Revocation,
    ServiceEvidence,
    Suspension,
    TreeHead,
    open_signed,
    sign_message,
)
from cloister.keys._plan import Agreement
from cloister.keys._receipts import open_head, require_extends
from cloister.keys._service import NONCE_NAME
from cloister.keys._tee import appraise_tee, require_tee
from cloister.keys._time import stamp
from cloister.manifest import Manifest, contributors_of, producer_of
from cloister.party import Identity
from cloister.wire import (
    Envelope,
    OpeningKey,
    SealingKey,
    Secret,
    VerifyKey,
    digest,
    parse_message,
    read_bounded,
    write_atomic,
)

__all__ = [
    "CollectedOutput",
    "KeptHeads",
    "VerifiedService",
    "collect_output",
    "install_key",
    "revoke_image",
    "suspend_manifest",
    "verify_service",
]


@dataclass(frozen=True, slots=True)
class VerifiedService:
    """A key manager whose evidence was verified against the manifest.

    Attributes:
        name: In the manifest.
        hpke: Where to seal to; only the attested enclave opens it.
        verdict: On its evidence.
        evidence: The signed evidence, to keep.
    """

    name: str
    hpke: SealingKey
    verdict: Verdict
    evidence: Envelope


def verify_service(
    client: KeyManagerClient, manifest: Manifest, name: str, *, at: datetime, allow_simulated: bool = False
) -> VerifiedService:
    """Asks the service for evidence over a fresh nonce and verifies it against the manifest's TEE for this key manager.

    Raises:
        AttestationError: the evidence is not that of the enclave that the manifest names (41xx, 44xx); 4408 another
            key manager answers.
        RefusedError: 3435 SIMULATED without ``allow_simulated``; 3405 the manifest has no such key manager.
        IntegrityError: 5001, 5407 the answer is not the key manager's.
    """
    manager = manifest.key_managers.get(name)
    if manager is None:
        raise RefusedError(3405, f"the manifest has no key manager {name!r}")
    nonce = secretlib.token_bytes(32)
    key = VerifyKey.parse(manager.sign)
    if client.key != key:
        raise AttestationError(4408, expected=str(key), got=str(client.key))
    try:
        envelope = client.evidence(nonce)
    except IntegrityError as error:
        raise AttestationError(4408, f"another key manager answers: {error.what}", expected=str(key)) from None
    said = open_signed(ServiceEvidence, envelope, key)
    if said.claims.sign != str(key):
        raise AttestationError(4408, expected=str(key), got=said.claims.sign)
    tee = manifest.tees[manager.tee]
    verdict = appraise_tee(tee, said.evidence, at=at)
    require_tee(tee, said.evidence, verdict)
    check_session(verdict, said.claims, purpose="key-manager", nonce_name=NONCE_NAME, nonce=nonce)
    if verdict.simulated and not allow_simulated:
        raise RefusedError(3435)
    return VerifiedService(name, SealingKey.parse(said.claims.hpke), verdict, envelope)


def install_key(
    client: KeyManagerClient,
    service: VerifiedService,
    *,
    manifest: Manifest,
    image: str,
    key: Secret,
    rule: KeyRule,
    identity: Identity,
) -> Acknowledged:
    """Gives a verified key manager an image's key, under the owner's rule.

    Security: the manifest must be one that this very identity owns the image in, and so has signed: anybody can make
    a document in which strangers' keys stand under the owner's name and an enclave of theirs under the key manager's.

    Raises:
        RefusedError: 3438 when the manifest gives the image to another party, or this party other keys.
        IntegrityError: 5411 when the receipt does not show exactly this installation.
        CloisterError: the key manager's refusal under its own code.
    """
    owner = manifest.images[image].owner if image in manifest.images else ""
    party = manifest.parties.get(owner)
    if owner != identity.name or party is None or not identity.public.same_keys(sign=party.sign, hpke=party.hpke):
        raise RefusedError(3438, expected=f"'{identity.name}' with {identity.signing_key.public}", got=owner)
    info = install_info(manifest=manifest.id, image=image, owner=identity.name)
    sealed = service.hpke.seal(key.reveal(), info=info)
    install = sign_message(
        KeyInstall(manifest=manifest.id, image=image, sealed=sealed, rule=rule), identity.signing_key
    )
    said = client.install_key(install, manifest=manifest.id)
    entry = said.receipt.entry
    if not isinstance(entry, KeyEntry) or (entry.image, entry.rule) != (image, rule):
        raise IntegrityError(5411, "the receipt shows no installation of this key", got=entry.kind)
    return said


def suspend_manifest(
    client: KeyManagerClient, *, manifest: Manifest, identity: Identity, reason: str, at: datetime
) -> Acknowledged:
    """Stops the manifest at one key manager, for good."""
    stop = Suspension(manifest=manifest.id, party=identity.name, reason=reason, at=stamp(at))
    return client.suspend(sign_message(stop, identity.signing_key), manifest=manifest.id)


def revoke_image(
    client: KeyManagerClient, *, manifest: Manifest, image: str, identity: Identity, at: datetime
) -> Acknowledged:
    """Withdraws an image's key."""
    stop = Revocation(manifest=manifest.id, image=image, at=stamp(at))
    return client.revoke(sign_message(stop, identity.signing_key), manifest=manifest.id)


class KeptHeads:
    """The newest tree head of each key manager, in files of a folder: what makes a rollback show.

    Args:
        folder: Made on first use.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def kept(self, key: VerifyKey) -> TreeHead | None:
        """The head kept of this key manager, or None: then nothing is known about rollback.

        Raises:
            IntegrityError: 5001 when the file holds no head of its.
        """
        path = self._path(key)
        if not path.exists():
            return None
        data = read_bounded(path, max_bytes=1 << 16, what="kept tree head")
        return open_head(parse_message(Envelope, data, what="kept tree head"), key)

    def check(self, client: KeyManagerClient) -> tuple[Envelope, Envelope | None]:
        """The newest head and, when one was kept, the proof that it extends that; the newest is kept from here on.

        Raises:
            IntegrityError: 5406 when the log was rolled back or forked since; the kept head stays.
        """
        kept = self.kept(client.key)
        proof: Envelope | None = None
        if kept is None:
            head = client.head()
        else:
            from cloister.keys._messages import ConsistencyProof

            proof = client.consistency(kept)
            said = open_signed(ConsistencyProof, proof, client.key)
            require_extends(kept=kept, proof=said, key=client.key)
            head = said.head
        self.keep(head, client.key)
        return head, proof

    def keep(self, head: Envelope, key: VerifyKey) -> None:
        """Keeps a head that was verified, unless a larger one is kept.

        Raises:
            IntegrityError: 5406 when two heads of one size differ.
        """
        new, kept = open_head(head, key), self.kept(key)
        if kept is not None and kept.size == new.size and kept.root != new.root:
            raise IntegrityError(5406, expected=kept.root, got=new.root)
        if kept is None or kept.size < new.size:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path(key), head.canonical())

    def _path(self, key: VerifyKey) -> Path:
        return self.folder / f"{key.id}.json"


@dataclass(frozen=True, slots=True)
class CollectedOutput:
    """An output that was released to a party.

    Attributes:
        image: Its image id, as registered by the attested key.
        key: Opens it.
        assurance: What the evidence behind it rests on.
    """

    image: str
    key: Secret
    assurance: Assurance


def collect_output(
    manifest: Manifest,
    output: str,
    *,
    run: str,
    identity: Identity,
    clients: Mapping[str, KeyManagerClient],
) -> CollectedOutput:
    """Collects every contributor's part of an output and combines them.

    Raises:
        RefusedError: 3418 when no stage makes it, or the manifest does not release it to this party.
        IntegrityError: 5407, 5411 an answer is about something else; 5408 the key managers disagree.
    """
    stage = producer_of(manifest, output)
    Agreement.of(manifest, name=manifest.registrar).term(output, kind="party", name=identity.name)
    if stage is None:
        raise RefusedError(3418, f"no stage makes {output!r}")
    parts = {
        name: _collect_part(clients[name], manifest, output, run=run, identity=identity)
        for name in contributors_of(manifest, stage)
    }
    image, key = combine_parts(manifest, run=run, output=output, parts=parts)
    simulated = any(part.assurance == "simulated" for part in parts.values())
    return CollectedOutput(image, key, "simulated" if simulated else "hardware")


def _collect_part(
    client: KeyManagerClient, manifest: Manifest, output: str, *, run: str, identity: Identity
) -> ReleasedInput:
    asked = CollectChallengeRequest(manifest=manifest.id, run=run, output=output, party=identity.name)
    challenge = client.collect_challenge(asked)
    request = sign_message(
        CollectRequest(
            manifest=manifest.id,
            run=run,
            output=output,
            party=identity.name,
            session=challenge.session,
            nonce=challenge.nonce,
        ),
        identity.signing_key,
    )
    said = client.collect(request)
    if (said.manifest, said.run, said.output, said.session) != (manifest.id, run, output, challenge.session):
        raise IntegrityError(5407)
    entry = said.receipt.entry
    if not isinstance(entry, CollectEntry) or entry.statement != digest(request.payload):
        raise IntegrityError(5411, got=entry.kind)
    opening: OpeningKey = identity.opening_key
    info = collect_info(manifest=manifest.id, run=run, output=output, party=identity.name, session=challenge.session)
    part = parse_message(ReleasedInput, opening.open(said.sealed, info=info), what="collected part", secret=True)
    if part.image != entry.image:
        raise IntegrityError(5411, "the receipt names another image", expected=part.image, got=entry.image)
    return part
