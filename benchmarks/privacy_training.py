"""A private training step beside an ordinary one, and beside what PyTorch's own and Opacus's ways make of it.

    python benchmarks/privacy_training.py --quick      narrow networks and 16 images, to see that it runs: a minute
    python benchmarks/privacy_training.py --json F     VGG-9, ResNet-32, a ViT; batches of 64 and 256; 1 and 2 threads

Contenders, each with its own copy of the same network, the same images and the same SGD; *last* is channels last:

* *sgd*: an ordinary step. The better of its two layouts is what the ratios are over.
* *cloister*: forward, backward, rows, clipped and rounded sum, discrete noise, step, in micro-batches of 64 rows, as
  when none is named. All but *certified* call the network's own code, as with ``make_private``; *certified* runs its
  certified graph, as ``Trainer`` does, which makes group norms together with the ReLU behind them and max poolings
  before the ReLU in front of them. *parts*: of 32 rows, which takes less memory. *padded*: with the rows that a loader
  adds so that nobody sees how many were drawn, of 50,000 (137 in place of 64, 393 in place of 256); nobody else hides
  that. All others have no padding.
* *hooks*, *functorch*, *expanded*, *ghost*: Opacus, by its ``grad_sample_mode``, through its own front door.
* *vmap*: ``torch.func.vmap(grad)``, clipped and summed, with torch's own noise.

What it takes for a comparison to be fair:

* Everybody's gradient without noise is compared first, on eight images. Who makes another one, by more than 10⁻⁴ of its
  length, or cannot train a network at all, is in the table with the reason and without a time; ours ends the run.
* Each row of the table is measured in a process of its own that is held to as many cores as it has threads: noise that
  is made in the background takes its time from the same cores.
* Contenders take turns in an order that moves on each round; figures are medians. CPU time is the process's, and is
  changed less than wall time by whatever else runs.
* Only the step is timed: no loader, no augmentation, no sampling, for nobody. Opacus's noise is torch's generator's in
  floating point, which is cheaper than ours: its secure mode needs a package that is not published any more.
* Peak memory is that of a process which makes three steps of one contender and nothing else. An ordinary step could be
  made in parts too: compare *parts* with that in mind.
* Nothing is compiled by ``torch.compile``.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from _machine import facts
from _private_networks import CLASSES, NETWORKS, PIXELS
from cloister.privacy import bind, check_model
from cloister.privacy._binomial import capacity
from cloister.privacy._clipping import Flat
from cloister.privacy._engine import Engine
from cloister.privacy._grid import GRID_SIGMA
from cloister.privacy._kernels import row_kernels
from cloister.privacy._loader import ROWS_AT_ONCE
from cloister.privacy._noise import NoiseSource
from cloister.privacy._sampling import TAIL

TARGETS = {"vgg9": 0.95, "resnet32": 0.93, "vit": 0.9}
BATCHES = {"vgg9": (64, 256), "resnet32": (64, 256), "vit": (64,)}
RECORDS, PART, CLIP = 50_000, 32, 1.0
AGREE, DRAWS = 1e-4, 3
MODES = {"hooks": "hooks", "functorch": "functorch", "expanded": "ew", "ghost": "ghost"}
LAYOUTS = {"": torch.contiguous_format, ", last": torch.channels_last}
ARENA_BYTES = 1 << 30  # as make_private has it


@dataclass(frozen=True, slots=True)
class Parts:
    """A network and what it is trained with."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True, slots=True)
class Contender:
    """One way of making a step.

    Attributes:
        step: What is timed; each parameter has its gradient afterwards.
        rest: What is not: lets go of what a loop would let go of before the next forward.
        model: What it trains.
    """

    step: Callable[[], None]
    rest: Callable[[], None]
    model: nn.Module


class Silence:
    """Noise of nothing, for looking at gradients."""

    sigma, distance = GRID_SIGMA, None

    def add_to(self, total: Tensor) -> None:
        """Adds nothing."""

    def prefetch(self, *counts: int) -> None:
        """Makes nothing."""


def parts(network: str, batch: int, narrow: int, layout: torch.memory_format, draw: int = 0) -> Parts:
    torch.manual_seed(draw)
    model = NETWORKS[network](narrow).to(memory_format=layout)  # type: ignore[call-overload]
    images = torch.randn(batch, 3, PIXELS, PIXELS).contiguous(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    return Parts(model.train(), images, torch.randint(0, CLASSES, (batch,)), optimizer)


def plain(of: Parts, noisy: bool) -> Contender:
    def step() -> None:
        of.optimizer.zero_grad()
        functional.cross_entropy(of.model(of.images), of.labels).backward()
        of.optimizer.step()

    return Contender(step, of.optimizer.zero_grad, of.model)


def ours(
    of: Parts, noisy: bool, *, part: int | None = None, padded: bool = False, certified: bool = False
) -> Contender:
    batch = len(of.labels)
    model = bind(check_model(of.model, losses, (of.images, of.labels)), of.model, losses) if certified else of.model
    rows = capacity(RECORDS, Fraction(batch, RECORDS), tail=TAIL) if padded else batch
    part = part or -(-rows // max(1, round(rows / ROWS_AT_ONCE)))
    rows = -(-rows // part) * part
    images, labels = of.images.new_zeros(rows, *of.images.shape[1:]), torch.zeros(rows, dtype=torch.int64)
    images = images.contiguous(memory_format=torch.channels_last if last(of.images) else torch.contiguous_format)
    images[:batch], labels[:batch] = of.images, of.labels
    owners = torch.where(torch.arange(rows) < batch, torch.arange(rows) % part, -1)
    noise: Any = NoiseSource(GRID_SIGMA) if noisy else Silence()
    engine = Engine(
        model,
        Flat(CLIP),
        noise_multiplier="1",
        noise=noise,
        kernels=row_kernels(torch.device("cpu")),
        expected=float(batch),
        reduction="mean",
        arena_bytes=ARENA_BYTES,
    )

    def step() -> None:
        of.optimizer.zero_grad()
        engine.begin()
        for start in range(0, rows, part):
            some = slice(start, start + part)
            if certified:
                engine.forward(model.__call__, (((images[some], labels[some]),), {}), part).mean().backward()
            else:
                outputs = engine.forward(model.__call__, ((images[some],), {}), part)
                functional.cross_entropy(outputs, labels[some]).backward()
            engine.gather(owners[some])
        engine.release()
        of.optimizer.step()

    return Contender(step, of.optimizer.zero_grad, of.model)


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def last(images: Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last)


def opacus(of: Parts, noisy: bool, *, mode: str) -> Contender:
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    criterion: Any = nn.CrossEntropyLoss()
    model, optimizer, *others = PrivacyEngine().make_private(
        module=of.model,
        optimizer=of.optimizer,
        data_loader=DataLoader(TensorDataset(of.images, of.labels), batch_size=len(of.labels)),
        noise_multiplier=1.0 if noisy else 0.0,
        max_grad_norm=CLIP,
        poisson_sampling=False,
        grad_sample_mode=mode,
        **({"criterion": criterion} if mode == "ghost" else {}),
    )
    if mode == "ghost":
        criterion = others[0]

    def step() -> None:
        optimizer.zero_grad()
        criterion(model(of.images), of.labels).backward()
        optimizer.step()

    return Contender(step, optimizer.zero_grad, model)


def vmapped(of: Parts, noisy: bool) -> Contender:
    names, batch = [name for name, _ in of.model.named_parameters()], len(of.labels)

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        outputs = torch.func.functional_call(of.model, parameters, (image.unsqueeze(0),))
        return functional.cross_entropy(outputs, label.unsqueeze(0))

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0), randomness="different")

    def step() -> None:
        held = {name: value.detach() for name, value in of.model.named_parameters()}
        rows = gradients(held, of.images, of.labels)
        norms = torch.stack([rows[name].flatten(1).norm(dim=1) for name in names]).norm(dim=0)
        factors = (CLIP / norms).clamp(max=1.0)
        for name, parameter in of.model.named_parameters():
            total = torch.einsum("b,b...->...", factors, rows[name])
            parameter.grad = (total + torch.randn_like(total) if noisy else total) / batch
        of.optimizer.step()

    return Contender(step, of.optimizer.zero_grad, of.model)


def contenders(network: str, batch: int, narrow: int, draw: int = 0) -> dict[str, Callable[[bool], Contender]]:
    """What takes part, each made when it is called: with noise or without.

    Args:
        network: Its name.
        batch: Images.
        narrow: What widths are divided by.
        draw: Seeds the weights and the images.
    """
    ways: dict[str, Callable[..., Contender]] = {"sgd": plain, "cloister": ours, "vmap": vmapped}
    ways["cloister, certified"] = lambda of, noisy: ours(of, noisy, certified=True)
    ways["cloister, parts"] = lambda of, noisy: ours(of, noisy, part=PART)
    ways["cloister, padded"] = lambda of, noisy: ours(of, noisy, padded=True)
    if importlib.util.find_spec("opacus") is not None:
        for name, mode in MODES.items():
            ways[name] = lambda of, noisy, mode=mode: opacus(of, noisy, mode=mode)
    return {
        f"{way}{name}": lambda noisy, make=make, layout=layout: make(parts(network, batch, narrow, layout, draw), noisy)
        for way, make in ways.items()
        for name, layout in LAYOUTS.items()
    }


def agreement(network: str, narrow: int, names: list[str]) -> dict[str, float | str]:
    """Of each private one the relative distance of its gradient from vmap's in float64, or why it cannot.

    The middle of a few draws counts: where an input of a ReLU is nearly 0, float32 may take the other side of the kink
    than float64, and the gradients are then 1e-4 to 1e-3 of their length apart with nobody wrong.
    """
    found: dict[str, list[float]] = {name: [] for name in names if not name.startswith("sgd")}
    refused: dict[str, str] = {}
    for draw in range(DRAWS):
        exact = parts(network, 8, narrow, torch.contiguous_format, draw)
        exact = dataclasses.replace(exact, model=exact.model.double(), images=exact.images.double())
        expected = gradient(vmapped(exact, noisy=False))
        makers = contenders(network, 8, narrow, draw)
        for name in found.keys() - refused.keys():
            try:
                found[name].append(float((gradient(makers[name](False)) - expected).norm() / expected.norm()))
            except (RuntimeError, NotImplementedError, ValueError) as error:
                refused[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:90]}"
    middles = {name: statistics.median(each) for name, each in found.items() if name not in refused}
    for name, distance in middles.items():
        if not distance <= AGREE:
            refused[name] = f"another gradient, {distance:.0e} of its length away"
    return {name: refused.get(name, middles.get(name, math.nan)) for name in found}


def gradient(contender: Contender) -> Tensor:
    contender.step()
    found = [parameter.grad for parameter in contender.model.parameters()]
    return torch.cat([each.double().flatten() for each in found if each is not None])


def row(network: str, batch: int, narrow: int, options: argparse.Namespace) -> dict[str, Any]:
    """Medians, and ratios over the better ordinary step; what is printed on standard error is for who waits."""
    makers = contenders(network, batch, narrow)
    names = [name for name in makers if name.split(",")[0] in {*options.only, "sgd"}]
    apart = agreement(network, narrow, names)
    wrong = [f"{name}: {why}" for name, why in apart.items() if name.startswith("cloister") and isinstance(why, str)]
    if wrong:
        raise SystemExit(f"{network}: {'; '.join(wrong)}")
    taking_part = {name: makers[name](True) for name in names if not isinstance(apart.get(name), str)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in taking_part}
    for turn in range(options.rounds + 2):
        began, first = time.perf_counter(), turn % len(taking_part)
        for name in [*taking_part][first:] + [*taking_part][:first]:
            wall, cpu = time.perf_counter(), time.process_time()
            taking_part[name].step()
            if turn >= 2:
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            taking_part[name].rest()
        if turn == 1:
            minutes = (time.perf_counter() - began) * options.rounds / 60
            print(f"{network}, batch {batch}: about {minutes:.1f} min", file=sys.stderr, flush=True)
    rows: dict[str, Any] = {
        name: {f"{kind}_s": statistics.median(each[which] for each in spent) for which, kind in enumerate(KINDS)}
        for name, spent in times.items()
    }
    for kind in KINDS:
        best = min(rows[name][f"{kind}_s"] for name in ("sgd", "sgd, last"))
        for each in rows.values():
            each[f"{kind}_ratio"] = best / each[f"{kind}_s"]
    for name, value in apart.items():
        rows.setdefault(name, {})["refused" if isinstance(value, str) else "apart"] = value
    return rows


KINDS = ("wall", "cpu")


def peak(name: str, network: str, batch: int, narrow: int) -> float:
    """MiB of this process at most, three steps of one contender long."""
    contender = contenders(network, batch, narrow)[name](True)
    for _ in range(3):
        contender.step()
        contender.rest()
    # not getrusage: its peak is handed on by whoever started this process
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def child(options: argparse.Namespace, network: str, batch: int, threads: int, name: str | None = None) -> Any:
    """What one row, or one peak, is, from a process of its own."""
    command = [sys.executable, __file__, "--one", network, str(batch), str(threads), name or ""]
    command += ["--rounds", str(options.rounds), "--only", *options.only, *(["--quick"] if options.quick else [])]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def one(options: argparse.Namespace) -> int:
    """In that process."""
    network, batch, threads, name = options.one
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    torch.set_num_threads(int(threads))
    narrow = 8 if options.quick else 1
    found: Any = peak(name, network, int(batch), narrow) if name else row(network, int(batch), narrow, options)
    print(json.dumps(found))
    return 0


def main() -> int:
    warnings.filterwarnings("ignore")
    options = arguments()
    if options.one:
        return one(options)
    found: dict[str, Any] = {"machine": facts(torch.device("cpu")), "rounds": options.rounds, "steps": {}}
    started, skipped = time.monotonic(), []
    print("on a quiet machine about a minute with --quick, otherwise about 40: less with --only, --networks, --batch")
    for network in options.networks:
        for batch in (16,) if options.quick else options.batch or BATCHES[network]:
            for threads in (1,) if options.quick else options.threads:
                what = f"{network}, batch {batch}, {threads} threads"
                if time.monotonic() - started > 60 * options.minutes:
                    skipped.append(what)
                    continue
                rows = child(options, network, batch, threads)
                if threads == 1 and not options.quick and not options.no_memory:
                    for name in rows:
                        if "refused" not in rows[name]:
                            rows[name]["peak_mib"] = child(options, network, batch, threads, name)
                found["steps"][what] = rows
                show(what, rows, TARGETS[network])
                if options.json:
                    options.json.write_text(json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    print(f"\nratios over the better ordinary step; {json.dumps(found['machine'], ensure_ascii=False)}")
    for what in skipped:
        print(f"not measured, for lack of time (--minutes): {what}")
    return 0


def show(what: str, rows: dict[str, Any], target: float) -> None:
    print(f"\n{what}; target {target}; load {os.getloadavg()[0]:.1f}")
    print(f"{'':24}{'wall ms':>10}{'CPU ms':>10}{'wall':>8}{'CPU':>8}{'apart':>10}{'peak MiB':>10}")
    for name, each in rows.items():
        if "refused" in each:
            print(f"{name:24}{each['refused']}")
            continue
        times = f"{1e3 * each['wall_s']:10.1f}{1e3 * each['cpu_s']:10.1f}"
        apart = f"{each['apart']:10.0e}" if "apart" in each else " " * 10
        memory = f"{each['peak_mib']:10.0f}" if "peak_mib" in each else ""
        print(f"{name:24}{times}{each['wall_ratio']:8.3f}{each['cpu_ratio']:8.3f}{apart}{memory}", flush=True)


def arguments() -> argparse.Namespace:
    everybody = ["cloister", "vmap", *MODES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="narrow networks, 16 images, 3 rounds, no memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there, after every row")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batch", type=int, nargs="*", help="64 and 256; of the ViT 64")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", default=everybody, choices=everybody, help="beside the ordinary step")
    parser.add_argument("--no-memory", action="store_true", help="times only")
    parser.add_argument("--minutes", type=float, default=120.0, help="no row is begun after so long")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = 3 if options.quick else options.rounds
    return options


if __name__ == "__main__":
    sys.exit(main())
