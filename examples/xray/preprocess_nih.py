"""Brings the NIH pictures (a folder a class, a list of fourteen bits) into the common shape.

Reads ``INPUT/<class>/*.jpg`` and ``INPUT/nih14_labels.txt``. Writes ``OUTPUT/pictures/*.png`` (grey, square, 128
pixels), ``OUTPUT/index.csv`` (``picture``, ``patient``, ``label``, ``source``, ``view``, ``original``) and
``OUTPUT/report.json`` (what was kept, what was rejected and why).

* The folder says the label. Where NIH's own label list disagrees (a picture in ``Pneumonia`` without the pneumonia
  bit, a picture in ``No_findings`` with any bit), the picture is rejected.
* The patient is the first part of the name, ``<patient>_<follow-up>.jpg``; one patient has several pictures.
* ``Covid-19`` holds copies from another collection, with neither patient nor bits. They stay, without a patient:
  where the sources meet they are either recognised or dropped.
* The view is not recorded.

    python preprocess_nih.py --input chest_xray_nih --output clean-nih
"""

import argparse
import csv
import json
import re
from collections import Counter
from pathlib import Path

from PIL import Image, ImageOps

LABELS = {"Covid-19": "covid-19", "No_findings": "no-finding", "Pneumonia": "pneumonia"}
BITS, PNEUMONIA = 14, 6  # how many findings the list has, and which of them is pneumonia
COLUMNS: tuple[str, ...] = ("picture", "patient", "label", "source", "view", "original")
SIZE = 128


class Rejected(Exception):
    """A picture that cannot be used; the message is the reason it is counted under."""


def clean(path: Path, bits: dict[str, list[int]]) -> dict[str, str]:
    """One picture's row in the common shape."""
    label = LABELS[path.parent.name]
    patient = ""
    if label != "covid-19":
        number = re.fullmatch(r"(\d+)_\d+", path.stem)
        if number is None:
            raise Rejected("unreadable patient number")
        patient = f"nih-{number[1]}"
        if path.name not in bits:
            raise Rejected("not in the label list")
        if label == "pneumonia" and not bits[path.name][PNEUMONIA]:
            raise Rejected("folder says pneumonia, label list does not")
        if label == "no-finding" and any(bits[path.name]):
            raise Rejected("folder says no finding, label list names one")
    return {
        "picture": f"nih-{path.stem}.png",
        "patient": patient,
        "label": label,
        "source": "nih",
        "view": "unknown",
        "original": path.stem,
    }


def square(path: Path) -> Image.Image:
    """The picture as a grey square: centre cut out, 1 % of the pixels clipped at each end of the grey scale.

    Padding would print the source's aspect ratio into the picture, and plain greys its scanner.
    """
    with Image.open(path) as picture:
        grey = ImageOps.fit(picture.convert("L"), (SIZE, SIZE), Image.Resampling.LANCZOS)
    return ImageOps.autocontrast(grey, cutoff=1)


def read_bits(path: Path) -> dict[str, list[int]]:
    """The label list: fourteen bits by file name."""
    bits: dict[str, list[int]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, *values = line.split()
        bits[name] = [int(value) for value in values]
        if len(values) != BITS:
            raise SystemExit(f"{path}: {name} has {len(values)} bits, not {BITS}")
    return bits


def main() -> None:
    """Reads, cleans, writes and says how many pictures went where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder with the class folders and nih14_labels.txt")
    parser.add_argument("--output", type=Path, required=True, help="folder to write pictures and index into")
    args = parser.parse_args()

    bits = read_bits(args.input / "nih14_labels.txt")
    paths = sorted(path for folder in LABELS for path in (args.input / folder).glob("*.jpg"))
    kept: list[dict[str, str]] = []
    rejected: Counter[str] = Counter()
    (args.output / "pictures").mkdir(parents=True, exist_ok=True)
    for path in paths:
        try:
            record = clean(path, bits)
        except Rejected as reason:
            rejected[str(reason)] += 1
            continue
        square(path).save(args.output / "pictures" / record["picture"])
        kept.append(record)

    with (args.output / "index.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
    report = {
        "pictures_read": len(paths),
        "pictures_kept": len(kept),
        "rejected": dict(sorted(rejected.items())),
        "labels": dict(sorted(Counter(record["label"] for record in kept).items())),
    }
    (args.output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"NIH: {len(paths)} pictures read, {len(kept)} kept; rejected: {dict(sorted(rejected.items()))}")


if __name__ == "__main__":
    main()
