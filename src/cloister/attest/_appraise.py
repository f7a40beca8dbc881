"""Appraisal: evidence, collateral, a policy and a time in; a verdict out."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Protocol

from cloister.attest._claims import Claim, Verdict
from cloister.attest._dcap import verify_dcap
from cloister.attest._evidence import Collateral, Evidence
from cloister.attest._ledger import Ledger
from cloister.attest._policy import Policy, PolicyTrace
from cloister.attest._roots import VENDOR_ROOTS, TrustRoots
from cloister.attest._times import as_utc

__all__ = ["VERIFIERS", "Verifier", "appraise"]


class Verifier(Protocol):
    """Turns one type of evidence into claims.

    Contract: pure and total. Whatever the bytes are, it returns a ledger; a check that fails is a refuted claim, one
    that cannot be made is an unknown one; ``tee.simulated`` is asserted exactly when the root is known.
    """

    def __call__(self, evidence: Evidence, collateral: Collateral | None, at: datetime, roots: TrustRoots) -> Ledger:
        """The claims."""
        ...


VERIFIERS: Final[dict[str, Verifier]] = {"sgx": verify_dcap, "tdx": verify_dcap}
"""Evidence type → verifier. A new TEE is one entry here and one word in ``EvidenceType``."""

_CODES: Final = {
    "tee.simulated": 4145,
    "tee.debug": 4141,
    "tee.service_td": 4143,
    "tee.tcb.status": 4142,
    "tee.tcb.advisories": 4144,
    "tee.measurement": 4146,
    "tee.signer": 4146,
}


def appraise(
    evidence: Evidence,
    collateral: Collateral | None,
    policy: Policy,
    at: datetime,
    *,
    roots: TrustRoots = VENDOR_ROOTS,
) -> Verdict:
    """What the evidence shows at one moment, and whether the policy accepts it.

    Pure: no clock, file, socket or setting is consulted, and nothing that a verdict depends on is remembered.

    Args:
        evidence: What the TEE sent.
        collateral: What to check it with; None takes what travelled with the evidence.
        policy: What to accept; see :data:`DEFAULT_POLICY`.
        at: The moment the verdict is about, with a time zone.
        roots: The accepted roots.

    Returns:
        The verdict. Bad evidence is no exception but a verdict whose ``require()`` raises.

    Raises:
        InputError: 2106 when ``at`` has no time zone.
    """
    at = as_utc(at).replace(microsecond=0)  # as the verdict is written down, so that it can be repeated
    used = evidence.collateral if collateral is None else collateral
    ledger = VERIFIERS[evidence.type](evidence, used, at, roots)
    simulated = next((claim.value for claim in ledger.claims if claim.name == "tee.simulated"), True)
    facts = {claim.name: claim.value for claim in ledger.claims if claim.status == "asserted"}
    trace = policy.evaluate(facts)
    ledger.claims.append(_policy_claim(ledger, trace))
    return Verdict(tuple(ledger.claims), evidence.quote_digest(), at, simulated is not False, trace)


def _policy_claim(ledger: Ledger, trace: PolicyTrace) -> Claim:
    if not ledger.complete():
        # what failed before says why; a policy that "does not hold" over missing facts would hide it
        return Claim(
            "policy", "unknown", None, "policy", "not decided, because a check before it failed", 4140, required=True
        )
    if trace.holds:
        return Claim("policy", "asserted", True, "policy", required=True)
    first = trace.failures()[0]
    code = _CODES.get(first.claim or "", 4140)
    reason = f"{first.claim} {first.what} {_shown(first.expected)}: {first.reason}; got {_shown(first.got)}"
    return Claim("policy", "refuted", False, "policy", reason, code, required=True)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "nothing" if value is None else repr(value)[:200]
