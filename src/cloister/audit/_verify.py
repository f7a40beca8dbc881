"""The audit: recomputes everything from the bundle's signed parts, offline, as of a stated time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cloister.attest import Evidence, Verdict, check_session
from cloister.audit._check import AuditReport
from cloister.audit._log import KeyManagerLog, read_logs
from cloister.errors import IntegrityError
from cloister.keys import (
    AttemptGrant,
    CollectEntry,
    KeyRelease,
    RefusalEntry,
    Registration,
    RegistrationEntry,
    RegistrationReceipt,
    ReleaseEntry,
    RunEntry,
    RunGrant,
    ServiceEvidence,
    SuspensionEntry,
    appraise_tee,
    open_signed,
    require_tee,
)
from cloister.manifest import (
    Manifest,
    consumers_of,
    contributors_of,
    producer_of,
    require_signed,
)
from cloister.party import PublicIdentity
from cloister.receipt import AttemptRecord, Bundle, StageFacts, verify_receipt
from cloister.serve import RECEIPT_LABEL, InferenceReceipt
from cloister.wire import Envelope, VerifyKey, digest, open_envelope, parse_message

__all__ = ["verify"]


@dataclass(frozen=True, slots=True)
class _Audit:
    """What the steps share."""

    bundle: Bundle
    manifest: Manifest
    at: datetime
    report: AuditReport
    logs: Mapping[str, KeyManagerLog]

    def key(self, key_manager: str) -> VerifyKey:
        if key_manager not in self.manifest.key_managers:
            raise IntegrityError(5361, f"the manifest names no key manager '{key_manager}'")
        return VerifyKey.parse(self.manifest.key_managers[key_manager].sign)

    def registrar(self) -> VerifyKey:
        return self.key(self.manifest.registrar)

    def entries(self, kind: type[Any]) -> list[tuple[str, Any]]:
        return [(name, entry) for name, log in self.logs.items() for entry in log.entries if isinstance(entry, kind)]

    def appraise(self, tee: str, evidence: Evidence, collateral: str | None) -> Verdict:
        """The verdict on evidence whose collateral lies in the bundle's table."""
        whole = evidence.model_copy(update={"collateral": self.bundle.collaterals.get(collateral or "")})
        verdict = appraise_tee(self.manifest.tees[tee], whole, at=self.at)
        require_tee(self.manifest.tees[tee], whole, verdict)
        self.report.simulated |= verdict.simulated
        return verdict


def verify(
    bundle: Bundle,
    *,
    at: datetime,
    pins: Mapping[str, PublicIdentity] | None = None,
    heads: Sequence[Envelope] = (),
) -> AuditReport:
    """Audits a run. Pure: no file, no network, no clock.

    Args:
        bundle: As the runner gathered it; nothing about it is trusted.
        at: The moment that evidence, certificates and collateral are judged by.
        pins: Identities whose fingerprints the auditor has heard; None leaves the parties' keys ``unknown``.
        heads: Signed tree heads that the auditor got from the key managers, not from the runner.

    Returns:
        The report; ``require()`` raises unless the run is accepted.
    """
    manifest = bundle.signed.manifest
    report = AuditReport(manifest.id, "", at)
    _manifest(bundle, report, pins)
    audit = _Audit(bundle, manifest, at, report, read_logs(bundle, report, heads))
    _key_managers(audit)
    if not _run(audit):
        return report
    facts = {record_key: found for record_key, found in _attempts(audit)}
    _stages(audit, facts)
    _releases(audit, facts)
    _inference(audit)
    _not_proven(audit)
    return report


def _manifest(bundle: Bundle, report: AuditReport, pins: Mapping[str, PublicIdentity] | None) -> None:
    """(1) Everybody whose data is read has signed, with keys that the auditor knows."""
    manifest = bundle.signed.manifest
    with report.checking("manifest", manifest.name, "signed by every owner of the data it reads") as notes:
        require_signed(bundle.signed)
        notes.append(", ".join(sorted(bundle.signed.signatures)))
    for name, party in sorted(manifest.parties.items()):
        what = "its keys are the ones that were read out"
        if pins is None or name not in pins:
            report.unknown("party", name, what, "not pinned here: run 'cloister party trust' with its public file")
            continue
        with report.checking("party", name, what):
            if not pins[name].same_keys(sign=party.sign, hpke=party.hpke):
                raise IntegrityError(5362, expected=pins[name].sign, got=party.sign)


def _key_managers(audit: _Audit) -> None:
    """(2) Each key manager showed evidence for the enclave that the manifest names, binding the key that signs here."""
    for name, record in sorted(audit.bundle.key_managers.items()):
        with audit.report.checking("key manager", name, "attested, and its evidence binds its signing key") as notes:
            key = audit.key(name)
            said = open_signed(ServiceEvidence, record.evidence, key)
            verdict = audit.appraise(audit.manifest.key_managers[name].tee, said.evidence, record.collateral)
            nonce_name, nonce = next(iter(said.claims.nonces.items()))
            check_session(verdict, said.claims, purpose="key-manager", nonce_name=nonce_name, nonce=nonce, at=audit.at)
            if said.claims.sign != str(key):
                raise IntegrityError(5361, expected=str(key), got=said.claims.sign)
            notes.append(f"measurement {str(verdict.value('tee.measurement'))[:16]}…, {verdict.assurance}")
    for name in sorted(set(audit.manifest.key_managers) - set(audit.bundle.key_managers)):
        audit.report.unknown("key manager", name, "its log and evidence", "not in the bundle", required=True)


def _run(audit: _Audit) -> bool:
    """(3) The run was granted by the registrar under this manifest, and its log says so."""
    manifest = audit.manifest
    with audit.report.checking("run", manifest.name, "granted by the registrar, and logged"):
        grant = open_signed(RunGrant, audit.bundle.run, audit.registrar())
        audit.report.run = grant.run
        if grant.manifest != manifest.id:
            raise IntegrityError(
                5361, "the run was granted for another manifest", expected=manifest.id, got=grant.manifest
            )
        if not any(name == manifest.registrar and e.run == grant.run for name, e in audit.entries(RunEntry)):
            raise IntegrityError(5363, "the registrar's log holds no such run", expected=grant.run)
    for name, entry in audit.entries(SuspensionEntry):
        audit.report.unknown("run", name, f"suspended by '{entry.party}'", f"at {entry.at}: {entry.reason}")
    return bool(audit.report.run)


def _attempts(audit: _Audit) -> list[tuple[tuple[str, int], StageFacts | None]]:
    """(4) For each attempt: grant, evidence, releases; for those that ended: registration and receipt."""
    found: list[tuple[tuple[str, int], StageFacts | None]] = []
    for record in audit.bundle.attempts:
        subject = f"{record.consumer} attempt {record.attempt}"
        with audit.report.checking("attempt", subject, "granted by the registrar"):
            grant = open_signed(AttemptGrant, record.grant, audit.registrar())
            same = (audit.manifest.id, audit.report.run, record.consumer, record.attempt)
            if (grant.manifest, grant.run, grant.consumer, grant.attempt) != same:
                raise IntegrityError(5361, "the grant is for something else", expected=same)
        if record.claims is None or record.evidence is None:
            reason = f"it ended before attestation with code {record.code}"
            audit.report.unknown("attempt", subject, "attested", reason)
            continue
        _evidence(audit, record, subject)
        _released(audit, record, subject)
        if record.registration is not None:
            found.append(((record.consumer, record.attempt), _registered(audit, record, subject)))
    return found


def _evidence(audit: _Audit, record: AttemptRecord, subject: str) -> None:
    manifest, claims = audit.manifest, record.claims
    service = record.consumer in manifest.services
    with audit.report.checking("attempt", subject, "evidence: root, patch level, measurement, debug, binding") as notes:
        if claims is None or record.evidence is None:
            raise IntegrityError(5361)
        tee = (manifest.services if service else manifest.stages)[record.consumer].tee
        verdict = audit.appraise(tee, record.evidence, record.collateral)
        nonce_name, nonce = next(iter(claims.nonces.items()))
        check_session(
            verdict,
            claims,
            purpose="service" if service else "stage",
            nonce_name=nonce_name,
            nonce=nonce,
            manifest=manifest.id,
            run=audit.report.run,
            stage=record.consumer,
            attempt=record.attempt,
            at=audit.at,
        )
        notes.append(f"{verdict.assurance}, TCB {verdict.value('tee.tcb.status')}")


def _released(audit: _Audit, record: AttemptRecord, subject: str) -> None:
    """Each contributor's answer is for these very claims, is in its log, and its nonce was the key manager's own."""
    claims = record.claims
    for name in contributors_of(audit.manifest, record.consumer):
        what = f"'{name}' released keys to the attested key, and logged it"
        if name not in record.releases:
            audit.report.unknown("attempt", subject, what, "no such release in the bundle")
            continue
        with audit.report.checking("attempt", subject, what) as notes:
            if claims is None or record.evidence is None:
                raise IntegrityError(5361)
            release = open_signed(KeyRelease, record.releases[name], audit.key(name))
            same = (claims.digest(), audit.manifest.id, audit.report.run, record.consumer, record.attempt)
            if (release.claims, release.manifest, release.run, release.consumer, release.attempt) != same:
                raise IntegrityError(5361, "the release is for other claims")
            entry = audit.logs[name].require(release.receipt) if name in audit.logs else release.receipt.entry
            if not isinstance(entry, ReleaseEntry) or entry.claims != release.claims or entry.sign != claims.sign:
                raise IntegrityError(5363, "the log's entry is about another release")
            if entry.evidence != record.evidence.quote_digest():
                raise IntegrityError(5363, "the key manager saw other evidence", expected=entry.evidence)
            names = ", ".join((*entry.images, *entry.inputs)) or "its contribution only"
            notes.append(f"log entry {release.receipt.index}: {names}")


def _registered(audit: _Audit, record: AttemptRecord, subject: str) -> StageFacts | None:
    """The outputs were registered once, by the attested key, and the receipt says the same."""
    facts: StageFacts | None = None
    with audit.report.checking("attempt", subject, "outputs registered by the attested key, once, everywhere"):
        claims = record.claims
        if claims is None or record.registration is None:
            raise IntegrityError(5361)
        registration = open_signed(Registration, record.registration, VerifyKey.parse(claims.sign))
        marks = digest(record.registration.payload)
        for name in contributors_of(audit.manifest, record.consumer):
            if name not in record.registered:
                raise IntegrityError(5363, f"'{name}' gave no receipt for the registration")
            said = open_signed(RegistrationReceipt, record.registered[name], audit.key(name))
            if (said.registration, said.outputs, said.stage) != (marks, registration.outputs, record.consumer):
                raise IntegrityError(5361, f"'{name}' registered something else", expected=marks, got=said.registration)
    with audit.report.checking("attempt", subject, "receipt: inputs, outputs, sandbox, as the manifest says") as notes:
        claims = record.claims
        if record.receipt is None or claims is None or record.evidence is None or record.registration is None:
            raise IntegrityError(5364)
        registration = open_signed(Registration, record.registration, VerifyKey.parse(claims.sign))
        facts = verify_receipt(record.receipt, key=VerifyKey.parse(claims.sign), manifest=audit.manifest)
        if digest(record.receipt.payload) != registration.receipt or facts.claims != claims.digest():
            raise IntegrityError(5364, "the receipt is not the one that was registered")
        if {name: output.image for name, output in facts.outputs.items()} != registration.outputs:
            raise IntegrityError(5364, "the receipt names other outputs than the registration")
        if facts.evidence != record.evidence.quote_digest():
            raise IntegrityError(5364, "the receipt names other evidence")
        notes.append(f"{len(facts.inputs)} inputs, {len(facts.outputs)} outputs, {facts.sandbox}")
        audit.report.simulated |= facts.assurance == "simulated"
        if facts.sandbox == "UNSANDBOXED":
            audit.report.unsandboxed.append(record.consumer)
    return facts


def _stages(audit: _Audit, facts: Mapping[tuple[str, int], StageFacts | None]) -> None:
    """(5) Each stage ended once, and read exactly what the earlier ones wrote."""
    outputs: dict[str, str] = {}
    done = {stage: found for (stage, _), found in facts.items() if found is not None}
    for found in done.values():
        outputs |= {name: output.image for name, output in found.outputs.items()}
    for stage in sorted(audit.manifest.stages):
        what = "ended, and read exactly what the earlier stages wrote"
        if stage not in done:
            audit.report.unknown("stage", stage, what, "no accepted receipt in the bundle", required=True)
            continue
        with audit.report.checking("stage", stage, what):
            if sum(key[0] == stage for key in facts) != 1:
                raise IntegrityError(5365)
            for name, image in done[stage].inputs.items():
                if producer_of(audit.manifest, name) is not None and outputs.get(name) != image:
                    raise IntegrityError(5365, f"input '{name}' is not what was registered", expected=outputs.get(name))


def _releases(audit: _Audit, facts: Mapping[tuple[str, int], StageFacts | None]) -> None:
    """(6) Every release in the logs is accounted for; who collected what; what was refused."""
    known = {(record.consumer, record.attempt) for record in audit.bundle.attempts}
    for name, entry in audit.entries(ReleaseEntry):
        subject = f"{entry.consumer} attempt {entry.attempt}"
        if (entry.consumer, entry.attempt) not in known:
            audit.report.unknown(
                "release",
                subject,
                f"'{name}' released keys to an attempt that the bundle leaves out",
                entry.at,
                required=True,
            )
        elif entry.consumer in audit.manifest.stages and (entry.consumer, entry.attempt) not in facts:
            reason = "keys were released and no receipt came back: the attempt failed, or its receipt is withheld"
            audit.report.unknown("release", subject, f"'{name}' released keys", reason)
    for name, entry in audit.entries(RegistrationEntry):
        if facts.get((entry.stage, entry.attempt)) is None:
            audit.report.unknown(
                "release",
                f"{entry.stage} attempt {entry.attempt}",
                f"registered at '{name}'",
                "no receipt",
                required=True,
            )
    for name, entry in audit.entries(CollectEntry):
        with audit.report.checking("release", entry.output, f"collected by '{entry.party}' at '{name}'") as notes:
            if not any(release.party == entry.party for release in consumers_of(audit.manifest, entry.output)):
                raise IntegrityError(5366, got=entry.party)
            notes.append(f"as the manifest releases it, {entry.at}")
    for name, entry in audit.entries(RefusalEntry):
        about = entry.subject or entry.action
        reason = f"CLOISTER-{entry.code}: {entry.what}"
        audit.report.asserted("refusal", about, f"'{name}' refused {entry.action}", reason, required=False)


def _inference(audit: _Audit) -> None:
    """(7) Receipts of predictions: signed by the key in an attested service's evidence."""
    keys: dict[str, str] = {}
    for record in audit.bundle.attempts:
        if record.claims is not None and record.consumer in audit.manifest.services:
            keys[f"{record.consumer} {record.attempt}"] = record.claims.sign
    for envelope in audit.bundle.inference:
        with audit.report.checking("inference", digest(envelope.payload)[:16], "answered by the attested service"):
            for sign in keys.values():
                try:
                    value = open_envelope(envelope, RECEIPT_LABEL, VerifyKey.parse(sign))
                    break
                except IntegrityError:
                    continue
            else:
                raise IntegrityError(5001, "no attested service signed this receipt")
            receipt = parse_message(InferenceReceipt, value, what="inference receipt")
            if (receipt.manifest, receipt.run) != (audit.manifest.id, audit.report.run):
                raise IntegrityError(5361, "the receipt is of another run")


def _not_proven(audit: _Audit) -> None:
    """(8) What no bundle can show, so that nobody reads it into the report."""
    for stage_name, stage in sorted(audit.manifest.stages.items()):
        for output in sorted(stage.outputs):
            leaves = [r for r in consumers_of(audit.manifest, output) if r.party or r.service]
            if leaves and stage.privacy is None:
                to = ", ".join(sorted(r.party or r.service or "" for r in leaves))
                reason = f"released to {to} without differential-privacy terms"
                audit.report.unknown("privacy", f"{stage_name}/{output}", "what it reveals of one person", reason)
    if audit.report.simulated:
        audit.report.unknown(
            "hardware", "every enclave", "memory is hidden from the host", "SIMULATED: software signed this evidence"
        )
    else:
        audit.report.unknown(
            "hardware", "every enclave", "side channels and physical attacks", "outside what evidence can show"
        )
    audit.report.unknown(
        "data", "every owner", "labels and measurements are right", "nobody but the owners has seen them"
    )
    for name, error in _unused(audit):
        audit.report.unknown("bundle", name, "belongs to the run", error)


def _unused(audit: _Audit) -> list[tuple[str, str]]:
    extra = sorted(set(audit.bundle.key_managers) - set(audit.manifest.key_managers))
    return [(name, "the manifest names no such key manager") for name in extra]
