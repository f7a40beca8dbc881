"""Brings hospital B's export into the common table.

Reads ``INPUT/fna_export.csv``: semicolons, decimal commas, micrometres, ``malignant`` of ``1``, ``0`` or blank. Some
unmarked rows are in millimetres: no nucleus has a mean radius below 0.1 µm or above 100 µm, so the radius tells.
Writes ``OUTPUT/records.csv`` (``patient``, ``diagnosis``, 30 measurements in µm and µm², blank where not measured)
and ``OUTPUT/report.json`` (rows read, kept, corrected, and rejected by reason).

    python preprocess_b.py --input hospital-b --output clean-b
"""

import argparse
import csv
import json
import math
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path

MEASUREMENTS = (
    ("radius", "rad", 1),  # our name, hospital B's, and how many lengths are multiplied in it
    ("texture", "tex", 0),
    ("perimeter", "peri", 1),
    ("area", "area", 2),
    ("smoothness", "smooth", 0),
    ("compactness", "compact", 0),
    ("concavity", "concav", 0),
    ("concave_points", "concpts", 0),
    ("symmetry", "sym", 0),
    ("fractal_dimension", "fracdim", 0),
)
STATISTICS = (("mean", "avg"), ("se", "se"), ("worst", "max"))
COLUMNS = {
    f"{name}_{statistic}": (f"{theirs}.{suffix}", lengths)
    for statistic, suffix in STATISTICS
    for name, theirs, lengths in MEASUREMENTS
}
DIAGNOSES = {"1": "malignant", "0": "benign"}
MILLIMETRES = 3  # powers of ten between a millimetre and a micrometre


class Rejected(Exception):
    """A row that cannot be used; the message is the reason it is counted under."""


def clean(row: dict[str, str]) -> tuple[list[str], bool]:
    """One of hospital B's rows in the common shape, and whether it was in millimetres."""
    number = re.fullmatch(r"(\d{3}) (\d{3}) (\d{3})", row["patient_no"].strip())
    if number is None:
        raise Rejected("unreadable patient number")
    flag = row["malignant"].strip()
    if flag not in DIAGNOSES:
        raise Rejected("unknown diagnosis" if flag else "not reported yet")
    values = {name: parse(row[theirs].strip()) for name, (theirs, _) in COLUMNS.items()}
    power = unit(values["radius_mean"])
    scaled = {name: None if value is None else value.scaleb(power * COLUMNS[name][1]) for name, value in values.items()}
    check_circle(scaled["radius_mean"], scaled["area_mean"])
    measured = ("" if value is None else f"{value:f}" for value in scaled.values())
    return ["".join(number.groups()), DIAGNOSES[flag], *measured], power != 0


def parse(text: str) -> Decimal | None:
    """The number behind a decimal comma; nothing for ``NA``."""
    if text == "NA":
        return None
    if not re.fullmatch(r"\d{1,7}(,\d{1,12})?", text):
        raise Rejected("unreadable number")
    return Decimal(text.replace(",", "."))


def unit(radius: Decimal | None) -> int:
    """The power of ten by which this row's lengths are too small."""
    if radius is None:
        raise Rejected("no mean radius, so no unit")
    if 1 <= radius <= 100:
        return 0
    if 1 <= radius.scaleb(MILLIMETRES) <= 100:
        return MILLIMETRES
    raise Rejected("impossible radius")


def check_circle(radius: Decimal | None, area: Decimal | None) -> None:
    """A nucleus is nearly round: mean area and mean radius must fit each other."""
    if radius is None or area is None:
        return
    if not 0.8 <= float(area) / (math.pi * float(radius) ** 2) <= 1.25:
        raise Rejected("radius and area disagree")


def main() -> None:
    """Reads, cleans, writes and says how many rows went where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder with fna_export.csv")
    parser.add_argument("--output", type=Path, required=True, help="folder to write records.csv and report.json into")
    args = parser.parse_args()

    with (args.input / "fna_export.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    kept: list[list[str]] = []
    rejected: Counter[str] = Counter()
    converted = 0
    for row in rows:
        try:
            record, was_millimetres = clean(row)
            if record in kept:
                raise Rejected("exported twice")
            kept.append(record)
            converted += was_millimetres
        except Rejected as reason:
            rejected[str(reason)] += 1

    args.output.mkdir(parents=True, exist_ok=True)
    with (args.output / "records.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["patient", "diagnosis", *COLUMNS], *kept])
    report = {
        "rows_read": len(rows),
        "rows_kept": len(kept),
        "corrected": {"millimetres to micrometres": converted},
        "rejected": dict(sorted(rejected.items())),
    }
    (args.output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(rejected.items()))
    print(
        f"hospital B: {len(rows)} rows read, {len(kept)} kept, {converted} of them converted from millimetres; "
        f"rejected: {reasons or 'none'}"
    )


if __name__ == "__main__":
    main()
