"""Joins the hospitals' cleaned records into one patient, one row, and splits them into training and test.

Reads ``records.csv`` and ``report.json`` of each input folder. Rules, in order:

1. Records of one patient are joined by health number. Where both hospitals measured a value, the one with more
   digits is kept: the other is the same value rounded. Where only one measured it, that one is kept.
2. A patient is set aside, and counted, when the hospitals contradict each other's diagnosis, when a value differs by
   more than rounding explains, or when a measurement is missing at every hospital.
3. A patient goes to the test set when SHA-256 of the health number falls in the lowest quarter: so the split depends
   neither on the order of the rows nor on anything measured, and no patient can be on both sides.

Nothing is fitted here. Writes ``OUTPUT/train.csv``, ``OUTPUT/test.csv`` and ``OUTPUT/report.json``.

    python aggregate.py --input clean-a --input clean-b --output dataset
"""

import argparse
import csv
import hashlib
import json
from collections import Counter
from decimal import Decimal
from pathlib import Path

Record = dict[str, str]


class SetAside(Exception):
    """A patient who cannot be used; the message is the reason the patient is counted under."""


def join(records: list[Record]) -> Record:
    """One patient's records as one."""
    if len({record["diagnosis"] for record in records}) > 1:
        raise SetAside("diagnoses contradict each other")
    joined = {"patient": records[0]["patient"], "diagnosis": records[0]["diagnosis"]}
    for feature in [name for name in records[0] if name not in joined]:
        joined[feature] = reconcile([Decimal(record[feature]) for record in records if record[feature]])
    return joined


def reconcile(values: list[Decimal]) -> str:
    """The most precise of a patient's values for one measurement, if the others are that value rounded."""
    if not values:
        raise SetAside("a measurement is missing")
    best = max(values, key=decimals)
    for value in values:
        # Half a unit of the coarser value's last digit is what rounding can move.
        if abs(value - best) > Decimal("0.5").scaleb(-decimals(value)):
            raise SetAside("measurements contradict each other")
    return f"{best:f}"


def decimals(value: Decimal) -> int:
    """Digits after the decimal point."""
    exponent = value.as_tuple().exponent
    return -exponent if isinstance(exponent, int) else 0


def is_test(patient: str) -> bool:
    """Whether the patient belongs to the test set."""
    return hashlib.sha256(f"split {patient}".encode()).digest()[0] < 64


def write(path: Path, columns: list[str], rows: list[Record]) -> None:
    """One table, patients in order of their number."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Reads the folders, joins, splits, writes and says what was set aside."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, action="append", help="a folder of cleaned records")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the joined tables into")
    args = parser.parse_args()

    patients: dict[str, list[Record]] = {}
    columns: list[str] = []
    sources: dict[str, object] = {}
    for folder in args.input:
        with (folder / "records.csv").open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            columns = columns or list(reader.fieldnames or [])
            if list(reader.fieldnames or []) != columns:
                parser.error(f"{folder}: columns differ from those of {args.input[0]}")
            for record in reader:
                patients.setdefault(record["patient"], []).append(record)
        sources[folder.name] = json.loads((folder / "report.json").read_text(encoding="utf-8"))

    joined: list[Record] = []
    aside: Counter[str] = Counter()
    for _, records in sorted(patients.items()):
        try:
            joined.append(join(records))
        except SetAside as reason:
            aside[str(reason)] += 1
    train = [row for row in joined if not is_test(row["patient"])]
    test = [row for row in joined if is_test(row["patient"])]

    args.output.mkdir(parents=True, exist_ok=True)
    write(args.output / "train.csv", columns, train)
    write(args.output / "test.csv", columns, test)
    report = {
        "sources": sources,
        "patients": len(patients),
        "patients_with_several_records": sum(len(records) > 1 for records in patients.values()),
        "set_aside": dict(sorted(aside.items())),
        "train": {"patients": len(train), "malignant": sum(row["diagnosis"] == "malignant" for row in train)},
        "test": {"patients": len(test), "malignant": sum(row["diagnosis"] == "malignant" for row in test)},
    }
    (args.output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    reasons = ", ".join(f"{count} because {reason}" for reason, count in sorted(aside.items()))
    print(
        f"{len(patients)} patients, {report['patients_with_several_records']} of them with several records; "
        f"set aside: {reasons or 'none'}; {len(train)} to train, {len(test)} to test"
    )


if __name__ == "__main__":
    main()
