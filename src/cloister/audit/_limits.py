"""What no bundle can show, so that nobody reads it into a report."""

from __future__ import annotations

from cloister.audit._case import Case
from cloister.manifest import COLLUSION, MODE_LEAKS, OffloadTerms, Reach, producer_of, reaches_of

__all__ = ["list_limits"]


def list_limits(case: Case) -> None:
    """Adds what stays unknown whatever the bundle holds."""
    report, manifest = case.report, case.manifest
    reaches = reaches_of(manifest)
    for stage_name, stage in sorted(manifest.stages.items()):
        if stage.offload is not None and stage.offload.workers:
            _offload(case, stage_name, stage.offload)
    for name, service in sorted(manifest.services.items()):
        who = ", ".join(sorted(service.clients)) or "anybody"
        shown = f"{len(case.bundle.inference)} receipts were handed in"
        reason = (
            f"{who} may ask as often as they like: answers leave no trace but the receipts that clients keep ({shown})"
        )
        what = "what was asked, and what the answers reveal together"
        reach = reaches.get(service.model)
        if reach and set(reach.values()) == {Reach.PRIVATE}:
            what = "what was asked"
            reason += "; what all answers reveal together is bounded with the model"
        report.unknown("privacy", name, what, reason)
        if producer_of(manifest, service.model) is None:
            report.unknown("data", service.model, "how this model was made", "it came into the run as an image")
    if report.simulated:
        reason = "SIMULATED: software signed this evidence"
        report.unknown("hardware", "every enclave", "memory is hidden from the host", reason)
    else:
        reason = "outside what evidence can show"
        report.unknown("hardware", "every enclave", "side channels and physical attacks", reason)
    report.unknown(
        "hardware",
        "every enclave",
        "the platform's patch level is the newest",
        "judged by the collateral in the bundle: the host may pick the oldest that is still in its window",
    )
    report.unknown(
        "time", "every key manager", "when things happened", "times are the hosts' clocks; only their order is shown"
    )
    report.unknown(
        "code", "every script", "does what its owner says", "the run shows which image ran, not what it computes"
    )
    report.unknown("data", "every owner", "labels and measurements are right", "nobody but the owners has seen them")


def _offload(case: Case, stage_name: str, terms: OffloadTerms) -> None:
    """What a receipt cannot say of workers: nobody sees from outside whom they talk to."""
    mode, operators = terms.mode, [case.manifest.workers[name].operator for name in terms.workers]
    shown = f"mode {mode} shows each operator {MODE_LEAKS[mode]}"
    together = COLLUSION.get(mode)
    if together is None:
        reason = shown
    else:
        reason = f"{shown}; that no two of {', '.join(operators)} put together what they saw, nothing shows"
    case.report.unknown("offload", stage_name, "what its workers learned, and whether they collude", reason)
