"""Kernels of a GPU through torch alone: int8 tensor cores by cuBLAS, or fp64.

cuBLAS takes its int8 units for matrices whose terms are neighbours in memory, whose sizes are multiples of 16 and that
have more than 16 rows: others are copied into such ones, with zeros. Nothing here can reach an inexact algorithm: int8
products are integers throughout, and fp64 has no Winograd, FFT or TF32 variant: no convolution is ever asked for.
A library that emulates fp64 is caught by the trial that both kernels make of the device when they are made.

Both run on a CPU's tensors too, which is how their arithmetic is tested where there is no GPU.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch

from cloister.errors import InputError
from cloister.ring._limbs import Arithmetic, Fp64Arithmetic, Int8Arithmetic, is_exact
from cloister.ring._matrices import MatrixKernels

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CudaKernels", "Fp64Kernels", "require_exact", "scratch_bytes"]

_MULTIPLE = 16
_LEAST_ROWS = 17


class CudaKernels(MatrixKernels):
    """Exact products by ``torch._int_mm`` in the shapes that a GPU wants.

    Args:
        device: Where the operands will lie.

    Raises:
        InputError: 2792 when the device does not multiply exactly.
    """

    name = "cuda"

    def __init__(self, device: torch.device) -> None:
        arithmetic = CudaArithmetic()
        require_exact(arithmetic, device)
        super().__init__(arithmetic, scratch_bytes=scratch_bytes(device))


class Fp64Kernels(MatrixKernels):
    """Exact products in fp64: three products where the int8 units make ten, each of which costs far more there.

    Args:
        device: Where the operands will lie.

    Raises:
        InputError: 2792 when the device does not multiply exactly.
    """

    name = "fp64"

    def __init__(self, device: torch.device) -> None:
        arithmetic = Fp64Arithmetic()
        require_exact(arithmetic, device)
        super().__init__(arithmetic, scratch_bytes=scratch_bytes(device))


class CudaArithmetic(Int8Arithmetic):
    """The int8 arithmetic in shapes and alignments that cuBLAS has int8 kernels for."""

    contraction_last = True

    def gemm(self, a: Tensor, b: Tensor) -> Tensor:
        """As :meth:`cloister.ring._limbs.Arithmetic.gemm`; each group is padded with zeros where it has to be."""
        rows, columns = a.shape[1], b.shape[1]
        out = torch.empty(a.shape[0], max(rows, _LEAST_ROWS), _rounded(columns), dtype=torch.int32, device=a.device)
        for group in range(a.shape[0]):
            one, other = _aligned(a[group], out.shape[1]), _aligned(b[group], out.shape[2])
            torch._int_mm(one, other.t(), out=out[group])  # pyright: ignore[reportPrivateImportUsage]
        return out[:, :rows, :columns]


def require_exact(arithmetic: Arithmetic, device: torch.device) -> None:
    """Raises :class:`InputError` 2792 unless the device multiplies the worst operands right. Tried once a process."""
    if not _tried(type(arithmetic), str(device)):
        raise InputError(2792, got=f"{arithmetic.name} on {device}")


def scratch_bytes(device: torch.device) -> int:
    """How much of a device's memory a copy of windows may take."""
    return 1 << 28 if device.type == "cuda" else 1 << 22


@cache
def _tried(kind: type[Arithmetic], device: str) -> bool:
    return is_exact(kind(), torch.device(device))


def _rounded(size: int) -> int:
    return -(-size // _MULTIPLE) * _MULTIPLE


def _aligned(matrix: Tensor, rows: int) -> Tensor:
    """The matrix, or a copy of it with zeros around, whose rows are aligned, of ``rows`` rows and rounded columns."""
    terms = _rounded(matrix.shape[1])
    fits = matrix.shape == (rows, terms) and matrix.stride(1) == 1
    if fits and matrix.stride(0) % _MULTIPLE == 0 and matrix.data_ptr() % _MULTIPLE == 0:
        return matrix
    padded = matrix.new_zeros(rows, terms)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded
