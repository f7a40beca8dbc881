"""Per-example weight gradients with their norms, beside the gradients of the whole batch that torch makes.

    python benchmarks/privacy_kernels.py --quick           three small layers, to see that it runs
    python benchmarks/privacy_kernels.py --json F          layers of VGG-9 and ResNet-32, and others; also writes them
    python benchmarks/privacy_kernels.py --only 3×3        only layers with this in their names

Contenders, all of one layer and one batch, each in both layouts, channels first and channels last:

* *batch*: the batch's weight gradient by torch (oneDNN), the weight part of its own backward: what an ordinary step
  pays. It keeps nothing an example.
* *rows*: ours: a row an example and its squared norm, in the kernel's order; *weight*: the same in the weight's.
* *sum*: the rows scaled, rounded and summed to integers: what a private step pays besides.
* *grouped*: per-example gradients as torch can make them fastest, one convolution with a group an example; no norm.

One thread unless ``--threads``. Times are the thread's CPU time where there is one thread, and wall time where there
are more; a figure is the median of at least 9 rounds, which go through all contenders in turn, so that a machine that
drifts drifts for all. What counts are the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _machine import processor
from cloister.privacy._kernels import RowKernels, row_kernels

Call = Callable[[], object]

LAYOUTS = {"first": torch.contiguous_format, "last": torch.channels_last}
ROUNDS = 9


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution without bias."""

    inputs: int
    outputs: int
    pixels: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1

    @property
    def padding(self) -> int:
        """As many as keep the size."""
        return self.kernel // 2

    @property
    def name(self) -> str:
        """For tables."""
        stride = f"/{self.stride}" if self.stride > 1 else ""
        groups = f", {self.groups} groups" if self.groups > 1 else ""
        taps = f"{self.kernel}×{self.kernel}"
        return f"{self.inputs}→{self.outputs} {taps}, {self.pixels}×{self.pixels}{stride}{groups}"


FULL = (
    Layer(3, 16, 32),
    Layer(16, 16, 32),
    Layer(16, 32, 32, stride=2),
    Layer(16, 32, 32, kernel=1, stride=2),
    Layer(32, 32, 16),
    Layer(64, 64, 8),
    Layer(3, 32, 32),
    Layer(32, 32, 32),
    Layer(64, 64, 16),
    Layer(128, 128, 8),
    Layer(256, 256, 8, kernel=1),
    Layer(64, 64, 32, groups=64),
)
QUICK = (Layer(3, 16, 16), Layer(16, 16, 16), Layer(32, 32, 8, kernel=1))


def main() -> int:
    options = arguments()
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {"machine": machine(), "rounds": options.rounds, "layers": {}}
    kernels = row_kernels(torch.device("cpu"), prefer=options.kernels)
    print(f"{'layer':<32}{'layout':<8}{'batch':>8}{'rows':>8}{'weight':>8}{'sum':>8}{'grouped':>9}{'rows/batch':>12}")
    for layer in QUICK if options.quick else FULL:
        if options.only not in layer.name:
            continue
        found = measured(kernels, layer, 8 if options.quick else options.batch, options.rounds)
        report["layers"][layer.name] = found
        for layout, row in found.items():
            times = "".join(f"{row[who]:>{width}.2f}" for who, width in WIDTHS.items())
            print(f"{layer.name:<32}{layout:<8}{times}{row['rows'] / row['batch']:>11.2f}x", flush=True)
    print(f"\nmilliseconds; {json.dumps(report['machine'], ensure_ascii=False)}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return 0


WIDTHS = {"batch": 8, "rows": 8, "weight": 8, "sum": 8, "grouped": 9}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small layers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--only", default="", metavar="TEXT", help="only layers with this in their names")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kernels", default=None, help="ours, by name; by default the fastest")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    return parser.parse_args()


def machine() -> dict[str, Any]:
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def measured(kernels: RowKernels, layer: Layer, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds by layout and contender; compares the contenders' results first."""
    contenders: dict[tuple[str, str], Call] = {}
    for layout, memory in LAYOUTS.items():
        for who, call in calls(kernels, layer, batch, memory).items():
            contenders[layout, who] = call
    taken: dict[tuple[str, str], list[float]] = {which: [] for which in contenders}
    for call in contenders.values():
        call()
        call()
    for _ in range(rounds):
        for which, call in contenders.items():
            taken[which].append(elapsed(call))
    return {
        layout: {who: 1e3 * statistics.median(taken[layout, who]) for who in WIDTHS if (layout, who) in taken}
        for layout in LAYOUTS
    }


def elapsed(call: Call) -> float:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    call()
    return clock() - start


def calls(kernels: RowKernels, layer: Layer, batch: int, memory: torch.memory_format) -> dict[str, Call]:
    """The contenders, after a look at whether they agree."""
    generator = torch.Generator().manual_seed(0)
    taps = (layer.kernel, layer.kernel)
    stride, padding = [layer.stride] * 2, [layer.padding] * 2
    geometry = {"kernel": taps, "stride": tuple(stride), "padding": tuple(padding), "groups": layer.groups}
    x = torch.randn(batch, layer.inputs, layer.pixels, layer.pixels, generator=generator).contiguous(
        memory_format=memory
    )
    weight = torch.randn(layer.outputs, layer.inputs // layer.groups, *taps, generator=generator)
    weight = weight.contiguous(memory_format=memory)
    y = torch.nn.functional.conv2d(x, weight, None, stride, padding, 1, layer.groups)
    dy = torch.randn(y.shape, generator=generator).contiguous(memory_format=memory)
    rows, squares = torch.zeros(batch, weight.numel()), torch.zeros(batch, dtype=torch.float64)
    factors, total = torch.full((batch,), 2.0**12, dtype=torch.float64), torch.zeros(weight.numel(), dtype=torch.int64)

    def whole() -> Tensor:
        return weight_part(dy, x, weight, stride, padding, layer.groups)

    def grouped() -> Tensor:
        """One picture whose channels are all examples'."""
        one, gradient = (side.reshape(1, -1, *side.shape[2:]) for side in (x, dy))
        many = weight.repeat(batch, 1, 1, 1)
        return weight_part(gradient, one, many, stride, padding, batch * layer.groups)

    def ours(order: str) -> None:
        kernels.conv2d_rows(x, dy, rows, squares, **geometry, order=order)  # type: ignore[arg-type]

    ours("weight")
    expected = grouped().reshape(batch, -1)
    assert (rows - expected).norm() <= 1e-5 * expected.norm()
    assert (rows.sum(0).view_as(weight) - whole()).norm() <= 1e-5 * expected.sum(0).norm()
    return {
        "batch": whole,
        "rows": lambda: ours("kernel"),
        "weight": lambda: ours("weight"),
        "sum": lambda: kernels.sum_rounded(rows, factors, total),
        "grouped": grouped,
    }


def weight_part(dy: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], groups: int) -> Tensor:
    found = torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, [1, 1], False, [0, 0], groups, [False, True, False]
    )
    return found[1]


if __name__ == "__main__":
    sys.exit(main())
