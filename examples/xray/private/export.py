"""Makes of privately trained weights the model that is served: no picture is read here, so this costs no privacy.

Reads ``INPUT/weights.safetensors``. Writes ``MODEL/model.onnx`` and ``MODEL/model.json``, as ``train.py`` does.

    python export.py --input trained --model model
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from network import CLASSES, SIZE, Network
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional


class Answering(nn.Module):
    """The trained network with probabilities instead of logits."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Shapes: (B, 1, size, size) grey values to (B, classes) probabilities."""
        return functional.softmax(self.network(images), dim=1)


def main() -> None:
    """Reads, exports, describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder with weights.safetensors")
    parser.add_argument("--model", type=Path, required=True, help="folder to write the model into")
    args = parser.parse_args()

    network = Network()
    network.load_state_dict(load_file(args.input / "weights.safetensors"))
    model = Answering(network).eval()
    args.model.mkdir(parents=True, exist_ok=True)
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, SIZE, SIZE),),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes={"images": {0: torch.export.Dim("pictures")}},
        dynamo=True,
        opset_version=18,
        verbose=False,
    )
    if program is None:
        raise SystemExit("the exporter returned nothing")
    (args.model / "model.onnx").write_bytes(program.model_proto.SerializeToString(deterministic=True))
    sample = torch.arange(4 * SIZE * SIZE).reshape(4, 1, SIZE, SIZE).remainder(256).float()
    [exported] = ReferenceEvaluator(str(args.model / "model.onnx")).run(None, {"images": sample.numpy()})
    with torch.no_grad():
        drift = float(np.abs(np.asarray(exported) - model(sample).numpy()).max())
    if drift > 1e-3:
        raise SystemExit(f"the exported graph differs from the trained model by {drift:.1e}")
    description = {
        "task": "covid-19, pneumonia or no finding on a frontal chest X-ray; no medical device",
        "input": {"name": "images", "dtype": "float32", "shape": ["pictures", 1, SIZE, SIZE]},
        "preparation": "grey, centre square, 1 % clipped at each end of the grey scale, values 0 to 255",
        "output": {"name": "probabilities", "dtype": "float32", "shape": ["pictures", len(CLASSES)]},
        "classes": list(CLASSES),
    }
    (args.model / "model.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    print(f"a network of {sum(parameter.numel() for parameter in network.parameters())} weights, for {SIZE} pixels")


if __name__ == "__main__":
    main()
