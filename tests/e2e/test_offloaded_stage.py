"""A stage whose layers leave: the launcher a process of its own, its script sandboxed, three workers behind sockets."""

from __future__ import annotations

import json
import os
import runpy
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.enclaves import IDENTITIES, OPERATORS
from tests.keyserver import served
from tests.workers import Serving

from cloister.attest import SimulatedSite
from cloister.enclave import Job, StageOutcome, executor_named, measure_installed, open_findings, open_log
from cloister.keys import (
    AttemptGrant,
    KeyManagerClient,
    KeyRule,
    MemoryStore,
    RegistrationRequest,
    Service,
    collect_output,
    initialise,
    install_key,
    open_signed,
    verify_service,
)
from cloister.manifest import (
    CheckpointTerms,
    Image,
    KeyManager,
    Limits,
    Manifest,
    OffloadTerms,
    Output,
    Party,
    Release,
    SignedManifest,
    Stage,
    Tee,
    Validity,
    Worker,
    sign,
)
from cloister.offload import Limits as WorkerLimits
from cloister.party import WorkerIdentity
from cloister.receipt import verify_receipt
from cloister.ring._cpu import CpuKernels
from cloister.seal import open_image, seal_folder, unpack
from cloister.wire import VerifyKey

pytestmark = pytest.mark.slow

OPERATED = {"gpu-a": "lab", "gpu-b": "cloud-x", "gpu-c": "cloud-y"}
TRAIN = """
import sys
from pathlib import Path

import torch
from cloister.offload import offload, report


def train(data, **how):
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    model = offload(model, **how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        images = data + torch.randn(8, 20)
        loss = torch.nn.functional.cross_entropy(model(images), torch.zeros(8, dtype=torch.long))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(report(model))
    return ",".join(value.hex() for p in model.parameters() for value in p.detach().flatten().tolist())


if __name__ == "__main__":
    weights = train(float(Path("/inputs/data/x.txt").read_text()))
    Path("/outputs/model/weights").write_text(weights)
"""


CUT = """
import os
import sys
import time
from pathlib import Path

import torch
from cloister.offload import load_checkpoint, offload, save_checkpoint


def train(data, **how):
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    model = offload(model, **how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    staged = "CLOISTER_CHECKPOINT" in os.environ
    found = load_checkpoint(None, model, optimizer=optimizer, missing_ok=True) if staged else None
    for step in range(found.sequence if found else 0, 4):
        images = data + torch.randn(8, 20)
        loss = torch.nn.functional.cross_entropy(model(images), torch.zeros(8, dtype=torch.long))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if staged:
            save_checkpoint(None, model, optimizer=optimizer, sequence=step + 1)
        if staged and found is None and step == 1:
            time.sleep(2)
            sys.exit(3)
    return ",".join(value.hex() for p in model.parameters() for value in p.detach().flatten().tolist())


if __name__ == "__main__":
    weights = train(float(Path("/inputs/data/x.txt").read_text()))
    Path("/outputs/model/weights").write_text(weights)
"""


class Lying(CpuKernels):
    """The kernels of a worker that changes one word of its fourth answer."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def product(self, *arguments: Any, **more: Any) -> torch.Tensor:
        answer = super().product(*arguments, **more)
        self.made += 1
        if self.made == 4:
            answer.view(-1)[0] += 1 << 20
        return answer


@dataclass
class Place:
    """What was agreed on, and where everything is."""

    folder: Path
    site: Path
    manifest: Manifest
    signed: SignedManifest
    client: KeyManagerClient
    url: str
    workers: dict[str, str]

    def launch(self, *, run: Any = None, **workers: str) -> tuple[StageOutcome, Job]:
        """An attempt of ``run``, or of a new one; ``workers`` are elsewhere than the host thought."""
        out = self.folder / f"{os.urandom(4).hex()}.image"
        job = Job(
            manifest=self.signed,
            stage="train",
            grant=self.client.start_attempt(run or self.client.start_run(self.manifest.id), "train"),
            key_managers={"keys": self.url},
            inputs={name: str(self.folder / f"{name}.image") for name in ("code", "data")},
            outputs={"model": str(out)},
            checkpoint=str(self.folder / "state"),
            workers={**self.workers, **{name.replace("_", "-"): place for name, place in workers.items()}},
            site=str(self.site),
        )
        return executor_named("process").submit(job).outcome(280), job


@pytest.fixture
def kernels() -> dict[str, CpuKernels]:
    """Of the workers that do not multiply as they should."""
    return {}


@pytest.fixture
def stage() -> dict[str, Any]:
    """What the stage has beside the usual; its script is under ``script``."""
    return {}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One machine for all stages: what it compiled for the first one serves the others."""
    folder = tmp_path_factory.mktemp("machine") / "site"
    SimulatedSite.create(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path, site: Path, kernels: dict[str, CpuKernels], stage: dict[str, Any]) -> Iterator[Place]:
    (tmp_path / "code").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "code" / "train.py").write_text(stage.pop("script", TRAIN))
    (tmp_path / "data" / "x.txt").write_text("0.5")
    sealed = {name: seal_folder(tmp_path / name, tmp_path / f"{name}.image") for name in ("code", "data")}
    room = SimulatedSite.open(site)
    attester = room.attester(b"\1" * 48)
    store = MemoryStore()
    made = initialise(store, now=datetime.now(UTC), attester=attester)
    identities = {name: WorkerIdentity.generate(name) for name in OPERATED}
    with ExitStack() as stack:
        servers = {
            name: Serving(identity, kernels=kernels.get(name), limits=WorkerLimits(memory_bytes=256 << 20))
            for name, identity in identities.items()
        }
        for server in servers.values():
            stack.callback(server.stop)
        places = {name: f"tcp://{server.address}" for name, server in servers.items()}
        manifest = _agreed(sealed, room, made.sign, identities, stage)
        signed = SignedManifest(manifest=manifest)
        for identity in IDENTITIES.values():
            signed = sign(signed, identity)
        service = Service(store, attester=attester)
        stack.callback(service.close)
        url = stack.enter_context(served(service))
        client = stack.enter_context(KeyManagerClient(url, VerifyKey.parse(made.sign)))
        client.install_manifest(signed)
        verified = verify_service(client, manifest, "keys", at=datetime.now(UTC), allow_simulated=True)
        for name, owner in (("code", "lab"), ("data", "hospital")):
            rule = KeyRule(uses=10, until=manifest.valid.not_after, simulated=True)
            given = {"manifest": manifest, "image": name, "key": sealed[name].key, "rule": rule}
            install_key(client, verified, **given, identity=IDENTITIES[owner])
        yield Place(tmp_path, site, manifest, signed, client, url, places)


def _agreed(
    sealed: Any, room: SimulatedSite, sign_key: str, workers: dict[str, WorkerIdentity], stage: dict[str, Any]
) -> Manifest:
    now = datetime.now(UTC)
    times = [(now + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ") for days in (-1, 1)]
    people = {**IDENTITIES, **OPERATORS}
    terms = OffloadTerms(mode="shared3", workers=tuple(OPERATED))
    train = Stage(
        tee="stages",
        code="code",
        argv=("python", "train.py"),
        inputs=("data",),
        outputs={"model": Output(max_bytes=1 << 20)},
        limits=Limits(memory_bytes=4 << 30, time_s=240, processes=256),
        logs=("hospital",),
        network=terms.workers,
        offload=terms,
        **stage,
    )
    return Manifest(
        cloister=1,
        name="offloaded",
        valid=Validity(not_before=times[0], not_after=times[1]),
        parties={n: Party(sign=str(i.signing_key.public), hpke=str(i.opening_key.public)) for n, i in people.items()},
        key_managers={"keys": KeyManager(sign=sign_key, tee="keys")},
        registrar="keys",
        tees={
            "keys": Tee(type="tdx", measurements=("01" * 48,), simulated_root=room.root_spki),
            "stages": Tee(
                type="tdx", measurements=(measure_installed("launcher").measurement,), simulated_root=room.root_spki
            ),
        },
        workers={
            name: Worker(operator=OPERATED[name], url="tcp://elsewhere.invalid:1", key=str(each.opening_key.public))
            for name, each in workers.items()
        },
        images={
            "code": Image(id=sealed["code"].id, kind="code", owner="lab", key_manager="keys"),
            "data": Image(id=sealed["data"].id, kind="dataset", owner="hospital", key_manager="keys"),
        },
        stages={"train": train},
        releases=(Release(output="model", party="hospital"),),
    )


def log_of(place: Place, said: Any, job: Job) -> str:
    grant = open_signed(AttemptGrant, job.grant, place.client.key)
    session = VerifyKey.parse(said.claims.sign)
    key = IDENTITIES["hospital"].opening_key
    return open_log(said.log, party="hospital", key=key, session=session, attempt=grant.digest()).decode()


def test_a_model_is_trained_as_at_home_and_the_receipt_says_how(place: Place) -> None:
    outcome, job = place.launch()
    assert outcome.failure is None, (outcome.failure, log_of(place, outcome.failure, job))
    result = outcome.require()
    place.client.register(RegistrationRequest(registration=result.registration))
    facts = verify_receipt(result.receipt, key=VerifyKey.parse(result.claims.sign), manifest=place.manifest)
    said = facts.offload
    assert (said.mode, said.workers, said.models) == ("shared3", tuple(OPERATED), 1)
    assert said.products == said.checks == 3 * 5
    assert said.error_bits >= 50
    assert min(said.sent_bytes, said.received_bytes) > 0

    assert weights_of(place, facts.run, job) == at_home(place)
    assert "shared3" in log_of(place, result, job)


def weights_of(place: Place, run: str, job: Job) -> str:
    collected = collect_output(
        place.manifest, "model", run=run, identity=IDENTITIES["hospital"], clients={"keys": place.client}
    )
    with open_image(job.outputs["model"], image_id=collected.image, key=collected.key) as reader:
        unpack(reader, place.folder / "opened")
    return (place.folder / "opened" / "weights").read_text()


def at_home(place: Place) -> str:
    home = runpy.run_path(str(place.folder / "code" / "train.py"), run_name="home")
    return home["train"](0.5, mode="shared3", execution="simulate")


def test_a_training_that_was_cut_off_goes_on_under_new_masks_and_ends_with_the_same_bits(
    stage: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    stage |= {"script": CUT, "checkpoint": CheckpointTerms(max_bytes=1 << 20)}
    place: Place = request.getfixturevalue("place")
    run = place.client.start_run(place.manifest.id)
    outcome, job = place.launch(run=run)
    assert outcome.failure.code == 5501, log_of(place, outcome.failure, job)
    outcome, job = place.launch(run=run)
    assert outcome.failure is None, (outcome.failure, log_of(place, outcome.failure, job))
    result = outcome.require()
    place.client.register(RegistrationRequest(registration=result.registration))
    facts = verify_receipt(result.receipt, key=VerifyKey.parse(result.claims.sign), manifest=place.manifest)
    assert facts.resumed is not None
    assert facts.resumed.attempt == 1
    assert facts.offload.products == facts.offload.checks == 2 * 5
    assert weights_of(place, facts.run, job) == at_home(place)


def test_a_worker_that_lies_once_ends_it_and_the_owner_of_the_data_reads_which(
    kernels: dict[str, CpuKernels], request: pytest.FixtureRequest
) -> None:
    kernels["gpu-b"] = Lying()
    place: Place = request.getfixturevalue("place")
    outcome, job = place.launch()
    failure = outcome.failure
    assert (failure.code, failure.what, failure.got) == (5701, "a worker's answer is wrong", None)
    assert not Path(job.outputs["model"]).exists()
    grant = open_signed(AttemptGrant, job.grant, place.client.key)
    how = {"session": VerifyKey.parse(failure.claims.sign), "attempt": grant.digest()}
    record = open_findings(failure.findings, party="hospital", key=IDENTITIES["hospital"].opening_key, **how)
    found = json.loads(record)
    assert found["count"] == 1
    assert found["failures"][0]["holds"] is False


def test_a_worker_that_is_somebody_else_ends_it(place: Place) -> None:
    """Each key is the manifest's: an address that leads to another worker of it leads nowhere."""
    outcome, _ = place.launch(gpu_a=place.workers["gpu-b"])
    assert outcome.failure.code // 100 in (57, 67)
    assert outcome.failure.code != 5701
    assert outcome.failure.got is None


def test_a_worker_that_is_not_there_ends_it_under_a_code_that_is_tried_again(place: Place) -> None:
    outcome, _ = place.launch(gpu_c="tcp://127.0.0.1:1")
    assert (outcome.failure.code, outcome.failure.got) == (6704, None)
