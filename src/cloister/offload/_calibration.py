"""Static scales, as in Slalom: an exponent for each of a layer's tensors, fixed by the first pass that has them.

The first pass of a model is its calibration: each tensor gets the exponent that its own greatest magnitude asks for, as
with dynamic scales, and the greatest of a tensor's exponents in that pass is the one that it has from the next pass on.
So run a representative batch first. A scale that is fixed costs no read of the tensor; what lies beyond it is clipped,
and counted in the report.

Exponents follow from private values. They stay in the enclave: bounds, splits and whatever is sent follow from shapes
and bits alone, with static scales as with any. A checkpoint has them, since a run that goes on has to go on with the
same.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch

from cloister.ring import exponent_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["Calibration"]


class Calibration:
    """A model's exponents. Secret, as the model is. Safe to use from several threads.

    Args:
        bits: Of every operand.
    """

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._fixed: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._lock = threading.Lock()

    def begin(self) -> None:
        """A pass begins: what the one before has seen is fixed."""
        with self._lock:
            self._fixed = {**self._seen, **self._fixed}
            self._seen = {}

    def exponent(self, layer: str, stream: str, values: Tensor) -> int | None:
        """The exponent for a layer's tensor.

        Args:
            layer: Whose it is.
            stream: ``x``, ``w`` or ``y``.
            values: float32.

        Returns:
            The fixed one, or in a first pass the one that follows from the values; None for zeros alone, which say
            nothing of a scale: they wait for a later pass.

        Raises:
            InputError: 2703 in a first pass, when a value is infinite or no number.
        """
        tensor = f"{layer}:{stream}"
        with self._lock:
            fixed = self._fixed.get(tensor)
        if fixed is not None:
            return fixed
        most = _greatest(values)
        if most == 0:
            return None
        found = exponent_for(most, self._bits)
        with self._lock:
            self._seen[tensor] = max(found, self._seen.get(tensor, found))
        return found

    @property
    def state(self) -> dict[str, int]:
        """For a checkpoint: what is fixed, and what the pass that is under way has seen."""
        with self._lock:
            return {**self._seen, **self._fixed}

    def restore(self, state: Mapping[str, int]) -> None:
        """Goes on with a checkpoint's."""
        with self._lock:
            self._fixed, self._seen = dict(state), {}


def _greatest(values: Tensor) -> float:
    """The greatest magnitude, in one read."""
    if values.numel() == 0:
        return 0.0
    least, most = torch.aminmax(values.detach())
    return float(torch.maximum(-least, most))
