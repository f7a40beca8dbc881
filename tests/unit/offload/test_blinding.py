"""What mode ``blind`` makes ahead is opened by a thread, in order, while layers before it are multiplied."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from tests.modes import batches, plain_net
from torch import nn

from cloister.errors import IntegrityError
from cloister.offload import _blinding as module
from cloister.offload import offload, onload, precompute

IMAGES = batches(1)[0][0]


@pytest.fixture
def expanded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Threads that expanded a mask, in order."""
    threads: list[str] = []
    expand = module.expand

    def noted(*args: Any) -> torch.Tensor:
        threads.append(threading.current_thread().name.partition("_")[0])
        return expand(*args)

    monkeypatch.setattr(module, "expand", noted)
    return threads


def prepared(stored: dict[str, bytes], passes: int) -> tuple[nn.Module, torch.Tensor]:
    """A model of three layers, and what it answers."""
    torch.manual_seed(0)
    model = offload(plain_net().requires_grad_(False), mode="blind", workers="inline", stored=stored)
    with torch.no_grad():
        expected = model(IMAGES)
        assert precompute(model, passes=passes) == 3 * passes
    return model, expected


def test_what_comes_next_is_opened_by_a_thread(expanded: list[str]) -> None:
    stored: dict[str, bytes] = {}
    model, expected = prepared(stored, 2)
    expanded.clear()
    with torch.no_grad():
        assert torch.equal(model(IMAGES), expected)
        assert len(stored) == 3  # of the next pass, opened already or not
        assert torch.equal(model(IMAGES), expected)
    assert not stored
    assert expanded.count("MainThread") == 1  # for the first layer of all nobody could know
    assert expanded.count("cloister-blinding") == 5
    onload(model)


@pytest.mark.parametrize("room", [0, 1 << 10])
def test_no_more_is_open_than_there_is_room_for(
    room: int, expanded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_OPEN_BYTES", room)
    model, expected = prepared({}, 2)
    expanded.clear()
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(model(IMAGES), expected)
    assert len(expanded) == 6
    assert expanded.count("MainThread") > (5 if room == 0 else 1)
    onload(model)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_lie_of_the_store_is_found_where_it_is_used(layer: int) -> None:
    stored: dict[str, bytes] = {}
    model, _ = prepared(stored, 1)
    name = list(stored)[layer]
    stored[name] = stored[name][:-1] + bytes([stored[name][-1] ^ 1])
    with torch.no_grad(), pytest.raises(IntegrityError) as caught:
        model(IMAGES)
    assert caught.value.code == 5702
    assert len(stored) == 3 - layer  # what was used before is gone


def test_what_was_opened_for_a_weight_that_changed_is_not_used() -> None:
    model, _ = prepared({}, 1)
    twin = plain_net().requires_grad_(False)
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        for each in (model, twin):
            each[3].weight.mul_(2)
        offload(twin, mode="verify", workers="inline")
        assert torch.equal(model(IMAGES), twin(IMAGES))
    onload(model)
