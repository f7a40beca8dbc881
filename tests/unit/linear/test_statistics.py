"""Statistics from opened entries: numpy's on the joined rows, nothing that was not agreed, and a scaling for models."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tests.linear_data import conditioned, split

from cloister.errors import InputError
from cloister.linear import Ridge, Scaling, Statistics, statistics_local
from cloister.linear._plan import Plan
from cloister.linear._statistics import STATISTICS, entries_of, statistics_of

FEATURES, RESPONSE = conditioned(3000, 6, 30)
TABLE = np.column_stack([FEATURES, RESPONSE])


@pytest.mark.parametrize("how", ["even", "sorted", "uneven"])
def test_they_are_numpys_on_the_joined_rows(how: str) -> None:
    rough = Scaling(tuple(f"x{j}" for j in range(6)), (0.0,) * 7, (*(3.0,) * 6, 10.0))
    for scaling in (None, rough):
        found = statistics_local(split(FEATURES, RESPONSE, how), opened=STATISTICS, scaling=scaling)
        assert found.count == 3000
        assert found.names == (*(f"x{j}" for j in range(6)), "the response")
        scale = TABLE.std(axis=0)
        assert np.abs((found.means - TABLE.mean(axis=0)) / scale).max() < 1e-5
        assert np.abs((found.sums - TABLE.sum(axis=0)) / scale).max() < 1e-5 * 3000
        assert np.allclose(found.variances, TABLE.var(axis=0), rtol=1e-5)
        assert np.abs(found.covariance / np.outer(scale, scale) - np.corrcoef(TABLE.T)).max() < 1e-5
        assert np.abs(found.correlation - np.corrcoef(TABLE.T)).max() < 1e-5
    scaled = np.column_stack([np.ones(3000), FEATURES / 3])
    assert found.curvature >= np.linalg.eigvalsh(scaled.T @ scaled / 3000)[-1]


@pytest.mark.parametrize("name", STATISTICS)
def test_only_what_was_agreed_is_there(name: Any) -> None:
    found = statistics_local(split(FEATURES, RESPONSE, "even"), opened=[name])
    given = [other for other in STATISTICS if getattr(found, other) is not None]
    assert given == [name]
    assert set(json.loads(found.to_json())) == {"names", "count", name}


def test_no_more_entries_are_opened_than_are_needed() -> None:
    assert entries_of(["curvature"], 4) == []
    assert entries_of(["sums"], 4) == entries_of(["means"], 4) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert entries_of(["variances"], 3) == [(0, 0), (0, 1), (0, 2), (1, 1), (2, 2)]
    assert len(entries_of(["variances", "correlation"], 5)) == 15


def test_from_opened_integers_alone() -> None:
    plan = Plan(method="ridge", rows=(3, 5), curvature=Fraction(2), mean_squares=(Fraction(2),) * 2)
    scaling = Scaling(("a",), (10.0, 1.0), (2.0, 4.0))
    unit = 2**45  # of a mean square of 1
    values = [unit, unit // 4, -unit // 2, unit, unit]
    found = statistics_of(plan, scaling, ["means", "variances"], values)
    assert found.means.tolist() == [10.5, -1.0]
    assert found.variances.tolist() == [4 * (1 - 1 / 16), 16 * (1 - 1 / 4)]
    for wrong in (values[:-1], [*values, 1]):
        with pytest.raises(InputError) as refused:
            statistics_of(plan, scaling, ["means", "variances"], wrong)
        assert refused.value.code == 2914


@pytest.mark.parametrize("opened", [[], ["medians"], ["means", ""]])
def test_2914_statistics_that_there_are_none_of(opened: Any) -> None:
    with pytest.raises(InputError) as refused:
        statistics_local(split(FEATURES, RESPONSE, "even"), opened=opened)
    assert refused.value.code == 2914


def test_models_take_their_scaling_from_them() -> None:
    parts = split(FEATURES, RESPONSE, "even")
    scaling = Scaling.from_statistics(statistics_local(parts, opened=["means", "variances"]))
    theirs = Ridge(3.0).fit_local(parts).coef_
    assert np.allclose(Ridge(3.0, scaling=scaling).fit_local(parts).coef_, theirs, rtol=1e-3)
    with pytest.raises(InputError) as refused:
        Scaling.from_statistics(statistics_local(parts, opened=["means"]))
    assert refused.value.code == 2914


@pytest.mark.parametrize("value", [0.0, 3.0, 1000.0])
def test_2905_a_column_that_is_constant(value: float) -> None:
    features = FEATURES.copy()
    features[:, 2] = value
    names = tuple(f"x{j}" for j in range(6))
    rough = Scaling(names, (0.0,) * 7, (*(max(5.0, value),) * 6, 20.0))
    found = statistics_local(split(features, RESPONSE, "even"), scaling=rough)
    json.loads(found.to_json())
    with pytest.raises(InputError) as refused:
        Scaling.from_statistics(found)
    assert refused.value.code == 2905
    assert "'x2'" in refused.value.what


def test_a_table_for_people() -> None:
    found = Statistics(
        ("age", "the response"),
        10,
        means=np.array([1.0, 2.0]),
        variances=np.array([4.0, 9.0]),
        correlation=np.array([[1, 0.5], [0.5, 1]]),
    )
    out = io.StringIO()
    Console(file=out, width=120).print(found.table())
    lines = out.getvalue().splitlines()
    assert lines[0].strip() == "10 rows"
    assert lines[1].split() == ["column", "mean", "variance", "deviation", "correlation", "with", "the", "response"]
    assert lines[2].split() == ["age", "1", "4", "2", "0.5"]
    assert json.loads(Statistics(("a",), 1, correlation=np.array([[np.nan]])).to_json())["correlation"] == [[None]]
