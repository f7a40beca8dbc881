"""Integers of several words in compiled code: no bit is lost at the ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit, types

from cloister._compiled import _OPTIONS
from cloister.linear._words import Natural, high_word, instruction, multiply_add, multiply_wide

WORD = st.integers(0, 2**64 - 1) | st.sampled_from((0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1))
TRIPLE = types.UniTuple(types.uint64, 3)
RESULT = types.UniTuple(types.uint64, 6)


def made(function: Any, most: int) -> Any:
    """Compiled code for a function of two integers of three words, of at most so much, to six words."""

    @instruction
    def act(typing: Any, a0: Any, a1: Any, a2: Any, b0: Any, b1: Any, b2: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            a, b = (Natural.of(builder, args[start : start + 3], most) for start in (0, 3))
            return context.make_tuple(builder, RESULT, function(a, b).words(6))

        return RESULT(*[types.uint64] * 6), generate

    @njit(**_OPTIONS)
    def run(a, b):
        return act(a[0], a[1], a[2], b[0], b[1], b[2])

    return run


WHOLE = 2**192 - 1
CASES = {
    "sum": (made(lambda a, b: a + b, WHOLE), lambda a, b: a + b),
    "product": (made(lambda a, b: a * b, WHOLE), lambda a, b: a * b),
    "constant": (made(lambda a, b: (a + (2**130 + 5)) * 51, WHOLE), lambda a, b: (a + 2**130 + 5) * 51),
    "difference": (made(lambda a, b: a + 2**192 - b, WHOLE), lambda a, b: a + 2**192 - b),
    "shifts": (made(lambda a, b: (a << 100) + (b >> 70), WHOLE), lambda a, b: (a << 100) + (b >> 70)),
    "low": (made(lambda a, b: (a * b).low(200) + a.low(64) + b.low(300), WHOLE),
            lambda a, b: a * b % 2**200 + a % 2**64 + b),
}  # fmt: skip


def words(value: int, count: int) -> np.ndarray:
    return np.array([value >> 64 * k & 2**64 - 1 for k in range(count)], np.uint64)


@pytest.mark.parametrize("name", CASES)
@given(
    a=st.integers(0, WHOLE) | st.sampled_from((0, WHOLE, 2**64 - 1, 2**128)), b=st.integers(0, WHOLE) | st.just(WHOLE)
)
def test_compiled_integers_are_pythons(name: str, a: int, b: int) -> None:
    run, expected = CASES[name]
    found = sum(int(word) << 64 * k for k, word in enumerate(run(words(a, 3), words(b, 3))))
    assert found == expected(a, b)


@njit(**_OPTIONS)
def run_words(a, b, c, d):
    return multiply_wide(a, b), multiply_add(a, b, c, d), high_word(a, b)


@given(WORD, WORD, WORD, WORD)
def test_products_of_words(a: int, b: int, c: int, d: int) -> None:
    wide, added, high = run_words(*map(np.uint64, (a, b, c, d)))
    assert (int(wide[0]) << 64) + int(wide[1]) == a * b
    assert (int(added[0]) << 64) + int(added[1]) == a * b + c + d
    assert int(high) == a * b >> 64
