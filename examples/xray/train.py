"""Trains a small ResNet on pooled chest X-rays, and measures how much of it is source detection.

Reads ``INPUT/train.csv``, ``INPUT/test.csv`` and ``INPUT/pictures/``. Writes ``MODEL/model.onnx`` (input ``images``:
float32, pictures by 1 by size by size, grey values 0 to 255; output ``probabilities``: pictures by classes),
``MODEL/model.json`` (classes, size, how a picture is prepared) and ``REPORT/metrics.json``.

Nothing is chosen by the test set: it is read once, after the last epoch. The report has, beside accuracy, recall and
confusion:

* ``persons``: how many train, how many test, and how many are on both sides of the split, which must be none;
* ``source_only``: what a rule reaches that never looks at the picture and answers each source's most frequent class;
* ``within_source``: accuracy inside each source, beside what that source's most frequent class reaches, and how many
  of its pictures without COVID-19 are called COVID-19 (a model that detects sources calls one source's so);
* ``source_from_answer``: how often the model's answer gives the picture's source away, beside
  ``most_frequent_source``, which knows nothing.

Accuracy far above ``source_only`` *within* a source is evidence of medicine; pooled accuracy alone is not.

    python train.py --input dataset --model model --report report [--epochs 15] [--size 96] [--seed 1]
"""

import argparse
import csv
import json
import logging
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

CLASSES = ("covid-19", "no-finding", "pneumonia")
COVID = CLASSES.index("covid-19")
BATCH = 32
WIDTHS = (16, 32, 64, 128)


@dataclass(frozen=True)
class Pictures:
    """One side of the split."""

    images: Tensor  # (pictures, 1, size, size), uint8
    labels: Tensor  # (pictures,), int64
    sources: list[str]
    persons: set[str]


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width_out)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or width_in != width_out:
            self.around = nn.Sequential(
                nn.Conv2d(width_in, width_out, 1, stride, bias=False), nn.BatchNorm2d(width_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, width_in, H, W) to (B, width_out, H/stride, W/stride)."""
        inner = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(inner + self.around(x))


class ResNet(nn.Module):
    """ResNet-18 with a quarter of the channels, on one grey channel, scaling of the pixels included."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, WIDTHS[0], 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        before = WIDTHS[0]
        for width in WIDTHS:
            blocks += [Block(before, width, 1 if width == WIDTHS[0] else 2), Block(width, width, 1)]
            before = width
        self.blocks = nn.Sequential(*blocks)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(before, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        """Shapes: (B, 1, size, size) grey values to (B, classes) logits."""
        x = self.blocks(self.stem((images - 128) / 64))
        return self.head(self.drop(x.mean(dim=(2, 3))))


class Answering(nn.Module):
    """The trained network with probabilities instead of logits."""

    def __init__(self, network: ResNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Shapes: (B, 1, size, size) grey values to (B, classes) probabilities."""
        return functional.softmax(self.network(images), dim=1)


def read(folder: Path, name: str, size: int) -> Pictures:
    """One table with its pictures."""
    with (folder / name).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    arrays: list[np.ndarray] = []
    for row in rows:
        with Image.open(folder / "pictures" / row["picture"]) as picture:
            arrays.append(np.asarray(picture.convert("L").resize((size, size), Image.Resampling.LANCZOS)))
    return Pictures(
        images=torch.from_numpy(np.stack(arrays)).unsqueeze(1),
        labels=torch.tensor([CLASSES.index(row["label"]) for row in rows]),
        sources=[row["source"] for row in rows],
        persons={row["person"] for row in rows},
    )


def varied(images: Tensor) -> Tensor:
    """The batch as if taken again: a little turned, moved, scaled, brighter or darker."""
    count = len(images)
    angle = torch.empty(count).uniform_(-0.12, 0.12)
    scale = torch.empty(count).uniform_(0.9, 1.1)
    move = torch.empty(count, 2, 1).uniform_(-0.1, 0.1)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    turn = torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)
    grid = functional.affine_grid(torch.cat([turn, move], dim=2), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    contrast = torch.empty(count, 1, 1, 1).uniform_(0.8, 1.2)
    brightness = torch.empty(count, 1, 1, 1).uniform_(-20, 20)
    return ((moved - 128) * contrast + 128 + brightness).clamp(0, 255)


def fit(pictures: Pictures, *, epochs: int) -> ResNet:
    """A network trained with every class weighing the same."""
    counts = torch.bincount(pictures.labels, minlength=len(CLASSES)).clamp(min=1)
    weights = counts.sum() / (len(CLASSES) * counts)
    network = ResNet().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    steps = epochs * -(-len(pictures.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.2)
    for epoch in range(1, epochs + 1):
        started, total = time.monotonic(), 0.0
        for batch in torch.randperm(len(pictures.labels)).split(BATCH):
            optimizer.zero_grad()
            logits = network(varied(pictures.images[batch].float()))
            loss = functional.cross_entropy(logits, pictures.labels[batch], weight=weights, label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        mean = total / len(pictures.labels)
        print(f"epoch {epoch}/{epochs}: loss {mean:.3f}, {time.monotonic() - started:.1f} s", flush=True)
    return network.eval()


def answers(model: nn.Module, images: Tensor) -> Tensor:
    """The model's probabilities, batch by batch."""
    with torch.inference_mode():
        return torch.cat([model(batch.float()) for batch in images.split(BATCH)])


def export(model: nn.Module, path: Path, size: int) -> None:
    """Writes the model as one ONNX file for any number of pictures."""
    # The exporter's own remarks, about torchvision (not used) and about torch's inside; neither concerns the model.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        program = torch.onnx.export(
            model,
            (torch.zeros(2, 1, size, size),),
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes={"images": {0: torch.export.Dim("pictures")}},
            dynamo=True,
            opset_version=18,
            verbose=False,
        )
    if program is None:
        raise SystemExit("the exporter returned nothing")
    proto = program.model_proto
    # The exporter notes the lines of this file and its path on each node: nobody's business outside.
    for part in (
        proto,
        proto.graph,
        *proto.graph.node,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.value_info,
    ):
        del part.metadata_props[:]
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def measure(train: Pictures, test: Pictures, predicted: Tensor) -> dict[str, object]:
    """What the model reached, and what the source alone reaches."""
    truth, guess = test.labels.tolist(), predicted.tolist()
    usual = {
        source: Counter(label for label, of in zip(train.labels.tolist(), train.sources, strict=True) if of == source)
        for source in sorted(set(train.sources))
    }
    usual_label = {source: counts.most_common(1)[0][0] for source, counts in usual.items()}
    usual_source = {
        label: max(usual, key=lambda source, label=label: (usual[source][label], source))
        for label in range(len(CLASSES))
    }
    confusion = [[0] * len(CLASSES) for _ in CLASSES]
    for true, guessed in zip(truth, guess, strict=True):
        confusion[true][guessed] += 1
    recall = {
        name: share(row[index], sum(row)) for index, (name, row) in enumerate(zip(CLASSES, confusion, strict=True))
    }
    within: dict[str, object] = {}
    for source in usual:
        own = [(t, g) for t, g, of in zip(truth, guess, test.sources, strict=True) if of == source]
        within[source] = {
            "pictures": len(own),
            "accuracy": share(sum(t == g for t, g in own), len(own)),
            "most_frequent_class": share(sum(t == usual_label[source] for t, _ in own), len(own)),
            "called_covid_19_without_it": share(sum(g == COVID != t for t, g in own), sum(t != COVID for t, _ in own)),
            "recall": {
                CLASSES[label]: share(sum(t == g == label for t, g in own), sum(t == label for t, _ in own))
                for label in sorted({t for t, _ in own})
            },
        }
    by_source = [usual_label[source] for source in test.sources]
    return {
        "train_pictures": len(train.labels),
        "test_pictures": len(truth),
        "persons": {
            "train": len(train.persons),
            "test": len(test.persons),
            "both": len(train.persons & test.persons),
        },
        "accuracy": share(sum(t == g for t, g in zip(truth, guess, strict=True)), len(truth)),
        "recall": recall,
        "mean_recall": round(sum(recall.values()) / len(recall), 4),
        "confusion": {"classes": list(CLASSES), "rows_are_truth": confusion},
        "most_frequent_class": share(max(Counter(truth).values()), len(truth)),
        "source_only": share(sum(t == g for t, g in zip(truth, by_source, strict=True)), len(truth)),
        "within_source": within,
        "most_frequent_source": share(max(Counter(test.sources).values()), len(truth)),
        "source_from_answer": share(
            sum(usual_source[g] == of for g, of in zip(guess, test.sources, strict=True)), len(truth)
        ),
    }


def share(part: int, whole: int) -> float:
    """The part of the whole, to four decimals."""
    return round(part / whole, 4) if whole else 0.0


def main() -> None:
    """Trains, exports, measures and writes both folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder with train.csv, test.csv and pictures/")
    parser.add_argument("--model", type=Path, required=True, help="folder to write the model into")
    parser.add_argument("--report", type=Path, required=True, help="folder to write metrics.json into")
    parser.add_argument("--epochs", type=int, default=15, help="passes over the training set (15)")
    parser.add_argument("--size", type=int, default=96, help="side of the pictures in pixels (96)")
    parser.add_argument("--seed", type=int, default=1, help="of weights, order and variation (1)")
    parser.add_argument("--threads", type=int, default=2, help="processor threads (2); results depend on it")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)

    started = time.monotonic()
    train = read(args.input, "train.csv", args.size)
    network = fit(train, epochs=args.epochs)
    model = Answering(network).eval()
    args.model.mkdir(parents=True, exist_ok=True)
    args.report.mkdir(parents=True, exist_ok=True)
    export(model, args.model / "model.onnx", args.size)

    test = read(args.input, "test.csv", args.size)
    probabilities = answers(model, test.images)
    sample = test.images[:4].float()
    [exported] = ReferenceEvaluator(str(args.model / "model.onnx")).run(None, {"images": sample.numpy()})
    drift = float(np.abs(np.asarray(exported) - probabilities[:4].numpy()).max())
    if drift > 1e-3:
        raise SystemExit(f"the exported graph differs from the trained model by {drift:.1e}")
    metrics = measure(train, test, probabilities.argmax(dim=1))

    description = {
        "task": "covid-19, pneumonia or no finding on a frontal chest X-ray; no medical device",
        "input": {"name": "images", "dtype": "float32", "shape": ["pictures", 1, args.size, args.size]},
        "preparation": "grey, centre square, 1 % clipped at each end of the grey scale, values 0 to 255",
        "output": {"name": "probabilities", "dtype": "float32", "shape": ["pictures", len(CLASSES)]},
        "classes": list(CLASSES),
        "epochs": args.epochs,
        "seed": args.seed,
        "metrics": metrics,
    }
    (args.model / "model.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    (args.report / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    print(
        f"test: {metrics['test_pictures']} pictures, accuracy {metrics['accuracy']:.3f}, recall {metrics['recall']}; "
        f"the source alone reaches {metrics['source_only']:.3f}; {time.monotonic() - started:.0f} s in all"
    )


if __name__ == "__main__":
    main()
