"""Random shared bits: ``(r/√(r²) + 1)/2`` of a uniform r, whose square is opened.

Whoever sees r² knows r up to its sign, and the sign is the bit.

Source: I. Damgård, M. Fitzi, E. Kiltz, J. Nielsen, T. Toft, TCC 2006, section 4.2.
"""

from __future__ import annotations

from cloister.errors import IntegrityError
from cloister.linear import _field as field
from cloister.linear._field import from_ints
from cloister.linear._multiply import multiply_by
from cloister.linear._party import Party
from cloister.linear._roots import square_roots
from cloister.linear._shared import Shared
from cloister.linear._supply import Triples

__all__ = ["random_bits"]


def random_bits(party: Party, triples: Triples, uniform: Shared) -> Shared:
    """As many bits as there are uniform values and triples, ``(count,)``, in two rounds.

    Raises:
        IntegrityError: 5904 when a square has no root, or is 0, which happens with probability 2^-184.
    """
    squares = party.open(multiply_by(party, triples, uniform, uniform))
    roots, exist = square_roots(squares)
    if not (exist.all() and roots.any(axis=-1).all()):
        raise IntegrityError(5904, "what was opened as a square is none")
    half = (field.P + 1) // 2
    return party.plus(uniform.scaled(field.multiply(field.inverse(roots), from_ints(half))), from_ints(half))
