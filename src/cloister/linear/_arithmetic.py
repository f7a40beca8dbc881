"""What the program asks of those who compute: the one interface of the emulator and of the parties' protocol.

Values are vectors of integers that only the implementation can look into. Public integers are Python's. Who implements
this must give, bit for bit,

    trunc(y, f) = ⌊(y + Σr' - (n-1)·2^(f-1)) / 2^f⌋          Σr' the public coin: n numbers below 2^f

with one coin a value, in the order of ``cloister.linear._plan.roundings``; ``f = 0`` changes nothing and takes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, TypeVar

__all__ = ["Arithmetic", "Public", "Statistics", "Value"]

Public: TypeAlias = int | Sequence[int]
"""One integer, or one for each entry."""

Value = TypeVar("Value")
Statistics = TypeVar("Statistics", contravariant=True)


class Arithmetic(Protocol[Value, Statistics]):
    """Integers that are added, scaled by public numbers, and otherwise only in the ways named here.

    Shapes: a value has D entries, the intercept's first; a total has one.
    """

    def take(self, statistics: Statistics) -> Value:
        """Makes ``G = S[:D, :D]`` the matrix of all following products, and gives ``c = S[:D, D]``."""
        ...

    def product(self, public: Sequence[int]) -> Value:
        """G times a public vector of D integers."""
        ...

    def zero(self) -> Value:
        """D zeros."""
        ...

    def combine(self, *terms: tuple[Public, Value]) -> Value:
        """The sum of public multiples, entry by entry."""
        ...

    def truncate(self, value: Value, bits: int) -> Value:
        """``trunc(value, bits)``."""
        ...

    def mask_multiply(self, value: Value, bits: int) -> tuple[Value, Value]:
        """``x = trunc(value, bits)`` and ``G x``."""
        ...

    def threshold(self, value: Value, at: int, resolution: int) -> Value:
        """``t - at`` where ``t ≥ at``, ``t + at`` where ``t < -at``, else 0; the intercept stays as it is.

        Decided on ``t̃ = trunc(t, 36 - resolution)`` against ``T = at >> (36 - resolution)``: ``t̃ ≥ T`` and ``t̃ < -T``.
        """
        ...

    def square_sum(self, value: Value) -> Value:
        """The sum of the squares, a total."""
        ...

    def at_most(self, total: Value, most: int, bits: int) -> Value:
        """1 or 0: whether ``trunc(total, bits) ≤ most >> bits``."""
        ...

    def open(self, value: Value) -> list[int]:
        """What the value is: to everybody."""
        ...
