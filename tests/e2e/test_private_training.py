"""A private training that is killed goes on to the same bits, with the same account."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import hashlib, json, sys
from pathlib import Path
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from cloister.privacy import RunKey, Trainer
from cloister.wire import Secret

folder = Path(sys.argv[1])
torch.manual_seed(0)
x = torch.randn(600, 3, 8, 8)
model = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(512, 2)
)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
loader = DataLoader(TensorDataset(x, (x.mean((1, 2, 3)) > 0).long()), batch_size=60)
secret = Secret(bytes(range(32)))  # a kept key; anybody knows this one
trainer = Trainer(
    model, lambda model, batch: cross_entropy(model(batch[0]), batch[1], reduction="none"), optimizer, loader,
    epochs=6, delta="1e-5", noise_multiplier=1, micro_batch=64, key=RunKey(secret), dangerous_unchecked=True,
)
spent = trainer.fit(checkpoint=folder / "training", key=secret)
weights = b"".join(value.detach().numpy().tobytes() for value in model.parameters())
print(json.dumps([hashlib.sha256(weights).hexdigest(), spent.epsilon, trainer.privacy.steps]))
"""


def started(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def ended(process: subprocess.Popen[str]) -> list[object]:
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0
    return json.loads(out)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_training_that_is_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    expected = ended(started(whole))
    for _ in range(2):
        process = started(killed)
        seen = changed(killed)
        deadline = time.monotonic() + 300
        while changed(killed) == seen and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert changed(killed) != seen  # it died after a checkpoint more, in the midst of an epoch
    assert ended(started(killed)) == expected


def changed(folder: Path) -> int | None:
    path = folder / "training"
    return path.stat().st_mtime_ns if path.exists() else None
