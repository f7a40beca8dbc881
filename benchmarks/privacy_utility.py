"""How well a private network does, beside Opacus under the same budget: CIFAR-10, at equal steps and at equal time.

    python benchmarks/privacy_utility.py --quick                 two small epochs at ε = 8, to see that it runs
    python benchmarks/privacy_utility.py --network vgg9 --json F  ε = 3 and 8, resumed where an earlier run stopped

Runs, for every ε at δ = 10⁻⁵, of the same network from the same weights with the same expected batch, clip and rate:

* *cloister*: through ``make_private``, noise calibrated by its own accountant, batches padded so that nobody sees how
  many were drawn.
* *opacus*: through its own front door, by hooks, with Poisson batches in physical ones of the same size; noise
  calibrated by its PRV accountant. As many steps.
* *opacus, same time*: as many epochs of it as take the CPU time of cloister's, with noise calibrated for those few.

They go forward in turn, an epoch each, and are saved after every one (``--dir``): interrupt it and start it again with
the same words. Epochs fix the noise, so give as many as the time allows. CPU time is compared, because it changes least
with what else runs. Every run is one seed, and seeds differ by about a point: see ``--seed``.

No augmentation and a constant rate: what is compared is engines. ``examples/private-cifar10`` has a stronger recipe.
Images: CIFAR-10, JPEG edition, 45,000 to train, 10,000 to test; expect slightly less than with the original edition.
Its folder: CLOISTER_TEST_DATA, or ../shared/data.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks._private_networks import NETWORKS  # noqa: E402
from benchmarks.offload_accuracy import images, own_key, scaled  # noqa: E402
from cloister.offload import load_checkpoint, save_checkpoint  # noqa: E402
from cloister.privacy import make_private  # noqa: E402
from cloister.wire import Secret  # noqa: E402

DELTA, CLIP = "1e-5", 1.0
RATES = {"vgg9": 0.5, "resnet32": 2.0}
OURS, THEIRS, SHORT = "cloister", "opacus", "opacus, same time"


@dataclass(frozen=True)
class Data:
    """Scaled images and labels."""

    train: TensorDataset
    test: Tensor
    test_labels: Tensor


@dataclass
class Run:
    """One training: how it is made, and how far it is."""

    variant: str
    epsilon: str
    epochs: int
    options: argparse.Namespace
    data: Data
    key: Secret
    epoch: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(self.options.seed)
        model = NETWORKS[self.options.network](8 if self.options.quick else 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=self.options.rate)
        loader = DataLoader(self.data.train, batch_size=self.options.batch)
        self.bare = model
        if self.variant == OURS:
            settings: dict[str, Any] = {"epsilon": self.epsilon, "delta": DELTA, "epochs": self.epochs}
            self.model, self.optimizer, self.loader = make_private(
                model, optimizer, loader, clip=CLIP, micro_batch=self.options.part, **settings
            )
            self.noise = float(self.optimizer.privacy.noise_multiplier)
        else:
            from opacus import PrivacyEngine

            self.model, self.optimizer, self.loader = PrivacyEngine(accountant="prv").make_private_with_epsilon(
                module=model,
                optimizer=optimizer,
                data_loader=loader,
                target_epsilon=float(self.epsilon),
                target_delta=float(DELTA),
                epochs=self.epochs,
                max_grad_norm=CLIP,
            )
            self.noise = float(self.optimizer.noise_multiplier)

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.variant} at ε = {self.epsilon}"

    @property
    def path(self) -> Path:
        """Its checkpoint."""
        variant = self.variant.replace(", ", "-").replace(" ", "-")
        return self.options.dir / f"{variant}-{self.epsilon}-{self.epochs}-{self.options.seed}.checkpoint"

    def resume(self) -> None:
        """Goes on from the last epoch, if there was one."""
        if self.path.exists():
            found = load_checkpoint(self.path, self.bare, key=self.key)
            self.epoch, self.curve = found.sequence, found.extra["curve"]
            if self.variant == OURS:
                self.optimizer.privacy.resume(found.extra["privacy"])

    def batches(self) -> Iterable[Any]:
        """Of one epoch, in parts that fit."""
        if self.variant == OURS:
            yield from track(self.loader, self.name, console=Console(stderr=True), transient=True)
            return
        from opacus.utils.batch_memory_manager import BatchMemoryManager

        manager = BatchMemoryManager(
            data_loader=self.loader, max_physical_batch_size=self.options.part, optimizer=self.optimizer
        )
        with manager as loader:
            yield from track(loader, self.name, console=Console(stderr=True), transient=True)

    def train(self) -> None:
        """One epoch and its test."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.model.train()
        for pixels, labels in self.batches():
            self.optimizer.zero_grad()
            functional.cross_entropy(self.model(pixels), labels).backward()
            self.optimizer.step()
        self.epoch += 1
        spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        self.curve.append({"accuracy": self.accuracy(), **spent})
        extra: dict[str, Any] = {"curve": self.curve}
        if self.variant == OURS:
            extra["privacy"] = self.optimizer.privacy.state
        save_checkpoint(self.path, self.bare, key=self.key, sequence=self.epoch, extra=extra)

    def accuracy(self) -> float:
        """On the test images, in percent."""
        self.bare.eval()
        right = 0
        with torch.no_grad():
            for some, labels in zip(self.data.test.split(500), self.data.test_labels.split(500), strict=True):
                right += int((self.bare(some).argmax(1) == labels).sum())
        return 100 * right / len(self.data.test)

    def line(self) -> str:
        """For people."""
        cpu = sum(each["cpu_s"] for each in self.curve) / 60
        accuracy = self.curve[-1]["accuracy"] if self.curve else float("nan")
        return (
            f"{self.name:28} epoch {self.epoch:3} of {self.epochs:3}  noise {self.noise:.3f}  "
            f"accuracy {accuracy:.2f} %  {cpu:.1f} min CPU"
        )


def main() -> int:
    warnings.filterwarnings("ignore")
    options = arguments()
    torch.set_num_threads(options.threads)
    some = images(options.quick)
    train = TensorDataset(scaled(some.train), some.train_labels)
    data = Data(train, scaled(some.test[: options.tested]), some.test_labels[: options.tested])
    key = own_key(options.dir)

    def run(variant: str, epsilon: str, epochs: int) -> Run:
        made = Run(variant, epsilon, epochs, options, data, key)
        made.resume()
        return made

    variants = [OURS, *([THEIRS] if importlib.util.find_spec("opacus") else [])]
    runs = [run(variant, epsilon, options.epochs) for epsilon in options.epsilon for variant in variants]
    if THEIRS not in variants:
        print("Opacus is not installed: nothing to compare with")
    started = time.monotonic()
    short_ones = THEIRS in variants
    while short_ones or any(each.epoch < each.epochs for each in runs):
        if short_ones and all(each.epoch for each in runs):  # how long both take is known
            runs += [run(SHORT, epsilon, affordable(runs, options)) for epsilon in options.epsilon]
            short_ones = False
            continue
        if time.monotonic() - started > options.hours * 3600:
            print(f"stopped after {options.hours} h; start it again to go on")
            break
        least = min(runs, key=lambda each: each.epoch / each.epochs)
        least.train()
        print(least.line(), flush=True)
        tell_what_is_left(runs, options)
    return finish(runs, options)


def affordable(runs: list[Run], options: argparse.Namespace) -> int:
    """Epochs of Opacus in the time of ours, by the first epochs of both; decided once and kept."""
    path = options.dir / f"same-time-{options.epochs}-{options.seed}.json"
    if not path.exists():
        first = {
            variant: sum(each.curve[0]["cpu_s"] for each in runs if each.variant == variant)
            for variant in (OURS, THEIRS)
        }
        path.write_text(json.dumps(max(1, round(options.epochs * first[OURS] / first[THEIRS]))))
    return int(json.loads(path.read_text()))


def tell_what_is_left(runs: list[Run], options: argparse.Namespace) -> None:
    if all(each.epoch for each in runs) and len({each.epoch for each in runs}) == 1:
        seconds = sum((each.epochs - each.epoch) * each.curve[-1]["wall_s"] for each in runs)
        print(f"about {seconds / 3600:.1f} h to go, of these runs", file=sys.stderr)


def finish(runs: list[Run], options: argparse.Namespace) -> int:
    """The result, as far as all went."""
    print()
    for each in runs:
        print(each.line())
    found: dict[str, Any] = {
        "network": options.network, "batch": options.batch, "rate": options.rate, "clip": CLIP, "delta": DELTA,
        "seed": options.seed, "records": len(runs[0].data.train), "runs": [],
    }  # fmt: skip
    for each in runs:
        about = {"variant": each.variant, "epsilon": each.epsilon, "epochs": each.epochs, "noise": each.noise}
        found["runs"].append({**about, "curve": each.curve})
    for epsilon in options.epsilon:
        ended = {each.variant: each for each in runs if each.epsilon == epsilon and each.epoch == each.epochs}
        for other in (THEIRS, SHORT):
            if OURS in ended and other in ended:
                difference = ended[OURS].curve[-1]["accuracy"] - ended[other].curve[-1]["accuracy"]
                print(f"ε = {epsilon}: cloister is {difference:+.2f} points beside {other}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 epochs of 1,000 images on a narrow network, ε = 8")
    parser.add_argument("--network", choices=list(RATES), default="vgg9")
    parser.add_argument("--epsilon", nargs="*", default=["3", "8"])
    parser.add_argument("--epochs", type=int, default=None, help="10, if nothing is said")
    parser.add_argument("--batch", type=int, default=1000, help="expected; it must divide the records")
    parser.add_argument("--part", type=int, default=64, help="rows at a time")
    parser.add_argument("--rate", type=float, default=None, help="0.5 for the VGG, 2 for the ResNet")
    parser.add_argument("--threads", type=int, default=1, help="with one, CPU time is that of the work and no waiting")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights")
    parser.add_argument("--hours", type=float, default=2.0, help="no epoch is begun after so long")
    parser.add_argument("--dir", type=Path, default=Path("build/privacy_utility"), help="checkpoints")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the curves there")
    options = parser.parse_args()
    options.rate = options.rate or RATES[options.network]
    options.epochs = options.epochs or (2 if options.quick else 10)
    options.tested = 1000 if options.quick else 10_000
    options.dir = options.dir / options.network
    if options.quick:
        options.dir, options.batch, options.epsilon = options.dir / "quick", 100, options.epsilon[-1:]
    options.dir.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    sys.exit(main())
