"""``--json``: stdout is one JSON value and nothing else, whether a command succeeds, refuses or is misused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.manifests import two_hospitals

from cloister import attest
from cloister.cli import main

Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """``run(*arguments)``: the exit status, and the one value that stdout held."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLOISTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CLOISTER_PASSPHRASE", "correct horse battery staple")

    def once(*arguments: str) -> tuple[int, Any]:
        with pytest.raises(SystemExit) as caught:
            main([*arguments, "--json"])
        return int(caught.value.code or 0), json.loads(capsys.readouterr().out)  # loads refuses a second value

    return once


def test_party(run: Run) -> None:
    assert run("party", "init", "hospital-a")[1]["name"] == "hospital-a"
    status, told = run("party", "init", "hospital-a")
    assert (status, told["error"]["code"]) == (2, 2007)
    assert [row["name"] for row in run("party", "list")[1]["parties"]] == ["hospital-a"]


def test_seal_and_image(run: Run, tmp_path: Path) -> None:
    if shutil.which("mksquashfs") is None:
        pytest.skip("mksquashfs is not installed (package squashfs-tools)")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.csv").write_text("1,2\n")
    status, made = run("seal", "data", "--name", "data", "--to", "image")
    assert status == 0
    status, told = run("seal", "data", "--name", "data", "--to", "image")
    assert (status, told["error"]["code"]) == (2, 2007)
    for command in ("show", "verify"):
        status, told = run("image", command, "image", "--id", made["id"])
        assert (status, told["id"]) == (0, made["id"])
        status, told = run("image", command, "image", "--id", "0" * 64)
        assert (status, told["error"]["code"]) == (5, 5203)
    opening = ("image", "open", "image", "--id", made["id"], "--key", made["key_file"], "--to", "opened")
    assert run(*opening) == (0, {"id": made["id"], "name": "data", "folder": "opened"})
    assert run(*opening)[1]["error"]["code"] == 2007


def test_manifest(run: Run, tmp_path: Path) -> None:
    agreed = two_hospitals()
    (tmp_path / "good.yaml").write_text(json.dumps(agreed.as_json()))
    status, told = run("manifest", "check", "good.yaml")
    assert (status, told) == (0, {"sound": True, "id": agreed.id, "findings": []})
    unsound = agreed.as_json() | {"releases": []}
    (tmp_path / "unsound.yaml").write_text(json.dumps(unsound))
    status, told = run("manifest", "check", "unsound.yaml")
    assert (status, told["sound"]) == (2, False)
    assert {row["code"] for row in told["findings"]} == {2313, 2314}
    (tmp_path / "broken.yaml").write_text("{cloister: 1, nam: demo}")
    status, told = run("manifest", "check", "broken.yaml")
    assert (status, told["error"]["code"]) == (2, 2308)


def test_keys_run_predict_and_enclave(run: Run, tmp_path: Path) -> None:
    (tmp_path / "listing").write_text("")
    for command, code in (
        (("keys", "head", "missing"), 2001),
        (("run", "status", "missing"), 2001),
        (("predict", "missing", "--service", "answers", "--input", "missing"), 2019),
        (("enclave", "measure", "--role", "nobody"), 2501),
    ):
        status, told = run(*command)
        assert (status, told["error"]["code"]) == (2, code), command
    assert run("enclave", "diff", "listing", "listing") == (0, {"added": [], "removed": [], "changed": []})


def test_attest(run: Run, tmp_path: Path) -> None:
    site = attest.SimulatedSite.create(tmp_path / "site")
    evidence = site.attester(bytes(48)).attest(bytes(64))
    (tmp_path / "quote").write_bytes(evidence.quote)
    status, told = run("attest", "verify", "quote", "--type", "tdx", "--at", "2026-11-20T00:00:00Z")
    assert (status, told["accepted"]) == (4, False)
    status, told = run("attest", "verify", "quote", "--type", "snp", "--at", "2026-11-20T00:00:00Z")
    assert (status, told["error"]["code"]) == (2, 2105)


def test_audit(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("{}")
    status, told = run("audit", "verify", "bundle", "--at", "now")
    assert (status, told["error"]["code"]) == (2, 2005)


def test_explain_and_doctor(run: Run) -> None:
    assert run("explain", "5001")[0] == 0
    assert run("explain", "1234")[1]["error"]["code"] == 2010
    assert set(run("doctor")[1]) >= {"cloister", "programs", "tee"}


@pytest.mark.parametrize(
    "misuse",
    [
        ("party", "init"),
        ("party", "init", "a", "b"),
        ("image", "show", "image"),
        ("keys", "serve"),
        ("attest", "verify", "quote", "--type"),
        ("doctor", "--nothing"),
        ("nothing",),
        ("keys", "log", "manifest", "--start", "-1"),
        ("--log-json=1", "doctor"),
    ],
    ids=" ".join,
)
def test_a_command_line_that_is_not_understood_is_told_as_json_too(run: Run, misuse: tuple[str, ...]) -> None:
    status, told = run(*misuse)
    assert (status, told["error"]["code"]) == (2, 2019)
