"""Checkpoints: the run goes on as if nothing had happened, under new masks; and nothing else opens."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.modes import Mixed, Spy, batches, plain_net, spies
from torch import Tensor, nn
from torch.nn import functional as F

from cloister.errors import CloisterError, InputError, IntegrityError
from cloister.offload import _checkpoint as module
from cloister.offload import load_checkpoint, offload, save_checkpoint
from cloister.wire import Secret, _pieces

KEY = Secret(b"k" * 32)
DATA = batches(6)


class Loop:
    """A training loop with everything that has a state."""

    def __init__(self, workers: Any = "inline", **choices: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(Mixed(), nn.Dropout(0.2))
        offload(self.model, mode="shared3", workers=workers, **choices)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, gamma=0.5)

    def steps(self, data: list[tuple[Tensor, Tensor]]) -> list[float]:
        losses = []
        for images, labels in data:
            self.optimizer.zero_grad()
            noisy = images + random.random() + float(np.random.rand())
            loss = F.cross_entropy(self.model(noisy), labels)
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.item())
        return losses

    @property
    def parts(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "scheduler": self.scheduler}


def test_a_resumed_run_has_the_bits_of_one_that_was_never_stopped(tmp_path: Path) -> None:
    path = tmp_path / "run.checkpoint"
    loop = Loop()
    loop.steps(DATA[:3])
    save_checkpoint(path, loop.model, key=KEY, sequence=3, extra={"seen": 12}, **loop.parts)
    expected = loop.steps(DATA[3:])
    again = Loop()
    again.steps(DATA[4:5])  # something else first: all of it is put back
    found = load_checkpoint(path, again.model, key=KEY, at_least=3, **again.parts)
    assert (found.sequence, found.fresh, found.extra) == (3, True, {"seen": 12})
    assert again.steps(DATA[3:]) == expected
    assert all(torch.equal(a, b) for a, b in zip(loop.model.parameters(), again.model.parameters(), strict=True))


def test_a_resumed_run_has_other_masks(tmp_path: Path) -> None:
    path = tmp_path / "run.checkpoint"

    def sent(workers: list[Spy]) -> set[bytes]:
        return {tensor.numpy().tobytes() for _, tensor in workers[0].tensors}

    first = spies("shared3")
    loop = Loop(first)
    loop.steps(DATA[:1])
    save_checkpoint(path, loop.model, key=KEY, sequence=1, **loop.parts)
    before = len(first[0].tensors)
    loop.steps(DATA[1:2])
    del first[0].tensors[:before]
    second = spies("shared3")
    resumed = Loop(second)
    load_checkpoint(path, resumed.model, key=KEY, **resumed.parts)
    resumed.steps(DATA[1:2])  # the same step of the same run, twice: a fork
    assert sent(first)
    assert not sent(first) & sent(second)


def test_without_a_number_to_compare_with_it_says_that_it_cannot_know(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", plain_net(), key=KEY, sequence=7)
    assert load_checkpoint(tmp_path / "a", plain_net(), key=KEY).fresh is None


def test_no_key_and_no_weight_is_in_the_file(tmp_path: Path) -> None:
    model = plain_net()
    save_checkpoint(tmp_path / "a", model, key=KEY, sequence=1)
    raw = (tmp_path / "a").read_bytes()
    assert model[3].weight.detach().numpy().tobytes()[:64] not in raw
    assert KEY.reveal() not in raw
    save_checkpoint(tmp_path / "b", model, key=KEY, sequence=1)
    assert raw[-64:] != (tmp_path / "b").read_bytes()[-64:]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def _changed(raw: bytes) -> list[bytes]:
    places = [0, 20, 30, len(raw) // 2, len(raw) - 1]
    flipped = [raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :] for place in places]
    return [*flipped, raw[:-1], raw[:40], raw[: len(raw) // 2], raw + b"\0", b"", b"PK\x03\x04" + raw]


def test_any_other_bytes_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    save_checkpoint(path, plain_net(), key=KEY, sequence=1)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("interpreted"))
    for raw in _changed(path.read_bytes()):
        path.write_bytes(raw)
        with pytest.raises(IntegrityError) as caught:
            load_checkpoint(path, plain_net(), key=KEY)
        assert caught.value.code == 5703


def test_pieces_cannot_be_dropped_moved_or_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pieces, "PIECE_BYTES", 1024)
    path = tmp_path / "a"
    save_checkpoint(path, plain_net(), key=KEY, sequence=1)
    load_checkpoint(path, plain_net(), key=KEY)
    raw = path.read_bytes()
    head, size = raw[: module._HEAD.size], 1024 + 16
    pieces = [raw[at : at + size] for at in range(len(head), len(raw), size)]
    assert len(pieces) > 3
    for wrong in ([pieces[1], pieces[0], *pieces[2:]], pieces[:-1], pieces[1:], [pieces[0], *pieces]):
        path.write_bytes(head + b"".join(wrong))
        with pytest.raises(IntegrityError) as caught:
            load_checkpoint(path, plain_net(), key=KEY)
        assert caught.value.code == 5703


def test_another_key_and_an_older_number_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", plain_net(), key=KEY, sequence=4)
    with pytest.raises(IntegrityError) as caught:
        load_checkpoint(tmp_path / "a", plain_net(), key=Secret(b"K" * 32))
    assert caught.value.code == 5703
    with pytest.raises(IntegrityError) as caught:
        load_checkpoint(tmp_path / "a", plain_net(), key=KEY, at_least=5)
    assert caught.value.code == 5704


@pytest.mark.parametrize("choices", [{"key": Secret(b"short"), "sequence": 1}, {"key": KEY, "sequence": -1}])
def test_nonsense_is_refused(choices: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        save_checkpoint(tmp_path / "a", plain_net(), **choices)
    assert caught.value.code == 2716
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    model = plain_net()
    save_checkpoint(tmp_path / "a", model, key=KEY, sequence=1)
    for other, parts in ((nn.Linear(2, 2), {}), (model, {"optimizer": torch.optim.SGD(model.parameters(), lr=1)})):
        with pytest.raises(InputError) as caught:
            load_checkpoint(tmp_path / "a", other, key=KEY, **parts)
        assert caught.value.code == 2717
    with pytest.raises(InputError) as caught:
        load_checkpoint(tmp_path / "nowhere", model, key=KEY)
    assert caught.value.code == 2001


def test_a_state_after_a_wrong_answer_is_not_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = plain_net()
    offload(model, mode="verify", workers=spies("verify", lie=lambda _, answer: answer + 1))
    model(DATA[0][0])
    with pytest.raises(CloisterError) as caught:
        save_checkpoint(tmp_path / "a", model, key=KEY, sequence=1)
    assert caught.value.code == 5701
    assert not list(tmp_path.iterdir())


def test_a_save_that_is_cut_off_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "a"
    model = plain_net()
    save_checkpoint(path, model, key=KEY, sequence=1)
    program = (
        "import os, torch; from pathlib import Path; from cloister.offload import save_checkpoint;"
        "from cloister.wire import Secret; from tests.modes import plain_net;"
        "os.fsync = lambda _: os._exit(9);"
        f"save_checkpoint({str(path)!r}, plain_net(), key=Secret(b'k' * 32), sequence=2)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3], check=False, timeout=120)
    assert done.returncode == 9
    assert load_checkpoint(path, model, key=KEY).sequence == 1


def test_one_script_saves_in_a_notebook_with_a_key_and_in_a_stage_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(path: Path | None, key: Secret | None) -> tuple[Any, Any]:
        model = plain_net()
        first = load_checkpoint(path, model, key=key, missing_ok=True)
        save_checkpoint(path, model, key=key, sequence=1, extra={"epoch": 1})
        return first, load_checkpoint(path, model, key=key)

    before, after = script(tmp_path / "a", KEY)
    assert (before, after.fresh, after.extra) == (None, None, {"epoch": 1})
    monkeypatch.setenv("CLOISTER_CHECKPOINT", str(tmp_path / "stage"))
    (tmp_path / "stage").mkdir()
    before, after = script(None, None)
    assert (before, after.fresh, after.extra) == (None, True, {"epoch": 1})
    assert [each.name for each in (tmp_path / "stage").iterdir()] == ["state"]


def test_a_checkpoint_that_nobody_keeps_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLOISTER_CHECKPOINT", raising=False)
    model = plain_net()
    for act in (lambda: save_checkpoint(None, model, sequence=1), lambda: load_checkpoint(None, model)):
        with pytest.raises(InputError) as caught:
            act()
        assert caught.value.code == 2718
    for act in (lambda: save_checkpoint(tmp_path / "a", model, sequence=1), lambda: load_checkpoint("a", model)):
        with pytest.raises(InputError) as caught:
            act()
        assert caught.value.code == 2716
    assert not list(tmp_path.iterdir())


def test_a_missing_checkpoint_is_no_fresh_one_where_a_number_is_known(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_checkpoint(tmp_path / "a", plain_net(), key=KEY, at_least=3, missing_ok=True)
    assert caught.value.code == 2001
