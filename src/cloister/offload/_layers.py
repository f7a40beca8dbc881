"""The seam between a model and whatever multiplies for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from cloister.ring import Operator

__all__ = ["Layer", "Multiplier", "WeightIs"]

WeightIs = Literal["parameter", "frozen", "activation"]
"""What stands in the weight's place: a trained parameter, one that never changes, or another activation (attention)."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One place in a model where a product is made.

    Attributes:
        name: Module path, as in ``named_modules()``; for a functional call the path of the module that makes it, and
            what it is after a colon: ``encoder.layer.0.attention:scores``.
        operator: Its geometry.
        weight: What the second operand is.
    """

    name: str
    operator: Operator
    weight: WeightIs


class Multiplier(Protocol):
    """Makes the products of a model's layers, differentiably."""

    def enter(self) -> None:
        """The root model's forward begins."""
        ...

    def leave(self, *, training: bool) -> None:
        """The root model's forward ends; ``training`` when gradients are being recorded."""
        ...

    def multiply(self, layer: Layer, x: Tensor, w: Tensor) -> Tensor:
        """The operator's forward product, as a node of autograd.

        Shapes: ``x``, ``w`` and the answer as the operator says, all ``float32``, on the CPU. Biases are the caller's.
        """
        ...
