"""The fused kernel where the contract cannot look: its flushes, what it reads in place, and grids that are too long."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ringworld import DTYPES, GPU, LIMITS, oracle, tensor

from cloister.ring import Conv2d, MatMul, Product, _triton, kernels_for

DEVICE = torch.device("cuda" if GPU else "cpu")


def multiply(product: Product, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return kernels_for(DEVICE, prefer="triton").product(product, left.to(DEVICE), right.to(DEVICE)).cpu()


def test_an_accumulator_is_flushed_before_it_is_full() -> None:
    """Four pairs of limbs of magnitude 2^7 share one; tiles end on a flush."""
    assert 4 * _triton._RUN * 2**14 < 2**31
    assert all(_triton._RUN // tile[2] > 0 for tile in _triton._TILES)


@pytest.mark.parametrize("left", DTYPES)
@pytest.mark.parametrize("right", DTYPES)
@pytest.mark.parametrize("terms", [257, 1000])
def test_flushes_lose_nothing(
    left: torch.dtype, right: torch.dtype, terms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_triton, "_RUN", 256)
    product = Product(MatMul(), "forward", x=(3, terms), w=(4, terms))
    a, b = tensor(product.left, left, 1), tensor(product.right, right, 2)
    a[0], b[0] = LIMITS[left][0], LIMITS[right][0]
    assert torch.equal(multiply(product, a, b), oracle(product, a, b))


@pytest.mark.parametrize(("channels", "in_place"), [(16, True), (48, True), (24, False), (3, False)])
@pytest.mark.parametrize("role", ["forward", "input_gradient"])
def test_windows_of_many_channels_are_read_where_they_lie(
    channels: int, in_place: bool, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    launch = _triton._launch

    def watched(read: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        seen.append(read.shape[5] * read.shape[6] > 1)
        return launch(read, matrix)

    monkeypatch.setattr(_triton, "_launch", watched)
    x, w = ((1, channels, 3, 4), (2, channels, 3, 3)) if role == "forward" else ((1, 2, 3, 4), (channels, 2, 3, 3))
    product = Product(Conv2d(padding=(1, 1)), role, x=x, w=w)
    a, b = tensor(product.left, torch.int32, 1), tensor(product.right, torch.int8, 2)
    assert torch.equal(multiply(product, a, b), oracle(product, a, b))
    assert seen == [in_place]


def test_more_groups_than_a_grid_has_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "_GRID", 2)
    product = Product(MatMul(), "forward", x=(5, 2, 3), w=(5, 4, 3))
    a, b = tensor(product.left, torch.int32, 1), tensor(product.right, torch.int32, 2)
    assert torch.equal(multiply(product, a, b), oracle(product, a, b))


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 1500), st.integers(0, 99))
def test_words_are_cut_as_elsewhere(rows: int, columns: int, seed: int) -> None:
    values = tensor((rows, columns), torch.int32, seed)
    fused = _triton._Fused()
    found = fused.split(values.to(DEVICE), 4, axis=1).cpu()
    assert torch.equal(found, super(_triton._Fused, fused).split(values, 4, axis=1))
