"""At a hospital: makes of its cleaned pictures the records that are sealed, and keeps a quarter of its patients back.

For the private variant (``run.py --private``), where no script of a stage may read the pictures. Reads ``index.csv``
and ``pictures/`` of what a preprocessing script wrote; writes ``OUTPUT/records.safetensors`` (grey pictures, labels,
and whose each picture is) and ``TEST`` (the pictures of the patients who are kept back), and prints how
many patients are in each.

* A picture without a patient is dropped: nobody could say whose privacy it costs.
* Who is kept back follows from SHA-256 of the patient's number.
* One patient is one unit of privacy, however many pictures there are; the manifest says how many of them count.

    python records.py --input clean-covid --output records-covid --test test-covid.csv [--size 48]
"""

import argparse
import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cloister.privacy import write_records

CLASSES = ("covid-19", "no-finding", "pneumonia")
TEST_SHARE = 64  # of 256


def number(patient: str) -> int:
    """The patient as 63 bits: the same in every file that has the same number."""
    return int.from_bytes(hashlib.sha256(f"patient {patient}".encode()).digest()[:8], "big") >> 1


def is_test(patient: str) -> bool:
    """Whether the patient is kept back."""
    return hashlib.sha256(f"split {patient}".encode()).digest()[0] < TEST_SHARE


def main() -> None:
    """Reads, splits, writes and says how many patients went where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder of cleaned pictures")
    parser.add_argument("--output", type=Path, required=True, help="folder to write records.safetensors into")
    parser.add_argument("--test", type=Path, required=True, help="table of the pictures that are kept back")
    parser.add_argument("--size", type=int, default=48, help="side of the pictures in pixels (48)")
    args = parser.parse_args()

    with (args.input / "index.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or [])
        rows = [row for row in reader if row["patient"]]
    train = [row for row in rows if not is_test(row["patient"])]
    test = [row for row in rows if is_test(row["patient"])]

    arrays: list[np.ndarray] = []
    for row in train:
        with Image.open(args.input / "pictures" / row["picture"]) as picture:
            small = picture.convert("L").resize((args.size, args.size), Image.Resampling.LANCZOS)
        arrays.append(np.asarray(small))
    images = torch.from_numpy(np.stack(arrays)).unsqueeze(1)
    labels = torch.tensor([CLASSES.index(row["label"]) for row in train])
    patients = torch.tensor([number(row["patient"]) for row in train])
    write_records(args.output, {"0": images, "1": labels}, patients=patients)
    with args.test.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(test)
    counts = {"patients": len({row["patient"] for row in train}), "pictures": len(train), "kept_back": len(test)}
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
