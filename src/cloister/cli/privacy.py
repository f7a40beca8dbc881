"""``cloister privacy epsilon|calibrate``: what a training costs, and how much noise a guarantee needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli._privacy_check import check, program, recheck
from cloister.cli._voice import Json, note, show

if TYPE_CHECKING:
    from cloister.ledger import Event, Method, Spent

__all__ = ["register"]

Neighbours = Annotated[
    str,
    typer.Option("--relation", help="when datasets are neighbours: add-or-remove-one, replace-one, replace-special"),
]
Probability = Annotated[
    str, typer.Option("--sampling-probability", help="of each unit in each step: 64/50000 or 0.00128")
]
Delta = Annotated[str, typer.Option("--delta", help="the probability that the bound does not hold: 1e-5")]
Unit = Annotated[str, typer.Option("--unit", help="whose presence is hidden: record, patient, ...")]
Slack = Annotated[str, typer.Option("--slack", help="statistical distance of the real mechanism to the ideal one")]
Way = Annotated[str, typer.Option("--method", help="pld (needs the extra 'privacy') or rdp")]


def epsilon(
    delta: Delta,
    probability: Annotated[str | None, typer.Option("--sampling-probability", help="64/50000, 0.00128")] = None,
    noise: Annotated[str | None, typer.Option("--noise-multiplier", help="noise over the bound on a unit")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="how often a sample was drawn")] = None,
    relation: Annotated[str | None, typer.Option("--relation", help="as in calibrate")] = None,
    ledger: Annotated[
        list[Path] | None, typer.Option("--ledger", help="instead of the four above: a run's ledger; may be repeated")
    ] = None,
    unit: Unit = "record",
    slack: Slack = "0",
    method: Way = "pld",
    json: Json = False,
) -> None:
    """Print the epsilon of a training, or of what ledgers record."""
    from cloister.errors import InputError
    from cloister.ledger import Account, sampled_gaussian

    terms = (probability, noise, steps, relation)
    events: list[Event] = []
    if ledger and all(term is None for term in terms):
        events += _recorded(ledger)
    elif not ledger and probability is not None and noise is not None and steps is not None and relation is not None:
        events.append(
            sampled_gaussian(
                unit=unit,
                relation=_relation(relation),
                sampling_probability=probability,
                noise_multiplier=noise,
                steps=steps,
                slack=slack,
            )
        )
    else:
        raise InputError(2019, "give --sampling-probability, --noise-multiplier, --steps and --relation, or --ledger")
    account = Account(events, by=_method(method))
    facts = _facts(account.epsilon(delta)) | {"unit": account.unit, "relation": account.relation.value}
    show(facts, json=json)


def calibrate(
    epsilon: Annotated[str, typer.Option("--epsilon", help="the bound to keep: 3")],
    delta: Delta,
    probability: Probability,
    steps: Annotated[int, typer.Option("--steps", help="how often a sample will be drawn")],
    relation: Neighbours,
    unit: Unit = "record",
    slack: Slack = "0",
    method: Way = "pld",
    json: Json = False,
) -> None:
    """Print the least noise multiplier that keeps an epsilon."""
    from cloister import ledger

    found = ledger.calibrate(
        epsilon=epsilon,
        delta=delta,
        sampling_probability=probability,
        steps=steps,
        unit=unit,
        relation=_relation(relation),
        slack=slack,
        by=_method(method),
    )
    facts = {"noise_multiplier": found.event.noise_multiplier} | _facts(found.spent)
    show(facts | {"unit": unit, "relation": relation}, json=json)


def _recorded(paths: list[Path]) -> list[Event]:
    from cloister.ledger import MAX_LEDGER_BYTES, merge_ledgers, read_ledger
    from cloister.wire import read_bounded

    read = (read_bounded(path, max_bytes=MAX_LEDGER_BYTES, what="privacy ledger") for path in paths)
    events = merge_ledgers(read_ledger(data, head=None) for data in read)
    note("the ledgers are consistent in themselves; compare their heads with signed receipts")
    return list(events)


def _relation(text: str) -> Any:
    from cloister.errors import InputError
    from cloister.ledger import Relation

    if text not in set(Relation):
        raise InputError(2019, "no such relation", expected=", ".join(Relation), got=repr(text))
    return Relation(text)


def _method(text: str) -> Method:
    from cloister.errors import InputError
    from cloister.ledger import Method

    if text not in set(Method):
        raise InputError(2019, "no such method", expected=", ".join(Method), got=repr(text))
    return Method(text)


def _facts(spent: Spent) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "epsilon": spent.epsilon or "unknown",
        "delta": spent.delta,
        "by": spent.by.value,
        "pld": spent.pld or "none",
        "rdp": spent.rdp or "none",
        "slack": spent.slack,
    }
    if spent.unknown:
        facts["unknown"] = "; ".join(spent.unknown)
    if spent.remark:
        facts["remark"] = spent.remark
    return facts


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    privacy = typer.Typer(no_args_is_help=True, help="Count and calibrate differential privacy.", rich_markup_mode=None)
    privacy.command("epsilon")(epsilon)
    privacy.command("calibrate")(calibrate)
    privacy.command("check")(check)
    privacy.command("recheck")(recheck)
    privacy.command("program")(program)
    app.add_typer(privacy, name="privacy")
