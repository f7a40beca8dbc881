"""How many records a Poisson sample has at most: the binomial's upper tail, in decimals of 60 digits, rounded up.

With n records, each in with probability q, the probability of more than c is ``Σ_{j>c} C(n,j) q^j (1-q)^(n-j)``. The
first term is a product of c factors, each next one follows by ``(n-j) q / ((j+1) (1-q))``; the terms are summed until
they no longer matter, and what is left is below a geometric series, since that ratio falls. So the result is an upper
bound, and nothing is estimated by a normal distribution.

>>> capacity(50_000, Fraction(1, 200), tail=Fraction(1, 2**50))
385
>>> float(overflow(3, Fraction(1, 2), 2))
0.125
"""

from __future__ import annotations

from decimal import MAX_EMAX, MIN_EMIN, ROUND_CEILING, Context, Decimal
from fractions import Fraction

__all__ = ["capacity", "overflow"]

_DIGITS = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN)
_MARGIN = Decimal("1.00000000000000000001")  # above all roundings: a few 10^6 of 10^-60
_LEAST = Fraction(1, 10**60)


def overflow(count: int, probability: Fraction, most: int) -> Fraction:
    """At least the probability that more than ``most`` of ``count`` are in, and hardly more than that.

    Args:
        count: n, 1 or more.
        probability: q, above 0 and at most 1.
        most: c, 0 or more.
    """
    if most >= count:
        return Fraction(0)
    if probability == 1:
        return Fraction(1)
    digits = _DIGITS
    odds = digits.divide(probability.numerator, probability.denominator - probability.numerator)
    term = _mass(count, probability, most + 1)
    total = Decimal(0)
    number = most + 1
    while number < count:
        total = digits.add(total, term)
        ratio = digits.divide(digits.multiply(odds, Decimal(count - number)), Decimal(number + 1))
        if ratio < 1:
            rest = digits.divide(digits.multiply(term, ratio), digits.subtract(Decimal(1), ratio))
            if rest <= digits.multiply(total, Decimal("1e-25")):
                term = rest
                break
        term = digits.multiply(term, ratio)
        number += 1
    total = digits.multiply(digits.add(total, term), _MARGIN)
    if total < Decimal("1e-60"):
        return _LEAST  # as a fraction it would have as many digits as there are records
    return min(Fraction(total.quantize(Decimal("1e-80"), ROUND_CEILING, Context(prec=90))), Fraction(1))


def capacity(count: int, probability: Fraction, *, tail: Fraction) -> int:
    """The smallest c that is exceeded with a probability of at most ``tail``.

    Args:
        count: n, 1 or more.
        probability: q, above 0 and at most 1.
        tail: 10^-60 or more.
    """
    low, high = -1, count  # exceeded too often; never
    step = 1
    mean = int(count * probability)
    while mean + step < count:  # doubles from the mean on, since a bound far out costs more to compute
        if overflow(count, probability, mean + step) <= tail:
            high = mean + step
            break
        low = mean + step
        step *= 2
    while high - low > 1:
        middle = (low + high) // 2
        if overflow(count, probability, middle) <= tail:
            high = middle
        else:
            low = middle
    return high


def _mass(count: int, probability: Fraction, number: int) -> Decimal:
    """``C(n, j) q^j (1-q)^(n-j)``."""
    digits = _DIGITS
    q = digits.divide(probability.numerator, probability.denominator)
    result = digits.power(digits.subtract(Decimal(1), q), Decimal(count - number))
    for j in range(number):
        factor = digits.divide(Decimal(count - j), Decimal(j + 1))
        result = digits.multiply(result, digits.multiply(factor, q))
    return result
