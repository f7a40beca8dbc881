"""The primes of the ciphertexts' modulus q, and what a modulus by such primes is.

The product q is of nine primes: four of 53 bits, which are q′, and five of 62 bits, which switching takes off. Each is
1 modulo 65536, so that there are roots of unity for polynomials of degree N = 32768. They are the greatest such primes
below 2^53 and below 2^62, so whoever looks again finds the same.

>>> largest(53, 4, 65536) == KEPT.primes
True
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cloister.errors import InternalError

__all__ = ["DEGREE", "DROPPED", "FULL", "KEPT", "WIDEST_BITS", "Basis", "is_prime", "largest"]

DEGREE = 32768
"""N: coefficients of a polynomial."""

WIDEST_BITS = 62
"""Of a prime, so that four times one still fits a word."""

_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)  # decide every number below 3.18e23


@dataclass(frozen=True, slots=True)
class Basis:
    """The ring ``Z_q[X]/(X^N + 1)`` for a product q of primes, each of which is 1 modulo 2N.

    Attributes:
        primes: Different ones, of 17 to 62 bits, less than 2^32 and less than an eighth below the power of two.
        degree: N, a power of two from 16.
    """

    primes: tuple[int, ...]
    degree: int = DEGREE

    def __post_init__(self) -> None:
        size = self.degree.bit_count() == 1 and self.degree >= 16
        fits = all(q % (2 * self.degree) == 1 and _is_near(q) and is_prime(q) for q in self.primes)
        if not (size and fits and len(set(self.primes)) == len(self.primes) > 0):
            raise InternalError(9001, "not the primes of a ring of polynomials")

    @property
    def modulus(self) -> int:
        """The product q."""
        return math.prod(self.primes)

    @property
    def shape(self) -> tuple[int, int]:
        """Of a polynomial's residues: primes and coefficients."""
        return len(self.primes), self.degree


def _is_near(q: int) -> bool:
    bits = q.bit_length()
    return 17 <= bits <= WIDEST_BITS and (1 << bits) - q < min(1 << 32, 1 << bits - 3)


def is_prime(n: int) -> bool:
    """Whether n, below 2^64, is prime: Miller and Rabin's test, for witnesses that leave no doubt up to there."""
    if n < 2 or any(n % witness == 0 for witness in _WITNESSES):
        return n in _WITNESSES
    twos = (n - 1 & 1 - n).bit_length() - 1
    return all(_witnessed(pow(witness, n - 1 >> twos, n), n, twos) for witness in _WITNESSES)


def _witnessed(power: int, n: int, twos: int) -> bool:
    if power == 1:
        return True
    for _ in range(twos):
        if power == n - 1:
            return True
        power = power * power % n
    return False


def largest(bits: int, count: int, step: int) -> tuple[int, ...]:
    """The greatest primes below ``2^bits`` that are 1 modulo ``step``, a power of two; the greatest first."""
    found: list[int] = []
    candidate = (1 << bits) + 1
    while len(found) < count:
        candidate -= step
        if is_prime(candidate):
            found.append(candidate)
    return tuple(found)


KEPT = Basis(
    (
        9_007_199_252_840_449,
        9_007_199_252_119_553,
        9_007_199_251_660_801,
        9_007_199_250_874_369,
    )
)
"""Of q′: what an answer is sent in."""

DROPPED = Basis(
    (
        4_611_686_018_427_322_369,
        4_611_686_018_425_815_041,
        4_611_686_018_423_390_209,
        4_611_686_018_423_062_529,
        4_611_686_018_422_669_313,
    )
)
"""What switching takes off."""

FULL = Basis(KEPT.primes + DROPPED.primes)
"""Of q."""
