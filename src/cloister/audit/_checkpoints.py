"""Checkpoints: each stage's follow one another in every log, and an attempt went on from the last one that was known.

A key manager in an honest enclave writes nothing else. Recounting it shows a log that was made otherwise, and a receipt
that says where its attempt began shows a launcher that was told something else than the logs say.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cloister.audit._attempts import Findings
from cloister.audit._case import Case
from cloister.errors import IntegrityError
from cloister.keys import CheckpointEntry, RegistrationEntry, ReleaseEntry
from cloister.manifest import contributors_of
from cloister.receipt import Resumed

__all__ = ["check_checkpoints"]


@dataclass(slots=True)
class _Told:
    """What one key manager's log says of one stage in this run.

    Attributes:
        last: The last checkpoint so far.
        newest: The newest attempt that got keys so far.
        ended: Whether the stage is registered.
        saved: Digest by attempt and number.
        known: By attempt: the last checkpoint when it got its keys.
    """

    last: Resumed | None = None
    newest: int = 0
    ended: bool = False
    saved: dict[tuple[int, int], str] = field(default_factory=dict[tuple[int, int], str])
    known: dict[int, Resumed | None] = field(default_factory=dict[int, Resumed | None])


def check_checkpoints(case: Case, found: Findings) -> None:
    """One check a stage that may save its state; a log that shows a checkpoint of another stage is refuted too."""
    logged = {entry.stage for _, _, entry in case.entries(CheckpointEntry)}
    for stage in sorted({name for name, each in case.manifest.stages.items() if each.checkpoint is not None} | logged):
        what = "its checkpoints follow one another, and each attempt went on from the last"
        with case.report.checking("stage", stage, what) as notes:
            told = {name: _read(case, name, stage) for name in case.logs}
            saved = _require_alike(told)
            notes.append(f"{len(saved)} checkpoints saved")
            notes += _require_resumed(case, found, stage, told)


def _read(case: Case, name: str, stage: str) -> _Told:
    """The stage's own entries in one log, in order."""
    told = _Told()
    terms = case.manifest.stages[stage].checkpoint if stage in case.manifest.stages else None
    for index, entry in case.logs[name].entries:
        if getattr(entry, "run", None) != case.run:
            continue
        if isinstance(entry, ReleaseEntry) and entry.consumer == stage:
            told.known[entry.attempt] = told.last
            told.newest = max(told.newest, entry.attempt)
        elif isinstance(entry, RegistrationEntry) and entry.stage == stage:
            told.ended = True
        elif isinstance(entry, CheckpointEntry) and entry.stage == stage:
            where = f"entry {index} of '{name}'"
            if terms is None:
                raise IntegrityError(5370, f"{where}: the manifest lets '{stage}' save no checkpoint")
            if told.ended:
                raise IntegrityError(5370, f"{where}: a checkpoint of '{stage}' after it was registered")
            if entry.attempt != told.newest:
                raise IntegrityError(
                    5370, f"{where}: not by the newest attempt that got keys", expected=told.newest, got=entry.attempt
                )
            if told.last is not None and entry.sequence <= told.last.sequence:
                raise IntegrityError(
                    5370, f"{where}: a number that is not larger", expected=told.last.sequence + 1, got=entry.sequence
                )
            told.last = Resumed(attempt=entry.attempt, sequence=entry.sequence)
            told.saved[entry.attempt, entry.sequence] = entry.checkpoint
    return told


def _require_alike(told: dict[str, _Told]) -> dict[tuple[int, int], str]:
    """Every checkpoint, each the same wherever it is known. Not every log has every one: a launcher may be killed."""
    saved: dict[tuple[int, int], str] = {}
    for name, each in told.items():
        for place, checkpoint in each.saved.items():
            if saved.setdefault(place, checkpoint) != checkpoint:
                attempt, sequence = place
                raise IntegrityError(
                    5370,
                    f"'{name}' knows another checkpoint as number {sequence} of attempt {attempt}",
                    expected=saved[place],
                    got=checkpoint,
                )
    return saved


def _require_resumed(case: Case, found: Findings, stage: str, told: dict[str, _Told]) -> list[str]:
    """Where each attempt began, by the logs; a receipt must say the same."""
    notes: list[str] = []
    contributors = contributors_of(case.manifest, stage) if stage in case.manifest.stages else ()
    for attempt in sorted({attempt for each in told.values() for attempt in each.known}):
        if any(name not in told or attempt not in told[name].known for name in contributors):
            continue  # not every key manager let its keys go, so it did not run; or a log is missing, which is shown
        known = [each for name in contributors if (each := told[name].known[attempt]) is not None]
        last = max(known, key=lambda each: each.sequence, default=None)
        facts = found.ended.get((stage, attempt))
        if facts is not None and facts.resumed != last:
            what = f"attempt {attempt} of '{stage}' went on from another checkpoint"
            raise IntegrityError(5371, what, expected=last, got=facts.resumed)
        if last is not None:
            notes.append(f"attempt {attempt} went on from number {last.sequence} of attempt {last.attempt}")
    return notes
