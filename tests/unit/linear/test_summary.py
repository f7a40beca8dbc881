"""A party's integers: exact, near to its rows, and refused at home when they break a bound."""

from __future__ import annotations

import pickle
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from cloister.errors import InputError
from cloister.linear._gram import RowFactor
from cloister.linear._plan import Plan
from cloister.linear._summary import Summary, pooled, summarise

ROWS, D = 900, 5
NAMES = tuple("abcde")


def table(seed: int = 0, rows: int = ROWS) -> np.ndarray:
    """[1 X y], standardised, with a curvature of about 3."""
    generator = np.random.default_rng(seed)
    columns = generator.normal(size=(rows, D + 1)) + 0.8 * generator.normal(size=(rows, 1))
    columns = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    return np.column_stack([np.ones(rows), columns])


def factor_of(rows: np.ndarray, pieces: int = 1) -> RowFactor:
    factor = RowFactor(rows.shape[1])
    for piece in np.array_split(rows, pieces):
        factor.add(piece)
    return factor


PLAN = Plan(method="ridge", rows=(ROWS, 300), curvature=Fraction(4), mean_squares=(Fraction(2),) * (D + 1))


def refusal(code: int, plan: Plan, rows: np.ndarray) -> InputError:
    with pytest.raises(InputError) as refused:
        summarise(plan, 0, factor_of(rows), NAMES)
    assert refused.value.code == code
    return refused.value


def test_a_factor_of_chunks_is_that_of_all_rows() -> None:
    rows = table()
    whole = factor_of(rows)
    for pieces in (2, 7, 450, ROWS):
        assert np.allclose(factor_of(rows, pieces).triangle, whole.triangle, atol=1e-11)
    assert np.allclose(whole.triangle.T @ whole.triangle, rows.T @ rows, rtol=1e-12)
    assert (np.diag(whole.triangle) >= 0).all()
    assert np.allclose(whole.mean_squares(), (rows**2).mean(axis=0))
    assert np.isclose(whole.curvature(), np.linalg.eigvalsh(rows[:, :-1].T @ rows[:, :-1] / ROWS)[-1])


def test_the_statistics_are_exact_integers_of_the_factor() -> None:
    summary = summarise(PLAN, 0, factor_of(table()), NAMES)
    factor = summary.factor.astype(object)
    assert (factor.T.dot(factor) == summary.statistics.astype(object)).all()
    assert (summary.factor == np.triu(summary.factor)).all()
    real = table().T @ table() / float(PLAN.count * PLAN.curvature)
    assert np.abs(summary.statistics / 2.0**46 - real).max() < 2.0**-20
    assert np.abs(summary.correction).max() > 1 << 16
    assert np.abs((summary.statistics + summary.correction) / 2.0**46 - real).max() < 2.0**-43
    assert abs(int(summary.statistics[0, 0]) / (Fraction(2**46 * 3, 4) / 4) - 1) < Fraction(1, 2**14)


def test_the_statistics_stay_exact_at_the_greatest_sizes() -> None:
    """Mean squares of 1024 with a curvature of 1: the sums come near 2^56, and still no int64 overflows."""
    rows = table()
    rows[:, -1] *= 31.9
    plan = replace(PLAN, mean_squares=(Fraction(1024),) * (D + 1), rows=(ROWS, 1))
    summary = summarise(plan, 0, factor_of(rows), NAMES)
    factor = summary.factor.astype(object)
    assert (factor.T.dot(factor) == summary.statistics.astype(object)).all()


def test_dependent_columns_and_few_rows_are_legal() -> None:
    rows = table()
    rows[:, 2] = rows[:, 1]
    rows[:, 3] = 0
    summarise(PLAN, 0, factor_of(rows), NAMES)
    few = replace(PLAN, rows=(2, 3), curvature=Fraction(20), mean_squares=(Fraction(9),) * (D + 1))
    summary = summarise(few, 0, factor_of(table(rows=2)), NAMES)
    assert not summary.factor[3:].any()


def test_splits_of_integer_records_have_one_sum() -> None:
    """The program sees only S: records that are grouped in another way give the same bits."""
    records = np.random.default_rng(3).integers(-(2**20), 2**20, size=(24, D + 2))
    parts = {
        pieces: pooled([Summary(part, part.T @ part, 0 * (part.T @ part)) for part in np.array_split(records, pieces)])
        for pieces in (2, 3, 8)
    }
    assert (parts[2] == parts[3]).all()
    assert (parts[2] == parts[8]).all()


def test_2902_a_column_beyond_its_mean_square() -> None:
    rows = table()
    rows[:, 3] *= 1.5
    error = refusal(2902, PLAN, rows)
    assert "'c'" in error.what
    assert "at most 2" in str(error.expected)
    rows = table()
    rows[:, -1] *= 40
    assert "the response" in refusal(2902, PLAN, rows).what
    rows[:, -1] *= 1e200
    refusal(2902, PLAN, rows)


def test_2902_is_decided_by_the_integers() -> None:
    """The least agreed mean square that passes is that of the exact integers, which is the one to be proven."""
    rows = factor_of(table())
    summary = summarise(PLAN, 0, rows, NAMES)
    least = Fraction(int(summary.statistics[3, 3])) * PLAN.count * PLAN.curvature / (PLAN.rows[0] << 46)
    squares = list(PLAN.mean_squares)
    squares[2] = least
    assert summarise(replace(PLAN, mean_squares=tuple(squares)), 0, rows, NAMES)
    squares[2] = least - Fraction(1, 1 << 60)
    with pytest.raises(InputError) as refused:
        summarise(replace(PLAN, mean_squares=tuple(squares)), 0, rows, NAMES)
    assert refused.value.code == 2902


def test_2903_a_curvature_beyond_the_agreed_one_names_the_one_that_does() -> None:
    low = replace(PLAN, curvature=Fraction(2))
    error = refusal(2903, low, table())
    needed = Fraction(str(error.expected).rsplit(" ", 1)[1])
    assert summarise(replace(PLAN, curvature=needed), 0, factor_of(table()), NAMES)
    refusal(2903, replace(PLAN, curvature=needed - Fraction(1, 20)), table())


def test_2903_a_partys_own_curvature_counts() -> None:
    rows = factor_of(table())
    own = Fraction(7, 2)
    other = replace(PLAN, rows=(ROWS, ROWS), curvature=(own + 1) / 2, curvatures=(own, Fraction(1)))
    assert summarise(other, 0, rows, NAMES)
    with pytest.raises(InputError) as refused:
        summarise(other, 1, rows, NAMES)
    assert refused.value.code == 2903


def test_2906_and_2907() -> None:
    refusal(2906, PLAN, table()[:, :-1])
    refusal(2907, PLAN, table()[:-1])
    refusal(2907, PLAN, np.vstack([table(), table()[:1]]))


def test_a_summary_shows_nothing() -> None:
    summary = summarise(PLAN, 0, factor_of(table()), NAMES)
    assert repr(summary) == "<Summary of 7 columns>"
    assert repr(factor_of(table())) == "<RowFactor of 900 rows>"
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(summary)
