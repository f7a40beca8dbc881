"""A training step in every mode against the enclave alone, on the same cores, in the same run.

    python benchmarks/offload_training.py --quick            a narrow VGG-11, to see that it runs
    python benchmarks/offload_training.py --json F --plot P  VGG-11 and ResNet-32 at CIFAR-10's size, batch 128

Baselines: the same model in fp32, and in 8-bit integers (mode ``enclave``), in this process. Workers are in this
process too, on the device that is there, and on a machine without a GPU they share the cores with the enclave: then
the ratios say what a mode costs, not what it gains. What a GPU behind PCIe would make of it is *projected* from the
enclave's own seconds and the bytes, and marked as a projection. All modes are seen to give the same bits.

Traffic is counted as tensors; ``shared5`` is Goten as published.
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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from _machine import processor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.networks import NETWORKS  # noqa: E402

from cloister.offload import InlineWorker, offload, offloading, onload, report  # noqa: E402
from cloister.offload._schemes import SCHEMES  # noqa: E402

TARGETS = {"shared3": 15.0, "shared5": 6.84}  # times the enclave alone; the second is Goten's published figure
PRIVATE = ("verify", "shared5", "shared3")
STAGES = ("hide", "ask", "wait", "recover", "check", "other")
PCIE_BYTES_S = 50e9  # of PCIe 5 x16, each way
RING_OPS_S = 130e12  # what the research page expects of the fused kernel on an H200: an assumption, not a measurement


def main() -> int:
    options = arguments()
    device = torch.device(options.device)
    found: dict[str, Any] = {"machine": machine(device), "rounds": options.rounds, "networks": {}}
    for name in options.networks:
        batch = 8 if options.quick else options.batch
        narrow = 8 if options.quick else 1
        found["networks"][name] = rows = network(name, batch, narrow, device, options.rounds)
        print(f"\n{name}, batch {batch}{', an eighth as wide' if narrow > 1 else ''}")
        print(text(rows), flush=True)
    print(f"\n{json.dumps(found['machine'], ensure_ascii=False)}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    if options.plot:
        plot(found["networks"], options.plot)
    return 0 if all(row["same"] for rows in found["networks"].values() for row in rows.values()) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="an eighth of the width, 8 images")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw where a step's time goes, SVG or PNG")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--networks", nargs="*", default=["vgg11", "resnet32"], choices=sorted(NETWORKS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def network(name: str, batch: int, narrow: int, device: torch.device, rounds: int) -> dict[str, dict[str, Any]]:
    """Median seconds of a step by everybody, interleaved."""
    images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(0, 10, (batch,), generator=torch.Generator().manual_seed(2))
    contenders: dict[str, Contender] = {}
    for mode in ("fp32", "enclave", *PRIVATE):
        contenders[mode] = Contender(mode, NETWORKS[name], narrow, device)
    times: dict[str, list[float]] = {mode: [] for mode in contenders}
    for contender in contenders.values():
        for _ in range(2):  # the second pass knows what to make ahead
            contender.step(images, labels)
        contender.clear()
    for _ in range(rounds):
        for mode, contender in contenders.items():
            times[mode].append(contender.step(images, labels))
    rows = {mode: contender.row(times[mode], batch) for mode, contender in contenders.items()}
    bits = contenders["enclave"].weights()
    for mode, contender in contenders.items():
        rows[mode]["same"] = mode == "fp32" or all(
            torch.equal(a, b) for a, b in zip(bits, contender.weights(), strict=True)
        )
        rows[mode]["over_fp32"] = rows["fp32"]["step_s"] / rows[mode]["step_s"]
        rows[mode]["over_int8"] = rows["enclave"]["step_s"] / rows[mode]["step_s"]
        contender.close()
    return rows


class Contender:
    """One model, its optimizer and its mode."""

    def __init__(self, mode: str, build: Callable[..., nn.Module], narrow: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.model = build(narrow=narrow)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.offloaded = mode != "fp32"
        if mode == "enclave":
            offload(self.model, mode="enclave")
        elif self.offloaded:
            count = SCHEMES[mode].workers  # type: ignore[index]
            workers = [InlineWorker(f"worker-{index}", device=device) for index in range(count)]
            offload(self.model, mode=mode, workers=workers)  # type: ignore[arg-type]

    def step(self, images: Tensor, labels: Tensor) -> float:
        """One step of training; its seconds."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        functional.cross_entropy(self.model(images), labels).backward()
        self.optimizer.step()
        return time.perf_counter() - start

    def clear(self) -> None:
        """Forgets the warm-up."""
        if self.offloaded:
            offloading(self.model).engine.meter.clear()

    def weights(self) -> list[Tensor]:
        """The parameters."""
        return list(self.model.parameters())

    def row(self, times: list[float], batch: int) -> dict[str, Any]:
        """What the table and the JSON say of it."""
        step_s = statistics.median(times)
        row: dict[str, Any] = {"step_s": step_s, "images_s": batch / step_s, "least_s": min(times)}
        if not self.offloaded:
            return row
        made = report(self.model)
        seconds = {stage: sum(layer.seconds[stage] for layer in made.layers) / len(times) for stage in STAGES[:-1]}
        seconds["other"] = max(0.0, sum(times) / len(times) - sum(seconds.values()))
        row["stages_s"] = seconds
        row["sent_bytes"] = sum(layer.sent_bytes for layer in made.layers) // len(times)
        row["received_bytes"] = sum(layer.received_bytes for layer in made.layers) // len(times)
        row["checks"] = made.checks // len(times)
        row["multiplications"] = sum(layer.multiplications for layer in made.layers) // len(times)
        if made.workers:
            moved = max(row["sent_bytes"], row["received_bytes"]) / len(made.workers) / PCIE_BYTES_S
            product_s = 2 * row["multiplications"] / RING_OPS_S
            inside = sum(seconds[stage] for stage in ("hide", "ask", "recover", "check", "other"))
            row["projected_step_s"] = inside + moved + product_s
        return row

    def close(self) -> None:
        """Ends the workers' sessions."""
        if self.offloaded:
            onload(self.model)


def text(rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"{'mode':9}{'step s':>9}{'images/s':>10}{'× fp32':>8}{'× int8':>8}{'sent MB':>9}{'back MB':>9}"
        f"{'checks':>8}{'projected s':>13}  same bits"
    ]
    for mode, row in rows.items():
        traffic = (
            f"{row['sent_bytes'] / 1e6:9.1f}{row['received_bytes'] / 1e6:9.1f}{row['checks']:8}"
            if "sent_bytes" in row
            else f"{'–':>9}{'–':>9}{'–':>8}"
        )
        projected = f"{row['projected_step_s']:13.3f}" if "projected_step_s" in row else f"{'–':>13}"
        lines.append(
            f"{mode:9}{row['step_s']:9.3f}{row['images_s']:10.1f}{row['over_fp32']:8.2f}{row['over_int8']:8.2f}"
            f"{traffic}{projected}  {'yes' if row['same'] and mode != 'fp32' else '–'}"
        )
    if "shared5" in rows:
        ratio = rows["shared3"]["sent_bytes"] / rows["shared5"]["sent_bytes"]
        lines.append(f"shared3 sends {ratio:.2f} of what shared5 does; projected: PCIe 5 and an H200, a projection")
    return "\n".join(lines)


def plot(networks: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """A stacked bar a mode: where the enclave's time of a step goes."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(networks), figsize=(5 * len(networks), 3.6), squeeze=False)
    for axis, (name, rows) in zip(axes[0], networks.items(), strict=True):
        modes = [mode for mode in rows if "stages_s" in rows[mode]]
        below = [0.0] * len(modes)
        for stage in STAGES:
            values = [rows[mode]["stages_s"][stage] for mode in modes]
            axis.bar(modes, values, bottom=below, label=stage)
            below = [a + b for a, b in zip(below, values, strict=True)]
        axis.axhline(rows["fp32"]["step_s"], color="black", linewidth=1, linestyle="--", label="fp32 alone")
        axis.set_title(name)
        axis.set_ylabel("seconds a step")
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def machine(device: torch.device) -> dict[str, Any]:
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "workers on the same cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
