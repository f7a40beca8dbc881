"""What a verifier found: claims, and the verdict that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal

from cloister.attest._policy import PolicyTrace
from cloister.errors import AttestationError

__all__ = ["Claim", "ClaimStatus", "ClaimValue", "Verdict"]

ClaimStatus = Literal["asserted", "refuted", "unknown"]
ClaimValue = str | int | bool | tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement about the evidence.

    Attributes:
        name: Dotted: ``tee.*`` for what the TEE is, ``evidence.*`` and ``collateral.*`` for what was checked.
        status: ``asserted``: shown true. ``refuted``: shown false. ``unknown``: could not be examined, which is
            never acceptance.
        value: What the evidence says. Under ``unknown`` it is only what unproven bytes say.
        source: The part of the evidence or collateral it comes from.
        reason: Why it is not asserted; empty when it is.
        code: The error code of that reason, or None.
        required: The evidence is accepted only when this claim is asserted.
    """

    name: str
    status: ClaimStatus
    value: ClaimValue
    source: str
    reason: str = ""
    code: int | None = None
    required: bool = False

    def as_json(self) -> dict[str, Any]:
        """The claim as a JSON object."""
        facts: dict[str, Any] = {"name": self.name, "status": self.status, "source": self.source}
        if self.value is not None:
            facts["value"] = list(self.value) if isinstance(self.value, tuple) else self.value
        if self.reason:
            facts["reason"] = self.reason
        if self.code is not None:
            facts["code"] = self.code
        return facts


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an appraisal found, as of one moment. There is no boolean form: call :meth:`require`.

    Attributes:
        claims: In the order of the appraisal's steps.
        evidence_digest: SHA-256 of the quote.
        at: The moment that the appraisal is about.
        simulated: The evidence leads to a development root, not to hardware; also True when it leads to no accepted
            root at all, because then nothing shows hardware either.
        trace: Which conditions of the policy held.
    """

    claims: tuple[Claim, ...]
    evidence_digest: str
    at: datetime
    simulated: bool
    trace: PolicyTrace | None
    _index: Mapping[str, Claim] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", MappingProxyType({claim.name: claim for claim in self.claims}))

    def __bool__(self) -> bool:
        raise TypeError("a verdict has no truth value: call require()")

    @property
    def assurance(self) -> Literal["simulated", "hardware"]:
        """What the evidence rests on. Every artefact that depends on it carries this word."""
        return "simulated" if self.simulated else "hardware"

    @property
    def outcome(self) -> ClaimStatus:
        """``refuted`` when a required claim is, else ``unknown`` when one is, else ``asserted``: accepted."""
        statuses = {claim.status for claim in self.claims if claim.required}
        if "refuted" in statuses:
            return "refuted"
        return "asserted" if statuses == {"asserted"} else "unknown"

    def claim(self, name: str) -> Claim | None:
        """The claim of this name, whatever its status, or None."""
        return self._index.get(name)

    def facts(self) -> dict[str, ClaimValue]:
        """Names and values of the asserted claims only: what a policy may be evaluated over."""
        return {claim.name: claim.value for claim in self.claims if claim.status == "asserted"}

    def value(self, name: str) -> ClaimValue:
        """The value of an asserted claim.

        Raises:
            AttestationError: the claim's own code when it is not asserted; 4147 when the evidence makes no such claim.
        """
        self.require(name)
        return self._index[name].value

    def require(self, *names: str) -> None:
        """Returns only when every required claim is asserted; with ``names``, only when each of these is.

        Raises:
            AttestationError: the code of the first that is refuted, else of the first that is unknown; 4147 for a
                claim that the evidence does not make.
        """
        wanted = [self._named(name) for name in names] or [claim for claim in self.claims if claim.required]
        if not wanted:
            raise AttestationError(4147, "nothing was examined")
        for status in ("refuted", "unknown"):
            for claim in wanted:
                if claim.status == status:
                    raise AttestationError(
                        claim.code or 4147, f"{claim.name} is {claim.status}: {claim.reason}", got=_shown(claim.value)
                    )

    def as_json(self) -> dict[str, Any]:
        """The verdict as a JSON object."""
        return {
            "at": self.at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "outcome": self.outcome,
            "accepted": self.outcome == "asserted",
            "assurance": self.assurance,
            "simulated": self.simulated,
            "evidence_digest": self.evidence_digest,
            "claims": [claim.as_json() for claim in self.claims],
            "policy": None if self.trace is None else self.trace.as_json(),
        }

    def _named(self, name: str) -> Claim:
        found = self._index.get(name)
        if found is None:
            raise AttestationError(4147, f"the evidence makes no claim {name!r}")
        return found


def _shown(value: ClaimValue) -> object:
    return ", ".join(value) if isinstance(value, tuple) else value
