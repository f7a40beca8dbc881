"""`explore` tries an agreement as it was written: a session's plan, a session's noise, the agreed numbers of rows."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.linear_data import Floats
from tests.linear_people import agreed

from cloister.errors import InputError, RefusedError
from cloister.linear import _explore, _noise
from cloister.linear._agreed_rows import rows_of, summary_of
from cloister.linear._agreement import Agreement
from cloister.linear._emulator import CoinTable, Emulator
from cloister.linear._explore import explored
from cloister.linear._local import reduced
from cloister.linear._noise import Privacy, clip_rows, lift_of
from cloister.linear._plan import Plan
from cloister.linear._program import fit
from cloister.linear._rows import Rows
from cloister.linear._summary import pooled

NAMES = ("bank-a", "bank-b")
ROWS = (120, 80)
RIDGE = {"type": "ridge", "alpha": "8"}
PRIVATE = {"epsilon": "3", "delta": "1e-6", "noise_multiplier": "2", "clip": "4"}


def document(**changes: Any) -> Agreement:
    """Of two parties with 120 and 80 rows and two standardised features."""
    features = [{"name": "a", "mean_square": "3"}, {"name": "b"}]
    basic = {"features": features, "response": {"name": "y"}, "model": RIDGE, "curvature": "3", "mean_square": "4"}
    agreement = agreed(NAMES, **(basic | changes))
    return with_parties(agreement, *({"rows": rows} for rows in ROWS))


def with_parties(agreement: Agreement, *changes: dict[str, Any]) -> Agreement:
    parties = (party.model_copy(update=change) for party, change in zip(agreement.parties, changes, strict=True))
    return agreement.model_copy(update={"parties": tuple(parties)})


def rows_in(folder: Path, *counts: int, size: float = 1.0, classes: bool = False) -> list[Path]:
    """Files of so many rows each."""
    generator, paths = np.random.default_rng(3), list[Path]()
    for place, count in enumerate(counts):
        table = generator.normal(size=(count, 2)) * size
        response = table @ [0.8, -0.3] + 0.5 * generator.normal(size=count)
        shown = np.where(response > 0, "yes", "no") if classes else [f"{value:.6f}" for value in response]
        lines = [f"{a:.6f},{b:.6f},{y}" for (a, b), y in zip(table, shown, strict=True)]
        paths.append(folder / f"{place}.csv")
        paths[-1].write_text("a,b,y\n" + "\n".join(lines) + "\n")
    return paths


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans that are run."""
    seen: list[Plan] = []
    real = _explore.fit_factors

    def watched(plan: Plan, *arguments: Any, **named: Any) -> tuple[int, ...]:
        seen.append(plan)
        return real(plan, *arguments, **named)

    monkeypatch.setattr(_explore, "fit_factors", watched)
    return seen


def in_session(agreement: Agreement, paths: list[Path]) -> tuple[int, ...]:
    """What a session opens, of rows that keep the bounds."""
    plan = agreement.plan()
    own = [summary_of(agreement, place, rows_of(agreement, path)) for place, path in enumerate(paths)]
    return fit(Emulator(plan, CoinTable.draw(plan)), plan, pooled(own))


# ---- the agreement's own numbers -----------------------------------------------------------------------------


def test_a_trial_runs_the_agreed_plan(tmp_path: Path, plans: list[Plan]) -> None:
    agreement = with_parties(document(), {"curvature": "2.9"}, {})
    found = explored(agreement, rows_in(tmp_path, *ROWS), penalties=[])
    assert plans == [agreement.plan()]
    assert found.good
    assert [trial.bounds for trial in found.trials] == ["agreed"]
    assert found.agreed.curvatures == {"bank-a": "2.9", "bank-b": "3"}
    assert found.agreed.mean_squares == {"a": "3", "b": "4", "y": "4"}


def test_newtons_rounds_run_the_agreed_plans(tmp_path: Path, plans: list[Plan]) -> None:
    model = {"type": "logistic", "C": "0.05", "method": "newton", "newton_rounds": 2}
    agreement = document(response={"name": "y", "labels": ["no", "yes"]}, model=model)
    found = explored(agreement, rows_in(tmp_path, *ROWS, classes=True), penalties=[])
    first, later = agreement.plans()
    assert plans == [first, later, later]
    assert (found.measure, found.good) == ("AUC", True)
    assert (found.trials[0].score or 0) > 0.85


def test_what_would_not_converge_in_a_session_does_not_here(tmp_path: Path) -> None:
    """The rows' own curvature is below 3, and with that as bound it would converge."""
    model = {"type": "ridge", "alpha": "8", "steps": 40}
    wide, narrow = document(model=model, curvature="60"), document(model=model)
    paths = rows_in(tmp_path, *ROWS)
    with pytest.raises(RefusedError):
        in_session(wide, paths)
    in_session(narrow, paths)
    problem = explored(wide, paths, penalties=[]).trials[0].problem
    assert problem is not None
    assert problem.code == 3902
    assert explored(narrow, paths, penalties=[]).good
    assert not explored(wide, paths, penalties=[]).good


def test_a_broken_bound_is_named_and_the_trial_has_the_needed_one(tmp_path: Path, plans: list[Plan]) -> None:
    agreement = with_parties(document(), {"curvature": "1.01"}, {})
    found = explored(agreement, rows_in(tmp_path, *ROWS), penalties=[])
    assert [(one.code, one.what.split()[0]) for one in found.beyond] == [(2903, "'bank-a'")]
    need = found.needed.curvatures["bank-a"]
    assert [trial.bounds for trial in found.trials] == ["needed"]
    assert [plan.curvatures for plan in plans] == [(Fraction(need), Fraction(3))]
    assert plans[0].mean_squares == agreement.mean_squares()
    assert found.trials[0].problem is None
    assert not found.good
    enough = with_parties(agreement, {"curvature": need}, {})
    assert explored(enough, rows_in(tmp_path, *ROWS), penalties=[]).good


def test_needs_have_no_floor(tmp_path: Path) -> None:
    features = [{"name": "a", "mean_square": "0.4"}, {"name": "b"}]
    agreement = document(features=features, mean_square="0.6")
    found = explored(agreement, rows_in(tmp_path, *ROWS, size=0.5), penalties=[])
    assert found.beyond == ()
    assert 0.2 < float(found.needed.mean_squares["a"]) <= 0.4
    loose = explored(document(), rows_in(tmp_path, *ROWS, size=0.5), penalties=[])
    assert float(loose.needed.mean_squares["a"]) < 0.4


# ---- numbers of rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [56, 700])
def test_one_file_stands_for_the_agreed_number_of_rows(tmp_path: Path, plans: list[Plan], count: int) -> None:
    agreement = document(model={"type": "ridge", "alpha": "100"}, tolerance="0.001")
    [path] = rows_in(tmp_path, count)
    found = explored(agreement, [path], penalties=[])
    assert (found.rows, found.agreed_rows) == ((count,), (200,))
    assert plans[0].l2 == Fraction(100, 200)
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    x, y = table[:, :2] - table[:, :2].mean(0), table[:, 2] - table[:, 2].mean()
    weights = np.linalg.solve(x.T @ x / count + 0.5 * np.eye(2), x.T @ y / count)
    expected = 1 - ((y - x @ weights) ** 2).sum() / (y**2).sum()
    assert found.trials[0].score == pytest.approx(expected, abs=1e-3)
    assert "one file stands for every party" in found.notes[0]


def test_each_partys_own_file_is_counted(tmp_path: Path) -> None:
    found = explored(document(), rows_in(tmp_path, 120, 81), penalties=[])
    assert (found.rows, found.agreed_rows) == ((120, 81), ROWS)
    assert [(one.code, one.what.split()[0]) for one in found.beyond] == [(2907, "'bank-b'")]
    assert [trial.bounds for trial in found.trials] == ["agreed"]
    assert not found.good
    with pytest.raises(InputError) as caught:
        explored(document(), [tmp_path / "0.csv"] * 3, penalties=[])
    assert caught.value.code == 2907


# ---- noise ---------------------------------------------------------------------------------------------------


def test_the_needed_bounds_leave_room_for_the_noise(tmp_path: Path) -> None:
    private, bare = document(privacy=PRIVATE), document()
    paths = rows_in(tmp_path, *ROWS)
    without, found = explored(bare, paths, penalties=[]), explored(private, paths, penalties=[])
    assert without.good
    assert {one.code for one in found.beyond} == {2902, 2903}
    features = [{"name": name, "mean_square": found.needed.mean_squares[name]} for name in "ab"]
    response = {"name": "y", "mean_square": found.needed.mean_squares["y"]}
    own = [{"curvature": need} for need in found.needed.curvatures.values()]
    enough = with_parties(document(privacy=PRIVATE, features=features, response=response), *own)
    for _ in range(100):
        for place, path in enumerate(paths):
            summary_of(enough, place, rows_of(enough, path))
    with pytest.raises(InputError):
        summary_of(private, 0, rows_of(private, paths[0]))
    assert explored(enough, paths, penalties=[]).beyond == ()
    assert any("no budget counts them" in note for note in found.notes)
    assert without.notes == ()


def test_noise_is_that_of_the_agreed_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Fraction] = []

    def silent(variance: Fraction) -> int:
        asked.append(variance)
        return 0

    monkeypatch.setattr(_noise, "discrete_gaussian", silent)
    seen: list[Any] = []
    monkeypatch.setattr(_explore, "fit_factors", lambda plan, factors, names: seen.extend(factors) or (0, 0, 0))
    agreement = document(privacy=PRIVATE)
    [path] = rows_in(tmp_path, 40)
    explored(agreement, [path], penalties=[])
    privacy = Privacy(clip=4.0, noise_multiplier="2")
    assert set(asked) == {(privacy.sigma * Fraction(40, rows)) ** 2 for rows in ROWS}
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    clipped = clip_rows(np.column_stack([np.ones(40), table]), privacy, counted=True) / 4096
    for factor, rows in zip(seen, ROWS, strict=True):
        lifted = clipped.T @ clipped * (rows / 40) + lift_of(privacy, 4) * np.diag([0, 1, 1, 1])
        assert factor.count == rows
        assert np.allclose(factor.triangle.T @ factor.triangle, lifted, rtol=1e-9)


def test_a_private_logistic_fit_is_tried_with_noise_in_every_round(tmp_path: Path, plans: list[Plan]) -> None:
    model = {"type": "logistic", "C": "0.02", "method": "newton", "newton_rounds": 1}
    labels = {"name": "y", "labels": ["no", "yes"], "mean_square": "9"}
    terms = {**PRIVATE, "noise_multiplier": "0.1"}
    agreement = document(response=labels, model=model, privacy=terms, curvature="9", mean_square="9")
    found = explored(agreement, rows_in(tmp_path, *ROWS, classes=True), penalties=[])
    assert found.trials[0].problem is None
    assert len(plans) == 2


# ---- what is fitted, and how it is read ----------------------------------------------------------------------


def test_statistics_have_bounds_and_no_trials(tmp_path: Path) -> None:
    agreement = document(model={"type": "statistics", "open": ["means"]})
    found = explored(agreement, rows_in(tmp_path, *ROWS), penalties=[])
    assert (found.trials, found.good) == ((), True)
    assert 1 <= float(found.needed.curvatures["bank-a"]) < 3
    narrow = agreement.model_copy(update={"mean_square": "0.1"})
    assert not explored(narrow, rows_in(tmp_path, *ROWS), penalties=[]).good
    with pytest.raises(InputError) as caught:
        explored(agreement, rows_in(tmp_path, *ROWS), penalties=["1"])
    assert caught.value.code == 2019


def test_2902_squares_beyond_all_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b,y\n1e200,1,2\n2,3,4\n")
    with pytest.raises(InputError) as caught:
        explored(document(), [path], penalties=[])
    assert caught.value.code == 2902


def test_rows_are_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Floats]] = []
    most = 0

    class Watched:
        names = ("a", "b")

        def chunks(self) -> Iterator[Rows]:
            nonlocal most
            generator = np.random.default_rng(0)
            for _ in range(20):
                features = generator.normal(size=(50, 2))
                alive.append(weakref.ref(features))
                most = max(most, sum(one() is not None for one in alive))
                yield Rows(self.names, features, features @ [0.8, -0.3] + 0.5)

    monkeypatch.setattr(_explore, "rows_of", lambda agreement, path: Watched())
    assert explored(document(), [tmp_path], penalties=["8", "9"]).good
    assert len(alive) >= 60
    assert most <= 3


def test_a_factor_of_rows_that_were_counted_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(_explore, "fit_factors", lambda plan, factors, names: seen.extend(factors) or (0, 0, 0))
    agreement, paths = document(), rows_in(tmp_path, *ROWS)
    explored(agreement, paths, penalties=[])
    for factor, path in zip(seen, paths, strict=True):
        own = reduced(agreement.scaling().chunks(rows_of(agreement, path)), 4, None)
        assert np.allclose(factor.triangle, own.triangle, rtol=1e-9, atol=1e-9)
