"""Products of shared values by triples.

Source: D. Beaver, "Efficient multiparty protocols using circuit randomization", CRYPTO 1991. Both openings of a product
are uniform: a and b are, and serve once.
"""

from __future__ import annotations

import numpy as np

from cloister.linear import _field as field
from cloister.linear._party import Party
from cloister.linear._shared import Shared, concatenated
from cloister.linear._supply import Supply, Triples

__all__ = ["multiply", "multiply_all", "multiply_by"]


def multiply(party: Party, supply: Supply, left: Shared, right: Shared) -> Shared:
    """``left · right`` entry by entry, in one round."""
    shape = left.shape
    left, right = left.reshaped(-1), right.reshaped(-1)
    return multiply_by(party, supply.triples(len(left)), left, right).reshaped(*shape)


def multiply_by(party: Party, triple: Triples, left: Shared, right: Shared) -> Shared:
    """``left · right`` of ``(count,)`` values each, by as many triples."""
    opened = party.open(concatenated([left - triple.a, right - triple.b]))
    d, e = opened[: len(left)], opened[len(left) :]
    product = triple.c + triple.b.scaled(d) + triple.a.scaled(e)
    return party.plus(product, field.multiply(d, e))


def multiply_all(party: Party, supply: Supply, factors: Shared) -> Shared:
    """The product over the first axis, ``(k, m)`` to ``(m,)``, in ⌈log₂ k⌉ rounds and k - 1 products each."""
    while len(factors) > 1:
        half = len(factors) // 2
        made = multiply(party, supply, factors[:half], factors[half : 2 * half])
        rest = factors[2 * half :].rows
        factors = Shared(np.concatenate([made.rows, rest], axis=1))
    return factors[0]
