"""What signing means, in plain language: what is read, what leaves to whom, who is trusted.

Every sentence is derived from the manifest; nothing that it says is left out because it looks harmless. Text that the
proposer chose is quoted, so that it cannot pass for ours.
"""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cloister.errors import InputError
from cloister.manifest._checks import require_sound
from cloister.manifest._graph import (
    inputs_of,
    reachable_images,
    readers_of_findings,
    required_signers,
    stage_order,
)
from cloister.manifest._leaks import ANYONE, COLLUSION, Leak, leaks_of
from cloister.manifest._model import Limits, Manifest, Tee
from cloister.manifest._privacy_review import privacy_lines
from cloister.party import fingerprint_of

__all__ = ["Review", "Section", "changes", "review"]

_HARMLESS_TCB = {"UpToDate", "SWHardeningNeeded"}
_INDENT, _WIDTH = 12, 108
_WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
_RUNS = "which runs: "


@dataclass(frozen=True, slots=True)
class Section:
    """One heading and its statements."""

    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Review:
    """A manifest in plain language, as one party sees it.

    Attributes:
        manifest: The manifest.
        party: Whose view it is; None for nobody's in particular.
        sections: YOUR DATA, LEAVES, TRUSTED, LOGS, NETWORK, PRIVACY and more.
        leaks: Who can learn what from whose data.
        simulated: The tees that accept SIMULATED evidence.
    """

    manifest: Manifest
    party: str | None
    sections: tuple[Section, ...]
    leaks: tuple[Leak, ...]
    simulated: tuple[str, ...]

    def text(self) -> str:
        """For a terminal: a line a statement, its section on the left."""
        return "\n\n".join("\n".join(_headed(section)) for section in self.sections)

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "manifest": self.manifest.id,
            "name": self.manifest.name,
            "party": self.party,
            "simulated": list(self.simulated),
            "required_signers": sorted(required_signers(self.manifest)),
            "sections": {section.title: list(section.lines) for section in self.sections},
            "leaks": [
                {
                    "recipient": leak.recipient,
                    "role": leak.role,
                    "what": leak.what,
                    "shows": leak.shows,
                    "images": list(leak.images),
                    "owners": list(leak.owners),
                }
                for leak in self.leaks
            ],
        }


def review(manifest: Manifest, *, party: str | None = None) -> Review:
    """What ``manifest`` means to ``party``.

    Raises:
        CloisterError: the manifest breaks a rule (``require_sound``): what is broken has no one meaning.
        InputError: 2013 when ``party`` is not one of its parties.
    """
    require_sound(manifest)
    if party is not None and party not in manifest.parties:
        raise InputError(2013, f"'{party}' is no party of this manifest", expected=", ".join(manifest.parties))
    leaks = leaks_of(manifest)
    used = {*(s.tee for s in manifest.stages.values()), *(s.tee for s in manifest.services.values())}
    used |= {manager.tee for manager in manifest.key_managers.values()}
    simulated = tuple(sorted(name for name in used if manifest.tees[name].simulated_root))
    view = _View(manifest, party, leaks, simulated)
    sections = [Section(title, tuple(lines(view))) for title, lines in _SECTIONS]
    if party is not None:
        sections = [Section(s.title.replace("DATA", "YOUR DATA"), s.lines) for s in sections]
    return Review(manifest, party, tuple(section for section in sections if section.lines), leaks, simulated)


def changes(old: Manifest, new: Manifest) -> tuple[str, ...]:
    """What differs, a line a field: ``~`` changed, ``+`` added, ``-`` removed.

    Raises:
        CloisterError: either breaks a rule: its text could pass for ours.
    """
    require_sound(old)
    require_sound(new)
    before, after = dict(_flat(old.as_json())), dict(_flat(new.as_json()))
    lines: list[str] = []
    for place in sorted(before.keys() | after.keys()):
        if place not in after:
            lines.append(f"- {place}: {before[place]}")
        elif place not in before:
            lines.append(f"+ {place}: {after[place]}")
        elif before[place] != after[place]:
            lines.append(f"~ {place}: {before[place]} → {after[place]}")
    return tuple(lines)


@dataclass(frozen=True, slots=True)
class _View:
    manifest: Manifest
    party: str | None
    leaks: tuple[Leak, ...]
    simulated: tuple[str, ...]

    def who(self, name: str) -> str:
        """A party's name, as this reader calls it."""
        return f"you ({name})" if name == self.party else name

    def whose(self, leak: Leak) -> str:
        """Whose data a leak may tell of."""
        yours = "YOURS included" if self.party in leak.owners else ""
        owners = ", ".join(leak.owners) or "nobody: no dataset reaches it"
        return f"may tell of the data of {owners}" + (f", {yours}" if yours else "")


def _agreement(view: _View) -> Iterator[str]:
    manifest = view.manifest
    yield f"'{manifest.name}', id {manifest.id}"
    yield f"in force from {manifest.valid.not_before} to {manifest.valid.not_after}"
    if manifest.purpose:
        yield f"purpose, in the proposer's words: {json.dumps(manifest.purpose, ensure_ascii=False)}"
    signers = sorted(required_signers(manifest))
    yield f"nothing runs before all of these have signed: {', '.join(view.who(name) for name in signers)}"
    idle = [name for name in manifest.parties if name not in signers]
    if idle:
        yield f"no signature is needed from: {', '.join(view.who(name) for name in idle)}"


def _simulated(view: _View) -> Iterator[str]:
    if view.simulated:
        yield "!! SIMULATED evidence is accepted: the machines' owners can read and change everything !!"
        yield f"accepted by {_listed(view.simulated)}; use no data that matters under this manifest"


def _data(view: _View) -> Iterator[str]:
    manifest = view.manifest
    mine = [name for name, image in manifest.images.items() if view.party in (None, image.owner)]
    if not mine:
        yield f"none: no image of this manifest belongs to {view.who(str(view.party))}"
    for name in mine:
        image = manifest.images[name]
        owner = "" if view.party else f" of {image.owner}"
        end = image.until or manifest.valid.not_after
        yield (
            f"'{name}' ({image.kind}{owner}, image {image.id}): its key goes to key manager "
            f"'{image.key_manager}', which releases it at most {image.uses} times, until {end}"
        )
        for reader in (*stage_order(manifest), *manifest.services):
            if name in inputs_of(manifest, reader):
                yield f"  read by {_runs(manifest, reader)}"
            elif name in reachable_images(manifest, reader):
                yield f"  what is made of it reaches {_kind_of(manifest, reader)} '{reader}'"


def _kind_of(manifest: Manifest, reader: str) -> str:
    return "service" if reader in manifest.services else "stage"


def _runs(manifest: Manifest, reader: str) -> str:
    service = manifest.services.get(reader)
    if service is not None:
        return f"service '{reader}', as its {service.runner} model"
    stage = manifest.stages[reader]
    code = manifest.images[stage.code]
    env = " ".join(f"{name}={_quoted(value)}" for name, value in sorted(stage.env.items()))
    ran = " ".join(_quoted(argument) for argument in stage.argv)
    return f"stage '{reader}', {_RUNS}{env + ' ' if env else ''}{ran}   (code '{stage.code}' of {code.owner})"


def _stages(view: _View) -> Iterator[str]:
    """Every script, whoever's data it reads: what reaches it through others is read by it too."""
    for name in stage_order(view.manifest):
        stage = view.manifest.stages[name]
        yield _runs(view.manifest, name)
        yield f"  reads {_listed(stage.inputs)}; writes {_listed(stage.outputs)}; {_limits(stage.limits)}"
    for name, service in view.manifest.services.items():
        yield f"{_runs(view.manifest, name)}; loads '{service.model}'; {_limits(service.limits)}"


def _leaves(view: _View) -> Iterator[str]:
    manifest = view.manifest
    for leak in view.leaks:
        if leak.role == "output":
            terms = next(r for r in manifest.releases if r.output == leak.what and r.party == leak.recipient)
            until = terms.until or manifest.valid.not_after
            yield (
                f"output '{leak.what}' → {view.who(leak.recipient)}, in the clear, at most {terms.uses} times, "
                f"until {until}; {view.whose(leak)}"
            )
        elif leak.role == "client":
            who = "ANYONE who can reach it" if leak.recipient == ANYONE else view.who(leak.recipient)
            yield f"answers of service '{leak.what}' → {who}; {view.whose(leak)}"
    for release in manifest.releases:
        if release.nobody:
            yield f"output '{release.output}' → nobody: it is never opened"
        elif release.stage is not None or release.service is not None:
            target = f"stage '{release.stage}'" if release.stage else f"service '{release.service}'"
            until = release.until or manifest.valid.not_after
            yield f"output '{release.output}' → {target} only, sealed, at most {release.uses} times, until {until}"
    for name, stage in manifest.stages.items():
        if stage.checkpoint is not None:
            yield (
                f"state of stage '{name}', at most {_size(stage.checkpoint.max_bytes)} each time → its own next "
                "attempt only, sealed; the machines' owners keep the ciphertext, "
                "and see when and how often it was saved"
            )
    yield "the machines' owners see sizes, times and which stage runs; the sizes of images only in steps"


def _trusted(view: _View) -> Iterator[str]:
    manifest = view.manifest
    users: dict[str, list[str]] = {}
    for kind, group in (
        ("stage", manifest.stages),
        ("service", manifest.services),
        ("key manager", manifest.key_managers),
    ):
        for name, user in group.items():
            users.setdefault(user.tee, []).append(f"{kind} '{name}'")
    for name, used_by in users.items():
        yield f"{_tee(name, manifest.tees[name])}; for {', '.join(used_by)}"
    for name, manager in manifest.key_managers.items():
        images = [image for image, terms in manifest.images.items() if terms.key_manager == name]
        role = "; numbers runs and attempts, and registers outputs first" if name == manifest.registrar else ""
        yield f"key manager '{name}' (key {manager.sign}) with the keys of {_listed(images)}{role}"
    yield "use counts and expiry hold against everybody but the host of the key manager itself"
    yield "the scripts: what one of them writes to an output, a log or an answer is not looked into"
    for name, party in manifest.parties.items():
        if name != view.party:
            yield f"that {name} is who reads out: {fingerprint_of(name, sign=party.sign, hpke=party.hpke)}"


def _registers(registers: tuple[str, ...]) -> str:
    """The four registers; one that is not compared is said in capitals, since the host decides what is in it."""
    return " ".join("ANY" if register == "any" else register for register in registers)


def _tee(name: str, tee: Tee) -> str:
    root = f"SIMULATED (development root {tee.simulated_root})" if tee.simulated_root else "Intel's root"
    odd = [status for status in tee.tcb if status not in _HARMLESS_TCB]
    parts = [
        f"tee '{name}': {tee.type} under {root}, launcher {' or '.join(tee.measurements)}",
        *(f"RTMRs {_registers(registers)}" for registers in tee.rtmrs),
        f"patch level {', '.join(tee.tcb)}" + (" (WEAK: known holes are accepted)" if odd else ""),
    ]
    if tee.deny_advisories:
        parts.append(f"none of the advisories {', '.join(tee.deny_advisories)}")
    if tee.platforms:
        parts.append(f"only on platforms {', '.join(tee.platforms)}")
    return ", ".join(parts)


def _logs(view: _View) -> Iterator[str]:
    leaks = [leak for leak in view.leaks if leak.role == "log"]
    for leak in leaks:
        yield f"what stage '{leak.what}' prints → {view.who(leak.recipient)}; {view.whose(leak)}"
    if not leaks:
        yield "closed: what the scripts print goes nowhere"


def _network(view: _View) -> Iterator[str]:
    manifest = view.manifest
    leaks = [leak for leak in view.leaks if leak.role == "operator"]
    for leak in leaks:
        worker = manifest.workers[leak.what]
        operator = view.who(leak.recipient)
        known = f" (key {worker.key})" if worker.key else ""
        yield f"worker '{leak.what}' at {worker.url}{known}, of {operator}, sees: {leak.shows}; {view.whose(leak)}"
    for name, stage in manifest.stages.items():
        if stage.offload is not None:
            mode, workers = f"offload mode '{stage.offload.mode}'", _listed(stage.offload.workers)
            if stage.offload.workers:
                yield f"stage '{name}' states {mode} with {workers}; every product is checked, a wrong one ends the run"
                yield "  its script has no network: the launcher's broker alone reaches them"
            else:
                yield f"stage '{name}' states {mode}: no layer leaves the enclave"
            together = COLLUSION.get(stage.offload.mode)
            if together is not None:
                operators = ", ".join(view.who(manifest.workers[worker].operator) for worker in stage.offload.workers)
                yield f"  {operators}: no two of them may put together what they see, or they learn {together}"
            if stage.offload.workers:
                told = ", ".join(view.who(reader) for reader in readers_of_findings(manifest, name)) or "nobody"
                yield f"  which product was wrong is sealed to {told}; everybody else learns only that one was"
        beyond = [to for to in stage.network if stage.offload is None or to not in stage.offload.workers]
        if beyond:
            yield f"stage '{name}' may reach {_listed(beyond)}: this release refuses to run such a stage (3503)"
    if not leaks:
        yield "none: no stage can reach a network"


_SECTIONS: tuple[tuple[str, Callable[[_View], Iterator[str]]], ...] = (
    ("AGREEMENT", _agreement),
    ("SIMULATED", _simulated),
    ("DATA", _data),
    ("RUNS", _stages),
    ("LEAVES", _leaves),
    ("TRUSTED", _trusted),
    ("LOGS", _logs),
    ("NETWORK", _network),
    ("PRIVACY", lambda view: privacy_lines(view.manifest)),
)


def _headed(section: Section) -> Iterator[str]:
    for index, line in enumerate(section.lines):
        head = f"{section.title if index == 0 else '':<{_INDENT}}"
        # A command stays on one line: wrapped, an argument with a space would look like two.
        wrapped = [line] if _RUNS in line else textwrap.wrap(line, _WIDTH, subsequent_indent="  ", **_WHOLE_WORDS)
        yield head + f"\n{'':<{_INDENT}}".join(wrapped)


def _limits(limits: Limits) -> str:
    return f"at most {_size(limits.memory_bytes)} of memory, {limits.time_s} s, {limits.processes} processes"


def _size(count: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count % scale == 0:
            return f"{count // scale} {unit}"
    return f"{count} B"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "nothing"


def _quoted(text: str) -> str:
    """As a shell would take it; line breaks are written out, or a proposer could write lines of this review."""
    if "\n" not in text and "\t" not in text:
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t")
    return f"$'{escaped}'"


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():  # pyright: ignore[reportUnknownVariableType]
            yield from _flat(item, f"{place}.{key}" if place else str(key))  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            yield from _flat(item, f"{place}[{index}]")
    else:
        yield place, _quoted(value) if isinstance(value, str) else str(value)  # pyright: ignore[reportUnknownArgumentType]
