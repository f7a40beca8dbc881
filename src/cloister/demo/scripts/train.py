"""Trains a classifier of biopsies and writes it as ONNX with what it reached on patients it has not seen.

Reads ``INPUT/train.csv`` and ``INPUT/test.csv`` (``patient``, ``diagnosis``, then the measurements).
Writes ``MODEL/model.onnx`` (input ``measurements``: float32, one row a patient, raw values, scaling is inside the
graph; output ``malignancy``: float32, one probability a patient), ``MODEL/model.json`` (the order of the measurements,
the classes, the threshold) and ``REPORT/metrics.json`` (test accuracy, AUC, confusion, counts).

The model is a logistic regression. The test set is read after the model is final and nothing is chosen by it.

    python train.py --input dataset --model model --report report
"""

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, roc_auc_score
from sklearn.preprocessing import StandardScaler

CLASSES = ("benign", "malignant")
THRESHOLD = 0.5


def read(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The names of the measurements, the measurements (patients by names) and whether each is malignant."""
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    values = np.array([row[2:] for row in rows], dtype=np.float64)
    return header[2:], values, np.array([CLASSES.index(row[1]) for row in rows])


def export(scaler: StandardScaler, layers: Sequence[tuple[np.ndarray, np.ndarray]]) -> onnx.ModelProto:
    """The scaler and the layers (weights, inputs by outputs, and biases), rectified between, as one graph."""
    constants = {"mean": scaler.mean_, "scale": scaler.scale_}
    nodes = [
        helper.make_node("Sub", ["measurements", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["scaled"]),
    ]
    before = "scaled"
    for index, (weights, bias) in enumerate(layers):
        constants |= {f"weights{index}": weights, f"bias{index}": bias}
        nodes.append(helper.make_node("Gemm", [before, f"weights{index}", f"bias{index}"], [f"sum{index}"]))
        before = f"sum{index}"
        if index < len(layers) - 1:
            nodes.append(helper.make_node("Relu", [before], [f"rectified{index}"]))
            before = f"rectified{index}"
    nodes.append(helper.make_node("Sigmoid", [before], ["malignancy"]))
    width = len(np.asarray(scaler.mean_))
    graph = helper.make_graph(
        nodes,
        "biopsy",
        [helper.make_tensor_value_info("measurements", TensorProto.FLOAT, ["patients", width])],
        [helper.make_tensor_value_info("malignancy", TensorProto.FLOAT, ["patients", 1])],
        [numpy_helper.from_array(np.asarray(array, dtype=np.float32), name) for name, array in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def arguments() -> argparse.Namespace:
    """The folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder with train.csv and test.csv")
    parser.add_argument("--model", type=Path, required=True, help="folder to write the model into")
    parser.add_argument("--report", type=Path, required=True, help="folder to write metrics.json into")
    return parser.parse_args()


def finish(
    args: argparse.Namespace,
    proto: onnx.ModelProto,
    features: list[str],
    patients: int,
    predict: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Evaluates the exported model, since that is what will answer, and writes both folders.

    ``predict`` is the trained model itself, from raw measurements to probabilities: the two must agree.
    """
    tested, truth_values, truth = read(args.input / "test.csv")
    if tested != features:
        raise SystemExit("train.csv and test.csv have different columns")
    [outputs] = ReferenceEvaluator(proto).run(None, {"measurements": truth_values.astype(np.float32)})
    probability = np.asarray(outputs)[:, 0]
    drift = float(np.abs(probability - predict(truth_values)).max())
    if drift > 1e-4:
        raise SystemExit(f"the exported graph differs from the trained model by {drift:.1e}")
    predicted = (probability >= THRESHOLD).astype(int)
    (true_negative, false_positive), (false_negative, true_positive) = confusion_matrix(truth, predicted).tolist()
    metrics = {
        "train_patients": patients,
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


def main() -> None:
    """Trains, exports, evaluates."""
    args = arguments()
    features, values, malignant = read(args.input / "train.csv")
    scaler = StandardScaler().fit(values)
    model = LogisticRegression(C=1.0, max_iter=1000).fit(scaler.transform(values), malignant)
    print(f"trained on {len(values)} patients, {int(malignant.sum())} malignant, {len(features)} measurements each")
    proto = export(scaler, [(model.coef_.T, model.intercept_)])
    finish(args, proto, features, len(values), lambda raw: model.predict_proba(scaler.transform(raw))[:, 1])


if __name__ == "__main__":
    main()
