"""Local fits against scikit-learn on the pooled rows: coefficients, support, R²; however the rows are split."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from sklearn import linear_model
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import r2_score
from tests.linear_data import Floats, bank_source, conditioned, pooled, r2, real, split

from cloister.errors import InputError, RefusedError
from cloister.linear._emulator import CoinTable
from cloister.linear._estimators import ElasticNet, Lasso, Ridge
from cloister.linear._logistic import LogisticRegression
from cloister.linear._noise import Privacy
from cloister.linear._rows import read_rows
from cloister.linear._scaling import Scaling
from cloister.linear._sources import read_source

EXACT = {"tol": 1e-12, "max_iter": 200_000}


def error(found: Floats, exact: Floats, features: Floats) -> float:
    """Relative, in units of the standardised columns."""
    scale = features.std(axis=0)
    return float(np.linalg.norm((found - exact) * scale) / np.linalg.norm(exact * scale))


def compare(
    model: Any, reference: Any, features: Floats, response: Floats, *, within: float, how: str = "even"
) -> None:
    """Coefficients within ``within``, the same support up to ties, and a loss of R² of at most 1e-4."""
    coefficients, intercept = pooled(reference, features, response)
    model.fit_local(split(features, response, how))
    assert error(model.coef_, coefficients, features) < within
    assert abs(model.intercept_ - intercept) < 1e-3 * (abs(intercept) + response.std())
    assert (
        r2(features, response, coefficients, intercept) - r2(features, response, model.coef_, model.intercept_) < 1e-4
    )
    tie = 2.0**-14 * response.std() / features.std(axis=0)
    large = np.maximum(abs(model.coef_), abs(coefficients)) > tie
    if not isinstance(model, Ridge):
        assert ((model.coef_ != 0) == (coefficients != 0))[large].all()
        assert 0 < (coefficients != 0).sum() < len(coefficients)


def largest_alpha(features: Floats, response: Floats) -> float:
    """From which on LASSO's coefficients are all zero."""
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    return float(np.abs(scaled.T @ (response - response.mean())).max() / len(response))


@pytest.mark.parametrize("how", ["even", "sorted", "uneven"])
def test_ridge_is_scikit_learns(how: str) -> None:
    features, response = conditioned(3000, 30, 100)
    for alpha in (0.0, 3.0, 300.0):
        compare(Ridge(alpha), linear_model.Ridge(alpha), features, response, within=1e-3, how=how)


@pytest.mark.parametrize("how", ["even", "sorted", "uneven"])
def test_lasso_is_scikit_learns(how: str) -> None:
    features, response = conditioned(3000, 30, 100)
    for share in (0.03, 0.1):
        alpha = share * largest_alpha(features, response)
        compare(Lasso(alpha), linear_model.Lasso(alpha, **EXACT), features, response, within=1e-3, how=how)


def test_elastic_net_is_scikit_learns() -> None:
    features, response = conditioned(3000, 30, 100)
    alpha = 0.1 * largest_alpha(features, response)
    reference = linear_model.ElasticNet(alpha, l1_ratio=0.7, **EXACT)
    compare(ElasticNet(alpha, l1_ratio=0.7), reference, features, response, within=1e-3)


def test_ninety_features_of_condition_300() -> None:
    features, response = conditioned(4000, 90, 300)
    alpha = 0.05 * largest_alpha(features, response)
    compare(Lasso(alpha), linear_model.Lasso(alpha, **EXACT), features, response, within=1e-3)
    compare(Ridge(10.0), linear_model.Ridge(10.0), features, response, within=1e-3)


@pytest.mark.parametrize("name", ["credit_default", "creditcard_fraud"])
def test_real_rows(shared_data: Path, name: str) -> None:
    features, response = real(shared_data, name)
    alpha = 0.05 * largest_alpha(features, response)
    compare(Lasso(alpha), linear_model.Lasso(alpha, **EXACT), features, response, within=1e-3, how="sorted")
    compare(Ridge(10.0), linear_model.Ridge(10.0), features, response, within=1e-3, how="sorted")


@pytest.mark.slow
def test_real_rows_with_dependent_columns(shared_data: Path) -> None:
    """kegg has duplicate columns: LASSO's coefficients are not unique there, its predictions are."""
    features, response = real(shared_data, "kegg_undirected")
    alpha = 0.01 * largest_alpha(features, response)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        coefficients, intercept = pooled(linear_model.Lasso(alpha, tol=1e-8, max_iter=20_000), features, response)
    model = Lasso(alpha).fit_local(split(features, response, "even"))
    assert (
        abs(r2(features, response, coefficients, intercept) - r2(features, response, model.coef_, model.intercept_))
        < 1e-4
    )
    compare(Ridge(1000.0), linear_model.Ridge(1000.0), features, response, within=1e-3)


def test_how_rows_are_split_does_not_matter() -> None:
    """The same agreement, the same coins: only the rounding of the factors differs, an entry's 2^-24."""
    features, response = conditioned(2000, 12, 30)
    alpha = 0.05 * largest_alpha(features, response)
    agreed = {"curvature": 24.0, "mean_square": 8.0}
    for model in (Lasso(alpha, **agreed), Ridge(5.0, **agreed)):
        found = []
        for how in ("even", "sorted", "uneven"):
            parts = split(features, response, how)
            model.fit_local(parts)
            coins = CoinTable.draw(model.plan_)
            first = model.fit_local(parts, coins=coins).coef_
            assert (model.fit_local(parts, coins=coins).coef_ == first).all()  # equal tables, equal bits
            found.append(first)
        assert max(error(other, found[0], features) for other in found[1:]) < 1e-5


def test_order_of_rows_and_parties_does_not_matter() -> None:
    features, response = conditioned(600, 4, 5)
    parts = split(features, response, "sorted")
    model = Ridge(1.0)
    first = model.fit_local(parts).coef_
    turned = [(x[::-1], y[::-1]) for x, y in reversed(parts)]
    assert error(model.fit_local(turned).coef_, first, features) < 1e-5


def test_3902_nothing_is_released_when_a_fit_does_not_converge() -> None:
    features, response = conditioned(400, 8, 1e6, seed=5)
    model = Ridge(1.0).fit_local(split(features, response, "even"))
    assert model.certificate_ is True
    model.alpha, model.steps, model.tolerance = 0.0, 20, 2.0**-18
    with pytest.raises(RefusedError) as refused:
        model.fit_local(split(features, response, "even"))
    assert refused.value.code == 3902
    assert not [name for name in vars(model) if name.endswith("_")]


def test_rank_deficient_rows_are_fitted_where_the_penalty_decides_and_refused_where_nothing_does() -> None:
    features, response = conditioned(400, 6, 3)
    features[:, 3] = 2 * features[:, 1] + 1
    compare(Ridge(20.0), linear_model.Ridge(20.0), features, response, within=1e-3)
    near = features.copy()
    near[:, 3] += 0.02 * np.random.default_rng(0).normal(size=400)
    strong = response + 300 * (near[:, 3] - features[:, 3])  # what only the nearly dependent column can say
    with pytest.raises(RefusedError) as refused:
        Ridge(0.0).fit_local(split(near, strong, "even"))
    assert refused.value.code == 3902


def test_a_heavy_penalty_leaves_the_intercept() -> None:
    features, response = conditioned(500, 5, 3)
    model = Ridge(2500.0).fit_local(split(features, response, "even"))
    coefficients, _ = pooled(linear_model.Ridge(2500.0), features, response)
    assert error(model.coef_, coefficients, features) < 1e-3
    model = Lasso(2 * largest_alpha(features, response)).fit_local(split(features, response, "even"))
    assert not model.coef_.any()
    assert abs(model.intercept_ - response.mean()) < 1e-3 * response.std()


def test_predictions_are_in_units_of_the_data() -> None:
    features, response = conditioned(500, 5, 3)
    model = Ridge(1.0).fit_local(split(features, response, "even", parties=2))
    assert np.allclose(model.predict(features), features @ model.coef_ + model.intercept_)
    assert model.n_iter_ == 200
    assert model.plan_.parties == 2
    with pytest.raises(InputError) as refused:
        model.predict(features[:, :-1])
    assert refused.value.code == 2906


PARTS = split(*conditioned(400, 4, 3), "even")


def with_first(change: Any) -> list[tuple[Any, Any]]:
    features, response = PARTS[0][0].copy(), PARTS[0][1].copy()
    return [change(features, response), *PARTS[1:]]


def missing(features: Floats, response: Floats) -> tuple[Any, Any]:
    features[3, 2] = np.nan
    return features, response


@pytest.mark.parametrize(
    ("code", "model", "parts"),
    [
        (2901, Lasso(0.0), PARTS),
        (2901, Lasso(1e-9), PARTS),
        (2901, Ridge(-1.0), PARTS),
        (2901, Ridge(float("nan")), PARTS),
        (2901, ElasticNet(1.0, l1_ratio=1.5), PARTS),
        (2901, Ridge(curvature=0.5), PARTS),
        (2902, Ridge(mean_square=1.0), PARTS),
        (2903, Ridge(curvature=1.01), PARTS),
        (2904, Ridge(), with_first(missing)),
        (2905, Ridge(), [(np.ones_like(features), response) for features, response in PARTS]),
        (2906, Ridge(), with_first(lambda features, response: (features[:, :-1], response))),
        (2906, Ridge(scaling=Scaling(("a",), (0.0, 0.0), (1.0, 1.0))), PARTS),
        (2907, Ridge(), with_first(lambda features, response: (features, response[:-1]))),
        (2908, Ridge(), with_first(lambda features, response: (features.astype(str), response))),
        (2909, Ridge(), PARTS[:1]),
        (2909, Ridge(), PARTS * 3),
        (2909, Ridge(), [(np.random.default_rng(0).normal(size=(20, 301)), np.arange(20.0))] * 2),
    ],
)
def test_bad_input_has_its_code(code: int, model: Any, parts: Any) -> None:
    with pytest.raises(InputError) as refused:
        model.fit_local(parts)
    assert refused.value.code == code


def test_2902_a_feature_that_the_public_scaling_does_not_fit() -> None:
    features = np.vstack([x for x, _ in PARTS])
    scaling = Scaling(("x0", "x1", "x2", "x3"), (0.0,) * 5, (*(3 * np.abs(features).max(axis=0)), 100.0))
    assert Ridge(1.0, scaling=scaling, mean_square=2.0).fit_local(PARTS).certificate_
    wrong = Scaling(scaling.names, scaling.centres, (scaling.scales[0] / 1000, *scaling.scales[1:]))
    with pytest.raises(InputError) as refused:
        Ridge(1.0, scaling=wrong, mean_square=2.0).fit_local(PARTS)
    assert refused.value.code == 2902
    assert "'x0'" in refused.value.what


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_rows_may_lie_in_files(tmp_path: Path, ending: str) -> None:
    features, response = conditioned(900, 3, 5)
    parts = split(features, response, "even", parties=2)
    sources, told = [], []
    for number, (table, values) in enumerate(parts):
        columns = pyarrow.table({"c": table[:, 2], "y": values, "a": table[:, 0], "b": table[:, 1]})
        path = tmp_path / f"{number}.{ending}"
        (pyarrow.parquet.write_table if ending == "parquet" else pyarrow.csv.write_csv)(columns, path)
        sources.append(read_source(path, features=["a", "b", "c"], response="y", progress=told.append))
    model = Ridge(2.0).fit_local(sources)
    assert error(model.coef_, Ridge(2.0).fit_local(parts).coef_, features) < 1e-5
    assert model.scaling_.names == ("a", "b", "c")
    assert told == [450] * 4  # each file once for the scaling, once for the fit


@pytest.mark.slow
def test_blogfeedback(shared_data: Path) -> None:
    """276 dependent columns: the certificate refuses what did not converge, and 40 rounds of 24 steps do."""
    features, response = real(shared_data, "blogfeedback")
    response = np.log1p(response)
    parts = split(features, response, "even")
    compare(Ridge(5000.0), linear_model.Ridge(5000.0), features, response, within=1e-3)
    alpha = 0.1 * largest_alpha(features, response)
    with pytest.raises(RefusedError) as refused:
        Lasso(alpha).fit_local(parts)
    assert refused.value.code == 3902
    model = Lasso(alpha, rounds=40, half=12, tolerance=2**-9)
    compare(model, linear_model.Lasso(alpha, **EXACT), features, response, within=5e-3)


@pytest.mark.slow
def test_genes_that_outnumber_the_rows(shared_data: Path) -> None:
    """200 genes chosen in public, 135 rows."""
    features, response = real(shared_data, "gene_expression")
    alpha = 0.1 * largest_alpha(features, response)
    compare(Lasso(alpha, rounds=40, half=12), linear_model.Lasso(alpha, **EXACT), features, response, within=1e-3)
    ridge = Ridge(0.135, steps=400, floor=0.003, tolerance=2**-9)
    compare(ridge, linear_model.Ridge(0.135), features, response, within=1e-3)


@pytest.mark.slow
def test_all_categories_of_bank_marketing_from_its_file(shared_data: Path) -> None:
    """Columns of categories sum to the intercept; a small penalty takes more steps, and then the answer is the same."""
    features, response = real(shared_data, "bank_marketing")
    alpha = 0.1 * largest_alpha(features, response)
    reference = linear_model.Lasso(alpha, **EXACT)
    compare(Lasso(alpha), reference, features, response, within=1e-3, how="sorted")
    source = bank_source(shared_data)
    coefficients, _ = pooled(linear_model.Ridge(66.0), np.vstack([features] * 2), np.tile(response, 2))
    model = Ridge(66.0, steps=400, floor=0.003).fit_local([source, source])
    assert error(model.coef_, coefficients, features) < 1e-3


def test_what_everybody_learns_is_said() -> None:
    for model in (Ridge(), Lasso(), ElasticNet()):
        assert "one bit" in model.leakage


def refusal(model: Any, **named: Any) -> InputError:
    with pytest.raises(InputError) as refused:
        model.fit_local(PARTS, **named)
    return refused.value


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (Ridge("abc"), "alpha"),
        (Ridge(float("inf")), "alpha"),
        (Ridge(-1.0), "alpha"),
        (Lasso(-1.0), "alpha"),
        (Ridge(1e9), "alpha"),
        (Lasso(0.0), "alpha"),
        (ElasticNet(1.0, l1_ratio=2), "l1_ratio"),
        (Ridge(steps=100_000), "steps"),
        (Ridge(steps=200.5), "steps"),
        (Lasso(rounds="20"), "rounds"),
        (Lasso(half=1), "half"),
        (LogisticRegression(C=float("inf")), "C"),
        (LogisticRegression(C=0), "C"),
        (LogisticRegression(l1_ratio=-1), "l1_ratio"),
        (Ridge(tolerance="abc"), "number"),
    ],
)
def test_2901_a_hint_names_what_to_change(model: Any, word: str) -> None:
    error = refusal(model)
    assert error.code == 2901
    assert re.search(rf"\b{word}\b", str(error.hint))
    assert "theta" not in str(error.hint)


def test_2901_parameters_are_looked_at_before_a_book_is_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    charged: list[object] = []
    monkeypatch.setattr(Ridge, "_charge", lambda *_: charged.append(_))
    for model in (Ridge(-1.0), Ridge(steps=1.5), Ridge(tolerance="abc"), Ridge(curvature="abc")):
        assert refusal(model, privacy=Privacy(clip=4.0, noise_multiplier="5")).code == 2901
    assert not charged


def test_2909_one_party_is_told_of_parties() -> None:
    with pytest.raises(InputError) as refused:
        Ridge().fit_local(PARTS[:1])
    assert "party" in str(refused.value.hint)
    assert "features" not in str(refused.value.hint)


def test_2916_a_prediction_before_a_fit() -> None:
    for ask in (lambda: Ridge().predict([[1.0]]), lambda: Ridge().score([[1.0]], [1.0])):
        with pytest.raises(InputError) as refused:
            ask()
        assert refused.value.code == 2916
        assert "fit_local" in str(refused.value.hint)


@pytest.mark.parametrize("model", [Ridge(2.0, steps=300), Lasso(0.1, half=9), LogisticRegression(C=3)])
def test_parameters_are_scikit_learns(model: Any) -> None:
    copy = clone(model)
    assert type(copy) is type(model)
    assert copy is not model
    assert copy.get_params() == model.get_params(deep=False)
    assert copy.set_params(tolerance=0.5) is copy
    assert (copy.tolerance, model.tolerance) == (0.5, 2**-12)
    with pytest.raises(InputError) as refused:
        copy.set_params(tolerance=0.25, beta=1)
    assert (refused.value.code, copy.tolerance) == (2901, 0.5)
    assert "'beta'" in refused.value.what


def test_a_repr_shows_parameters_and_no_data() -> None:
    scaling = Scaling(("x0", "x1", "x2", "x3"), (0.0,) * 5, (1.0, 1.0, 1.0, 1.0, 123.25))
    assert repr(Ridge()) == "Ridge()"
    assert repr(ElasticNet(2.0, l1_ratio=0.25)) == "ElasticNet(alpha=2.0, l1_ratio=0.25)"
    model = Ridge(scaling=scaling, tolerance=2**-9).fit_local(PARTS)
    assert repr(model) == "Ridge(scaling=<Scaling of 4 columns>, tolerance=0.001953125)"


def test_a_score_is_the_share_of_variance() -> None:
    features, response = conditioned(500, 5, 3)
    model = Ridge(1.0).fit_local(split(features, response, "even"))
    assert np.isclose(model.score(features, response), r2_score(response, model.predict(features)))
    assert model.score(features, np.ones(500)) == 0.0


def test_columns_are_counted_and_named() -> None:
    model = Ridge().fit_local(PARTS)
    assert model.n_features_in_ == 4
    assert not hasattr(model, "feature_names_in_")
    named = [replace(read_rows(*part), names=("a", "b", "c", "d")) for part in PARTS]
    assert model.fit_local(named).feature_names_in_.tolist() == ["a", "b", "c", "d"]
    assert not hasattr(model.fit_local(PARTS), "feature_names_in_")
