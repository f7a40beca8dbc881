"""A private training step beside an ordinary one, and beside what PyTorch's own and Opacus's ways make of it.

    python benchmarks/privacy_training.py --quick      small batches, to see that it runs
    python benchmarks/privacy_training.py --json F     VGG-9 and ResNet-32, batches of 64 and 256, 1 and 2 threads

Contenders, each with its own copy of the same network, the same images and the same SGD:

* *sgd*: an ordinary step, channels first and channels last. The better is what the ratios are over.
* *cloister*: forward, backward, rows, clipped and rounded sum, discrete noise, step; in both layouts.
* *hooks*, *ghost*: Opacus, by per-sample gradients and by ghost clipping, where it is installed.
* *vmap*: ``torch.func.vmap(grad)``, clipped and summed, with torch's own noise.

Batches are as they come here: no padding, for nobody (a loader that hides the batch's size adds rows: 137 in place of
64, 393 in place of 256; see docs/privacy.md). Times are medians of rounds in which all contenders take turns: wall
time, and the process's CPU time, which a busy machine changes less. Peak memory is of a process of its own for each.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from _machine import facts
from cloister.privacy._clipping import Flat
from cloister.privacy._engine import Engine
from cloister.privacy._grid import GRID_SIGMA
from cloister.privacy._kernels import row_kernels
from cloister.privacy._noise import NoiseSource

Step = Callable[[], None]

TARGETS = {"vgg9": 0.95, "resnet32": 0.93}
CLASSES, PIXELS = 10, 32


class Block(nn.Module):
    """Two convolutions and a shortcut, as ResNets of CIFAR have them, with group norms."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.first, self.second = nn.GroupNorm(8, outputs), nn.GroupNorm(8, outputs)
        plain = stride == 1 and inputs == outputs
        self.short = nn.Identity() if plain else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of images, ``(B, C, H, W)``."""
        y = self.second(self.two(functional.relu(self.first(self.one(x)))))
        return functional.relu(y + self.short(x))


def vgg9(narrow: int = 1) -> nn.Module:
    """Six convolutions of 32 to 128 channels and three Linear layers: 0.88 M parameters, 39.5 M multiplications."""
    layers: list[nn.Module] = []
    inputs = 3
    for width in (32, 32, 0, 64, 64, 0, 128, 128, 0):
        if width:
            layers += [nn.Conv2d(inputs, width // narrow, 3, padding=1), nn.ReLU()]
            inputs = width // narrow
        else:
            layers.append(nn.MaxPool2d(2))
    wide = 256 // narrow
    head = (nn.Linear(16 * inputs, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, CLASSES))
    return nn.Sequential(*layers, nn.Flatten(), *head)


def resnet32(narrow: int = 1) -> nn.Module:
    """Three stages of five blocks at 16, 32 and 64 channels: 0.47 M parameters, 69 M multiplications."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.GroupNorm(8, 16), nn.ReLU()]
    inputs = 16
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        for place in range(5 if narrow == 1 else 1):
            layers.append(Block(inputs, width, stride if place == 0 else 1))
            inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))


NETWORKS = {"vgg9": vgg9, "resnet32": resnet32}


def parts(network: str, batch: int, narrow: int, last: bool) -> tuple[nn.Module, Tensor, Tensor, torch.optim.Optimizer]:
    """A network, images, labels and an optimizer."""
    torch.manual_seed(0)
    model = NETWORKS[network](narrow)
    x, labels = torch.randn(batch, 3, PIXELS, PIXELS), torch.randint(0, CLASSES, (batch,))
    if last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    return model.train(), x, labels, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)


def plain(network: str, batch: int, narrow: int, *, last: bool) -> Step:
    model, x, labels, optimizer = parts(network, batch, narrow, last)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return step


def ours(network: str, batch: int, narrow: int, *, last: bool) -> Step:
    model, x, labels, optimizer = parts(network, batch, narrow, last)
    noise = NoiseSource(GRID_SIGMA)
    engine = Engine(
        model,
        Flat(1.0),
        noise_multiplier="1",
        noise=noise,
        kernels=row_kernels(torch.device("cpu")),
        expected=float(batch),
        reduction="mean",
        arena_bytes=1 << 30,
    )
    owners = torch.arange(batch)

    def step() -> None:
        noise.prefetch(engine.size)
        functional.cross_entropy(engine.forward(model.__call__, ((x,), {}), batch), labels).backward()
        engine.gather(owners)
        engine.release()
        optimizer.step()
        optimizer.zero_grad()

    return step


def opacus(network: str, batch: int, narrow: int, *, ghost: bool) -> Step:
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    model, x, labels, optimizer = parts(network, batch, narrow, False)
    criterion: Any = nn.CrossEntropyLoss()
    loader = DataLoader(TensorDataset(x, labels), batch_size=batch)
    settings: dict[str, Any] = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "poisson_sampling": False}
    if ghost:
        settings |= {"criterion": criterion, "grad_sample_mode": "ghost"}
        model, optimizer, criterion, _ = PrivacyEngine().make_private(
            module=model, optimizer=optimizer, data_loader=loader, **settings
        )
    else:
        model, optimizer, _ = PrivacyEngine().make_private(
            module=model, optimizer=optimizer, data_loader=loader, **settings
        )

    def step() -> None:
        optimizer.zero_grad()
        criterion(model(x), labels).backward()
        optimizer.step()

    return step


def vmapped(network: str, batch: int, narrow: int) -> Step:
    model, x, labels, optimizer = parts(network, batch, narrow, False)
    names = [name for name, _ in model.named_parameters()]

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, parameters, (image.unsqueeze(0),))
        return functional.cross_entropy(outputs, label.unsqueeze(0))

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0), randomness="different")

    def step() -> None:
        rows = gradients({name: value.detach() for name, value in model.named_parameters()}, x, labels)
        norms = torch.stack([rows[name].flatten(1).norm(dim=1) for name in names]).norm(dim=0)
        factors = (1.0 / norms).clamp(max=1.0)
        for name, parameter in model.named_parameters():
            total = torch.einsum("b,b...->...", factors, rows[name])
            parameter.grad = (total + torch.randn_like(total)) / batch
        optimizer.step()

    return step


def contenders(network: str, batch: int, narrow: int) -> dict[str, Callable[[], Step]]:
    """What takes part, each made when it is called."""
    found: dict[str, Callable[[], Step]] = {
        "sgd": lambda: plain(network, batch, narrow, last=False),
        "sgd, last": lambda: plain(network, batch, narrow, last=True),
        "cloister": lambda: ours(network, batch, narrow, last=False),
        "cloister, last": lambda: ours(network, batch, narrow, last=True),
        "vmap": lambda: vmapped(network, batch, narrow),
    }
    if importlib.util.find_spec("opacus") is not None:
        found["hooks"] = lambda: opacus(network, batch, narrow, ghost=False)
        found["ghost"] = lambda: opacus(network, batch, narrow, ghost=True)
    return found


def measured(network: str, batch: int, narrow: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians, and ratios over the better ordinary step."""
    steps = {name: make() for name, make in contenders(network, batch, narrow).items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for turn in range(rounds + 2):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            if turn >= 2:
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    rows = {
        name: {
            "wall_s": statistics.median(wall for wall, _ in each),
            "cpu_s": statistics.median(cpu for _, cpu in each),
        }
        for name, each in times.items()
    }
    for kind in ("wall", "cpu"):
        best = min(rows[name][f"{kind}_s"] for name in ("sgd", "sgd, last"))
        for row in rows.values():
            row[f"{kind}_ratio"] = best / row[f"{kind}_s"]
    return rows


def peak_mib(name: str, network: str, batch: int, narrow: int) -> float:
    """Of a process that makes three steps of one contender."""
    command = [sys.executable, __file__, "--peak", name, network, str(batch), str(narrow)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak(name: str, network: str, batch: str, narrow: str) -> None:
    step = contenders(network, int(batch), int(narrow))[name]()
    for _ in range(3):
        step()
    # not getrusage: its peak is handed on by whoever started this process
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    print(int(status["VmHWM"].split()[0]) / 1024)


def main() -> int:
    warnings.filterwarnings("ignore")
    options = arguments()
    if options.peak:
        peak(*options.peak)
        return 0
    narrow = 8 if options.quick else 1
    found: dict[str, Any] = {"machine": facts(torch.device("cpu")), "rounds": options.rounds, "steps": {}}
    for network in options.networks:
        for batch in (16,) if options.quick else options.batch:
            for threads in (1,) if options.quick else options.threads:
                torch.set_num_threads(threads)
                rows = measured(network, batch, narrow, options.rounds)
                if threads == 1:
                    for name, row in rows.items():
                        row["peak_mib"] = peak_mib(name, network, batch, narrow)
                found["steps"][f"{network}, batch {batch}, {threads} threads"] = rows
                print(f"\n{network}, batch {batch}, {threads} threads; target {TARGETS[network]}")
                for name, row in rows.items():
                    memory = f"{row['peak_mib']:8.0f} MiB" if "peak_mib" in row else ""
                    times = f"{1e3 * row['wall_s']:9.1f} ms wall{1e3 * row['cpu_s']:9.1f} ms CPU"
                    print(f"{name:16}{times}{row['wall_ratio']:8.3f}{row['cpu_ratio']:8.3f}{memory}", flush=True)
    print(f"\nratios over the better ordinary step; {json.dumps(found['machine'], ensure_ascii=False)}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="narrow networks, 16 images")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batch", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
