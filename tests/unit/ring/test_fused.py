"""One pass that quantises and masks: the rounding rule by fractions, and the same bits as torch's many passes."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cloister.errors import InputError
from cloister.ring import _multipass
from cloister.ring._fused import EXPONENTS, mask_words, maximum, quantise_words
from cloister.ring._operators import Shape

SIZES = st.sampled_from((0, 1, 2, 3, 5, 63, 64, 65))
SHAPES = st.lists(SIZES, max_size=3).map(tuple) | st.sampled_from(
    ((2047,), (2048,), (2049,), (3, 4100), (4100, 3), (2, 3, 700), (70, 65), (3, 5, 2, 7))
)
ODDITIES = (0.0, -0.0, 1.0, -1.0, 127.5, -128.5, 0.5, 1e-45, -1e-45, 3.4e38, -3.4e38, math.inf, -math.inf, math.nan)
slowly_drawn = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])  # each draws whole tensors


def floats(shape: Shape, seed: int, *, layout: str = "contiguous") -> Tensor:
    """Values of every magnitude, ties, and what has no integer; laid out as asked."""
    generator = torch.Generator().manual_seed(seed)
    if layout == "reversed":
        return floats(tuple(reversed(shape)), seed).permute(tuple(reversed(range(len(shape)))))
    if layout == "sliced":
        return floats(tuple(2 * size + 1 for size in shape), seed)[tuple(slice(1, None, 2) for _ in shape)]
    values = torch.randn(shape, generator=generator) * torch.exp2(torch.randint(-3, 8, shape, generator=generator))
    ties = torch.randint(-70000, 70000, shape, generator=generator) / 512
    odd = torch.tensor(ODDITIES)[torch.randint(0, len(ODDITIES), shape, generator=generator)]
    which = torch.rand(shape, generator=generator)
    return torch.where(which < 0.1, odd, torch.where(which < 0.4, ties, values))


def words(shape: Shape, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31, shape, generator=generator, dtype=torch.int32)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[Tensor, int | None]:
    """Values and an axis of theirs, or none."""
    shape = draw(SHAPES)
    layout = draw(st.sampled_from(("contiguous", "reversed", "sliced")))
    axis = draw(st.none() | st.integers(-len(shape), len(shape) - 1)) if shape else None
    return floats(shape, draw(st.integers(0, 99)), layout=layout), axis


def same(found: Tensor, expected: Tensor) -> bool:
    return found.dtype == expected.dtype and found.shape == expected.shape and bool((found == expected).all())


@slowly_drawn
@given(tensors(), st.integers(2, 8), st.lists(st.sampled_from((1, -1, 3)), max_size=2), st.booleans(), st.data())
def test_one_pass_gives_the_bits_of_many(
    given_: tuple[Tensor, int | None], bits: int, points: list[int], stochastic: bool, data: Any
) -> None:
    values, axis = given_
    places = 1 if axis is None else values.shape[axis]
    exponents = data.draw(st.lists(st.integers(-9, 3), min_size=places, max_size=places))
    exponent = exponents[0] if axis is None else exponents
    noise = (words((values.numel(),), 7) & 255).to(torch.uint8) if stochastic else None
    masks = [(words(tuple(values.shape), i), point) for i, point in enumerate(points)]
    before = values.clone(memory_format=torch.preserve_format)
    options = {"bits": bits, "axis": axis, "noise": noise, "masks": masks}
    found, expected = (module(values, exponent, **options) for module in (quantise_words, _multipass.quantise_words))
    assert same(found.values, expected.values)
    assert len(found.masked) == len(points)
    assert all(same(one, other) for one, other in zip(found.masked, expected.masked, strict=True))
    assert (found.unbounded, found.clipped) == (expected.unbounded, expected.clipped)
    assert torch.equal(before.nan_to_num(), values.nan_to_num())


@slowly_drawn
@given(tensors())
def test_the_maximum_is_that_of_many_passes(given_: tuple[Tensor, int | None]) -> None:
    values, axis = given_
    assert same(maximum(values, axis).view(torch.int32), _multipass.maximum(values, axis).view(torch.int32))


def test_the_maximum_is_the_greatest_magnitude_and_tells_of_what_is_no_number() -> None:
    values = torch.tensor([[1.0, -3.0, 0.0], [-1e-45, 2.0, 0.0]])
    assert maximum(values).item() == 3
    assert maximum(values, 0).tolist() == [3, 2]
    assert maximum(values, 1).tolist() == [1, 3, 0]
    assert maximum(torch.tensor([1e-45])).item() > 0
    assert maximum(torch.tensor([1.0, -math.inf])).item() == math.inf
    for nan in (math.nan, -math.nan):
        assert maximum(torch.tensor([math.inf, nan, 1.0])).isnan()
    assert maximum(torch.zeros(0, 4)).item() == 0
    assert maximum(torch.zeros(0, 4), 1).tolist() == [0] * 4


def rule(value: float, exponent: int, bits: int, byte: int | None) -> int:
    """The rounding rule in fractions."""
    up = Fraction(1, 2) if byte is None else Fraction(2 * byte + 1, 512)
    rounded = math.floor(Fraction(value) / Fraction(2) ** exponent + up)
    return min(max(rounded, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)


@given(
    st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(-(2**17), 2**17).map(lambda n: n / 512),
    st.integers(*EXPONENTS) | st.integers(-7, 2),
    st.integers(2, 8),
    st.none() | st.integers(0, 255),
)
def test_rounding_is_exact(value: float, exponent: int, bits: int, byte: int | None) -> None:
    noise = None if byte is None else torch.tensor([byte], dtype=torch.uint8)
    made = quantise_words(torch.tensor([value]), exponent, bits=bits, noise=noise)
    expected = rule(value, exponent, bits, byte)
    assert made.values.item() == expected
    unclipped = rule(value, exponent, 2000, byte)
    assert made.clipped == (unclipped != expected)


def test_every_byte_moves_every_fraction_by_its_own_step() -> None:
    fractions = torch.arange(-1024, 1024) / 512
    for byte in range(256):
        made = quantise_words(fractions, 0, noise=torch.full((2048,), byte, dtype=torch.uint8))
        assert made.values.tolist() == [(n + 2 * byte + 1) // 512 for n in range(-1024, 1024)]


@pytest.mark.parametrize("fraction", [0.0, 1 / 512, 0.25, 0.5, 0.998046875])
def test_stochastic_rounding_has_no_bias(fraction: float) -> None:
    """Over all bytes the mean is the value itself, to within half a step of 1/512."""
    noise = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    for whole in (-3, 0, 5):
        made = quantise_words(torch.full((256,), whole + fraction), 0, noise=noise)
        assert abs(made.values.double().mean().item() - (whole + fraction)) <= 1 / 512


def test_what_does_not_fit_is_clipped_and_counted() -> None:
    values = torch.tensor([127.4, 127.5, -128.5, -128.6, 1e30, -1e30, 0.0])
    made = quantise_words(values, 0)
    assert made.values.tolist() == [127, 127, -128, -128, 127, -128, 0]
    assert (made.clipped, made.unbounded) == (4, 0)
    made = quantise_words(values, 0, bits=2)
    assert made.values.tolist() == [1, 1, -2, -2, 1, -2, 0]
    assert made.clipped == 6


def test_what_has_no_integer_is_counted() -> None:
    made = quantise_words(torch.tensor([math.nan, math.inf, -math.inf, 1.0]), 0, masks=[(words((4,), 1), 1)])
    assert made.values.tolist() == [0, 0, 0, 1]
    assert made.unbounded == 3


def test_outputs_may_be_given_and_torch_counts_the_write() -> None:
    values, mask = floats((3, 70), 1).nan_to_num(), words((3, 70), 2)
    out, masked = torch.empty(3, 70, dtype=torch.int8), [torch.empty(3, 70, dtype=torch.int32)]
    versions = out._version, masked[0]._version
    made = quantise_words(values, 0, masks=[(mask, -1)], out=out, masked_out=masked)
    assert made.values is out
    assert made.masked[0] is masked[0]
    assert (out._version, masked[0]._version) == (versions[0] + 1, versions[1] + 1)
    assert same(out.to(torch.int32) - mask, masked[0])


def test_written_tensors_have_versions_in_inference_mode_too() -> None:
    with torch.inference_mode():
        made = quantise_words(torch.ones(3), 0, masks=[(words((3,), 1), 1)])
        again = mask_words(made.values, [(words((3,), 1), 1)])
    assert not any(tensor.is_inference() for tensor in (made.values, *made.masked, *again))


def test_a_parameter_is_read_and_stays_out_of_the_graph() -> None:
    made = quantise_words(torch.nn.Parameter(torch.ones(3)), -6, masks=[(words((3,), 1), 1)])
    assert made.values.tolist() == [64] * 3
    assert not made.masked[0].requires_grad


@given(SHAPES, st.lists(st.sampled_from((1, -1, 5)), max_size=2))
def test_integers_are_masked_as_they_would_have_been(shape: Shape, points: list[int]) -> None:
    masks = [(words(shape, i), point) for i, point in enumerate(points)]
    made = quantise_words(floats(shape, 1), -3, masks=masks)
    again = mask_words(made.values, masks)
    assert len(again) == len(points)
    assert all(same(one, other) for one, other in zip(again, made.masked, strict=True))


ONES, BYTES = torch.ones(2, 3), torch.zeros(6, dtype=torch.uint8)
WRONG: list[tuple[int, Tensor, dict[str, Any]]] = [
    (2702, ONES.double(), {}),
    (2702, ONES.to("meta"), {}),
    (2702, ONES, {"noise": BYTES[:5]}),
    (2702, ONES, {"noise": BYTES.to(torch.int8)}),
    (2702, ONES, {"masks": [(words((3, 2), 1), 1)]}),
    (2702, ONES, {"masks": [(words((2, 3), 1).to(torch.int64), 1)]}),
    (2702, ONES, {"out": torch.empty(2, 3)}),
    (2702, ONES, {"out": torch.empty(3, 2, dtype=torch.int8).T}),
    (2702, ONES, {"masks": [(words((2, 3), 1), 1)], "masked_out": []}),
    (2705, ONES, {"bits": 1}),
    (2705, ONES, {"bits": 9}),
    (2705, ONES, {"exponent": -101}),
    (2705, ONES, {"exponent": 128}),
    (2705, ONES, {"exponent": [0, 0, 0], "axis": 0}),
    (2705, ONES, {"exponent": 0, "axis": 0}),
    (2705, ONES, {"masks": [(words((2, 3), 1), 1)] * 3}),
]


@pytest.mark.parametrize(("code", "values", "options"), WRONG)
def test_what_does_not_fit_is_refused(code: int, values: Tensor, options: dict[str, Any]) -> None:
    exponent = options.get("exponent", 0)
    with pytest.raises(InputError) as caught:
        quantise_words(values, exponent, **{name: value for name, value in options.items() if name != "exponent"})
    assert caught.value.code == code


def test_integers_and_masks_must_fit_each_other() -> None:
    integers, mask = torch.zeros(3, dtype=torch.int8), words((3,), 1)
    for code, values, masks in ((2705, integers, [(mask, 1)] * 3), (2702, integers, [(mask[:2], 1)]), (2702, mask, [])):
        with pytest.raises(InputError) as caught:
            mask_words(values, masks)
        assert caught.value.code == code


def test_a_pass_reads_no_further_than_its_tensor() -> None:
    """Inputs and outputs lie in the middle of larger memory, which stays as it was."""
    size = 2500
    around = torch.full((3 * size,), 77, dtype=torch.int32)
    before = around.clone()
    quantise_words(
        floats((size,), 1),
        -3,
        masks=[(words((size,), 1), 1)],
        masked_out=[around[size : 2 * size]],
    )
    assert torch.equal(around[:size], before[:size])
    assert torch.equal(around[2 * size :], before[2 * size :])
    assert np.count_nonzero(around[size : 2 * size].numpy() == 77) < 10
