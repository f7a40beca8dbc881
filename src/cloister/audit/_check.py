"""One finding of an audit, and the report that holds them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from cloister.errors import AttestationError, CloisterError, IntegrityError, error_for

__all__ = ["AuditReport", "Check", "Status"]

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
    """

    group: str
    subject: str
    what: str
    status: Status
    reason: str = ""
    code: int | None = None
    required: bool = True

    def as_json(self) -> dict[str, Any]:
        """The check as a JSON object."""
        facts = {"group": self.group, "subject": self.subject, "what": self.what, "status": self.status}
        if self.reason:
            facts["reason"] = self.reason
        return facts | {"required": self.required} | ({"code": self.code} if self.code else {})


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
    """

    manifest: str
    run: str
    at: datetime
    simulated: bool = False
    unsandboxed: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

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
            CloisterError: the code of the first refuted check; 4350 when a required check is unknown.
        """
        for check in self.checks:
            if check.status == "refuted":
                raise error_for(check.code or 5360, f"{check.group} {check.subject}: {check.what}: {check.reason}")
        for check in self.checks:
            if check.required and check.status == "unknown":
                raise AttestationError(4350, f"{check.group} {check.subject}: {check.what}: {check.reason}")
        if not self.checks:
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
            reason = error.what
            if error.expected is not None or error.got is not None:
                reason += f" (expected {error.expected}, got {error.got})"
            self.checks.append(Check(group, subject, what, "refuted", reason, error.code))
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
        }
