"""What the steps of an audit share: the bundle, the agreement, the logs that verified, the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, TypeVar

from cloister.attest import Evidence, SessionClaims, Verdict, check_session
from cloister.audit._check import AuditReport
from cloister.audit._log import KeyManagerLog
from cloister.errors import IntegrityError
from cloister.keys import AttemptEntry, RegistrationEntry, appraise_tee, require_tee
from cloister.manifest import Manifest
from cloister.receipt import Bundle
from cloister.wire import VerifyKey, digest

__all__ = ["Attested", "Case"]

E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class Attested:
    """An attempt whose evidence was accepted."""

    claims: SessionClaims
    verdict: Verdict


@dataclass(frozen=True)
class Case:
    """One audit.

    Attributes:
        bundle: Nothing in it is trusted.
        manifest: The agreement, once its signatures were verified.
        at: The moment that evidence is judged by.
        report: Collects the checks.
        logs: By key manager; those that verified.
        run: The run's id.
    """

    bundle: Bundle
    manifest: Manifest
    at: datetime
    report: AuditReport
    logs: Mapping[str, KeyManagerLog]
    run: str

    @property
    def id(self) -> str:
        """The manifest's id, which takes a while to work out."""
        return self.report.manifest

    def key(self, key_manager: str) -> VerifyKey:
        """The signing key that the manifest gives a key manager.

        Raises:
            IntegrityError: 5361 when it names none of that name.
        """
        if key_manager not in self.manifest.key_managers:
            raise IntegrityError(5361, f"the manifest names no key manager '{key_manager}'")
        return VerifyKey.parse(self.manifest.key_managers[key_manager].sign)

    def log(self, key_manager: str) -> KeyManagerLog:
        """A key manager's log.

        Raises:
            IntegrityError: 5363 when it is missing, or did not verify.
        """
        if key_manager not in self.logs:
            raise IntegrityError(5363, f"the log of '{key_manager}' is not there to show it")
        return self.logs[key_manager]

    def entries(self, kind: type[E]) -> Iterator[tuple[str, int, E]]:
        """Key manager, index and entry of every entry of this kind about this run."""
        for name, log in self.logs.items():
            for index, entry in log.entries:
                if isinstance(entry, kind) and getattr(entry, "run", None) == self.run:
                    yield name, index, entry

    @cached_property
    def granted(self) -> frozenset[tuple[str, int]]:
        """Consumer and attempt of every attempt in the registrar's log."""
        mine = (entry for name, _, entry in self.entries(AttemptEntry) if name == self.manifest.registrar)
        return frozenset((entry.consumer, entry.attempt) for entry in mine)

    @cached_property
    def registered(self) -> dict[str, RegistrationEntry]:
        """The registrar's registration of each stage."""
        found: dict[str, RegistrationEntry] = {}
        for name, _, entry in self.entries(RegistrationEntry):
            if name == self.manifest.registrar:
                found.setdefault(entry.stage, entry)
        return found

    @cached_property
    def images(self) -> dict[str, str]:
        """The image id of each output, as the registrar registered it."""
        return {name: image for entry in self.registered.values() for name, image in entry.outputs.items()}

    def appraise(self, tee: str, evidence: Evidence, collateral: str | None) -> Verdict:
        """The verdict on evidence whose collateral lies in the bundle's table; only an accepted one is returned.

        Raises:
            AttestationError: the evidence is not that of an enclave that the manifest names.
            IntegrityError: 5368 when the table files the collateral under another digest.
        """
        found = self.bundle.collaterals.get(collateral or "")
        if found is not None and digest(found.canonical()) != collateral:
            raise IntegrityError(5368, expected=collateral, got=digest(found.canonical()))
        whole = evidence.model_copy(update={"collateral": found})
        verdict = appraise_tee(self.manifest.tees[tee], whole, at=self.at)
        self.report.simulated |= verdict.simulated
        require_tee(self.manifest.tees[tee], whole, verdict)
        return verdict

    def require_session(self, verdict: Verdict, claims: SessionClaims, purpose: Any, **wanted: Any) -> None:
        """Returns when the accepted evidence is about ``claims``, and these are about what is ``wanted``.

        Whose the nonces are, no bundle shows: each key manager compared its own before it released.
        """
        name, nonce = next(iter(claims.nonces.items()))
        check_session(verdict, claims, purpose=purpose, nonce_name=name, nonce=nonce, at=self.at, **wanted)
