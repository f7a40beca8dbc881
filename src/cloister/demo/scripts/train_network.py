"""Trains a small network instead, as ``train.py`` otherwise; its layers may leave the enclave.

What is read and written is what ``train.py`` says. In a stage whose manifest has ``offload`` terms the layers are
multiplied by the manifest's workers, under masks, and every product is checked. Anywhere else it is the same script,
and the network stays as it is.

    python train_network.py --input dataset --model model --report report
"""

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F
from train import arguments, export, finish, read  # pyright: ignore[reportMissingImports] - lies beside this file

from cloister.offload import offload, report

STEPS = 100


def main() -> None:
    """Trains, exports, evaluates."""
    args = arguments()
    features, values, malignant = read(args.input / "train.csv")
    scaler = StandardScaler().fit(values)

    def scaled(raw: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(scaler.transform(raw)).float()

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(len(features), 16), nn.ReLU(), nn.Linear(16, 1))
    network = offload(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=1e-3)
    inputs, labels = scaled(values), torch.from_numpy(malignant).float()
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(network(inputs)[:, 0], labels).backward()
        optimizer.step()
    print(report(network))
    print(f"trained on {len(values)} patients, {int(malignant.sum())} malignant, {len(features)} measurements each")

    trained = nn.Sequential(nn.Linear(len(features), 16), nn.ReLU(), nn.Linear(16, 1), nn.Sigmoid())
    trained.load_state_dict(network.state_dict())  # answers in floating point, as the exported graph will
    layers = [layer for layer in trained if isinstance(layer, nn.Linear)]
    proto = export(scaler, [(layer.weight.detach().numpy().T, layer.bias.detach().numpy()) for layer in layers])

    def predict(raw: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return trained(scaled(raw))[:, 0].numpy()

    finish(args, proto, features, len(values), predict)


if __name__ == "__main__":
    main()
