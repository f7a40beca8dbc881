"""The program on the emulator: equal to a slow twin in every bit, and nothing is opened before the certificate."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from tests.linear_twin import Twin

from cloister.errors import InternalError, RefusedError
from cloister.linear._emulator import CoinTable, Emulator
from cloister.linear._plan import Plan, constants, roundings
from cloister.linear._program import fit


class Watched(Emulator):
    """Keeps every rounded value, and the names of what is asked and opened."""

    def __init__(self, plan: Plan, coins: CoinTable) -> None:
        super().__init__(plan, coins)
        self.trace: list[list[int]] = []
        self.opened: list[list[int]] = []

    def truncate(self, value: Any, bits: int) -> Any:
        out = super().truncate(value, bits)
        if bits:
            self.trace.append([int(entry) for entry in out])
        return out

    def open(self, value: Any) -> list[int]:
        self.opened.append(super().open(value))
        return self.opened[-1]


def statistics(features: int, seed: int, kappa: Fraction) -> np.ndarray:
    """S of integer records, with the intercept's column."""
    generator = np.random.default_rng(seed)
    rows = np.column_stack([np.ones(40), generator.normal(size=(40, features + 1))])
    rows[:, -1] = rows[:, 1] - 0.5 * rows[:, -2] + 0.3 * rows[:, -1]
    factor = np.rint(2**23 * np.linalg.qr(rows, mode="r") / np.sqrt(40 * float(kappa))).astype(np.int64)
    return factor.T @ factor


def plan(method: str, features: int = 3, parties: int = 3, **fields: Any) -> Plan:
    fields = {"l1": Fraction(1, 50) if method == "lasso" else Fraction(0), "l2": Fraction(1, 30), **fields}
    return Plan(
        method=method,  # pyright: ignore[reportArgumentType]
        rows=(10,) * (parties - 1) + (40 - 10 * (parties - 1),) if parties < 4 else (40 // parties,) * parties,
        curvature=Fraction(5),
        mean_squares=(Fraction(3),) * (features + 1),
        **fields,
    )


CASES = [
    plan("ridge", steps=60),
    plan("ridge", features=1, parties=2, steps=7, l2=Fraction(0)),
    plan("ridge", features=6, parties=8, steps=30, floor=Fraction(1, 100)),
    plan("lasso"),
    plan("lasso", features=6, parties=8, rounds=9, half=5, l2=Fraction(0)),
    plan("lasso", features=1, parties=2, rounds=3, half=2, theta=Fraction(3, 7)),
    plan("lasso", features=4, rounds=5, half=4, l1=Fraction(1, 2)),  # everything is shrunk to zero
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method}-{case.features}-{case.parties}")
def test_every_value_equals_the_twins(case: Plan) -> None:
    for seed in range(3):
        summed = statistics(case.features, seed, case.curvature)
        coins = CoinTable.draw(case)
        emulator = Watched(case, coins)
        twin = Twin(case, summed.tolist(), [entry.tolist() for entry in coins.entries])
        try:
            model = fit(emulator, case, summed)
        except RefusedError:
            model = None
        assert emulator.trace == twin.trace
        assert emulator.opened == ([[1], twin.model] if twin.bit else [[0]])
        if model is not None:
            most = (case.parties + 3) * 2**17
            ties = [entry if case.method == "ridge" or abs(entry) > most else 0 for entry in twin.model[1:]]
            assert model == (twin.model[0], *ties)


def test_equal_coins_give_equal_bits_and_other_coins_do_not() -> None:
    case, summed = CASES[3], statistics(3, 0, Fraction(5))
    coins = CoinTable.draw(case)
    first, again, other = (fit(Emulator(case, table), case, summed) for table in (coins, coins, CoinTable.draw(case)))
    assert first == again != other
    assert max(abs(a - b) for a, b in zip(first, other, strict=True)) < 2**36 * 1e-5


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method}-{case.features}-{case.parties}")
def test_the_coins_are_used_up_in_the_order_of_the_plan(case: Plan) -> None:
    asked: list[tuple[int, int]] = []

    class Counting(Emulator):
        def truncate(self, value: Any, bits: int) -> Any:
            if bits:
                asked.append((bits, len(value)))
            return super().truncate(value, bits)

        def open(self, value: Any) -> list[int]:
            return super().open(value) if len(value) > 1 else [1]

    fit(Counting(case, CoinTable.draw(case)), case, statistics(case.features, 0, case.curvature))
    assert asked == list(roundings(case))


def test_9901_a_table_of_another_plan_is_refused() -> None:
    case, summed = CASES[3], statistics(3, 0, Fraction(5))
    entries = CoinTable.draw(case).entries
    for table in (CoinTable(entries[:-1]), CoinTable(entry[:2] for entry in entries)):
        with pytest.raises(InternalError) as refused:
            fit(Emulator(case, table), case, summed)
        assert refused.value.code == 9901


def test_honest_coins_are_sums_of_uniform_numbers() -> None:
    case = plan("ridge", features=6, parties=8, steps=300)
    coins = CoinTable.draw(case)
    drawn = np.array([entry for entry in coins.entries[:-1]], dtype=float) / 2**52
    assert drawn.min() >= 0
    assert drawn.max() < 8
    assert abs(drawn.mean() - 4) < 5 * np.sqrt(8 / 12 / drawn.size)
    assert abs(drawn.var() - 8 / 12) < 0.1
    assert [bits for bits, _ in roundings(case)][-1] == 20
    assert 0 <= coins.entries[-1][0] < 8 * 2**20


def test_truncation_is_unbiased_up_to_a_shifted_unit() -> None:
    """The mean over all coins of two parties is the quotient less 2^-(f+1), at every remainder and sign."""
    case = plan("ridge", parties=2)
    for value in range(-9, 10):
        sums = [a + b for a in range(8) for b in range(8)]
        emulator = Emulator(case, CoinTable([sums]))
        out = emulator.truncate(np.array([value] * 64, dtype=object), 3)
        assert Fraction(int(out.sum()), 64) == Fraction(value, 8) - Fraction(1, 16)


def test_3902_a_fit_that_does_not_converge_releases_nothing() -> None:
    case = plan("ridge", steps=4, l2=Fraction(0), tolerance=Fraction(1, 2**18))
    emulator = Watched(case, CoinTable.draw(case))
    with pytest.raises(RefusedError) as refused:
        fit(emulator, case, statistics(3, 0, Fraction(5)))
    assert refused.value.code == 3902
    assert emulator.opened == [[0]]


@pytest.mark.parametrize("method", ["ridge", "lasso"])
def test_the_certificate_measures_the_proximal_gradient(method: str) -> None:
    """Its bit turns where the float residual of the same model crosses the tolerance."""
    bits = []
    for tolerance in (Fraction(1, 2**k) for k in range(3, 19)):
        short = {"steps": 12} if method == "ridge" else {"rounds": 3, "half": 3}
        case = plan(method, tolerance=tolerance, **short)
        summed = statistics(3, 0, case.curvature)
        coins = CoinTable([np.full(size, case.parties << (width - 1)) for width, size in roundings(case)])
        twin = Twin(case, summed.tolist(), [entry.tolist() for entry in coins.entries])
        z = np.array(twin.model, dtype=float) / 2**36
        gram = summed.astype(float) / 2**46
        v = z - gram[:4, :4] @ z + gram[:4, 4] - np.array([0, *[float(case.l2 / case.curvature)] * 3]) * z
        shrunk = np.sign(v[1:]) * np.maximum(np.abs(v[1:]) - float(case.l1 / case.curvature), 0)
        residual = float(case.curvature) * np.linalg.norm(z - np.concatenate([v[:1], shrunk]))
        if abs(residual / float(tolerance) - 1) > 1e-3:
            assert bool(twin.bit) == (residual <= tolerance)
            bits.append(twin.bit)
    assert 0 in bits
    assert 1 in bits


def test_ties_are_written_as_zero_and_the_intercept_is_not() -> None:
    """What a threshold may have kept by mistake, (n + 3)/2 of its units, is not told from what it should have kept."""

    class Told(Emulator):
        def open(self, value: Any) -> list[int]:
            return [1] if len(value) == 1 else [5, 5, -6 * 2**17, 6 * 2**17 + 1]

    case = plan("lasso")
    model = fit(Told(case, CoinTable.draw(case)), case, statistics(3, 0, Fraction(5)))
    assert model == (5, 0, 0, 6 * 2**17 + 1)


def test_a_heavy_penalty_leaves_nothing_but_the_intercept() -> None:
    case = plan("lasso", features=4, l1=Fraction(2))
    model = fit(Emulator(case, CoinTable.draw(case)), case, statistics(4, 0, Fraction(5)))
    assert model[0] != 0
    assert model[1:] == (0,) * 4
    assert constants(case).threshold == 2**36 * 5
