"""What a stage's workers were asked, and how well their answers were checked, from its accepted receipt.

That the numbers fit what was agreed is the receipt's own check. The launcher counted them; its evidence says whose code
that is.
"""

from __future__ import annotations

from cloister.audit._attempts import Findings
from cloister.audit._case import Case
from cloister.errors import IntegrityError
from cloister.manifest import OffloadTerms
from cloister.receipt import OffloadFacts

__all__ = ["check_offload"]


def check_offload(case: Case, found: Findings) -> None:
    """One check for each stage that agreed on offloading."""
    ended = {stage: facts for (stage, _), facts in found.ended.items()}
    for stage, agreed in sorted(case.manifest.stages.items()):
        if agreed.offload is None:
            continue
        what = _statement(agreed.offload)
        if stage not in ended:
            case.report.unknown("offload", stage, what, "no accepted receipt of it", required=True)
            continue
        with case.report.checking("offload", stage, what) as notes:
            facts = ended[stage].offload
            if facts is None:
                raise IntegrityError(5351, "the receipt says nothing of its offloading")
            notes.append(_counts(facts))


def _statement(terms: OffloadTerms) -> str:
    if not terms.workers:
        return f"mode {terms.mode}: its layers were multiplied in the enclave itself"
    by = ", ".join(f"'{name}'" for name in terms.workers)
    return f"mode {terms.mode}: its layers were multiplied by {by}, and every product was checked"


def _counts(facts: OffloadFacts) -> str:
    if not facts.products:
        return "nothing was offloaded"
    said = f"{facts.products:,} products"
    if facts.error_bits is not None:
        said += f", {facts.checks:,} checks: a wrong one passed with a probability of at most 2^-{facts.error_bits}"
    if facts.late:
        said += f"; {facts.late:,} blinding products were made late"
    return f"{said}; {facts.sent_bytes:,} bytes sent, {facts.received_bytes:,} received"
