"""The audit: recomputes everything from the bundle's signed parts, offline, as of a stated time.

1. The agreement keeps its rules, and every owner of what it reads signed it, with keys that the auditor knows.
2. The registrar granted the run, and each key manager's log verifies: head, a whole account of the run, every entry.
3. Each key manager showed evidence for the enclave that the agreement names.
4. Each attempt: grant, evidence, releases; where it ended, registration and receipt.
5. Each stage ended once and read what the earlier ones wrote, and went on from its last checkpoint; every product of a
   worker was checked; outputs went where they may.
6. Each key manager kept its terms: uses, dates, stops, consent.
7. Everything in the logs has its place in the bundle.
8. What no bundle can show is listed.

Every step compares; none believes a field that only the runner could have written (``made_at``, ``code``, which record
lies where).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from cloister.audit._attempts import check_attempts
from cloister.audit._case import Case
from cloister.audit._check import AuditReport
from cloister.audit._checkpoints import check_checkpoints
from cloister.audit._limits import list_limits
from cloister.audit._log import read_logs
from cloister.audit._offload import check_offload
from cloister.audit._outputs import check_collections, check_inference, check_log_accounted, check_stages
from cloister.audit._privacy import check_privacy
from cloister.audit._terms import check_terms
from cloister.errors import InputError, IntegrityError
from cloister.keys import RunEntry, RunGrant, ServiceEvidence, open_signed
from cloister.manifest import require_signed, required_signers
from cloister.party import PublicIdentity
from cloister.receipt import Bundle
from cloister.wire import Envelope, VerifyKey

__all__ = ["verify"]


def verify(
    bundle: Bundle,
    *,
    at: datetime,
    manifest: str | None = None,
    pins: Mapping[str, PublicIdentity] | None = None,
    heads: Sequence[Envelope] = (),
) -> AuditReport:
    """Audits a run. Pure: no file, no network, no clock.

    Args:
        bundle: As the runner gathered it; nothing about it is trusted.
        at: The moment that evidence, certificates and collateral are judged by.
        manifest: The id of the agreement that the auditor knows to be the right one. Without it every owner's keys
            must be among ``pins``: a bundle in which all parties are made up is perfectly consistent.
        pins: Identities whose fingerprints the auditor has heard, and the auditor's own.
        heads: Signed tree heads and consistency proofs that the auditor got from the key managers, not from the runner.

    Returns:
        The report; ``require()`` raises unless the run is accepted.

    Raises:
        InputError: 2106 when ``at`` has no time zone.
    """
    if at.tzinfo is None:
        raise InputError(2106, "the time to judge by has no time zone")
    report = AuditReport(bundle.signed.manifest.id, "", at)
    if not _agreement(bundle, report, manifest, pins or {}):
        return report
    run = _granted(bundle, report)
    logs = read_logs(bundle, report, run=run, heads=heads) if run else {}
    case = Case(bundle, bundle.signed.manifest, at, report, logs, run)
    _key_managers(case)
    if not run:
        return report
    _logged(case)
    found = check_attempts(case)
    check_stages(case, found)
    check_checkpoints(case, found)
    check_offload(case, found)
    check_privacy(case, found)
    check_terms(case, found)
    check_collections(case)
    check_log_accounted(case, found)
    check_inference(case, found)
    list_limits(case)
    return report


def _agreement(bundle: Bundle, report: AuditReport, wanted: str | None, pins: Mapping[str, PublicIdentity]) -> bool:
    """Whether the agreement stands; where it does not, nothing else in the bundle means anything."""
    manifest = bundle.signed.manifest
    with report.checking("manifest", manifest.name, "keeps its rules, signed by every owner of what it reads") as notes:
        require_signed(bundle.signed)
        notes.append(", ".join(sorted(bundle.signed.signatures)))
    stands = report.checks[-1].status == "asserted"
    if wanted is not None:
        with report.checking("manifest", manifest.name, "is the one that the auditor asked about"):
            if manifest.id != wanted:
                raise IntegrityError(5361, "the bundle is of another manifest", expected=wanted, got=manifest.id)
    owners = required_signers(manifest) if stands else frozenset[str]()
    for name, party in sorted(manifest.parties.items()):
        what = "its keys are the ones that were read out"
        if name not in pins:
            needed = wanted is None and name in owners
            reason = "not pinned here: run 'cloister party trust' with its public file"
            reason += ", or name the manifest's id with --manifest" if needed else ""
            report.unknown("party", name, what, reason, required=needed)
            continue
        with report.checking("party", name, what):
            if not pins[name].same_keys(sign=party.sign, hpke=party.hpke):
                raise IntegrityError(5362, expected=pins[name].sign, got=party.sign)
    return stands


def _granted(bundle: Bundle, report: AuditReport) -> str:
    """The run's id, once the registrar is shown to have granted it under this manifest; else empty."""
    manifest = bundle.signed.manifest
    with report.checking("run", manifest.name, "granted by the registrar"):
        registrar = VerifyKey.parse(manifest.key_managers[manifest.registrar].sign)
        grant = open_signed(RunGrant, bundle.run, registrar)
        if (grant.manifest, grant.registrar) != (manifest.id, manifest.registrar):
            raise IntegrityError(
                5361, "the run was granted for another manifest", expected=manifest.id, got=grant.manifest
            )
        report.run = grant.run
    return report.run


def _logged(case: Case) -> None:
    with case.report.checking("run", case.manifest.name, "in the registrar's log"):
        if not any(name == case.manifest.registrar for name, _, _ in case.entries(RunEntry)):
            raise IntegrityError(5363, "the registrar's log holds no such run", expected=case.run)


def _key_managers(case: Case) -> None:
    """Each showed evidence for the enclave that the manifest names, binding the key that signs here."""
    for name, record in sorted(case.bundle.key_managers.items()):
        with case.report.checking("key manager", name, "attested, and its evidence binds its signing key") as notes:
            key = case.key(name)
            said = open_signed(ServiceEvidence, record.evidence, key)
            verdict = case.appraise(case.manifest.key_managers[name].tee, said.evidence, record.collateral)
            case.require_session(verdict, said.claims, "key-manager")
            if said.claims.sign != str(key):
                raise IntegrityError(5361, "its evidence binds another key", expected=str(key), got=said.claims.sign)
            notes.append(f"measurement {str(verdict.value('tee.measurement'))[:16]}…, {verdict.assurance}")
    for name in sorted(set(case.manifest.key_managers) - set(case.bundle.key_managers)):
        case.report.unknown("key manager", name, "its log and evidence", "not in the bundle", required=True)
