"""A training step in every mode against the enclave alone, on the same cores, in the same run.

    python benchmarks/offload_training.py --quick            narrow networks, to see that it runs
    python benchmarks/offload_training.py --json F --plot P  VGG-11 and ResNet-32 on CIFAR-10, ViT-B, a block of 4096

Contenders, each the same network with the same weights and the same batch:

* ``fp32``: the enclave alone, torch on the CPU.
* ``enclave``: the enclave alone in 8-bit integers, on oneDNN's int8 kernels where the CPU has them; torch has no other
  training in 8 bits. It is the ``int8`` of the ratios.
* ``verify``; ``shared5``, which is Goten as published, but that each operand is shared once a step; ``shared3``.
* ``gpu``: the whole step on the GPU, where there is one, trusted with everything.

Workers are in this process, on the device that is there. Without a GPU they share the cores with the enclave; then what
counts are the enclave's own seconds (``inside``), which no GPU makes shorter. The column ``PROJECTED`` says what GPUs
behind PCIe would make of it, by the planner's cost model under the assumptions that are printed with it. All modes are
seen to give the same bits.

Counted in a step of its own, that is not timed: how often the enclave's thread goes over an operand before it is sent
and over an answer after it came, and how often a server is sent an operand; Goten's code goes over a tensor about six
times, and sends each four times. Traffic is counted as tensors.

Images are CIFAR-10's, from the folder CLOISTER_TEST_DATA or ../shared/data, and random pixels where there are none, as
for ViT-B: a step takes as long. The block of 4096 has its contenders one after the other, for want of memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import _projection
from _bars import plot
from _machine import facts
from _stages import PUBLISHED_PASSES, PUBLISHED_UPLOADS, STAGES, Clock, counts, timed_workers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.networks import TransformerBlock, resnet32, vgg11, vit  # noqa: E402
from cloister.offload import offload, offloading, onload, report  # noqa: E402

TARGET = 15.0  # times the enclave alone
GOTEN_RATIO, GOTEN_IMAGES_S = 6.84, 54.6  # published: VGG-11 on CIFAR-10
MODES = ("verify", "shared5", "shared3")
INSIDE = tuple(stage for stage in STAGES if stage not in ("GEMM", "transfer"))
WARM = 2
Rows = dict[str, dict[str, Any]]
Batch = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Workload:
    """A network and what it is trained on.

    Attributes:
        build: Makes it, narrow or not.
        batch: Makes so many samples, of the size for a narrow network or not, and says what they are.
        sizes: Samples of a batch with workers on the CPU, by default.
        gpu_sizes: The same on a GPU.
        together: Whether contenders take turns, step by step.
    """

    build: Callable[[int], nn.Module]
    batch: Callable[[int, bool], tuple[Batch, str]]
    sizes: tuple[int, ...]
    gpu_sizes: tuple[int, ...]
    together: bool = True


def cifar(count: int, quick: bool) -> tuple[Batch, str]:
    """The first images of CIFAR-10, and their labels."""
    folder = Path(os.environ.get("CLOISTER_TEST_DATA", ROOT.parent / "shared" / "data")) / "cifar10"
    if not folder.is_dir():
        batch, said = pictures(count, 32, 10)
        return batch, f"{said}: no CIFAR-10 at CLOISTER_TEST_DATA or ../shared/data"
    with np.load(folder / "train.npz") as found:
        images = torch.from_numpy(found["images"][:count]).permute(0, 3, 1, 2).contiguous()
        labels = torch.from_numpy(found["labels"][:count]).long()
    return (images.float() / 127.5 - 1, labels), "CIFAR-10"


def pictures(count: int, pixels: int, classes: int) -> tuple[Batch, str]:
    """Random ones."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, pixels, pixels, generator=generator)
    return (images, torch.randint(0, classes, (count,), generator=generator)), "random pixels"


def tokens(count: int, quick: bool) -> tuple[Batch, str]:
    """Random sequences, as they come into a block."""
    length, width = (16, 64) if quick else (256, 4096)
    values = torch.randn(count, length, width, generator=torch.Generator().manual_seed(1))
    return (values, None), f"sequences of {length} random tokens of {width}"


def block(narrow: int) -> nn.Module:
    """One of a language model, 4096 wide."""
    return TransformerBlock(4096, 32, causal=True) if narrow == 1 else TransformerBlock(64, 4, causal=True)


WORKLOADS = {
    "vgg11": Workload(lambda narrow: vgg11(narrow=narrow), cifar, (128,), (128, 256, 512, 1024)),
    "resnet32": Workload(lambda narrow: resnet32(narrow=narrow), cifar, (128,), (128, 1024)),
    "vit": Workload(
        lambda narrow: vit(narrow=narrow, pixels=224 if narrow == 1 else 32),
        lambda count, quick: pictures(count, 32 if quick else 224, 1000),
        (4,),
        (64,),
    ),
    "block4096": Workload(block, tokens, (1,), (16,), together=False),
}


def main() -> int:
    options = arguments()
    device = torch.device(options.device)
    found: dict[str, Any] = {"machine": facts(device), "rounds": options.rounds, "networks": {}}
    for name in options.networks:
        load = WORKLOADS[name]
        sizes = load.gpu_sizes if device.type == "cuda" else load.sizes
        for size in (8,) if options.quick else options.batch or sizes:
            title = f"{name}, batch {size}"
            found["networks"][title] = rows = workload(load, size, device, options)
            print(f"\n{title}{', narrow' if options.quick else ''}, {rows['fp32']['data']}")
            print(text(name, rows), flush=True)
    found["projection"] = _projection.as_json()
    print(f"\n{json.dumps(found['machine'], ensure_ascii=False)}")
    print(f"PROJECTED, not measured: {_projection.ASSUMED}; one for each worker, each on a link of its own")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    if options.plot:
        where = f"{found['machine']['cpu']}, {found['machine']['cores']} cores; {found['machine']['device']}"
        subtitle = f"a training step, median of {options.rounds}; {where}"
        plot(options.plot, found["networks"], total="step_s", lines=("fp32",), subtitle=subtitle)
    return 0 if all(row["same"] for rows in found["networks"].values() for row in rows.values()) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="narrow networks, 8 samples")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw where a step's time goes, SVG or PNG")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--networks", nargs="*", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=MODES)
    parser.add_argument("--batch", type=int, nargs="*", help="in place of 128 on a CPU and 128 to 1024 on a GPU")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def workload(load: Workload, size: int, device: torch.device, options: argparse.Namespace) -> Rows:
    """Median seconds of a step by everybody; in turn, where memory allows."""
    batch, said = load.batch(size, options.quick)
    narrow = 8 if options.quick else 1
    names = ("fp32", *(("gpu",) if device.type == "cuda" else ()), "enclave", *options.modes)
    rows: Rows = {}
    for group in [names] if load.together else [(name,) for name in names]:
        contenders = {name: Contender(name, load.build, narrow, device) for name in group}
        for contender in contenders.values():
            contender.warm(batch)
        for _ in range(options.rounds):
            for contender in contenders.values():
                contender.round(batch)
        for name in group:
            rows[name] = contenders[name].row(batch) | {"data": said}
            contenders.pop(name).close()
    for row in rows.values():
        digest = row.pop("weights")
        if "stages_s" not in row:
            row["same"] = True
            continue
        row.setdefault("same", digest == rows["enclave"].setdefault("digest", digest))
    rows["enclave"].pop("digest")
    for row in rows.values():
        for name, baseline in (("fp32", "fp32"), ("int8", "enclave")):
            row[f"over_{name}"] = rows[baseline]["step_s"] / row["step_s"]
            if "projected_s" in row:
                row[f"at_most_over_{name}"] = rows[baseline]["step_s"] / row["inside_s"]
                row[f"projected_over_{name}"] = rows[baseline]["step_s"] / row["projected_s"]
        if "sent_bytes" in row and "shared5" in rows:
            row["sent_over_shared5"] = row["sent_bytes"] / rows["shared5"]["sent_bytes"]
    return rows


class Contender:
    """One model, its optimizer and its mode."""

    def __init__(self, mode: str, build: Callable[[int], nn.Module], narrow: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.mode = mode
        self.device = device if mode == "gpu" else torch.device("cpu")
        self.model = build(narrow).to(self.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.offloaded = mode not in ("fp32", "gpu")
        self.workers = timed_workers(mode, device)
        self.clock = Clock()
        self.times: list[float] = []
        self.stages: list[dict[str, float]] = []
        if self.offloaded:
            offload(self.model, mode=mode, workers=self.workers or None)  # type: ignore[arg-type]

    def step(self, batch: Batch) -> float:
        """One step of training; its loss, so that everything is done when it is known."""
        values, labels = (None if each is None else each.to(self.device) for each in batch)
        self.optimizer.zero_grad()
        made = self.model(values)
        loss = made.square().mean() if labels is None else functional.cross_entropy(made, labels)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def warm(self, batch: Batch) -> None:
        """The second pass knows what to make ahead."""
        for _ in range(WARM):
            self.step(batch)
        if self.offloaded:
            offloading(self.model).engine.products.clear()

    def round(self, batch: Batch) -> None:
        """One step that counts."""
        if self.offloaded:
            taken, stages = self.clock.step(lambda: self.step(batch), self.workers)
            self.stages.append(stages)
        else:
            start = time.perf_counter()
            self.step(batch)
            taken = time.perf_counter() - start
        self.times.append(taken)

    def row(self, batch: Batch) -> dict[str, Any]:
        """What the table and the JSON say of it; makes one more step, to count."""
        step_s, rounds = statistics.median(self.times), len(self.times)
        row: dict[str, Any] = {"step_s": step_s, "samples_s": len(batch[0]) / step_s, "least_s": min(self.times)}
        row["weights"] = self.weights()
        if not self.offloaded:
            return row
        row["stages_s"] = {stage: statistics.median(each[stage] for each in self.stages) for stage in STAGES}
        made = report(self.model)
        row["sent_bytes"] = sum(layer.sent_bytes for layer in made.layers) // rounds
        row["received_bytes"] = sum(layer.received_bytes for layer in made.layers) // rounds
        row["checks"] = made.checks // rounds
        row["multiplications"] = sum(layer.multiplications for layer in made.layers) // rounds
        if self.workers:
            row["inside_s"] = sum(row["stages_s"][stage] for stage in INSIDE)
            row["projected_s"] = _projection.projected_s(
                self.model,
                self.mode,
                calls=WARM + rounds,
                besides_s=row["stages_s"]["non-linear"],
                training=True,
            )
            row["counted"] = counts(self.model, self.workers, lambda: self.step(batch))
        return row

    def weights(self) -> str:
        """Of the parameters' bits."""
        digest = hashlib.sha256()
        for parameter in self.model.parameters():
            digest.update(parameter.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def close(self) -> None:
        """Ends the workers' sessions."""
        if self.offloaded:
            onload(self.model)


def text(name: str, rows: Rows) -> str:
    lines = [
        f"{'':9}{'step s':>9}{'samples/s':>10}{'× fp32':>8}{'× int8':>8}{'sent MB':>9}{'÷shared5':>9}{'back MB':>9}"
        f"{'checks':>8}{'inside s':>10}{'at most':>9}{'PROJECTED s':>13}{'× fp32':>8}{'× int8':>8}"
    ]
    for mode, row in rows.items():
        line = f"{mode:9}{row['step_s']:9.3f}{row['samples_s']:10.2f}{row['over_fp32']:8.2f}{row['over_int8']:8.2f}"
        if "projected_s" in row:
            line += f"{row['sent_bytes'] / 1e6:9.1f}{row.get('sent_over_shared5', float('nan')):9.2f}"
            line += f"{row['received_bytes'] / 1e6:9.1f}{row['checks']:8}{row['inside_s']:10.3f}"
            line += f"{row['at_most_over_fp32']:9.2f}{row['projected_s']:13.3f}"
            line += f"{row['projected_over_fp32']:8.2f}{row['projected_over_int8']:8.2f}"
        lines.append(line if row["same"] else f"{line}  OTHER BITS")
    for mode, row in rows.items():
        if "stages_s" in row:
            lines.append(f"{mode:9}" + ", ".join(f"{stage} {row['stages_s'][stage]:.3f}" for stage in STAGES))
    for mode, row in rows.items():
        if "counted" in row:
            counted = row["counted"]
            lines.append(
                f"{mode:9}passes over an operand {counted['passes_out']:.2f} (published: about {PUBLISHED_PASSES}), "
                f"over an answer {counted['passes_back']:.2f}, reads of an operand for checks "
                f"{counted['check_reads']:.2f}; "
                f"uploads of an operand to a server {counted['uploads']:.2f} (published: {PUBLISHED_UPLOADS})"
            )
            if mode.startswith("shared"):
                lines[-1] += (
                    f"; bytes sent over the published {row['sent_bytes'] / counted['sent_bytes_published']:.2f}"
                )
    if name == "vgg11":
        lines.append(f"published for Goten: {GOTEN_IMAGES_S} images/s, {GOTEN_RATIO}× its enclave")
        lines.append(f"our target with GPUs: {TARGET:.0f}× fp32")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
