"""Pools the cleaned sources: one picture once, one person on one side of the split.

Reads ``index.csv``, ``report.json`` and ``pictures/`` of each input folder. Rules, in order:

1. Two entries show the same picture when their files have one original name, or when their pictures, shrunk to 16 by
   16 pixels, correlate above 0.995: that finds copies that were renamed, resized or compressed again. (In the data
   that this example was written for, copies reach 0.9999 and everything else stays below 0.98.)
2. Patient numbers that share a picture are one person, whichever collection gave them.
3. A picture whose copies disagree about the label is dropped, as is one of which no copy has a patient; of the
   others one copy is kept.
4. About a quarter of the pictures become the test set: person by person, within each class of each source, in the
   order of SHA-256 of the person's number. Nothing about the model is known here.

Writes ``OUTPUT/train.csv``, ``OUTPUT/test.csv``, ``OUTPUT/pictures/`` and ``OUTPUT/report.json``.

    python aggregate.py --input clean-covid --input clean-nih --output dataset
"""

import argparse
import csv
import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

SAME_PICTURE = 0.995
TEST_SHARE = 0.25
COLUMNS: tuple[str, ...] = ("picture", "person", "patient", "label", "source", "view", "original")

Entry = dict[str, str]


class Groups:
    """Things that turned out to be the same: disjoint sets, joined pair by pair."""

    def __init__(self) -> None:
        self._parent: dict[Hashable, Hashable] = {}

    def find(self, item: Hashable) -> Hashable:
        """The representative of the item's set."""
        while (parent := self._parent.setdefault(item, item)) != item:
            item = parent
        return item

    def join(self, items: Iterable[Hashable]) -> None:
        """Makes one set of the items' sets."""
        first, *rest = [self.find(item) for item in items]
        for item in rest:
            self._parent[self.find(item)] = self.find(first)


def fingerprint(path: Path) -> np.ndarray:
    """256 numbers of mean zero and length one: their dot product is the correlation of two pictures."""
    with Image.open(path) as picture:
        small = np.asarray(picture.convert("L").resize((16, 16), Image.Resampling.BOX), dtype=np.float64).ravel()
    centred = small - small.mean()
    length = np.linalg.norm(centred)
    # A picture of one single grey resembles nothing.
    return centred / length if length else centred


def same_pictures(entries: list[Entry], folders: list[Path]) -> list[list[int]]:
    """The entries' positions, grouped by the picture that they show."""
    groups = Groups()
    by_name: dict[str, list[int]] = defaultdict(list)
    for position, entry in enumerate(entries):
        groups.find(position)
        by_name[entry["original"]].append(position)
    for positions in by_name.values():
        groups.join(positions)
    prints = np.stack([fingerprint(f / "pictures" / e["picture"]) for e, f in zip(entries, folders, strict=True)])
    for left, right in np.argwhere(np.triu(prints @ prints.T, k=1) > SAME_PICTURE).tolist():
        groups.join((left, right))
    shown: dict[Hashable, list[int]] = defaultdict(list)
    for position in range(len(entries)):
        shown[groups.find(position)].append(position)
    return list(shown.values())


def test_persons(entries: list[Entry]) -> set[str]:
    """The persons of the test set: in each class of each source, until it has its share of pictures."""
    pictures = Counter((entry["source"], entry["label"]) for entry in entries)
    theirs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for entry in entries:
        theirs[entry["person"]].append((entry["source"], entry["label"]))
    chosen: set[str] = set()
    tested: Counter[tuple[str, str]] = Counter()
    # The rarest kind first: whoever has a rare picture takes the frequent ones along.
    for kind in sorted(pictures, key=lambda kind: (pictures[kind], kind)):
        persons = [person for person, kinds in theirs.items() if min(kinds, key=pictures.__getitem__) == kind]
        for person in sorted(persons, key=lambda person: hashlib.sha256(f"split {person}".encode()).digest()):
            if tested[kind] >= TEST_SHARE * pictures[kind]:
                break
            chosen.add(person)
            tested.update(theirs[person])
    return chosen


def write(path: Path, entries: list[Entry]) -> dict[str, dict[str, int]]:
    """One table; returns how many pictures of each source and label it has."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(entries, key=lambda entry: entry["picture"]))
    counts: dict[str, dict[str, int]] = {}
    for source in sorted({entry["source"] for entry in entries}):
        labels = Counter(entry["label"] for entry in entries if entry["source"] == source)
        counts[source] = dict(sorted(labels.items()))
    return counts


def main() -> None:
    """Reads the folders, pools, splits, writes and says what was dropped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, action="append", help="a folder of cleaned pictures")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the pooled set into")
    args = parser.parse_args()

    entries: list[Entry] = []
    folders: list[Path] = []
    sources: dict[str, object] = {}
    for folder in args.input:
        with (folder / "index.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        entries += rows
        folders += [folder] * len(rows)
        sources[folder.name] = json.loads((folder / "report.json").read_text(encoding="utf-8"))

    persons = Groups()
    pictures = same_pictures(entries, folders)
    for positions in pictures:
        if patients := [entries[position]["patient"] for position in positions if entries[position]["patient"]]:
            persons.join(patients)
    numbers = sorted({entry["patient"] for entry in entries if entry["patient"]})
    # A person is called by the first of their numbers, whatever the order in which they were found to be one.
    names = {persons.find(number): number for number in reversed(numbers)}
    kept: list[Entry] = []
    dropped: Counter[str] = Counter()
    (args.output / "pictures").mkdir(parents=True, exist_ok=True)
    for positions in pictures:
        known = [position for position in positions if entries[position]["patient"]]
        if len({entries[position]["label"] for position in positions}) > 1:
            dropped["copies disagree about the label"] += len(positions)
        elif not known:
            dropped["no copy has a patient"] += len(positions)
        else:
            dropped["copy of a picture that is kept"] += len(positions) - 1
            first = min(known, key=lambda position: (entries[position]["picture"], entries[position]["patient"]))
            entry, folder = entries[first], folders[first]
            kept.append(entry | {"person": names[persons.find(entry["patient"])]})
            shutil.copyfile(folder / "pictures" / entry["picture"], args.output / "pictures" / entry["picture"])

    tested = test_persons(kept)
    train = [entry for entry in kept if entry["person"] not in tested]
    test = [entry for entry in kept if entry["person"] in tested]
    report = {
        "sources": sources,
        "entries_read": len(entries),
        "pictures_kept": len(kept),
        "dropped": dict(sorted(dropped.items())),
        "persons": len({entry["person"] for entry in kept}),
        "patient_numbers_that_were_another_patient": len(numbers) - len(names),
        "train": {"persons": len({e["person"] for e in train}), "pictures": write(args.output / "train.csv", train)},
        "test": {"persons": len({e["person"] for e in test}), "pictures": write(args.output / "test.csv", test)},
    }
    (args.output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(
        f"pooled: {len(entries)} entries, {len(kept)} pictures of {report['persons']} persons; "
        f"dropped: {dict(sorted(dropped.items()))}; {len(train)} pictures to train, {len(test)} to test"
    )


if __name__ == "__main__":
    main()
