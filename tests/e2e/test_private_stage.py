"""A private training in a real launcher: sealed program and records in, bounded weights and an account of them out."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests.audits import PINS
from tests.launched import Granted, granted, one_stage
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cloister.audit import verify
from cloister.enclave import ProcessExecutor
from cloister.errors import CloisterError
from cloister.ledger import read_ledger
from cloister.manifest import PRIVATE_TRAINING, Limits, Manifest, PrivacyBudget, PrivacyTerms
from cloister.privacy import Recipe, check_model, save_program, write_records
from cloister.receipt import verify_receipt
from cloister.run import Runner, make_bundle
from cloister.seal import SealedImage, seal_folder
from cloister.wire import VerifyKey

pytestmark = pytest.mark.slow

ROWS = 400
TERMS = PrivacyTerms(
    epsilon="8", delta="1e-5", unit="record", units=2 * ROWS, batch=80, steps=60, noise_multiplier="1", clip="1"
)
BUDGET = PrivacyBudget(epsilon="8", delta="2e-5", unit="record")


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, labels = batch
    return cross_entropy(model(inputs.float() / 255), labels, reduction="none")


def rows(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Small pictures, dark or bright."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    base = torch.randint(0, 128, (count, 1, 8, 8), generator=generator)
    return (base + 127 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))


def execute(run: Granted) -> int:
    """Executes the run; the code that it ended with."""
    try:
        Runner(run.folder, run.host, executor=ProcessExecutor(), clients=run.world.clients).run()
    except CloisterError as error:
        return error.code
    return 0


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The owners' folders: two hospitals' records, and the lab's program."""
    model = network()
    certificate = check_model(model, loss, rows(4, seed=0))
    recipe = Recipe(learning_rate="0.5", momentum="0.9", schedule="cosine")
    save_program(certificate, model, tmp_path / "program", recipe=recipe)
    for seed, name in enumerate(("data-a", "data-b")):
        inputs, labels = rows(ROWS, seed=seed)
        write_records(tmp_path / name, {"0": inputs, "1": labels})
    return tmp_path


def training(folder: Path, **terms: Any) -> contextlib.AbstractContextManager[Granted]:
    sealed = {
        name: seal_folder(folder / source, folder / f"{name}.image")
        for name, source in (("data-a", "data-a"), ("data-b", "data-b"), ("scripts", "program"))
    }
    return granted(folder, sealed, lambda manifest: _private(manifest, sealed, TERMS.model_copy(update=terms)))


def _private(manifest: Manifest, sealed: dict[str, SealedImage], terms: PrivacyTerms) -> Manifest:
    prepare = manifest.stages["prepare"].model_copy(
        update={
            "argv": PRIVATE_TRAINING,
            "privacy": terms,
            "limits": Limits(memory_bytes=4 << 30, time_s=600, processes=256),
            "logs": ("lab",),
        }
    )
    made = one_stage(manifest, sealed, prepare)
    images = {
        name: image.model_copy(update={"budget": BUDGET}) if image.kind == "dataset" else image
        for name, image in made.images.items()
    }
    return made.model_copy(update={"images": images})


def test_a_private_stage_trains_what_was_certified_and_accounts_for_it(place: Path) -> None:
    with training(place) as run:
        assert execute(run) == 0
        world, state = run.world, run.folder.state()
        (record,) = state.attempts
        assert record.receipt is not None
        assert record.claims is not None
        facts = verify_receipt(record.receipt, key=VerifyKey.parse(record.claims.sign), manifest=world.manifest)
        assert facts.privacy is not None
        (event,) = facts.privacy.events
        assert (event.kind, event.unit, getattr(event, "count", 0)) == ("sampled-gaussian", "record", 60)

        target = run.collected("joined", place / "collected")
        account = read_ledger((target / "privacy.json").read_bytes(), head=facts.privacy.head)
        assert account == facts.privacy
        model = network()
        model.load_state_dict(safetensors.torch.load_file(target / "weights.safetensors"))
        inputs, labels = rows(1000, seed=9)
        with torch.no_grad():
            correct = (model(inputs.float() / 255).argmax(1) == labels).float().mean()
        assert correct > 0.9

        report = verify(make_bundle(run.folder, world.clients, now=world.clock()), at=world.clock(), pins=PINS)
        report.require()
        bounded = [check for check in report.checks if check.group == "privacy" and check.status == "asserted"]
        assert {check.subject for check in bounded} == {"prepare", "prepare/joined"}


def test_more_records_than_were_agreed_are_not_trained_on(place: Path) -> None:
    with training(place, units=2 * ROWS - 1) as run:
        assert execute(run) == 5501
        assert not run.folder.state().outputs
