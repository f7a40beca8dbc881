"""The demo's stage scripts run as ordinary Python: no enclave, no network, no warning."""

import ast
import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

import cloister.demo._hospitals as source
from cloister.demo._hospitals import FEATURES, Case, Hospitals, write_hospitals

pytest.importorskip("sklearn")
pytest.importorskip("onnx")
pytest.importorskip("torch")

SCRIPTS = Path(source.__file__).parent / "scripts"


def script(name: str, *arguments: str | Path) -> str:
    """What the script prints; it must end well and warn of nothing."""
    command = [sys.executable, "-W", "error", SCRIPTS / name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def report(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Done:
    """One native run of all four scripts."""

    folder: Path
    hospitals: Hospitals
    trained: str

    @property
    def joined(self) -> dict[str, dict[str, str]]:
        rows = read(self.folder / "dataset" / "train.csv") + read(self.folder / "dataset" / "test.csv")
        return {row["patient"]: row for row in rows}


def pipeline(folder: Path) -> Done:
    hospitals = write_hospitals(folder)
    script("preprocess_a.py", "--input", hospitals.hospital_a, "--output", folder / "clean-a")
    script("preprocess_b.py", "--input", hospitals.hospital_b, "--output", folder / "clean-b")
    cleaned = ["--input", folder / "clean-a", "--input", folder / "clean-b"]
    script("aggregate.py", *cleaned, "--output", folder / "dataset")
    said = script("train.py", "--input", folder / "dataset", "--model", folder / "model", "--report", folder / "report")
    return Done(folder, hospitals, said)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return pipeline(tmp_path_factory.mktemp("native"))


def kept_at_a(case: Case) -> bool:
    return case.place in ("a", "both") and case.quirk != "unread"


def usable(case: Case) -> bool:
    """Whether a flawless reconciliation keeps the patient."""
    if case.place == "held-out" or case.quirk in ("unread", "mistyped", "contradicted"):
        return False
    return case.quirk != "blank" or case.place == "both"


def test_scripts_import_nothing_of_cloister_but_where_layers_may_leave() -> None:
    for path in sorted(SCRIPTS.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        allowed = sys.stdlib_module_names | {"numpy", "onnx", "sklearn"}
        if path.name == "train.py":
            allowed |= {"torch", "torch.nn", "cloister.offload"}
        assert all(name in allowed or name.split(".")[0] in allowed - {"cloister"} for name in imported), path.name


def test_outside_of_a_stage_the_network_stays_as_it_is(done: Done) -> None:
    assert "mode plain" in done.trained


def test_preprocessing_counts_every_rejected_row_by_its_reason(done: Done) -> None:
    assert report(done.folder / "clean-a" / "report.json") == {
        "rows_read": 344,
        "rows_kept": 337,
        "corrected": {"millimetres to micrometres": 337},
        "rejected": {"exported twice": 4, "not read yet": 3},
    }
    assert report(done.folder / "clean-b" / "report.json") == {
        "rows_read": 264,
        "rows_kept": 262,
        "corrected": {"millimetres to micrometres": 8},
        "rejected": {"not reported yet": 2},
    }


def test_hospital_a_is_converted_digit_for_digit(done: Done) -> None:
    cleaned = {row["patient"]: row for row in read(done.folder / "clean-a" / "records.csv")}
    cases = [case for case in done.hospitals.cases if kept_at_a(case)]
    assert set(cleaned) == {case.number for case in cases}
    for case in cases:
        row = cleaned[case.number]
        assert row["diagnosis"] == case.diagnosis
        for name, value in zip(FEATURES, case.values, strict=True):
            expected = None if case.quirk == "blank" and name == case.blank else value
            assert (Decimal(row[name]) if row[name] else None) == expected


def test_hospital_b_is_converted_to_what_it_measured_whatever_the_unit(done: Done) -> None:
    cleaned = {row["patient"]: row for row in read(done.folder / "clean-b" / "records.csv")}
    cases = [case for case in done.hospitals.cases if case.place in ("b", "both") and case.quirk != "unread"]
    assert set(cleaned) == {case.number for case in cases}
    for case in cases:
        row = cleaned[case.number]
        assert (row["diagnosis"] == case.diagnosis) == (case.quirk != "contradicted")
        for name, value in zip(FEATURES, case.rounded(), strict=True):
            if case.quirk == "blank" and case.place == "b" and name == case.blank:
                assert row[name] == ""
            elif case.quirk != "mistyped" or name != "perimeter_worst":
                assert Decimal(row[name]) == value


def test_reconciliation_is_exact(done: Done) -> None:
    """Every patient who can be kept is kept once, with the true value wherever a hospital recorded it in full."""
    kept = {case.number: case for case in done.hospitals.cases if usable(case)}
    assert set(done.joined) == set(kept)
    for number, case in kept.items():
        row = done.joined[number]
        assert row["diagnosis"] == case.diagnosis
        for name, value, rounded in zip(FEATURES, case.values, case.rounded(), strict=True):
            only_b = case.place == "b" or (case.quirk == "blank" and name == case.blank)
            assert Decimal(row[name]) == (rounded if only_b else value), (number, name)


def test_patients_who_cannot_be_reconciled_are_counted_by_reason(done: Done) -> None:
    facts = report(done.folder / "dataset" / "report.json")
    assert facts["patients"] == 559
    assert facts["patients_with_several_records"] == 40
    assert facts["set_aside"] == {
        "a measurement is missing": 5,
        "diagnoses contradict each other": 2,
        "measurements contradict each other": 1,
    }
    assert facts["train"]["patients"] + facts["test"]["patients"] == 551 == len(done.joined)


def test_no_patient_is_in_both_training_and_test(done: Done) -> None:
    train = {row["patient"] for row in read(done.folder / "dataset" / "train.csv")}
    test = {row["patient"] for row in read(done.folder / "dataset" / "test.csv")}
    assert not train & test
    assert len(train) == 401
    assert len(test) == 150
    assert not (train | test) & set(done.hospitals.diagnoses)


def test_the_model_is_right_on_at_least_95_of_100_unseen_patients(done: Done) -> None:
    metrics = report(done.folder / "report" / "metrics.json")
    assert metrics["accuracy"] >= 0.95
    assert metrics["auc"] >= 0.98
    assert sum(metrics["confusion"].values()) == metrics["test_patients"] == 150


def test_metrics_are_what_onnx_runtime_finds_on_the_test_set(done: Done) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    facts = report(done.folder / "model" / "model.json")
    session = onnxruntime.InferenceSession(done.folder / "model" / "model.onnx", providers=["CPUExecutionProvider"])
    rows = read(done.folder / "dataset" / "test.csv")
    values = np.array([[row[name] for name in facts["features"]] for row in rows], dtype=np.float32)
    [probability] = session.run([facts["output"]["name"]], {facts["input"]["name"]: values})
    right = [
        (value >= facts["threshold"]) == (row["diagnosis"] == "malignant")
        for value, row in zip(probability[:, 0], rows, strict=True)
    ]
    assert round(sum(right) / len(right), 4) == facts["metrics"]["accuracy"]


def test_the_model_answers_for_the_five_patients_from_raw_measurements(done: Done) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    facts = report(done.folder / "model" / "model.json")
    assert facts["features"] == list(FEATURES)
    session = onnxruntime.InferenceSession(done.folder / "model" / "model.onnx", providers=["CPUExecutionProvider"])
    [graph_input], [graph_output] = session.get_inputs(), session.get_outputs()
    assert (graph_input.name, graph_input.shape[1]) == (facts["input"]["name"], len(FEATURES))
    assert graph_output.name == facts["output"]["name"]
    rows = read(done.hospitals.patients)
    values = np.array([[row[name] for name in facts["features"]] for row in rows], dtype=np.float32)
    [probability] = session.run(None, {facts["input"]["name"]: values})
    assert probability.shape == (5, 1)
    answers = {
        row["patient"]: facts["classes"][int(value >= facts["threshold"])]
        for row, value in zip(rows, probability[:, 0], strict=True)
    }
    assert answers == done.hospitals.diagnoses


def test_a_second_run_writes_the_same_bytes(done: Done, tmp_path: Path) -> None:
    again = pipeline(tmp_path)
    for folder in ("clean-a", "clean-b", "dataset", "model", "report"):
        for path in sorted((done.folder / folder).iterdir()):
            assert path.read_bytes() == (again.folder / folder / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("HealthNumber", "HN-12-345-678", "unreadable health number"),
        ("Dx", "X", "unknown diagnosis"),
        ("MeanRadius_mm", "0.01x", "unreadable number"),
        ("MeanRadius_mm", "-0.01", "unreadable number"),
        ("MeanRadius_mm", "1e999999999", "unreadable number"),
    ],
)
def test_a_broken_row_of_hospital_a_is_rejected_by_name(
    done: Done, tmp_path: Path, column: str, value: str, reason: str
) -> None:
    rows = read(done.hospitals.hospital_a / "biopsies.csv")[:3]
    rows[1][column] = value
    (tmp_path / "in").mkdir()
    with (tmp_path / "in" / "biopsies.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    script("preprocess_a.py", "--input", tmp_path / "in", "--output", tmp_path / "out")
    facts = report(tmp_path / "out" / "report.json")
    assert facts["rejected"] == {reason: 1}
    assert facts["rows_kept"] == 2


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("patient_no", "123456789", "unreadable patient number"),
        ("malignant", "M", "unknown diagnosis"),
        ("rad.avg", "0,5", "impossible radius"),
        ("rad.avg", "NA", "no mean radius, so no unit"),
        ("area.avg", "90000,0", "radius and area disagree"),
        ("sym.max", "0.29.1", "unreadable number"),
    ],
)
def test_a_broken_row_of_hospital_b_is_rejected_by_name(
    done: Done, tmp_path: Path, column: str, value: str, reason: str
) -> None:
    with (done.hospitals.hospital_b / "fna_export.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";"))[:3]
    rows[1][column] = value
    (tmp_path / "in").mkdir()
    with (tmp_path / "in" / "fna_export.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    script("preprocess_b.py", "--input", tmp_path / "in", "--output", tmp_path / "out")
    facts = report(tmp_path / "out" / "report.json")
    assert facts["rejected"] == {reason: 1}
    assert facts["rows_kept"] == 2
