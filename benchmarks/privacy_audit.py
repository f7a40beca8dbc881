"""Audits: what canaries show of the right engine and of broken ones, and what a membership test finds of each record.

    python benchmarks/privacy_audit.py --quick             a small network, few canaries, to see that it runs
    python benchmarks/privacy_audit.py --json F --plots D  more steps and canaries; pictures into the folder D

*Canaries*: a table of one audit each. ε claimed; shown by guesses alone, at 95 %; implied by the noise and the reach
that were measured; and which findings contradict the claim, at a false alarm of one in a million. The broken engines
are those of the tests (``tests/broken_engines.py``). The batch norm is audited with less noise than the others.

*Membership*: models trained on random halves of bank_marketing, as many steps privately and not; true positives at
0.1 % false ones. The data's folder is CLOISTER_TEST_DATA, or ../shared/data; without it, that part is left out.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from _machine import facts

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the broken engines are with the tests

from tests.broken_engines import BROKEN, accepting_batch_norms, audited  # noqa: E402

from cloister.privacy import CanaryReport, Membership, logit_confidence, make_private, membership_test  # noqa: E402

FALSE_ALARM = 1e-6
QUICK = ("right", "no noise", "clipped too late", "shuffled", "drawn twice")


def canaries(name: str, *, quick: bool) -> tuple[CanaryReport, float]:
    """One audit, and its seconds."""
    normed = name == "batch norm"
    settings: dict[str, Any] = {"canaries": 100 if quick else 400, "noise_multiplier": "0.5" if normed else "2"}
    start = time.perf_counter()
    with accepting_batch_norms() if normed else nullcontext():
        audit = audited(normed=normed, **settings)
        if name in BROKEN:
            BROKEN[name][0](audit)
        report = audit.run(epochs=4 if quick else 12, false_alarm=FALSE_ALARM)
    return report, time.perf_counter() - start


def bank(records: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """So many rows of bank_marketing, categories as columns of zeros and ones, labels balanced."""
    path = Path(os.environ.get("CLOISTER_TEST_DATA", ROOT.parent / "shared" / "data")) / "bank_marketing/train.csv.gz"
    if not path.exists():
        return None
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    wanted = [[row for row in rows if row["y"] == answer][: records // 2] for answer in ("yes", "no")]
    rows = [*wanted[0], *wanted[1]]
    columns = []
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name == "y":
            continue
        try:
            numbers = np.array([float(value) for value in values])
            columns.append((numbers - numbers.mean()) / (numbers.std() + 1e-9))
        except ValueError:
            columns += [np.array([value == kind for value in values], float) for kind in sorted(set(values))]
    labels = torch.tensor([int(row["y"] == "yes") for row in rows])
    return torch.tensor(np.stack(columns, 1), dtype=torch.float32), labels


def trainer(
    x: torch.Tensor, y: torch.Tensor, *, epochs: int, epsilon: str | None
) -> Callable[[Sequence[int]], np.ndarray]:
    """Trains a network on some rows, and scores all."""

    def train(rows: Sequence[int]) -> np.ndarray:
        model: Any = nn.Sequential(nn.Linear(x.shape[1], 256), nn.ReLU(), nn.Linear(256, 2))
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
        picked = torch.tensor(rows)
        loader: Any = DataLoader(TensorDataset(x[picked], y[picked]), batch_size=50, shuffle=True)
        if epsilon is not None:
            model, optimizer, loader = make_private(
                model, optimizer, loader, clip=1.0, epsilon=epsilon, delta="1e-5", epochs=epochs
            )
        for _ in range(epochs):
            for inputs, labels in loader:
                optimizer.zero_grad()
                cross_entropy(model(inputs), labels).backward()
                optimizer.step()
        with torch.no_grad():
            return logit_confidence(cross_entropy(model.eval()(x), y, reduction="none").double().numpy())

    return train


def main() -> int:
    options = arguments()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": facts(torch.device("cpu")), "canaries": {}, "membership": {}}
    print(f"{'engine':22}{'claimed':>9}{'guesses':>9}{'implied':>9}{'reach':>8}{'noise':>8}{'s':>7}  contradicted by")
    for name in QUICK if options.quick else ("right", *BROKEN):
        report, seconds = canaries(name, quick=options.quick)
        row = report.as_json()
        for kept in ("scores", "included"):
            del row["canaries"][kept]
        found["canaries"][name] = row | {"seconds": seconds}
        numbers = (report.claimed.epsilon, report.epsilon_bound, report.epsilon_implied, report.reach, report.noise)
        shown = "".join(
            f"{'-' if value is None else f'{float(value):.3f}':>{width}}"
            for value, width in zip(numbers, (9, 9, 9, 8, 8), strict=True)
        )
        print(f"{name:22}{shown}{seconds:7.1f}  {', '.join(report.contradicted) or '-'}", flush=True)
        picture(options.plots, f"canaries-{name.replace(' ', '-')}", report)
    records, models, epochs = (400, 6, 10) if options.quick else (2000, 16, 40)
    data = bank(records)
    if data is None:
        print("\nno bank_marketing: set CLOISTER_TEST_DATA")
    else:
        print(f"\n{'training':22}{'TPR at 0.1 %':>14}{'interval, 95 %':>22}{'area':>8}{'ε shown':>9}")
        for name, epsilon in (("not private", None), ("ε = 8", "8"), ("ε = 1", "1")):
            tested = membership_test(trainer(*data, epochs=epochs, epsilon=epsilon), records, models=models)
            found["membership"][name] = {k: v for k, v in tested.as_json().items() if k != "curve"}
            within = f"{tested.low:.3%} to {tested.high:.3%}"
            print(
                f"{name:22}{tested.true_positive_rate:>14.3%}{within:>22}{tested.area:8.3f}{tested.epsilon_bound:9.2f}",
                flush=True,
            )
            picture(options.plots, f"membership-{'not-private' if epsilon is None else f'epsilon-{epsilon}'}", tested)
    print(f"\n{json.dumps(found['machine'], ensure_ascii=False)}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return 0


def picture(folder: Path | None, name: str, of: CanaryReport | Membership) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.svg").write_text(of.plot(), encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer engines, canaries, steps and models")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="also draw there, as SVG")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
