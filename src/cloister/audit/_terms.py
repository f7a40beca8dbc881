"""Whether each key manager kept its terms, recounted from its own log.

A key manager in an honest enclave keeps them by itself. Recounting costs nothing and needs no trust in its code; what
it cannot see is a log that was rolled back, which is what kept heads are for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
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
        grants = _Grants(case, name)
        if any(isinstance(entry, ReleaseEntry | CollectEntry) for _, entry in log.entries):
            with case.report.checking("terms", name, "released what the manifest grants, to each attempt once"):
                _require_granted(case, log, grants)
            with case.report.checking("terms", name, "released only while the agreement was in force"):
                _require_in_force(case, log)
            with case.report.checking("terms", name, "no key was used more often than agreed") as notes:
                notes += _require_uses(case, log)
            with case.report.checking("terms", name, "no key was used after its date, or after its owner's stop"):
                _require_dates(case, log, grants)
            with case.report.checking("terms", name, "SIMULATED evidence only with each owner's consent"):
                _require_consent(case, log, grants, found)
        _stops(case, log)


@dataclass(frozen=True, slots=True)
class _Grant:
    """What one key manager gives one consumer: image keys, parts of outputs' keys; and whose consent that takes."""

    images: frozenset[str]
    inputs: frozenset[str]
    reaching: frozenset[str]


class _Grants:
    """The grants of one key manager, each worked out once: a log may show thousands of releases."""

    def __init__(self, case: Case, name: str) -> None:
        self._case, self._name = case, name
        self._known: dict[str, _Grant] = {}

    def of(self, consumer: str) -> _Grant:
        """The grant to a consumer.

        Raises:
            IntegrityError: 5358 when the manifest has no such consumer, or it is none of the key manager's.
        """
        if consumer not in self._known:
            self._known[consumer] = self._made(consumer)
        return self._known[consumer]

    def _made(self, consumer: str) -> _Grant:
        manifest, name = self._case.manifest, self._name
        if consumer not in {*manifest.stages, *manifest.services} or name not in contributors_of(manifest, consumer):
            raise IntegrityError(5358, f"'{name}' has nothing to release to '{consumer}'")
        mine = {each for each, image in manifest.images.items() if image.key_manager == name}
        reads = set(inputs_of(manifest, consumer))
        producers = {each: producer_of(manifest, each) for each in reads - manifest.images.keys()}
        inputs = {each for each, stage in producers.items() if stage and name in contributors_of(manifest, stage)}
        return _Grant(frozenset(reads & mine), frozenset(inputs), reachable_images(manifest, consumer) & mine)


def _require_granted(case: Case, log: KeyManagerLog, grants: _Grants) -> None:
    """Each attempt got exactly what the manifest grants it, once, and nothing after its stage was registered."""
    seen: set[tuple[str, str, int]] = set()
    done: dict[tuple[str, str], RegistrationEntry] = {}
    for index, entry in log.entries:
        if isinstance(entry, RegistrationEntry):
            if done.setdefault((entry.run, entry.stage), entry) is not entry:
                raise IntegrityError(5359, f"'{entry.stage}' was registered twice", got=f"entry {index}")
        elif isinstance(entry, ReleaseEntry):
            place = (entry.run, entry.consumer, entry.attempt)
            grant = grants.of(entry.consumer)
            if (set(entry.images), set(entry.inputs)) != (grant.images, grant.inputs):
                wanted, got = sorted(grant.images | grant.inputs), sorted({*entry.images, *entry.inputs})
                raise IntegrityError(5358, f"entry {index}: '{entry.consumer}'", expected=wanted, got=got)
            if place in seen:
                raise IntegrityError(
                    5358, f"entry {index}: '{entry.consumer}' attempt {entry.attempt} was released twice"
                )
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
                5365,
                f"entry {index}: '{log.name}' released another '{output}' than it registered",
                expected=known,
                got=image,
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
                raise IntegrityError(
                    5356, f"entry {index}: released outside the manifest's time", expected=window, got=entry.at
                )


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


def _require_dates(case: Case, log: KeyManagerLog, grants: _Grants) -> None:
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
                for image in sorted(grants.of(entry.consumer).reaching):
                    _require_unrevoked(revoked, image, index)
                    for date in until[image]:
                        _require_before(date, entry, index, image)
            case CollectEntry():
                _require_before(_term(case, entry.output, f"party {entry.party}").until, entry, index, entry.output)
                for image in sorted(grants.of(producer_of(case.manifest, entry.output) or "").reaching):
                    _require_unrevoked(revoked, image, index)
            case _:
                pass


def _require_unrevoked(revoked: set[str], image: str, index: int) -> None:
    if image in revoked:
        raise IntegrityError(5356, f"entry {index}: released after the owner revoked image '{image}'")


def _require_before(date: str | None, entry: Any, index: int, name: str) -> None:
    if date is not None and entry.at > date:
        raise IntegrityError(
            5356, f"entry {index}: '{name}' was released too late", expected=f"until {date}", got=entry.at
        )


def _require_consent(case: Case, log: KeyManagerLog, grants: _Grants, found: Findings) -> None:
    rules = {entry.image: entry.rule for _, entry in log.entries if isinstance(entry, KeyEntry)}
    for index, entry in log.entries:
        if not isinstance(entry, ReleaseEntry) or not _simulated(case, entry, found):
            continue
        for image in sorted(grants.of(entry.consumer).reaching):
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
