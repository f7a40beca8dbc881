"""Brings hospital A's biopsies into the common table.

Reads ``INPUT/biopsies.csv``: commas, millimetres, ``Dx`` of ``M``, ``B`` or ``U`` (not read yet).
Writes ``OUTPUT/records.csv`` (``patient``, ``diagnosis``, 30 measurements in µm and µm², blank where not measured)
and ``OUTPUT/report.json`` (rows read, kept, and rejected by reason).

    python preprocess_a.py --input hospital-a --output clean-a
"""

import argparse
import csv
import json
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path

MEASUREMENTS = (
    ("radius", "Radius_mm", 3),  # our name, hospital A's, and the power of ten from its unit to ours
    ("texture", "Texture", 0),
    ("perimeter", "Perimeter_mm", 3),
    ("area", "Area_mm2", 6),
    ("smoothness", "Smoothness", 0),
    ("compactness", "Compactness", 0),
    ("concavity", "Concavity", 0),
    ("concave_points", "ConcavePoints", 0),
    ("symmetry", "Symmetry", 0),
    ("fractal_dimension", "FractalDimension", 0),
)
COLUMNS = {
    f"{name}_{statistic}": (f"{statistic.capitalize()}{theirs}", power)
    for statistic in ("mean", "se", "worst")
    for name, theirs, power in MEASUREMENTS
}
DIAGNOSES = {"M": "malignant", "B": "benign"}


class Rejected(Exception):
    """A row that cannot be used; the message is the reason it is counted under."""


def clean(row: dict[str, str]) -> list[str]:
    """One of hospital A's rows in the common shape."""
    number = re.fullmatch(r"HN-(\d{3})-(\d{3})-(\d{3})", row["HealthNumber"].strip())
    if number is None:
        raise Rejected("unreadable health number")
    diagnosis = DIAGNOSES.get(row["Dx"].strip())
    if diagnosis is None:
        raise Rejected("not read yet" if row["Dx"].strip() == "U" else "unknown diagnosis")
    measured = (micrometres(row[theirs].strip(), power) for theirs, power in COLUMNS.values())
    return ["".join(number.groups()), diagnosis, *measured]


def micrometres(text: str, power: int) -> str:
    """The value in our unit, digit for digit; blank stays blank."""
    if not text:
        return ""
    if not re.fullmatch(r"\d{1,7}(\.\d{1,12})?", text):
        raise Rejected("unreadable number")
    return f"{Decimal(text).scaleb(power):f}"


def main() -> None:
    """Reads, cleans, writes and says how many rows went where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder with biopsies.csv")
    parser.add_argument("--output", type=Path, required=True, help="folder to write records.csv and report.json into")
    args = parser.parse_args()

    with (args.input / "biopsies.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kept: list[list[str]] = []
    rejected: Counter[str] = Counter()
    for row in rows:
        try:
            record = clean(row)
            if record in kept:
                raise Rejected("exported twice")
            kept.append(record)
        except Rejected as reason:
            rejected[str(reason)] += 1

    args.output.mkdir(parents=True, exist_ok=True)
    with (args.output / "records.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["patient", "diagnosis", *COLUMNS], *kept])
    report = {
        "rows_read": len(rows),
        "rows_kept": len(kept),
        "corrected": {"millimetres to micrometres": len(kept)},
        "rejected": dict(sorted(rejected.items())),
    }
    (args.output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(rejected.items()))
    print(f"hospital A: {len(rows)} rows read, {len(kept)} kept; rejected: {reasons or 'none'}")


if __name__ == "__main__":
    main()
