"""What tests of exact arithmetic share: numbers at the edges of words and of the field, products the slow way."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from cloister.errors import CloisterError
from cloister.linear._elements import P

_ENDS = (0, 1, 2**63, 2**64 - 1)
EDGES = sorted(
    {low + (middle << 64) + (high << 128) for low in _ENDS for middle in _ENDS for high in (0, 1, 2**56 - 2)}
    | {low + (2**64 - 51 - d << 64) + (2**56 - 1 << 128) for low in _ENDS for d in (1, 2)}
    | {P - 1, P - 2, P // 2, P // 2 + 1, 2**184 - 51 * 2**64 - 1}
)
"""Elements of F_p whose words are all zeros, all ones, or next to p's."""


def field_integers(count: int, *, seed: int) -> list[int]:
    """Integers in ``[0, p)``, a third of them edges."""
    generator = random.Random(seed)
    return [
        generator.choice((generator.choice(EDGES), generator.randrange(P), generator.randrange(P)))
        for _ in range(count)
    ]


def negacyclic(x: Sequence[int], y: Sequence[int], modulus: int) -> list[int]:
    """The product of two polynomials modulo X^N + 1 and an integer."""
    degree = len(x)
    total = [0] * degree
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            place, sign = (i + j, 1) if i + j < degree else (i + j - degree, -1)
            total[place] += sign * a * b
    return [value % modulus for value in total]


def refused(act: Callable[[], object], code: int) -> None:
    """Requires that ``act`` is refused with this code."""
    with pytest.raises(CloisterError) as caught:
        act()
    assert caught.value.code == code
