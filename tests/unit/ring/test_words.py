"""Plain, masked and shared tensors: none is taken for another, none is shown, none is saved."""

import copy
import json
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cloister.errors import InputError, InternalError
from cloister.ring import Hidden, Mask, Masked, MaskId, MaskKey, MaskSource, Quantised, Recovered, RoundingStream, Share

SECRET = 77777
WORDS = torch.full((2, 3), SECRET, dtype=torch.int32)
INTEGERS = torch.full((2, 3), 77, dtype=torch.int8)


def everything() -> dict[str, Any]:
    quantised, mask = Quantised(INTEGERS, -3, 8), MaskId("x", 5)
    masked = Masked(WORDS, "left", mask, 1)
    return {
        "quantised": quantised,
        "mask": Mask(mask, WORDS),
        "masked": masked,
        "share": Share(WORDS, "left", mask, 1),
        "hidden": Hidden(quantised, (masked,)),
        "key": MaskKey("x"),
        "recovered": Recovered(WORDS, 0, 77, SECRET),
        "source": MaskSource("x"),
        "rounding": RoundingStream(),
    }


NAMES = list(everything())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("save", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps], ids=lambda f: f.__qualname__)
def test_nothing_is_pickled_copied_or_written_as_json(name: str, save: Callable[[Any], Any]) -> None:
    for protocol_or_none in (None, *range(pickle.HIGHEST_PROTOCOL + 1)):
        held = everything()[name]
        with pytest.raises(TypeError):
            pickle.dumps(held, protocol_or_none) if save is pickle.dumps else save(held)


@pytest.mark.parametrize("name", NAMES[:7])
def test_nothing_is_compared_or_hashed(name: str) -> None:
    held = everything()[name]
    for compare in (operator.eq, operator.ne):
        with pytest.raises(TypeError):
            compare(held, held)
        with pytest.raises(TypeError):
            compare(held, 1)
    with pytest.raises(TypeError):
        hash(held)
    with pytest.raises(TypeError):
        held in [object()]  # noqa: B015


@pytest.mark.parametrize("name", NAMES[:7])
def test_there_is_no_arithmetic_between_them(name: str) -> None:
    held = everything()[name]
    for act in (operator.add, operator.sub, operator.mul, operator.matmul):
        for other in (held, 1, WORDS):
            with pytest.raises(TypeError):
                act(held, other)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_shows_a_value(name: str) -> None:
    held = everything()[name]
    for text in (repr(held), str(held), f"{held}", repr([held])):
        assert "77" not in text
        assert "tensor" not in text


def test_what_is_shown_is_public() -> None:
    held = everything()
    assert repr(held["quantised"]) == "<Quantised (2, 3) of 8 bits>"
    assert repr(held["mask"]) == "<Mask x:5 (2, 3)>"
    assert repr(held["masked"]) == "<Masked (2, 3) by x:5 for left>"
    assert repr(held["share"]) == "<Share 1 (2, 3) of x:5 for left>"
    assert repr(held["hidden"]) == "<Hidden (2, 3) for left>"
    assert repr(held["key"]) == "<MaskKey x>"
    assert held["mask"].shape == held["quantised"].shape == (2, 3)


@pytest.mark.parametrize("name", NAMES[:5])
def test_what_they_hold_is_not_exchanged(name: str) -> None:
    held = everything()[name]
    for field in ("words", "values", "worker", "point", "anything"):
        with pytest.raises((AttributeError, TypeError)):  # TypeError: how a frozen class with slots refuses a new name
            setattr(held, field, WORDS)


@pytest.mark.parametrize("name", ["masked", "share"])
def test_words_go_to_their_worker_only(name: str) -> None:
    held = everything()[name]
    assert held.words_for("left") is WORDS
    with pytest.raises(InternalError) as caught:
        held.words_for("right")
    assert caught.value.code == 9701


@pytest.mark.parametrize(
    ("values", "exponent", "bits", "axis"),
    [
        (WORDS, 0, 8, None),
        (INTEGERS.float(), 0, 8, None),
        (INTEGERS, 0, 1, None),
        (INTEGERS, 0, 9, None),
        (INTEGERS, (0,), 8, None),
        (INTEGERS, 0, 8, -1),
        (INTEGERS, (0, 0), 8, -1),
        (INTEGERS, (0, 0), 8, 0),
        (INTEGERS, (0, 0), 8, -3),
    ],
)
def test_a_scale_that_does_not_fit_is_refused(values: torch.Tensor, exponent: Any, bits: int, axis: int | None) -> None:
    with pytest.raises(InputError) as caught:
        Quantised(values, exponent, bits, axis)
    assert caught.value.code == 2702


def test_a_scale_along_an_axis() -> None:
    assert Quantised(INTEGERS, (1, 2), 4, -2).exponent == (1, 2)
    assert Quantised(INTEGERS, (1, 2, 3), 4, -1).bits == 4
