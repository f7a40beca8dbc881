"""Trains a classifier of biopsies and writes it as ONNX with what it reached on patients it has not seen.

Reads ``INPUT/train.csv`` and ``INPUT/test.csv`` (``patient``, ``diagnosis``, then the measurements).
Writes ``MODEL/model.onnx`` (input ``measurements``: float32, one row a patient, raw values, scaling is inside the
graph; output ``malignancy``: float32, one probability a patient), ``MODEL/model.json`` (the order of the measurements,
the classes, the threshold) and ``REPORT/metrics.json`` (test accuracy, AUC, confusion, counts).

The model is a network of two layers. In a stage whose manifest has ``offload`` terms the manifest's workers multiply
them, under masks, and every product is checked. Anywhere else it is the same script, and the network stays as it is.
The test set is read after the model is final and nothing is chosen by it.

    python train.py --input dataset --model model --report report
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from sklearn.metrics import confusion_matrix, roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from cloister.offload import offload, report

CLASSES = ("benign", "malignant")
THRESHOLD = 0.5
STEPS = 60


def read(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The names of the measurements, the measurements (patients by names) and whether each is malignant."""
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    values = np.array([row[2:] for row in rows], dtype=np.float64)
    return header[2:], values, np.array([CLASSES.index(row[1]) for row in rows])


def train(inputs: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """The trained network, from scaled measurements to a logit."""
    torch.manual_seed(0)
    network = offload(nn.Sequential(nn.Linear(inputs.shape[1], 16), nn.ReLU(), nn.Linear(16, 1)))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02, weight_decay=1e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(network(inputs)[:, 0], labels).backward()
        optimizer.step()
    print(report(network))
    return network


def export(scaler: StandardScaler, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The scaler and the network as one graph."""
    constants = {"mean": scaler.mean_, "scale": scaler.scale_, **weights}
    graph = helper.make_graph(
        [
            helper.make_node("Sub", ["measurements", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "scale"], ["scaled"]),
            helper.make_node("Gemm", ["scaled", "0.weight", "0.bias"], ["hidden"], transB=1),
            helper.make_node("Relu", ["hidden"], ["rectified"]),
            helper.make_node("Gemm", ["rectified", "2.weight", "2.bias"], ["logit"], transB=1),
            helper.make_node("Sigmoid", ["logit"], ["malignancy"]),
        ],
        "biopsy",
        [helper.make_tensor_value_info("measurements", TensorProto.FLOAT, ["patients", len(constants["mean"])])],
        [helper.make_tensor_value_info("malignancy", TensorProto.FLOAT, ["patients", 1])],
        [numpy_helper.from_array(np.asarray(array, dtype=np.float32), name) for name, array in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def main() -> None:
    """Trains, exports, evaluates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder with train.csv and test.csv")
    parser.add_argument("--model", type=Path, required=True, help="folder to write the model into")
    parser.add_argument("--report", type=Path, required=True, help="folder to write metrics.json into")
    args = parser.parse_args()

    features, values, malignant = read(args.input / "train.csv")
    scaler = StandardScaler().fit(values)

    def scaled(raw: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(scaler.transform(raw)).float()

    network = train(scaled(values), torch.from_numpy(malignant).float())
    print(f"trained on {len(values)} patients, {int(malignant.sum())} malignant, {len(features)} measurements each")
    proto = export(scaler, {name: tensor.numpy() for name, tensor in network.state_dict().items()})

    # the exported model is what will answer, so it is the one that is evaluated
    tested, truth_values, truth = read(args.input / "test.csv")
    if tested != features:
        raise SystemExit("train.csv and test.csv have different columns")
    [outputs] = ReferenceEvaluator(proto).run(None, {"measurements": truth_values.astype(np.float32)})
    probability = np.asarray(outputs)[:, 0]
    own = nn.Sequential(nn.Linear(len(features), 16), nn.ReLU(), nn.Linear(16, 1), nn.Sigmoid())
    own.load_state_dict(network.state_dict())  # in floating point, as the graph is
    with torch.no_grad():
        drift = float(np.abs(probability - own(scaled(truth_values))[:, 0].numpy()).max())
    if drift > 1e-4:
        raise SystemExit(f"the exported graph differs from the trained model by {drift:.1e}")
    predicted = (probability >= THRESHOLD).astype(int)
    (true_negative, false_positive), (false_negative, true_positive) = confusion_matrix(truth, predicted).tolist()
    metrics = {
        "train_patients": len(values),
        "test_patients": len(truth),
        "test_malignant": int(truth.sum()),
        "accuracy": round(float((predicted == truth).mean()), 4),
        "auc": round(float(roc_auc_score(truth, probability)), 4),
        "confusion": {
            "true_negative": true_negative,
            "false_positive": false_positive,
            "false_negative": false_negative,
            "true_positive": true_positive,
        },
    }

    args.model.mkdir(parents=True, exist_ok=True)
    args.report.mkdir(parents=True, exist_ok=True)
    (args.model / "model.onnx").write_bytes(proto.SerializeToString(deterministic=True))
    description = {
        "task": "is the breast mass malignant",
        "input": {"name": "measurements", "dtype": "float32", "shape": ["patients", len(features)]},
        "features": features,
        "units": {"radius": "µm", "perimeter": "µm", "area": "µm²"},
        "output": {"name": "malignancy", "dtype": "float32", "shape": ["patients", 1]},
        "classes": list(CLASSES),
        "threshold": THRESHOLD,
        "metrics": metrics,
    }
    (args.model / "model.json").write_text(
        json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (args.report / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    print(
        f"test: {metrics['test_patients']} patients, accuracy {metrics['accuracy']:.3f}, AUC {metrics['auc']:.3f}, "
        f"{false_negative} malignant missed, {false_positive} false alarms"
    )


if __name__ == "__main__":
    main()
