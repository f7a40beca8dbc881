"""Each attempt in the bundle: its grant, its evidence, the releases to it, its registration and its receipt."""

from __future__ import annotations

from cloister.audit._case import Attested, Case
from cloister.audit._check import Ran
from cloister.errors import IntegrityError
from cloister.keys import (
    AttemptGrant,
    KeyRelease,
    Registration,
    RegistrationEntry,
    RegistrationReceipt,
    ReleaseEntry,
    open_signed,
)
from cloister.manifest import contributors_of
from cloister.receipt import AttemptRecord, StageFacts, verify_receipt
from cloister.wire import VerifyKey, digest

__all__ = ["Findings", "check_attempts"]


class Findings:
    """What the attempts showed.

    Attributes:
        attested: By consumer and attempt, where the evidence was accepted.
        ended: The facts of each receipt that was accepted, by stage and attempt.
        known: Consumer and attempt of every record in the bundle.
    """

    def __init__(self) -> None:
        self.attested: dict[tuple[str, int], Attested] = {}
        self.ended: dict[tuple[str, int], StageFacts] = {}
        self.known: set[tuple[str, int]] = set()


def check_attempts(case: Case) -> Findings:
    """Checks every record; a stage that ended needs all of its parts, a failed attempt only those it has."""
    found = Findings()
    for record in case.bundle.attempts:
        place, subject = (record.consumer, record.attempt), f"{record.consumer} attempt {record.attempt}"
        with case.report.checking("attempt", subject, "granted by the registrar, and logged"):
            if place in found.known:
                raise IntegrityError(5369, f"the bundle lists {subject} twice")
            _granted(case, record)
        if place in found.known or record.consumer not in {*case.manifest.stages, *case.manifest.services}:
            continue  # refused above
        found.known.add(place)
        if record.claims is None or record.evidence is None:
            _unattested(case, record, subject)
            continue
        with case.report.checking(
            "attempt", subject, "evidence: root, patch level, measurement, debug, binding"
        ) as notes:
            found.attested[place] = _evidence(case, record)
            verdict = found.attested[place].verdict
            notes.append(f"{verdict.assurance}, TCB {verdict.value('tee.tcb.status')}")
        _releases(case, record, subject)
        if record.registration is not None:
            _registration(case, record, subject)
            _receipt(case, record, subject, found)
    return found


def _granted(case: Case, record: AttemptRecord) -> None:
    if record.consumer not in {*case.manifest.stages, *case.manifest.services}:
        raise IntegrityError(5361, f"the manifest has no stage or service '{record.consumer}'")
    grant = open_signed(AttemptGrant, record.grant, case.key(case.manifest.registrar))
    wanted = (case.id, case.run, record.consumer, record.attempt)
    got = (grant.manifest, grant.run, grant.consumer, grant.attempt)
    if got != wanted:
        raise IntegrityError(5361, "the grant is for something else", expected=wanted, got=got)
    if (record.consumer, record.attempt) not in case.granted:
        raise IntegrityError(5363, "the registrar's log holds no such attempt")


def _unattested(case: Case, record: AttemptRecord, subject: str) -> None:
    if record.registration is not None or record.receipt is not None:
        with case.report.checking("attempt", subject, "attested"):
            raise IntegrityError(5361, "outputs without the evidence of whoever made them")
    said = "an interruption" if record.code is None else f"code {record.code}"
    case.report.unknown("attempt", subject, "attested", f"by the host's word it ended before that, with {said}")


def _evidence(case: Case, record: AttemptRecord) -> Attested:
    if record.claims is None or record.evidence is None:
        raise IntegrityError(5361, "no evidence")
    service = case.manifest.services.get(record.consumer)
    tee = case.manifest.stages[record.consumer].tee if service is None else service.tee
    verdict = case.appraise(tee, record.evidence, record.collateral)
    case.require_session(
        verdict,
        record.claims,
        "stage" if service is None else "service",
        manifest=case.id,
        run=case.run,
        stage=record.consumer,
        attempt=record.attempt,
    )
    contributors = contributors_of(case.manifest, record.consumer)
    if tuple(sorted(record.claims.nonces)) != contributors:
        raise IntegrityError(
            5361, "the evidence answers other key managers", expected=contributors, got=sorted(record.claims.nonces)
        )
    return Attested(record.claims, verdict)


def _releases(case: Case, record: AttemptRecord, subject: str) -> None:
    """Each contributor's answer is for these very claims, and in its log; nobody else answered."""
    contributors = contributors_of(case.manifest, record.consumer)
    for name in sorted({*contributors, *record.releases}):
        what = f"'{name}' released keys to the attested key, and logged it"
        if name not in record.releases:
            # Without every contributor there are no keys, so an attempt that ended, or a service, had all of them.
            needed = record.registration is not None or record.consumer in case.manifest.services
            case.report.unknown("attempt", subject, what, "no such release in the bundle", required=needed)
            continue
        with case.report.checking("attempt", subject, what) as notes:
            if name not in contributors:
                raise IntegrityError(5361, f"'{name}' contributes nothing to '{record.consumer}'")
            entry, index = _released(case, record, name)
            notes.append(f"entry {index}: {', '.join((*entry.images, *entry.inputs)) or 'its contribution only'}")


def _released(case: Case, record: AttemptRecord, name: str) -> tuple[ReleaseEntry, int]:
    if record.claims is None or record.evidence is None:
        raise IntegrityError(5361, "a release without evidence")
    key = case.key(name)
    release = open_signed(KeyRelease, record.releases[name], key)
    wanted = (str(key), record.claims.digest(), case.id, case.run, record.consumer, record.attempt)
    got = (release.key_manager, release.claims, release.manifest, release.run, release.consumer, release.attempt)
    if got != wanted:
        raise IntegrityError(5361, "the release is for something else", expected=wanted, got=got)
    entry = case.log(name).require(release.receipt)
    if not isinstance(entry, ReleaseEntry):
        raise IntegrityError(5363, "the log's entry is no release", got=getattr(entry, "kind", None))
    logged = (entry.run, entry.consumer, entry.attempt, entry.session, entry.claims, entry.sign)
    if logged != (case.run, record.consumer, record.attempt, release.session, release.claims, record.claims.sign):
        raise IntegrityError(5363, "the log's entry is about another release", got=logged)
    grant = digest(record.grant.payload)
    if entry.grant != grant:
        raise IntegrityError(5363, "the key manager saw another grant", expected=entry.grant, got=grant)
    if entry.evidence != record.evidence.quote_digest():
        got_evidence = record.evidence.quote_digest()
        raise IntegrityError(5363, "the key manager saw other evidence", expected=entry.evidence, got=got_evidence)
    return entry, release.receipt.index


def _registration(case: Case, record: AttemptRecord, subject: str) -> None:
    """The outputs were registered by the attested key, alike at every contributor and in every log."""
    with case.report.checking("attempt", subject, "outputs registered by the attested key, once, everywhere"):
        registration = _opened(case, record)
        contributors = contributors_of(case.manifest, record.consumer)
        if tuple(sorted(record.registered)) != contributors:
            raise IntegrityError(
                5363,
                "not every contributor registered it, or somebody else did",
                expected=contributors,
                got=sorted(record.registered),
            )
        for name in contributors:
            _registered(case, record, registration, name)


def _opened(case: Case, record: AttemptRecord) -> Registration:
    """The registration, once the attested key is shown to have signed it about this attempt."""
    if record.claims is None or record.registration is None:
        raise IntegrityError(5361, "a registration without evidence")
    registration = open_signed(Registration, record.registration, VerifyKey.parse(record.claims.sign))
    wanted = (case.id, case.run, record.consumer, record.attempt, record.claims.digest())
    got = (
        registration.manifest,
        registration.run,
        registration.stage,
        registration.attempt,
        registration.claims,
    )
    if got != wanted:
        raise IntegrityError(5361, "the registration is of something else", expected=wanted, got=got)
    return registration


def _registered(case: Case, record: AttemptRecord, registration: Registration, name: str) -> None:
    said = open_signed(RegistrationReceipt, record.registered[name], case.key(name))
    marks = "" if record.registration is None else digest(record.registration.payload)
    wanted = (case.id, case.run, record.consumer, record.attempt, marks, registration.outputs)
    got = (said.manifest, said.run, said.stage, said.attempt, said.registration, said.outputs)
    if got != wanted:
        raise IntegrityError(5361, f"'{name}' registered something else", expected=wanted, got=got)
    entry = case.log(name).require(said.receipt)
    if not isinstance(entry, RegistrationEntry):
        raise IntegrityError(5363, "the log's entry is no registration", got=getattr(entry, "kind", None))
    logged = (entry.manifest, entry.run, entry.stage, entry.attempt, entry.registration, entry.outputs)
    if logged != wanted or entry.receipt != registration.receipt:
        raise IntegrityError(5363, f"the log of '{name}' shows another registration", expected=wanted, got=logged)


def _receipt(case: Case, record: AttemptRecord, subject: str, found: Findings) -> None:
    """The receipt is the registered one, and says what everything else says."""
    what = "receipt: inputs, outputs, sandbox, offloading, as the manifest says"
    with case.report.checking("attempt", subject, what) as notes:
        if record.receipt is None or record.claims is None or record.evidence is None:
            raise IntegrityError(5364, "the registered receipt is not in the bundle")
        registration = _opened(case, record)
        if digest(record.receipt.payload) != registration.receipt:
            raise IntegrityError(
                5364,
                "the receipt is not the one that was registered",
                expected=registration.receipt,
                got=digest(record.receipt.payload),
            )
        facts = verify_receipt(record.receipt, key=VerifyKey.parse(record.claims.sign), manifest=case.manifest)
        if (facts.run, facts.stage, facts.attempt) != (case.run, record.consumer, record.attempt):
            raise IntegrityError(5364, "the receipt is of another attempt")
        if (facts.claims, facts.evidence) != (record.claims.digest(), record.evidence.quote_digest()):
            raise IntegrityError(5364, "the receipt names other claims or other evidence")
        if {name: output.image for name, output in facts.outputs.items()} != registration.outputs:
            raise IntegrityError(5364, "the receipt names other outputs than the registration")
        attested = found.attested.get((record.consumer, record.attempt))
        if attested is not None and attested.verdict.simulated and facts.assurance != "simulated":
            raise IntegrityError(5364, "the receipt says hardware, its evidence says SIMULATED")
        notes.append(f"{len(facts.inputs)} inputs, {len(facts.outputs)} outputs, {facts.sandbox}")
        case.report.simulated |= facts.assurance == "simulated"
        if facts.sandbox == "UNSANDBOXED":
            case.report.unsandboxed.append(record.consumer)
        size = sum(output.size_bytes for output in facts.outputs.values())
        left = facts.offload
        outside = {} if left is None else {"mode": left.mode, "workers": left.workers, "products": left.products}
        row = Ran(facts.stage, facts.attempt, facts.started_at, facts.ended_at, size, facts.sandbox, **outside)
        case.report.ran.append(row)
        found.ended[record.consumer, record.attempt] = facts
