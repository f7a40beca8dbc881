"""Numbers that are signed: exact, as text, in one form each, and rounded only towards *more* privacy spent.

A float in signed JSON reads differently in another language, and ``0.1`` is not a tenth. Here every quantity is an
exact rational; what must become a float for an accountant is rounded in the direction that makes ε larger.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Annotated

from pydantic import AfterValidator

from cloister.errors import InputError

__all__ = [
    "Amount",
    "Ratio",
    "amount",
    "exact",
    "float_down",
    "float_up",
    "ratio",
    "round_down",
    "round_up",
    "significant_up",
]

_MAX_TEXT = 96  # checked before any digit is read: a longer one says nothing about privacy
_MAX_EXPONENT = 60
_MAX_PLACES = 64
_DECIMAL = re.compile(r"([0-9]{1,24})(?:\.([0-9]{1,64}))?(?:[eE]([+-]?[0-9]{1,2}))?")
_FRACTION = re.compile(r"([0-9]{1,20})/([0-9]{1,20})")


def exact(text: str, *, what: str = "a number") -> Fraction:
    """The exact value of a non-negative decimal (``0.5``, ``1e-5``) or fraction (``64/50000``).

    Raises:
        InputError: 2801 when ``text`` is something else, or longer than 96 characters.
    """
    if len(text) > _MAX_TEXT:
        raise InputError(2801, f"{what} is too long", expected=f"at most {_MAX_TEXT} characters", got=len(text))
    found = _FRACTION.fullmatch(text)
    if found is not None and int(found[2]) != 0:
        return Fraction(int(found[1]), int(found[2]))
    found = _DECIMAL.fullmatch(text)
    if found is None or abs(int(found[3] or 0)) > _MAX_EXPONENT:
        raise InputError(2801, f"{what} is not a non-negative decimal or fraction", got=repr(text))
    fraction = found[2] or ""
    return Fraction(int(found[1] + fraction)) * Fraction(10) ** (int(found[3] or 0) - len(fraction))


def amount(value: str | Fraction, *, what: str = "a number") -> str:
    """The one decimal text of a value: no exponent, no zero that says nothing.

    >>> amount("1.50e-3")
    '0.0015'

    Raises:
        InputError: 2801 when the value has no decimal text of at most 24 digits before and 64 after the point.
    """
    number = exact(value, what=what) if isinstance(value, str) else value
    scaled = number * 10**_MAX_PLACES
    if scaled.denominator != 1 or number < 0 or number >= 10**24:
        raise InputError(2801, f"{what} has no decimal text", expected="24 digits before and 64 after the point")
    return _text(scaled.numerator, _MAX_PLACES)


def ratio(value: str | Fraction, *, what: str = "a probability") -> str:
    """The one text of a probability above 0 and at most 1: a fraction in lowest terms.

    >>> ratio("64/50000"), ratio("0.5"), ratio("1")
    ('4/3125', '1/2', '1/1')

    Raises:
        InputError: 2801 when it is no such probability, or its terms have more than 20 digits.
    """
    number = exact(value, what=what) if isinstance(value, str) else value
    if not 0 < number <= 1 or number.denominator >= 10**20:
        raise InputError(
            2801, f"{what} is not a probability", expected="above 0, at most 1", got=str(value)[:_MAX_TEXT]
        )
    return f"{number.numerator}/{number.denominator}"


def _is_amount(text: str) -> str:
    if amount(text) != text:
        raise InputError(2801, "a decimal is not in its one form", expected=amount(text), got=repr(text))
    return text


def _is_ratio(text: str) -> str:
    if ratio(text) != text:
        raise InputError(2801, "a probability is not in its one form", expected=ratio(text), got=repr(text))
    return text


Amount = Annotated[str, AfterValidator(_is_amount)]
"""A non-negative decimal in its one text."""

Ratio = Annotated[str, AfterValidator(_is_ratio)]
"""A probability above 0 as a fraction in lowest terms."""


def round_up(value: Fraction | float, places: int) -> str:
    """The smallest decimal with ``places`` digits after the point that is not below ``value``."""
    return _text(math.ceil(Fraction(value) * 10**places), places)


def round_down(value: Fraction | float, places: int) -> str:
    """The largest decimal with ``places`` digits after the point that is not above ``value``."""
    return _text(math.floor(Fraction(value) * 10**places), places)


def significant_up(value: Fraction | float, digits: int = 4) -> str:
    """``value`` rounded up to ``digits`` significant digits, and to no more than 64 after the point.

    >>> significant_up(1.00001e-7)
    '0.0000001001'
    """
    number = Fraction(value)
    if number == 0:
        return "0"
    magnitude = math.floor(math.log10(number.numerator) - math.log10(number.denominator))
    return round_up(number, min(_MAX_PLACES, max(0, digits - 1 - magnitude)))


def float_up(value: Fraction) -> float:
    """The smallest float that is not below ``value``; infinity beyond the largest."""
    try:
        near = float(value)
    except OverflowError:
        return math.inf
    return near if Fraction(near) >= value else math.nextafter(near, math.inf)


def float_down(value: Fraction) -> float:
    """The largest float that is not above ``value``, which is one that floats reach."""
    near = float(value)
    return near if Fraction(near) <= value else math.nextafter(near, 0.0)


def _text(scaled: int, places: int) -> str:
    whole, part = divmod(scaled, 10**places)
    digits = str(part).zfill(places).rstrip("0") if places else ""
    return f"{whole}.{digits}" if digits else str(whole)
