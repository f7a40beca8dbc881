"""What every mode does, as a seam, and the one that does it in place.

:class:`Simulation` makes the integers of every mode without masks or workers; :class:`~cloister.offload._exchange
.Exchange` has workers make them. Both answer with words that :func:`cloister.ring.recover` turns into the product, so
everything before and after is the same code, and a simulated run has the bits of an executed one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from cloister.offload._operands import Operand
from cloister.ring import RING_LIMIT, kernels_for, quantise

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from torch import Tensor

    from cloister.ring import Part, Product, RingKernels, RoundingStream

__all__ = ["Answers", "Arithmetic", "Asked", "Quantising", "Simulation", "cut"]


@dataclass(frozen=True, slots=True)
class Quantising:
    """How one tensor becomes integers: bits, the axis of its scales, the rounding's bytes, a scale that is fixed."""

    bits: int
    axis: int | None = None
    rounding: RoundingStream | None = None
    exponent: int | None = None

    def options(self) -> dict[str, Any]:
        """As :func:`cloister.ring.quantise` and :func:`cloister.ring.hide` take them."""
        return {"bits": self.bits, "axis": self.axis, "rounding": self.rounding, "exponent": self.exponent}


@dataclass(frozen=True, slots=True)
class Answers:
    """What makes one part of a product: ``Σ coefficient · words + Σ sign · pads``, halved where it comes twice."""

    words: Sequence[tuple[int, Tensor]]
    pads: Sequence[tuple[int, Tensor]] = ()
    halve: bool = False
    workers: tuple[str, ...] = ()


class Asked(Protocol):
    """A part of a product that was asked for."""

    def answers(self) -> Answers:
        """Waits for it. Raises what the link raises."""
        ...


class Arithmetic(Protocol):
    """Who makes integers of tensors and products of integers.

    Attributes:
        limit: The magnitude below which a part's integers stay.
        checked: Whether somebody answers who has to be checked.
        one_product: Whether an input's operand serves one product only, because its mask was drawn for that one.
    """

    limit: int
    checked: bool
    one_product: bool

    @property
    def late(self) -> int:
        """How many blinding products were not ready when they were needed."""
        ...

    def begin(self, *, training: bool) -> None:
        """A pass of the model begins; with gradients or without."""
        ...

    def prepare(self, passes: int) -> int:
        """Makes ahead what so many passes like the last one need; returns how many products were made."""
        ...

    def operand(
        self, stream: Literal["x", "w", "y"], values: Tensor, how: Quantising, *, public: bool, product: Product
    ) -> Operand:
        """Takes a tensor in: rounds it, and hands out what the mode lets each worker have of it.

        Args:
            stream: What it is in the form.
            values: float32, on the CPU.
            how: How it is rounded.
            public: Whether it is a published weight.
            product: The product that it is first used in.

        Raises:
            InputError: 2703 when a value is infinite or no number.
        """
        ...

    def ask(self, part: Part, left: Operand, right: Operand, *, product: Product, index: int, whole: bool) -> Asked:
        """Begins one part of a product; ``whole`` when it is the only one."""
        ...

    def close(self) -> None:
        """Ends it; workers forget everything."""
        ...


@dataclass(frozen=True, slots=True)
class _Made:
    made: Answers

    def answers(self) -> Answers:
        return self.made


class Simulation:
    """The exact integer product, in this process, without masks.

    Security: protects nothing; it shows what a protected run would compute, bit for bit.
    """

    limit = RING_LIMIT
    checked = False
    one_product = False
    late = 0

    def __init__(self, kernels: RingKernels | None = None) -> None:
        self._kernels = kernels or kernels_for(torch.device("cpu"))

    def begin(self, *, training: bool) -> None:
        """See :class:`Arithmetic`."""

    def prepare(self, passes: int) -> int:
        """See :class:`Arithmetic`."""
        return 0

    def operand(
        self, stream: Literal["x", "w", "y"], values: Tensor, how: Quantising, *, public: bool, product: Product
    ) -> Operand:
        """See :class:`Arithmetic`."""
        return Operand(quantise(values, **how.options()))

    def ask(self, part: Part, left: Operand, right: Operand, *, product: Product, index: int, whole: bool) -> Asked:
        """See :class:`Arithmetic`."""
        operands = (cut(left.quantised.values, part.left), cut(right.quantised.values, part.right))
        return _Made(Answers([(1, self._kernels.product(part.product, *operands))]))

    def close(self) -> None:
        """See :class:`Arithmetic`."""


def cut(tensor: Tensor, at: tuple[int, int, int]) -> Tensor:
    """A slice along one axis: ``(axis, start, stop)``."""
    axis, start, stop = at
    return tensor.narrow(axis, start, stop - start)
