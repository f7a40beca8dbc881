"""The discrete Gaussian over the integers, of any huge σ, from one small table, in the same time for every draw.

``D_σ`` gives the integer x the probability ``exp(-x²/2σ²) / Σ_y exp(-y²/2σ²)``. For σ = 2^24 no table holds it. But
of three independent draws from a narrow one, with ``s² = σ² / (1 + k² + k⁴)``,

    x = (a·k + b)·k + c

is ``D_σ`` but for 2^-80, and a table of ``D_s`` has 4096 cells: a size, and a sign by a bit of its own, so that x and
-x are equally likely exactly.

*Why* (P. Micciancio and M. Walter, "Gaussian Sampling over the Integers: Efficient, Generic, Constant-Time", CRYPTO
2017, section 4; T. Pöppelmann, L. Ducas, T. Güneysu, CHES 2014, lemma 3; here with all constants). For independent c
from ``D_s`` and w from ``D_t``, and σ² = s² + k²t²,

    P(kw + c = x)  ∝  Σ_w exp(-(x - kw)²/2s² - w²/2t²)  =  exp(-x²/2σ²) · G(k t² x/σ²),
    G(v) = Σ_w exp(-(w - v)²/2τ²),      τ = s t/σ,

by completing the square in w. By Poisson's summation, G(v) = τ√(2π) · (1 + 2 Σ_{m≥1} exp(-2π²τ²m²) cos 2πmv), so
G is constant within a factor ``1 ± ε``, with ``ε = 2 Σ_{m≥1} exp(-2π²τ²m²)``. Hence kw + c is ``D_σ`` reweighted by
g in [1-ε, 1+ε], and its total variation distance from it is ``½ E|g/E g - 1| ≤ ε/(1-ε)``: this is the smoothing
condition, τ above 1.7 here. It is used twice, for ``w = a·k + b`` with ``t = s`` and then for x with
``t² = s²(1 + k²)``; both times ``τ² ≥ s²/(1 + k²)``. Distances add up, and none grows under addition and scaling:

    distance = 3 · (the table's) + 2 · ε/(1-ε).

The table's is counted over all its sizes (:func:`_rounded`), with the mass of the tail that it does not hold.

What a draw takes: four words of the stream, 32 bytes, always. Three are thresholds, and each level has its own; the
fourth is cut in three fields of 21 bits, so no two levels share a bit.

What is constant in time: no branch and no loop depends on a secret, no draw is repeated. What is not: which cell of the
table is read depends on the secret. The table has 48 KiB and lies in the core's own caches; who can watch single cache
lines of this core learns some bits of the cell's number.

>>> noise = discrete_gaussian(Fraction(2**24))
>>> noise.factor, noise.table.bits, noise.distance < Fraction(1, 2**73)
(214, 12, True)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, ROUND_CEILING, Context, Decimal
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cloister._compiled import compiled
from cloister.errors import InputError
from cloister.privacy._alias import RESOLUTION_BITS, AliasTable, alias_table
from cloister.privacy._draws import BESIDE, add_draws

__all__ = ["DRAW_BYTES", "SIGMAS", "WORDS", "DiscreteGaussian", "discrete_gaussian"]

WORDS = 4
"""Of 64 bits that a draw takes."""

DRAW_BYTES = 8 * WORDS

SIGMAS = (Fraction(1 << 8), Fraction(1 << 34))
"""The least and the greatest σ."""

_SMOOTHING = Fraction(17, 10)  # τ: 2 exp(-2π²·1.7²) is 2^-81
_REACH = 11  # standard deviations that the table holds: beyond are 2^-91
_DIGITS = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN)
_ERROR = Fraction(1, 10**52)  # above every error of 60 digits over a table of 2^16 sizes
_TWO_PI_SQUARED = Decimal("19.739208802178717237668981999")  # below 2π²


@dataclass(frozen=True, slots=True, eq=False)
class DiscreteGaussian:
    """A sampler of ``D_σ``. Public; what it is given and what it makes is secret.

    Attributes:
        sigma: σ, exactly.
        factor: k.
        table: Of the sizes of ``D_s``.
        distance: At most so far is one draw from ``D_σ``, in total variation. For n draws it is n times that.
        most: The greatest size of a draw.
    """

    sigma: Fraction
    factor: int
    table: AliasTable
    distance: Fraction
    most: int

    def add(self, words: NDArray[np.uint64], total: NDArray[np.int64]) -> None:
        """Adds draws to integers, in place; gives up the GIL.

        Args:
            words: ``(4 n,)``: uniform, and never used before.
            total: ``(n,)``.
        """
        if words.shape != (WORDS * total.size,) or total.ndim != 1:
            raise InputError(2810, "not four words a draw", expected=WORDS * total.size, got=words.shape)
        if not (words.flags.c_contiguous and total.flags.c_contiguous):
            raise InputError(2810, "words and integers have to lie side by side")
        rest = total.size % BESIDE
        self._add(words, total, total.size - rest)
        if rest:  # by the same code: of one draw by itself, compilers make branches
            last, sums = np.zeros(WORDS * BESIDE, np.uint64), np.zeros(BESIDE, np.int64)
            last[: WORDS * rest] = words[-WORDS * rest :]
            self._add(last, sums, BESIDE)
            total[-rest:] += sums[:rest]

    def _add(self, words: NDArray[np.uint64], total: NDArray[np.int64], count: int) -> None:
        addresses = (array.ctypes.data for array in (words, self.table.high, self.table.packed, total))
        _add_beside(*addresses, self.table.bits, self.factor, count)


@lru_cache(maxsize=16)
def discrete_gaussian(sigma: Fraction) -> DiscreteGaussian:
    """The sampler for one σ; takes a tenth of a second the first time.

    Args:
        sigma: From 2^8 to 2^34, any fraction.

    Raises:
        InputError: 2810 when it is outside.
    """
    if not SIGMAS[0] <= sigma <= SIGMAS[1]:
        raise InputError(2810, "no table for this noise", expected="a σ from 2^8 to 2^34", got=float(sigma))
    factor = _factor(sigma)
    variance = sigma**2 / (1 + factor**2 + factor**4)
    sizes = _REACH * (math.isqrt(math.ceil(variance)) + 1)
    bits = (sizes - 1).bit_length()
    weights, distance = _rounded(variance, 1 << bits)
    epsilon = _epsilon(variance / (1 + factor**2))
    largest = max(size for size, weight in enumerate(weights) if weight)
    return DiscreteGaussian(
        sigma,
        factor,
        alias_table(weights),
        3 * distance + 2 * epsilon / (1 - epsilon),
        largest * (1 + factor + factor**2),
    )


def _factor(sigma: Fraction) -> int:
    """The greatest k that leaves ``s² ≥ 1.7² (1 + k²)``: the narrowest table that is smooth enough."""

    def smooth(k: int) -> bool:
        return sigma**2 >= _SMOOTHING**2 * (1 + k**2) * (1 + k**2 + k**4)

    k = math.floor(float(sigma / _SMOOTHING) ** (1 / 3)) + 1
    while not smooth(k):
        k -= 1
    return k


def _rounded(variance: Fraction, sizes: int) -> tuple[list[int], Fraction]:
    """Weights of the sizes 0, 1, … that sum to 2^84, and their distance from those of ``D_s``.

    The distance is ½ Σ |weight/2^84 - p| over the sizes here, p being normalised without the tail, plus the tail's
    mass. Each term is exact for exponentials of 60 digits; what those leave open is below ``_ERROR``.
    """
    digits = _DIGITS
    slope = digits.divide(Decimal(-variance.denominator), Decimal(2 * variance.numerator))
    masses = [digits.exp(digits.multiply(slope, Decimal(size * size))) for size in range(sizes + 2)]
    unit = Decimal(10) ** 60
    scaled = [int(digits.multiply(mass, unit)) * (2 if size else 1) for size, mass in enumerate(masses)]
    inside, total = scaled[:sizes], sum(scaled[:sizes])
    whole = 1 << RESOLUTION_BITS
    divided = [divmod(mass * whole, total) for mass in inside]
    weights = [quotient for quotient, _ in divided]
    by_remainder = sorted(range(sizes), key=lambda size: (-divided[size][1], size))
    for size in by_remainder[: whole - sum(weights)]:
        weights[size] += 1
    off = sum(abs(weight * total - mass * whole) for weight, mass in zip(weights, inside, strict=True))
    # the tail is below a geometric series: the ratio of neighbours falls
    tail = Fraction(scaled[sizes] + 1, total) / (1 - Fraction(scaled[sizes + 1] + 1, scaled[sizes] + 2))
    return weights, Fraction(off, 2 * whole * total) + tail + _ERROR


def _epsilon(tau_squared: Fraction) -> Fraction:
    """At least ``2 Σ_{m≥1} q^(m²)`` with ``q = exp(-2π²τ²)``: at most ``2q/(1 - q³)``."""
    exponent = _DIGITS.multiply(_TWO_PI_SQUARED, _DIGITS.divide(tau_squared.numerator, tau_squared.denominator))
    q = Fraction(_DIGITS.exp(-exponent).quantize(Decimal("1e-50"), ROUND_CEILING, _DIGITS)) + _ERROR
    return 2 * q / (1 - q**3)


@compiled
def _add_beside(words, high, packed, total, bits, factor, count):  # noqa: ANN001, ANN202
    """``total[i] += x``, of addresses, for a multiple of ``BESIDE`` draws."""
    for i in range(0, count, BESIDE):
        add_draws(words + 8 * WORDS * i, high, packed, bits, factor, total + 8 * i)
