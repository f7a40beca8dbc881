"""No value exceeds its bound, whatever legal integers come in and however every rounding is turned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from cloister.linear import _inputs
from cloister.linear._bounds import bound, wrong_side
from cloister.linear._chebyshev import STEP_BITS
from cloister.linear._demand import demand, slack_bits
from cloister.linear._emulator import CoinTable, Emulator
from cloister.linear._plan import (
    CURVATURE_SLACK_BITS,
    FINE_BITS,
    GRAM_BITS,
    ITERATE_BITS,
    LEAST_WEIGHT,
    MOST_PARTIES,
    SHIFT_BITS,
    Plan,
    constants,
    roundings,
)
from cloister.linear._program import fit
from cloister.linear._projection import proven_bits

KINDS = ("random", "low rank", "tiny column", "steep", "long mean")
STEEP = 1 + 2.0**-CURVATURE_SLACK_BITS
"""The greatest curvature that a proof lets pass."""


class Norms(Emulator):
    """The greatest norm of each kind of value; the certificate's bit is taken as 1, so that everything is computed."""

    def __init__(self, plan: Plan, coins: CoinTable) -> None:
        super().__init__(plan, coins)
        self.plan = plan
        self.found = {"iterate": 0.0, "split": 0.0, "residual": 0.0}
        self.last = False

    def see(self, kind: str, *values: Any) -> None:
        for value in values:
            norm = float(np.linalg.norm(np.array(value, dtype=float))) / 2**ITERATE_BITS
            self.found[kind] = max(self.found[kind], norm)

    def mask_multiply(self, value: Any, bits: int) -> Any:
        x, product = super().mask_multiply(value, bits)
        self.last = self.last or not bits
        self.see("iterate", x) if bits else self.see("split", x)
        return x, product

    def threshold(self, value: Any, at: int, resolution: int) -> Any:
        out = super().threshold(value, at, resolution)
        if self.last:
            self.see("residual", value, out)
        else:
            self.see("split", value, out, value - out)
        return out

    def square_sum(self, value: Any) -> Any:
        self.see("residual", value)
        return super().square_sum(value)

    def open(self, value: Any) -> list[int]:
        return super().open(value) if len(value) > 1 else [1]


def plans(generator: np.random.Generator) -> Iterator[Plan]:
    """Small ones, with much variation where the bounds depend on it."""
    while True:
        parties = int(generator.integers(2, 9))
        features = int(generator.integers(1, 6))
        method = ("ridge", "lasso")[int(generator.integers(2))]
        small = Fraction(int(generator.integers(0, 3)), 40)
        case = Plan(
            method=method,  # pyright: ignore[reportArgumentType]
            rows=(50,) * parties,
            curvature=Fraction(int(generator.choice([3, 4, 10, 40])), 2),
            mean_squares=tuple(Fraction(int(m), 2) for m in generator.integers(1, 5, size=features + 1)),
            l1=Fraction(1, int(generator.choice([2, 20, 200]))) if method == "lasso" else Fraction(0),
            l2=small,
            theta=Fraction(int(generator.choice([1, 2, 8])), 5),
            rounds=int(generator.integers(1, 7)),
            half=int(generator.choice([3, 6, 8])),
            steps=int(generator.choice([5, 25, 60])),
        )
        if generator.integers(3) == 0:  # a round of Newton's method
            reach = Fraction(int(generator.integers(0, 9)), 2)
            case = replace(case, reach=(reach, reach * Fraction(3, 2)))
        if bound(case).level < 40:
            yield case


def legal(case: Plan, kind: str, generator: np.random.Generator) -> np.ndarray:
    """S of integer records at the edge of what a proof would accept."""
    kappa, d = float(case.curvature), case.features
    most = np.sqrt(np.array([float(m) for m in case.mean_squares]) / kappa)
    rows = 3 * (d + 2)
    table = generator.normal(size=(rows, d))
    if kind == "low rank":
        table = np.outer(table[:, 0], generator.normal(size=d))
    ones = np.ones((rows, 1)) / np.sqrt(rows * kappa)
    if case.reach and generator.integers(2):
        ones = ones / 15.9  # weights that are all but the least
    if kind == "long mean":
        table = table * 0.05 + generator.choice([-1, 1], size=d)
    else:
        table -= table.mean(axis=0)
    table *= most[:-1] / np.linalg.norm(table, axis=0)
    if kind == "tiny column":  # where λ1·|z*| comes to m/4
        penalty = float(case.l1 or case.l2 or Fraction(1, 100))
        table[:, 0] *= min(1.0, 2 * penalty / np.sqrt(float(case.mean_squares[-1]) * kappa) / most[0])
    if kind == "steep":
        table[:, 0] *= steepest(case) / most[0]
    for _ in range(300):
        if np.linalg.norm(np.hstack([ones, table]), 2) ** 2 > STEEP - 2.0**-20:
            table *= 0.97
    response = table[:, 0] if kind in ("tiny column", "steep", "long mean") else generator.normal(size=rows)
    response = response * most[-1] / np.linalg.norm(response)
    records = np.trunc(np.column_stack([ones, table, response]) * 2**23).astype(np.int64)
    records[:, 0] = np.rint(ones[:, 0] * 2**23)
    summed = records.T @ records
    require_legal(case, summed)
    return summed


def steepest(case: Plan) -> float:
    """The length of a column at which ridge's iterate is longest, seen on a grid."""
    lengths = np.geomspace(1e-4, min(1.0, float(case.mean_squares[0] / case.curvature) ** 0.5), 4000)
    now = before = np.zeros_like(lengths)
    best = np.zeros_like(lengths)
    for beta, gamma in constants(case).steps:
        now, before = (
            now + (beta * (now - before) + gamma * (lengths - lengths**2 * now)) / 2**STEP_BITS,
            now,
        )
        best = np.maximum(best, np.abs(now))
    return float(lengths[int(best.argmax())])


def require_legal(case: Plan, summed: np.ndarray) -> None:
    unit = Fraction(2**46) / case.curvature
    least, share = LEAST_WEIGHT if case.reach else 1, int(summed[0, 0]) / unit
    assert least * (1 - Fraction(1, 2**14)) <= share <= 1 + Fraction(1, 2**14)
    for j, most in enumerate(case.mean_squares):
        assert int(summed[j + 1, j + 1]) <= unit * most
    assert np.linalg.eigvalsh(summed[:-1, :-1] / 2.0**46)[-1] <= STEEP


def turned(case: Plan, generator: np.random.Generator) -> CoinTable:
    """Coins at their ends and a cheater's shifts at their greatest: all one way, by coordinate, or at random."""
    offset = (case.parties - 1) << slack_bits(case)
    way = int(generator.integers(4))
    signs = generator.choice([-1, 1], size=case.columns)
    entries = []
    for bits, size in roundings(case):
        up = {
            0: np.ones(size),
            1: -np.ones(size),
            2: signs[-size:] if size > 1 else signs[:1],
            3: generator.choice([-1, 1], size=size),
        }[way]
        honest = [int(sign > 0) * case.parties * ((1 << bits) - 1) for sign in up]
        shift = offset << bits if bits == SHIFT_BITS else 0
        entries.append(np.array([h + int(sign) * shift for h, sign in zip(honest, up, strict=True)], dtype=object))
    return CoinTable(entries)


def begun(case: Plan, generator: np.random.Generator) -> list[int]:
    """A public point at the edge of the reach."""
    if case.reach is None:
        return []
    length, total = (float(most) * 2.0**ITERATE_BITS for most in case.reach)
    point = generator.normal(size=case.columns) * generator.choice([0.01, 1], size=case.columns)
    point *= min(length / np.linalg.norm(point), total / np.abs(point).sum())
    return [int(entry) for entry in np.trunc(point)]


def greatest(trials: int, seed: int) -> dict[str, float]:
    """How near the values come to their bounds, over that many inputs, each with roundings of its own."""
    generator = np.random.default_rng(seed)
    cases, near = plans(generator), {"iterate": 0.0, "split": 0.0, "residual": 0.0, "ridge": 0.0}
    for trial in range(trials):
        if trial % 10 == 0:
            case = next(cases)
        emulator = Norms(case, turned(case, generator))
        fit(emulator, case, legal(case, KINDS[trial % len(KINDS)], generator), begun(case, generator))
        limits = bound(case)
        for kind, found in emulator.found.items():
            share = found / getattr(limits, kind)
            assert share <= 1, (case, kind, trial)
            near[kind] = max(near[kind], share)
        if case.method == "ridge" and case.reach is None:
            near["ridge"] = max(near["ridge"], emulator.found["iterate"] / limits.iterate)
    return near


def test_a_thousand_legal_inputs_and_roundings_stay_within_the_bounds() -> None:
    near = greatest(1000, seed=1)
    assert near["ridge"] > 0.9  # there the bound is what an adversary reaches
    assert min(near.values()) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_ten_thousand_legal_inputs_and_roundings_stay_within_the_bounds(seed: int) -> None:
    assert greatest(5000, seed=seed)["ridge"] > 0.9


def test_an_illegal_curvature_breaks_them() -> None:
    """What the parties must prove is needed: twice the curvature that was agreed leaves the bound in ten rounds."""
    case = Plan(
        method="lasso",
        rows=(50, 50),
        curvature=Fraction(4),
        mean_squares=(Fraction(8), Fraction(8)),
        l1=Fraction(1, 20),
        rounds=10,
    )
    column, rows = np.sqrt(1.9), 8
    table = np.full((rows, 3), 1 / np.sqrt(rows))
    table[:, 0] /= 2
    table[:, 1] = np.resize([1.0, -1.0], rows) / np.sqrt(rows) * column
    table[:, 2] = table[:, 1]
    records = np.rint(table * 2**23).astype(np.int64)
    emulator = Norms(case, CoinTable.draw(case))
    fit(emulator, case, records.T @ records)
    assert emulator.found["iterate"] > 2 * bound(case).iterate


def test_more_slack_more_parties_and_smaller_penalties_only_raise_a_bound() -> None:
    case = Plan(
        method="lasso", rows=(50,) * 2, curvature=Fraction(20), mean_squares=(Fraction(2),) * 91, l1=Fraction(1, 100)
    )
    limits = bound(case)
    assert bound(replace(case, l1=Fraction(1, 200))).iterate > limits.iterate
    assert bound(replace(case, rows=(50,) * 8)).iterate > limits.iterate
    assert bound(replace(case, mean_squares=(Fraction(3),) * 91)).iterate > limits.iterate
    assert bound(replace(case, rounds=40)).iterate > limits.iterate
    begun = replace(case, reach=(Fraction(1), Fraction(2)))
    assert bound(begun).iterate > limits.iterate
    assert bound(replace(begun, reach=(Fraction(2), Fraction(2)))).iterate > bound(begun).iterate
    assert bound(replace(begun, reach=(Fraction(1), Fraction(3)))).iterate > bound(begun).iterate


@pytest.mark.parametrize("parties", [2, 5, 8])
def test_a_threshold_is_wrong_by_no_more_than_it_says(parties: int) -> None:
    """At each end of the coins, the value that is kept or dropped by mistake is within ``wrong_side``."""
    case = Plan(
        method="lasso", rows=(9,) * parties, curvature=Fraction(2), mean_squares=(Fraction(2),) * 2, l1=Fraction(1)
    )
    at, unit = 5 * 2**33 + 12345, 2**18
    worst = 0.0
    for coin in (0, parties * (unit - 1)):
        for value in range(at - 8 * unit, at + 8 * unit, unit // 16):
            for sign in (1, -1):
                out = Emulator(case, CoinTable([[coin]])).threshold(np.array([0, sign * value], dtype=object), at, 18)
                exact = sign * max(value - at, 0)
                worst = max(worst, abs(int(out[1]) - exact) / 2**36)
    limit = wrong_side(parties, 18)
    assert limit / 2 < worst <= limit


@pytest.mark.parametrize("columns", [2, 5, 31, 91, 201, 301])
def test_the_curvature_of_all_is_proven_to_the_slack(columns: int) -> None:
    """``D_i - S_i ≽ -2^-34·|Z|``: Z is at most D times its greatest entry, and eight parties add theirs."""
    most = 2 ** proven_bits(_inputs._REST, columns * (columns + 1) // 2)
    assert MOST_PARTIES * columns * most <= 2 ** (GRAM_BITS + _inputs._FINER_BITS - CURVATURE_SLACK_BITS)


@pytest.mark.parametrize("kappa", [2, 20, 90, 300])
@pytest.mark.parametrize("method", ["ridge", "lasso"])
def test_the_steps_hold_beyond_the_agreed_curvature(method: Any, kappa: int) -> None:
    """They are made for a spectrum that reaches 2^-10 beyond: on the slack that a proof leaves no mode grows."""
    case = Plan(
        method=method,
        rows=(50, 50),
        curvature=Fraction(kappa),
        mean_squares=(Fraction(2),) * 3,
        l1=Fraction(method == "lasso"),
        l2=Fraction(1, 10),
    )
    found = constants(case)
    low = (found.split + found.penalty[-1]) / 2.0**GRAM_BITS
    points = np.linspace(low + 1, low + STEEP, 101)
    now = before = np.ones_like(points)
    for beta, gamma in found.steps:
        now, before = now + (beta * (now - before) - gamma * points * now) / 2**STEP_BITS, now
        assert np.abs(now).max() <= 1
    assert bound(case).contraction < 1


def test_more_fits_in_a_session_move_a_rounding_farther() -> None:
    case = Plan(method="ridge", rows=(50,) * 4, curvature=Fraction(20), mean_squares=(Fraction(2),) * 91)
    assert slack_bits(case, fits=11) > slack_bits(case)
    assert bound(case, fits=11).iterate > bound(case).iterate


@pytest.mark.parametrize("theta", [Fraction(1, 4), Fraction(8), Fraction(30)])
def test_a_level_holds_what_values_are_compared_with(theta: Fraction) -> None:
    """A bound beyond the digits of a comparison would wrap around."""
    case = Plan(
        method="lasso",
        rows=(50, 50),
        curvature=Fraction(1),
        mean_squares=(Fraction(1), Fraction(1)),
        l1=Fraction(1000),
        theta=theta,
    )
    level, found = bound(case).level, constants(case)
    needs = demand(case, level=level)
    assert max(found.threshold, found.fine_threshold) <= 2 ** (ITERATE_BITS + level)
    assert 2 * found.fine_threshold >> (ITERATE_BITS - FINE_BITS) < 2 ** (needs.fine.bits - 1)
    assert 2 * found.threshold >> needs.coarse.below < 2 ** (needs.coarse.bits - 1)
