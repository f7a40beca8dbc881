"""Shamir's scheme against FIPS 197's field, an independent oracle, and its two promises."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import CloisterError
from cloister.keys._shamir import combine, invert, multiply, split
from cloister.wire import Secret


def tables() -> tuple[list[int], dict[int, int]]:
    """Powers and logarithms of the generator 3: another way to the same field."""
    powers, value = [], 1
    for _ in range(255):
        powers.append(value)
        value ^= (value << 1) ^ (0x11B if value & 0x80 else 0)
    return powers, {power: number for number, power in enumerate(powers)}


def test_products_are_those_of_fips_197() -> None:
    assert multiply(0x57, 0x83) == 0xC1
    assert multiply(0x57, 0x13) == 0xFE
    assert invert(0x53) == 0xCA


def test_products_and_inverses_agree_with_logarithms() -> None:
    powers, logs = tables()
    for a in range(256):
        for b in range(256):
            expected = powers[(logs[a] + logs[b]) % 255] if a and b else 0
            assert multiply(a, b) == expected
    assert all(multiply(a, invert(a)) == 1 for a in range(1, 256))


@given(st.binary(min_size=1, max_size=40), st.integers(1, 6), st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_any_k_shares_give_the_secret(secret: bytes, threshold: int, more: int) -> None:
    shares = split(Secret(secret), threshold=threshold, count=threshold + more)
    for chosen in combinations(shares.items(), threshold):
        assert combine(dict(chosen)).reveal() == secret
    assert combine(shares).reveal() == secret


def test_fewer_shares_fit_every_secret() -> None:
    """For each value of one share of 2-of-n and each secret there is exactly one polynomial: the share says nothing."""
    for number in (1, 2, 255):
        for share in (0, 1, 77, 255):
            slopes = {secret: multiply(share ^ secret, invert(number)) for secret in range(256)}
            assert len(set(slopes.values())) == 256


def test_k_minus_one_shares_give_something_else() -> None:
    secret = Secret(bytes(32))
    shares = split(secret, threshold=3, count=5)
    assert not combine(dict(list(shares.items())[:2])).matches(secret)


def test_wrong_share_gives_something_else() -> None:
    secret = Secret(b"s" * 32)
    shares = split(secret, threshold=2, count=3)
    assert not combine({1: shares[1], 2: shares[3]}).matches(secret)


def test_shares_are_fresh_each_time() -> None:
    one, two = (split(Secret(b"s" * 32), threshold=2, count=2) for _ in range(2))
    assert not one[1].matches(two[1])


@pytest.mark.parametrize(("threshold", "count"), [(0, 3), (4, 3), (1, 256), (-1, -1)])
def test_impossible_thresholds(threshold: int, count: int) -> None:
    with pytest.raises(CloisterError) as raised:
        split(Secret(b"s"), threshold=threshold, count=count)
    assert raised.value.code == 2404


@pytest.mark.parametrize("shares", [{}, {0: b"a"}, {256: b"a"}, {1: b"a", 2: b"bb"}])
def test_shares_that_do_not_belong_together(shares: dict[int, bytes]) -> None:
    with pytest.raises(CloisterError) as raised:
        combine({number: Secret(share) for number, share in shares.items()})
    assert raised.value.code == 2404
