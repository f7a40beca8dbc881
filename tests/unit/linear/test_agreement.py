"""An agreement is read strictly, gives every party the same plan, and is run only when every party has signed it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from tests.linear_people import NAMES, PEOPLE, agreed, signed_by_all, written

from cloister.errors import BudgetError, CloisterError, InputError, IntegrityError, RefusedError
from cloister.linear._agreed_rows import rows_of
from cloister.linear._agreement import AGREEMENT_LABEL, Agreement, endpoint
from cloister.linear._consent import (
    Signed,
    load_agreement,
    load_signed,
    merge,
    propose,
    require_in_force,
    require_pinned,
    require_signed,
    sign,
)
from cloister.linear._draft import draft
from cloister.linear._estimators import ElasticNet, Lasso, Ridge
from cloister.linear._local import Bounds
from cloister.linear._logistic import LogisticRegression
from cloister.linear._review import review
from cloister.linear._session_hello import plan_digest
from cloister.linear._sound import price_of_privacy, privacy_of, require_sound
from cloister.wire import canonical, parse_json, sign_envelope

LABELS = {"name": "risk", "labels": ["no", "yes"]}
PRIVATE = {"epsilon": "3", "delta": "1e-6", "noise_multiplier": "4", "clip": "4"}


def refused(code: int, function: Callable[..., Any], *arguments: Any, **named: Any) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        function(*arguments, **named)
    assert caught.value.code == code, caught.value
    return caught.value


# ---- the document --------------------------------------------------------------------------------------------


def test_yaml_and_json_are_one_agreement_and_defaults_are_written_out() -> None:
    document = written()
    yaml = "\n".join(f"{key}: {canonical(value).decode()}" for key, value in document.items())
    agreement = load_agreement(yaml.encode())
    assert agreement == load_agreement(canonical(document))
    said = agreement.as_json()
    assert (said["adversary"], said["release"], said["mean_square"]) == ("malicious", "coefficients", "2")
    assert said["timeouts"]["bytes_s"] == 100_000
    assert agreement.columns == ("amount", "kind=card", "kind=cash", "kind=wire", "age")
    assert agreement.number_of("bank-c") == 2
    assert agreement.number_of("stranger") is None


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("pupose",), "typo"),
        (("curvature",), 20),
        (("curvature",), "2_0"),
        (("curvature",), "0x20"),
        (("parties", 0, "rows"), 0),
        (("parties", 0, "rows"), "400"),
        (("parties", 0, "address"), "10.0.0.1"),
        (("parties", 0, "address"), "10.0.0.1:65536"),
        (("parties", 0, "address"), "http://10.0.0.1:80"),
        (("parties", 0, "name"), "Bank A"),
        (("features", 0, "name"), "amount "),
        (("features", 0, "name"), "am\u200bount"),
        (("features", 1, "categories"), ["card"]),
        (("features", 1, "categories"), ["card", "card"]),
        (("model", "type"), "forest"),
        (("model", "C"), "1"),
        (("model", "alpha"), 0.1),
        (("adversary",), "covert"),
        (("release",), "gradients"),
        (("valid", "not_after"), "tomorrow"),
        (("timeouts", "answer_s"), 0),
    ],
)
def test_what_is_not_in_the_schema_is_refused(place: tuple[str | int, ...], value: Any) -> None:
    document: Any = written()
    part = document
    for step in place[:-1]:
        part = part[step]
    part[place[-1]] = value
    source = repr(document).replace("'", '"').encode() if isinstance(value, float) else canonical(document)
    with pytest.raises(InputError):
        load_agreement(source)


@pytest.mark.parametrize("name", ["am\u200bount", " amount", "amount\nage", "amo\u0301unt", "amount\x1b[2J"])
def test_text_that_hides_something_is_refused_in_a_signed_file_too(name: str) -> None:
    """A signed file is JSON, which no reader of YAML has looked at."""
    document = written(features=[{"name": name}])
    signed = sign_envelope(AGREEMENT_LABEL, document, PEOPLE["bank-a"].signing_key)
    assert "features.0.name" in refused(2005, load_signed, signed.canonical()).what


@pytest.mark.parametrize("place", ["purpose", "rows"])
def test_a_draft_that_was_not_filled_in_names_the_line(place: str) -> None:
    people = [(PEOPLE[name].public, f"127.0.0.1:{7000 + k}") for k, name in enumerate(NAMES)]
    made = draft(
        "aml", kind="ridge", parties=people, features=["a"], response="y", adversary="malicious", now=datetime.now(UTC)
    )
    filled = made.replace("FILL-IN-NUMBER", "500") if place == "purpose" else made.replace("FILL-IN: one", "one")
    assert f"still says {'FILL-IN'}" in refused(2005, load_agreement, filled.encode()).what
    whole = made.replace("FILL-IN-NUMBER", "500").replace("FILL-IN: one", "one")
    assert load_agreement(whole.encode()).privacy is None
    private = load_agreement(whole.replace("# privacy:", "privacy:").encode()).privacy
    assert private is not None
    assert require_sound(load_agreement(whole.replace("# privacy:", "privacy:").encode()))


def test_a_refusal_names_the_line() -> None:
    lines = [f"{key}: {canonical(value).decode()}" for key, value in written().items()]
    place = next(number for number, line in enumerate(lines, 1) if line.startswith("curvature"))
    lines[place - 1] = "curvature: 8"
    error = refused(2005, load_agreement, "\n".join(lines).encode(), what="aml.yaml")
    assert error.what.startswith(f"aml.yaml:{place}:1: curvature: ")


def test_columns_are_the_ones_that_a_file_is_read_to(tmp_path: Path) -> None:
    assert rows_of(agreed(), tmp_path / "rows.csv").names == agreed().columns
    labelled = agreed(model={"type": "logistic", "C": "1"}, response=LABELS)
    (tmp_path / "rows.csv").write_text("risk,kind,age,amount\nyes,wire,1,2\nno,card,3,4\n")
    (rows,) = rows_of(labelled, tmp_path / "rows.csv").chunks()
    assert rows.features.tolist() == [[2, 0, 0, 1, 1], [4, 1, 0, 0, 3]]
    assert rows.response.tolist() == [1, 0]


def test_addresses() -> None:
    assert endpoint("10.0.0.1:7443") == ("10.0.0.1", 7443)
    assert endpoint("[fe80::1]:1") == ("fe80::1", 1)


# ---- the plan ------------------------------------------------------------------------------------------------


def test_the_plan_is_exact() -> None:
    plan = agreed().plan()
    assert (plan.rows, plan.curvature, plan.curvatures) == ((400, 500, 600), Fraction(8), ())
    assert plan.mean_squares == (2, 2, 2, 2, 3, 2)
    assert (plan.l1, plan.l2) == (Fraction(1, 20), 0)  # alpha 0.1 where the response's unit is 2
    assert (plan.rounds, plan.half, plan.theta) == (8, 8, Fraction(2, 5))


def test_own_curvatures_are_weighted_by_rows() -> None:
    document = written()
    document["parties"][1]["curvature"] = "4.5"
    plan = load_agreement(canonical(document)).plan()
    assert plan.curvatures == (8, Fraction(9, 2), 8)
    assert plan.curvature == Fraction(400 * 8 + 500 * 9, 1) / 1500 + Fraction(600 * 8 - 500 * 4.5) / 1500


@pytest.mark.parametrize(
    ("model", "estimator"),
    [
        ({"type": "ridge", "alpha": "0.7", "steps": 120}, Ridge(alpha=0.7, steps=120)),
        ({"type": "lasso", "alpha": "0.03", "rounds": 12}, Lasso(alpha=0.03, rounds=12)),
        (
            {"type": "elastic-net", "alpha": "0.2", "l1_ratio": "0.3", "theta": "0.5"},
            ElasticNet(alpha=0.2, l1_ratio=0.3, theta=0.5),
        ),
        ({"type": "logistic", "C": "0.25"}, LogisticRegression(C=0.25)),
        ({"type": "logistic", "C": "0.25", "l1_ratio": "0.5"}, LogisticRegression(C=0.25, l1_ratio=0.5)),
    ],
)
def test_a_plan_is_the_one_of_the_estimator_with_these_parameters(model: dict[str, Any], estimator: Any) -> None:
    logistic = model["type"] == "logistic"
    agreement = agreed(model=model, **({"response": LABELS} if logistic else {}))
    plan = agreement.plan()
    bounds = Bounds(plan.rows, plan.mean_squares, plan.curvature, plan.curvatures)
    assert plan == estimator._plan(bounds, agreement.scaling())


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"curvature": "0.5"}, 2901),
        ({"curvature": "70000"}, 2901),
        ({"mean_square": "-1"}, 2901),
        ({"mean_square": "2000"}, 2901),
        ({"tolerance": "0"}, 2901),
        ({"model": {"type": "lasso", "alpha": "0"}}, 2901),
        ({"model": {"type": "lasso", "alpha": "-1"}}, 2901),
        ({"model": {"type": "lasso", "alpha": "0.0000001"}}, 2901),
        ({"model": {"type": "lasso", "alpha": "0.1", "rounds": 100000}}, 2901),
        ({"model": {"type": "elastic-net", "alpha": "1", "l1_ratio": "1.5"}}, 2901),
        ({"model": {"type": "logistic", "C": "0"}, "response": LABELS}, 2901),
        ({"model": {"type": "logistic", "C": "1"}}, 2005),
        ({"response": LABELS}, 2005),
        ({"response": {"name": "risk", "scale": "0"}}, 2905),
        ({"features": [{"name": "amount", "scale": "-1"}]}, 2905),
        ({"features": [{"name": "risk"}]}, 2005),
        ({"features": [{"name": "a"}, {"name": "a"}]}, 2005),
        ({"features": [{"name": "a", "categories": ["x", "y"]}, {"name": "a=y"}]}, 2005),
        ({"features": [{"name": f"x{j}"} for j in range(301)]}, 2909),
        ({"valid": {"not_before": "2030-01-01T00:00:00Z", "not_after": "2029-01-01T00:00:00Z"}}, 2005),
        ({"privacy": PRIVATE | {"epsilon": "0.1"}}, 7805),
        ({"privacy": PRIVATE | {"noise_multiplier": "0"}}, 2801),
        ({"privacy": PRIVATE | {"clip": "0"}}, 2901),
    ],
)
def test_what_has_no_proof_or_no_meaning_is_refused_before_it_is_signed(changes: dict[str, Any], code: int) -> None:
    refused(code, propose, agreed(**changes))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda p: p[:1], 2909),
        (lambda p: p * 3, 2909),
        (lambda p: [p[0], p[1] | {"name": "bank-a"}, p[2]], 2005),
        (lambda p: [p[0], p[1] | {"key": p[0]["key"]}, p[2]], 2005),
        (lambda p: [p[0], p[1] | {"address": p[0]["address"]}, p[2]], 2005),
        (lambda p: [p[0], p[1] | {"name": "bank.a"}, p[2]], 2324),
        (lambda p: [p[0], p[1] | {"key": "ed25519:" + "A" * 43}, p[2]], 2005),
        (lambda p: [p[0], p[1] | {"rows": 1 << 39}, p[2]], 2901),
    ],
)
def test_parties_that_cannot_be_told_apart_are_refused(change: Any, code: int) -> None:
    document = written()
    document["parties"] = change(document["parties"])
    refused(code, lambda: propose(load_agreement(canonical(document))))


def test_newton_counts_its_rounds_and_every_part_of_a_plan_is_in_its_digest() -> None:
    newton = agreed(model={"type": "logistic", "C": "1", "method": "newton", "newton_rounds": 2}, response=LABELS)
    assert (newton.fits, agreed().fits) == (3, 1)
    plan = agreed().plan()
    others = [replace(plan, rounds=9), replace(plan, l2=Fraction(1, 9)), replace(plan, rows=(400, 500, 601))]
    others.append(replace(plan, tolerance=Fraction(1, 100)))
    digests = {plan_digest(one) for one in (plan, *others)}
    assert len(digests) == 5
    assert plan_digest(agreed().plan()) == plan_digest(plan)


def test_privacy_terms_are_priced_by_the_noise_that_is_added() -> None:
    private = agreed(privacy=PRIVATE)
    assert require_sound(private)
    assert privacy_of(private).event(columns=6, releases=1).noise_multiplier == "4"
    cost = float(price_of_privacy(private).epsilon or "inf")
    assert 1 < cost < 3
    newton = {"type": "logistic", "C": "1", "method": "newton"}
    more = agreed(privacy=PRIVATE, model=newton, response=LABELS)
    assert float(price_of_privacy(more).epsilon or "inf") > 1.8 * cost
    with pytest.raises(BudgetError) as caught:
        require_sound(agreed(privacy=PRIVATE | {"epsilon": str(1.5 * cost)}, model=newton, response=LABELS))
    assert caught.value.code == 7805


# ---- consent -------------------------------------------------------------------------------------------------


def test_every_party_must_sign() -> None:
    agreement = agreed()
    signed = propose(agreement)
    for place, name in enumerate(NAMES):
        assert signed.missing == NAMES[place:]
        refused(3301, require_signed, signed)
        signed = sign(signed, PEOPLE[name])
    assert require_signed(signed) == agreement
    again = load_signed(signed.canonical())
    assert (again.agreement, again.signers) == (agreement, set(NAMES))
    assert sign(signed, PEOPLE["bank-a"]).canonical() == signed.canonical()


def test_copies_signed_apart_are_merged_in_any_order() -> None:
    proposed = propose(agreed())
    copies = [sign(proposed, PEOPLE[name]) for name in NAMES]
    assert (
        merge(*copies).canonical()
        == merge(*reversed(copies)).canonical()
        == signed_by_all(proposed.agreement).canonical()
    )
    refused(2331, merge, copies[0], propose(agreed(name="other")))


def test_semi_honest_needs_every_signature() -> None:
    signed = propose(agreed(adversary="semi-honest"))
    for name in NAMES:
        refused(3903, require_signed, signed)
        signed = sign(signed, PEOPLE[name])
    assert not require_signed(signed).malicious
    assert any("SEMI-HONEST" in line for section in review(signed.agreement).sections for line in section.lines)


def test_only_a_named_party_signs() -> None:
    refused(3305, sign, propose(agreed()), PEOPLE["stranger"])
    document = written()
    document["parties"][0]["key"] = str(PEOPLE["stranger"].signing_key.public)
    refused(3305, sign, propose(load_agreement(canonical(document))), PEOPLE["bank-a"])


def _forged(signed: Signed, **changes: Any) -> bytes:
    return signed.envelope.model_copy(update=changes).canonical()


def test_a_changed_file_is_refused() -> None:
    signed = signed_by_all(agreed())
    envelope = signed.envelope
    first, second, third = envelope.signatures
    other = agreed(name="other")
    refused(5301, load_signed, _forged(signed, payload=other.canonical()))
    swapped = (first.model_copy(update={"sig": second.sig}), second, third)
    refused(5301, load_signed, _forged(signed, signatures=swapped))
    refused(5302, load_signed, _forged(signed, signatures=(first, first, second)))
    stranger = sign_envelope(AGREEMENT_LABEL, signed.agreement.as_json(), PEOPLE["stranger"].signing_key)
    refused(5302, load_signed, _forged(signed, signatures=(*envelope.signatures, *stranger.signatures)))
    short = parse_json(envelope.payload, what="agreement")
    del short["timeouts"]
    refused(5303, load_signed, _forged(signed, payload=canonical(short)))
    refused(5303, load_signed, _forged(signed, payload=envelope.payload + b"\n"))
    refused(2005, load_signed, _forged(signed, payloadType="cloister/manifest/v1"))


def test_a_signature_for_another_purpose_is_none() -> None:
    agreement = agreed()
    envelope = sign_envelope("cloister/other/v1", agreement.as_json(), PEOPLE["bank-a"].signing_key)
    refused(5301, load_signed, envelope.model_copy(update={"payloadType": AGREEMENT_LABEL}).canonical())


def test_keys_are_the_pinned_ones() -> None:
    agreement = agreed()
    pinned = {name: PEOPLE[name].public for name in NAMES}
    require_pinned(agreement, pinned)
    refused(3303, require_pinned, agreement, {name: pinned[name] for name in NAMES[:2]})
    refused(3302, require_pinned, agreement, pinned | {"bank-c": PEOPLE["stranger"].public})


@pytest.mark.parametrize("at", ["2019-12-31T23:59:59Z", "2099-01-01T00:00:01Z"])
def test_an_agreement_is_in_force_only_in_its_time(at: str) -> None:
    require_in_force(agreed(), at="2020-01-01T00:00:00Z")
    with pytest.raises(RefusedError) as caught:
        require_in_force(agreed(), at=at)
    assert caught.value.code == 3403


# ---- the review ----------------------------------------------------------------------------------------------


def _lines(agreement: Agreement, title: str, party: str | None = None) -> str:
    found = [section.lines for section in review(agreement, party=party).sections if section.title == title]
    return "\n".join(line for lines in found for line in lines)


def test_the_review_says_what_is_computed_learned_and_not_protected() -> None:
    agreement = agreed()
    assert "LASSO" in _lines(agreement, "COMPUTED")
    assert "up to 2 of 3 parties" in _lines(agreement, "CHEATERS")
    assert "2^-4" in _lines(agreement, "CHEATERS")
    assert "you (bank-b) must have exactly 500 rows" in _lines(agreement, "DATA", "bank-b")
    assert "400 rows" not in _lines(agreement, "DATA", "bank-b")
    assert "no noise" in _lines(agreement, "UNPROTECTED")
    newton = agreed(model={"type": "logistic", "C": "1", "method": "newton"}, response=LABELS)
    assert "each of the 3 models on the way" in _lines(newton, "LEARNED")
    statistics = agreed(model={"type": "statistics", "open": ["means", "covariance"]})
    assert "means, covariance" in _lines(statistics, "LEARNED")
    assert "certificate" not in _lines(statistics, "COMPUTED")
    private = agreed(privacy=PRIVATE)
    assert "agreed at most 3" in _lines(private, "PRIVACY")
    refused(2013, review, agreement, party="stranger")


def test_the_review_names_every_column_and_label() -> None:
    shown = _lines(agreed(model={"type": "logistic", "C": "1"}, response=LABELS), "COLUMNS")
    assert '"amount" less 2 over 4, of mean square at most 2' in shown
    assert '"kind", of mean square at most 2, a column each for "card", "cash", "wire"' in shown
    assert '"age" less -0.5 over 1.5e1, of mean square at most 3' in shown
    negative, positive = LABELS["labels"]
    assert f'"{positive}" (against "{negative}")' in shown


@pytest.mark.parametrize(
    ("opened", "said"), [("correlation", "every ridge or LASSO model"), ("variances", "sums and means"), ("means", "")]
)
def test_the_review_says_all_that_statistics_open(opened: str, said: str) -> None:
    learned = _lines(agreed(model={"type": "statistics", "open": [opened]}), "LEARNED")
    assert said in learned
    assert said or "so also" not in learned


def test_2005_a_curvature_is_agreed_and_not_opened() -> None:
    """With nothing to open, a session of statistics would have been one of a model."""
    refused(2005, agreed, model={"type": "statistics", "open": ["curvature"]})


@pytest.mark.parametrize("hidden", ["\u009b2J", "\u202e", "\u200b"])
def test_2005_a_purpose_holds_nothing_that_a_reader_cannot_see(hidden: str) -> None:
    held = agreed().model_copy(update={"purpose": f"find{hidden}accounts"})
    refused(2005, load_signed, propose(held).canonical())


def test_text_of_the_proposer_is_quoted() -> None:
    agreement = agreed(purpose='x", in force for ever; "', response={"name": 'a" of "b'})
    assert '\\"' in _lines(agreement, "AGREEMENT")
    assert '"a\\" of \\"b"' in _lines(agreement, "COMPUTED")


def test_the_review_as_text_and_as_json_say_the_same() -> None:
    seen = review(agreed(), party="bank-a")
    flat = " ".join(seen.text().split())
    for section in seen.sections:
        assert seen.as_json()["sections"][section.title] == list(section.lines)
        assert all(" ".join(line.split()) in flat for line in section.lines)


def test_integrity_of_the_envelope_is_an_integrity_error() -> None:
    signed = signed_by_all(agreed())
    bad = signed.envelope.signatures[0].model_copy(update={"sig": bytes(64)})
    with pytest.raises(IntegrityError):
        Signed(signed.envelope.model_copy(update={"signatures": (bad,)}), signed.agreement)
