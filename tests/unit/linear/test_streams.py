"""Streams: the bytes that the standards say; draws against big integers, and against their distributions."""

from __future__ import annotations

import copy
import hashlib
import hmac
import math
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats
from tests.exact_numbers import refused

from cloister.linear import _streams as streams
from cloister.linear._field import P, to_ints
from cloister.linear._primes import FULL, Basis, largest
from cloister.linear._streams import PublicStream, SecretStream

SEED = bytes(range(32))
LIKELY = 1e-9  # of a chi-square test: once in a billion runs it fails by chance


def keystream(seed: bytes, label: str, size: int) -> bytes:
    """HKDF by its definition (RFC 5869), and AES on counted blocks, one by one."""
    extracted = hmac.digest(bytes(32), seed, hashlib.sha256)
    key = hmac.digest(extracted, label.encode() + b"\x01", hashlib.sha256)
    cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305  the mode is made here
    return b"".join(cipher.update(block.to_bytes(16, "big")) for block in range(-(-size // 16)))[:size]


class Given(PublicStream):
    """A stream of bytes that a test chose."""

    __slots__ = ("_left",)

    def __init__(self, data: bytes) -> None:
        super().__init__(SEED, "given")
        self._left = data

    def draw(self, size_bytes: int) -> np.ndarray:
        assert size_bytes <= len(self._left)
        out, self._left = self._left[:size_bytes], self._left[size_bytes:]
        return np.frombuffer(out, np.uint8).copy()


# ---- bytes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["", "a", "flood/3"])
def test_bytes_are_those_of_the_standards(label: str) -> None:
    size = 3 * (1 << 16) + 1000
    assert PublicStream(SEED, label).draw(size).tobytes() == keystream(SEED, label, size)


def test_draws_go_on_where_the_last_one_ended() -> None:
    stream, sizes = PublicStream(SEED, "x"), (1, 0, 22, 16, 65536, 7, 65537, 100)
    assert b"".join(stream.draw(size).tobytes() for size in sizes) == keystream(SEED, "x", sum(sizes))
    words = PublicStream(SEED, "x").words(5)
    assert words.tolist() == [int.from_bytes(keystream(SEED, "x", 40)[8 * k :][:8], "little") for k in range(5)]


def test_streams_differ_by_seed_and_by_label() -> None:
    made = {PublicStream(seed, label).draw(16).tobytes() for seed in (SEED, SEED[::-1]) for label in ("a", "b", "ab")}
    made |= {SecretStream("a").draw(16).tobytes() for _ in range(4)}
    assert len(made) == 10


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_2912_another_seed_is_refused(size: int) -> None:
    refused(lambda: PublicStream(bytes(size), "a"), 2912)


@pytest.mark.parametrize("size", [-1, (1 << 30) + 1])
def test_2912_too_much_at_once_is_refused(size: int) -> None:
    refused(lambda: PublicStream(SEED, "a").draw(size), 2912)
    assert PublicStream(SEED, "a").draw(0).size == 0


@pytest.mark.parametrize("stream", [SecretStream("mask"), PublicStream(SEED, "mask")])
def test_a_stream_is_neither_shown_nor_copied_nor_compared(stream: streams.Stream) -> None:
    assert repr(stream) == f"<{type(stream).__name__} 'mask'>"
    for act in (pickle.dumps, copy.copy, copy.deepcopy, hash, lambda x: x == x):
        with pytest.raises(TypeError):
            act(stream)


# ---- field elements --------------------------------------------------------------------------------------


def test_elements_are_184_bits_less_p() -> None:
    edges = [0, 1, P - 1, P, P + 1, 2**184 - 1, 2**64 - 1]
    data = b"".join(value.to_bytes(23, "little") for value in edges)
    assert to_ints(streams.elements(Given(data), 7)).tolist() == [value % P for value in edges]
    drawn = to_ints(streams.elements(PublicStream(SEED, "f"), 2, 5)).ravel().tolist()
    data = keystream(SEED, "f", 230)
    assert drawn == [int.from_bytes(data[23 * k :][:23], "little") % P for k in range(10)]


# ---- small ones ------------------------------------------------------------------------------------------


def test_ternary_is_uniform() -> None:
    drawn = streams.ternary(SecretStream("t"), 30, 1000)
    assert drawn.dtype == np.int8
    assert drawn.shape == (30, 1000)
    counts = np.bincount(drawn.ravel() + 1)
    assert counts.size == 3
    assert stats.chisquare(counts).pvalue > LIKELY


def test_ternary_is_a_third_of_the_bits_each() -> None:
    whole = 1 << 192
    ends = [0, whole // 3, whole // 3 + 1, 2 * whole // 3, 2 * whole // 3 + 1, whole - 1]
    data = b"".join(value.to_bytes(24, "little") for value in ends)
    assert streams.ternary(Given(data), 6).tolist() == [-1, -1, 0, 0, 1, 1]


def test_the_binomial_is_that_of_42_coins() -> None:
    drawn = streams.binomial(SecretStream("e"), 50_000)
    assert drawn.dtype == np.int8
    assert np.abs(drawn).max() <= 21
    values = np.arange(-21, 22)
    masses = np.array([math.comb(42, int(value) + 21) / 2**42 for value in values])
    often = masses * drawn.size > 10
    counts = np.bincount(drawn.astype(int) + 21, minlength=43)
    seen = np.append(counts[often], counts[~often].sum())
    assert stats.chisquare(seen, np.append(masses[often], masses[~often].sum()) * drawn.size).pvalue > LIKELY


def test_the_binomial_counts_ones() -> None:
    words = [0, 2**42 - 1, 2**64 - 1, 2**64 - 2**42, *(1 << k for k in range(64)), 0x5555555555555555]
    data = b"".join(word.to_bytes(8, "little") for word in words)
    assert streams.binomial(Given(data), len(words)).tolist() == [(word % 2**42).bit_count() - 21 for word in words]


# ---- boxes -----------------------------------------------------------------------------------------------

BOXES = [(0, 0), (-1, 1), (5, 9), (-9, -5), (0, 2**64 - 1), (0, 2**64), (-(2**63), 2**63 - 1), (-(2**63), 2**63)]
BOXES += [(-(2**327), 2**327 - 1), (-(P // 2) << 38, (P // 2) << 38), (-(2**509), 2**509), (-(2**192), -1)]


def integers(words: np.ndarray) -> list[int]:
    """Of two's complement."""
    width = 64 * words.shape[1]
    values = [sum(int(word) << 64 * k for k, word in enumerate(row)) for row in words]
    return [value - (1 << width) if value >> width - 1 else value for value in values]


@pytest.mark.parametrize(("least", "most"), BOXES)
def test_a_box_is_a_part_of_the_bits_each(least: int, most: int) -> None:
    size = most - least + 1
    bits = 64 * (-(-size.bit_length() // 64) + 2)
    drawn = [
        0,
        1,
        (1 << bits) - 1,
        1 << bits - 1,
        *(int.from_bytes(keystream(SEED, str(k), bits // 8)) for k in range(50)),
    ]
    data = b"".join(value.to_bytes(bits // 8, "little") for value in drawn)
    made = integers(streams.box(Given(data), len(drawn), least, most))
    assert made == [least + (value * size >> bits) for value in drawn]
    assert (made[0], made[2]) == (least, most)


@pytest.mark.parametrize(("least", "most"), [(-3, 3), (-(2**200), 2**200), (-5 * 2**60, 2 * 2**60)])
def test_a_box_is_uniform(least: int, most: int) -> None:
    made = integers(streams.box(SecretStream("b"), 7000, least, most))
    cells = [(value - least) * 7 // (most - least + 1) for value in made]
    assert stats.chisquare(np.bincount(cells, minlength=7)).pvalue > LIKELY


@pytest.mark.parametrize(("count", "least", "most"), [(1, 1, 0), (1, -(2**510), 0), (1, 0, 2**510), (-1, 0, 1)])
def test_2912_other_boxes_are_refused(count: int, least: int, most: int) -> None:
    refused(lambda: streams.box(SecretStream("b"), count, least, most), 2912)


def test_2912_negative_sizes_are_refused() -> None:
    for act in (streams.elements, streams.ternary, streams.binomial):
        refused(lambda act=act: act(SecretStream("n"), -1, -1), 2912)


# ---- residues --------------------------------------------------------------------------------------------


def test_residues_are_the_low_bits_of_words() -> None:
    basis = Basis(largest(53, 1, 32) + largest(62, 2, 32), 16)
    data = keystream(SEED, "a", 8 * 48)
    words = [int.from_bytes(data[8 * k :][:8], "little") for k in range(48)]
    expected = [[word % (1 << q.bit_length()) for word in words[16 * row :][:16]] for row, q in enumerate(basis.primes)]
    assert streams.residues(PublicStream(SEED, "a"), basis).tolist() == expected


def test_words_that_are_no_residues_are_passed_over() -> None:
    (q,) = largest(17, 1, 32)
    words = [q, q - 1, 2**17 - 1, *range(14), 5 << 17, q + 1, 77]
    data = b"".join(word.to_bytes(8, "little") for word in words)
    made = streams.residues(Given(data), Basis((q,), 16))
    assert made.tolist() == [[q - 1, *range(14), 0]]


def test_residues_are_below_their_primes_and_fill_them() -> None:
    made = streams.residues(PublicStream(SEED, "a"), FULL)
    for row, q in zip(made, FULL.primes, strict=True):
        assert int(row.max()) < q
        cells = np.bincount((row >> np.uint64(q.bit_length() - 4)).astype(int), minlength=16)
        assert stats.chisquare(cells).pvalue > LIKELY
    assert len({row[:4].tobytes() for row in made}) == 9
