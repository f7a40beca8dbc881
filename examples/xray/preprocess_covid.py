"""Brings the COVID-19 image collection (one table, one folder of pictures) into the common shape.

Reads ``INPUT/metadata.csv`` and ``INPUT/images/*.jpg`` of ieee8023/covid-chestxray-dataset. Writes
``OUTPUT/pictures/*.png`` (grey, square, 128 pixels), ``OUTPUT/index.csv`` (``picture``, ``patient``, ``label``,
``source``, ``view``, ``original``) and ``OUTPUT/report.json`` (what was kept, what was rejected and why).

* ``finding`` becomes one of three labels; what the collection has not labelled yet (``todo``), and what is none of
  the three, is rejected.
* Lateral views are rejected: the other source has none, so a model could tell the sources apart by them.
* A picture listed under two patient numbers stays listed twice: who is whom is settled where the sources meet.
* ``350a`` and ``350c`` count as one patient: the collection does not say what its letters mean, and two pictures of
  one person must not straddle training and test.

    python preprocess_covid.py --input chest_xray_ieee8023 --output clean-covid
"""

import argparse
import csv
import json
import re
from collections import Counter
from pathlib import Path

from PIL import Image, ImageOps

LABELS = {
    "COVID-19": "covid-19",
    "COVID-19, ARDS": "covid-19",
    "Bacterial": "pneumonia",
    "E.Coli": "pneumonia",
    "Influenza": "pneumonia",
    "Klebsiella": "pneumonia",
    "Legionella": "pneumonia",
    "Lipoid": "pneumonia",
    "Mycoplasma Bacterial Pneumonia": "pneumonia",
    "Pneumocystis": "pneumonia",
    "Pneumonia": "pneumonia",
    "Streptococcus": "pneumonia",
    "Varicella": "pneumonia",
    "No Finding": "no-finding",
}
VIEWS = {"PA": "pa", "AP": "ap", "AP Supine": "ap-supine"}
COLUMNS: tuple[str, ...] = ("picture", "patient", "label", "source", "view", "original")
SIZE = 128


class Rejected(Exception):
    """A row that cannot be used; the message is the reason it is counted under."""


def clean(row: dict[str, str]) -> dict[str, str]:
    """One row of the collection's table in the common shape."""
    if row["modality"] != "X-ray":
        raise Rejected("not an X-ray")
    if row["finding"] == "todo":
        raise Rejected("not labelled yet")
    if row["finding"] not in LABELS:
        raise Rejected(f"none of the three classes: {row['finding']}")
    if row["view"] == "L":
        raise Rejected("lateral view")
    if row["view"] not in VIEWS:
        raise Rejected("unknown view")
    number = re.fullmatch(r"(\d+)[a-z]?", row["patientid"])
    if number is None:
        raise Rejected("unreadable patient number")
    stem = Path(row["filename"]).stem
    return {
        "picture": f"covid-{stem}.png",
        "patient": f"covid-{number[1]}",
        "label": LABELS[row["finding"]],
        "source": "covid",
        "view": VIEWS[row["view"]],
        "original": stem,
    }


def square(path: Path) -> Image.Image:
    """The picture as a grey square: centre cut out, 1 % of the pixels clipped at each end of the grey scale.

    Padding would print the source's aspect ratio into the picture, and plain greys its scanner.
    """
    with Image.open(path) as picture:
        grey = ImageOps.fit(picture.convert("L"), (SIZE, SIZE), Image.Resampling.LANCZOS)
    return ImageOps.autocontrast(grey, cutoff=1)


def main() -> None:
    """Reads, cleans, writes and says how many rows went where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder with metadata.csv and images/")
    parser.add_argument("--output", type=Path, required=True, help="folder to write pictures and index into")
    args = parser.parse_args()

    with (args.input / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kept: list[dict[str, str]] = []
    rejected: Counter[str] = Counter()
    (args.output / "pictures").mkdir(parents=True, exist_ok=True)
    for row in rows:
        try:
            record = clean(row)
        except Rejected as reason:
            rejected[str(reason)] += 1
            continue
        square(args.input / "images" / Path(row["filename"]).name).save(args.output / "pictures" / record["picture"])
        kept.append(record)

    with (args.output / "index.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
    report = {
        "rows_read": len(rows),
        "rows_kept": len(kept),
        "rejected": dict(sorted(rejected.items())),
        "labels": dict(sorted(Counter(record["label"] for record in kept).items())),
    }
    (args.output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"covid collection: {len(rows)} rows read, {len(kept)} kept; rejected: {dict(sorted(rejected.items()))}")


if __name__ == "__main__":
    main()
