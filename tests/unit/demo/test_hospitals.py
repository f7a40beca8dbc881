"""The demo's two hospitals: real measurements, made-up shapes, the same bytes each time."""

import csv
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from cloister.demo._hospitals import FEATURES, Hospitals, write_hospitals

sklearn_datasets = pytest.importorskip("sklearn.datasets")


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return write_hospitals(tmp_path_factory.mktemp("demo"))


def read(path: Path, delimiter: str) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def test_every_value_and_diagnosis_is_the_data_sets_own(hospitals: Hospitals) -> None:
    bunch = sklearn_datasets.load_breast_cancer()
    assert len(hospitals.cases) == 569
    for case, row, target in zip(hospitals.cases, bunch.data, bunch.target, strict=True):
        assert [float(value) for value in case.values] == row.tolist()
        assert case.diagnosis == bunch.target_names[target]


def test_features_are_named_in_the_data_sets_order() -> None:
    def ours(theirs: str) -> str:
        for word, statistic in (("mean", "mean"), ("error", "se"), ("worst", "worst")):
            if word in theirs.split():
                measurement = "_".join(part for part in theirs.split() if part != word)
                return f"{measurement}_{statistic}"
        raise AssertionError(theirs)

    assert tuple(map(ours, sklearn_datasets.load_breast_cancer().feature_names)) == FEATURES


def test_each_run_writes_the_same_bytes(hospitals: Hospitals, tmp_path: Path) -> None:
    again = write_hospitals(tmp_path)
    first = hospitals.patients.parent
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert [str(name) for name in files] == [
        "hospital-a/README.md",
        "hospital-a/biopsies.csv",
        "hospital-b/README.md",
        "hospital-b/fna_export.csv",
        "patients.csv",
    ]
    for name in files:
        assert (first / name).read_bytes() == (tmp_path / name).read_bytes()
    assert again.cases == hospitals.cases


def test_patients_are_distinct_and_split_as_stated(hospitals: Hospitals) -> None:
    assert len({case.number for case in hospitals.cases}) == 569
    assert Counter(case.place for case in hospitals.cases) == {"a": 300, "b": 224, "both": 40, "held-out": 5}


def test_the_mess_is_as_stated(hospitals: Hospitals) -> None:
    quirks = Counter((case.place, case.quirk) for case in hospitals.cases if case.quirk)
    assert quirks == {
        ("a", "repeated"): 4,
        ("a", "unread"): 3,
        ("a", "blank"): 2,
        ("b", "millimetres"): 6,
        ("b", "unread"): 2,
        ("b", "blank"): 3,
        ("both", "blank"): 4,
        ("both", "millimetres"): 2,
        ("both", "mistyped"): 1,
        ("both", "contradicted"): 2,
    }
    assert (hospitals.rows_a, hospitals.rows_b) == (344, 264)


def test_the_two_hospitals_share_no_column_name_and_not_the_order(hospitals: Hospitals) -> None:
    a = read(hospitals.hospital_a / "biopsies.csv", ",")
    b = read(hospitals.hospital_b / "fna_export.csv", ";")
    assert (len(a), len(b)) == (hospitals.rows_a, hospitals.rows_b)
    assert not set(a[0]) & set(b[0])
    assert {row["Dx"] for row in a} == {"M", "B", "U"}
    assert {row["malignant"] for row in b} == {"1", "0", ""}
    assert any("," in value for value in b[0].values())


def test_every_column_is_described_beside_the_table(hospitals: Hospitals) -> None:
    for folder, names in (
        (hospitals.hospital_a, ("HealthNumber", "Dx", "Radius_mm", "Perimeter_mm", "Area_mm2")),
        (hospitals.hospital_b, ("patient_no", "malignant", "`rad`", "`peri`", "`area`", "`tex`", "NA")),
    ):
        readme = (folder / "README.md").read_text(encoding="utf-8")
        assert all(name in readme for name in names)
        assert "made up for a demonstration" in readme


def test_held_out_patients_are_at_no_hospital_and_carry_no_diagnosis(hospitals: Hospitals) -> None:
    rows = read(hospitals.patients, ",")
    assert list(rows[0]) == ["patient", *FEATURES]
    held_out = {case.number: case for case in hospitals.cases if case.place == "held-out"}
    assert {row["patient"] for row in rows} == set(held_out) == set(hospitals.diagnoses)
    for row in rows:
        case = held_out[row["patient"]]
        assert tuple(Decimal(row[name]) for name in FEATURES) == case.values
        assert hospitals.diagnoses[case.number] == case.diagnosis
    for path in (hospitals.hospital_a / "biopsies.csv", hospitals.hospital_b / "fna_export.csv"):
        digits = path.read_text(encoding="utf-8").replace("-", "").replace(" ", "")
        assert not [number for number in held_out if number in digits]
