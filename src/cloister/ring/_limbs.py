"""Exact products of matrices of words, from units that multiply small numbers.

A word is cut into *limbs*, signed digits in base ``2^b`` of magnitude at most ``2^(b-1)``: ``w = Σ d_s · 2^(b·s)``
modulo 2^32. Products of limbs whose weights multiply to 2^32 or more vanish, so two words of ``n`` limbs need
``n(n + 1)/2`` of them: those with ``i + j = s`` have one weight and are one matrix product whose contraction is
``s + 1`` times as long. ``int8`` integers are one limb already.

==========  ==============  ==============  ==========================================  =====================
arithmetic  words × words   words × int8    a sum stays below                           by flushing every
==========  ==============  ==============  ==========================================  =====================
``int8``    10 products     4 products      ``4·K·2^14 ≤ 2^30``, in int32               16,384 terms
``fp64``    3 products      1 product       ``2·K·2^30 ≤ 2^52``; ``K·2^38 ≤ 2^52``      2^21; 2^14 terms
==========  ==============  ==============  ==========================================  =====================

Balanced digits of all limbs at once: add 2^(b-1) to each, with carries, which makes them digits in ``[0, 2^b)``, the
word's own bits; then take 2^(b-1) off each, which is to flip its highest bit and to read it as signed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import product
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Arithmetic", "Fp64Arithmetic", "Int8Arithmetic", "is_exact"]

_HALVES = {4: -0x7F7F7F80, 2: -0x7FFF8000}  # 0x80808080 and 0x80008000 as int32: half the base at every limb
_DIGIT = {4: torch.int8, 2: torch.int16}


class Arithmetic(ABC):
    """Multiplies matrices of limbs.

    Attributes:
        name: ``"int8"`` or ``"fp64"``.
        itemsize: Bytes of one limb.
        contraction_last: Whether the unit wants each row's terms to be neighbours in memory, in both operands.
    """

    name: str
    itemsize: int
    contraction_last = False

    @abstractmethod
    def limbs(self, dtype: torch.dtype, other: torch.dtype) -> int:
        """How many limbs an operand of ``dtype`` has when it is multiplied with one of ``other``."""

    @abstractmethod
    def most(self, left: int, right: int) -> int:
        """How many terms of operands with so many limbs one sum may hold."""

    @abstractmethod
    def gemm(self, a: Tensor, b: Tensor) -> Tensor:
        """``(G, M, K)`` and ``(G, N, K)`` limbs of any strides to ``(G, M, N)`` int32: ``a · bᵀ``, modulo 2^32."""

    def split(self, values: Tensor, count: int, *, axis: int, descending: bool = False) -> Tensor:
        """Cuts integers into limbs.

        Args:
            values: ``int32`` or ``int8``, contiguous.
            count: How many limbs.
            axis: Where the result has its axis of limbs.
            descending: Whether the heaviest limb comes first.

        Returns:
            Contiguous limbs; ``int8`` or ``float64``.
        """
        if count == 1:
            return self._stored(values.unsqueeze(axis))
        # fresh: an axis of one element may have any stride, which a sum keeps and a view of another dtype refuses
        digits = torch.empty(values.shape, dtype=torch.int32, device=values.device)
        torch.add(values, _HALVES[count], out=digits).bitwise_xor_(_HALVES[count])
        digits = digits.view(_DIGIT[count]).view(*values.shape, count)
        order = range(count - 1, -1, -1) if descending else range(count)
        return self._stored(torch.stack([digits[..., limb] for limb in order], dim=axis))

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiplies matrices of words.

        Args:
            a: ``(G, M, limbs, K)``, the lightest limb first. Fastest where the last two axes are one in memory.
            b: ``(G, N, limbs, K)``, the heaviest limb first.

        Returns:
            ``(G, M, N)`` int32: ``a · bᵀ`` modulo 2^32.
        """
        count = max(a.shape[2], b.shape[2])
        step = self.most(a.shape[2], b.shape[2])
        out: Tensor | None = None
        for start in range(0, a.shape[3], step):
            left, right = a[..., start : start + step], b[..., start : start + step]
            for weight in range(count):
                one, other = _of_weight(left, right, weight)
                part = self.gemm(one.flatten(2), other.flatten(2))
                # int32 addition and multiplication wrap, as the ring does
                out = part if out is None else out.add_(part, alpha=1 << (32 // count * weight))
        if out is None:
            return torch.zeros(a.shape[0], a.shape[1], b.shape[1], dtype=torch.int32, device=a.device)
        return out

    def _stored(self, limbs: Tensor) -> Tensor:
        return limbs


def _of_weight(a: Tensor, b: Tensor, weight: int) -> tuple[Tensor, Tensor]:
    """The limbs of both whose products have the base's ``weight``-th power: neighbours in ``a`` and in ``b``."""
    if a.shape[2] == b.shape[2]:
        return a[:, :, : weight + 1], b[:, :, b.shape[2] - 1 - weight :]
    if b.shape[2] == 1:
        return a[:, :, weight : weight + 1], b
    return a, b[:, :, b.shape[2] - 1 - weight : b.shape[2] - weight]


class Int8Arithmetic(Arithmetic):
    """Limbs of 8 bits, exact products in int32 by ``torch._int_mm``.

    The sums of a call stay below 2^30, and below 2^31 inside units that shift one operand to ``[0, 255]`` first: no
    accumulator, saturating or not, is ever full.
    """

    name = "int8"
    itemsize = 1

    def limbs(self, dtype: torch.dtype, other: torch.dtype) -> int:
        """4 for words, 1 for int8."""
        return 4 if dtype == torch.int32 else 1

    def most(self, left: int, right: int) -> int:
        """Terms of one sum: 65,536 limb products."""
        return 65_536 // min(left, right)

    def gemm(self, a: Tensor, b: Tensor) -> Tensor:
        """One call a group."""
        if a.shape[2] == 1:  # torch mistakes the strides of a matrix with one row, and answers wrongly, without a word
            a, b = (torch.nn.functional.pad(limbs, (0, 1)) for limbs in (a, b))
        out = torch.empty(a.shape[0], a.shape[1], b.shape[1], dtype=torch.int32, device=a.device)
        for group in range(a.shape[0]):
            torch._int_mm(a[group], b[group].t(), out=out[group])  # pyright: ignore[reportPrivateImportUsage]
        return out


class Fp64Arithmetic(Arithmetic):
    """Limbs of 16 bits, or a whole word where the other operand is ``int8``; exact integers in fp64, below 2^53."""

    name = "fp64"
    itemsize = 8

    def limbs(self, dtype: torch.dtype, other: torch.dtype) -> int:
        """2 where both are words, else 1."""
        return 2 if dtype == other == torch.int32 else 1

    def most(self, left: int, right: int) -> int:
        """Terms of one sum, by the largest operands that this many limbs may mean."""
        return 2**21 if left == 2 else 2**14

    def gemm(self, a: Tensor, b: Tensor) -> Tensor:
        """One call for all groups."""
        return torch.bmm(a, b.transpose(1, 2)).to(torch.int64).to(torch.int32)

    def _stored(self, limbs: Tensor) -> Tensor:
        return limbs.to(torch.float64)


def is_exact(arithmetic: Arithmetic, device: torch.device) -> bool:
    """Whether the device's unit gives the right integers for the largest operands and for random ones.

    What it would find: instructions that add pairs of products in 16 bits and saturate (CPUs without VNNI), settings
    that emulate fp64 or replace it, and libraries that do what nobody expects.
    """
    generator = torch.Generator().manual_seed(0)
    kinds = ((torch.int32, torch.int32), (torch.int32, torch.int8), (torch.int8, torch.int8))
    for (rows, columns, terms), (left, right) in product(((5, 3, 1), (1, 16, 64), (33, 48, 512)), kinds):
        for pattern in ("lowest", "highest", "both", "random"):
            a = _extremes((rows, terms), pattern, generator).to(left)
            b = _extremes((columns, terms), "lowest" if pattern == "both" else pattern, generator).to(right)
            limbs = (
                arithmetic.split(a.to(device), arithmetic.limbs(left, right), axis=1),
                arithmetic.split(b.to(device), arithmetic.limbs(right, left), axis=1, descending=True),
            )
            found = arithmetic.multiply(limbs[0][None], limbs[1][None])[0].cpu()
            if not torch.equal(found, _slowly(a, b)):
                return False
    return True


def _extremes(shape: tuple[int, int], pattern: str, generator: torch.Generator) -> Tensor:
    """Words whose limbs of 8 bits are all the lowest, all the highest, these in turn, or random."""
    if pattern == "random":
        return torch.randint(-(2**31), 2**31, shape, dtype=torch.int32, generator=generator)
    words = torch.full(shape, 0x7F7F7F7F if pattern == "highest" else 0x7F7F7F80, dtype=torch.int32)
    if pattern == "both":
        words[:, ::2] = 0x7F7F7F7F
    return words


def _slowly(a: Tensor, b: Tensor) -> Tensor:
    """``a · bᵀ`` by numpy's plain loops over int64, whose sums wrap and so are right modulo 2^32."""
    found = a.to(torch.int64).numpy() @ b.to(torch.int64).numpy().T
    return torch.from_numpy(found).to(torch.int32)
