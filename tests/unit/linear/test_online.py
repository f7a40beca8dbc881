"""The online phase between threads equals the emulator bit for bit, on the coins that the parties used."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from tests.linear_dealer import Dealer
from tests.linear_mesh import together

from cloister.errors import RefusedError
from cloister.linear._budget import require_sound
from cloister.linear._demand import Demand, demand
from cloister.linear._emulator import CoinTable, Emulator
from cloister.linear._online import Online
from cloister.linear._party import Party
from cloister.linear._plan import Plan
from cloister.linear._program import fit
from cloister.linear._supply import Supply


def statistics(features: int, seed: int, kappa: Fraction) -> np.ndarray:
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(40, features))
    rows = np.column_stack([np.ones(40), table, table[:, 0] * 0.7 + 0.4 * rng.normal(size=40) + 0.25])
    factor = np.rint(np.linalg.qr(rows / np.sqrt(40 * float(kappa)), mode="r") * 2**23).astype(np.int64)
    return factor.T @ factor


def plan(method: str, features: int = 3, parties: int = 3, **fields: Any) -> Plan:
    defaults: dict[str, Any] = {
        "rows": (40 // parties + 1,) * parties,
        "curvature": Fraction(4),
        "mean_squares": (Fraction(4),) * (features + 1),
        "l2": Fraction(1, 20),
    }
    if method == "lasso":
        defaults["l1"] = Fraction(1, 20)
    return Plan(method=method, **(defaults | fields))  # pyright: ignore[reportArgumentType]


def coin_table(needs: Demand, dealer: Dealer) -> CoinTable:
    """The dealer's coins in the program's order."""

    def entries() -> Iterator[Any]:
        coins, width = dealer.coins, needs.columns
        steps, relaxed = iter(coins["steps"]), iter(coins["relaxations"])
        coarse = iter(coins["coarse"].reshape(-1, width - 1))
        per_round = needs.steps // max(1, needs.rounds)
        for _ in range(needs.rounds):
            yield from (next(steps) for _ in range(per_round))
            yield next(relaxed)
            yield next(coarse)
        yield from steps
        yield coins["residuals"][0]
        if needs.rounds:
            yield coins["fine"]
        yield coins["wide"]

    return CoinTable(entries())


def run(case: Plan, seed: int, *, malicious: bool = True) -> tuple[list[Any], Any, Demand, list[dict[str, int]]]:
    needs = demand(case, level=require_sound(case).level, malicious=malicious)
    dealer = Dealer(case.parties, needs)
    summed = statistics(case.features, seed, case.curvature)
    given: list[dict[str, int]] = [{}] * case.parties

    def act(party: Party) -> Any:
        supply = Supply(dealer.stock(party))
        shared = dealer.shared(party, summed)
        try:
            return fit(Online(party, needs, supply), case, shared)
        except RefusedError as error:
            return error.code
        finally:
            given[party.number] = supply.given

    models = together(case.parties, act, malicious=malicious)
    try:
        expected: Any = fit(Emulator(case, coin_table(needs, dealer)), case, summed.astype(object))
    except RefusedError as error:
        expected = error.code
    return models, expected, needs, given


CASES = [
    plan("ridge", steps=60),
    plan("ridge", features=1, parties=2, steps=40),
    plan("lasso", rounds=16, half=5),
    plan("lasso", features=5, parties=4, rounds=12, half=6),
    plan("lasso", features=1, parties=2, rounds=12, half=5),
    plan("lasso", features=2, parties=2, rounds=12, half=4, l1=Fraction(3, 2)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method}-{case.features}-{case.parties}")
def test_the_parties_compute_what_the_emulator_computes(case: Plan) -> None:
    models, expected, needs, given = run(case, seed=1)
    assert isinstance(expected, tuple)  # it converged
    assert models == [expected] * case.parties
    assert set(given[0]) == set(given[-1])
    used = given[0]
    assert used["triples"] == needs.triples
    assert used["signs"] == used["factors"] == needs.tests
    assert used["steps"] == needs.steps


def test_without_tags_the_arithmetic_is_the_same() -> None:
    models, expected, _, _ = run(plan("lasso", rounds=12, half=6), seed=2, malicious=False)
    assert isinstance(expected, tuple)
    assert models == [expected] * 3


def test_3902_a_fit_that_does_not_converge_is_not_opened() -> None:
    case = plan("ridge", steps=4, l2=Fraction(0), tolerance=Fraction(1, 2**18))
    models, expected, _, _ = run(case, seed=3)
    assert models == [expected] * 3 == [3902] * 3
