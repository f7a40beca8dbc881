"""Released Newton: scikit-learn's optimum after a few rounds, however rows are split; rounds keep their bounds."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import linear_model
from tests.linear_data import Floats, bank_source, conditioned, real, split

from cloister.errors import InputError, RefusedError
from cloister.linear._budget import require_sound
from cloister.linear._emulator import CoinTable
from cloister.linear._gram import RowFactor
from cloister.linear._logistic import LogisticRegression, first_point
from cloister.linear._newton import RESIDUAL, newton, newton_plan, require_reach, weighted, within
from cloister.linear._plan import LEAST_WEIGHT, Plan
from cloister.linear._rows import Rows
from cloister.linear._scaling import Scaling
from cloister.linear._summary import summarise

FINE = {"steps": 400, "floor": 0.003}


def labelled(rows: int = 3000, features: int = 8) -> tuple[Floats, Floats]:
    table, response = conditioned(rows, features, 30)
    return table, (response > np.quantile(response, 0.7)).astype(float)


def exact(features: Floats, labels: Floats, **terms: Any) -> Floats:
    """Intercept and coefficients of standardised columns."""
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    solver = {"solver": "saga"} if terms.get("l1_ratio") else {}
    model = linear_model.LogisticRegression(**terms, **solver, tol=1e-10, max_iter=20_000).fit(scaled, labels)
    return np.append(model.intercept_, model.coef_[0])


def errors(model: Any, optimum: Floats) -> list[float]:
    """Of each iterate's coefficients, relative."""
    size = np.linalg.norm(optimum[1:])
    return [float(np.linalg.norm(point[1:] - optimum[1:]) / size) for point in model.iterates_]


@pytest.mark.parametrize("how", ["even", "sorted", "uneven"])
def test_three_rounds_reach_the_optimum_however_rows_are_split(how: str) -> None:
    features, labels = labelled()
    model = LogisticRegression(C=0.1, method="newton").fit_local(split(features, labels, how))
    optimum = exact(features, labels, C=0.1)
    found = errors(model, optimum)
    assert len(found) == 4
    assert found[0] > 0.03 > 1e-3 > found[3]
    assert abs(model.iterates_[-1][0] - optimum[0]) < 1e-3
    assert model.coef_.shape == (1, 8)
    scale = features.std(axis=0)
    assert np.allclose(model.coef_[0] * scale, model.iterates_[-1][1:])
    assert np.isclose(model.intercept_[0] + model.coef_[0] @ features.mean(axis=0), model.iterates_[-1][0])


@pytest.mark.parametrize("l1_ratio", [0.5, 1.0])
def test_l1_works_too(l1_ratio: float) -> None:
    features, labels = labelled()
    strength = 0.03 * len(labels)
    model = LogisticRegression(C=1 / strength, l1_ratio=l1_ratio, method="newton", rounds=4)
    model.fit_local(split(features, labels, "even"))
    optimum = exact(features, labels, C=1 / strength, l1_ratio=l1_ratio)
    assert errors(model, optimum)[-1] < 1e-3
    assert ((model.iterates_[-1] != 0) == (optimum != 0)).all()
    assert 0 < (optimum[1:] != 0).sum() < 8


def test_equal_coins_give_equal_models() -> None:
    features, labels = labelled(600, 3)
    parts = split(features, labels, "even")
    model = LogisticRegression(C=0.1, method="newton", rounds=2).fit_local(parts)
    coins = [CoinTable.draw(model.plan_) for _ in range(3)]
    first, second = (model.fit_local(parts, coins=coins).iterates_ for _ in range(2))
    assert (first == second).all()


@pytest.mark.parametrize(
    ("name", "C", "rounds", "within"),
    [
        pytest.param("credit_default", 1.0, 3, 1e-3, marks=pytest.mark.slow),
        ("credit_default", 0.01, 3, 1e-3),
        pytest.param("bank_marketing", 0.01, 3, 1e-3, marks=pytest.mark.slow),
        ("creditcard_fraud", 0.01, 5, 1e-3),
    ],
)
def test_real_rows(shared_data: Path, name: str, C: float, rounds: int, within: float) -> None:
    features, labels = real(shared_data, name)
    model = LogisticRegression(C=C, method="newton", rounds=rounds, **FINE)
    model.fit_local(split(features, labels, "sorted"))
    assert errors(model, exact(features, labels, C=C))[-1] < within


@pytest.mark.slow
def test_dependent_columns_without_a_penalty_that_decides_are_refused(shared_data: Path) -> None:
    """All categories have a column each, so columns sum to the intercept: at C = 1 the certificate says no."""
    source = bank_source(shared_data)
    model = LogisticRegression(C=1.0, tolerance=2**-9).fit_local([source, source])
    model.method = "newton"
    with pytest.raises(RefusedError) as refused:
        model.fit_local([source, source])
    assert refused.value.code == 3902


# ---- a round -------------------------------------------------------------------------------------------

SCALING = Scaling(("x0", "x1"), (0.5, 0.0, 0.2), (2.0, 1.0, 0.5))
PLAN = Plan(method="ridge", rows=(300, 300), curvature=Fraction(4), mean_squares=(Fraction(2),) * 3, l2=Fraction(1, 10))
ROUND = newton_plan(PLAN, l1=Fraction(0), l2=Fraction(1, 20), reach=Fraction(4))


def chunks(many: int = 300, seed: int = 0) -> list[Floats]:
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(many, 2)) * [2, 1] + [0.5, 0]
    signs = np.where(generator.normal(size=many) + features[:, 1] > 0, 1.0, -1.0)
    return list(SCALING.chunks(Rows(SCALING.names, features, signs)))


def ulps(*numbers: float) -> tuple[int, ...]:
    return tuple(int(number * 2**36) for number in numbers)


@pytest.mark.parametrize("point", [(0.0, 0.0, 0.0), (0.3, -1.0, 2.0), (40.0, 900.0, -900.0)])
def test_rows_of_a_round_are_the_likelihoods_gradient_and_curvature(point: tuple[float, ...]) -> None:
    [chunk] = chunks()
    [rows] = weighted([chunk], SCALING, ulps(*point))
    table, labels = chunk[:, :-1], chunk[:, -1] * 0.5 + 0.2 > 0
    chances = 1 / (1 + np.exp(-np.clip(table @ point, -700, 700)))
    assert np.allclose(rows[:, :-1].T @ rows[:, -1], 4 * table.T @ (labels - chances), atol=1e-8)
    weights = np.maximum(4 * chances * (1 - chances), 1 / 256)
    assert np.allclose(rows[:, :-1].T @ rows[:, :-1], (table * weights[:, None]).T @ table)
    assert (rows[:, 0] ** 2).mean() >= float(LEAST_WEIGHT) * (1 - 1e-12)
    assert (rows[:, 0] ** 2 <= 1 + 1e-12).all()


@pytest.mark.parametrize("size", [0.5, 30.0, 1e4])
def test_a_round_is_never_refused_for_its_residuals(size: float) -> None:
    """At a point that classifies everybody wrongly residuals are huge; they are shortened, and S is legal."""
    factor = RowFactor(4)
    for rows in weighted(chunks(), SCALING, ulps(0.0, 0.0, -size)):
        factor.add(rows)
    legal = within(ROUND, 0, factor)
    summarise(ROUND, 0, legal, SCALING.names)
    if factor.mean_squares()[-1] > RESIDUAL:
        assert float(RESIDUAL) * 0.99 < legal.mean_squares()[-1] < float(RESIDUAL)
        with pytest.raises(InputError) as refused:
            summarise(ROUND, 0, factor, SCALING.names)
        assert refused.value.code == 2902
    else:
        assert (legal.triangle == factor.triangle).all()


def test_within_shortens_a_steep_block_as_a_whole() -> None:
    factor = RowFactor.of(np.diag([300.0, 500.0, 500.0, 100.0]) + 0.0, 300)
    narrow = replace(ROUND, curvature=Fraction(1), mean_squares=(*[Fraction(2)] * 2, RESIDUAL))
    legal = within(narrow, 0, factor)
    assert legal.curvature() < 1
    assert legal.mean_squares()[-1] == 100 / 300
    summarise(narrow, 0, legal, SCALING.names)


@pytest.mark.parametrize("share", [0.001, 1.01])
def test_2907_weights_that_no_round_has(share: float) -> None:
    factor = RowFactor.of(np.diag([300.0 * share, 300.0, 300.0, 100.0]), 300)
    with pytest.raises(InputError) as refused:
        summarise(ROUND, 0, factor, SCALING.names)
    assert refused.value.code == 2907


def test_2907_rows_of_one_fit_have_no_weights() -> None:
    factor = RowFactor.of(np.diag([150.0, 300.0, 300.0, 100.0]), 300)
    with pytest.raises(InputError) as refused:
        summarise(PLAN, 0, factor, SCALING.names)
    assert refused.value.code == 2907


def test_3902_a_round_that_would_begin_beyond_the_reach_is_not_computed() -> None:
    require_reach(ROUND, ulps(4.0, 0.0, 0.0))
    require_reach(ROUND, ulps(2.0, -2.0, 2.0))
    for point in (ulps(4.001, 0.0, 0.0), ulps(0.0, -3.0, 3.0), ulps(0.0, 0.0, -1e6)):
        with pytest.raises(RefusedError) as refused:
            newton(ROUND, point, rounds=1, fit_once=lambda _: pytest.fail("it was computed"))
        assert refused.value.code == 3902
    only_sums = replace(ROUND, reach=(Fraction(4), Fraction(4)))
    with pytest.raises(RefusedError):
        require_reach(only_sums, ulps(2.5, -2.5, 0.0))


def test_a_greater_reach_needs_more_of_the_field() -> None:
    assert require_sound(ROUND).level >= require_sound(PLAN).level
    with pytest.raises(InputError) as refused:
        newton_plan(PLAN, l1=Fraction(0), l2=Fraction(0), reach=Fraction(1000))
    assert refused.value.code == 2901


def test_the_first_point_is_the_quadratic_model() -> None:
    factor = 2**18 / 85635
    found = first_point(ulps(0.5, -1.0, 2.0), SCALING)
    expected = np.array([0.5 * 0.5 + 0.2, -0.5, 1.0]) * factor
    assert np.allclose(np.array(found) / 2**36, expected, rtol=1e-9)


@pytest.mark.parametrize("change", [{"method": "guess"}, {"rounds": 0}, {"rounds": 21}, {"reach": -1.0}])
def test_2901_what_no_fit_has(change: dict[str, Any]) -> None:
    features, labels = labelled(400, 3)
    with pytest.raises(InputError) as refused:
        LogisticRegression(**({"C": 0.1, "method": "newton"} | change)).fit_local(split(features, labels, "even"))
    assert refused.value.code == 2901


def test_2908_a_label_that_was_not_agreed() -> None:
    features, labels = labelled(400, 3)
    model = LogisticRegression(C=0.1, classes=(0, 2))
    with pytest.raises(InputError) as refused:
        model.fit_local(split(features, labels, "even"))
    assert refused.value.code == 2908


def test_leakage_is_said() -> None:
    assert "one bit" in LogisticRegression().leakage
    text = LogisticRegression(method="newton", rounds=5).leakage
    assert "6 fits" in text
    assert "not only the last" in text
