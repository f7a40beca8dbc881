"""Whole sessions of signed agreements between threads: what all open is what fits of rows in one place give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Lasso, LogisticRegression, Ridge
from tests.exact_numbers import refused
from tests.linear_mesh import Cheat, Message, codes, run_parties
from tests.linear_people import NAMES, PEOPLE, agreed

from cloister.linear import _session as module
from cloister.linear._agreed_rows import summary_of
from cloister.linear._agreement import Agreement
from cloister.linear._model import (
    MODEL_LABEL,
    ModelFile,
    Released,
    read_model,
    signed_payload,
    statistics_in,
    write_model,
)
from cloister.linear._noise import lift_of
from cloister.linear._party import Party
from cloister.linear._plan import ITERATE_BITS
from cloister.linear._roundings import MASK_BITS
from cloister.linear._rows import Part, read_rows
from cloister.linear._session import run_session
from cloister.linear._sound import privacy_event, privacy_of
from cloister.linear._statistics import entries_of
from cloister.wire import canonical

DEGREE = 2048
SIZES = (400, 500, 600)
COLUMNS = ("amount", "age", "days")


def rows(logistic: bool = False) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(7)
    parts: list[tuple[Any, Any]] = []
    for place, size in enumerate(SIZES):
        table = rng.normal(size=(size, 3)) @ np.array([[1, 0.4, 0], [0, 1, 0.3], [0, 0, 1]]) + 0.2 * place
        signal = table @ np.array([1.2, -0.7, 0.0]) + 0.3
        labels = (rng.random(size) < 1 / (1 + np.exp(-signal))).astype(float)
        parts.append((table, labels if logistic else signal + rng.normal(size=size)))
    return parts


def agreement(model: dict[str, Any], **changes: Any) -> Agreement:
    logistic = model["type"] == "logistic"
    response: dict[str, Any] = {"name": "risk", "mean_square": "8"}
    if logistic:
        response = {"name": "risk", "labels": ["no", "yes"], "mean_square": "1"}
    features = [{"name": name} for name in COLUMNS]
    return agreed(features=features, response=response, model=model, curvature="6", mean_square="4", **changes)


def parts_of(agreement: Agreement, *, logistic: bool = False) -> list[Part]:
    made = [read_rows(*part) for part in rows(logistic)]
    return [replace(part, names=COLUMNS) for part in made]


def sessions(held: Agreement, *, logistic: bool = False, cheat: Cheat | None = None) -> list[Any]:
    parts = parts_of(held, logistic=logistic)

    def act(party: Party) -> Released:
        place = party.number
        summary = summary_of(held, place, parts[place])
        identity = PEOPLE[NAMES[place]]
        return run_session(party.channel, held, summary, identity=identity, part=parts[place], degree=DEGREE)

    return run_parties(3, act, cheat=cheat)


def released(outcomes: list[Any]) -> Released:
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    assert outcomes == [outcomes[0]] * len(outcomes)
    return outcomes[0]


def pooled(logistic: bool = False) -> tuple[Any, Any]:
    parts = rows(logistic)
    return np.vstack([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


@pytest.mark.parametrize("adversary", ["malicious", "semi-honest"])
@pytest.mark.parametrize(
    ("model", "other"),
    [
        ({"type": "lasso", "alpha": "0.1"}, Lasso(alpha=0.1, tol=1e-10)),
        ({"type": "ridge", "alpha": "15", "steps": 80}, Ridge(alpha=15)),
    ],
    ids=["lasso", "ridge"],
)
def test_a_session_gives_what_scikit_learn_gives_on_the_joined_rows(
    model: dict[str, Any], other: Any, adversary: str
) -> None:
    held = agreement(model, adversary=adversary)
    found = released(sessions(held))
    other.fit(*pooled())
    file = write_model(held, found)
    coefficients = np.array([float(value) for value in file.coefficients])
    assert np.linalg.norm(coefficients - other.coef_) < 1e-3 * np.linalg.norm(other.coef_)
    assert [value == 0 for value in coefficients] == [value == 0 for value in other.coef_]
    assert abs(float(file.intercept or "nan") - other.intercept_) < 1e-3
    assert set(found.signatures) == set(NAMES)


def test_newtons_rounds_give_the_logistic_model() -> None:
    held = agreement({"type": "logistic", "C": "1", "method": "newton", "newton_rounds": 4, "steps": 120})
    found = released(sessions(held, logistic=True))
    other = LogisticRegression(C=1, tol=1e-10, max_iter=1000).fit(*pooled(logistic=True))
    file = write_model(held, found)
    coefficients = np.array([float(value) for value in file.coefficients])
    assert np.linalg.norm(coefficients - other.coef_[0]) < 1e-3 * np.linalg.norm(other.coef_)


def test_statistics_are_those_of_the_joined_rows() -> None:
    held = agreement({"type": "statistics", "open": ["means", "covariance"]})
    found = released(sessions(held))
    features, response = pooled()
    whole = np.column_stack([features, response])
    file = write_model(held, found)
    table = statistics_in(held, file)
    assert table.means is not None
    assert table.covariance is not None
    assert np.allclose(table.means, whole.mean(axis=0), atol=1e-4)
    assert np.allclose(table.covariance, np.cov(whole.T, bias=True), atol=1e-3)
    assert file.statistics is not None
    assert file.statistics.means == tuple(repr(float(value)) for value in table.means)
    assert file.statistics.variances is None
    assert read_model(file.canonical(), held) == file
    for name in ("means", "covariance", "variances"):
        edited = file.as_json()
        edited["statistics"][name] = ["0.5"] if name != "covariance" else [["0.5"]]
        refused(lambda edited=edited: read_model(canonical(edited), held), 5912)
    refused(lambda: read_model(canonical({k: v for k, v in file.as_json().items() if k != "statistics"}), held), 5912)


def test_a_number_that_is_none_is_null_in_the_file() -> None:
    held = agreement({"type": "statistics", "open": ["correlation"]})
    one = int(2**46 / held.plan().curvature)
    values = tuple(one if i == j else 0 for i, j in entries_of(["correlation"], 5))
    values = (*values[:5], 0, *values[6:])  # the first column is 0 in all rows
    session, transcript = bytes(32), bytes(32)
    payload = signed_payload(held.id, session, transcript, values)
    signatures = {name: PEOPLE[name].signing_key.sign(MODEL_LABEL, payload) for name in NAMES}
    file = write_model(held, Released(session, transcript, values, signatures))
    assert file.statistics is not None
    assert file.statistics.correlation is not None
    assert file.statistics.correlation[0] == (None,) * 4
    assert file.statistics.correlation[1] == (None, "1.0", "0.0", "0.0")
    assert read_model(file.canonical(), held) == file
    refused(lambda: statistics_in(agreement({"type": "ridge", "alpha": "1"}), file), 2914)


def test_noise_in_opened_statistics_is_accounted_for() -> None:
    """The public lift is taken off, and what was spent is said."""
    terms = {"epsilon": "3", "delta": "1e-6", "noise_multiplier": "4", "clip": "4"}
    held = agreement({"type": "statistics", "open": ["variances"]}, privacy=terms)
    one = int(2**46 / held.plan().curvature)
    file = ModelFile.model_construct(values=tuple(map(str, [one, 0, 0, 0, 0, *([4 * one] * 4)])))
    found = statistics_in(held, file)
    lift = lift_of(privacy_of(held), 5) * 3 / sum(SIZES)
    assert found.variances == pytest.approx([4 - lift] * 4)
    assert found.event == privacy_event(held)


def test_3902_what_does_not_converge_is_not_opened() -> None:
    held = agreement({"type": "ridge", "alpha": "0", "steps": 3}, tolerance="0.00001")
    assert codes(sessions(held)) == [3902] * 3


@pytest.mark.parametrize(
    ("kind", "code"),
    [("hello", 6907), ("hello signature", 5909), ("signature", 5912), ("inputs", 5907), ("bounds of inputs", 5907)],
)
def test_a_cheat_gets_no_model_past_the_others(kind: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    broadcast = Party.broadcast

    def lying(party: Party, name: str, body: bytes, size_bytes: int) -> list[bytes]:
        if party.number == 1 and name == kind:
            body = bytes([body[0] ^ 1]) + body[1:]
        return broadcast(party, name, body, size_bytes)

    def cheat(message: Message) -> bytes:
        body = message.body
        spoil = message.sender == 1 and message.kind == kind
        return body[:5] + bytes([body[5] ^ 1]) + body[6:] if spoil else body

    held = agreement({"type": "ridge", "alpha": "15", "steps": 60})
    direct = kind in ("hello", "hello signature", "signature")
    if not direct:
        monkeypatch.setattr(Party, "broadcast", lying)
    found = codes(sessions(held, cheat=cheat if direct else None))
    assert None not in (found[0], found[2])
    assert code in (found[0], found[2])


def test_the_key_is_wiped_however_a_session_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    parties: list[Party] = []

    class Watched(Party):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            parties.append(self)

    monkeypatch.setattr(module, "Party", Watched)
    held = agreement({"type": "ridge", "alpha": "0", "steps": 3}, tolerance="0.00001")
    assert codes(sessions(held)) == [3902] * 3
    assert len(parties) == 3
    assert not any(party.key.any() for party in parties)


def test_the_transcript_covers_what_was_opened() -> None:
    held = agreement({"type": "statistics", "open": ["means"]})
    first, second = released(sessions(held)), released(sessions(held))
    assert first.session != second.session
    assert first.transcript != second.transcript
    assert np.abs(np.subtract(first.values, second.values)).max() <= 6 << MASK_BITS  # drawn anew
    assert first.values != second.values
    assert all(value < 1 << (2 * ITERATE_BITS) for value in first.values)
