"""Two hospitals' folders made from 569 real biopsies: what the demo's data owners start with.

What is real: every measurement and diagnosis, from the Wisconsin diagnostic breast-cancer data that
scikit-learn carries (Wolberg, Street and Mangasarian, 1995; nothing is downloaded). What is made up for the demo:

* that there are two hospitals, who went to which, and the patients' health numbers;
* the unit: the data set names none for its lengths; the demo calls it the micrometre;
* the two shapes. Hospital A writes commas, millimetres, ``M``/``B`` and groups columns by statistic; hospital B
  writes semicolons, decimal commas, micrometres rounded to its own decimals, ``0``/``1`` and groups by measurement;
* the mess, so that there is something to reconcile: patients of both hospitals, rows exported twice, biopsies not
  read yet, blanks, rows of B in millimetres, a mistyped number, two diagnoses that contradict each other.

Rules:

* Everything is chosen by SHA-256 of the row's number, so each run writes the same bytes, and nobody picked a row by
  how easy it is to predict.
* Five patients are at neither hospital: the model's user asks about them, and their diagnosis is known here.
* :attr:`Hospitals.cases` is the truth, by which a test can check that reconciliation is exact.
"""

import csv
import hashlib
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Literal

MEASUREMENTS = (
    "radius",
    "texture",
    "perimeter",
    "area",
    "smoothness",
    "compactness",
    "concavity",
    "concave_points",
    "symmetry",
    "fractal_dimension",
)
STATISTICS = ("mean", "se", "worst")

FEATURES = tuple(f"{measurement}_{statistic}" for statistic in STATISTICS for measurement in MEASUREMENTS)
"""The 30 canonical columns, in the data set's own order; lengths in µm, areas in µm²."""

Place = Literal["a", "b", "both", "held-out"]
Quirk = Literal["", "repeated", "unread", "blank", "millimetres", "mistyped", "contradicted"]

_HELD_OUT, _BOTH, _ONLY_B = 5, 40, 224  # the other 300 went to hospital A only

_QUIRKS: dict[Place, tuple[tuple[Quirk, int], ...]] = {
    "a": (("repeated", 4), ("unread", 3), ("blank", 2)),
    "b": (("millimetres", 6), ("unread", 2), ("blank", 3)),
    "both": (("blank", 4), ("millimetres", 2), ("mistyped", 1), ("contradicted", 2)),
    "held-out": (),
}

_POWER = {"radius": 1, "perimeter": 1, "area": 2}  # of a length; the other measurements have no length in them
_DECIMALS_B = {"radius": 2, "texture": 2, "perimeter": 2, "area": 1}  # of µm and µm²; four for the ratios


@dataclass(frozen=True, slots=True)
class Case:
    """One patient as the data set has it, and what the demo does to the record.

    Attributes:
        number: The made-up health number, nine digits.
        malignant: The diagnosis.
        values: The 30 measurements in the order of ``FEATURES``, exact.
        place: Where the patient went.
        quirk: What is wrong with a record of this patient; of a patient of both hospitals, ``blank`` is in A's
            record and every other quirk in B's.
        blank: The feature that a ``blank`` record lacks.
    """

    number: str
    malignant: bool
    values: tuple[Decimal, ...]
    place: Place
    quirk: Quirk
    blank: str

    @property
    def diagnosis(self) -> str:
        """``malignant`` or ``benign``."""
        return "malignant" if self.malignant else "benign"

    def rounded(self) -> tuple[Decimal, ...]:
        """The measurements as hospital B rounds them, in µm and µm²."""
        return tuple(
            value.quantize(Decimal(1).scaleb(-_DECIMALS_B.get(_measurement(name), 4)), rounding=ROUND_HALF_EVEN)
            for name, value in zip(FEATURES, self.values, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Hospitals:
    """What was written, and the truth behind it.

    Attributes:
        hospital_a: Folder of hospital A: ``biopsies.csv`` and its README.
        hospital_b: Folder of hospital B: ``fna_export.csv`` and its README.
        patients: CSV of the five held-out patients: ``patient`` and the 30 canonical columns, no diagnosis.
        rows_a: Rows of hospital A's table.
        rows_b: Rows of hospital B's table.
        diagnoses: The held-out patients' true diagnoses, by health number.
        cases: Every patient, in the data set's order.
    """

    hospital_a: Path
    hospital_b: Path
    patients: Path
    rows_a: int
    rows_b: int
    diagnoses: dict[str, str]
    cases: tuple[Case, ...]


def write_hospitals(folder: Path) -> Hospitals:
    """Writes ``hospital-a/``, ``hospital-b/`` and ``patients.csv`` under ``folder``, the same bytes each time.

    Args:
        folder: Where to write; made if it is missing.

    Returns:
        The paths, the counts and the truth.

    Raises:
        ImportError: scikit-learn is not installed (it is part of the extra ``demo``).
        OSError: the folder cannot be written.
    """
    cases = _cases()
    hospital_a, hospital_b = folder / "hospital-a", folder / "hospital-b"
    for place in (hospital_a, hospital_b):
        place.mkdir(parents=True, exist_ok=True)
    rows_a = _table_a(cases)
    _write_csv(hospital_a / "biopsies.csv", rows_a, delimiter=",")
    (hospital_a / "README.md").write_text(_README_A, encoding="utf-8")
    rows_b = _table_b(cases)
    _write_csv(hospital_b / "fna_export.csv", rows_b, delimiter=";")
    (hospital_b / "README.md").write_text(_README_B, encoding="utf-8")
    held_out = [case for case in cases if case.place == "held-out"]
    patients = folder / "patients.csv"
    _write_csv(
        patients,
        [["patient", *FEATURES], *([case.number, *map(_text, case.values)] for case in held_out)],
        delimiter=",",
    )
    return Hospitals(
        hospital_a=hospital_a,
        hospital_b=hospital_b,
        patients=patients,
        rows_a=len(rows_a) - 1,
        rows_b=len(rows_b) - 1,
        diagnoses={case.number: case.diagnosis for case in held_out},
        cases=cases,
    )


def _cases() -> tuple[Case, ...]:
    """Every patient of the data set with place and quirk, both by hash of the row's number."""
    import numpy as np
    from sklearn.datasets import load_breast_cancer

    measured, diagnosed = load_breast_cancer(return_X_y=True)
    rows, targets = np.asarray(measured).tolist(), np.asarray(diagnosed).tolist()
    order = sorted(range(len(rows)), key=lambda row: _hash("place", row))
    places: dict[int, Place] = {}
    quirks: dict[int, Quirk] = {}
    for row in order:
        taken = len(places)
        places[row] = (
            "held-out"
            if taken < _HELD_OUT
            else "both"
            if taken < _HELD_OUT + _BOTH
            else "b"
            if taken < _HELD_OUT + _BOTH + _ONLY_B
            else "a"
        )
    for place, wanted in _QUIRKS.items():
        free = iter([row for row in order if places[row] == place])
        quirks.update({next(free): quirk for quirk, count in wanted for _ in range(count)})
    return tuple(
        Case(
            number=f"{_hash('number', row) % 10**9:09d}",
            malignant=target == 0,  # scikit-learn's order is malignant, benign: the opposite of hospital B's
            values=tuple(Decimal(repr(value)) for value in values),
            place=places[row],
            quirk=quirks.get(row, ""),
            blank=FEATURES[_hash("blank", row) % len(FEATURES)],
        )
        for row, (values, target) in enumerate(zip(rows, targets, strict=True))
    )


def _table_a(cases: tuple[Case, ...]) -> list[list[str]]:
    """Hospital A's header and rows: millimetres, by statistic, ``Dx`` last."""
    columns = [f"{measurement}_{statistic}" for statistic in ("worst", "mean", "se") for measurement in MEASUREMENTS]
    rows: list[list[str]] = []
    for case in _shuffled(cases, "a"):
        values = dict(zip(FEATURES, case.values, strict=True))
        measured = {name: _text(_millimetres(name, value)) for name, value in values.items()}
        if case.quirk == "blank":
            measured[case.blank] = ""
        dx = "U" if case.quirk == "unread" else "M" if case.malignant else "B"
        number = f"HN-{case.number[:3]}-{case.number[3:6]}-{case.number[6:]}"
        rows.append([number, *(measured[name] for name in columns), dx])
        if case.quirk == "repeated":
            rows.append(rows[-1])
    return [["HealthNumber", *map(_name_a, columns), "Dx"], *rows]


def _table_b(cases: tuple[Case, ...]) -> list[list[str]]:
    """Hospital B's header and rows: rounded micrometres, decimal commas, by measurement, ``malignant`` second."""
    columns = [f"{measurement}_{statistic}" for measurement in MEASUREMENTS for statistic in STATISTICS]
    rows: list[list[str]] = []
    for case in _shuffled(cases, "b"):
        values = dict(zip(FEATURES, case.rounded(), strict=True))
        if case.quirk == "millimetres":
            values = {name: _millimetres(name, value) for name, value in values.items()}
        measured = {name: f"{value:f}".replace(".", ",") for name, value in values.items()}
        if case.quirk == "blank" and case.place == "b":
            measured[case.blank] = "NA"
        if case.quirk == "mistyped":
            measured["perimeter_worst"] = _transposed(measured["perimeter_worst"])
        malignant = case.malignant != (case.quirk == "contradicted")
        flag = "" if case.quirk == "unread" else str(int(malignant))
        rows.append([f"{case.number[:3]} {case.number[3:6]} {case.number[6:]}", flag, *(measured[n] for n in columns)])
    return [["patient_no", "malignant", *map(_name_b, columns)], *rows]


def _shuffled(cases: tuple[Case, ...], hospital: Literal["a", "b"]) -> list[Case]:
    """The hospital's patients, in an order of its own."""
    seen = [(row, case) for row, case in enumerate(cases) if case.place in (hospital, "both")]
    return [case for _, case in sorted(seen, key=lambda item: _hash(f"order-{hospital}", item[0]))]


def _name_a(feature: str) -> str:
    """Hospital A's name of a column: ``area_worst`` is ``WorstArea_mm2``."""
    measurement, statistic = feature.rsplit("_", 1)
    words = "".join(word.capitalize() for word in measurement.split("_"))
    return f"{statistic.capitalize()}{words}{('', '_mm', '_mm2')[_POWER.get(measurement, 0)]}"


def _name_b(feature: str) -> str:
    """Hospital B's name of a column: ``concave_points_worst`` is ``concpts.max``."""
    measurement, statistic = feature.rsplit("_", 1)
    return f"{_SHORT_B[measurement]}.{ {'mean': 'avg', 'se': 'se', 'worst': 'max'}[statistic] }"


_SHORT_B: dict[str, str] = {
    "radius": "rad",
    "texture": "tex",
    "perimeter": "peri",
    "area": "area",
    "smoothness": "smooth",
    "compactness": "compact",
    "concavity": "concav",
    "concave_points": "concpts",
    "symmetry": "sym",
    "fractal_dimension": "fracdim",
}


def _measurement(feature: str) -> str:
    return feature.rsplit("_", 1)[0]


def _millimetres(feature: str, value: Decimal) -> Decimal:
    """From µm or µm² to mm or mm², exactly; other measurements as they are."""
    return value.scaleb(-3 * _POWER.get(_measurement(feature), 0))


def _text(value: Decimal) -> str:
    """Plain digits, without an exponent or trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _transposed(text: str) -> str:
    """The number with its first two unequal neighbouring digits exchanged."""
    for at in range(len(text) - 1):
        if text[at] != text[at + 1] and (text[at] + text[at + 1]).isdigit():
            return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text


def _hash(label: str, row: int) -> int:
    return int.from_bytes(hashlib.sha256(f"cloister demo {label} {row}".encode()).digest()[:8], "big")


def _write_csv(path: Path, rows: list[list[str]], *, delimiter: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)


_NOTE = """\
The measurements are real: fine needle aspirates of breast masses, Wisconsin diagnostic data (Wolberg, Street and
Mangasarian, 1995; CC BY 4.0 at the UCI repository). The hospital, the health numbers, the units and the mistakes
are made up for a demonstration.
"""

_README_A = f"""\
# Hospital A: biopsies.csv

Comma-separated, one row a biopsy. A row may have been exported twice.

| column | meaning |
|---|---|
| `HealthNumber` | national health number, `HN-ddd-ddd-ddd` |
| `Worst…`, `Mean…`, `Se…` | mean of the three largest nuclei, mean, standard error |
| `…Radius_mm`, `…Perimeter_mm` | millimetres |
| `…Area_mm2` | square millimetres |
| the other measurements | no unit; blank where the slide could not be measured |
| `Dx` | `M` malignant, `B` benign, `U` not read yet |

{_NOTE}"""

_README_B = f"""\
# Hospital B: fna_export.csv

Semicolon-separated, decimal comma, one row a patient, `NA` where a value is missing.

| column | meaning |
|---|---|
| `patient_no` | national health number, `ddd ddd ddd` |
| `malignant` | `1` malignant, `0` benign, blank: pathology has not reported |
| `….avg`, `….se`, `….max` | mean, standard error, mean of the three largest nuclei |
| `rad`, `peri` | micrometres, two decimals |
| `area` | square micrometres, one decimal |
| `tex` | standard deviation of grey values, two decimals |
| the other measurements | ratios, four decimals |

Known fault: one microscope reports millimetres and square millimetres. Its rows are not marked; a mean radius below
0.1 gives them away.

{_NOTE}"""
