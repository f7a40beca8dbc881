"""Scales that follow the values or do not, rounding without bias, and hiding in the same pass."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError
from cloister.ring import (
    THE_MASK,
    MaskId,
    MaskLedger,
    MaskSource,
    Quantised,
    RoundingStream,
    exponent_for,
    hide,
    quantise,
    remask,
)

BITS = st.integers(2, 8)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def refused(act: Callable[[], object]) -> int:
    with pytest.raises(CloisterError) as caught:
        act()
    return caught.value.code


@given(FLOATS.map(abs), BITS)
def test_the_exponent_makes_the_greatest_magnitude_take_all_bits(most: float, bits: int) -> None:
    exponent = exponent_for(most, bits)
    if most == 0:
        assert exponent == 0
    elif exponent == -100:
        assert most < 2.0 ** (bits - 1 - 100)
    else:
        assert 2.0 ** (bits - 2) <= math.ldexp(most, -exponent) < 2.0 ** (bits - 1)
        assert exponent == math.floor(math.log2(most)) - (bits - 2) or math.log2(most) % 1 in (0, 1)


@pytest.mark.parametrize(
    ("most", "exponent"),
    [(1.0, -6), (math.nextafter(1, 0), -7), (127.0, 0), (128.0, 1), (3.4e38, 121), (1e-45, -100), (2.0**-94, -100)],
)
def test_exponents_of_8_bits(most: float, exponent: int) -> None:
    assert exponent_for(most, 8) == exponent


@pytest.mark.parametrize("most", [math.inf, math.nan, -math.inf, -1.0])
def test_what_is_no_magnitude_has_no_exponent(most: float) -> None:
    assert refused(lambda: exponent_for(most, 8)) == 2703


@pytest.mark.parametrize("bits", [1, 9, 0])
def test_integers_have_2_to_8_bits(bits: int) -> None:
    assert refused(lambda: exponent_for(1.0, bits)) == 2705
    assert refused(lambda: quantise(torch.ones(2), bits=bits)) == 2705


@given(st.lists(FLOATS.filter(lambda f: abs(f) > 2.0**-93), min_size=1, max_size=9), BITS)
def test_a_dynamic_scale_errs_by_half_a_step_and_clips_the_ends_only(values: list[float], bits: int) -> None:
    tensor = torch.tensor(values)
    made = quantise(tensor, bits=bits)
    assert isinstance(made.exponent, int)
    step = 2.0**made.exponent
    held = made.values.double() * step
    error = (held - tensor.double()).abs()
    top = (tensor.double() / step) >= 2 ** (bits - 1) - 0.5  # where the nearest integer is one too large
    assert made.clipped == int(top.sum())
    assert bool((error[~top] <= step / 2).all())
    assert bool((error[top] <= step).all())


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_an_exponent_a_place_is_that_of_the_place(axis: int) -> None:
    values = torch.randn(3, 4, 70) * torch.exp2(torch.arange(4.0).reshape(4, 1) * 3)
    made = quantise(values, axis=axis)
    assert made.axis == axis % 3 - 3
    assert isinstance(made.exponent, tuple)
    for place, exponent in enumerate(made.exponent):
        alone = quantise(values.select(axis, place))
        assert alone.exponent == exponent
        assert torch.equal(made.values.select(axis, place), alone.values)


def test_a_static_scale_is_taken_as_it_is_and_what_exceeds_it_is_counted() -> None:
    values = torch.tensor([[1.0, -300.0], [127.0, 0.25]])
    made = quantise(values, exponent=0)
    assert (made.exponent, made.values.tolist(), made.clipped) == (0, [[1, -128], [127, 0]], 1)
    made = quantise(values, exponent=[0, -2], axis=0, bits=4)
    assert (made.exponent, made.values.tolist(), made.clipped) == ((0, -2), [[1, -8], [7, 1]], 2)


def test_a_maximum_that_is_known_saves_the_read(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(5, 6)
    for axis in (None, 1):
        most = values.abs().amax() if axis is None else values.abs().amax(0)
        expected = quantise(values, axis=axis)
        with monkeypatch.context() as patch:
            patch.delattr("cloister.ring._quantise.maximum")
            found = [quantise(values, axis=axis, most=most), quantise(values, axis=axis, exponent=expected.exponent)]
        for made in found:
            assert (made.exponent, made.axis) == (expected.exponent, expected.axis)
            assert torch.equal(made.values, expected.values)
    assert quantise(values, most=64.0).exponent == 0
    assert quantise(values, most=0.01).clipped > 0


def test_zeros_and_empty_tensors() -> None:
    assert quantise(torch.zeros(3)).exponent == 0
    assert quantise(torch.tensor([[0.0, 1.0]]), axis=1).exponent == (0, -6)
    for shape, axis in (((0,), None), ((0, 3), 1), ((0, 3), 0), ((2, 0), 0), ((0, 0), 0)):
        made = quantise(torch.zeros(shape), axis=axis, rounding=RoundingStream())
        assert made.shape == shape
        assert made.exponent == (0 if axis is None else (0,) * shape[axis])


@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("options", [{}, {"axis": 1}, {"exponent": 0}, {"most": 1.0}], ids=str)
def test_what_has_no_integer_is_refused_whoever_chose_the_scale(odd: float, options: dict[str, Any]) -> None:
    values = torch.ones(2, 3)
    values[1, 2] = odd
    assert refused(lambda: quantise(values, **options)) == 2703
    ledger, mask = MaskLedger(), MaskSource("x").next((2, 3))
    assert refused(lambda: hide(values, ledger=ledger, masks=[(mask, {"left": 1})], **options)) == 2703


@pytest.mark.parametrize(
    ("code", "options"),
    [
        (2702, {"axis": 2}),
        (2702, {"axis": -3}),
        (2702, {"axis": 0, "most": 1.0}),
        (2702, {"axis": 0, "most": torch.ones(3)}),
        (2702, {"most": torch.ones(2)}),
        (2705, {"axis": 0, "exponent": 0}),
        (2705, {"axis": 0, "exponent": [0]}),
        (2705, {"exponent": -101}),
    ],
)
def test_scales_that_do_not_fit_are_refused(code: int, options: dict[str, Any]) -> None:
    assert refused(lambda: quantise(torch.ones(2, 3), **options)) == code


def test_float32_only() -> None:
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int32):
        assert refused(lambda dtype=dtype: quantise(torch.ones(2, dtype=dtype))) == 2702


def test_stochastic_rounding_is_unbiased() -> None:
    """The mean of 2^18 roundings lies within five standard deviations of the value, for each value."""
    stream = RoundingStream.seeded(torch.Generator().manual_seed(1))
    count = 1 << 18
    for value in (0.1, 0.5, 0.9, -0.1, -0.7, 5.3):
        made = quantise(torch.full((count,), value), exponent=0, rounding=stream)
        part = value - math.floor(value)
        mean = made.values.double().mean().item()
        assert abs(mean - value) < 5 * math.sqrt(part * (1 - part) / count) + 1 / 512
        assert set(made.values.unique().tolist()) == {math.floor(value), math.floor(value) + 1}
    nearest = quantise(torch.full((9,), 0.3), exponent=0)
    assert nearest.values.tolist() == [0] * 9


def test_a_seed_makes_the_same_integers_again() -> None:
    values = torch.randn(50, 7, generator=torch.Generator().manual_seed(3))
    drawn = []
    for _ in range(2):
        torch.manual_seed(11)
        stream = RoundingStream.seeded()
        drawn.append([quantise(values, bits=4, rounding=stream).values for _ in range(3)])
    assert all(torch.equal(*pair) for pair in zip(*drawn, strict=True))
    assert not torch.equal(drawn[0][0], drawn[0][1])


SHARED3 = {"left": 1, "right": -1, "dealer": THE_MASK}


def test_shared3_is_one_mask_at_two_points() -> None:
    values, ledger, mask = torch.randn(5, 70), MaskLedger(), MaskSource("x").next((5, 70))
    hidden = hide(values, ledger=ledger, masks=[(mask, SHARED3)])
    integers = quantise(values).values.to(torch.int32)
    assert torch.equal(hidden.quantised.values.to(torch.int32), integers)
    left, right = hidden.masked
    assert (left.worker, left.point, left.mask) == ("left", 1, MaskId("x", 0))
    assert (right.worker, right.point, right.mask) == ("right", -1, MaskId("x", 0))
    assert torch.equal(left.words_for("left"), integers + mask.words)
    assert torch.equal(right.words_for("right"), integers - mask.words)


def test_shared5_is_two_masks_and_a_message_for_two() -> None:
    values, ledger = torch.randn(4, 9), MaskLedger()
    share, mask = MaskSource("share").next((4, 9)), MaskSource("x").next((4, 9))
    points = [(share, {"left": THE_MASK, "right": -1}), (mask, {"left": -1, "right": -1, "third": THE_MASK})]
    hidden = hide(values, ledger=ledger, masks=points, exponent=-5, bits=6)
    integers = quantise(values, exponent=-5, bits=6).values.to(torch.int32)
    assert [(sent.worker, sent.mask.role) for sent in hidden.masked] == [
        ("right", "share"),
        ("left", "x"),
        ("right", "x"),
    ]
    first, second, third = hidden.masked
    assert torch.equal(first.words_for("right"), integers - share.words)
    assert torch.equal(second.words_for("left"), integers - mask.words)
    assert third.words_for("right") is second.words_for("left")


def test_options_are_those_of_quantise() -> None:
    values, ledger, source = torch.randn(6, 5), MaskLedger(), MaskSource("x")
    for options in ({"axis": 0}, {"axis": -1, "bits": 5}, {"most": 9.0}, {"axis": 1, "exponent": [-3] * 5}):
        streams = [RoundingStream.seeded(torch.Generator().manual_seed(4)) for _ in range(2)]
        mask = source.next((6, 5))
        hidden = hide(values, ledger=ledger, masks=[(mask, {"left": 1})], rounding=streams[0], **options).quantised
        plain = quantise(values, rounding=streams[1], **options)
        assert torch.equal(hidden.values, plain.values)
        assert (hidden.exponent, hidden.axis, hidden.bits) == (plain.exponent, plain.axis, plain.bits)


def fair(words: torch.Tensor) -> bool:
    """Whether each bit is one in half of the words, within eight standard deviations."""
    bits = (words.numpy().view(np.uint32)[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    ones = bits.sum(axis=0).astype(np.int64)
    return bool((abs(ones - len(words) // 2) < 8 * len(words) ** 0.5 / 2).all())


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_what_is_sent_is_uniform_whatever_the_values_are(value: float) -> None:
    """Every bit of every message is fair, and of the difference and the sum of any two that one worker is sent."""
    count = 1 << 14
    ledger, source = MaskLedger(), MaskSource("x")
    values = torch.full((count,), value)
    kept = [hide(values, ledger=ledger, masks=[(source.next((count,)), SHARED3)]) for _ in range(4)]
    kept.append(remask(kept[0].quantised, ledger=ledger, masks=[(source.next((count,)), SHARED3)]))
    for worker in ("left", "right"):
        seen = [masked.words_for(worker) for hidden in kept for masked in hidden.masked if masked.worker == worker]
        assert len(seen) == len(kept)
        assert all(fair(words) for words in seen)
        assert all(fair(one - other) and fair(one + other) for one, other in itertools.combinations(seen, 2))


def test_integers_are_hidden_anew_under_another_mask() -> None:
    ledger, source = MaskLedger(), MaskSource("w")
    hidden = hide(torch.randn(3, 4), ledger=ledger, masks=[(source.next((3, 4)), SHARED3)])
    mask = source.next((3, 4))
    again = remask(hidden.quantised, ledger=ledger, masks=[(mask, SHARED3)])
    assert again.quantised is hidden.quantised
    integers = hidden.quantised.values.to(torch.int32)
    assert torch.equal(again.masked[0].words_for("left"), integers + mask.words)
    assert torch.equal(again.masked[1].words_for("right"), integers - mask.words)


def test_the_same_message_is_made_again_and_for_a_worker_that_joins() -> None:
    ledger, mask = MaskLedger(), MaskSource("w").next((3, 4))
    hidden = hide(torch.randn(3, 4), ledger=ledger, masks=[(mask, {"left": 1})])
    again = remask(hidden.quantised, ledger=ledger, masks=[(mask, {"left": 1, "right": -1})])
    assert torch.equal(again.masked[0].words_for("left"), hidden.masked[0].words_for("left"))


def test_a_tensor_that_is_quantised_first_may_be_hidden_later() -> None:
    ledger, mask = MaskLedger(), MaskSource("w").next((3,))
    plain = quantise(torch.tensor([1.0, 2.0, -3.0]))
    hidden = remask(plain, ledger=ledger, masks=[(mask, {"left": 3})])
    assert torch.equal(hidden.masked[0].words_for("left"), plain.values.to(torch.int32) + 3 * mask.words)


def test_no_more_than_two_masked_tensors() -> None:
    ledger, source, values = MaskLedger(), MaskSource("x"), torch.ones(3)
    one, two, three = (source.next((3,)) for _ in range(3))
    for masks in ([(one, {"a": 1}), (two, {"a": 1}), (three, {"a": 1})], [(one, {"a": 1, "b": -1, "c": 3})]):
        assert refused(lambda masks=masks: hide(values, ledger=ledger, masks=masks)) == 2705
        assert refused(lambda masks=masks: remask(quantise(values), ledger=MaskLedger(), masks=masks)) == 2705


def test_a_mask_has_the_shape_of_its_tensor() -> None:
    values, source, ledger = torch.ones(2, 3), MaskSource("x"), MaskLedger()
    for shape in ((3, 2), (6,), (2, 3, 1), (1, 3)):
        masks = [(source.next(shape), {"left": 1})]
        assert refused(lambda masks=masks: hide(values, ledger=ledger, masks=masks)) == 2702
        assert refused(lambda masks=masks: remask(quantise(values), ledger=ledger, masks=masks)) == 2702


def test_a_mask_that_nobody_is_sent_is_bound_all_the_same() -> None:
    ledger, mask = MaskLedger(), MaskSource("x").next((3,))
    hidden = hide(torch.ones(3), ledger=ledger, masks=[(mask, {"dealer": THE_MASK})])
    assert hidden.masked == ()
    assert refused(lambda: hide(torch.ones(3), ledger=ledger, masks=[(mask, {"left": 1})])) == 9701


def test_hiding_in_inference_mode() -> None:
    ledger, mask = MaskLedger(), MaskSource("x").next((3,))
    with torch.inference_mode():
        hidden = hide(torch.ones(3), ledger=ledger, masks=[(mask, SHARED3)])
        remask(hidden.quantised, ledger=ledger, masks=[(mask, SHARED3)])
    assert isinstance(hidden.quantised, Quantised)
