"""The demo, as a newcomer runs it: every role a process of its own, then each tampering noticed under its own code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="the demo needs cloister[demo]")
pytest.importorskip("torch", reason="the demo needs cloister[demo]")


def cloister(*arguments: str, timeout: int = 290) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cloister", *arguments], capture_output=True, text=True, check=False, timeout=timeout
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "run"
    done = cloister("demo", "--dir", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


def test_the_story_is_told_in_seven_steps_and_says_simulated(folder: Path) -> None:
    said = (folder / "said.txt").read_text()
    assert "SIMULATED" in said.splitlines()[0]
    assert re.findall(r"^ (\d)/7", said, re.MULTILINE) == list("1234567")
    assert "next" in said.lower()


def test_five_patients_are_predicted_as_pathology_says(folder: Path) -> None:
    lines = [line.split() for line in (folder / "said.txt").read_text().splitlines() if "pathology says" in line]
    assert len(lines) == 5
    assert all(line[1] == line[-1] for line in lines)


def test_the_audit_accepts_with_nothing_refuted(folder: Path) -> None:
    audit = json.loads((folder / "demo.json").read_text())["audit"]
    assert (audit["outcome"], audit["refuted"]) == ("asserted", 0)
    assert audit["asserted"] > 30


def test_three_workers_multiplied_every_layer_of_the_training(folder: Path) -> None:
    facts = json.loads((folder / "demo.json").read_text())
    assert facts["metrics"]["accuracy"] > 0.95
    offloaded = facts["offload"]
    assert (offloaded["mode"], offloaded["workers"]) == ("shared3", ["gpu-x", "gpu-y", "gpu-z"])
    assert offloaded["products"] == 300  # sixty steps of two layers: forward, both gradients, the input has none
    assert offloaded["checks"] >= offloaded["products"]
    assert offloaded["error_bits"] >= 40
    assert "gpu-x, gpu-y, gpu-z (shared3): 300 products" in (folder / "audit.html").read_text()


def test_the_report_is_one_file_that_loads_nothing(folder: Path) -> None:
    page = (folder / "audit.html").read_text()
    assert "<svg" in page
    assert "SIMULATED" in page
    assert not re.search(r"(src|href)\s*=|url\((?!#)|@import|<script", page)


def test_no_key_and_no_patient_is_in_what_the_host_holds(folder: Path) -> None:
    """The host's and the storage's files: ciphertext, grants, receipts; no row of any table, no key."""
    keys = [json.loads(path.read_text())["key"] for path in folder.glob("*/*.cloister-key")]
    assert len(keys) == 3
    rows = [line.encode() for line in (folder / "hospital-a" / "data" / "biopsies.csv").read_text().splitlines()[1:40]]
    for path in [*folder.glob("host/**/*"), *folder.glob("storage/**/*")]:
        if path.is_file():
            data = path.read_bytes()
            assert not any(key.encode() in data for key in keys), path
            assert not any(row in data for row in rows), path


def test_the_commands_are_written_down(folder: Path) -> None:
    commands = (folder / "commands.txt").read_text()
    for verb in ("party init", "seal", "manifest sign", "keys install", "run start", "predict", "audit verify"):
        assert verb in commands


@pytest.mark.parametrize(
    ("kind", "code"), [("quote", 4120), ("image", 5208), ("manifest", 5301), ("key", 4150), ("log", 5001)]
)
def test_each_tampering_is_noticed_under_its_own_code(folder: Path, kind: str, code: int) -> None:
    done = cloister("demo", "--dir", str(folder), "--tamper", kind)
    assert done.returncode == code // 1000
    assert f"error[CLOISTER-{code}]" in done.stderr
    assert not (folder / "tampered").exists()


def test_a_finished_demo_is_not_overwritten_and_another_folder_not_removed(folder: Path, tmp_path: Path) -> None:
    assert "CLOISTER-2007" in cloister("demo", "--dir", str(folder)).stderr
    (tmp_path / "mine.txt").write_text("mine")
    assert "CLOISTER-2007" in cloister("demo", "--dir", str(tmp_path), "--force").stderr
    assert (tmp_path / "mine.txt").exists()


def test_tampering_needs_a_finished_demo(tmp_path: Path) -> None:
    assert "CLOISTER-2553" in cloister("demo", "--dir", str(tmp_path), "--tamper", "quote").stderr
    assert "CLOISTER-2005" in cloister("demo", "--dir", str(tmp_path), "--tamper", "nothing").stderr


@pytest.mark.slow
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


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("private") / "run"
    done = cloister("demo", "--private", "--dir", str(folder), timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_private_demo_says_what_it_costs_before_signing_and_what_was_spent(private: Path) -> None:
    said, facts = (private / "said.txt").read_text(), json.loads((private / "demo.json").read_text())
    assert re.findall(r"^ (\d)/7", said, re.MULTILINE) == list("1234567")
    spent = float(facts["privacy"]["epsilon"])
    agreed = float(re.search(r"these terms cost ε = ([0-9.]+)", said)[1])
    assert 2 < spent <= agreed + 1e-5 < 3
    assert f"ε = {facts['privacy']['epsilon']} at δ = 1e-5 per patient: signed into the receipt" in said
    assert said.index("these terms cost") < said.index(" 3/7")
    for image in ("biopsies-a", "biopsies-b"):
        assert f"what it reveals of one patient of {image} is bounded: ε = {facts['privacy']['epsilon']}" in said
        assert f"one patient of {image} is bounded" in (private / "audit.html").read_text()
    assert (facts["audit"]["outcome"], facts["audit"]["refuted"]) == ("asserted", 0)


@pytest.mark.slow
def test_the_private_demo_predicts_well_and_says_what_privacy_cost(private: Path) -> None:
    said, metrics = (private / "said.txt").read_text(), json.loads((private / "demo.json").read_text())["metrics"]
    assert metrics["accuracy"] > 0.85  # noise is drawn anew each time: 0.94 to 0.98
    assert metrics["test_patients"] == 158
    assert f"accuracy {metrics['accuracy']:.3f}" in said
    assert f"without privacy: {metrics['accuracy_without_privacy']:.3f}" in said


@pytest.mark.slow
def test_the_private_training_was_multiplied_by_workers_who_saw_shares(private: Path) -> None:
    facts = json.loads((private / "demo.json").read_text())
    offloaded = facts["offload"]
    assert (offloaded["mode"], offloaded["workers"]) == ("shared3", ["gpu-x", "gpu-y", "gpu-z"])
    assert offloaded["checks"] >= offloaded["products"] >= 60 * 3
    assert facts["run"]["stages"].keys() == {"train", "export"}


@pytest.mark.slow
def test_in_the_private_demo_no_table_leaves_a_hospital(private: Path) -> None:
    """Neither as it was nor cleaned: what is sealed is records, and the host has ciphertext."""
    rows = (private / "hospital-a" / "clean" / "records.csv").read_text().splitlines()[1:40]
    for path in [*private.glob("host/**/*"), *private.glob("storage/**/*"), *private.glob("lab/**/*")]:
        if path.is_file():
            data = path.read_bytes()
            assert not any(row.encode() in data for row in rows), path


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kind", "code"), [("ledger", 5364), ("budget", 7801), ("worker", 5701), ("image", 5208), ("log", 5001)]
)
def test_each_tampering_with_the_private_demo_is_noticed_under_its_own_code(
    private: Path, kind: str, code: int
) -> None:
    done = cloister("demo", "--private", "--dir", str(private), "--tamper", kind, timeout=580)
    assert done.returncode == code // 1000, done.stderr
    assert f"error[CLOISTER-{code}]" in done.stderr
    assert not (private / "tampered").exists()


@pytest.mark.parametrize("kind", ["ledger", "budget"])
def test_a_tampering_with_privacy_needs_a_private_demo(folder: Path, kind: str) -> None:
    assert "CLOISTER-2553" in cloister("demo", "--dir", str(folder), "--tamper", kind).stderr
