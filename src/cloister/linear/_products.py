"""Products of the secret matrix with secret vectors, in bulk, and the check of all of them by one more.

Every party encrypted its share U_i in tiles; each answers with tiles of its own vectors. An error in a product is
found by a uniform vector more: for coins χ, ``t = v_0 + Σχ_k v_k`` is opened, and ``U t - z_0 - Σχ_k z_k`` must be zero
(5905).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cloister.errors import IntegrityError
from cloister.linear import _field as field
from cloister.linear._answered import Target, answer_all
from cloister.linear._elements import WORDS
from cloister.linear._field import Elements
from cloister.linear._groups import Publics
from cloister.linear._party import Party
from cloister.linear._shared import Shared
from cloister.linear._streams import PublicStream, elements
from cloister.linear._tiles import Packing, pack_right, unpack

__all__ = ["multiply_vectors", "require_products"]


def multiply_vectors(
    party: Party, publics: Publics, packing: Packing, square: Elements, vectors: Elements, target: Target
) -> Elements:
    """The own share of ``(Σ U_i)(Σ v_i)`` for each vector, ``(count, D, 3)``.

    Args:
        party: Who computes.
        publics: The session's.
        packing: Of the matrix.
        square: ``(D, D, 3)``: U_i.
        vectors: ``(count, D, 3)``: v_i.
        target: Every party's encrypted matrix.
    """
    out = np.empty(vectors.shape, np.uint64)
    for start in range(0, len(vectors), packing.vectors):
        piece = vectors[start : start + packing.vectors]
        places = replace(target, useful=packing.useful(len(piece)))
        (answered,) = answer_all(party, "matrix", publics, pack_right(piece, packing), [places])
        total = np.zeros((len(piece) * packing.columns, WORDS), np.uint64)
        for part in (*answered.kept, *answered.got):
            total = field.add(total, part)
        own = np.stack([field.matvec(square, vector) for vector in piece])
        out[start : start + len(piece)] = field.add(own, unpack(total, packing))
    return out


def require_products(party: Party, matrix: Shared, vectors: Shared, products: Shared) -> None:
    """Checks ``(count, D)`` products, of which the last is with a uniform vector that serves nothing else.

    Raises:
        IntegrityError: 5905 when a product is wrong, 5908 as for every opening.
    """
    if not party.malicious:
        return
    count = len(vectors) - 1
    weights = elements(PublicStream(party.toss(), "matrix"), count)

    def combined(values: Shared) -> Shared:
        across = Shared(np.ascontiguousarray(np.swapaxes(values.rows[:, :count], 1, 2)))
        return across.weighted(weights) + values[count]

    opened = party.open(combined(vectors))
    if not party.is_zero([matrix.weighted(opened) - combined(products)]):
        raise IntegrityError(5905)
