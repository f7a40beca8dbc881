"""The program on integers in the clear: exact, and bit for bit what the protocol computes from the same coins.

Values are numpy arrays of Python integers, so nothing can overflow or be rounded. The public coins of the truncations
come from a :class:`CoinTable`: equal tables give equal bits in every intermediate value.

>>> from fractions import Fraction
>>> plan = Plan(method="ridge", rows=(3, 3), curvature=Fraction(2), mean_squares=(Fraction(1), Fraction(1)))
>>> emulator = Emulator(plan, CoinTable([np.array([0, 5])]))
>>> emulator.truncate(np.array([4, -4], dtype=object), 2)  # ⌊(4 + 0 - 2)/4⌋ and ⌊(-4 + 5 - 2)/4⌋
array([0, -1], dtype=object)
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InternalError
from cloister.linear._arithmetic import Public
from cloister.linear._plan import ITERATE_BITS, Plan, roundings

__all__ = ["CoinTable", "Emulator"]

Integers = NDArray[np.object_]


class CoinTable:
    """``Σ_i r'_i`` of every rounding of one fit, in the program's order.

    Args:
        entries: For each truncation, threshold or comparison the sums, one a value.
    """

    def __init__(self, entries: Iterable[Sequence[int] | NDArray[Any]]) -> None:
        self.entries: tuple[Integers, ...] = tuple(np.asarray(entry).astype(object) for entry in entries)

    @classmethod
    def draw(cls, plan: Plan) -> CoinTable:
        """As honest parties draw it: for each value the sum of n uniform numbers of the rounding's bits."""
        return cls(_uniform(plan.parties, size, bits).sum(axis=0) for bits, size in roundings(plan))


def _uniform(parties: int, size: int, bits: int) -> NDArray[np.uint64]:
    words = np.frombuffer(secrets.token_bytes(8 * parties * size), dtype="<u8")
    return (words >> np.uint64(64 - bits)).reshape(parties, size)


class Emulator:
    """An :class:`cloister.linear._arithmetic.Arithmetic` without secrets, for one fit.

    Args:
        plan: What was agreed.
        coins: Used up from the first entry on.
    """

    def __init__(self, plan: Plan, coins: CoinTable) -> None:
        self._plan = plan
        self._coins = iter(coins.entries)
        self._matrix: Integers = np.zeros((0, 0), dtype=object)

    def take(self, statistics: NDArray[Any]) -> Integers:
        """Statistics: (D+1, D+1) integers."""
        columns = self._plan.columns
        whole = np.asarray(statistics).astype(object)
        self._matrix = whole[:columns, :columns]
        return whole[:columns, columns]

    def product(self, public: Sequence[int]) -> Integers:
        """D integers."""
        return self._matrix.dot(np.array(public, dtype=object))

    def zero(self) -> Integers:
        """D zeros."""
        return np.array([0] * self._plan.columns, dtype=object)

    def combine(self, *terms: tuple[Public, Integers]) -> Integers:
        """The sum of public multiples."""
        (factor, value), *others = terms
        total = _public(factor) * value
        for factor, value in others:
            total = total + _public(factor) * value
        return total

    def truncate(self, value: Integers, bits: int) -> Integers:
        """Rounded by the next coins; as it is for 0 bits."""
        if not bits:
            return value
        coins = next(self._coins, None)
        if coins is None or coins.shape != value.shape:
            raise InternalError(9901, "the table of coins is not that of the plan")
        return (value + (coins - ((self._plan.parties - 1) << (bits - 1)))) >> bits

    def mask_multiply(self, value: Integers, bits: int) -> tuple[Integers, Integers]:
        """The rounded value and its product."""
        x = self.truncate(value, bits)
        return x, self._matrix.dot(x)

    def threshold(self, value: Integers, at: int, resolution: int) -> Integers:
        """The soft threshold; the intercept is left out."""
        coarse = self.truncate(value[1:], ITERATE_BITS - resolution)
        limit = at >> (ITERATE_BITS - resolution)
        above, below = coarse >= limit, coarse < -limit
        rest = value[1:]
        shrunk = np.where(above, rest - at, 0) + np.where(below, rest + at, 0)
        return np.concatenate([value[:1], shrunk])

    def square_sum(self, value: Integers) -> Integers:
        """One entry."""
        return np.array([value.dot(value)], dtype=object)

    def at_most(self, total: Integers, most: int, bits: int) -> Integers:
        """One entry, 1 or 0."""
        return (self.truncate(total, bits) <= (most >> bits)).astype(int).astype(object)

    def open(self, value: Integers) -> list[int]:
        """Python integers."""
        return [int(entry) for entry in value]


def _public(factor: Public) -> int | Integers:
    return factor if isinstance(factor, int) else np.array(factor, dtype=object)
