"""Whether each key manager kept its terms, recounted from its own log.

A key manager in an honest enclave keeps them by itself. Recounting costs nothing and needs no trust in its code; what
it cannot see is a log that was rolled back, which is what kept heads are for.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from cloister.audit._attempts import Findings
from cloister.audit._case import Case
from cloister.audit._log import KeyManagerLog
from cloister.errors import IntegrityError
from cloister.keys import (
    CollectEntry,
    KeyEntry,
    ManifestEntry,
    RegistrationEntry,
    ReleaseEntry,
    RevocationEntry,
    SuspensionEntry,
)
from cloister.manifest import Release, consumers_of, contributors_of, inputs_of, producer_of, reachable_images

__all__ = ["check_terms"]


def check_terms(case: Case, found: Findings) -> None:
    """One check a term for every key manager, over all runs of the manifest: uses are the manifest's."""
    for name, log in sorted(case.logs.items()):
        if any(isinstance(entry, ReleaseEntry | CollectEntry) for _, entry in log.entries):
            with case.report.checking("terms", name, "released what the manifest grants, to each attempt once"):
                _require_granted(case, log)
            with case.report.checking("terms", name, "released only while the agreement was in force"):
                _require_in_force(case, log)
            with case.report.checking("terms", name, "no key was used more often than agreed") as notes:
                notes += _require_uses(case, log)
            with case.report.checking("terms", name, "no key was used after its date, or after its owner's stop"):
                _require_dates(case, log)
            with case.report.checking("terms", name, "SIMULATED evidence only with each owner's consent"):
                _require_consent(case, log, found)
        _stops(case, log)


def _grants(case: Case, name: str, consumer: str) -> tuple[set[str], set[str]]:
    """The images and the earlier outputs whose key parts ``name`` gives ``consumer``.

    Raises:
        IntegrityError: 5358 when the manifest has no such consumer, or it is none of the key manager's.
    """
    manifest = case.manifest
    if consumer not in {*manifest.stages, *manifest.services} or name not in contributors_of(manifest, consumer):
        raise IntegrityError(5358, f"'{name}' has nothing to release to '{consumer}'")
    reads = inputs_of(manifest, consumer)
    images = {each for each in reads if each in manifest.images and manifest.images[each].key_manager == name}
    producers = {each: producer_of(manifest, each) for each in reads if each not in manifest.images}
    return images, {o for o, stage in producers.items() if stage and name in contributors_of(manifest, stage)}


def _require_granted(case: Case, log: KeyManagerLog) -> None:
    """Each attempt got exactly what the manifest grants it, once, and nothing after its stage was registered."""
    seen: set[tuple[str, str, int]] = set()
    done: dict[tuple[str, str], RegistrationEntry] = {}
    for index, entry in log.entries:
        if isinstance(entry, RegistrationEntry):
            if done.setdefault((entry.run, entry.stage), entry) is not entry:
                raise IntegrityError(5359, f"'{entry.stage}' was registered twice", got=f"entry {index}")
        elif isinstance(entry, ReleaseEntry):
            place = (entry.run, entry.consumer, entry.attempt)
            images, inputs = _grants(case, log.name, entry.consumer)
            if (set(entry.images), set(entry.inputs)) != (images, inputs):
                got = sorted({*entry.images, *entry.inputs})
                raise IntegrityError(5358, f"entry {index}: '{entry.consumer}'", expected=sorted(images | inputs), got=got)
            if place in seen:
                raise IntegrityError(5358, f"entry {index}: '{entry.consumer}' attempt {entry.attempt} was released twice")
            seen.add(place)
            if place[:2] in done:
                raise IntegrityError(5359, f"entry {index}: released to '{entry.consumer}' after it was registered")
            _require_registered(case, log, entry, done, index)


def _require_registered(
    case: Case, log: KeyManagerLog, entry: ReleaseEntry, done: dict[tuple[str, str], RegistrationEntry], index: int
) -> None:
    for output, image in entry.inputs.items():
        source = done.get((entry.run, producer_of(case.manifest, output) or ""))
        known = None if source is None else source.outputs.get(output)
        if known != image:
            raise IntegrityError(
                5365, f"entry {index}: '{log.name}' released another '{output}' than it registered", expected=known, got=image
            )


def _require_in_force(case: Case, log: KeyManagerLog) -> None:
    valid, agreed, stopped = case.manifest.valid, False, None
    for index, entry in log.entries:
        if isinstance(entry, ManifestEntry):
            agreed = True
        elif isinstance(entry, SuspensionEntry):
            stopped = stopped or entry.party
        elif isinstance(entry, ReleaseEntry | CollectEntry):
            if not agreed:
                raise IntegrityError(5356, f"entry {index}: released before the agreement was installed")
            if stopped is not None:
                raise IntegrityError(5356, f"entry {index}: released after '{stopped}' suspended the manifest")
            if not valid.not_before <= entry.at <= valid.not_after:
                window = f"{valid.not_before} to {valid.not_after}"
                raise IntegrityError(5356, f"entry {index}: released outside the manifest's time", expected=window, got=entry.at)


def _require_uses(case: Case, log: KeyManagerLog) -> list[str]:
    """Recounts the uses of image keys and of release terms."""
    rules = {entry.image: entry.rule for _, entry in log.entries if isinstance(entry, KeyEntry)}
    images: Counter[str] = Counter()
    terms: Counter[tuple[str, str]] = Counter()
    for _, entry in log.entries:
        if isinstance(entry, ReleaseEntry):
            images.update(entry.images)
            terms.update((output, entry.consumer) for output in entry.inputs)
        elif isinstance(entry, CollectEntry):
            terms[entry.output, f"party {entry.party}"] += 1
    for image, used in sorted(images.items()):
        if image not in rules:
            raise IntegrityError(5358, f"a key of image '{image}' was released that the log never shows installed")
        allowed = min(rules[image].uses, case.manifest.images[image].uses)
        if used > allowed:
            raise IntegrityError(5355, f"the key of image '{image}'", expected=f"at most {allowed}", got=used)
    for (output, target), used in sorted(terms.items()):
        term = _term(case, output, target)
        if used > term.uses:
            raise IntegrityError(5355, f"output '{output}' to '{target}'", expected=f"at most {term.uses}", got=used)
    return [f"{image}: {used} of {rules[image].uses}" for image, used in sorted(images.items())]


def _term(case: Case, output: str, target: str) -> Release:
    for release in consumers_of(case.manifest, output):
        party = None if release.party is None else f"party {release.party}"
        if target in (release.stage, release.service, party):
            return release
    raise IntegrityError(5366, f"output '{output}' went to '{target}', and the manifest has no such release")


def _require_dates(case: Case, log: KeyManagerLog) -> None:
    """Consent travels with the data: an owner's date and stop hold for every consumer that the image can reach."""
    until = {name: [image.until] for name, image in case.manifest.images.items()}
    revoked: set[str] = set()
    for index, entry in log.entries:
        match entry:
            case KeyEntry():
                until.setdefault(entry.image, []).append(entry.rule.until)
            case RevocationEntry():
                revoked.add(entry.image)
            case ReleaseEntry():
                for output in entry.inputs:
                    _require_before(_term(case, output, entry.consumer).until, entry, index, output)
                for image in _reaching(case, log.name, entry.consumer):
                    _require_unrevoked(revoked, image, index)
                    for date in until[image]:
                        _require_before(date, entry, index, image)
            case CollectEntry():
                _require_before(_term(case, entry.output, f"party {entry.party}").until, entry, index, entry.output)
                for image in _reaching(case, log.name, producer_of(case.manifest, entry.output) or ""):
                    _require_unrevoked(revoked, image, index)
            case _:
                pass


def _reaching(case: Case, name: str, consumer: str) -> list[str]:
    if consumer not in {*case.manifest.stages, *case.manifest.services}:
        raise IntegrityError(5358, f"the manifest has no stage or service '{consumer}'")
    found = reachable_images(case.manifest, consumer)
    return sorted(image for image in found if case.manifest.images[image].key_manager == name)


def _require_unrevoked(revoked: set[str], image: str, index: int) -> None:
    if image in revoked:
        raise IntegrityError(5356, f"entry {index}: released after the owner revoked image '{image}'")


def _require_before(date: str | None, entry: Any, index: int, name: str) -> None:
    if date is not None and entry.at > date:
        raise IntegrityError(5356, f"entry {index}: '{name}' was released too late", expected=f"until {date}", got=entry.at)


def _require_consent(case: Case, log: KeyManagerLog, found: Findings) -> None:
    rules = {entry.image: entry.rule for _, entry in log.entries if isinstance(entry, KeyEntry)}
    for index, entry in log.entries:
        if not isinstance(entry, ReleaseEntry) or not _simulated(case, entry, found):
            continue
        for image in _reaching(case, log.name, entry.consumer):
            if image not in rules or not rules[image].simulated:
                owner = case.manifest.images[image].owner
                raise IntegrityError(5357, f"entry {index}: '{owner}' did not consent to SIMULATED for '{image}'")


def _simulated(case: Case, entry: ReleaseEntry, found: Findings) -> bool:
    """Whether the launcher's own evidence was simulated: by the verdict, else, without inputs, by the log's word."""
    attested = found.attested.get((entry.consumer, entry.attempt)) if entry.run == case.run else None
    return attested.verdict.simulated if attested else entry.assurance == "simulated" and not entry.inputs


def _stops(case: Case, log: KeyManagerLog) -> None:
    """A stop by a party is for a person to weigh: what it came too late to prevent is not thereby approved of."""
    for _, entry in log.entries:
        if isinstance(entry, SuspensionEntry):
            reason = f"on {entry.at}, saying: {entry.reason or 'nothing'}"
            case.report.unknown("terms", log.name, f"'{entry.party}' suspended the manifest", reason, required=True)
        elif isinstance(entry, RevocationEntry):
            what = f"'{entry.owner}' revoked image '{entry.image}'"
            case.report.unknown("terms", log.name, what, f"on {entry.at}; what was released before stays released")
