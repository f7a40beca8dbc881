"""Correlated randomness in stock, and the counter that gives each piece of it out once.

It is made before any input exists, and belongs to one session. What a stock holds is in the order of its use; what the
parties' own masks ``r'`` and ``r''`` add up to is shared here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from cloister.errors import InternalError
from cloister.linear._shared import Held, Shared

__all__ = ["Comparand", "Mask", "Pool", "Stock", "Supply", "Triples"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Mask:
    """Of truncations.

    Attributes:
        low: ``Σ r'``; in the program's order the public coin.
        high: ``Σ r''``, centred.
    """

    low: Shared
    high: Shared


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Comparand:
    """Of comparisons, ``(count,)`` of one kind.

    Attributes:
        low: ``Σ r'``.
        bits: ``(count, bits)`` shared bits, the lowest first.
        high: ``Σ`` of what hides the rest, centred.
    """

    low: Shared
    bits: Shared
    high: Shared


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Triples:
    """``c = a·b`` of random a and b, ``(count,)`` each."""

    a: Shared
    b: Shared
    c: Shared


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Stock:
    """All of a session's, in shapes that :class:`cloister.linear._demand.Demand` gives.

    Attributes:
        matrices: ``(fits, D, D)``: U, symmetric and else uniform.
        steps: ``(fits·steps, D)``, by 52 bits.
        certificates: ``(fits, D)``: high parts only, their low parts are 0.
        products: ``(fits·steps, D)`` and ``(fits, D)``: U times the high parts of both.
        relaxations: ``(fits·rounds, D)``, by 4 bits.
        residuals: ``(fits, D)``, by 52 bits.
        coarse: As in the demand, ``(fits·rounds·d,)``.
        fine: ``(fits·d,)``.
        wide: ``(fits,)``.
        signs: Random bits, one a zero test.
        factors: Uniform, one a zero test.
        triples: For all products.
    """

    matrices: Shared
    steps: Mask
    certificates: Shared
    products: tuple[Shared, Shared]
    relaxations: Mask
    residuals: Mask
    coarse: Comparand
    fine: Comparand
    wide: Comparand
    signs: Shared
    factors: Shared
    triples: Triples


class Supply:
    """Gives out what a stock holds, each piece once.

    Args:
        stock: It belongs to the supply from now on.
    """

    def __init__(self, stock: Stock) -> None:
        self._stock = stock
        self._given: dict[str, int] = {}

    def matrix(self) -> Shared:
        """U of the next fit, ``(D, D)``."""
        return self._stock.matrices[self._next("matrices", len(self._stock.matrices))]

    def step(self) -> tuple[Mask, Shared]:
        """The masks of the next product behind a rounding, and U times the high ones, ``(D,)`` each."""
        i = self._next("steps", len(self._stock.steps.high))
        return _at(self._stock.steps, i), self._stock.products[0][i]

    def certificate(self) -> tuple[Shared, Shared]:
        """High masks of a product without rounding, and U times them."""
        i = self._next("certificates", len(self._stock.certificates))
        return self._stock.certificates[i], self._stock.products[1][i]

    def relaxation(self) -> Mask:
        """Of a rounding by 4 bits, ``(D,)``."""
        return _at(self._stock.relaxations, self._next("relaxations", len(self._stock.relaxations.high)))

    def residual(self) -> Mask:
        """Of a rounding by 52 bits without a product, ``(D,)``."""
        return _at(self._stock.residuals, self._next("residuals", len(self._stock.residuals.high)))

    def comparand(self, kind: str, count: int) -> Comparand:
        """Of the next comparisons; ``kind`` is ``coarse``, ``fine`` or ``wide``."""
        whole: Comparand = getattr(self._stock, kind)
        part = self._part(kind, count, len(whole.low))
        return Comparand(whole.low[part], whole.bits[part], whole.high[part])

    def signs(self, count: int) -> Shared:
        """Random bits, ``(count,)``."""
        return self._stock.signs[self._part("signs", count, len(self._stock.signs))]

    def factors(self, count: int) -> Shared:
        """Uniform values, ``(count,)``."""
        return self._stock.factors[self._part("factors", count, len(self._stock.factors))]

    def triples(self, count: int) -> Triples:
        """For the next ``count`` products."""
        whole = self._stock.triples
        part = self._part("triples", count, len(whole.a))
        return Triples(whole.a[part], whole.b[part], whole.c[part])

    @property
    def given(self) -> dict[str, int]:
        """How much of each kind was given out."""
        return dict(self._given)

    def wipe(self) -> None:
        """Overwrites the stock, used or not."""
        for shared in _all(self._stock):
            shared.wipe()

    def _next(self, kind: str, whole: int) -> int:
        return self._part(kind, 1, whole).start

    def _part(self, kind: str, count: int, whole: int) -> slice:
        start = self._given.get(kind, 0)
        if start + count > whole:
            raise InternalError(9901, f"the session's stock of {kind} is used up")
        self._given[kind] = start + count
        return slice(start, start + count)

    def __repr__(self) -> str:
        return f"<Supply given={self._given}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a supply is neither pickled nor copied")


class Pool:
    """Uniform values of every party, with tags: what inputs and proofs are hidden by. Each is given out once.

    Args:
        held: Of each party, in the order of the owners; as many of each.
    """

    def __init__(self, held: Sequence[Held]) -> None:
        self._held = held
        self._given = 0

    @property
    def left(self) -> int:
        """Of each party."""
        return len(self._held[0]) - self._given

    def take(self, count: int) -> list[Held]:
        """The next ``count`` of each party, in the order of the owners.

        Raises:
            InternalError: 9901 when there are not so many left.
        """
        if count > self.left:
            raise InternalError(9901, "the session's pool is used up")
        start, self._given = self._given, self._given + count
        return [held[start : start + count] for held in self._held]

    def wipe(self) -> None:
        """Overwrites what was given out and what was not."""
        for held in self._held:
            held.wipe()

    def __repr__(self) -> str:
        return f"<Pool of {self.left} values of each party>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a pool is neither pickled nor copied")


def _at(mask: Mask, i: int) -> Mask:
    return Mask(mask.low[i], mask.high[i])


def _all(stock: Stock) -> Sequence[Shared]:
    s = stock
    masks = [half for mask in (s.steps, s.relaxations, s.residuals) for half in (mask.low, mask.high)]
    comparands = [part for kind in (s.coarse, s.fine, s.wide) for part in (kind.low, kind.bits, kind.high)]
    triples = [s.triples.a, s.triples.b, s.triples.c]
    return [s.matrices, *masks, s.certificates, *s.products, *comparands, s.signs, s.factors, *triples]
