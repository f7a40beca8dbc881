"""A private step in a stage whose layers leave: three workers, each a process, behind the launcher's own broker."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests import lying_worker
from tests.clipped_sums import engine_for, private_gradient, relative
from tests.private_offloading import ROWS, always, engines, network, squares, summed
from tests.workers import SERVE, WorkerProcess
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cloister.cli._offloader import offloader
from cloister.enclave import Broker
from cloister.errors import CloisterError
from cloister.manifest import OffloadTerms, Worker
from cloister.offload import offload
from cloister.offload._stage import VARIABLE
from cloister.offload._verdict import EVIDENCE_INFO, _open_verdicts
from cloister.party import WorkerIdentity
from cloister.privacy import make_private
from cloister.privacy._clipping import Flat
from cloister.wire import OpeningKey

pytestmark = pytest.mark.slow

NAMES = ("gpu-a", "gpu-b", "gpu-c")
TERMS = OffloadTerms(mode="shared3", workers=NAMES)
READER = OpeningKey.generate()
ROLES = ("forward", "input_gradient", "weight_gradient")


@dataclass(frozen=True)
class Workers:
    """Where they are, and the file in which the last one finds what to lie about."""

    agreed: dict[str, Worker]
    lies: Path


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    folder = tmp_path_factory.mktemp("workers")
    lies, agreed = folder / "lies", {}
    with ExitStack() as running:
        for name in NAMES:
            identity = WorkerIdentity.generate(name)
            program = (lying_worker.__file__, str(lies)) if name == NAMES[-1] else SERVE
            process = WorkerProcess(folder, "--memory", "64 MiB", identity=identity, program=program)
            running.callback(process.end)
            key = str(identity.opening_key.public)
            agreed[name] = Worker(operator=f"of-{name}", url=f"tcp://{process.address}", key=key)
        yield Workers(agreed, lies)


@pytest.fixture(autouse=True)
def sums(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody lies yet, and every gradient that workers can sum is summed by them."""
    workers.lies.unlink(missing_ok=True)
    always(monkeypatch)


@contextmanager
def stage(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    """The broker that a launcher has, and the variable that its script finds."""
    parties = {"hospital": READER.public}
    broker = offloader(TERMS, workers=workers.agreed, memory_bytes=16 << 20, parties=parties)
    _open_verdicts.discard(broker._broker._verdict)  # the launcher's: in its own process it holds back no optimizer
    with broker, monkeypatch.context() as patch:
        patch.setenv(VARIABLE, broker.environment[VARIABLE])
        yield broker


def each(outputs: Tensor, rows: Tensor) -> Tensor:
    return squares(outputs)


@pytest.mark.parametrize("name", ["linear", "convolutions"])
def test_a_private_steps_gradient_is_that_of_the_enclave_alone(
    name: str, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within what rounding does; and to the last bit what inline workers make of it."""
    model, x = network(name)
    torch.manual_seed(0)
    inline, here = engines(model, Flat(0.5))
    with stage(workers, monkeypatch) as broker:
        torch.manual_seed(0)
        there = engine_for(offload(copy.deepcopy(model)), Flat(0.5), ROWS)
        assert torch.equal(summed(there, x), summed(inline, x))
        made = private_gradient(there, [x], each, ROWS)
    assert 0 < relative(made, private_gradient(here, [x], each, ROWS)) < 0.04
    ended = broker.end()
    assert (ended.code, ended.facts.models, ended.evidence) == (None, 1, {})
    assert ended.facts.checks >= ended.facts.products > 0


@pytest.mark.parametrize("role", ROLES)
def test_a_worker_that_answers_wrongly_ends_it_and_nothing_is_released(
    role: str, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(80, 16), torch.randint(0, 8, (80,)))
    with stage(workers, monkeypatch) as broker:
        plain = offload(nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8)))
        model, optimizer, loader = make_private(
            plain,
            torch.optim.SGD(plain.parameters(), lr=0.5),
            DataLoader(data, batch_size=20),
            clip=1.0,
            noise_multiplier=1,
            delta=1e-5,
        )
        batches = iter(loader)  # one micro-batch a step
        step(model, optimizer, next(batches))
        before = [parameter.detach().clone() for parameter in model.parameters()]
        noise: list[int] = []
        monkeypatch.setattr(type(optimizer.privacy.engine.noise), "add_to", lambda self, total: noise.append(1))

        workers.lies.write_text(role)
        with pytest.raises(CloisterError) as caught:
            step(model, optimizer, next(batches))
        assert (caught.value.code, caught.value.expected, caught.value.got) == (5701, None, None)
        assert broker.wrong
        assert not noise
        assert optimizer.privacy.steps == 1
        for parameter, old in zip(model.parameters(), before, strict=True):
            assert parameter.grad is None
            assert torch.equal(parameter, old)
    ended = broker.end()
    assert ended.code == 5701  # whatever the script says
    found = json.loads(READER.open(ended.evidence["hospital"], info=EVIDENCE_INFO))
    assert (found["failures"][0]["role"], found["failures"][0]["workers"]) == (role, list(NAMES))


def step(model: nn.Module, optimizer: Any, batch: Sequence[Tensor]) -> None:
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()
