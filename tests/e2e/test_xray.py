"""The X-ray example through Cloister, and the same scripts run natively: the same bytes come out."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cloister.receipt import parse_bundle, verify_receipt
from cloister.wire import VerifyKey

onnxruntime = pytest.importorskip("onnxruntime", reason="the X-ray example needs cloister[demo]")
for needed in ("onnxscript", "PIL", "sqlalchemy", "torch", "uvicorn"):
    pytest.importorskip(needed, reason="the X-ray example needs cloister[demo]")

EXAMPLE = Path(__file__).parents[2] / "examples" / "xray"
SHORT = ("--epochs", "3", "--size", "48")  # beats guessing, in a few seconds of training

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]  # minutes, on a machine with nothing else to do


@pytest.fixture(scope="module")
def sources(shared_data: Path) -> tuple[Path, Path]:
    found = (shared_data / "chest_xray_ieee8023", shared_data / "chest_xray_nih")
    for folder in found:
        if not folder.is_dir():
            pytest.skip(f"no {folder.name} in the shared data")
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the site of both runs: what it compiles for the first, the second finds."""
    return tmp_path_factory.mktemp("site") / "kept"


@pytest.fixture(scope="module")
def work(sources: tuple[Path, Path], site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a finished run; ``said.txt`` is what it printed."""
    folder = tmp_path_factory.mktemp("xray") / "work"
    covid, nih = sources
    command = [sys.executable, EXAMPLE / "run.py", "--covid", covid, "--nih", nih, "--work", folder, *SHORT]
    command += ["--site", site]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def facts(work: Path) -> dict[str, Any]:
    return json.loads((work / "xray.json").read_text())


@pytest.fixture(scope="module")
def native(sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the same scripts write outside Cloister, started from another folder."""
    out = tmp_path_factory.mktemp("native")

    def run(script: str, *arguments: str | Path) -> None:
        subprocess.run([sys.executable, EXAMPLE / script, *arguments], cwd=out, check=True, timeout=900)

    run("preprocess_covid.py", "--input", sources[0], "--output", "clean-covid")
    run("preprocess_nih.py", "--input", sources[1], "--output", "clean-nih")
    run("aggregate.py", "--input", "clean-covid", "--input", "clean-nih", "--output", "dataset")
    run("train.py", "--input", "dataset", "--model", "model", "--report", "report", *SHORT)
    return out


def test_the_audit_accepts_and_says_simulated(work: Path, facts: dict[str, Any]) -> None:
    audit = facts["audit"]
    assert (audit["outcome"], audit["assurance"], audit["unsandboxed"]) == ("asserted", "simulated", [])
    assert audit["count"]["refuted"] == 0
    said = (work / "said.txt").read_text()
    assert "SIMULATED" in said.splitlines()[0]
    assert "asserted (SIMULATED)" in said
    assert "SIMULATED" in (work / "audit.html").read_text()


def test_every_stage_is_told_with_how_long_it_took(work: Path, facts: dict[str, Any]) -> None:
    stages = facts["run"]["stages"]
    assert all(0 < row["script_ms"] < row["attempt_ms"] for row in stages.values())
    said = [line.split()[0] for line in (work / "said.txt").read_text().splitlines() if line.strip().endswith(" s")]
    assert said[-4:] == ["preprocess-covid", "preprocess-nih", "aggregate", "train"]


def test_no_person_is_on_both_sides_of_the_split_as_reported_to_the_hospitals(facts: dict[str, Any]) -> None:
    assert facts["metrics"]["persons"] == {"train": 448, "test": 139, "both": 0}


def test_it_learns_more_than_to_guess_and_the_confounding_is_told(work: Path, facts: dict[str, Any]) -> None:
    metrics = facts["metrics"]
    assert metrics["accuracy"] > metrics["most_frequent_class"] + 0.05
    said = (work / "said.txt").read_text()
    assert str(metrics["accuracy"]) in said
    assert "class and source are confounded" in said
    for source in ("covid", "nih"):
        assert f"within {source}: accuracy {metrics['within_source'][source]['accuracy']}" in said


def test_both_hospitals_got_the_very_report_that_the_scripts_write_natively(work: Path, native: Path) -> None:
    expected = (native / "report" / "metrics.json").read_bytes()
    for hospital in ("hospital-covid", "hospital-nih"):
        folder = work / hospital / "report"
        assert [path.name for path in folder.iterdir()] == ["metrics.json"]
        assert (folder / "metrics.json").read_bytes() == expected


def test_every_stage_wrote_as_many_bytes_as_natively(work: Path, native: Path) -> None:
    """Outputs that are released to nobody outside cannot be compared; the receipts sign how large they are."""
    bundle = parse_bundle((work / "host" / "run.bundle.json").read_bytes())
    written: dict[str, int] = {}
    for attempt in bundle.attempts:
        if attempt.receipt is not None and attempt.claims is not None:
            facts = verify_receipt(attempt.receipt, key=VerifyKey.parse(attempt.claims.sign))
            assert (facts.assurance, facts.sandbox) == ("simulated", "bubblewrap")
            written |= {name: output.size_bytes for name, output in facts.outputs.items()}
    expected = {
        name: sum(path.stat().st_size for path in (native / name).rglob("*") if path.is_file())
        for name in ("clean-covid", "clean-nih", "dataset", "model", "report")
    }
    assert written == expected


def test_the_sealed_model_answers_exactly_as_the_native_one(
    sources: tuple[Path, Path], native: Path, facts: dict[str, Any]
) -> None:
    prepare = _program("predict.py").prepare
    asked = facts["predictions"]
    assert len(asked) == 6
    pictures = np.stack([prepare(sources[0] / "images" / row["picture"], 48) for row in asked])
    session = onnxruntime.InferenceSession(native / "model" / "model.onnx", providers=["CPUExecutionProvider"])
    [probabilities] = session.run(["probabilities"], {"images": pictures})
    assert [row["probabilities"] for row in asked] == probabilities.tolist()
    classes = json.loads((native / "model" / "model.json").read_text())["classes"]
    assert [row["class"] for row in asked] == [classes[index] for index in probabilities.argmax(axis=1)]


def test_what_is_shared_holds_no_picture_no_model_and_no_key(sources: tuple[Path, Path], work: Path) -> None:
    """The host's and the storage's files are ciphertext and signed statements: no row of the table, no JPEG, no key."""
    keys = [json.loads(path.read_text())["key"] for path in work.glob("*/*.cloister-key")]
    assert len(keys) == 3
    row = (sources[0] / "metadata.csv").read_bytes().splitlines()[1]
    jpeg = next((sources[0] / "images").glob("*.jpg")).read_bytes()[200:264]
    for path in [*work.glob("host/**/*"), *work.glob("storage/**/*")]:
        if path.is_file():
            data = path.read_bytes()
            assert not any(key.encode() in data for key in keys), path
            assert row not in data, path
            assert jpeg not in data, path


def test_another_run_does_not_overwrite_a_work_folder(sources: tuple[Path, Path], work: Path) -> None:
    command = [sys.executable, EXAMPLE / "run.py", "--covid", sources[0], "--nih", sources[1], "--work", work]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "is there already" in done.stderr


def test_the_private_variant_is_bounded_for_every_patient_and_says_what_it_reached(
    sources: tuple[Path, Path], site: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("xray-private") / "work"
    command = [sys.executable, EXAMPLE / "run.py", "--covid", sources[0], "--nih", sources[1], "--work", folder]
    done = subprocess.run(
        [*command, "--site", site, "--private"], capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((folder / "xray.json").read_text())
    assert (facts["audit"]["outcome"], facts["audit"]["count"]["refuted"]) == ("asserted", 0)
    privacy = [check for check in facts["audit"]["checks"] if check["group"] == "privacy"]
    assert [check["status"] for check in privacy] == ["asserted"] * 3 + ["unknown"]  # the training, the model for each
    assert privacy[-1]["what"] == "what was asked"  # and of its answers no more
    assert "one patient of records-nih is bounded" in done.stdout
    metrics = facts["metrics"]
    assert metrics["test_pictures"] == sum(each["kept_back"] for each in facts["patients"].values()) == 265
    assert metrics["accuracy"] > 0.5  # noise is drawn anew each time, and may spoil a run; a third would be guessing
    assert str(metrics["accuracy"]) in done.stdout
    pictures = [path.stem.encode() for path in (sources[0] / "images").glob("*.jpg")]
    for path in [*folder.glob("host/**/*"), *folder.glob("storage/**/*")]:
        if path.is_file():
            data = path.read_bytes()
            assert not any(name in data for name in pictures if len(name) > 12), path


def _program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"xray_{Path(name).stem}", EXAMPLE / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
