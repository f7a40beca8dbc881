"""A stage's training as the launcher orders it: what it refuses, and that a killed one goes on to the same bits."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cloister.errors import CloisterError
from cloister.ledger import ORDER_VARIABLE, Relation, StageOrder, TrainingOrder, amount, read_ledger, require_within
from cloister.offload import offload, report
from cloister.privacy import Recipe, check_model, save_program, write_records
from cloister.privacy import _stage as stage
from cloister.privacy._stage import ordered, train_stage

ROWS = 60


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def training(**fields: Any) -> TrainingOrder:
    said: dict[str, Any] = {
        "id": "a" * 64,
        "unit": "record",
        "relation": Relation.ADD_OR_REMOVE_ONE,
        "units": 2 * ROWS,
        "batch": 12,
        "steps": 25,
        "noise_multiplier": "1",
        "clip": "0.5",
        "most_rows": 1,
        "slack": amount("1e-10"),
        "delta": amount("1e-5"),
    }
    return TrainingOrder(**{**said, **fields})


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: proving a model takes longer than training this one."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("program")
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    batch = torch.randn(4, 5), torch.randint(0, 3, (4,))
    recipe = Recipe(learning_rate="0.1", optimizer="adam", schedule="cosine", micro_batch=16)
    save_program(check_model(model, loss, batch), model, folder, recipe=recipe)
    return folder


@pytest.fixture
def order(tmp_path: Path, program: Path) -> StageOrder:
    inputs, labels = torch.randn(2 * ROWS, 5), torch.randint(0, 3, (2 * ROWS,))
    people = torch.arange(2 * ROWS) // 3
    for name, part in (("a", slice(0, ROWS)), ("b", slice(ROWS, None))):
        write_records(tmp_path / name, {"0": inputs[part], "1": labels[part]}, patients=people[part])
    (tmp_path / "out").mkdir()
    return StageOrder(
        training=training(),
        program=str(program),
        inputs=(str(tmp_path / "a"), str(tmp_path / "b")),
        output=str(tmp_path / "out"),
    )


def code(order: StageOrder) -> int:
    try:
        train_stage(order)
    except CloisterError as error:
        return error.code
    return 0


def test_it_does_what_was_ordered_and_says_so(order: StageOrder, program: Path, tmp_path: Path) -> None:
    ledger = train_stage(order)
    require_within(ledger.events, [order.training.event])
    assert [getattr(event, "count", 0) for event in ledger.events] == [25]
    assert read_ledger((tmp_path / "out" / "privacy.json").read_bytes(), head=ledger.head) == ledger
    before = (program / "weights.safetensors").read_bytes()
    assert (tmp_path / "out" / "weights.safetensors").read_bytes() != before


def test_patients_are_drawn_and_bounded_as_one(order: StageOrder) -> None:
    patients = training(unit="patient", units=2 * ROWS // 3, batch=4, most_rows=3)
    ledger = train_stage(order.model_copy(update={"training": patients}))
    require_within(ledger.events, [patients.event])
    fewer = patients.model_copy(update={"most_rows": 2})  # the third row of each counts for nothing
    require_within(train_stage(order.model_copy(update={"training": fewer})).events, [fewer.event])


def test_no_record_ends_it(order: StageOrder) -> None:
    """That a stage failed is seen by its host: it would tell that the record was drawn."""
    inputs, labels = torch.randn(ROWS, 5), torch.full((ROWS,), 3)  # of three classes
    inputs[0] = math.nan
    write_records(Path(order.inputs[0]), {"0": inputs, "1": labels}, patients=torch.arange(ROWS))
    require_within(train_stage(order).events, [order.training.event])


@pytest.mark.parametrize(
    ("unit", "units"), [("record", 2 * ROWS - 1), ("record", 12), ("patient", 2 * ROWS // 3 - 1)], ids=str
)
def test_more_units_than_were_agreed_are_refused(order: StageOrder, unit: str, units: int, tmp_path: Path) -> None:
    assert code(order.model_copy(update={"training": training(unit=unit, units=units)})) == 3852
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("unit", "rows"), [("record", 1), ("patient", 3)])
def test_fewer_are_drawn_as_if_the_others_were_there(
    order: StageOrder, unit: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agreed probability, and a divisor that does not say how many there are."""
    made: list[Any] = []

    def keep(*arguments: Any, **how: Any) -> Any:
        made.append(found := make_private(*arguments, **how))
        return found

    make_private = stage.make_private
    monkeypatch.setattr(stage, "make_private", keep)
    wanted = training(unit=unit, units=500, most_rows=rows)
    ledger = train_stage(order.model_copy(update={"training": wanted}))
    require_within(ledger.events, [wanted.event])
    ((_, _, loader),) = made
    assert (loader.sampler.count, loader.sampler.expected) == (500, 12)
    owned = [len(loader._groups.rows(number)) for number in range(500)]
    units = 2 * ROWS // rows
    assert owned == [rows] * units + [0] * (500 - units)


def _without(folder: Path) -> None:
    (folder / "records.safetensors").unlink()


def _cut(folder: Path) -> None:
    path = folder / "records.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def _other_names(folder: Path) -> None:
    write_records(folder, {"inputs": torch.randn(ROWS, 5), "1": torch.zeros(ROWS, dtype=torch.int64)})


def _other_shape(folder: Path) -> None:
    write_records(folder, {"0": torch.randn(ROWS, 6), "1": torch.zeros(ROWS, dtype=torch.int64)})


def _other_type(folder: Path) -> None:
    write_records(folder, {"0": torch.randn(ROWS, 5), "1": torch.zeros(ROWS, dtype=torch.int32)})


@pytest.mark.parametrize("change", [_without, _cut, _other_names, _other_shape, _other_type])
def test_records_that_are_not_the_programs_are_refused(order: StageOrder, tmp_path: Path, change: Any) -> None:
    change(tmp_path / "b")
    assert code(order) == 2859


def test_records_of_unequal_length_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(CloisterError) as refused:
        write_records(tmp_path / "c", {"0": torch.zeros(3, 2), "1": torch.zeros(4)})
    assert refused.value.code == 2859


def test_patients_must_be_named_where_they_are_the_unit(order: StageOrder, tmp_path: Path) -> None:
    write_records(tmp_path / "b", {"0": torch.randn(ROWS, 5), "1": torch.zeros(ROWS, dtype=torch.int64)})
    assert code(order.model_copy(update={"training": training(unit="patient")})) == 2859


def test_the_order_is_read_whole_or_not_at_all(order: StageOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ORDER_VARIABLE, order.canonical().decode())
    assert ordered() == order
    for text in ("", "{}", order.canonical().decode()[:-1], order.canonical().decode().replace("steps", "stops")):
        monkeypatch.setenv(ORDER_VARIABLE, text)
        with pytest.raises(CloisterError) as refused:
            ordered()
        assert refused.value.code in (2002, 2004, 2005)


class Killed(Exception):
    """As if the machine had stopped."""


def on_workers(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Makes three workers in this process multiply whatever is trained; the programs, in order."""
    offloaded: list[nn.Module] = []

    def leave(program: nn.Module) -> nn.Module:
        offloaded.append(offload(program, mode="shared3", workers="inline"))
        return program

    monkeypatch.setattr(stage, "offload", leave)
    return offloaded


def test_workers_multiply_what_is_trained_and_nobody_reads_off_who_was_drawn(
    order: StageOrder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offloaded = on_workers(monkeypatch)
    asked = set[int]()
    for _ in range(3):  # other draws each time
        require_within(train_stage(order).events, [order.training.event])
        found = report(offloaded[-1])
        assert found.checks >= found.products > 25
        asked.add(found.products)
    assert len(asked) == 1
    said = capsys.readouterr().err.splitlines()
    assert all(re.fullmatch(r"step \d+ of 25, ε = [0-9.]+", line) for line in said)  # the log's readers learn no more


@pytest.mark.parametrize("workers", [False, True], ids=["in the enclave", "by workers"])
def test_a_killed_training_goes_on_to_the_same_bits_and_the_same_account(
    order: StageOrder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: bool
) -> None:
    if workers:
        on_workers(monkeypatch)
    order = order.model_copy(update={"checkpoint": True})
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    monkeypatch.setenv("CLOISTER_CHECKPOINT", str(folder))
    monkeypatch.setattr(stage, "_SAVE_EVERY_S", 0.0)
    save, kept = stage.save_checkpoint, {}

    def saving(*args: Any, sequence: int, **how: Any) -> None:
        save(*args, sequence=sequence, **how)
        kept[sequence] = (folder / "state").read_bytes()
        if sequence == 17:
            raise Killed

    monkeypatch.setattr(stage, "save_checkpoint", saving)
    with pytest.raises(Killed):
        train_stage(order)
    assert not list((tmp_path / "out").iterdir())
    weights = []
    for sequence in (17, 17, 8):  # from the last, from the last again, and from an earlier one of the same run
        (folder / "state").write_bytes(kept[sequence])
        monkeypatch.setattr(stage, "save_checkpoint", save)
        ledger = train_stage(order)
        assert [getattr(event, "count", 0) for event in ledger.events] == [25]
        weights.append((tmp_path / "out" / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1] == weights[2]
