"""Products of one secret matrix with many secret vectors in the coefficients of few polynomials.

The matrix, D × D, is cut into w blocks of ``k = ⌈D/w⌉`` columns, one polynomial each, and one multiplicand holds v
vectors. In the sum of the w products, entry a of the product with vector t is one coefficient; the others are useless:

====================================  ==================
what                                  coefficient
====================================  ==================
entry (a, b) of a block               ``a·v·k + k-1-b``
entry b of vector t, in its block     ``t·k + b``
entry a of product t                  ``a·v·k + t·k + k-1``
====================================  ==================

Nothing wraps around X^N + 1 where ``D·v·k + k ≤ N + 1``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.linear._elements import WORDS
from cloister.linear._field import Elements, require_elements
from cloister.linear._primes import DEGREE

__all__ = ["Packing", "pack_left", "pack_right", "unpack"]


@dataclass(frozen=True, slots=True)
class Packing:
    """How matrices of one size are cut.

    Attributes:
        columns: D.
        tiles: w, the width of the matrix's group.
        vectors: v, of one answer.
        degree: N.

    Raises:
        InputError: 2911 when it does not fit the degree.
    """

    columns: int
    tiles: int
    vectors: int
    degree: int = DEGREE

    def __post_init__(self) -> None:
        positive = 1 <= self.tiles <= self.columns and self.vectors >= 1
        if not positive or self.columns * self.vectors * self.wide + self.wide > self.degree + 1:
            raise InputError(2911, "tiles do not fit a polynomial", expected=f"degree {self.degree}", got=self)

    @property
    def wide(self) -> int:
        """k: columns of a block."""
        return -(-self.columns // self.tiles)

    def useful(self, vectors: int | None = None) -> NDArray[np.int64]:
        """``(vectors · D,)``: where the entries of the first products stand, product by product; of all without."""
        count = self.vectors if vectors is None else self._require(vectors)
        starts = np.arange(count)[:, None] * self.wide + self.wide - 1
        return (starts + np.arange(self.columns) * self.vectors * self.wide).reshape(-1)

    def _require(self, vectors: int) -> int:
        if not 1 <= vectors <= self.vectors:
            raise InputError(2911, "too many vectors", expected=f"1 to {self.vectors}", got=vectors)
        return vectors


def pack_left(matrix: Elements, packing: Packing) -> Elements:
    """A matrix ``(D, D, 3)`` as messages of a group, ``(w, N, 3)``.

    Raises:
        InputError: 2911 for another shape.
    """
    _require_shape(matrix, (packing.columns, packing.columns, WORDS))
    out = _nothing(packing)
    rows = np.arange(packing.columns)[:, None] * packing.vectors * packing.wide
    block, place = _places(packing)
    out[np.broadcast_to(block, (packing.columns, packing.columns)), rows + packing.wide - 1 - place] = matrix
    return out


def pack_right(vectors: Elements, packing: Packing) -> Elements:
    """At most v vectors ``(v, D, 3)`` as multiplicands, ``(w, N, 3)``.

    Raises:
        InputError: 2911 for another shape.
    """
    count = packing._require(len(vectors)) if vectors.ndim == 3 else 0
    _require_shape(vectors, (count, packing.columns, WORDS))
    out = _nothing(packing)
    block, place = _places(packing)
    out[np.broadcast_to(block, vectors.shape[:2]), np.arange(count)[:, None] * packing.wide + place] = vectors
    return out


def unpack(useful: Elements, packing: Packing) -> Elements:
    """The products ``(v, D, 3)``, of the coefficients at :meth:`Packing.useful`.

    Raises:
        InputError: 2911 for another shape.
    """
    count = packing._require(len(useful) // packing.columns)
    _require_shape(useful, (count * packing.columns, WORDS))
    return useful.reshape(count, packing.columns, WORDS)


def _places(packing: Packing) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each column: its block, and its place there."""
    return np.divmod(np.arange(packing.columns), packing.wide)


def _nothing(packing: Packing) -> Elements:
    return np.zeros((packing.tiles, packing.degree, WORDS), np.uint64)


def _require_shape(x: Elements, shape: tuple[int, ...]) -> None:
    require_elements(x)
    if x.shape != shape:
        raise InputError(2911, "not what is packed", expected=shape, got=x.shape)
