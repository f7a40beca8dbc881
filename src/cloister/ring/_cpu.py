"""Kernels of a CPU: oneDNN's int8 dot products where the CPU has them, fp64 elsewhere.

Measured on one core with AVX512-VNNI (benchmarks/ring_kernels.py): the ten int8 products of two word matrices are about
twice as fast as the three of fp64, and one int8 product four times as fast as one of fp32, which would need chunks of
1,024 terms and would be wrong without a word under torch's settings that replace fp32 by bf16.

CPUs without such dot products multiply pairs of bytes with an instruction that saturates at 16 bits, which oneDNN uses
too. So the int8 arithmetic is only taken where the CPU says that it has VNNI *and* the worst operands come out right.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from cloister._compiled import compiled
from cloister.errors import InputError
from cloister.ring._limbs import Arithmetic, Fp64Arithmetic, Int8Arithmetic, is_exact
from cloister.ring._matrices import MatrixKernels

if TYPE_CHECKING:
    from typing import Any

    from torch import Tensor

__all__ = ["CpuArithmetic", "CpuKernels"]

_CPU = torch.device("cpu")
_SCRATCH_BYTES = 4 << 20  # fits into two cores' second-level caches; larger copies of windows are slower


class CpuKernels(MatrixKernels):
    """Exact products on a CPU, on torch's threads.

    Raises:
        InputError: 2792 when neither arithmetic is exact here.
    """

    name = "cpu"

    def __init__(self) -> None:
        super().__init__(_arithmetic(), scratch_bytes=_SCRATCH_BYTES)


class CpuArithmetic(Int8Arithmetic):
    """The int8 arithmetic with words cut in one pass."""

    def split(self, values: Tensor, count: int, *, axis: int, descending: bool = False) -> Tensor:
        """As :meth:`cloister.ring._limbs.Arithmetic.split`."""
        if count == 1:
            return values.unsqueeze(axis)
        shape = (*values.shape[:axis], count, *values.shape[axis:])
        limbs = torch.empty(shape, dtype=torch.int8)
        inner = limbs.stride(axis)
        _cut(values.view(-1, inner).numpy(), limbs.view(-1, count, inner).numpy(), descending)
        return limbs


@cache
def _arithmetic() -> Arithmetic:
    choices: list[Arithmetic] = [Fp64Arithmetic()]
    if torch.cpu._is_vnni_supported():
        choices.insert(0, CpuArithmetic())
    for arithmetic in choices:
        if is_exact(arithmetic, _CPU):
            return arithmetic
    raise InputError(2792, got="this CPU")


@compiled
def _cut(values: Any, limbs: Any, descending: bool) -> None:
    half = np.uint32(0x80808080)
    for row in range(values.shape[0]):
        source = values[row]
        for limb in range(4):
            target = limbs[row, 3 - limb if descending else limb]
            shift = np.uint32(8 * limb)
            for i in range(source.size):
                digits = np.uint32(np.uint32(np.uint32(source[i]) + half) ^ half)
                target[i] = np.int8(np.uint32(digits >> shift))
