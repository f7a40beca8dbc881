"""The private demo's parts without its processes: what the manifest asks, what it costs, what each hospital seals."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the demo needs cloister[demo]")
pytest.importorskip("torch", reason="the demo needs cloister[demo]")

import torch
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file, save_file

import cloister.demo._hospitals as source
from cloister.demo._hospitals import write_hospitals
from cloister.demo._manifest import contributions, manifest_text
from cloister.demo._private import _TERMS, HOSPITALS, told
from cloister.errors import BudgetError
from cloister.ledger import Budget, Charge, Method, Relation, amount, open_book
from cloister.manifest import Manifest, load_manifest, order_of, require_sound, review
from cloister.party import Identity, WorkerIdentity
from cloister.wire import SigningKey

HERE = Path(source.__file__).parent
WORKERS = ("gpu-x", "gpu-y", "gpu-z")


def script(folder: str, name: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", HERE / folder / name, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"private_{Path(name).stem}", HERE / "private" / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def agreed(*, private: bool) -> Manifest:
    people = {name: Identity.generate(name).public for name in ("hospital-a", "hospital-b", "lab", "doctor", *WORKERS)}
    facts: dict[str, Any] = {
        "images": {name: {"id": f"{number:x}" * 64} for number, name in enumerate(contributions(private=private))},
        "measurements": {"launcher": "a" * 96, "service": "b" * 96, "key-manager": "c" * 96},
        "site": {"root_spki": "d" * 64},
        "keys": {"sign": str(SigningKey.generate().public), "url": "http://127.0.0.1:1"},
        "workers": {
            name: {"key": str(WorkerIdentity.generate(name).opening_key.public), "url": "tcp://127.0.0.1:1"}
            for name in WORKERS
        },
    }
    facts |= {"terms": {**_TERMS, "units": 432}} if private else {}
    people_facts = {name: {"sign": public.sign, "hpke": public.hpke} for name, public in people.items()}
    return load_manifest(manifest_text(facts, people=people_facts).encode())


@pytest.mark.parametrize("private", [False, True])
def test_the_manifest_is_sound_and_names_every_image_once(private: bool) -> None:
    manifest = agreed(private=private)
    require_sound(manifest)
    owners = {name: image.owner for name, image in manifest.images.items()}
    assert owners == {name: made.owner for name, made in contributions(private=private).items()}
    assert (manifest.stages["train"].privacy is not None) == private
    terms = manifest.stages["train"].offload
    assert terms is not None
    assert (terms.mode, terms.workers) == ("shared3", WORKERS)
    assert set(manifest.services["biopsies"].clients) == {"doctor", *(HOSPITALS if private else ())}


def test_nobody_gets_what_is_trained_but_the_service_and_the_price_is_said_before_signing() -> None:
    manifest = agreed(private=True)
    assert [(each.output, each.stage or each.service or each.party) for each in manifest.releases] == [
        ("trained", "export"),
        ("model", "biopsies"),
    ]
    text = " ".join(review(manifest, party="hospital-a").as_json()["sections"]["PRIVACY"])
    assert "agreed are ε ≤ 3 at δ = 1e-5 per patient (replace-special); these terms cost ε = 2." in text
    assert "may tell a reader" not in text  # nothing is released that no bound covers


def test_a_budget_holds_two_trainings_and_no_third() -> None:
    manifest = agreed(private=True)
    budget = manifest.images["biopsies-a"].budget
    assert budget is not None
    kind: dict[str, Any] = {"unit": "patient", "relation": Relation.REPLACE_SPECIAL}
    book = open_book(Budget(owner="hospital-a", **kind, epsilon=budget.epsilon, delta=amount(budget.delta)))
    event = order_of(manifest, "train", run="0" * 32).event
    for number in range(3):
        charge = Charge(id=f"{number:064x}", owner="hospital-a", **kind, events=(event,), delta=amount("1e-5"))
        if number < 2:
            book = book.charge(charge, after=book.head, by=Method.RDP)
        else:
            with pytest.raises(BudgetError) as refused:
                book.charge(charge, after=book.head, by=Method.RDP)
    assert refused.value.code == 7801


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both hospitals made of their data at home."""
    folder = tmp_path_factory.mktemp("homes")
    write_hospitals(folder)
    for letter in "ab":
        script(
            "scripts", f"preprocess_{letter}.py", "--input", folder / f"hospital-{letter}", "--output", folder / letter
        )
        to = ("--output", folder / f"records-{letter}", "--test", folder / f"test-{letter}.csv")
        said = json.loads(script("private", "records.py", "--input", folder / letter, *to))
        (folder / f"{letter}.json").write_text(json.dumps(said))
    return folder


def test_records_are_of_three_quarters_of_the_patients_and_tests_of_the_others(homes: Path) -> None:
    sealed, kept = set[int](), set[int]()
    for letter in "ab":
        records = load_file(homes / f"records-{letter}" / "records.safetensors")
        assert {name: (str(column.dtype), tuple(column.shape[1:])) for name, column in records.items()} == {
            "0": ("torch.float32", (30,)),
            "1": ("torch.float32", ()),
            "patient": ("torch.int64", ()),
        }
        with (homes / f"test-{letter}.csv").open(encoding="utf-8", newline="") as file:
            test = list(csv.DictReader(file))
        said = json.loads((homes / f"{letter}.json").read_text())
        assert said == {"patients": len(set(records["patient"].tolist())), "kept_back": len(test)}
        sealed |= set(records["patient"].tolist())
        kept |= {int(row["patient"]) for row in test}
        assert all(all(row.values()) for row in test)
    assert not sealed & kept  # nobody whom one hospital tests with was trained on at the other
    assert 0.2 < len(kept) / (len(kept) + len(sealed)) < 0.32


def test_somebody_at_both_hospitals_is_one_patient(homes: Path) -> None:
    parts = [load_file(homes / f"records-{letter}" / "records.safetensors")["patient"].tolist() for letter in "ab"]
    assert 20 < len(set(parts[0]) & set(parts[1])) < 40
    assert all(len(part) == len(set(part)) for part in parts)  # so two rows are the most


def test_the_exported_model_answers_as_the_network(homes: Path, tmp_path: Path) -> None:
    network, _, _ = program("network.py").build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape) / 4)
    (tmp_path / "trained").mkdir()
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(weights, tmp_path / "trained" / "weights.safetensors")
    script("private", "export.py", "--input", tmp_path / "trained", "--model", tmp_path / "model")
    rows = load_file(homes / "records-a" / "records.safetensors")["0"]
    rows = torch.cat([rows, rows[:3] * 100])  # beyond what counts, too
    [answers] = ReferenceEvaluator(str(tmp_path / "model" / "model.onnx")).run(None, {"measurements": rows.numpy()})
    with torch.no_grad():
        expected = torch.sigmoid(network(rows)).numpy()
    np.testing.assert_allclose(answers, expected, atol=1e-6)
    with (homes / "test-a.csv").open(encoding="utf-8") as file:
        columns = file.readline().strip().split(",")
    assert json.loads((tmp_path / "model" / "model.json").read_text())["features"] == columns[2:]


def test_the_network_is_one_that_can_be_certified() -> None:
    from cloister.privacy import check_model

    certificate = check_model(*program("network.py").build())
    assert (certificate.verdict, len(certificate.graph.parameters)) == ("independent", 4)


def test_the_comparison_learns_from_the_very_records(homes: Path) -> None:
    where: list[str | Path] = []
    for letter in "ab":
        where += ["--records", homes / f"records-{letter}", "--test", homes / f"test-{letter}.csv"]
    how = ("--steps", "60", "--learning-rate", "0.5", "--momentum", "0.5")
    found = json.loads(script("private", "compare.py", *where, *how))
    assert found["accuracy"] > 0.93
    kept = [json.loads((homes / f"{letter}.json").read_text())["kept_back"] for letter in "ab"]
    assert found["test_patients"] == sum(kept)


def test_what_the_audit_says_of_patients_is_told_and_nothing_else() -> None:
    bound = {
        "group": "privacy",
        "what": "what it reveals of one patient of x is bounded",
        "reason": "ε = 2 of this run, …",
    }
    other = {"group": "privacy", "what": "its training spent at most ε = 3", "reason": "…"}
    assert told({"checks": [bound, other]}) == ["what it reveals of one patient of x is bounded: ε = 2"]
