"""A service is verified against the manifest that the person means, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.manifests import IDENTITIES, sign_all, two_hospitals

from cloister.cli import main
from cloister.party import Pins, fingerprint


def status_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit):
        main(["predict", *arguments, "--url", "http://127.0.0.1:9"])
    return capsys.readouterr().err.splitlines()[0]


@pytest.fixture
def signed(tmp_path: Path) -> str:
    path = tmp_path / "signed.json"
    path.write_bytes(sign_all(two_hospitals()).canonical())
    return str(path)


def test_a_manifest_that_nobody_vouches_for_is_refused(
    capsys: pytest.CaptureFixture[str], signed: str, tmp_path: Path
) -> None:
    home = ("--home", str(tmp_path / "home"))
    assert "CLOISTER-3303" in status_of(capsys, "--manifest", signed, *home)
    assert "CLOISTER-3607" in status_of(capsys, "--manifest", signed, "--id", "0" * 64, *home)


def test_an_id_or_pinned_parties_vouch_for_it(capsys: pytest.CaptureFixture[str], signed: str, tmp_path: Path) -> None:
    home = ("--home", str(tmp_path / "home"))
    assert "CLOISTER-6601" in status_of(capsys, "--manifest", signed, "--id", two_hospitals().id, *home)
    for identity in IDENTITIES.values():
        Pins(tmp_path / "home").pin(identity.public, words=fingerprint(identity.public))
    assert "CLOISTER-6601" in status_of(capsys, "--manifest", signed, *home)
