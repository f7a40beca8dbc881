"""Logistic regression by quadratic statistics: the surrogate's own optimum, and the ranking of the real one."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import integrate, optimize
from sklearn import linear_model
from sklearn.metrics import roc_auc_score
from tests.linear_data import Floats, conditioned, pooled, real, split

from cloister.errors import InputError, RefusedError
from cloister.linear._logistic import LogisticRegression
from cloister.linear._newton import QUADRATIC


def labelled(rows: int = 2000, features: int = 8) -> tuple[Floats, Floats]:
    table, response = conditioned(rows, features, 30)
    return table, np.where(response > np.median(response), 7.0, 3.0)


def test_the_constant_is_that_of_chebyshevs_expansion() -> None:
    """On [-4, 4]: the coefficient of T_2 is a_2, and -b_2 s² is what T_2(s/4) = s²/8 - 1 contributes."""
    a_2, _ = integrate.quad(
        lambda t: -math.log1p(math.exp(-4 * math.cos(t))) * math.cos(2 * t), 0, math.pi, epsabs=1e-13
    )
    assert abs(QUADRATIC + Fraction(a_2 * 2 / math.pi / 8)) <= Fraction(1, 1 << 21)


@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
def test_it_is_the_optimum_of_the_quadratic_likelihood(l1_ratio: float) -> None:
    features, labels = labelled()
    scale, signs = features.std(axis=0), np.where(labels == 7, 1.0, -1.0)
    table = np.column_stack([np.ones(len(labels)), (features - features.mean(axis=0)) / scale])
    strength = 0.02

    def smooth(w: Floats) -> tuple[float, Floats]:
        scores = table @ w
        value = (float(QUADRATIC) * scores**2 - signs * scores / 2).mean()
        gradient = table.T @ (2 * float(QUADRATIC) * scores - signs / 2) / len(labels)
        rest = (1 - l1_ratio) * strength
        return value + rest / 2 * float(w[1:] @ w[1:]), gradient + rest * np.concatenate([[0], w[1:]])

    def halves(v: Floats) -> tuple[float, Floats]:
        """L1 with a variable for each sign."""
        w = np.concatenate([v[:1], v[1:9] - v[9:]])
        value, gradient = smooth(w)
        each = l1_ratio * strength
        return value + each * v[1:].sum(), np.concatenate([gradient[:1], gradient[1:] + each, each - gradient[1:]])

    bounds = [(None, None)] + [(0, None)] * 16
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 10_000}
    best = optimize.minimize(halves, np.zeros(17), jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    exact = (best[1:9] - best[9:]) / scale
    model = LogisticRegression(C=1 / (strength * len(labels)), l1_ratio=l1_ratio).fit_local(
        split(features, labels, "even")
    )
    assert model.coef_.shape == (1, 8)
    assert np.linalg.norm((model.coef_[0] - exact) * scale) < 1e-3 * np.linalg.norm(exact * scale)
    assert abs(model.intercept_[0] - (best[0] - exact @ features.mean(axis=0))) < 1e-3


def test_it_classifies_as_scikit_learn_does() -> None:
    features, labels = labelled()
    model = LogisticRegression().fit_local(split(features, labels, "sorted"))
    reference = linear_model.LogisticRegression(max_iter=1000)
    coefficients, intercept = pooled(_Flat(reference), features, labels)
    theirs = features @ coefficients + intercept
    assert model.classes_.tolist() == [3.0, 7.0]
    assert (model.predict(features) == np.where(theirs > 0, 7.0, 3.0)).mean() > 0.98
    odds = model.predict_proba(features)
    assert np.allclose(odds.sum(axis=1), 1)
    assert np.allclose(np.log(odds[:, 1] / odds[:, 0]), model.decision_function(features))


@pytest.mark.parametrize(
    ("name", "loss"), [("credit_default", 6e-3), ("creditcard_fraud", 2e-3), ("bank_marketing", 2e-3)]
)
def test_it_ranks_real_rows_as_logistic_regression_does(shared_data: Path, name: str, loss: float) -> None:
    """As least squares on the labels ranks them, which is a little below: that loss is the approximation's own."""
    features, labels = real(shared_data, name)
    model = LogisticRegression(C=0.1, tolerance=2**-9).fit_local(split(features, labels, "even"))
    found = roc_auc_score(labels, model.decision_function(features))
    squares, _ = pooled(linear_model.Ridge(10 / (2 * float(QUADRATIC))), features, labels)
    assert abs(found - roc_auc_score(labels, features @ squares)) < 1e-4
    reference = linear_model.LogisticRegression(C=0.1, max_iter=10_000)
    coefficients, intercept = pooled(_Flat(reference), features, labels)
    assert 0 < roc_auc_score(labels, features @ coefficients + intercept) - found < loss


class _Flat:
    """A classifier with a regressor's shapes."""

    def __init__(self, model: linear_model.LogisticRegression) -> None:
        self.model = model

    def fit(self, features: Floats, labels: Floats) -> None:
        self.model.fit(features, labels)
        self.coef_, self.intercept_ = self.model.coef_[0], self.model.intercept_[0]


@pytest.mark.parametrize(
    ("code", "change", "labels"),
    [
        (2901, {"C": 0.0}, None),
        (2901, {"C": -1.0}, None),
        (2901, {"l1_ratio": 1.5}, None),
        (2908, {}, np.arange(400.0) % 3),
        (2908, {}, np.ones(400)),
        (2904, {}, np.where(np.arange(400) == 3, np.nan, 1.0)),
    ],
)
def test_bad_input_has_its_code(code: int, change: dict[str, float], labels: Floats | None) -> None:
    features, good = labelled(400, 3)
    with pytest.raises(InputError) as refused:
        LogisticRegression(**change).fit_local(split(features, good if labels is None else labels, "even"))
    assert refused.value.code == code


def test_3902_keeps_no_model() -> None:
    features, labels = labelled(400, 3)
    model = LogisticRegression().fit_local(split(features, labels, "even"))
    features[:, 1] = features[:, 0] + 1e-3 * features[:, 1]
    model.C, model.tolerance = 1e6, 2.0**-20
    with pytest.raises(RefusedError) as refused:
        model.fit_local(split(features, np.where(features[:, 1] > features[:, 0], 7.0, 3.0), "even"))
    assert refused.value.code == 3902
    assert not [name for name in vars(model) if name.endswith("_")]


def test_text_labels_are_those_of_all_parts_or_the_agreed_ones() -> None:
    features, labels = labelled(400, 3)
    texts = np.where(labels == 7, "yes", "no")
    numbers = LogisticRegression().fit_local(split(features, labels, "even"))
    for classes in (None, ("no", "yes"), ("yes", "no")):
        named = split(features, texts, "even")
        model = LogisticRegression(classes=classes).fit_local(
            [*named[:-1], (named[-1][0], named[-1][1].astype(object))]
        )
        assert model.classes_.tolist() == ["no", "yes"]
        assert ((model.predict(features) == "yes") == (numbers.predict(features) == 7)).mean() > 0.99
        found = model.score(features, texts)
        assert found == (model.predict(features) == texts).mean() == model.score(features, labels == 7) > 0.6
    assert numbers.score(features, labels) > 0.6
    assert LogisticRegression().fit_local(split(features, labels, "even")).classes_.tolist() == [3.0, 7.0]


def test_text_labels_that_are_not_two_are_refused() -> None:
    features, labels = labelled(400, 3)
    texts = np.where(labels == 7, "yes", "no").astype(object)
    third, gone = texts.copy(), texts.copy()
    third[5], gone[5] = "maybe", None
    for code, response, classes in (
        (2908, third, None),
        (2908, third, ("no", "yes")),
        (2908, texts, ("no", "no")),
        (2908, texts, (3.0, 7.0)),
        (2904, gone, None),
    ):
        with pytest.raises(InputError) as refused:
            LogisticRegression(classes=classes).fit_local(split(features, response, "even"))
        assert refused.value.code == code
        assert "maybe" not in f"{refused.value.what} {refused.value.expected} {refused.value.got}"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"method": "newton", "rounds": 11}, "less than or equal to 10"),
        ({"method": "newton", "rounds": 0}, "greater than or equal to 1"),
        ({"method": "newton", "rounds": 2.5}, "a valid integer"),
        ({"method": "foo"}, "'quadratic' or 'newton'"),
    ],
)
def test_2901_rounds_and_methods_have_one_limit(change: dict[str, Any], expected: str) -> None:
    features, labels = labelled(400, 3)
    with pytest.raises(InputError) as refused:
        LogisticRegression(**change).fit_local(split(features, labels, "even"))
    name = "rounds" if "rounds" in change else "method"
    assert (refused.value.code, refused.value.expected, refused.value.got) == (2901, expected, change[name])
    assert name in refused.value.what
    assert name in refused.value.hint


def test_2916_a_class_before_a_fit() -> None:
    for ask in ("predict", "predict_proba", "decision_function"):
        with pytest.raises(InputError) as refused:
            getattr(LogisticRegression(), ask)([[1.0]])
        assert refused.value.code == 2916
