"""``cloister seal`` and ``cloister image``: the same facts for people and for programs."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.cli import main


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs: Callable[[str], str]) -> Path:
    needs("mksquashfs")
    (tmp_path / "xray" / "a").mkdir(parents=True)
    (tmp_path / "xray" / "a" / "scan.png").write_bytes(os.urandom(100_000))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cloister(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run


def test_seal_show_verify_open(work: Path, cloister) -> None:
    status, out, err = cloister("seal", "xray", "--name", "xray-a", "--to", "xray.image", "--json")
    assert (status, err) == (0, "")
    sealed = json.loads(out)
    assert sealed["bytes"] == (work / "xray.image").stat().st_size
    assert sealed["key_file"] == "xray-a.cloister-key"
    assert stat.S_IMODE((work / "xray-a.cloister-key").stat().st_mode) == 0o600
    key = json.loads((work / "xray-a.cloister-key").read_text())
    assert key["image"] == sealed["id"]
    assert key["key"] not in out

    status, out, _ = cloister("image", "show", "xray.image", "--id", sealed["id"], "--json")
    assert (status, json.loads(out)["root"]) == (0, sealed["root"])
    status, out, _ = cloister("image", "verify", "xray.image", "--id", sealed["id"], "--json")
    assert (status, json.loads(out)["verified"]) == (0, True)
    opening = ("--id", sealed["id"], "--key", "xray-a.cloister-key", "--to", "back")
    assert cloister("image", "open", "xray.image", *opening)[0] == 0
    assert (work / "back" / "a" / "scan.png").read_bytes() == (work / "xray" / "a" / "scan.png").read_bytes()
    assert cloister("image", "open", "xray.image", *opening)[0] == 2


def test_people_are_told_that_the_key_is_the_data(work: Path, cloister) -> None:
    status, out, err = cloister("seal", "xray", "--name", "x", "--to", "x.image", "--key-out", "safe")
    assert status == 0
    assert "as sensitive as the data" in err
    assert "id " in out


def test_another_id_ends_with_the_status_of_integrity(work: Path, cloister) -> None:
    cloister("seal", "xray", "--name", "x", "--to", "x.image")
    status, _, err = cloister("image", "verify", "x.image", "--id", "0" * 64)
    assert status == 5
    assert "CLOISTER-5203" in err
    status, out, _ = cloister("image", "verify", "x.image", "--id", "0" * 64, "--json")
    assert json.loads(out)["error"]["code"] == 5203
    assert cloister("image", "verify", "x.image", "--id", "x")[0] == 2


def test_an_image_whose_key_cannot_be_kept_is_not_made(work: Path, cloister) -> None:
    (work / "x.cloister-key").write_text("mine")
    status, _, err = cloister("seal", "xray", "--name", "x", "--to", "x.image")
    assert status == 2
    assert "CLOISTER-2007" in err
    assert not (work / "x.image").exists()
    assert cloister("seal", "xray", "--name", "Not a name", "--to", "x.image")[0] == 2


def test_a_key_that_others_can_read_is_refused(work: Path, cloister) -> None:
    _, out, _ = cloister("seal", "xray", "--name", "x", "--to", "x.image", "--json")
    (work / "x.cloister-key").chmod(0o644)
    options = ("--id", json.loads(out)["id"], "--key", "x.cloister-key", "--to", "back")
    status, _, err = cloister("image", "open", "x.image", *options)
    assert status == 2
    assert "CLOISTER-2014" in err
    assert not (work / "back").exists()
