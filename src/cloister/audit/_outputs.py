"""What the run made: each stage ended once, read exactly what the earlier ones wrote, and went only where it may."""

from __future__ import annotations

from cloister.audit._attempts import Findings
from cloister.audit._case import Case
from cloister.audit._check import Released
from cloister.errors import IntegrityError
from cloister.keys import CollectEntry, RegistrationEntry, ReleaseEntry
from cloister.manifest import consumers_of, producer_of
from cloister.receipt import StageFacts
from cloister.serve import RECEIPT_LABEL, InferenceReceipt
from cloister.wire import Envelope, VerifyKey, digest, open_envelope, parse_message

__all__ = ["check_collections", "check_inference", "check_log_accounted", "check_stages"]


def check_stages(case: Case, found: Findings) -> None:
    """Each stage ended once, and read exactly what the earlier ones wrote."""
    for stage in sorted(case.manifest.stages):
        what = "ended once, and read exactly what the earlier stages wrote"
        ends = {attempt: facts for (name, attempt), facts in found.ended.items() if name == stage}
        claimed = {r.attempt for r in case.bundle.attempts if r.consumer == stage and r.registration is not None}
        if not ends and not claimed:
            case.report.unknown("stage", stage, what, "no receipt of it in the bundle", required=True)
            continue
        with case.report.checking("stage", stage, what) as notes:
            if len(claimed) != 1 or not ends:
                raise IntegrityError(
                    5359, "not one accepted end of it", expected="1", got=f"{len(ends)} of {len(claimed)}"
                )
            (attempt, facts), *_ = ends.items()
            notes.append(f"attempt {attempt}")
            _require_ended(case, stage, attempt)
            _require_inputs(case, facts)


def _require_ended(case: Case, stage: str, attempt: int) -> None:
    """The attempt that the bundle shows is the one that every log shows."""
    for name, index, entry in case.entries(RegistrationEntry):
        if entry.stage == stage and entry.attempt != attempt:
            raise IntegrityError(
                5359, f"'{name}' registered another attempt (entry {index})", expected=attempt, got=entry.attempt
            )


def _require_inputs(case: Case, facts: StageFacts) -> None:
    for name, image in facts.inputs.items():
        if producer_of(case.manifest, name) is not None and case.images.get(name) != image:
            raise IntegrityError(
                5365, f"input '{name}' is not what was registered", expected=case.images.get(name), got=image
            )


def check_log_accounted(case: Case, found: Findings) -> None:
    """Every grant, release and registration in the logs has its place in the bundle; what was refused is shown."""
    left_out = set(case.granted - found.known)
    for name, _, entry in case.entries(ReleaseEntry):
        place, subject = (entry.consumer, entry.attempt), f"{entry.consumer} attempt {entry.attempt}"
        case.report.released += [
            Released(what, subject, name, entry.at) for what in (*entry.images, *sorted(entry.inputs))
        ]
        if place not in found.known:
            left_out.discard(place)
            what = f"'{name}' released keys to an attempt that the bundle leaves out"
            case.report.unknown("release", subject, what, entry.at, required=True)
        elif entry.consumer in case.manifest.stages and place not in found.ended:
            reason = "no receipt came back: the attempt failed, or its receipt is withheld"
            case.report.unknown("release", subject, f"'{name}' released keys", reason)
        else:
            _check_release_shown(case, found, name, entry)
    for consumer, attempt in sorted(left_out):
        reason = "granted, and never released to: by the logs it came to nothing"
        case.report.unknown("attempt", f"{consumer} attempt {attempt}", "the bundle leaves it out", reason)
    for name, _, entry in case.entries(RegistrationEntry):
        if (entry.stage, entry.attempt) not in found.ended:
            what = f"registered at '{name}'"
            subject = f"{entry.stage} attempt {entry.attempt}"
            case.report.unknown("release", subject, what, "no accepted receipt in the bundle", required=True)
    _show_refusals(case)


def _show_refusals(case: Case) -> None:
    """What was refused changed nothing, and anybody can have it refused again: a few are shown, the rest counted."""
    for name, log in sorted(case.logs.items()):
        for entry in log.refusals:
            reason = f"CLOISTER-{entry.code}: {entry.what}"
            case.report.asserted(
                "refusal", entry.subject or entry.action, f"'{name}' refused {entry.action}", reason, required=False
            )
        if len(log.refusals) < log.refused:
            reason = f"{len(log.refusals)} of {log.refused}; nothing was released by any, and strangers can cause more"
            case.report.unknown("refusal", name, "every refusal under this run is shown", reason)


def _check_release_shown(case: Case, found: Findings, name: str, entry: ReleaseEntry) -> None:
    """The log's release was to the very launcher whose claims the bundle shows, also where the answer was left out."""
    attested = found.attested.get((entry.consumer, entry.attempt))
    if attested is None or entry.claims == attested.claims.digest():
        return
    with case.report.checking("release", f"{entry.consumer} attempt {entry.attempt}", f"'{name}' released to it"):
        raise IntegrityError(
            5363, "the log shows a release to other claims", expected=entry.claims, got=attested.claims.digest()
        )


def check_collections(case: Case) -> None:
    """Who took an output in the clear, and whether the manifest says so."""
    for name, _, entry in case.entries(CollectEntry):
        case.report.released.append(Released(entry.output, f"party {entry.party}", name, entry.at))
        what = f"collected by '{entry.party}' at '{name}'"
        with case.report.checking("release", entry.output, what) as notes:
            if not any(release.party == entry.party for release in consumers_of(case.manifest, entry.output)):
                raise IntegrityError(5366, expected="a release to it in the manifest", got=entry.party)
            if case.images.get(entry.output) != entry.image:
                registered = case.images.get(entry.output)
                raise IntegrityError(5365, "another image than was registered", expected=registered, got=entry.image)
            notes.append(f"as the manifest releases it, {entry.at}")


def check_inference(case: Case, found: Findings) -> None:
    """Receipts of predictions: signed by the key in an accepted service's evidence, about this run's model."""
    services = {
        VerifyKey.parse(attested.claims.sign).id: place
        for place, attested in found.attested.items()
        if place[0] in case.manifest.services
    }
    for envelope in case.bundle.inference:
        subject = digest(envelope.payload)[:16]
        with case.report.checking("inference", subject, "answered by the attested service, with the model") as notes:
            place = next((services[s.keyid] for s in envelope.signatures[:16] if s.keyid in services), None)
            if place is None:
                raise IntegrityError(5001, "no accepted service signed this receipt")
            notes.append(_answered(case, found, envelope, place))


def _answered(case: Case, found: Findings, envelope: Envelope, place: tuple[str, int]) -> str:
    attested, manifest = found.attested[place], case.manifest
    value = open_envelope(envelope, RECEIPT_LABEL, VerifyKey.parse(attested.claims.sign))
    said = parse_message(InferenceReceipt, value, what="inference receipt")
    # Not the claims: those in a receipt are of the evidence that the client got, over the client's own nonce.
    wanted = (case.id, case.run, *place)
    got = (said.manifest, said.run, said.service, said.attempt)
    if got != wanted:
        raise IntegrityError(5361, "the receipt is of another run or service", expected=wanted, got=got)
    model = manifest.services[said.service].model
    expected = manifest.images[model].id if model in manifest.images else case.images.get(model)
    if said.model != expected:
        raise IntegrityError(5365, "another model answered", expected=expected, got=said.model)
    if attested.verdict.simulated and said.assurance != "simulated":
        raise IntegrityError(5364, "the receipt says hardware, its evidence says SIMULATED")
    return f"{said.service}, {said.at}"
