"""Storage that returns something else than what mode ``blind`` put there; and tables of pieces that would leak."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tests.modes import spies
from torch import nn

from cloister.errors import IntegrityError, InternalError
from cloister.offload import _offload as module
from cloister.offload import offload, precompute
from cloister.offload._schemes import SCHEMES, Piece

INPUTS = torch.ones(3, 6)


def _prepared(stored: dict[str, bytes], passes: int = 2) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Linear(6, 4).requires_grad_(False)
    offload(model, mode="blind", workers="inline", stored=stored)
    with torch.no_grad():
        model(INPUTS)
    precompute(model, passes=passes)
    return model


def _swap(stored: dict[str, bytes]) -> None:
    first, second = stored
    stored[first], stored[second] = stored[second], stored[first]


def _rename(stored: dict[str, bytes]) -> None:
    """Each under the other's name, with the nonce that the name says."""
    first, second = stored
    stored[first], stored[second] = (
        bytes.fromhex(first) + stored[second][12:],
        bytes.fromhex(second) + stored[first][12:],
    )


def _flip(stored: dict[str, bytes]) -> None:
    for name, value in stored.items():
        stored[name] = value[:-1] + bytes([value[-1] ^ 1])


def _cut(stored: dict[str, bytes]) -> None:
    for name, value in stored.items():
        stored[name] = value[:-4]


def _lengthen(stored: dict[str, bytes]) -> None:
    for name, value in stored.items():
        stored[name] = value + bytes(4)


_GONE: tuple[Callable[[dict[str, bytes]], None], ...] = (
    dict.clear,
    lambda stored: stored.update(dict.fromkeys(stored, b"")),
)


@pytest.mark.parametrize("change", [_swap, _rename, _flip, _cut, _lengthen, *_GONE])
def test_other_bytes_than_were_put_there(change: Callable[[dict[str, bytes]], None]) -> None:
    stored: dict[str, bytes] = {}
    model = _prepared(stored)
    change(stored)
    with torch.no_grad(), pytest.raises(IntegrityError) as caught:
        model(INPUTS)
    assert caught.value.code == 5702


def test_a_product_of_another_start_does_not_open() -> None:
    before: dict[str, bytes] = {}
    _prepared(before)
    stored: dict[str, bytes] = {}
    model = _prepared(stored)
    stored.update(before)
    with torch.no_grad(), pytest.raises(IntegrityError) as caught:
        model(INPUTS)
    assert caught.value.code == 5702


def test_what_was_used_is_gone() -> None:
    stored: dict[str, bytes] = {}
    model = _prepared(stored, passes=1)
    kept = dict(stored)
    with torch.no_grad():
        model(INPUTS)
        assert not stored
        stored.update(kept)  # put back: nobody asks for it again
        model(INPUTS)
    assert stored == kept


def test_what_is_kept_outside_is_no_mask_and_no_product_in_clear() -> None:
    stored: dict[str, bytes] = {}
    model = _prepared(stored, passes=1)
    del model
    (value,) = stored.values()
    words = torch.frombuffer(bytearray(value[12:-16]), dtype=torch.int32)
    assert words.numel() == 12
    assert words.unique().numel() == 12


_FIRST, _MASK = Piece(0, "masked", 1, 1), Piece(1, "masked", 0, 1)


@pytest.mark.parametrize(
    "pieces",
    [
        {"secret": (_FIRST, Piece(0, "again", 1, -1), _MASK)},  # both points at one worker
        {"secret": (_FIRST, _MASK, Piece(1, "too", 1, 1))},  # the mask, and what it hides
        {"secret": (_FIRST, Piece(1, "masked", 1, -1)), "public": (Piece(0, "plain", 1, 0), Piece(1, "plain", 0, 1))},
    ],
    ids=["two points", "mask and masked", "a key of the same stream"],
)
def test_a_table_that_would_leak_is_refused(pieces: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.SCHEMES, "blind2", replace(SCHEMES["blind2"], **pieces))
    model = nn.Linear(6, 4).requires_grad_(False)
    workers = spies("blind2")
    offload(model, mode="blind2", workers=workers)
    with torch.no_grad(), pytest.raises(InternalError) as caught:
        model(INPUTS)
    assert caught.value.code == 9701
    assert not any(tensor.dtype == torch.int32 for worker in workers for _, tensor in worker.tensors)
