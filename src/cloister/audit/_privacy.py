"""What the run's trainings spent, and what its released outputs tell of one record, where that was bounded.

A private training's ledger is in its receipt, and a receipt whose ledger is not what was agreed is refuted already.
Here its cost is computed anew. How far it reaches follows from the manifest: an output that an image's records come
into by a script is bounded by nothing, whatever a training beside it spent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

from cloister.audit._attempts import Findings
from cloister.audit._case import Case
from cloister.ledger import Account, Event, Ledger, Method, amount
from cloister.manifest import PrivacyTerms, Reach, consumers_of, private_stages, reaches_of

__all__ = ["check_privacy"]


def check_privacy(case: Case, found: Findings) -> None:
    """One check a private training, and one or two an output that a party or a service gets."""
    facts = {stage: facts for (stage, _), facts in found.ended.items()}
    ledgers = {stage: each.privacy for stage, each in facts.items() if each.privacy is not None}
    for name, stage in sorted(case.manifest.stages.items()):
        if stage.privacy is not None:
            _training(case, name, stage.privacy, ledgers.get(name))
    reaches = reaches_of(case.manifest)
    for stage_name, stage in sorted(case.manifest.stages.items()):
        for output in sorted(stage.outputs):
            to = sorted({each.party or each.service or "" for each in consumers_of(case.manifest, output)} - {""})
            if to:
                _output(case, f"{stage_name}/{output}", ", ".join(to), reaches[output], ledgers)


def _training(case: Case, name: str, terms: PrivacyTerms, ledger: Ledger | None) -> None:
    what = f"its training spent at most ε = {terms.epsilon} at δ = {terms.delta} per {terms.unit}"
    if ledger is None:
        case.report.unknown("privacy", name, what, "no accepted receipt of it", required=True)
        return
    with case.report.checking("privacy", name, what) as notes:
        spent = _epsilon(ledger.events, terms.delta)
        notes.append(f"the engine's account costs ε = {spent} ({terms.relation}, by Rényi divergence)")


def _output(case: Case, subject: str, to: str, reach: Mapping[str, Reach], ledgers: Mapping[str, Ledger]) -> None:
    bounded = sorted(name for name, how in reach.items() if how is Reach.PRIVATE)
    for image in bounded:
        _bounded(case, subject, to, image, ledgers)
    beyond = {how: sorted(name for name, each in reach.items() if each is how) for how in (Reach.OPEN, Reach.PREPARED)}
    said = []
    if beyond[Reach.OPEN]:
        said.append(f"of {', '.join(beyond[Reach.OPEN])} without differential privacy: scripts read it")
    if beyond[Reach.PREPARED]:
        said.append(
            f"of {', '.join(beyond[Reach.PREPARED])} through a private training, and a script before it: how many "
            "records it made of one, nothing shows"
        )
    if said:
        what = "what it reveals of one person"
        case.report.unknown("privacy", subject, what, f"released to {to}, {'; '.join(said)}")


def _bounded(case: Case, subject: str, to: str, image: str, ledgers: Mapping[str, Ledger]) -> None:
    """All trainings of the run that read the image count: whoever gets one output may get the others."""
    stages = {name: case.manifest.stages[name].privacy for name in private_stages(case.manifest, image)}
    terms = [each for each in stages.values() if each is not None]
    kinds = {(each.unit, each.relation) for each in terms}
    what = f"what it reveals of one {terms[0].unit} of {image} is bounded"
    missing = sorted(stages.keys() - ledgers.keys())
    if missing:
        case.report.unknown("privacy", subject, what, f"no accepted receipt of {', '.join(missing)}", required=True)
        return
    if len(kinds) != 1:
        reason = "it was trained on per different units or relations, which nothing adds up"
        case.report.unknown("privacy", subject, what, reason)
        return
    with case.report.checking("privacy", subject, what) as notes:
        delta = max((each.delta for each in terms), key=Decimal)
        events = [event for name in sorted(stages) for event in ledgers[name].events]
        bound = f"ε = {_epsilon(events, delta)} at δ = {delta} ({terms[0].relation})"
        budget = case.manifest.images[image].budget
        beside = (
            "other runs count apart" if budget is None else f"all runs together by its budget, ε ≤ {budget.epsilon}"
        )
        notes.append(f"{bound} of this run, released to {to}; {beside}")


def _epsilon(events: Sequence[Event], delta: str) -> str:
    return Account(events, by=Method.RDP).epsilon(amount(delta)).epsilon or "more than can be stated"
