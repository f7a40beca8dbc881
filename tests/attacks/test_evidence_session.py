"""Genuine evidence, offered for something it was not made for."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cloister import attest
from cloister.errors import AttestationError

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
NONCE = bytes(range(32))
CLAIMS = attest.SessionClaims(
    purpose="stage",
    nonces={"kms": NONCE, "other": bytes(32)},
    hpke="hpke-key",
    sign="sign-key",
    manifest="a" * 64,
    run="run-1",
    stage="train",
    attempt=1,
    image="b" * 64,
    not_after="2026-11-20T13:00:00Z",
)
ASKED: dict[str, Any] = {
    "purpose": "stage",
    "nonce_name": "kms",
    "nonce": NONCE,
    "manifest": "a" * 64,
    "run": "run-1",
    "stage": "train",
    "attempt": 1,
    "image": "b" * 64,
}


@pytest.fixture(scope="module")
def verdict(tmp_path_factory: pytest.TempPathFactory) -> attest.Verdict:
    site = attest.SimulatedSite.create(tmp_path_factory.mktemp("site"), created=datetime(2026, 1, 1, tzinfo=UTC))
    evidence = site.attester(bytes(48), clock=lambda: AT).attest(CLAIMS.report_data())
    roots = attest.VENDOR_ROOTS.with_development(site.root_spki)
    return attest.appraise(evidence, None, attest.DANGEROUS_DEVELOPMENT_POLICY, AT, roots=roots)


def _code(verdict: attest.Verdict, claims: attest.SessionClaims = CLAIMS, **asked: Any) -> int:
    with pytest.raises(AttestationError) as caught:
        attest.check_session(verdict, claims, **{**ASKED, **asked})
    return caught.value.code


def test_what_is_attacked_below_is_good(verdict: attest.Verdict) -> None:
    attest.check_session(verdict, CLAIMS, **ASKED)


@pytest.mark.parametrize("field", ["hpke", "sign"])
def test_a_substituted_key_is_refused(verdict: attest.Verdict, field: str) -> None:
    assert _code(verdict, CLAIMS.model_copy(update={field: "attackers-key"})) == 4150


def test_evidence_of_another_session_is_refused(verdict: attest.Verdict) -> None:
    assert _code(verdict, CLAIMS.model_copy(update={"run": "run-2"}), run="run-2") == 4150


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"nonce": b"x" * 32}, 4151),
        ({"nonce_name": "stranger"}, 4151),
        ({"nonce_name": "other"}, 4151),
        ({"nonce": b"", "nonce_name": "stranger"}, 4151),
        ({"purpose": "service"}, 4152),
        ({"purpose": "key-manager"}, 4152),
        ({"manifest": "c" * 64}, 4153),
        ({"run": "run-2"}, 4154),
        ({"stage": "aggregate"}, 4155),
        ({"attempt": 2}, 4156),
        ({"image": "c" * 64}, 4158),
        ({"at": AT + timedelta(hours=1, seconds=1)}, 4157),
    ],
)
def test_evidence_for_something_else_is_refused_by_its_own_code(
    verdict: attest.Verdict, asked: dict[str, Any], code: int
) -> None:
    assert _code(verdict, **asked) == code


@pytest.mark.parametrize("field", ["manifest", "run", "stage", "attempt", "image"])
def test_claims_that_leave_out_what_is_asked_for_are_refused(field: str, tmp_path: Any) -> None:
    silent = CLAIMS.model_copy(update={field: None})
    site = attest.SimulatedSite.create(tmp_path, created=datetime(2026, 1, 1, tzinfo=UTC))
    evidence = site.attester(bytes(48), clock=lambda: AT).attest(silent.report_data())
    roots = attest.VENDOR_ROOTS.with_development(site.root_spki)
    about = attest.appraise(evidence, None, attest.DANGEROUS_DEVELOPMENT_POLICY, AT, roots=roots)
    codes = {"manifest": 4153, "run": 4154, "stage": 4155, "attempt": 4156, "image": 4158}
    assert _code(about, silent) == codes[field]
