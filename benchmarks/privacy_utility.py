"""How well a private network does, beside Opacus under the same budget: CIFAR-10, at equal steps and at equal time.

    python benchmarks/privacy_utility.py --quick                     two small epochs at ε = 8, to see that it runs
    python benchmarks/privacy_utility.py --json F --plot G           ε = 3 and 8, resumed where an earlier run stopped
    python benchmarks/privacy_utility.py --validate --rate 0.5       to choose a rate: never by the test images

Runs, for every ε at δ = 10⁻⁵, of the same network from the same weights with the same sampling probability, clip and
rate:

* *cloister*: through ``make_private``, noise calibrated by its own accountant, batches padded so that nobody sees how
  many were drawn.
* *opacus*: through its own front door, by hooks, with Poisson batches in physical ones of the same size. As many steps
  with the same noise multiplier; what its PRV accountant says that they cost is told.
* *opacus, same time*: as many epochs of it as take the CPU time of cloister's, with noise calibrated for those few.

The first two go forward in turn, an epoch each, one ε after the other; the third begins when it is known how long they
took. All are saved after every epoch (``--dir``): interrupt it and start it again with the same words. Epochs fix the
noise, so give as many as the time allows. CPU time is compared, because it changes least with what else runs; it is
limited to two hours a network (``--hours``), over all runs and restarts. Every run is one seed: see ``--seed``.

What is tested is the average of all weights so far, the first ones soon forgotten, which costs no privacy and takes
noise away; *last* in the JSON is without. Group norms and large batches, but a constant rate and no augmentation: what
is compared is engines. ``examples/private-cifar10`` has a stronger recipe.

Only the CNN's rate was searched for. A search on private data would be charged; see docs/privacy.md.

Images: CIFAR-10, JPEG edition, 45,000 to train, 10,000 to test; expect slightly less than with the original edition.
With ``--validate``, 40,000 to train and the other 5,000 to test. Its folder: CLOISTER_TEST_DATA, or ../shared/data.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.util
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import _curves  # noqa: E402
from benchmarks._machine import machine  # noqa: E402
from benchmarks._private_networks import CLASSES, resnet32, vgg9  # noqa: E402
from benchmarks.offload_accuracy import images, own_key  # noqa: E402
from cloister.ledger import Relation, calibrate  # noqa: E402
from cloister.offload import load_checkpoint, save_checkpoint  # noqa: E402
from cloister.privacy import make_private  # noqa: E402
from cloister.wire import Secret  # noqa: E402

DELTA, CLIP = "1e-5", 1.0
OURS, THEIRS, SHORT = "cloister", "opacus", "opacus, same time"
HELD_OUT = 5000


def cnn(narrow: int = 1) -> nn.Module:
    """Three convolutions, two of them with a stride, group norms, one Linear layer: 68,426 parameters, for a CPU."""
    one, two = 32 // narrow, 64 // narrow
    layers: list[nn.Module] = []
    for inputs, outputs, kernel, stride in ((3, one, 5, 2), (one, two, 3, 2), (two, two, 3, 1)):
        layers += [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2),
            nn.GroupNorm(8 // narrow, outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16 * two, CLASSES))


# clip 1; the CNN's was found with --validate among 1, 2 and 4; the others' are guesses
RATES = {"cnn": 2.0, "vgg9": 0.5, "resnet32": 2.0}
NETWORKS: dict[str, Callable[[int], nn.Module]] = {"cnn": cnn, "vgg9": vgg9, "resnet32": resnet32}


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
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.both = nn.ModuleDict({"model": model, "average": self.average})
        optimizer = torch.optim.SGD(model.parameters(), lr=self.options.rate)
        loader = DataLoader(self.data.train, batch_size=self.options.batch)
        if self.variant == OURS:
            settings: dict[str, Any] = {"epsilon": self.epsilon, "delta": DELTA, "epochs": self.epochs}
            self.model, self.optimizer, self.loader = make_private(
                model, optimizer, loader, clip=CLIP, micro_batch=self.options.part, **settings
            )
            self.noise = self.optimizer.privacy.noise_multiplier
            return
        from opacus import PrivacyEngine

        self.noise = least_noise(self.epsilon, self.epochs * self.options.epoch_steps, self.options.epoch_steps)
        self.model, self.optimizer, self.loader = PrivacyEngine(accountant="prv").make_private(
            module=model,
            optimizer=optimizer,
            data_loader=loader,
            noise_multiplier=float(self.noise),
            max_grad_norm=CLIP,
        )

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.variant} at ε = {self.epsilon}"

    @property
    def path(self) -> Path:
        """Its checkpoint."""
        variant = self.variant.replace(", ", "-").replace(" ", "-")
        length = f"{self.epochs}x{self.options.epoch_steps}"
        return self.options.dir / f"{variant}-{self.epsilon}-{length}-{self.options.seed}.checkpoint"

    def resume(self) -> None:
        """Goes on from the last epoch, if there was one."""
        if self.path.exists():
            found = load_checkpoint(self.path, self.both, key=self.key)
            self.epoch, self.curve = found.sequence, found.extra["curve"]
            torch.manual_seed(1000 * (self.options.seed + 1) + self.epoch)  # Opacus must not draw the same again
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
        steps = self.epoch * self.options.epoch_steps
        before = self.weights()
        for pixels, labels in self.batches():
            self.optimizer.zero_grad()
            functional.cross_entropy(self.model(pixels), labels).backward()
            self.optimizer.step()
            if not torch.equal(after := self.weights(), before):  # a batch comes in parts, and moves weights once
                steps, before = steps + 1, after
                self.follow(steps)
        self.epoch += 1
        spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "steps": steps}
        self.curve.append({"accuracy": self.accuracy(self.average), "last": self.accuracy(self.both["model"]), **spent})
        extra: dict[str, Any] = {"curve": self.curve}
        if self.variant == OURS:
            extra["privacy"] = self.optimizer.privacy.state
        save_checkpoint(self.path, self.both, key=self.key, sequence=self.epoch, extra=extra)

    def weights(self) -> Tensor:
        """Some that every step moves."""
        return next(iter(self.both["model"].parameters())).detach().flatten()[:8].clone()

    def follow(self, steps: int) -> None:
        """Moves the average."""
        rate = max(1e-4, 1 - (1 + steps) / (10 + steps))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.both["model"].parameters(), strict=True):
                mean.lerp_(value, rate)

    def accuracy(self, model: nn.Module) -> float:
        """On the test images, in percent."""
        model.eval()
        right = 0
        with torch.no_grad():
            for some, labels in zip(self.data.test.split(500), self.data.test_labels.split(500), strict=True):
                right += int((model(some).argmax(1) == labels).sum())
        return 100 * right / len(self.data.test)

    @property
    def cpu_minutes(self) -> float:
        """Of training, so far."""
        return sum(each["cpu_s"] for each in self.curve) / 60

    def line(self) -> str:
        """For people."""
        accuracy = self.curve[-1]["accuracy"] if self.curve else float("nan")
        return (
            f"{self.name:28} epoch {self.epoch:3} of {self.epochs:3}  noise {self.noise}  "
            f"accuracy {accuracy:.2f} %  {self.cpu_minutes:.1f} min CPU"
        )


def main() -> int:
    warnings.filterwarnings("ignore")
    options = arguments()
    torch.set_num_threads(options.threads)
    data = read(options)
    options.batch, rest = divmod(len(data.train), options.epoch_steps)
    if rest:
        sys.exit(f"{options.epoch_steps} steps do not divide {len(data.train)} images")
    key = own_key(options.dir)

    def run(variant: str, epsilon: str, epochs: int) -> Run:
        made = Run(variant, epsilon, epochs, options, data, key)
        made.resume()
        return made

    variants = [OURS, *([THEIRS] if importlib.util.find_spec("opacus") else [])]
    runs = [run(variant, epsilon, options.epochs) for epsilon in options.epsilon for variant in variants]
    if THEIRS not in variants:
        print("Opacus is not installed: nothing to compare with")
    short_ones = THEIRS in variants
    while True:
        going = [each for each in runs if each.epoch < each.epochs]
        if sum(each.cpu_minutes for each in runs) >= options.hours * 60:
            print(f"stopped after {options.hours} h; with more --hours it goes on")
            break
        if not going and not short_ones:
            break
        if not going:  # how long both take is known
            runs += [run(SHORT, epsilon, affordable(runs, options)) for epsilon in options.epsilon]
            short_ones = False
            continue
        of_one = [each for each in going if each.epsilon == going[0].epsilon]
        least = min(of_one, key=lambda each: each.epoch / each.epochs)
        least.train()
        print(least.line(), flush=True)
        tell_what_is_left(runs)
        write(runs, options)
    return finish(runs, options)


def read(options: argparse.Namespace) -> Data:
    """The images, scaled by constants: their own mean would be a release."""

    def scaled(pixels: Tensor) -> Tensor:
        return pixels.float() / 127.5 - 1

    some = images(options.quick)
    pixels, labels, test, test_labels = some.train, some.train_labels, some.test, some.test_labels
    if options.validate:
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(1234))
        kept, held = order[:-HELD_OUT], order[-HELD_OUT:]
        pixels, labels, test, test_labels = pixels[kept], labels[kept], pixels[held], labels[held]
    tested = 1000 if options.quick else len(test)
    return Data(TensorDataset(scaled(pixels), labels), scaled(test[:tested]), test_labels[:tested])


@functools.cache
def least_noise(epsilon: str, steps: int, epoch_steps: int) -> str:
    """The noise multiplier, by our accountant for everybody."""
    terms: dict[str, Any] = {"unit": "record", "relation": Relation.ADD_OR_REMOVE_ONE}
    probability = f"1/{epoch_steps}"
    found = calibrate(epsilon=epsilon, delta=DELTA, sampling_probability=probability, steps=steps, **terms)
    return found.event.noise_multiplier


def by_their_accountant(run: Run) -> float:
    """ε of what was done, as Opacus's PRV accountant counts it."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(float(run.noise), 1 / run.options.epoch_steps, run.epoch * run.options.epoch_steps)]
    return float(accountant.get_epsilon(float(DELTA)))


def affordable(runs: list[Run], options: argparse.Namespace) -> int:
    """Epochs of Opacus in the time of ours; decided once and kept."""
    path = options.dir / f"same-time-{options.epochs}x{options.epoch_steps}-{options.seed}.json"
    if not path.exists():
        minutes = {
            variant: sum(each.cpu_minutes for each in runs if each.variant == variant) for variant in (OURS, THEIRS)
        }
        path.write_text(json.dumps(max(1, round(options.epochs * minutes[OURS] / minutes[THEIRS]))))
    return int(json.loads(path.read_text()))


def tell_what_is_left(runs: list[Run]) -> None:
    if seconds := {each.variant: each.curve[-1]["wall_s"] for each in runs if each.curve}:
        most = max(seconds.values())
        left = sum((each.epochs - each.epoch) * seconds.get(each.variant, most) for each in runs)
        print(f"about {left / 3600:.1f} h to go, of these runs", file=sys.stderr)


def finish(runs: list[Run], options: argparse.Namespace) -> int:
    """The result, as far as all went."""
    print()
    for each in runs:
        print(each.line())
    for epsilon in options.epsilon:
        ended = {each.variant: each for each in runs if each.epsilon == epsilon and each.epoch == each.epochs}
        for other in (THEIRS, SHORT):
            if OURS in ended and other in ended:
                shares = [ended[variant].curve[-1]["accuracy"] / 100 for variant in (OURS, other)]
                error = 100 * math.sqrt(sum(share * (1 - share) for share in shares) / len(ended[OURS].data.test))
                difference = 100 * (shares[0] - shares[1])
                print(
                    f"ε = {epsilon}: cloister is {difference:+.2f} points beside {other}, with an error of {error:.2f}"
                )
    write(runs, options)
    return 0


def write(runs: list[Run], options: argparse.Namespace) -> None:
    """All numbers, and the picture."""
    found: dict[str, Any] = {
        "network": options.network, "batch": options.batch, "rate": options.rate, "clip": CLIP, "delta": DELTA,
        "seed": options.seed, "records": len(runs[0].data.train), "tested": len(runs[0].data.test),
        "epoch_steps": options.epoch_steps, "machine": machine(), "torch": torch.__version__,
        "runs": [],
    }  # fmt: skip
    for each in runs:
        about = {"variant": each.variant, "epsilon": each.epsilon, "epochs": each.epochs, "noise": float(each.noise)}
        if each.variant != OURS and each.epoch == each.epochs:
            about["epsilon_by_prv"] = by_their_accountant(each)
        found["runs"].append({**about, "cpu_minutes": each.cpu_minutes, "curve": each.curve})
    if options.json:
        options.json.write_text(json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    if options.plot:
        about = (
            f"{options.network}, batch {options.batch}, δ = {DELTA}, a seed each; {options.threads} thread, {machine()}"
        )
        _curves.plot(options.plot, found["runs"], subtitle=about)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 epochs of 1,000 images on a narrow network, ε = 8")
    parser.add_argument("--network", choices=list(RATES), default="cnn")
    parser.add_argument("--epsilon", nargs="*", default=["3", "8"])
    parser.add_argument("--epochs", type=int, default=None, help="10, if nothing is said")
    parser.add_argument("--epoch-steps", type=int, default=40, help="one over the sampling probability")
    parser.add_argument("--part", type=int, default=64, help="rows at a time")
    parser.add_argument("--rate", type=float, default=None, help="searched for for the CNN only")
    parser.add_argument("--threads", type=int, default=1, help="with one, CPU time is that of the work and no waiting")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights")
    parser.add_argument("--hours", type=float, default=2.0, help="of CPU: no epoch is begun after so much training")
    parser.add_argument("--validate", action="store_true", help="test on 5,000 training images that are left out")
    parser.add_argument("--dir", type=Path, default=Path("build/privacy_utility"), help="checkpoints")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the curves there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw them there, as SVG or PNG")
    options = parser.parse_args()
    if options.quick and options.validate:
        parser.error("--quick trains on too few images to leave some out")
    options.rate = options.rate or RATES[options.network]
    options.epochs = options.epochs or (2 if options.quick else 10)
    options.dir = (
        options.dir / options.network / (f"validate-{options.rate}" if options.validate else f"{options.rate}")
    )
    if options.quick:
        options.dir, options.epoch_steps, options.epsilon = options.dir / "quick", 10, options.epsilon[-1:]
    options.dir.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    sys.exit(main())
