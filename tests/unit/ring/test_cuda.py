"""The matrices that cuBLAS is handed: of shapes and alignments that it has int8 kernels for, whatever the product."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.ringworld import convolutions, matmuls, oracle, tensor

from cloister.ring import MatMul, Product, kernels_for

INT_MM = torch._int_mm


def strict(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
    """``torch._int_mm`` with the conditions of its CUDA version: more than 16 rows, terms side by side, alignment."""
    for side in (a, b.t(), out):
        assert side.stride(1) == 1
        assert side.stride(0) >= side.shape[1]
        assert side.stride(0) * side.element_size() % 16 == 0
        assert side.data_ptr() % 16 == 0
    assert a.shape[0] > 16
    assert a.shape[1] > 0
    assert a.shape[1] % 16 == 0 == b.shape[1] % 16
    assert out.is_contiguous()
    assert out.shape == (a.shape[0], b.shape[1])
    return INT_MM(a, b, out=out)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made = [0]

    def counted(*operands: Any, **given: Any) -> torch.Tensor:
        made[0] += 1
        return strict(*operands, **given)

    kernels_for(torch.device("cpu"), prefer="cuda")  # the trial is made once, before
    monkeypatch.setattr(torch, "_int_mm", counted)
    return made


def test_matrices_are_those_that_cublas_takes(calls: list[int]) -> None:
    kernels = kernels_for(torch.device("cpu"), prefer="cuda")
    kinds = st.sampled_from((torch.int32, torch.int8))

    @given(matmuls() | convolutions(), kinds, kinds)
    def holds(product: Product, left: torch.dtype, right: torch.dtype) -> None:
        a, b = tensor(product.left, left, 1), tensor(product.right, right, 2)
        assert torch.equal(kernels.product(product, a, b), oracle(product, a, b))

    holds()
    assert calls[0] > 100


@pytest.mark.parametrize("offset", [0, 1, 15, 16])
def test_matrices_that_fit_are_taken_as_they_lie_unless_they_lie_askew(offset: int, calls: list[int]) -> None:
    product = Product(MatMul(), "forward", x=(32, 48), w=(64, 48))
    kept = tensor((offset + 32 * 48 + 64 * 48,), torch.int8, offset)
    a, b = kept[offset : offset + 32 * 48].view(32, 48), kept[offset + 32 * 48 :].view(64, 48)
    kernels = kernels_for(torch.device("cpu"), prefer="cuda")
    assert torch.equal(kernels.product(product, a, b), oracle(product, a, b))
    assert calls == [1]
