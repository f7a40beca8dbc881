"""What is counted before a session begins is what the session then makes, opens and sends: equal, not near."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from tests.linear_inputs import summaries
from tests.linear_mesh import run_parties, together
from tests.linear_people import NAMES, PEOPLE
from tests.unit.linear.test_session import agreement, parts_of

from cloister.linear import _answered, _compute, _preprocess
from cloister.linear._agreed_rows import summary_of
from cloister.linear._budget import Budget, budget_of
from cloister.linear._compute import Job, compute
from cloister.linear._counts import Counts, Sent, count_statistics
from cloister.linear._demand import Demand
from cloister.linear._estimate import Network, Primitives, estimate
from cloister.linear._field import ELEMENT_BYTES
from cloister.linear._frames import HEADER_BYTES
from cloister.linear._newton import newton_plan
from cloister.linear._party import Party
from cloister.linear._plan import Plan
from cloister.linear._session import run_session
from cloister.linear._supply import Pool, Supply
from cloister.linear._values import Tagger

DEGREE = 1024
OF_INPUTS = {"bounds of inputs": "bits of inputs", "projections of inputs": "bits of inputs"}
RIDGE = Plan(
    method="ridge",
    rows=(300, 500),
    curvature=Fraction(6),
    mean_squares=(Fraction(2),) * 5,
    steps=30,
    l2=Fraction(1, 2),
    tolerance=Fraction(1),
)
LASSO = replace(RIDGE, method="lasso", rows=(300, 200, 400), l1=Fraction(1, 10), rounds=4, half=3)
WIDE = replace(RIDGE, mean_squares=(Fraction(2),) * 9, curvature=Fraction(9), steps=90)  # answers of several pieces


def again(plan: Plan) -> Plan:
    return newton_plan(plan, l1=plan.l1, l2=plan.l2, reach=Fraction(40))


def said(mesh: Any, party: int = 0) -> dict[tuple[str, str], Sent]:
    """Messages of one party to the next, by phase and kind."""
    begun, out = mesh.phases[party], dict[tuple[str, str], Sent]()
    for message in mesh.heard:
        if (message.sender, message.receiver) == (party, (party + 1) % mesh.parties):
            phase = [name for name, step in begun if step <= message.step] or ["session"]
            kind, echo, _ = message.kind.partition(" echo")
            place = phase[-1], OF_INPUTS.get(kind, kind) + echo
            out[place] = out.get(place, Sent(0, 0)) + Sent(1, len(message.body))
    return out


def opened(messages: dict[tuple[str, str], Sent], *, malicious: bool = True) -> dict[str, int]:
    """Values, without the tags beside them."""
    return {
        phase: sent.size_bytes // ELEMENT_BYTES - sent.steps * malicious
        for (phase, kind), sent in messages.items()
        if kind == "open"
    }


class Watch:
    """What party 0 has tagged and used up, and the coefficients of all parties' answers."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.tagged: list[int] = []
        self.given: dict[str, int] = {}
        self.answered: list[int] = []
        self.pools: list[Pool] = []
        tag, wipe, make, answer = Tagger.tag, Supply.wipe, _preprocess.preprocess, _answered.answer

        def tagging(tagger: Tagger, values: Any) -> Any:
            if tagger._party.number == 0 and tagger._party.malicious:
                self.tagged.append(len(values))
            return tag(tagger, values)

        def wiping(supply: Supply) -> None:
            self.given = supply.given
            wipe(supply)

        def making(party: Party, *args: Any, **kwargs: Any) -> Any:
            stock, pool = make(party, *args, **kwargs)
            if party.number == 0:
                self.pools.append(pool)
            return stock, pool

        def answering(*args: Any, **kwargs: Any) -> Any:
            made, share = answer(*args, **kwargs)
            self.answered.append(len(share))
            return made, share

        patch.setattr(Tagger, "tag", tagging)
        patch.setattr(Supply, "wipe", wiping)
        patch.setattr(_compute, "preprocess", making)
        patch.setattr(_answered, "answer", answering)


def run(job: Job, patch: pytest.MonkeyPatch) -> tuple[Watch, Any]:
    watch, meshes = Watch(patch), list[Any]()
    first = summaries(job.plan)
    more = summaries(job.newton) if job.newton else []

    def act(party: Party) -> Any:
        return compute(party, job, lambda point: (first if point is None else more)[party.number], degree=DEGREE)

    together(job.plan.parties, act, malicious=job.malicious, mesh_out=meshes)
    return watch, meshes[0]


def within(counts: Counts) -> dict[tuple[str, str], Sent]:
    """Without what the session says around its computation."""
    return {place: sent for place, sent in counts.messages.items() if place[0] not in ("session", "release")}


def used_up(needs: Demand) -> dict[str, int]:
    found = {
        "matrices": needs.fits,
        "steps": needs.fits * needs.steps,
        "certificates": needs.fits,
        "residuals": needs.fits,
        "relaxations": needs.fits * needs.rounds,
        "coarse": needs.coarse.count,
        "fine": needs.fine.count,
        "wide": needs.wide.count,
        "signs": needs.tests,
        "factors": needs.tests,
        "triples": needs.triples,
    }
    return {kind: many for kind, many in found.items() if many}


def require_equal(budget: Budget, watch: Watch, mesh: Any, *, malicious: bool) -> None:
    counts, needs = budget.counts, budget.needs
    found = said(mesh)
    assert found == within(counts)
    assert opened(found, malicious=malicious) == counts.openings
    total = sum(sent.size_bytes for sent in found.values())
    assert mesh.sent_bytes == [(mesh.parties - 1) * total] * mesh.parties
    assert watch.given == used_up(needs)
    assert (needs.triples, needs.bits) == (counts.triples, counts.bits)
    assert counts.batches == -(-(needs.triples + needs.bits) // DEGREE)
    assert counts.products == watch.given["steps"] + watch.given["certificates"]
    assert counts.answers == budget.tiles.answers == found["answers", "matrix"].steps
    assert sum(watch.answered) == mesh.parties * (mesh.parties - 1) * counts.answered
    if malicious:
        assert [pool.left for pool in watch.pools] == [0]
        made = counts.authenticated["products"]
        values = sum(counts.authenticated.values()) - made
        assert watch.tagged == [DEGREE, values, *[DEGREE] * 3 * counts.batches, made]
        assert counts.polynomials == found["answers", "values"].steps


@pytest.mark.parametrize("malicious", [True, False])
@pytest.mark.parametrize("plan", [RIDGE, LASSO, WIDE], ids=["ridge", "lasso", "wide"])
def test_a_fit_uses_what_was_counted(plan: Plan, malicious: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, mesh = run(Job(plan, malicious=malicious), monkeypatch)
    require_equal(budget_of(plan, malicious=malicious, ring=DEGREE), watch, mesh, malicious=malicious)


@pytest.mark.parametrize("plan", [RIDGE, LASSO], ids=["ridge", "lasso"])
def test_newtons_rounds_use_what_was_counted(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(plan, newton=again(plan), rounds=2)
    watch, mesh = run(job, monkeypatch)
    budget = budget_of(plan, fits=3, again=job.newton, ring=DEGREE)
    require_equal(budget, watch, mesh, malicious=True)
    assert budget.counts.authenticated != budget_of(plan, fits=3, ring=DEGREE).counts.authenticated


@pytest.mark.parametrize("malicious", [True, False])
def test_statistics_use_what_was_counted(malicious: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [(0, 0), (0, 1), (2, 5)]
    watch, mesh = run(Job(RIDGE, entries=entries, malicious=malicious), monkeypatch)
    counts = count_statistics(RIDGE, len(entries), malicious=malicious, degree=DEGREE)
    assert said(mesh) == within(counts)
    assert opened(said(mesh), malicious=malicious) == counts.openings
    assert sum(watch.tagged[1:]) == sum(counts.authenticated.values())
    assert sum(watch.answered) == 2 * counts.answered


def test_a_whole_session_says_what_was_counted() -> None:
    held, meshes = agreement({"type": "ridge", "alpha": "15", "steps": 60}), list[Any]()
    parts = parts_of(held)

    def act(party: Party) -> Any:
        place = party.number
        own, identity = summary_of(held, place, parts[place]), PEOPLE[NAMES[place]]
        return run_session(party.channel, held, own, identity=identity, part=parts[place], degree=DEGREE)

    outcomes = run_parties(3, act, mesh_out=meshes)
    assert not [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    counts = budget_of(held.plan(), ring=DEGREE).counts
    assert said(meshes[0]) == counts.messages
    phases = Counter({phase: sent.size_bytes for phase, sent in counts.phases.items()})
    assert list(counts.phases) == ["session", "groups", "answers", "checks", "inputs", "online", "release"]
    assert meshes[0].sent_bytes == [2 * phases.total()] * 3


@pytest.mark.parametrize("malicious", [True, False])
def test_an_estimate_is_of_what_is_counted(malicious: bool) -> None:
    fit = budget_of(LASSO, fits=3, again=again(LASSO), malicious=malicious).counts
    opened = count_statistics(LASSO, 7, malicious=malicious)
    slow = Network(round_trip_s=2.0, bytes_s=1e6)
    cases: list[tuple[Counts, dict[str, Any]]] = [(fit, {"fits": 3, "again": again(LASSO)}), (opened, {"entries": 7})]
    for counts, more in cases:
        found = estimate(LASSO, Primitives(), network=slow, malicious=malicious, **more)
        for name, phase in found.phases.items():
            sent = counts.phases.get(name, Sent(0, 0))
            assert phase.rounds == sent.steps
            assert phase.up_bytes == 2 * (sent.size_bytes + HEADER_BYTES * sent.steps)
            assert phase.network_s == pytest.approx(sent.steps + phase.up_bytes / 1e6)
            assert (phase.cpu_s > 0) == (sent.steps > 0)
        assert found.seconds > found.phases["online"].network_s
    assert sum(sent.size_bytes for sent in opened.phases.values()) < sum(
        sent.size_bytes for sent in fit.phases.values()
    )
