"""Session claims: what the report data commits to."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from cloister import attest
from cloister.errors import AttestationError, InputError
from cloister.wire import canonical, parse_message

NONCE = bytes(range(32))


def _claims(**changed: Any) -> attest.SessionClaims:
    facts: dict[str, Any] = {
        "purpose": "stage",
        "nonces": {"kms-a": NONCE, "kms-b": bytes(32)},
        "hpke": "h",
        "sign": "s",
    }
    return attest.SessionClaims(**{**facts, **changed})


def test_report_data_is_the_digest_of_the_canonical_claims_and_zeros() -> None:
    claims = _claims()
    data = claims.report_data()
    assert data == hashlib.sha256(canonical(claims.as_json())).digest() + bytes(32)
    assert len(data) == 64


def test_claims_survive_the_wire() -> None:
    claims = _claims(manifest="a" * 64, run="r", stage="train", attempt=2, not_after="2026-11-20T13:00:00Z")
    again = parse_message(attest.SessionClaims, claims.canonical(), what="claims")
    assert again == claims
    assert again.report_data() == claims.report_data()


@pytest.mark.parametrize(
    "changed",
    [
        {"nonces": {}},
        {"nonces": {"a": bytes(31)}},
        {"purpose": "other"},
        {"attempt": 0},
        {"manifest": "A" * 64},
        {"extra": 1},
        {"version": 2},
    ],
)
def test_claims_that_are_not_of_their_shape_are_refused(changed: dict[str, Any]) -> None:
    value = {**_claims().as_json(), **changed}
    if "nonces" in changed:
        value["nonces"] = {name: "AA==" for name in changed["nonces"]}
    with pytest.raises(InputError) as caught:
        parse_message(attest.SessionClaims, canonical(value), what="claims")
    assert caught.value.code == 2005


def test_evidence_about_these_claims_passes(judge: Callable[..., attest.Verdict]) -> None:
    claims = _claims(manifest="a" * 64, run="r", stage="train", attempt=2, not_after="2026-11-20T12:00:00Z")
    verdict = judge(report_data=claims.report_data())
    for name, nonce in (("kms-a", NONCE), ("kms-b", bytes(32))):
        attest.check_session(
            verdict,
            claims,
            purpose="stage",
            nonce_name=name,
            nonce=nonce,
            manifest="a" * 64,
            run="r",
            stage="train",
            attempt=2,
        )


def test_claims_of_refused_evidence_are_not_looked_at(judge: Callable[..., attest.Verdict]) -> None:
    claims = _claims()
    verdict = judge(report_data=claims.report_data(), debug=True)
    with pytest.raises(AttestationError) as caught:
        attest.check_session(verdict, claims, purpose="stage", nonce_name="kms-a", nonce=NONCE)
    assert caught.value.code == 4141
