"""Statistics from opened entries: numpy's on the joined rows, nothing that was not agreed, and a scaling for models."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tests.exact_numbers import refused
from tests.linear_data import conditioned, split

from cloister.errors import InputError
from cloister.linear import Privacy, Ridge, Scaling, Statistics, _noise, statistics_local
from cloister.linear._noise import lift_of
from cloister.linear._plan import Plan
from cloister.linear._statistics import OPENED, STATISTICS, entries_of, statistics_of

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


@pytest.mark.parametrize(("centre", "scale"), [(1.7e9, 100.0), (1.7e9, 3000.0), (1.7e9 - 250, 50.0)])
def test_a_column_far_from_0_is_not_constant(centre: float, scale: float) -> None:
    """Times in seconds since 1970, of which a standard deviation is 6e-8 of the mean."""
    features = FEATURES.copy()
    features[:, 2] = times = 1.7e9 + 100 * np.random.default_rng(3).normal(size=len(features))
    names = tuple(f"x{j}" for j in range(6))
    agreed = Scaling(names, (0.0, 0.0, centre, 0.0, 0.0, 0.0, 0.0), (5.0, 5.0, scale, 5.0, 5.0, 5.0, 20.0))
    found = Scaling.from_statistics(statistics_local(split(features, RESPONSE, "even"), scaling=agreed))
    assert found.scales[2] == pytest.approx(times.std(), rel=1e-3)
    assert abs(found.centres[2] - times.mean()) < 0.1


def test_what_roundings_may_make_of_a_constant_is_none() -> None:
    plan = Plan(method="ridge", rows=(3, 5), curvature=Fraction(2), mean_squares=(Fraction(2),) * 2)
    scaling, one = Scaling(("a",), (0.0, 0.0), (1.0, 1.0)), 2**45
    most = 2 * (2**20 + 1)  # that two parties add to an entry
    for extra, constant in ((0, True), (4 * most, True), (4 * most + 1, False)):
        values = [one, one, 0, one + extra, 0, one]  # x is 1 in all rows
        found = statistics_of(plan, scaling, ["variances", "covariance", "correlation"], values)
        assert (found.variances[0] == 0) == constant
        assert np.isnan(found.correlation[0, 1]) == constant
        assert found.correlation[1, 1] == 1
    assert found.variances[0] == 2.0**-45 * (4 * most + 1)


@pytest.mark.parametrize("count", [0, -1])
def test_2914_no_rows(count: int) -> None:
    plan = Plan(method="ridge", rows=(3, 5), curvature=Fraction(2), mean_squares=(Fraction(2),) * 2)
    refused(lambda: statistics_of(plan, Scaling(("a",), (0.0,) * 2, (1.0,) * 2), ["means"], [count, 1, 1]), 2914)


def test_the_lift_of_noise_is_taken_off_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It made a variance of 0.94 one of 1.22: of 500 rows each, ν/n is 0.28 of a scaled unit, the noise itself 0.02."""
    generator = np.random.default_rng(11)
    monkeypatch.setattr(_noise, "discrete_gaussian", lambda square: round(generator.normal() * float(square) ** 0.5))
    privacy = Privacy(clip=4.0, noise_multiplier=1)
    features = generator.normal(size=(1000, 1))
    table = np.column_stack([features, features[:, 0] + generator.normal(size=1000)])
    scaling = Scaling(("a",), (0.0, 0.0), (1.0, 2.0))
    parts = [(features[:500], table[:500, 1]), (features[500:], table[500:, 1])]
    found = statistics_local(parts, scaling=scaling, privacy=privacy)
    lift = lift_of(privacy, 3) * 2 / 1000
    assert lift == pytest.approx(0.2825, abs=1e-4)
    off = (found.variances - table.var(axis=0)) / np.square(scaling.scales)
    assert np.abs(off).max() < 0.08 < lift / 3
    assert np.allclose(np.diag(found.covariance), found.variances)
    assert abs(found.correlation[0, 1] - np.corrcoef(table.T)[0, 1]) < 0.1
    assert found.event == privacy.event(columns=3, releases=1)
    assert json.loads(found.to_json())["event"]["noise_multiplier"] == "1"
    assert statistics_local(parts, scaling=scaling).event is None


def test_noise_that_leaves_less_than_the_lift_leaves_no_variance() -> None:
    plan = Plan(method="ridge", rows=(3, 5), curvature=Fraction(2), mean_squares=(Fraction(2),) * 2)
    scaling, one = Scaling(("a",), (0.0, 0.0), (1.0, 1.0)), 2**45
    values = [one, 0, 0, 100 * one, one, one]
    privacy = Privacy(clip=2.0, noise_multiplier=1)
    found = statistics_of(plan, scaling, ["variances", "covariance", "correlation"], values, privacy=privacy)
    assert found.variances.tolist() == [100 - lift_of(privacy, 3) / 4, 0]
    assert found.covariance[1].tolist() == [0, 0]
    assert np.isnan(found.correlation[1]).all()


def test_they_are_the_same_bits_everywhere() -> None:
    """Files of models are compared with them."""
    plan = Plan(method="ridge", rows=(3, 4), curvature=Fraction(7, 3), mean_squares=(Fraction(2),) * 2)
    one = int(2**46 / plan.curvature)
    values = [one, one // 3, one // -7, one // 2, one // 11, one // 5]
    found = statistics_of(plan, Scaling(("a",), (0.1, 1e9), (1 / 3, 12.7)), OPENED, values)
    assert [float(value).hex() for value in (*found.means, *found.variances, *found.correlation[0])] == [
        "0x1.b05b05b05b05bp-3",
        "0x1.dcd64ff17c57cp+29",
        "0x1.61f9add3c0bf2p-5",
        "0x1.cf763d9b7018ep+4",
        "0x1.fffffffffffffp-1",
        "0x1.0c618e720ede9p-1",
    ]


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
