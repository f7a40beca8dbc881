"""Values of a few bits side by side in bytes: what Python's integers make of them, and nothing else is read."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.exact_numbers import refused

from cloister.linear._packed import pack, packed_bytes, residue_bits, unpack, unpack_residues
from cloister.linear._primes import FULL, KEPT, Basis

BITS = st.lists(st.integers(1, 64) | st.sampled_from((1, 8, 53, 62, 63, 64)), min_size=1, max_size=8)


def drawn(bits: list[int], count: int, seed: int) -> np.ndarray:
    generator = random.Random(seed)
    values = [[generator.choice((0, 2**n - 1, generator.getrandbits(n))) for _ in range(count)] for n in bits]
    return np.array(values, np.uint64).reshape(len(bits), count)


@given(bits=BITS, count=st.integers(0, 40), seed=st.integers(0, 10**6))
def test_a_row_follows_the_other_without_a_gap(bits: list[int], count: int, seed: int) -> None:
    rows = drawn(bits, count, seed)
    total, place = 0, 0
    for row, width in zip(rows.tolist(), bits, strict=True):
        for value in row:
            total |= value << place
            place += width
    data = pack(rows, bits)
    assert data == total.to_bytes(packed_bytes(bits, count), "little")
    assert (unpack(data, bits, count, party=1) == rows).all()


@given(bits=BITS, count=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_what_is_behind_the_last_value_is_refused(bits: list[int], count: int, seed: int) -> None:
    data = pack(drawn(bits, count, seed), bits)
    left = count * sum(bits) % 8
    for bit in range(left, 8) if left else ():
        refused(lambda bit=bit: unpack(data[:-1] + bytes([data[-1] | 1 << bit]), bits, count, party=1), 6903)
    for other in (data[:-1], data + b"\0", b""):
        refused(lambda other=other: unpack(other, bits, count, party=1), 6903)


def test_a_polynomial_takes_what_its_primes_have() -> None:
    assert sum(residue_bits(FULL)) == 522
    assert sum(residue_bits(KEPT)) == 212


@pytest.mark.parametrize("row", range(9))
def test_residues_are_below_their_prime(row: int) -> None:
    rows = np.zeros((9, 5), np.uint64)
    for value in (FULL.primes[row] - 1, FULL.primes[row]):
        rows[row, 3] = value
        data = pack(rows, residue_bits(FULL))
        if value < FULL.primes[row]:
            assert (unpack_residues(data, FULL, 5, party=1) == rows).all()
    refused(lambda: unpack_residues(data, FULL, 5, party=1), 6903)


def test_several_polynomials() -> None:
    basis = Basis(FULL.primes, 64)
    rows = drawn([17] * 27, 64, 3)
    data = pack(rows, residue_bits(basis) * 3)
    assert (unpack_residues(data, basis, 64, party=1, polynomials=3) == rows.reshape(3, 9, 64)).all()


def test_2911_other_shapes() -> None:
    refused(lambda: pack(np.zeros((2, 3), np.uint64), [1]), 2911)
    refused(lambda: pack(np.zeros((1, 3)), [1]), 2911)
    refused(lambda: pack(np.zeros(3, np.uint64), [1]), 2911)
