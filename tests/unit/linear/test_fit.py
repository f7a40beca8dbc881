"""``fit(agreement, X, y)`` of three parties over TLS: what they get, what is refused at home, what is remembered."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression as Reference
from sklearn.linear_model import Ridge as Other
from tests.exact_numbers import refused
from tests.linear_people import NAMES, PEOPLE, agreed, signed_by_all, together
from tests.unit.linear.test_session import COLUMNS, SIZES, agreement, pooled, rows

from cloister.errors import CloisterError, InputError, PeerError
from cloister.linear import LogisticRegression, Ridge, Scaling, _book, _fit, statistics
from cloister.linear._agreed_fit import own_rows, require_same
from cloister.linear._book import charge_book, open_budget
from cloister.linear._consent import Signed, propose, sign
from cloister.linear._fit import fit_agreed, timestamp
from cloister.linear._journal import Journal
from cloister.linear._link import TlsChannel
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


@pytest.mark.parametrize(("code", "ended"), [(6901, 6901), (6906, 3901)])
def test_3901_a_session_that_ends_in_a_later_round_has_opened_a_model(
    code: int, ended: int, homes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round of Newton's method goes back to inputs, where the first fit's failure says nothing of anybody's.

    Nor is it begun again by itself (6906): the rounds' noise would be drawn anew, uncharged.
    """

    def ends(channel: TlsChannel, *_: Any, **__: Any) -> None:
        for phase in begun:
            channel.begin(phase)
            channel.swap("round", [b"1"] * channel.parties, 1)
        raise PeerError(code)

    def found(signed: Signed) -> set[int]:
        """Who hears of another's end before its own says 6905."""
        return {error.code for error in fitted(signed, homes, lambda: Ridge(15, steps=60))} - {6905}

    monkeypatch.setattr(_fit, "run_session", ends)
    begun, signed = ["inputs", "online", "inputs"], signed_by_all(agreement(RIDGE))
    assert found(signed) == {ended}
    assert found(signed) == {3901}
    begun, signed = ["inputs"], signed_by_all(agreement(RIDGE, purpose="another"))
    sessions = 1 if code == 6901 else 3  # begun again twice
    assert found(signed) == {6901 if code == 6901 else 3901}
    assert Journal(homes[0], signed.agreement.id, NAMES[0]).counts().begun == sessions


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


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"curvature": 7.0}, ["curvature"]),
        ({"mean_square": 2.0, "tolerance": 2.0**-10}, ["mean_square", "tolerance"]),
        ({"scaling": Scaling(COLUMNS, (0.0,) * 4, (1.0, 1.0, 2.0, 1.0))}, ["scaling"]),
    ],
)
def test_2915_what_an_agreement_has_is_not_ignored(change: dict[str, Any], names: list[str], homes: list[Path]) -> None:
    signed = signed_by_all(agreement(RIDGE))
    model = Ridge(15, steps=60, **change)
    with pytest.raises(InputError) as refusal:
        model.fit(signed, *rows()[0], identity=PEOPLE[NAMES[0]], home=homes[0])
    assert refusal.value.code == 2915
    others = {"scaling", "curvature", "mean_square", "tolerance"} - set(names)
    assert all(name in refusal.value.what for name in names)
    assert not any(name in refusal.value.what for name in others)


def test_an_estimator_may_say_what_was_agreed() -> None:
    held = agreement(RIDGE)
    same = {
        "scaling": Scaling(COLUMNS, (0.0,) * 4, (1.0,) * 4),
        "curvature": 6.0,
        "mean_square": 4,
        "tolerance": 2**-12,
    }
    even = held.model_copy(update={"response": held.response.model_copy(update={"mean_square": None})})
    terms = Ridge(15, steps=60)._terms()
    require_same(terms, even, same)
    refused(lambda: require_same(terms, held, same), 2915)  # the response's mean square is another
    parties = (even.parties[0].model_copy(update={"curvature": "5"}), *even.parties[1:])
    refused(lambda: require_same(terms, even.model_copy(update={"parties": parties}), same), 2915)


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
    numbered, named, bools = (
        next(iter(own_rows(held, features, y).chunks())).response for y in (classes, texts, classes == 1)
    )
    assert np.array_equal(numbered, named)
    assert np.array_equal(numbered, bools)
    refused(lambda: own_rows(held, features, np.where(classes == 1, "yes", "maybe")), 2908)
    refused(lambda: own_rows(held, features, classes + 1), 2908)
    refused(lambda: own_rows(held, features, np.where(classes == 1, np.nan, 1.0)), 2904)
    refused(lambda: own_rows(held, features, classes[:, None]), 2906)


@pytest.mark.parametrize("labels", [("1", "2"), ("1", "0"), ("0", "1"), ("True", "False"), ("true", "false")])
def test_labels_that_read_as_numbers_mean_in_an_array_what_they_mean_in_a_file(labels: tuple[str, str]) -> None:
    """Where all rows of a party are "1", it is the label and not a class."""
    response = {"name": "risk", "labels": labels, "mean_square": "1"}
    model = {"type": "logistic", "C": "1"}
    held = agreed(features=[{"name": name} for name in COLUMNS], response=response, model=model)
    features = np.arange(6.0).reshape(2, 3)
    first: list[Any] = [True] if labels[0].lower() == "true" else [int(labels[0]), float(labels[0])]
    for value in (*first, *(np.array([one])[0] for one in first)):  # numpy's own in an object array, too
        (read,) = own_rows(held, features, np.array([value, value], dtype=object)).chunks()
        assert read.response.tolist() == [0, 0]
    refused(lambda: own_rows(held, features, np.array([7, 7])), 2908)
    if set(labels) != {"0", "1"}:
        refused(lambda: own_rows(held, features, np.array([0, 1])), 2908)


def test_2019_a_private_agreement_is_not_fitted_without_a_book(
    homes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, ``fit`` spent and nobody recorded it."""
    terms = {"epsilon": "3", "delta": "1e-6", "noise_multiplier": "4", "clip": "4"}
    held = agreement(RIDGE, privacy=terms)
    signed, identity, book = signed_by_all(held), PEOPLE[NAMES[0]], homes[0] / "book.json"
    features, response = rows()[0]

    def fit(**named: Any) -> object:
        return Ridge(15, steps=60).fit(signed, features, response, identity=identity, home=homes[0], **named)

    def unreachable(*_: Any, **__: Any) -> None:
        raise PeerError(6901)

    monkeypatch.setattr(_fit, "connect", unreachable)
    refused(fit, 2019)
    refused(lambda: fit(book=book), 2001)
    open_budget(book, homes[0], owner=identity.name, epsilon="1.5", delta="1e-5")
    refused(lambda: fit(book=book), 6901)
    refused(lambda: fit(book=book), 7801)


def test_charges_of_two_agreements_at_once_are_both_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = {"epsilon": "8", "delta": "1e-6", "noise_multiplier": "20", "clip": "4"}
    both = [agreement(RIDGE, privacy=terms, name=name) for name in ("one", "two")]
    path, store = tmp_path / "book.json", _book._store
    open_budget(path, tmp_path, owner="bank-a", epsilon="8", delta="1e-5")

    def slow(*arguments: Any) -> None:
        time.sleep(0.2)
        store(*arguments)

    monkeypatch.setattr(_book, "_store", slow)
    charged = together(*(lambda held=held: charge_book(held, path, tmp_path, owner="bank-a") for held in both))
    assert sorted(len(book.postings) for book in charged) == [1, 2]


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


def test_three_parties_open_statistics_for_a_scaling(homes: list[Path]) -> None:
    signed, parts = signed_by_all(agreement({"type": "statistics", "open": ["means", "variances"]})), rows()

    def one(place: int) -> Any:
        return statistics(signed, *parts[place], identity=PEOPLE[NAMES[place]], home=homes[place])

    found = together(*(lambda place=place: one(place) for place in range(3)))
    for theirs in found:
        if isinstance(theirs, BaseException):
            raise theirs
        assert theirs.to_json() == found[0].to_json()
    whole, scaling = np.column_stack(pooled()), Scaling.from_statistics(found[0])
    assert np.allclose(scaling.centres, whole.mean(axis=0), atol=1e-5)
    assert np.allclose(scaling.scales, whole.std(axis=0), atol=1e-5)


def test_2915_statistics_of_an_agreement_on_a_model(homes: list[Path]) -> None:
    signed = signed_by_all(agreement(RIDGE))
    refused(lambda: statistics(signed, *rows()[0], identity=PEOPLE[NAMES[0]], home=homes[0]), 2915)
