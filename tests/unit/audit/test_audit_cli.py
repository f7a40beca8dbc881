import json
from pathlib import Path
from typing import Any

import pytest
from tests.audits import Finished, finished_run
from tests.keyworld import IDENTITIES
from tests.runs import edit

from cloister.cli import main
from cloister.cli.audit import moment
from cloister.errors import CloisterError
from cloister.party import Identity, Pins, fingerprint

__all__ = ["finished_run"]

AT = ("--at", "2026-11-20T12:00:00Z")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """hospital-a's: its own identity, and pins of the other parties."""
    folder = tmp_path / "home"
    folder.mkdir()
    IDENTITIES["hospital-a"].save(folder, "correct horse")
    for name in ("hospital-b", "lab", "doctor"):
        public = IDENTITIES[name].public
        Pins(folder).pin(public, words=fingerprint(public))
    return folder


@pytest.fixture
def bundle(finished_run: Finished, tmp_path: Path) -> Path:
    path = tmp_path / "run.bundle.json"
    path.write_bytes(finished_run.bundle.canonical())
    return path


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in arguments])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_own_identity_counts_as_known(bundle: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "audit", "verify", bundle, *AT, "--home", home)
    assert status == 0
    assert "  ✓ hospital-a: its keys are the ones that were read out" in out
    assert out.splitlines()[-1].startswith("ACCEPTED  ")


def test_public_file_that_was_never_pinned_does_not(
    bundle: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "pins" / "lab.pub").rename(home / "lab.pub")
    status, out, err = call(capsys, "audit", "verify", bundle, *AT, "--home", home)
    assert (status, "CLOISTER-4350" in err) == (4, True)
    assert "  ? lab: its keys are the ones that were read out (not pinned here" in out
    assert out.splitlines()[-1].startswith("NOT ACCEPTED  ")


def test_own_identity_under_a_pinned_name(bundle: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Identity.generate("lab").save(home, "correct horse")
    assert call(capsys, "audit", "verify", bundle, *AT, "--home", home)[0] == 3


def test_nobody_pinned_but_the_manifest_named(
    finished_run: Finished, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = ("--home", tmp_path / "empty")
    assert call(capsys, "audit", "verify", bundle, *AT, *empty)[0] == 4
    named = ("--manifest", finished_run.world.manifest.id)
    assert call(capsys, "audit", "verify", bundle, *AT, *empty, *named)[0] == 0
    copy = tmp_path / "signed.json"
    copy.write_bytes(finished_run.bundle.signed.canonical())
    assert call(capsys, "audit", "verify", bundle, *AT, *empty, "--manifest", copy)[0] == 0
    status, _, err = call(capsys, "audit", "verify", bundle, *AT, *empty, "--manifest", "0" * 64)
    assert (status, "CLOISTER-5361" in err) == (5, True)


def test_refusal_says_what_was_compared(
    finished_run: Finished, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "edited.json"
    other = next(r for r in finished_run.bundle.attempts if r.consumer == "prepare").receipt
    path.write_bytes(edit(finished_run.bundle, "train", receipt=other).canonical())
    status, out, err = call(capsys, "audit", "verify", path, *AT, "--home", home)
    assert status == 5
    assert out.splitlines()[-1].startswith("REFUSED  ")
    assert "CLOISTER-5364" in err
    lines = [line.split() for line in err.splitlines()]
    assert [line[0] for line in lines[1:3]] == ["expected:", "got:"]
    assert "None" not in out + err


def test_json(bundle: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "audit", "verify", bundle, *AT, "--home", home, "--json")
    report: dict[str, Any] = json.loads(out)
    assert (status, report["outcome"], report["assurance"]) == (0, "asserted", "simulated")
    status, out, _ = call(capsys, "audit", "verify", bundle, "--at", "2030-01-01T00:00:00Z", "--home", home, "--json")
    assert (status, json.loads(out)["outcome"]) == (4, "refuted")


def test_heads_and_page(
    finished_run: Finished, bundle: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = tmp_path / "heads.json"
    heads.write_text(json.dumps([head.as_json() for head in finished_run.heads]))
    html = tmp_path / "audit.html"
    status, out, _ = call(capsys, "audit", "verify", bundle, *AT, "--home", home, "--head", heads, "--html", html)
    assert status == 0
    assert [line[:10] for line in out.splitlines() if "the log is complete" in line] == ["  ✓ keys-a", "  ✓ keys-b"]
    assert "<svg" in html.read_text()
    nowhere = tmp_path / "no" / "audit.html"
    assert call(capsys, "audit", "verify", bundle, *AT, "--home", home, "--html", nowhere)[0] == 2


@pytest.mark.parametrize("text", ["{", "7", '{"a":1}'])
def test_files_that_hold_no_heads(
    bundle: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    heads = tmp_path / "heads.json"
    heads.write_text(text)
    assert call(capsys, "audit", "verify", bundle, *AT, "--home", home, "--head", heads)[0] == 2


def test_times() -> None:
    assert moment("2026-01-31T12:00:00Z") == moment("2026-01-31T13:00:00+01:00")
    assert moment("now").tzinfo is not None
    for text in ("tomorrow", "", "2026-13-01"):
        with pytest.raises(CloisterError) as raised:
            moment(text)
        assert raised.value.code == 2005
