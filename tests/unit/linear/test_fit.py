"""``fit(agreement, X, y)`` of three parties over TLS: what they get, what is refused at home, what is remembered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression as Reference
from sklearn.linear_model import Ridge as Other
from tests.exact_numbers import refused
from tests.linear_people import NAMES, PEOPLE, signed_by_all, together
from tests.unit.linear.test_session import COLUMNS, SIZES, agreement, pooled, rows

from cloister.errors import CloisterError
from cloister.linear import LogisticRegression, Ridge
from cloister.linear._agreed_fit import own_rows
from cloister.linear._consent import Signed, propose, sign
from cloister.linear._fit import fit_agreed, timestamp
from cloister.linear._journal import Journal
from cloister.party import Pins, fingerprint

RIDGE = {"type": "ridge", "alpha": "15", "steps": 60}


@pytest.fixture
def homes(tmp_path: Path) -> list[Path]:
    """Each party has pinned the others."""
    made: list[Path] = []
    for name in NAMES:
        home = tmp_path / name
        home.mkdir()
        for other in NAMES:
            if other != name:
                Pins(home).pin(PEOPLE[other].public, words=fingerprint(PEOPLE[other].public))
        made.append(home)
    return made


def fitted(signed: Signed, homes: list[Path], make: Any, *, logistic: bool = False, **fields: Any) -> list[Any]:
    parts = rows(logistic)

    def one(place: int) -> Any:
        return make().fit(signed, *parts[place], identity=PEOPLE[NAMES[place]], home=homes[place], **fields)

    return together(*(lambda place=place: one(place) for place in range(3)))


def test_three_parties_fit_one_model(homes: list[Path]) -> None:
    signed = signed_by_all(agreement(RIDGE))
    models = fitted(signed, homes, lambda: Ridge(15, steps=60))
    other = Other(alpha=15).fit(*pooled())
    for model in models:
        if isinstance(model, BaseException):
            raise model
        assert np.linalg.norm(model.coef_ - other.coef_) < 1e-3 * np.linalg.norm(other.coef_)
        assert abs(model.intercept_ - other.intercept_) < 1e-3
        assert model.transcript == models[0].transcript
        assert model.certificate_
        assert model.predict(pooled()[0][:4]).shape == (4,)
    assert models[0].model_file_ == models[1].model_file_
    assert set(models[0].model_file_.signatures) == set(NAMES)

    again = fitted(signed, homes, lambda: Ridge(15, steps=60))
    assert [error.code for error in again] == [3901] * 3
    assert not isinstance(fitted(signed, homes, lambda: Ridge(15, steps=60), consent=True)[0], CloisterError)


@pytest.mark.slow
def test_a_logistic_model_by_newtons_rounds(homes: list[Path]) -> None:
    terms = {"type": "logistic", "C": "1", "method": "newton", "newton_rounds": 4, "steps": 120}
    signed = signed_by_all(agreement(terms))
    models = fitted(signed, homes, lambda: LogisticRegression(method="newton", rounds=4, steps=120), logistic=True)
    other = Reference(C=1, tol=1e-10, max_iter=1000).fit(*pooled(logistic=True))
    for model in models:
        if isinstance(model, BaseException):
            raise model
        assert np.linalg.norm(model.coef_ - other.coef_) < 1e-3 * np.linalg.norm(other.coef_)
        assert model.classes_.tolist() == ["no", "yes"]
        assert set(model.predict(pooled()[0][:50])) <= {"no", "yes"}


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (Ridge(14, steps=60), 2915),
        (Ridge(15, steps=61), 2915),
        (LogisticRegression(), 2915),
    ],
)
def test_2915_an_estimator_that_is_not_the_agreed_one(model: Any, code: int, homes: list[Path]) -> None:
    signed = signed_by_all(agreement(RIDGE))
    features, response = rows()[0]
    refused(lambda: model.fit(signed, features, response, identity=PEOPLE[NAMES[0]], home=homes[0]), code)


def test_what_is_wrong_at_home_is_refused_before_anything_is_sent(homes: list[Path]) -> None:
    signed, model = signed_by_all(agreement(RIDGE)), Ridge(15, steps=60)
    features, response = rows()[0]
    identity = PEOPLE[NAMES[0]]
    refused(lambda: model.fit(signed, features[:-1], response[:-1], identity=identity, home=homes[0]), 2907)
    refused(lambda: model.fit(signed, features * 9, response, identity=identity, home=homes[0]), 2902)
    refused(lambda: model.fit(signed, features[:, :2], response, identity=identity, home=homes[0]), 2906)
    refused(lambda: model.fit(signed, features, response, identity=PEOPLE["stranger"], home=homes[0]), 3305)
    assert not hasattr(model, "coef_")
    assert len(COLUMNS) == features.shape[1]


def test_consent_is_asked_for_before_rows_are_read(homes: list[Path]) -> None:
    model, identity = Ridge(15, steps=60), PEOPLE[NAMES[0]]
    rows_that_fail = [[float("nan")] * 3] * SIZES[0], [0.0] * SIZES[0]
    features, response = rows()[0]

    def fit(signed: Signed, home: Path, *data: Any) -> Any:
        return lambda: model.fit(signed, *(data or (features, response)), identity=identity, home=home)

    held = agreement(RIDGE)
    refused(fit(sign(propose(held), identity), homes[0]), 3301)
    refused(fit(signed_by_all(held), homes[0].parent / "nobody"), 3303)
    past = agreement(RIDGE, valid={"not_before": "2020-01-01T00:00:00Z", "not_after": "2020-02-01T00:00:00Z"})
    refused(fit(signed_by_all(past), homes[0]), 3403)
    refused(fit(signed_by_all(held), homes[0], *rows_that_fail), 2904)


def test_labels_are_the_agreed_ones() -> None:
    held = agreement({"type": "logistic", "C": "1"})
    features, classes = rows(logistic=True)[0]
    texts = np.where(classes == 1, "yes", "no")
    numbered, named = (next(iter(own_rows(held, features, y).chunks())).response for y in (classes, texts))
    assert np.array_equal(numbered, named)
    refused(lambda: own_rows(held, features, np.where(classes == 1, "yes", "maybe")), 2908)


def test_3901_a_budget_is_not_charged_for_a_session_that_may_not_run(homes: list[Path]) -> None:
    held = agreement(RIDGE)
    identity, charged = PEOPLE[NAMES[0]], list[bool]()
    journal = Journal(homes[0], held.id, identity.name)
    with journal.session(at=timestamp()) as serial:
        journal.released(serial, at=timestamp())

    def fit() -> object:
        part = own_rows(held, *rows()[0])
        return fit_agreed(
            signed_by_all(held), part, identity=identity, home=homes[0], charge=lambda: charged.append(True)
        )

    refused(fit, 3901)
    assert not charged
