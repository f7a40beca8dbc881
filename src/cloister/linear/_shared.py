"""Values that nobody knows alone: additive shares in F_p, each with a tag for every other party.

For every ordered pair of parties (i, j), of a value ``x = Σ x_i``, party i holds the share x_i and a tag M_ij, party j
the key K_ij and one global key Δ_j, with ``M_ij = K_ij + Δ_j·x_i`` (R. Bendlin, I. Damgård, C. Orlandi, S. Zakarias,
"Semi-homomorphic encryption and multiparty computation", EUROCRYPT 2011). A false share passes with probability 1/p.

A party stacks what it holds of a value in *rows*: its share; its tags, one a peer; its keys, one a peer; peers in
ascending order. Linear maps act on all rows alike, so they need no message. Without tags (semi-honest) there is one
row.

Neither class shows, compares or pickles what it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Self

import numpy as np

from cloister.linear import _field as field
from cloister.linear._elements import WORDS
from cloister.linear._field import Elements

__all__ = ["Held", "Shared", "concatenated", "peer_row"]


def peer_row(party: int, peer: int) -> int:
    """The place of a peer among the others."""
    return peer - (peer > party)


class _Rows:
    """Rows of field elements, ``(rows, …, 3)``, under linear maps."""

    __slots__ = ("rows",)

    def __init__(self, rows: Elements) -> None:
        self.rows = rows

    def _made(self, rows: Elements) -> Self:
        return type(self)(rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values."""
        return self.rows.shape[1:-1]

    def __len__(self) -> int:
        return self.rows.shape[1]

    def __getitem__(self, index: Any) -> Self:
        """Values by a numpy index."""
        index = index if isinstance(index, tuple) else (index,)
        return self._made(self.rows[(slice(None), *index)])

    def __add__(self, other: Self) -> Self:
        return self._made(field.add(self.rows, other.rows))

    def __sub__(self, other: Self) -> Self:
        return self._made(field.subtract(self.rows, other.rows))

    def __neg__(self) -> Self:
        return self._made(field.negate(self.rows))

    def scaled(self, factors: Elements) -> Self:
        """Entry by entry by public elements, ``(3,)`` or ``(…, 3)`` in the values' shape."""
        return self._made(field.multiply(self.rows, factors))

    def mapped(self, matrix: Elements) -> Self:
        """A public matrix ``(m, k, 3)`` times the k values."""
        return self._made(np.stack([field.matvec(matrix, row) for row in self.rows]))

    def weighted(self, weights: Elements) -> Self:
        """``Σ weights·values`` over the last axis, public weights ``(k, 3)``."""
        return self._made(field.dot(self.rows, weights[None] if weights.ndim == 2 else weights))

    def total(self) -> Self:
        """The sum over the last axis."""
        ones = np.zeros((self.shape[-1], WORDS), np.uint64)
        ones[:, 0] = 1
        return self.weighted(ones)

    def reshaped(self, *shape: int) -> Self:
        """The same values in another shape."""
        return self._made(self.rows.reshape(self.rows.shape[0], *shape, WORDS))

    def wipe(self) -> None:
        """Overwrites what is held."""
        if self.rows.flags.writeable:
            self.rows[...] = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.shape}>"

    def __eq__(self, other: object) -> bool:
        raise TypeError("secret values are not compared")

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("secret values are not pickled")


class Shared(_Rows):
    """One party's part of shared values.

    Attributes:
        rows: ``(2n - 1, …, 3)``, or ``(1, …, 3)`` without tags.
    """

    __slots__ = ()

    @property
    def share(self) -> Elements:
        """The share, ``(…, 3)``."""
        return self.rows[0]

    def tags(self, row: int) -> Elements:
        """Toward the peer in this place."""
        return self.rows[1 + row]

    def keys(self, row: int) -> Elements:
        """Of the shares of the peer in this place."""
        return self.rows[(self.rows.shape[0] + 1) // 2 + row]

    def held(self, party: int, owner: int) -> Held:
        """What ``owner`` put in: its share, known to it and with a key at every other party."""
        count = (self.rows.shape[0] + 1) // 2
        row = count + peer_row(party, owner)
        return Held(self.rows[:count] if party == owner else self.rows[row : row + 1], owner)


class Held(_Rows):
    """Values that one party, their owner, knows; every other has a key for each.

    Args:
        rows: At the owner the values and its tags, ``(n, …, 3)``; elsewhere the keys, ``(1, …, 3)``.
        owner: The owner's number.
    """

    __slots__ = ("owner",)

    def __init__(self, rows: Elements, owner: int) -> None:
        super().__init__(rows)
        self.owner = owner

    def _made(self, rows: Elements) -> Self:
        return type(self)(rows, self.owner)

    @property
    def value(self) -> Elements:
        """At the owner: the values."""
        return self.rows[0]

    def tags(self, row: int) -> Elements:
        """At the owner: toward the peer in this place."""
        return self.rows[1 + row]

    @property
    def keys(self) -> Elements:
        """At another party: its keys."""
        return self.rows[0]

    def shared(self, party: int, parties: int) -> Shared:
        """As shared values, of which all shares but the owner's are 0."""
        rows = np.zeros((2 * parties - 1, *self.rows.shape[1:]), np.uint64)
        if party == self.owner:
            rows[:parties] = self.rows
        else:
            rows[parties + peer_row(party, self.owner)] = self.rows[0]
        return Shared(rows)


def concatenated(parts: Sequence[Shared]) -> Shared:
    """Flattened, one behind the other."""
    return Shared(np.concatenate([part.rows.reshape(part.rows.shape[0], -1, WORDS) for part in parts], axis=1))
