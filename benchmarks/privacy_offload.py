"""A private training step that workers help with, beside the three steps that it combines.

    python benchmarks/privacy_offload.py --quick      narrow networks and 16 images, to see that it runs: a minute
    python benchmarks/privacy_offload.py --json F     VGG-9, ResNet-32 and large Linear layers; a batch of 64

Contenders, each with its own copy of the same network, the same images and the same SGD:

* *plain*: an ordinary step, in the enclave alone.
* *private*: the private step of an engine without workers.
* *offloaded*: an ordinary step in ``shared3``.
* *both*: the private step in ``shared3``. *both, rows*: the same where no weight's gradient is the workers' sum.

Workers are in this process and share its cores, so a step's seconds are not what they would be: what counts are the
enclave's own (``inside``), all but the workers' products and the copies to and from them, which no accelerator makes
shorter. The column ``gpu`` is the whole step with workers on a GPU, where there is one, and *not measured* elsewhere.

``apart`` is how far a gradient without noise is from the one without workers, over its length: what 8 bits do, with
privacy and without. Beside it stand the weights whose sum workers made. Contenders take turns, figures are medians.
There is no noise, padding or loader in anybody's step: ``privacy_training.py`` says what these cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import _private_networks as networks
from _machine import facts
from _stages import Clock, TimedWorker, timed_workers
from cloister.offload import offload, offloading
from cloister.privacy import _offloaded
from cloister.privacy._clipping import Flat
from cloister.privacy._engine import Engine
from cloister.privacy._grid import GRID_SIGMA
from cloister.privacy._kernels import row_kernels

MODE, CLIP = "shared3", 1.0
OUTSIDE = ("GEMM", "transfer")
CONTENDERS = ("plain", "private", "offloaded", "both", "both, rows")


def wide(narrow: int = 1) -> nn.Module:
    """Three Linear layers of 2048: 8.4 M parameters."""
    size = 2048 // narrow
    inputs = 3 * networks.PIXELS**2
    layers = (nn.Linear(inputs, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU(), nn.Linear(size, networks.CLASSES))
    return nn.Sequential(nn.Flatten(), *layers)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"vgg9": networks.vgg9, "resnet32": networks.resnet32, "wide": wide}


class Silence:
    """Noise of nothing, for looking at gradients."""

    sigma, distance = GRID_SIGMA, None

    def add_to(self, total: Tensor) -> None:
        """Adds nothing."""

    def prefetch(self, *counts: int) -> None:
        """Makes nothing."""


@dataclass(slots=True)
class Contender:
    """One way of making a step.

    Attributes:
        model: What it trains.
        workers: Who multiply; none in the enclave.
        engine: Of a private one.
        sums: Whether workers may sum weights' gradients.
    """

    model: nn.Module
    workers: list[TimedWorker]
    engine: Engine | None
    sums: bool

    def gradient(self, images: Tensor, labels: Tensor) -> None:
        """Leaves each parameter its gradient."""
        if self.engine is None:
            functional.cross_entropy(self.model(images), labels).backward()
            return
        decides = _offloaded.pays
        _offloaded.pays = decides if self.sums else lambda **_: False
        try:
            scores = self.engine.forward(self.model.__call__, ((images,), {}), len(images))
            functional.cross_entropy(scores, labels).backward()
            self.engine.gather(torch.arange(len(images)))
            self.engine.release()
        finally:
            _offloaded.pays = decides

    @property
    def summed(self) -> int:
        """Weights whose gradient workers make in a step."""
        if not self.workers or self.engine is None:
            return 0
        uses = offloading(self.model).engine.products.tally().uses.values()
        return sum(1 for use in uses if use.products.get("weight_gradient"))


def contender(name: str, network: str, batch: int, narrow: int, device: torch.device) -> Contender:
    torch.manual_seed(0)
    model = NETWORKS[network](narrow).train()
    workers: list[TimedWorker] = []
    if name in ("offloaded", "both", "both, rows"):
        workers = timed_workers(MODE, device)
        offload(model, mode=MODE, workers=workers)
    engine = None
    if name not in ("plain", "offloaded"):
        kernels = row_kernels(torch.device("cpu"))
        settings: dict[str, Any] = {"noise_multiplier": "1", "noise": Silence(), "arena_bytes": 1 << 30}
        engine = Engine(model, Flat(CLIP), kernels=kernels, expected=float(batch), reduction="mean", **settings)
    return Contender(model, workers, engine, name == "both")


def measured(network: str, batch: int, narrow: int, device: torch.device, rounds: int) -> dict[str, dict[str, Any]]:
    """Medians of each contender, and how far its gradient is from the one without workers."""
    torch.manual_seed(1)
    images = torch.randn(batch, 3, networks.PIXELS, networks.PIXELS)
    labels = torch.randint(0, networks.CLASSES, (batch,))
    makers = {name: contender(name, network, batch, narrow, device) for name in CONTENDERS}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in makers}
    gradients: dict[str, Tensor] = {}
    clock = Clock()
    for turn in range(rounds + 1):
        for name in [*makers][turn % len(makers) :] + [*makers][: turn % len(makers)]:
            one = makers[name]
            one.model.zero_grad()
            took, stages = clock.step(lambda one=one: one.gradient(images, labels), one.workers)
            inside = took - sum(stages[stage] for stage in OUTSIDE) if one.workers else took
            if turn == 0:  # finds where examples are, and compiles
                gradients[name] = torch.cat([each.grad.double().flatten() for each in one.model.parameters()])  # type: ignore[union-attr]
            else:
                times[name].append((took, inside))
    rows: dict[str, dict[str, Any]] = {}
    for name, spent in times.items():
        took, inside = (statistics.median(each[which] for each in spent) for which in (0, 1))
        rows[name] = {"step_s": took, "inside_s": inside, "sums": makers[name].summed}
        if name not in ("plain", "private"):
            exact = gradients["plain" if name == "offloaded" else "private"]
            rows[name]["apart"] = float((gradients[name] - exact).norm() / exact.norm())
    for one in makers.values():
        if one.workers:
            offloading(one.model).engine.close()
    return rows


def main() -> int:
    warnings.filterwarnings("ignore")
    options = arguments()
    torch.set_num_threads(options.threads)
    gpu = torch.device("cuda") if torch.cuda.is_available() else None
    found: dict[str, Any] = {"machine": facts(gpu or torch.device("cpu")), "mode": MODE, "steps": {}}
    narrow, batch, rounds = (8, 16, 2) if options.quick else (1, options.batch, options.rounds)
    for network in options.networks:
        rows = measured(network, batch, narrow, torch.device("cpu"), rounds)
        accelerated = None if gpu is None else measured(network, batch, narrow, gpu, rounds)
        for name, row in rows.items():
            row["gpu_s"] = None if accelerated is None else accelerated[name]["step_s"]
        found["steps"][f"{network}, batch {batch}"] = rows
        show(f"{network}, batch {batch}", rows)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    print(f"\n{json.dumps(found['machine'], ensure_ascii=False)}")
    return 0


def show(what: str, rows: dict[str, dict[str, Any]]) -> None:
    print(f"\n{what}\n{'':14}{'step ms':>10}{'inside ms':>11}{'of private':>12}{'sums':>6}{'apart':>10}{'gpu ms':>14}")
    for name, row in rows.items():
        ratio = row["inside_s"] / rows["private"]["inside_s"]
        apart = f"{row['apart']:10.1e}" if "apart" in row else " " * 10
        gpu = "not measured" if row["gpu_s"] is None else f"{1e3 * row['gpu_s']:.1f}"
        times = f"{1e3 * row['step_s']:10.1f}{1e3 * row['inside_s']:11.1f}{ratio:12.2f}"
        print(f"{name:14}{times}{row['sums']:6}{apart}{gpu:>14}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="narrow networks, 16 images, 2 rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
