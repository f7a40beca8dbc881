"""``cloister attest verify``: exit 0 only for acceptance, and every claim with its status and reason."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from cloister import attest
from cloister.cli import main

AT = "2026-11-20T12:00:00Z"


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["attest", "verify", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


@pytest.fixture
def files(tmp_path: Path, site: attest.SimulatedSite, at: datetime) -> Path:
    evidence = site.attester(bytes(48), clock=lambda: at).attest(bytes(64))
    assert evidence.collateral is not None
    (tmp_path / "quote.bin").write_bytes(evidence.quote)
    for name, size in (("large.bin", attest.MAX_QUOTE_BYTES + 1), ("huge.bin", 1 << 20), ("empty.bin", 0)):
        (tmp_path / name).write_bytes(evidence.quote[:size].ljust(size, b"\0"))
    (tmp_path / "quote.hex").write_text(evidence.quote.hex() + "\n")
    (tmp_path / "collateral.json").write_text(json.dumps(evidence.collateral.as_json()))
    policy: dict[str, Any] = {"claim": "tee.measurement", "equals": bytes(48).hex()}
    policy = {"version": "1.0.0", "anyOf": [{"authority": "me", "allOf": [policy]}]}
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    (tmp_path / "typo.json").write_text(json.dumps(policy).replace("equals", "equal"))
    return tmp_path


@pytest.mark.parametrize("name", ["quote.bin", "quote.hex"])
def test_real_evidence_in_either_form_is_accepted_with_exit_0(
    capsys: pytest.CaptureFixture[str], attestation_vectors: Path, tmp_path: Path, name: str
) -> None:
    quote = (attestation_vectors / "tdx/tdx_v4_a.quote.bin").read_bytes()
    file = tmp_path / name
    file.write_bytes(quote if name.endswith("bin") else quote.hex().encode())
    collateral = attestation_vectors / "tdx/tdx_v4_a.collateral.json"
    arguments = (file, "--type", "tdx", "--collateral", collateral, "--at", "2025-06-21T00:00:00Z")
    status, out, _ = _run(capsys, *arguments)
    assert (status, out.splitlines()[-2:]) == (0, ["assurance: hardware", "ACCEPTED"])
    status, out, _ = _run(capsys, *arguments, "--json")
    facts = json.loads(out)
    assert (status, facts["outcome"], facts["assurance"]) == (0, "asserted", "hardware")
    assert {claim["status"] for claim in facts["claims"]} == {"asserted"}


def test_real_evidence_after_its_window_ends_in_exit_4_with_reasons(
    capsys: pytest.CaptureFixture[str], attestation_vectors: Path
) -> None:
    quote, collateral = (attestation_vectors / f"tdx/tdx_v4_a.{name}" for name in ("quote.bin", "collateral.json"))
    status, out, _ = _run(
        capsys, quote, "--type", "tdx", "--collateral", collateral, "--at", "2025-08-01T00:00:00Z", "--json"
    )
    claims = {claim["name"]: claim for claim in json.loads(out)["claims"]}
    assert status == 4
    assert (claims["evidence.revocation"]["status"], claims["evidence.revocation"]["code"]) == ("refuted", 4131)
    assert claims["tee.measurement"]["status"] == "unknown"
    assert "evidence.revocation is refuted" in claims["tee.measurement"]["reason"]


@pytest.mark.parametrize(
    ("row", "at", "status"),
    [
        ("sgx/sgx_v3_a.quote.bin", "2025-06-21", "ConfigurationAndSWHardeningNeeded"),
        ("sgx/sgx_v3_a.quote.bin", "2025-08-01", "Verification failed: TCBInfo expired"),
        ("sgx/sgx_v3_debug_b.quote.bin", "2025-06-21", "Verification failed: Debug mode is enabled"),
    ],
)
def test_real_sgx_evidence_is_judged_as_expected(
    capsys: pytest.CaptureFixture[str], attestation_vectors: Path, tmp_path: Path, row: str, at: str, status: str
) -> None:
    rows = json.loads((attestation_vectors / "expected.json").read_text())["intel"]
    (expected,) = (each for each in rows if each["file"] == row)
    (answer,) = (each for each in expected["dcap_qvl_0_7_0"] if each["at"] == at)
    assert status == answer.get("status", answer.get("error"))
    collateral = attestation_vectors / answer["collateral"]
    arguments = (attestation_vectors / row, "--type", "sgx", "--collateral", collateral, "--at", f"{at}T00:00:00Z")
    exit_status, out, _ = _run(capsys, *arguments, "--json")
    assert exit_status == 4  # of the SGX platforms none is UpToDate, which is what acceptance without a policy takes
    facts = json.loads(out)
    claims = {claim["name"]: claim for claim in facts["claims"]}
    assert (facts["accepted"], facts["assurance"]) == (False, "hardware")
    assert claims["tee.measurement"]["value"] == expected["mrenclave"]
    assert claims["tee.signer"]["value"] == expected["mrsigner"]
    assert claims["tee.debug"]["value"] == expected["debug"]
    assert claims["tee.report_data"]["value"] == expected["report_data"]
    if "status" in answer:
        assert claims["tee.tcb.status"]["value"] == answer["status"]
        assert claims["tee.tcb.advisories"]["value"] == answer["advisories"]
    # and a policy that names this status takes what is shown, but neither debug nor what has expired
    rules = [{"claim": "tee.tcb.status", "equals": answer.get("status", "UpToDate")}]
    rules.append({"claim": "tee.debug", "equals": False})
    (tmp_path / "policy.json").write_text(
        json.dumps({"version": "1.0.0", "anyOf": [{"authority": "me", "allOf": rules}]})
    )
    exit_status, out, _ = _run(capsys, *arguments, "--policy", tmp_path / "policy.json")
    assert (exit_status, out.splitlines()[-1] == "ACCEPTED") == ((0, True) if "status" in answer else (4, False))


def test_simulated_evidence_needs_its_root_named_and_is_shouted_about(
    capsys: pytest.CaptureFixture[str], files: Path, site: attest.SimulatedSite
) -> None:
    arguments = (files / "quote.bin", "--type", "tdx", "--collateral", files / "collateral.json", "--at", AT)
    status, out, _ = _run(capsys, *arguments)
    assert status == 4
    assert "4112" in out
    status, out, err = _run(capsys, *arguments, "--dangerous-development-root", site.root_spki)
    assert status == 0
    assert "SIMULATED" in out
    assert "SIMULATED" in err


def test_a_policy_file_decides(capsys: pytest.CaptureFixture[str], files: Path, site: attest.SimulatedSite) -> None:
    arguments = (files / "quote.bin", "--type", "tdx", "--collateral", files / "collateral.json", "--at", AT)
    root = ("--dangerous-development-root", site.root_spki)
    assert _run(capsys, *arguments, *root, "--policy", files / "policy.json")[0] == 0
    other = (files / "policy.json").read_text().replace("00" * 48, "11" * 48)
    (files / "other.json").write_text(other)
    status, out, _ = _run(capsys, *arguments, *root, "--policy", files / "other.json")
    assert status == 4
    assert "4146" in out
    status, _, err = _run(capsys, *arguments, "--policy", files / "typo.json")
    assert status == 2
    assert "did you mean 'equals'?" in err


def test_no_collateral_is_no_acceptance(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    status, out, _ = _run(capsys, files / "quote.bin", "--type", "tdx", "--at", AT)
    assert status == 4
    assert out.splitlines()[-1].startswith("REFUSED")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("quote.bin", "--type", "tdx"), 2),
        (("quote.bin", "--type", "snp", "--at", AT), 2),
        (("quote.bin", "--type", "tdx", "--at", "yesterday"), 2),
        (("quote.bin", "--type", "tdx", "--at", "2026-11-20T12:00:00"), 2),
        (("absent", "--type", "tdx", "--at", AT), 2),
        (("quote.bin", "--type", "tdx", "--at", AT, "--collateral", "policy.json"), 2),
        (("quote.bin", "--type", "sgx", "--at", AT), 4),
        (("policy.json", "--type", "tdx", "--at", AT), 4),
        (("large.bin", "--type", "tdx", "--at", AT), 4),
        (("huge.bin", "--type", "tdx", "--at", AT), 2),
        (("empty.bin", "--type", "tdx", "--at", AT), 4),
    ],
)
def test_what_cannot_be_used_is_refused(
    capsys: pytest.CaptureFixture[str],
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    status: int,
) -> None:
    monkeypatch.chdir(files)
    assert _run(capsys, *arguments)[0] == status


def test_hexadecimal_text_with_something_else_in_it_is_refused(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    (files / "broken.hex").write_text((files / "quote.hex").read_text().replace("a", "z", 1))
    status, _, err = _run(capsys, files / "broken.hex", "--type", "tdx", "--at", AT)
    assert status == 2
    assert "2105" in err
