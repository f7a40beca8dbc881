"""CIFAR-10 with differential privacy, by the recipe that does best without other data.

    python train.py --data DATA/cifar10 --work run                 goes on where it was stopped
    python train.py --data DATA/cifar10 --work run --quick         two small epochs, to see that it runs

See the README beside it for what each part is for.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from cloister.offload import load_checkpoint, save_checkpoint
from cloister.privacy import Flat, check_model, make_private
from cloister.wire import Secret, write_private

CLASSES, PIXELS, MARGIN = 10, 32, 4


# ---- the network -----------------------------------------------------------------------------------------------------


class StandardConv(nn.Conv2d):
    """A convolution whose weights are standardised, output by output, with a gain that is trained."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.weight.mean((1, 2, 3), True), self.weight.var((1, 2, 3), keepdim=True)
        size = self.weight[0].numel()
        weight = (self.weight - mean) * torch.rsqrt(variance * size + 1e-4) * self.gain
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


class Block(nn.Module):
    """Norm, ReLU, convolution, twice, and a shortcut: a wide ResNet's."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.GroupNorm(16, inputs), nn.GroupNorm(16, outputs)
        self.one, self.two = StandardConv(inputs, outputs, 3, stride), StandardConv(outputs, outputs, 3)
        plain = stride == 1 and inputs == outputs
        self.short = None if plain else StandardConv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.first(x))
        y = self.two(functional.relu(self.second(self.one(inner))))
        return y + (x if self.short is None else self.short(inner))


def wide_resnet(depth: int, width: int) -> nn.Module:
    """WRN-depth-width with group norms and standardised weights."""
    layers: list[nn.Module] = [StandardConv(3, 16, 3)]
    inputs = 16
    for stage, channels in enumerate((16, 32, 64)):
        for place in range((depth - 4) // 6):
            layers.append(Block(inputs, channels * width, 2 if stage and not place else 1))
            inputs = channels * width
    layers += [nn.GroupNorm(16, inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES)]
    return nn.Sequential(*layers)


class Copies(nn.Module):
    """Scores of every copy of every record: ``(B, K, 3, H, W)`` to ``(B, K, classes)``; a record is one row."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, copies: Tensor) -> Tensor:
        return self.network(copies.flatten(0, 1)).unflatten(0, (-1, copies.shape[1]))


def loss(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """One loss a record, ``(B,)``: the mean over its copies. So their gradients are averaged before one is clipped."""
    copies, labels = batch
    scores, same = model(copies), labels.unsqueeze(1).expand(-1, copies.shape[1])
    return functional.cross_entropy(scores.transpose(1, 2), same, reduction="none").mean(1)


# ---- the data --------------------------------------------------------------------------------------------------------


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Records, each as K copies that are shifted and mirrored by chance, ``(K, 3, 32, 32)`` float32."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, copies: int) -> None:
        self.pixels, self.labels, self.copies = scaled(pixels), torch.from_numpy(labels).long(), copies

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        padded = functional.pad(self.pixels[row], [MARGIN] * 4, mode="reflect")
        shifts = torch.randint(0, 2 * MARGIN + 1, (self.copies, 2)).tolist()
        made = torch.stack([padded[:, top : top + PIXELS, left : left + PIXELS] for top, left in shifts])
        mirrored = torch.rand(self.copies, 1, 1, 1) < 0.5
        return torch.where(mirrored, made.flip(3), made), self.labels[row]


def scaled(pixels: np.ndarray) -> Tensor:
    """``(n, 32, 32, 3)`` uint8 to ``(n, 3, 32, 32)`` float32 from -1 to 1: by no number that was computed from data."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def read(folder: Path, quick: bool) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Images and labels, to train and to test."""
    some, test = np.load(folder / "train.npz"), np.load(folder / "test.npz")
    if quick:
        return (some["images"][:200], some["labels"][:200]), (test["images"][:200], test["labels"][:200])
    rest = np.load(folder / "train_rest_jpeg.npz")
    raw, offsets = rest["jpeg"].tobytes(), rest["offsets"]
    decoded = [np.asarray(Image.open(io.BytesIO(raw[a:b])).convert("RGB")) for a, b in pairwise(offsets)]
    images = np.concatenate([some["images"], np.stack(decoded)])
    labels = np.concatenate([some["labels"], rest["labels"]])
    return (images, labels), (test["images"], test["labels"])


# ---- the training ----------------------------------------------------------------------------------------------------


def main() -> int:
    options = arguments()
    torch.set_num_threads(options.threads)
    train, test = read(options.data, options.quick)
    torch.manual_seed(options.seed)
    model = Copies(wide_resnet(options.depth, options.width))
    average = Copies(wide_resnet(options.depth, options.width)).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    records = Augmented(*train, options.copies)
    certificate = check_model(model.train(), loss, torch.utils.data.default_collate([records[row] for row in range(4)]))
    print(f"examples are apart: graph {certificate.graph_digest[:16]}")

    optimizer = torch.optim.SGD(model.parameters(), lr=options.rate)
    loader = DataLoader(records, batch_size=options.batch)
    model, optimizer, loader = make_private(
        model, optimizer, loader, clip=Flat(options.clip), epsilon=options.epsilon, delta=options.delta,
        epochs=options.epochs, micro_batch=options.micro_batch,
    )  # fmt: skip
    privacy = optimizer.privacy
    print(f"noise multiplier {privacy.noise_multiplier}, {options.epochs} × {loader.epoch_steps} steps")

    both, curve = nn.ModuleDict({"model": model, "average": average}), []
    options.work.mkdir(parents=True, exist_ok=True)
    key, path = own_key(options.work), options.work / "checkpoint"
    if path.exists():
        found = load_checkpoint(path, both, key=key)
        privacy.resume(found.extra["privacy"])
        curve = found.extra["curve"]
    while len(curve) < options.epochs:
        model.train()
        for batch in loader:
            before = privacy.steps
            loss(model, batch).mean().backward()
            optimizer.step()
            if privacy.steps > before:
                follow(average, model, privacy.steps)
        curve.append(accuracy(average, *test))
        spent = privacy.spent()
        save_checkpoint(path, both, key=key, sequence=len(curve), extra={"privacy": privacy.state, "curve": curve})
        print(f"epoch {len(curve)}: accuracy {curve[-1]:.2f} %, ε = {spent.epsilon} at δ = {spent.delta}", flush=True)
    report: dict[str, Any] = {"accuracy": curve, "epsilon": privacy.spent().epsilon, "delta": options.delta}
    (options.work / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0


def follow(average: nn.Module, model: nn.Module, steps: int) -> None:
    """Moves the average of all weights so far; the first ones are soon forgotten. It costs no privacy."""
    rate = max(1e-4, 1 - min(0.9999, (1 + steps) / (10 + steps)))
    with torch.no_grad():
        for mean, value in zip(average.parameters(), model.parameters(), strict=True):
            mean.lerp_(value, rate)


def accuracy(model: nn.Module, pixels: np.ndarray, labels: np.ndarray) -> float:
    """In percent."""
    model.eval()
    right = 0
    with torch.no_grad():
        for some, names in zip(scaled(pixels).split(250), torch.from_numpy(labels).long().split(250), strict=True):
            right += int((model(some[:, None])[:, 0].argmax(1) == names).sum())
    return 100 * right / len(labels)


def own_key(folder: Path) -> Secret:
    """The checkpoint's, made once."""
    path = folder / "key"
    if not path.exists():
        write_private(path, Secret.random(32).reveal())
    return Secret(path.read_bytes())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.npz, train_rest_jpeg.npz, test.npz")
    parser.add_argument("--work", type=Path, required=True, help="checkpoint, key and report")
    parser.add_argument("--epsilon", default="8")
    parser.add_argument("--delta", default="1e-5")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4096, help="expected, in records")
    parser.add_argument("--micro-batch", type=int, default=32, help="records at a time, each with all copies")
    parser.add_argument("--copies", type=int, default=4, help="of a record, each augmented by itself")
    parser.add_argument("--rate", type=float, default=2.0)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--width", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0, help="of the first weights")
    parser.add_argument("--quick", action="store_true", help="200 records, 2 epochs of 5 steps")
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.batch, options.micro_batch, options.copies, options.depth = 2, 40, 24, 2, 10
        options.threads = 1
    return options


if __name__ == "__main__":
    sys.exit(main())
