"""Integers of several words within a box: sums turned by powers of X, the box itself, and the way over the wire."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tests.exact_numbers import refused
from tests.linear_lattice import signed, words

from cloister.linear._boxes import add_turned, boxed_bits, from_box, is_within, masks, to_box
from cloister.linear._elements import P
from cloister.linear._packed import pack, unpack
from cloister.linear._streams import SecretStream

BOUNDS = (1, 21, 2**38 - 1, (2**38 - 1) * 6 * 21, 2**61, (2**38 - 1) * (P // 2), (2**38 - 1) * 19 * (P // 2))


def turned(x: list[int], exponent: int) -> list[int]:
    size = len(x)
    out = [0] * size
    for i, value in enumerate(x):
        place = (i + exponent) % (2 * size)
        out[place % size] = -value if place >= size else value
    return out


@pytest.mark.parametrize("exponent", [0, 1, 9, 15, 16, 17, 31])
@pytest.mark.parametrize("given", [1, 3, 4])
def test_sums_of_turned_polynomials(exponent: int, given: int) -> None:
    generator, end = random.Random(exponent), min(1 << 64 * given - 1, 1 << 254)
    x = [generator.choice((0, -1, 1, end - 1, -end, generator.randrange(-end, end))) for _ in range(16)]
    before = [generator.choice((0, -1, generator.randrange(-(2**254), 2**254))) for _ in range(16)]
    total = words(before, 4)
    add_turned(total, words(x, given), exponent)
    assert signed(total) == [a + b for a, b in zip(before, turned(x, exponent), strict=True)]


@pytest.mark.parametrize("bound", BOUNDS)
def test_both_ends_of_a_box_are_within(bound: int) -> None:
    count = (2 * bound).bit_length() // 64 + 1
    end = 1 << 64 * count - 1
    inside = [0, 1, -1, bound, -bound]
    outside = [bound + 1, -bound - 1, 2 * bound + 1, -2 * bound - 1, end - 1 - bound, bound - end]
    assert is_within(words(inside, count), bound)
    for value in outside:
        if -end <= value < end:
            assert not is_within(words([*inside, value, 0], count), bound), value


@pytest.mark.parametrize("bound", BOUNDS)
def test_the_wire_has_as_many_bits_as_the_box(bound: int) -> None:
    generator = random.Random(bound)
    values = [-bound, bound, 0, *(generator.randint(-bound, bound) for _ in range(29))]
    x = words(values, (2 * bound).bit_length() // 64 + 1)
    bits = boxed_bits(bound)
    assert sum(bits) == (2 * bound).bit_length()
    assert unpack(pack(to_box(x, bound), bits), bits, 32, party=0).shape == (len(bits), 32)
    assert signed(from_box(unpack(pack(to_box(x, bound), bits), bits, 32, party=0), bound)) == values


@pytest.mark.parametrize("bound", BOUNDS)
def test_the_greatest_on_the_wire_is_not_within(bound: int) -> None:
    bits = boxed_bits(bound)
    rows = np.array([[2**many - 1] for many in bits], np.uint64)
    most = (1 << sum(bits)) - 1
    found = from_box(rows, bound)
    assert signed(found) == [most - bound]
    assert is_within(found, bound) == (most == 2 * bound)


@pytest.mark.parametrize("bound", BOUNDS)
def test_masks_fill_their_box(bound: int) -> None:
    drawn = masks(SecretStream("test"), 3, 50, bound)
    values = [value for polynomial in drawn for value in signed(polynomial)]
    assert len(values) == 150
    assert max(map(abs, values)) <= bound
    assert bound < 2 or max(values) > bound // 2 > -bound // 2 > min(values)


def test_2912_a_box_without_room_for_a_sum() -> None:
    refused(lambda: masks(SecretStream("test"), 1, 4, 2**63 - 1), 2912)


def test_2911_other_shapes() -> None:
    x = words([1, 2, 3], 2)
    for act in (
        lambda: add_turned(x, words([1, 2], 2), 0),
        lambda: add_turned(x, words([1, 2, 3], 3), 0),
        lambda: add_turned(x, x[:, :0], 0),
        lambda: add_turned(x, x, 6),
        lambda: add_turned(x, x, -1),
        lambda: add_turned(x, np.zeros((3, 2)), 0),
        lambda: add_turned(x, x[None], 0),
    ):
        refused(act, 2911)
