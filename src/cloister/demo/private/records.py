"""At a hospital: makes of its cleaned biopsies the records that are sealed, and keeps a quarter of its patients back.

Reads ``INPUT/records.csv`` (``patient``, ``diagnosis``, 30 measurements). Writes ``OUTPUT/records.safetensors`` (the
measurements, whether malignant, and whose each row is) and ``TEST`` (the same table of the patients who are kept back),
and prints how many patients are in each.

* A row with a blank is left out.
* Who is kept back follows from SHA-256 of the health number, so that no hospital trains on another's test patients.
* The patient is the health number: somebody who went to both hospitals is one unit of privacy, not two.

    python records.py --input clean-a --output records-a --test test.csv
"""

import argparse
import csv
import hashlib
import json
from pathlib import Path

import torch

from cloister.privacy import write_records

Row = dict[str, str]


def is_test(patient: str) -> bool:
    """Whether the patient is kept back."""
    return hashlib.sha256(f"split {patient}".encode()).digest()[0] < 64


def main() -> None:
    """Reads, splits, writes and says how many patients went where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder with records.csv")
    parser.add_argument("--output", type=Path, required=True, help="folder to write records.safetensors into")
    parser.add_argument("--test", type=Path, required=True, help="table of the patients who are kept back")
    args = parser.parse_args()

    with (args.input / "records.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or [])
        rows: list[Row] = [row for row in reader if all(row.values())]
    train = [row for row in rows if not is_test(row["patient"])]
    test = [row for row in rows if is_test(row["patient"])]

    features = [name for name in columns if name not in ("patient", "diagnosis")]
    measurements = torch.tensor([[float(row[name]) for name in features] for row in train])
    malignant = torch.tensor([float(row["diagnosis"] == "malignant") for row in train])
    patients = torch.tensor([int(row["patient"]) for row in train])
    write_records(args.output, {"0": measurements, "1": malignant}, patients=patients)
    with args.test.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(test)
    print(json.dumps({"patients": len({row["patient"] for row in train}), "kept_back": len(test)}))


if __name__ == "__main__":
    main()
