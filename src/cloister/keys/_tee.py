"""Is this evidence from an enclave that the manifest accepts? One rule, one code."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from cloister.attest import VENDOR_ROOTS, Evidence, TrustRoots, Verdict, appraise, parse_policy
from cloister.errors import AttestationError
from cloister.keys._trace import Trace
from cloister.manifest import Tee

__all__ = ["appraise_tee", "require_tee"]

_NEVER_OPEN: Final = parse_policy(
    {
        "version": "1.0.0",
        "anyOf": [
            {
                "authority": "cloister",
                "allOf": [{"claim": "tee.debug", "equals": False}, {"claim": "tee.service_td", "equals": False}],
            }
        ],
    }
)
"""What no manifest can allow: a debugger, or a service TD that may take the memory elsewhere."""


def appraise_tee(tee: Tee, evidence: Evidence, *, at: datetime, roots: TrustRoots = VENDOR_ROOTS) -> Verdict:
    """The verdict on the evidence itself, under the roots that ``tee`` accepts; :func:`require_tee` does the rest."""
    accepted = roots if tee.simulated_root is None else roots.with_development(tee.simulated_root)
    return appraise(evidence, evidence.collateral, _NEVER_OPEN, at, roots=accepted)


def require_tee(tee: Tee, evidence: Evidence, verdict: Verdict, *, trace: Trace | None = None) -> None:
    """Returns when ``verdict`` is accepted and is about an enclave that ``tee`` names.

    Raises:
        AttestationError: the verdict's own codes; 4401 another kind of TEE; 4402 another measurement; 4403 TCB
            status; 4404 a denied advisory; 4405 another platform; 4406 simulated without the manifest's consent;
            4407 not simulated where the manifest is about one development root; 4409 other run-time measurements.
    """
    trace = trace or Trace()
    with trace.rule("evidence verifies"):
        verdict.require()
    with trace.rule("kind of TEE"):
        if evidence.type != tee.type:
            raise AttestationError(4401, expected=tee.type, got=evidence.type)
    with trace.rule("measurement"):
        measurement = verdict.value("tee.measurement")
        if measurement not in tee.measurements:
            raise AttestationError(4402, expected=" or ".join(tee.measurements), got=measurement)
    with trace.rule("run-time measurements"):
        registers = tuple(verdict.value(f"tee.rtmr{index}") for index in range(4)) if tee.rtmrs else ()
        if tee.rtmrs and not any(_registers_match(accepted, registers) for accepted in tee.rtmrs):
            raise AttestationError(4409, expected=" or ".join(map(" ".join, tee.rtmrs)), got=registers)
    with trace.rule("TCB status"):
        status = verdict.value("tee.tcb.status")
        if status not in tee.tcb:
            raise AttestationError(4403, expected=" or ".join(tee.tcb), got=status)
    with trace.rule("advisories"):
        denied = sorted(set(_texts(verdict, "tee.tcb.advisories")) & set(tee.deny_advisories))
        if denied:
            raise AttestationError(4404, f"denied: {', '.join(denied)}", got=", ".join(denied))
    with trace.rule("platform"):
        if tee.platforms and verdict.value("tee.platform") not in tee.platforms:
            raise AttestationError(4405, expected=" or ".join(tee.platforms), got=verdict.value("tee.platform"))
    with trace.rule("assurance"):
        if verdict.simulated and tee.simulated_root is None:
            raise AttestationError(4406)
        if not verdict.simulated and tee.simulated_root is not None:
            raise AttestationError(4407, expected=f"development root {tee.simulated_root}")


def _registers_match(accepted: tuple[str, ...], found: tuple[object, ...]) -> bool:
    return all(wanted in ("any", got) for wanted, got in zip(accepted, found, strict=True))


def _texts(verdict: Verdict, name: str) -> tuple[str, ...]:
    value = verdict.value(name)
    return value if isinstance(value, tuple) else ()
