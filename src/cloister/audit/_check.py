"""One finding of an audit, and the report that holds them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from cloister.errors import AttestationError, CloisterError, IntegrityError, error_for

__all__ = ["AuditReport", "Check", "Ran", "Released", "Status"]

Status = Literal["asserted", "refuted", "unknown"]


@dataclass(frozen=True, slots=True)
class Check:
    """One statement about a run.

    Attributes:
        group: Which part of the run: ``manifest``, ``key manager``, ``stage`` …
        subject: Of what: the party, stage or key manager.
        what: The statement, in plain words.
        status: ``asserted``, ``refuted`` or ``unknown``.
        reason: Why it is not asserted, or what it rests on.
        code: The error code behind a refutation.
        required: The run is accepted only when this is asserted.
        expected: What would have been accepted, where a comparison failed.
        got: What the bundle says instead.
    """

    group: str
    subject: str
    what: str
    status: Status
    reason: str = ""
    code: int | None = None
    required: bool = True
    expected: str | None = None
    got: str | None = None

    @property
    def statement(self) -> str:
        """Of what, what, and why."""
        said = f"{self.group} {self.subject}: {self.what}"
        return f"{said}: {self.reason}" if self.reason else said

    def as_json(self) -> dict[str, Any]:
        """The check as a JSON object."""
        facts: dict[str, Any] = {
            "group": self.group,
            "subject": self.subject,
            "what": self.what,
            "status": self.status,
            "required": self.required,
        }
        optional = {"reason": self.reason or None, "code": self.code, "expected": self.expected, "got": self.got}
        return facts | {name: value for name, value in optional.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Ran:
    """One attempt of a stage that ended, from its receipt; the times are the host's clock.

    ``workers`` multiplied ``products`` of its layers, in ``mode``; None where none left the enclave's stage.
    """

    stage: str
    attempt: int
    started_at: str
    ended_at: str
    size_bytes: int
    sandbox: str
    mode: str | None = None
    workers: tuple[str, ...] = ()
    products: int = 0

    def as_json(self) -> dict[str, Any]:
        """The same as a JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Released:
    """That a key manager let (its part of) a key go, from its log: ``what`` is an image or an output."""

    what: str
    to: str
    by: str
    at: str

    def as_json(self) -> dict[str, Any]:
        """The same as a JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class AuditReport:
    """What an audit found, as of one moment.

    Attributes:
        manifest: The manifest's id.
        run: The run's id; empty when its grant did not verify.
        at: The moment that evidence and certificates were judged by.
        simulated: Some evidence rests on a development root: nothing here shows hardware.
        unsandboxed: Stages whose script ran beside the launcher.
        checks: Every check, in order.
        ran: What ended, in order of its end.
        released: Every release of the run, in the order of the key managers' logs.
    """

    manifest: str
    run: str
    at: datetime
    simulated: bool = False
    unsandboxed: list[str] = field(default_factory=list[str])
    checks: list[Check] = field(default_factory=list[Check])
    ran: list[Ran] = field(default_factory=list[Ran])
    released: list[Released] = field(default_factory=list[Released])

    @property
    def outcome(self) -> Status:
        """``refuted`` when any check is; else ``unknown`` when a required one is; else ``asserted``: accepted."""
        if any(check.status == "refuted" for check in self.checks):
            return "refuted"
        required = [check for check in self.checks if check.required]
        return "asserted" if required and all(check.status == "asserted" for check in required) else "unknown"

    def require(self) -> None:
        """Returns only when the run is accepted.

        Raises:
            CloisterError: the code of the first refuted check; 4350 when a required check is unknown; 5360 when
                nothing was checked.
        """
        for check in self.checks:
            if check.status == "refuted":
                raise error_for(check.code or 5360, check.statement, check.expected, check.got)
        for check in self.checks:
            if check.required and check.status == "unknown":
                raise AttestationError(4350, check.statement)
        if not any(check.required for check in self.checks):
            raise IntegrityError(5360, "nothing was checked")

    def asserted(self, group: str, subject: str, what: str, reason: str = "", *, required: bool = True) -> None:
        """Adds a check that holds."""
        self.checks.append(Check(group, subject, what, "asserted", reason, None, required))

    def unknown(self, group: str, subject: str, what: str, reason: str, *, required: bool = False) -> None:
        """Adds a check that could not be made."""
        self.checks.append(Check(group, subject, what, "unknown", reason, None, required))

    @contextmanager
    def checking(self, group: str, subject: str, what: str) -> Iterator[list[str]]:
        """A check that holds unless its body raises a ``CloisterError``; the list yielded collects what it rests on."""
        notes: list[str] = []
        try:
            yield notes
        except CloisterError as error:
            expected = None if error.expected is None else str(error.expected)
            got = None if error.got is None else str(error.got)
            found = Check(group, subject, what, "refuted", error.what, error.code, True, expected, got)
            self.checks.append(found)
        else:
            self.asserted(group, subject, what, "; ".join(notes))

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        count = {status: sum(c.status == status for c in self.checks) for status in ("asserted", "refuted", "unknown")}
        return {
            "manifest": self.manifest,
            "run": self.run,
            "at": self.at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "outcome": self.outcome,
            "assurance": "simulated" if self.simulated else "hardware",
            "unsandboxed": self.unsandboxed,
            "count": count,
            "checks": [check.as_json() for check in self.checks],
            "ran": [each.as_json() for each in self.ran],
            "released": [each.as_json() for each in self.released],
        }
