"""A dealer of correlated randomness that everybody would have to trust: for tests, and it runs nowhere else."""

from __future__ import annotations

import os
import secrets
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.linear_mesh import MeshChannel

from cloister.errors import RefusedError
from cloister.linear import _field as field
from cloister.linear._demand import Comparisons, Demand
from cloister.linear._field import Elements, from_ints
from cloister.linear._party import Party
from cloister.linear._plan import RELAXATION_BITS, SHIFT_BITS
from cloister.linear._shared import Held, Shared, peer_row
from cloister.linear._streams import SecretStream, elements
from cloister.linear._supply import Comparand, Mask, Stock, Triples

__all__ = ["Dealer"]

Integers = NDArray[np.object_]


class Dealer:
    """Deals to ``parties`` threads, once each of them has asked.

    Attributes:
        coins: ``Σ r'`` of every rounding, by kind; what an emulator needs to compute the same.
    """

    def __init__(self, parties: int, demand: Demand | None = None) -> None:
        if "PYTEST_CURRENT_TEST" not in os.environ:
            raise RefusedError(3904)
        self.parties, self._demand = parties, demand
        self.coins: dict[str, Integers] = {}
        self._barrier = threading.Barrier(parties)
        self._keys: list[Elements | None] = [None] * parties
        self._malicious = True
        self._stream = SecretStream("dealer")
        self._dealt: list[Any] = []

    def _meet(self, party: Party) -> None:
        self._keys[party.number] = party.key
        self._malicious = party.malicious
        self._wait(party)

    def _wait(self, party: Party) -> None:
        assert isinstance(party.channel, MeshChannel)
        party.channel.meet(self._barrier)

    def stock(self, party: Party) -> Stock:
        """This party's part of what the demand needs."""
        self._meet(party)
        if party.number == 0:
            self._dealt = self._deal()
        self._wait(party)
        return self._dealt[party.number]

    def shared(self, party: Party, values: Any = None, *, shape: tuple[int, ...] = ()) -> Shared:
        """This party's part of shared values; uniform ones of a shape by default. All parties give the same."""
        self._meet(party)
        if party.number == 0:
            given = elements(self._stream, *shape) if values is None else from_ints(values)
            self._dealt = self._shared(given)
        self._wait(party)
        mine = self._dealt[party.number]
        self._wait(party)
        return mine

    def held(self, party: Party, count: int) -> list[Held]:
        """``count`` uniform values of each party, in the order of the owners."""
        self._meet(party)
        if party.number == 0:
            self._dealt = [self._held(elements(self._stream, count), owner) for owner in range(self.parties)]
        self._wait(party)
        mine = [by_party[party.number] for by_party in self._dealt]
        self._wait(party)
        return mine

    # ---- what is dealt -----------------------------------------------------------------------------------

    def _key(self, party: int) -> Elements:
        key = self._keys[party]
        assert key is not None
        return key

    def _held(self, values: Elements, owner: int) -> list[Held]:
        out: list[Held | None] = [None] * self.parties
        tags: list[Elements] = []
        for other in range(self.parties):
            if other == owner:
                continue
            keys = elements(self._stream, *values.shape[:-1])
            tags.append(field.add(keys, field.multiply(self._key(other), values)))
            out[other] = Held(keys[None], owner)
        out[owner] = Held(np.stack([values, *tags]), owner)
        return [held for held in out if held is not None]

    def _shared(self, values: Elements) -> list[Shared]:
        shares = [elements(self._stream, *values.shape[:-1]) for _ in range(self.parties - 1)]
        last = values
        for share in shares:
            last = field.subtract(last, share)
        shares.append(last)
        if not self._malicious:
            return [Shared(share[None]) for share in shares]
        n = self.parties
        rows = [np.zeros((2 * n - 1, *values.shape), np.uint64) for _ in range(n)]
        for i, share in enumerate(shares):
            rows[i][0] = share
            for j in range(n):
                if j != i:
                    key = elements(self._stream, *values.shape[:-1])
                    rows[j][n + peer_row(j, i)] = key
                    rows[i][1 + peer_row(i, j)] = field.add(key, field.multiply(self._key(j), share))
        return [Shared(row) for row in rows]

    def _sums(self, shape: tuple[int, ...], bits: int, *, centred: bool) -> Integers:
        """Of a uniform number of each party."""
        offset = 1 << (bits - 1) if centred else 0
        count = int(np.prod(shape))
        values = [sum(secrets.randbits(bits) - offset for _ in range(self.parties)) for _ in range(count)]
        return np.array(values, object).reshape(shape)

    def _coin(self, kind: str, shape: tuple[int, ...], bits: int) -> list[Shared]:
        self.coins[kind] = self._sums(shape, bits, centred=False)
        return self._shared(from_ints(self.coins[kind]))

    def _deal(self) -> list[Stock]:
        needs = self._demand
        assert needs is not None
        fits, width = needs.fits, needs.columns
        steps, rounds = (fits * needs.steps, width), (fits * needs.rounds, width)
        square = _symmetric(elements(self._stream, fits, width, width))
        highs = self._sums(steps, needs.hiding_bits, centred=True)
        finals = self._sums((fits, width), needs.hiding_bits, centred=True)
        products = [_by_fit(square, from_ints(part)) for part in (highs, finals)]
        a, b = (elements(self._stream, needs.triples) for _ in range(2))
        parts: dict[str, list[Any]] = {
            "matrices": self._shared(square),
            "steps": _masks(self._coin("steps", steps, SHIFT_BITS), self._shared(from_ints(highs))),
            "certificates": self._shared(from_ints(finals)),
            "products": list(zip(*(self._shared(product) for product in products), strict=True)),
            "relaxations": _masks(self._coin("relaxations", rounds, RELAXATION_BITS), self._high(rounds)),
            "residuals": _masks(self._coin("residuals", (fits, width), SHIFT_BITS), self._high((fits, width))),
            "coarse": self._comparands("coarse", needs.coarse),
            "fine": self._comparands("fine", needs.fine),
            "wide": self._comparands("wide", needs.wide),
            "signs": self._bits((needs.tests,)),
            "factors": self._shared(elements(self._stream, needs.tests)),
            "triples": _triples(*(self._shared(x) for x in (a, b, field.multiply(a, b)))),
        }
        return [Stock(**{name: part[i] for name, part in parts.items()}) for i in range(self.parties)]

    def _high(self, shape: tuple[int, ...]) -> list[Shared]:
        assert self._demand is not None
        return self._shared(from_ints(self._sums(shape, self._demand.hiding_bits, centred=True)))

    def _bits(self, shape: tuple[int, ...]) -> list[Shared]:
        return self._shared(from_ints(self._uniform_bits(shape)))

    def _uniform_bits(self, shape: tuple[int, ...]) -> Integers:
        return np.array([secrets.randbits(1) for _ in range(int(np.prod(shape)))], object).reshape(shape)

    def _comparands(self, kind: str, needs: Comparisons) -> list[Comparand]:
        assert self._demand is not None
        low = self._coin(kind, (needs.count,), needs.below)
        bits = self._bits((needs.count, needs.bits))
        high = self._shared(from_ints(self._sums((needs.count,), self._demand.high_bits, centred=True)))
        return [Comparand(*parts) for parts in zip(low, bits, high, strict=True)]


def _masks(low: list[Shared], high: list[Shared]) -> list[Mask]:
    return [Mask(*pair) for pair in zip(low, high, strict=True)]


def _triples(a: list[Shared], b: list[Shared], c: list[Shared]) -> list[Triples]:
    return [Triples(*parts) for parts in zip(a, b, c, strict=True)]


def _symmetric(squares: Elements) -> Elements:
    rows, places = np.tril_indices(squares.shape[1])
    squares[:, places, rows] = squares[:, rows, places]
    return squares


def _by_fit(squares: Elements, vectors: Elements) -> Elements:
    """Each fit's matrix times its vectors, ``(vectors, D, 3)``."""
    each = len(vectors) // len(squares)
    products = [field.matvec(squares[i // each], vector) for i, vector in enumerate(vectors)]
    return np.array(products, np.uint64).reshape(vectors.shape)
