"""Numbers: exact, in one form, bounded before they are read, rounded towards more spent."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import InputError
from cloister.ledger import amount, exact, ratio
from cloister.ledger._numbers import float_down, float_up, round_down, round_up, significant_up

fractions = st.fractions(min_value=0, max_value=10**9, max_denominator=10**12)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", Fraction(0)),
        ("1e-5", Fraction(1, 100_000)),
        ("0.1", Fraction(1, 10)),
        ("64/50000", Fraction(4, 3125)),
        ("2.50E+1", Fraction(25)),
        ("18446744073709551615/18446744073709551616", 1 - Fraction(1, 2**64)),
    ],
)
def test_a_number_is_read_exactly(text: str, value: Fraction) -> None:
    assert exact(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", " 1", "1 ", "+1", "-1", "-0", "nan", "inf", "Infinity", "1e999", "1e-61", "1e", ".5", "5.", "1_000"),
        *("0x10", "1/0", "1/2/3", "1/-2", "1,5", "١", "²", "1\n", "1" * 25, "0." + "1" * 65, "1/" + "1" * 21),
        *("9" * 97, "1e1e1"),
    ],
)
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        exact(text)
    assert caught.value.code == 2801


def test_a_long_text_is_refused_before_it_is_read() -> None:
    with pytest.raises(InputError, match="too long") as caught:
        exact("1" * 10_000_000)
    assert caught.value.code == 2801
    assert len(str(caught.value.as_json())) < 1000


@pytest.mark.parametrize("value", ["0/3", "3/2", "1.5", "0", Fraction(1, 10**20)])
def test_what_is_no_probability_is_refused(value: str | Fraction) -> None:
    with pytest.raises(InputError) as caught:
        ratio(value)
    assert caught.value.code == 2801


@pytest.mark.parametrize("value", [Fraction(1, 3), Fraction(1, 2**65), Fraction(10**24), Fraction(-1)])
def test_what_has_no_decimal_text_is_refused(value: Fraction) -> None:
    with pytest.raises(InputError) as caught:
        amount(value)
    assert caught.value.code == 2801


@given(st.integers(0, 10**30), st.integers(0, 20))
def test_one_value_has_one_text(digits: int, places: int) -> None:
    value = Fraction(digits, 10**places)
    if value < 10**24:
        text = amount(value)
        assert exact(text) == value
        assert amount(text) == text
        assert text == "0" or not text.startswith("00")
        assert "." not in text or not text.endswith("0")


@given(fractions, st.integers(0, 12))
def test_decimals_are_rounded_outwards(value: Fraction, places: int) -> None:
    below, above = exact(round_down(value, places)), exact(round_up(value, places))
    assert below <= value <= above
    assert above - below in (0, Fraction(1, 10**places))


@given(fractions)
def test_significant_digits_are_rounded_up(value: Fraction) -> None:
    above = exact(significant_up(value))
    assert value <= above <= value * Fraction(1002, 1000) + Fraction(1, 10**60)


@given(st.fractions(min_value=0, max_value=10**40))
def test_floats_are_rounded_outwards_to_the_nearest(value: Fraction) -> None:
    below, above = float_down(value), float_up(value)
    assert Fraction(below) <= value <= Fraction(above)
    assert above in (below, math.nextafter(below, math.inf))


def test_a_value_beyond_floats_is_infinite_when_rounded_up() -> None:
    assert float_up(Fraction(10) ** 400) == math.inf
