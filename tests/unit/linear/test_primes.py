"""The modulus: primes that are prime, the greatest ones, and enough of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import InternalError
from cloister.linear._primes import DEGREE, DROPPED, FULL, KEPT, Basis, is_prime, largest


def divided(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


def test_small_numbers_are_told_apart() -> None:
    assert [n for n in range(3000) if is_prime(n)] == [n for n in range(3000) if divided(n)]


@pytest.mark.parametrize("n", [561, 41041, 825265, 3215031751, 3825123056546413051, 318665857834031151167461 % 2**64])
def test_what_fools_some_witnesses_is_no_prime(n: int) -> None:
    assert not is_prime(n)


@given(st.integers(2**20, 2**31), st.integers(2**20, 2**31))
def test_products_are_no_primes(a: int, b: int) -> None:
    assert not is_prime(a * b)


def test_the_primes_are_the_greatest_of_their_kind() -> None:
    assert KEPT.primes == largest(53, 4, 2 * DEGREE)
    assert DROPPED.primes == largest(62, 5, 2 * DEGREE)
    assert FULL.primes == KEPT.primes + DROPPED.primes
    assert all(q % (2 * DEGREE) == 1 for q in FULL.primes)


def test_they_are_as_large_as_the_budget_counts_on() -> None:
    """At least a tenth of a bit a prime below the power of two, and below what 192 bits of security allow."""
    assert math.log2(FULL.modulus) >= 4 * 52.9 + 5 * 61.9
    assert math.log2(KEPT.modulus) >= 4 * 52.9
    assert math.log2(FULL.modulus) < 611


PRIME = largest(53, 1, 64)[0]
COMPOSITE = next(n for n in range(2**53 - 63, 0, -64) if not is_prime(n))
FAR_BELOW = next(n for n in range(5 * 2**50 + 1, 2**53, 64) if is_prime(n))


@pytest.mark.parametrize(
    ("primes", "degree"),
    [
        ((), 32),
        ((PRIME, PRIME), 32),
        ((PRIME,), 24),
        ((PRIME,), 8),
        ((PRIME,), 2**20),
        ((193,), 32),
        (largest(63, 1, 64), 32),
        ((2**53 - 111,), 32),
        ((COMPOSITE,), 32),
        ((FAR_BELOW,), 32),
    ],
)
def test_9001_what_is_no_ring_is_our_bug(primes: tuple[int, ...], degree: int) -> None:
    assert Basis((PRIME,), 32).shape == (1, 32)
    with pytest.raises(InternalError) as caught:
        Basis(primes, degree)
    assert caught.value.code == 9001
