"""Makes of privately trained weights the model that is served: no data is read here, so this costs no privacy.

Reads ``INPUT/weights.safetensors``. Writes ``MODEL/model.onnx`` (input ``measurements``: float32, one row a patient,
raw values, scaling is inside the graph; output ``malignancy``: float32, one probability a patient) and
``MODEL/model.json`` (the order of the measurements, the classes, the threshold).

    python export.py --input trained --model model
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

MEASUREMENTS = (
    *("radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave_points"),
    *("symmetry", "fractal_dimension"),
)
FEATURES = [f"{name}_{statistic}" for statistic in ("mean", "se", "worst") for name in MEASUREMENTS]


def graph_of(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The network of ``network.py`` with these weights, and a probability at its end."""
    constants = {**weights, "least": -weights["most"]}
    graph = helper.make_graph(
        [
            helper.make_node("Sub", ["measurements", "usual"], ["centred"]),
            helper.make_node("Div", ["centred", "spread"], ["scaled"]),
            helper.make_node("Clip", ["scaled", "least", "most"], ["bounded"]),
            helper.make_node("Gemm", ["bounded", "hidden.weight", "hidden.bias"], ["sums"], transB=1),
            helper.make_node("Tanh", ["sums"], ["hidden"]),
            helper.make_node("Gemm", ["hidden", "head.weight", "head.bias"], ["logit"], transB=1),
            helper.make_node("Sigmoid", ["logit"], ["malignancy"]),
        ],
        "biopsy",
        [helper.make_tensor_value_info("measurements", TensorProto.FLOAT, ["patients", len(FEATURES)])],
        [helper.make_tensor_value_info("malignancy", TensorProto.FLOAT, ["patients", 1])],
        [numpy_helper.from_array(np.asarray(array, dtype=np.float32), name) for name, array in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def main() -> None:
    """Reads, exports, describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder with weights.safetensors")
    parser.add_argument("--model", type=Path, required=True, help="folder to write the model into")
    args = parser.parse_args()

    proto = graph_of(load_file(args.input / "weights.safetensors"))
    args.model.mkdir(parents=True, exist_ok=True)
    (args.model / "model.onnx").write_bytes(proto.SerializeToString(deterministic=True))
    description = {
        "task": "is the breast mass malignant",
        "input": {"name": "measurements", "dtype": "float32", "shape": ["patients", len(FEATURES)]},
        "features": FEATURES,
        "units": {"radius": "µm", "perimeter": "µm", "area": "µm²"},
        "output": {"name": "malignancy", "dtype": "float32", "shape": ["patients", 1]},
        "classes": ["benign", "malignant"],
        "threshold": 0.5,
    }
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    (args.model / "model.json").write_text(text, encoding="utf-8")
    print(f"a network of {len(FEATURES)} measurements, {len(proto.graph.node)} operators")


if __name__ == "__main__":
    main()
