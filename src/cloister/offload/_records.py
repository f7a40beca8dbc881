"""What one converted model multiplied, and where: on workers, or in the enclave and why."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cloister.ring import Product

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloister.offload._layers import Layer
    from cloister.ring import Operator, Shape

__all__ = ["Kept", "Offloaded", "Place", "Records", "UnreachedWarning"]

Place = tuple[str, str, str]
"""Where a call stands: module path, function, source line."""


class UnreachedWarning(UserWarning):
    """A linear call of the model has no offloaded form: it is made in the enclave, at the enclave's speed."""


@dataclass(frozen=True, slots=True)
class Offloaded:
    """The products of one layer that were made by the multiplier.

    Attributes:
        layer: Which one.
        x: Shape of its input, of the largest product so far.
        w: Shape of its weight in the same product.
        calls: How many forward products were made.
        multiplications: Integer multiplications of these forward products together.
    """

    layer: Layer
    x: Shape
    w: Shape
    calls: int
    multiplications: int

    def as_json(self) -> dict[str, Any]:
        """The same facts as strings, numbers and lists."""
        return {
            "name": self.layer.name,
            "operator": type(self.layer.operator).__name__.lower(),
            "weight": self.layer.weight,
            "x": list(self.x),
            "w": list(self.w),
            "calls": self.calls,
            "multiplications": self.multiplications,
        }


@dataclass(frozen=True, slots=True)
class Kept:
    """Linear calls of one place that were made in the enclave, in float arithmetic.

    Attributes:
        name: Path of the module that made them.
        what: The function.
        where: Source line: Python module and line number.
        reason: Why they were not offloaded.
        reached: False when the model asked for something that has no offloaded form; True when it was left out by
            choice, by rule, or because there is nothing to gain.
        calls: How many were made.
        multiplications: Multiplications of the largest call, or None where nobody can count them.
    """

    name: str
    what: str
    where: str
    reason: str
    reached: bool
    calls: int
    multiplications: int | None

    def as_json(self) -> dict[str, Any]:
        """The same facts as strings and numbers."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class _Row:
    reason: str
    reached: bool
    calls: int = 0
    multiplications: int | None = None


@dataclass(slots=True)
class _Sum:
    x: Shape
    w: Shape
    largest: int = 0
    calls: int = 0
    multiplications: int = 0


class Records:
    """Counts by layer and by place: bounded by the model's source, not by how long it runs; threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offloaded: dict[Layer, _Sum] = {}
        self._kept: dict[tuple[str, str, str], _Row] = {}

    @property
    def offloaded(self) -> tuple[Offloaded, ...]:
        """Layers that the multiplier served, in the order of their first product."""
        return tuple(Offloaded(layer, s.x, s.w, s.calls, s.multiplications) for layer, s in self._offloaded.items())

    @property
    def kept(self) -> tuple[Kept, ...]:
        """Places that stayed in the enclave, in the order of their first call."""
        return tuple(
            Kept(*place, row.reason, row.reached, row.calls, row.multiplications) for place, row in self._kept.items()
        )

    def add_offloaded(self, layer: Layer, x: Sequence[int], w: Sequence[int]) -> None:
        """Counts one product of a layer."""
        x, w = tuple(x), tuple(w)
        size = _multiplications(layer.operator, x, w)
        with self._lock:
            row = self._offloaded.get(layer)
            if row is None:
                row = self._offloaded[layer] = _Sum(x, w)
            row.calls += 1
            row.multiplications += size
            if size > row.largest:
                row.largest, row.x, row.w = size, x, w

    def add_kept(self, name: str, what: str, where: str, reason: str, *, reached: bool) -> tuple[Place, bool]:
        """Counts one call that stays in the enclave.

        Returns:
            Its place, for :meth:`measured`, and whether it is the first call there.
        """
        place = (name, what, where)
        with self._lock:
            row = self._kept.setdefault(place, _Row(reason, reached))
            row.calls += 1
            return place, row.calls == 1

    def measured(self, place: Place, multiplications: int | None) -> None:
        """Notes how large a call was."""
        with self._lock:
            row = self._kept.get(place)  # None when counting began anew meanwhile
            if row is not None and multiplications is not None:
                row.multiplications = max(row.multiplications or 0, multiplications)

    def clear(self) -> None:
        """Begins to count anew."""
        with self._lock:
            self._offloaded.clear()
            self._kept.clear()


@lru_cache(maxsize=1024)
def _multiplications(operator: Operator, x: Shape, w: Shape) -> int:
    return Product(operator, "forward", x=x, w=w).multiplications
