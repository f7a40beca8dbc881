"""The demo with three workers that nobody trusts: real processes, real sockets, shares only; then one of them lies."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("skl2onnx", reason="the demo needs cloister[demo]")
pytest.importorskip("torch", reason="workers need cloister[torch]")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]


def cloister(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cloister", *arguments], capture_output=True, text=True, check=False, timeout=900
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "run"
    done = cloister("demo", "--dir", str(folder), "--offload")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_model_is_as_good_and_the_audit_accepts_what_the_workers_did(folder: Path) -> None:
    facts = json.loads((folder / "demo.json").read_text())
    assert facts["metrics"]["accuracy"] > 0.95
    assert (facts["audit"]["outcome"], facts["audit"]["refuted"]) == ("asserted", 0)
    offloaded = facts["offload"]
    assert (offloaded["mode"], offloaded["workers"]) == ("shared3", ["gpu-x", "gpu-y", "gpu-z"])
    assert offloaded["products"] == 500  # a hundred steps of two layers: forward, both gradients, one input without
    assert offloaded["checks"] >= offloaded["products"]
    assert offloaded["error_bits"] >= 40
    assert "gpu-x" in (folder / "audit.html").read_text()


def test_a_worker_that_lies_once_ends_the_stage_and_nothing_says_where(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    done = cloister("demo", "--dir", str(folder), "--tamper", "worker")
    assert done.returncode == 5, done.stderr
    assert "error[CLOISTER-5701]" in done.stderr
    assert "gpu-" not in done.stderr
    assert not (folder / "tampered").exists()
    logs = {path for path in before if path.name == "log.txt"}
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} <= logs


def test_without_workers_there_is_none_to_lie(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text("{}")
    done = cloister("demo", "--dir", str(tmp_path), "--tamper", "worker")
    assert "CLOISTER-2553" in done.stderr
