"""Inference that is verified, and private, against the enclave alone, on the same cores, in the same run.

    python benchmarks/offload_inference.py --quick            narrow networks, small images: that it runs
    python benchmarks/offload_inference.py --json F --plot P  VGG-16, MobileNet and ResNet-50 at 224 pixels

Contenders, each the same network with the same weights, batch normalisation folded into the convolutions:

* ``fp32``: the enclave alone, torch on the CPU, in the layout of memory that is faster here.
* ``int8``: the enclave alone, torch's static quantisation with oneDNN's kernels: unsigned activations, a scale an
  output channel of a weight, convolutions with their activations in one kernel. Faster than exact integers, since what
  a layer gives is rounded to 8 bits again before it is written.
* ``enclave``: the enclave alone, with the integers that all modes below have.
* ``verify``: one worker, everything checked, nothing hidden: Slalom's integrity.
* ``blind``: one worker that sees masked inputs. Blinding is made ahead, and its time is in a column of its own. Checks
  are made here as everywhere, so this is Slalom's privacy and integrity together, its "both"; privacy without checks is
  not to be had.
* ``gpu``: the whole network on the GPU, where there is one, trusted with everything.

Workers are in this process, on the device that is there. Without a GPU they share the cores with the enclave; then what
counts are the enclave's own seconds (``inside``), which no GPU makes shorter, and what they leave of the enclave alone
(``at most``). The column ``PROJECTED`` says what a GPU behind PCIe would make of it, by the planner's cost model under
the assumptions that are printed with it. All modes are seen to give the same bits.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import _projection
from _bars import plot
from _machine import facts
from _stages import STAGES, Clock, timed_workers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.networks import folded, mobilenet, resnet50, vgg16  # noqa: E402
from cloister.offload import offload, offloading, onload, precompute, report  # noqa: E402

NETWORKS: dict[str, Callable[..., nn.Module]] = {"vgg16": vgg16, "mobilenet": mobilenet, "resnet50": resnet50}
MODES = ("verify", "blind", "blind2")
SLALOM = {"vgg16": (20.0, 10.0), "mobilenet": (6.0, 3.5)}  # times its enclave: verified, private and verified
TARGET = 20.0
INSIDE = tuple(stage for stage in STAGES if stage not in ("GEMM", "transfer"))
WARM = 2
Rows = dict[str, dict[str, Any]]


def main() -> int:
    options = arguments()
    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = True
    size = (8, 64, 2) if options.quick else (1, 224, options.batch or (64 if device.type == "cuda" else 4))
    narrow, pixels, batch = size
    found: dict[str, Any] = {"machine": facts(device), "rounds": options.rounds, "batch": batch, "pixels": pixels}
    found["networks"] = networks = {}
    for name in options.networks:
        networks[name] = rows = network(NETWORKS[name], size, device, options)
        print(f"\n{name}, {batch} images of {pixels} pixels{', an eighth as wide' if narrow > 1 else ''}")
        print(text(name, rows), flush=True)
    found["projection"] = _projection.as_json()
    print(f"\n{json.dumps(found['machine'], ensure_ascii=False)}")
    print(f"PROJECTED, not measured: {_projection.ASSUMED}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    if options.plot:
        where = f"{found['machine']['cpu']}, {found['machine']['cores']} cores; {found['machine']['device']}"
        what = f"{batch} images of {pixels} pixels, median of {options.rounds}"
        plot(options.plot, networks, total="pass_s", lines=("fp32", "int8"), subtitle=f"{what}; {where}")
    return 0 if all(row["same"] for rows in networks.values() for row in rows.values()) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="an eighth of the width, 2 images of 64 pixels")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw where a pass's time goes, SVG or PNG")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--modes", nargs="*", default=["verify", "blind"], choices=MODES)
    parser.add_argument("--batch", type=int, default=None, help="in place of 4 on a CPU and 64 on a GPU")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def network(
    build: Callable[..., nn.Module], size: tuple[int, int, int], device: torch.device, options: argparse.Namespace
) -> Rows:
    """Median seconds of a pass by everybody, interleaved."""
    narrow, pixels, batch = size
    torch.manual_seed(0)
    model = built(build, narrow, pixels)
    images = torch.randn(batch, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))
    contenders: dict[str, Any] = {"fp32": Plain(fastest(model, images)), "int8": Plain(quantised(model, images))}
    if device.type == "cuda":
        contenders["gpu"] = Trusted(copy.deepcopy(model).to(device), device)
    for mode in ("enclave", *options.modes):
        contenders[mode] = Contender(mode, copy.deepcopy(model), device)
    with torch.inference_mode():
        for contender in contenders.values():
            contender.warm(images)
        for _ in range(options.rounds):
            for contender in contenders.values():
                contender.round(images)
    rows = {name: contender.row(batch, options.rounds) for name, contender in contenders.items()}
    bits = contenders["enclave"].answer
    for name, contender in contenders.items():
        row = rows[name]
        row["same"] = not isinstance(contender, Contender) or torch.equal(bits, contender.answer)
        for baseline in ("fp32", "int8"):
            row[f"over_{baseline}"] = rows[baseline]["pass_s"] / row["pass_s"]
            if "projected_s" in row:
                row[f"at_most_over_{baseline}"] = rows[baseline]["pass_s"] / row["inside_s"]
                row[f"projected_over_{baseline}"] = rows[baseline]["pass_s"] / row["projected_s"]
        contender.close()
    return rows


def built(build: Callable[..., nn.Module], narrow: int, pixels: int) -> nn.Module:
    """The network with random weights, for inference."""
    model = build(narrow=narrow, pixels=pixels) if build is vgg16 else build(narrow=narrow)
    return folded(model).requires_grad_(False)


def fastest(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy in whichever layout of memory torch is faster with."""
    copies = [copy.deepcopy(model), copy.deepcopy(model).to(memory_format=torch.channels_last)]  # pyright: ignore[reportCallIssue]
    with torch.inference_mode():
        for each in copies:
            each(images)
        times = [min(seconds(lambda each=each: each(images)) for _ in range(2)) for each in copies]
    return copies[times.index(min(times))]


def quantised(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy in 8 bits, calibrated on the images, with oneDNN's kernels."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch moves this interface to a package of its own
        torch.backends.quantized.engine = "onednn"
        prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping("onednn"), (images,))
        prepared(images)
        return convert_fx(prepared)


def seconds(work: Callable[[], object]) -> float:
    """Wall time."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Plain:
    """A model of torch's own."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.times: list[float] = []

    def warm(self, images: Tensor) -> None:
        """Not counted."""
        for _ in range(WARM):
            self.model(images)

    def round(self, images: Tensor) -> None:
        """One pass."""
        self.times.append(seconds(lambda: self.model(images)))

    def row(self, batch: int, rounds: int) -> dict[str, Any]:
        """What the table and the JSON say of it."""
        pass_s = statistics.median(self.times)
        return {"pass_s": pass_s, "least_s": min(self.times), "images_s": batch / pass_s}

    def close(self) -> None:
        """Nothing to end."""


class Trusted(Plain):
    """The whole model on the GPU; images come from the CPU, and scores go back."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__(nn.Sequential(model))
        self.model.forward = lambda images: model(images.to(device)).cpu()  # type: ignore[method-assign]


class Contender(Plain):
    """An offloaded model."""

    def __init__(self, mode: str, model: nn.Module, device: torch.device) -> None:
        super().__init__(model)
        self.mode = mode
        self.clock = Clock()
        self.stages: list[dict[str, float]] = []
        self.ahead: list[float] = []
        self.answer = torch.empty(0)
        self.workers = timed_workers(mode, device)
        offload(model, mode=mode, workers=self.workers or None)  # type: ignore[arg-type]

    def warm(self, images: Tensor) -> None:
        """The second pass knows what to make ahead."""
        super().warm(images)
        offloading(self.model).engine.products.clear()

    def round(self, images: Tensor) -> None:
        """One pass, and what is made before it."""
        self.ahead.append(seconds(lambda: precompute(self.model)))
        taken, stages = self.clock.step(lambda: setattr(self, "answer", self.model(images)), self.workers)
        self.times.append(taken)
        self.stages.append(stages)

    def row(self, batch: int, rounds: int) -> dict[str, Any]:
        """With its stages, its traffic, and the projection."""
        row = super().row(batch, rounds)
        row["stages_s"] = {stage: statistics.median(each[stage] for each in self.stages) for stage in STAGES}
        made = report(self.model)
        row["sent_bytes"] = sum(layer.sent_bytes for layer in made.layers) // rounds
        row["received_bytes"] = sum(layer.received_bytes for layer in made.layers) // rounds
        row["checks"] = made.checks // rounds
        row["multiplications"] = sum(layer.multiplications for layer in made.layers) // rounds
        row["ahead_s"] = statistics.median(self.ahead)
        row["late"] = made.late
        if self.workers:
            row["inside_s"] = sum(row["stages_s"][stage] for stage in INSIDE)
            opening = row["stages_s"]["PRG"] if self.mode == "blind" else 0.0
            row["projected_s"] = _projection.projected_s(
                self.model,
                self.mode,
                calls=WARM + rounds,
                besides_s=row["stages_s"]["non-linear"] + opening,
                training=False,
            )
        return row

    def close(self) -> None:
        """Ends the workers' sessions."""
        onload(self.model)


def text(name: str, rows: Rows) -> str:
    lines = [
        f"{'':9}{'pass s':>9}{'images/s':>10}{'× fp32':>8}{'× int8':>8}{'ahead s':>9}{'sent MB':>9}{'back MB':>9}"
        f"{'checks':>8}{'inside s':>10}{'at most':>9}{'PROJECTED s':>13}{'× fp32':>8}{'× int8':>8}"
    ]
    for contender, row in rows.items():
        line = f"{contender:9}{row['pass_s']:9.3f}{row['images_s']:10.2f}{row['over_fp32']:8.2f}{row['over_int8']:8.2f}"
        if "projected_s" in row:
            line += f"{row['ahead_s']:9.3f}{row['sent_bytes'] / 1e6:9.1f}{row['received_bytes'] / 1e6:9.1f}"
            line += f"{row['checks']:8}{row['inside_s']:10.3f}{row['at_most_over_fp32']:9.2f}{row['projected_s']:13.3f}"
            line += f"{row['projected_over_fp32']:8.2f}{row['projected_over_int8']:8.2f}"
        lines.append(line if row["same"] else f"{line}  OTHER BITS")
    for contender, row in rows.items():
        if "stages_s" in row:
            parts = ", ".join(f"{stage} {row['stages_s'][stage]:.3f}" for stage in STAGES)
            lines.append(f"{contender:9}{parts}")
    if name in SLALOM:
        verified, both = SLALOM[name]
        lines.append(f"published for Slalom, over its enclave: {verified}× verified, {both}× private and verified")
    lines.append(f"our target with a GPU: {TARGET:.0f}× fp32, private and verified, on VGG-16")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
