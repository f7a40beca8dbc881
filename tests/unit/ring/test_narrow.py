"""Narrow convolutions: compiled loops and torch's passes are the same bits, whatever the threads and pieces."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.ringworld import LIMITS, oracle, tensor

from cloister.ring import Conv2d, Product, _narrow
from cloister.ring._narrow import is_narrow, narrow_correlation, narrow_weights
from cloister.ring._windows import forward_axes

PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def grouped(draw: st.DrawFn) -> Product:
    groups, each, outputs = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel, stride, dilation, padding = (draw(PAIRS) for _ in range(4))
    size = [dilation[axis] * (kernel[axis] - 1) + 1 + draw(st.integers(0, 5)) for axis in (0, 1)]
    return Product(
        Conv2d(stride, padding, dilation, groups),
        draw(st.sampled_from(("forward", "weight_gradient"))),
        x=(draw(st.integers(1, 3)), groups * each, *size),
        w=(groups * outputs, each, *kernel),
    )


def found(product: Product, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    out = torch.full(product.result, 77, dtype=torch.int32)  # to be overwritten
    assert isinstance(product.operator, Conv2d)
    compute = narrow_correlation if product.role == "forward" else narrow_weights
    compute(left, right, *forward_axes(product.operator, product.x, product.w), out)
    return out


@pytest.mark.parametrize("ways", ["compiled", "by tap"])
@pytest.mark.parametrize("piece_bytes", [1, 1 << 22])
@pytest.mark.parametrize("threads", [1, 3])
def test_both_ways_are_the_product(ways: str, piece_bytes: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_narrow, "_PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    if ways == "by tap":
        monkeypatch.setattr(_narrow, "_correlate_compiled", _narrow._correlate_by_tap)
        monkeypatch.setattr(_narrow, "_gather_compiled", _narrow._gather_by_tap)

    @given(grouped(), st.sampled_from((torch.int32, torch.int8)), st.integers(0, 99))
    def holds(product: Product, dtype: torch.dtype, seed: int) -> None:
        left, right = tensor(product.left, torch.int32, seed), tensor(product.right, dtype, seed + 1)
        assert torch.equal(found(product, left, right), oracle(product, left, right))

    holds()


@pytest.mark.parametrize("role", ["forward", "weight_gradient"])
@pytest.mark.parametrize("left", LIMITS[torch.int32])
@pytest.mark.parametrize("right", LIMITS[torch.int32])
def test_the_largest_operands_wrap(role: str, left: int, right: int) -> None:
    product = Product(Conv2d(padding=(1, 1), groups=2), role, x=(2, 4, 6, 5), w=(4, 2, 3, 3))
    sides = (torch.full(shape, end, dtype=torch.int32) for shape, end in ((product.left, left), (product.right, right)))
    a, b = sides
    assert torch.equal(found(product, a, b), oracle(product, a, b))


@pytest.mark.parametrize(
    ("w", "groups", "narrow"),
    [
        ((64, 1, 3, 3), 64, True),
        ((64, 8, 3, 3), 4, True),
        ((64, 16, 3, 3), 16, True),  # four outputs a group
        ((64, 16, 3, 3), 4, False),
        ((64, 1, 3, 3), 1, False),  # one group is one matrix
    ],
)
def test_few_channels_a_group_are_narrow(w: tuple[int, ...], groups: int, narrow: bool) -> None:
    assert is_narrow(w, groups) is narrow
