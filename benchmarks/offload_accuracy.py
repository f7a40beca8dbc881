"""Accuracy of private training against its fp32 twin: CIFAR-10, same seeds, same batches, same schedule.

    python benchmarks/offload_accuracy.py --quick                          two small epochs, to see that it runs
    python benchmarks/offload_accuracy.py --network vgg11 --hours 2 --json F   resumed where an earlier run stopped

The private run is mode ``shared3`` simulated: the same integers, and so the same bits, as with workers. Both runs go
forward in turn, an epoch each, and are saved after every epoch (``--dir``): interrupt it and start it again. The number
of epochs fixes the schedule, so give the one that the time allows.

Recipe: Goten's (SGD 0.9, weight decay 5e-4, halved in steps), learning rate 0.05; crops of a padded image and mirror
images, the same for both. Images: CIFAR-10, JPEG edition, 45,000 to train, 10,000 to test; expect slightly less than
with the original edition. Its folder: CLOISTER_TEST_DATA, or ../shared/data.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.networks import NETWORKS  # noqa: E402
from cloister.offload import load_checkpoint, offload, save_checkpoint  # noqa: E402
from cloister.wire import Secret, write_private  # noqa: E402

TARGET_POINTS = 1.0
VARIANTS = ("fp32", "private")
MEAN, DEVIATION = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])


def main() -> int:
    options = arguments()
    data = images(options.quick)
    folder = options.dir / options.network
    folder.mkdir(parents=True, exist_ok=True)
    key = own_key(folder)
    runs = [Run(variant, options, folder, key) for variant in VARIANTS]
    for run in runs:
        run.resume()
    started = time.monotonic()
    while any(run.epoch < options.epochs for run in runs):
        if time.monotonic() - started > options.hours * 3600:
            print(f"stopped after {options.hours} h; start it again to go on")
            break
        run = min(runs, key=lambda each: each.epoch)
        run.train(data)
        print(run.line(), flush=True)
    return finish(runs, options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 epochs of 1,000 images on a narrow network")
    parser.add_argument("--network", choices=["vgg11", "resnet32"], default="vgg11")
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--hours", type=float, default=2.0, help="no epoch is begun after so long")
    parser.add_argument("--dir", type=Path, default=Path("build/offload_accuracy"), help="checkpoints, one folder each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the curves there")
    options = parser.parse_args()
    options.epochs = options.epochs or (2 if options.quick else 12)
    if options.quick:
        options.dir = options.dir / "quick"
    return options


@dataclass(frozen=True)
class Images:
    """uint8 images ``(n, 3, 32, 32)`` and labels ``(n,)``."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def images(quick: bool) -> Images:
    """All of CIFAR-10, JPEG edition; a little of it when quick."""
    folder = Path(os.environ.get("CLOISTER_TEST_DATA", ROOT.parent / "shared" / "data")) / "cifar10"
    if not folder.is_dir():
        sys.exit(f"no CIFAR-10 at {folder}: set CLOISTER_TEST_DATA")
    some, test = np.load(folder / "train.npz"), np.load(folder / "test.npz")
    pixels, labels = [some["images"]], [some["labels"]]
    if not quick:
        rest = np.load(folder / "train_rest_jpeg.npz")
        raw, offsets = rest["jpeg"].tobytes(), rest["offsets"]
        pairs = track(list(itertools.pairwise(offsets)), "decoding", console=Console(stderr=True))
        pixels.append(np.stack([np.asarray(Image.open(io.BytesIO(raw[a:b])).convert("RGB")) for a, b in pairs]))
        labels.append(rest["labels"])

    def tensors(values: np.ndarray, names: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(values).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(names).long()

    train, train_labels = tensors(np.concatenate(pixels), np.concatenate(labels))
    held, held_labels = tensors(test["images"], test["labels"])
    size = 1000 if quick else len(train)
    return Images(train[:size], train_labels[:size], held[: 10 * size], held_labels[: 10 * size])


@dataclass
class Run:
    """One variant: its model, and how far it is."""

    variant: str
    options: argparse.Namespace
    folder: Path
    key: Secret
    epoch: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.model = NETWORKS[self.options.network](narrow=8 if self.options.quick else 1)
        if self.variant == "private":
            offload(self.model, mode="shared3", execution="simulate")
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        step = max(1, self.options.epochs // 5)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step, gamma=0.5)

    @property
    def path(self) -> Path:
        """Its checkpoint."""
        return self.folder / f"{self.variant}-{self.options.epochs}.checkpoint"

    def resume(self) -> None:
        """Goes on from the last epoch, if there was one."""
        if self.path.exists():
            parts = {"optimizer": self.optimizer, "scheduler": self.scheduler}
            found = load_checkpoint(self.path, self.model, key=self.key, **parts)
            self.epoch, self.curve = found.sequence, found.extra["curve"]

    def train(self, data: Images) -> None:
        """One epoch and its test."""
        start = time.perf_counter()
        self.model.train()
        generator = torch.Generator().manual_seed(self.epoch)  # the same batches for both
        order = torch.randperm(len(data.train), generator=generator)
        total = 0.0
        batches = order.split(self.options.batch)
        what = f"{self.options.network} {self.variant} epoch {self.epoch + 1}"
        for batch in track(batches, what, console=Console(stderr=True), transient=True):
            self.optimizer.zero_grad()
            loss = functional.cross_entropy(
                self.model(augmented(data.train[batch], generator)), data.train_labels[batch]
            )
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(batch)
        self.scheduler.step()
        self.epoch += 1
        seconds = time.perf_counter() - start
        self.curve.append({"loss": total / len(order), "accuracy": self.accuracy(data), "seconds": seconds})
        save_checkpoint(
            self.path,
            self.model,
            key=self.key,
            sequence=self.epoch,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            extra={"curve": self.curve},
        )

    def accuracy(self, data: Images) -> float:
        """On the test images, in percent."""
        self.model.eval()
        right = 0
        with torch.no_grad():
            for start in range(0, len(data.test), 500):
                guessed = self.model(scaled(data.test[start : start + 500])).argmax(1)
                right += int((guessed == data.test_labels[start : start + 500]).sum())
        return 100 * right / len(data.test)

    def line(self) -> str:
        """The last epoch, for people."""
        last = self.curve[-1]
        return (
            f"{self.options.network} {self.variant:8} epoch {self.epoch:3}  loss {last['loss']:.4f}  "
            f"accuracy {last['accuracy']:.2f} %  {last['seconds']:.0f} s"
        )


def scaled(pixels: Tensor) -> Tensor:
    """Pixels as the network reads them."""
    return (pixels.float() / 255 - MEAN[:, None, None]) / DEVIATION[:, None, None]


def augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Crops of padded images, half of them mirrored."""
    count = len(pixels)
    padded = functional.pad(scaled(pixels), (4, 4, 4, 4))
    tops, lefts = (torch.randint(0, 9, (count,), generator=generator) for _ in range(2))
    rows = tops[:, None] + torch.arange(32)
    columns = lefts[:, None] + torch.arange(32)
    mirrored = torch.rand(count, generator=generator) < 0.5
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    each = torch.arange(count)[:, None, None, None]
    return padded[each, torch.arange(3)[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def own_key(folder: Path) -> Secret:
    """A key for the checkpoints of this folder, which holds nothing private."""
    path = folder / "key"
    if not path.exists():
        write_private(path, Secret.random(32).reveal())
    return Secret(path.read_bytes())


def finish(runs: list[Run], options: argparse.Namespace) -> int:
    """The result, as far as both went."""
    epochs = min(run.epoch for run in runs)
    found: dict[str, Any] = {
        "network": options.network,
        "epochs": epochs,
        "of": options.epochs,
        "batch": options.batch,
        "curves": {run.variant: run.curve for run in runs},
    }
    if epochs:
        plain, private = (run.curve[epochs - 1]["accuracy"] for run in runs)
        found["difference_points"] = plain - private
        print(
            f"{options.network} after {epochs} of {options.epochs} epochs: fp32 {plain:.2f} %, "
            f"private {private:.2f} %, difference {plain - private:+.2f} points (target at most {TARGET_POINTS})"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
