"""Real evidence of real hardware: outcomes are data, and dcap-qvl is the second opinion."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import dcap_qvl
import pytest

from cloister import attest
from cloister.errors import AttestationError, InputError

_DATA = Path(os.environ.get("CLOISTER_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
_FOLDER = _DATA.parent / "vectors" / "attestation"
_ROWS: list[dict[str, Any]] = []
if (_FOLDER / "expected.json").is_file():
    _ROWS = json.loads((_FOLDER / "expected.json").read_text())["intel"]
_JUDGED = [(row, answer) for row in _ROWS for answer in row["dcap_qvl_0_7_0"]]

# Where dcap-qvl raises, ours says which: a window that does not hold is a refuted check. Debug and a TCB that no level
# matches are no failures of verification but facts, so ours reports them as claims and lets the policy refuse: a party
# that debugs on purpose, or an auditor who asks why, gets an answer instead of an exception.
_CODES = {
    "Verification failed: TCBInfo expired": 4131,
    "Verification failed: TCBInfo issue date is in the future": 4132,
    "Verification failed: Debug mode is enabled": 4141,
    "Verification failed: No matching TCB level found": 4134,
}


def _evidence(row: dict[str, Any]) -> attest.Evidence:
    return attest.Evidence(type="sgx" if row["version"] == 3 else "tdx", quote=(_FOLDER / row["file"]).read_bytes())


def _collateral(name: str) -> attest.Collateral:
    return attest.parse_collateral((_FOLDER / name).read_bytes())


def _moment(day: str) -> datetime:
    return datetime.fromisoformat(day).replace(tzinfo=UTC)


def _ids(value: object) -> str:
    if isinstance(value, dict):
        return str(value.get("file") or value.get("at"))
    return str(value)


def _code(verdict: attest.Verdict) -> int | None:
    try:
        verdict.require()
    except AttestationError as error:
        return error.code
    return None


@pytest.mark.parametrize(("row", "answer"), _JUDGED, ids=_ids)
def test_status_and_advisories_of_real_evidence_are_those_expected(row: dict[str, Any], answer: dict[str, Any]) -> None:
    verdict = attest.appraise(
        _evidence(row), _collateral(answer["collateral"]), attest.DEFAULT_POLICY, _moment(answer["at"])
    )
    assert verdict.assurance == "hardware"
    if "error" in answer:
        assert _code(verdict) == _CODES[answer["error"]]
        return
    assert verdict.value("tee.tcb.status") == answer["status"]
    assert list(verdict.value("tee.tcb.advisories")) == answer["advisories"]
    assert _code(verdict) == (None if answer["status"] == "UpToDate" else 4142)


@pytest.mark.parametrize(("row", "answer"), _JUDGED, ids=_ids)
def test_dcap_qvl_still_answers_as_recorded_and_agrees(row: dict[str, Any], answer: dict[str, Any]) -> None:
    theirs = dcap_qvl.QuoteCollateralV3.from_json((_FOLDER / answer["collateral"]).read_text())
    quote, seconds = (_FOLDER / row["file"]).read_bytes(), int(_moment(answer["at"]).timestamp())
    if "error" in answer:
        with pytest.raises(ValueError, match=answer["error"].removeprefix("Verification failed: ")):
            dcap_qvl.verify(quote, theirs, seconds)
        return
    report = dcap_qvl.verify(quote, theirs, seconds)
    verdict = attest.appraise(
        _evidence(row), _collateral(answer["collateral"]), attest.DEFAULT_POLICY, _moment(answer["at"])
    )
    assert report.status == verdict.value("tee.tcb.status")
    assert sorted(report.advisory_ids) == list(verdict.value("tee.tcb.advisories"))
    assert report.ppid.hex() == verdict.value("tee.platform")


@pytest.mark.parametrize(("row", "answer"), _JUDGED, ids=_ids)
def test_claims_of_real_evidence_are_those_expected(row: dict[str, Any], answer: dict[str, Any]) -> None:
    verdict = attest.appraise(
        _evidence(row), _collateral(answer["collateral"]), attest.DEFAULT_POLICY, _moment(answer["at"])
    )
    # inside the window they are shown; outside it they are only what unproven bytes say
    _require_claims(verdict, row, status="unknown" if "TCBInfo" in answer.get("error", "") else "asserted")


def _require_claims(verdict: attest.Verdict, row: dict[str, Any], *, status: str) -> None:
    said = {claim.name: claim for claim in verdict.claims}
    names = {
        "mrenclave": "tee.measurement",
        "mrtd": "tee.measurement",
        "mrsigner": "tee.signer",
        "mrseam": "tee.seam.measurement",
        "td_attributes": "tee.attributes",
        "mrconfigid": "tee.config",
        "prodid": "tee.prodid",
        "svn": "tee.svn",
        "debug": "tee.debug",
        "fmspc": "tee.fmspc",
        "report_data": "tee.report_data",
    }
    wanted = {names[key]: value for key, value in row.items() if key in names}
    wanted |= {f"tee.rtmr{i}": value for i, value in enumerate(row.get("rtmr", []))}
    assert {name: said[name].value for name in wanted} == wanted
    assert {said[name].status for name in wanted} == {status}


_UNJUDGED = [row for row in _ROWS if not row["dcap_qvl_0_7_0"]]


@pytest.mark.parametrize("row", _UNJUDGED, ids=_ids)
def test_claims_of_evidence_that_nobody_can_verify_are_those_expected_and_unknown(row: dict[str, Any]) -> None:
    verdict = attest.appraise(_evidence(row), None, attest.DEFAULT_POLICY, _moment("2025-06-21"))
    assert {"mrenclave", "mrsigner", "prodid", "debug", "report_data"} <= row.keys()
    _require_claims(verdict, row, status="unknown")


@pytest.mark.parametrize("row", _ROWS, ids=_ids)
def test_signature_steps_of_real_evidence_are_those_expected(row: dict[str, Any]) -> None:
    verdict = attest.appraise(_evidence(row), None, attest.DEFAULT_POLICY, _moment("2026-02-21"))
    steps = {
        "evidence.signature": row["signature_chain"]["isv_sig"],
        "evidence.qe.binding": row["signature_chain"]["qe_binding"],
        "evidence.qe.signature": row["signature_chain"]["qe_sig"],
    }
    for name, good in steps.items():
        claim = verdict.claim(name)
        assert claim is not None
        assert claim.status == ("asserted" if good else "unknown"), name
    assert verdict.outcome != "asserted"
    assert _code(verdict) in (4106, 4107)  # no chain inside; no collateral


def test_a_quote_without_a_certificate_chain_cannot_be_verified_even_with_collateral(attestation_vectors: Path) -> None:
    evidence = attest.Evidence(type="sgx", quote=(attestation_vectors / "sgx/sgx_v3_certtype3.quote.bin").read_bytes())
    collateral = _collateral("sgx/sgx_v3_a.collateral.json")
    verdict = attest.appraise(evidence, collateral, attest.DEFAULT_POLICY, _moment("2025-06-21"))
    assert verdict.outcome == "unknown"
    assert _code(verdict) == 4106


def test_real_evidence_needs_the_collateral_of_its_own_platform(attestation_vectors: Path) -> None:
    evidence = attest.Evidence(type="tdx", quote=(attestation_vectors / "tdx/tdx_v4_a.quote.bin").read_bytes())
    other = _collateral("tdx/fmspc_00806f_2025-07.collateral.json")
    assert _code(attest.appraise(evidence, other, attest.DEFAULT_POLICY, _moment("2025-07-10"))) == 4133


def test_sgx_collateral_does_not_vouch_for_a_td(attestation_vectors: Path) -> None:
    evidence = attest.Evidence(type="tdx", quote=(attestation_vectors / "tdx/tdx_v4_a.quote.bin").read_bytes())
    other = _collateral("sgx/sgx_v3_a.collateral.json")
    # its CRL is of the processor CA, and this platform is certified by the platform CA
    assert _code(attest.appraise(evidence, other, attest.DEFAULT_POLICY, _moment("2025-06-21"))) == 4115


@pytest.mark.slow
@pytest.mark.parametrize(("row", "answer"), [pair for pair in _JUDGED if pair[1].get("status") == "UpToDate"], ids=_ids)
def test_every_byte_of_real_evidence_matters(row: dict[str, Any], answer: dict[str, Any]) -> None:
    quote, at = (_FOLDER / row["file"]).read_bytes(), _moment(answer["at"])
    collateral = _collateral(answer["collateral"])
    random = Random(row["file"])
    for place in range(len(quote)):
        changed = bytearray(quote)
        changed[place] ^= 1 << random.randrange(8)
        evidence = attest.Evidence(type="tdx", quote=bytes(changed))
        assert _code(attest.appraise(evidence, collateral, attest.DEFAULT_POLICY, at)) is not None, place


@pytest.mark.slow
@pytest.mark.parametrize(("row", "answer"), [pair for pair in _JUDGED if pair[1].get("status") == "UpToDate"], ids=_ids)
def test_every_bit_of_real_collateral_matters(row: dict[str, Any], answer: dict[str, Any]) -> None:
    # one bit flipped anywhere in the file: no two kinds of JSON white space or hexadecimal case are left to choose from
    evidence, at = _evidence(row), _moment(answer["at"])
    data = (_FOLDER / answer["collateral"]).read_bytes()
    random = Random(row["file"])
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << random.randrange(8)
        try:
            collateral = attest.parse_collateral(bytes(changed))
        except InputError:
            continue
        verdict = attest.appraise(evidence, collateral, attest.DEFAULT_POLICY, at)
        assert _code(verdict) is not None, (place, data[place : place + 1])
