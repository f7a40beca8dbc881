"""Sums of int8 entries weighted by elements: against plain integers, at every length, and at the extremes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.ring._contractions import dot_rows, sum_rows
from cloister.ring._field import P, uniform

SIZES = st.sampled_from((1, 2, 3, 4, 5, 8, 9, 63, 64, 65, 130, 1023, 1025))
FEW = st.sampled_from((1, 2, 3, 4, 5, 7))


def entries(shape: tuple[int, ...], seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    values = generator.integers(-128, 128, shape, dtype=np.int8)
    return np.where(generator.random(shape) < 0.2, np.int8(-128), values)


@given(FEW, FEW, SIZES, FEW, st.integers(0, 99))
def test_products_of_rows_and_vectors(groups: int, rows: int, length: int, vectors: int, seed: int) -> None:
    matrices, which = entries((groups, rows, length), seed), np.random.default_rng(seed).integers(0, 2, groups)
    chosen = uniform(2 * vectors * length).reshape(2, vectors, length)
    expected = np.stack(
        [m.astype(object) @ chosen[v].astype(object).T % P for m, v in zip(matrices, which, strict=True)]
    )
    assert (dot_rows(matrices, chosen, which).astype(object) == expected).all()


@given(FEW, SIZES, SIZES, st.integers(0, 99))
def test_sums_of_weighted_rows(groups: int, rows: int, length: int, seed: int) -> None:
    matrices, which = entries((groups, rows, length), seed), np.random.default_rng(seed).integers(0, 2, groups)
    factors = uniform(2 * rows).reshape(2, rows)
    expected = np.stack(
        [factors[v].astype(object) @ m.astype(object) % P for m, v in zip(matrices, which, strict=True)]
    )
    assert (sum_rows(matrices, factors, which).astype(object) == expected).all()


ONLY = np.zeros(1, np.int64)


@pytest.mark.parametrize("entry", [-128, 127])
@pytest.mark.parametrize("element", [P - 1, 2**31 - 1, 1])
def test_runs_join_beyond_their_length(entry: int, element: int) -> None:
    count = (1 << 16) + 5
    long = np.full((1, 2, count), entry, np.int8)
    assert (dot_rows(long, np.full((1, 1, count), element, np.uint64), ONLY) == entry * element * count % P).all()
    tall = np.full((1, count, 64), entry, np.int8)
    assert (sum_rows(tall, np.full((1, count), element, np.uint64), ONLY) == entry * element * count % P).all()


@pytest.mark.parametrize("entry", [-128, 127])
def test_runs_of_short_rows_join_beyond_their_length(entry: int) -> None:
    count = 128 * (1 << 16) + 5  # rows of one: 128 make a period, and 2^16 periods a run
    tall = np.full((1, count, 1), entry, np.int8)
    assert int(sum_rows(tall, np.full((1, count), P - 1, np.uint64), ONLY)[0, 0]) == -entry * count % P


def test_empty_sums_are_zero() -> None:
    assert dot_rows(np.zeros((1, 2, 0), np.int8), np.zeros((1, 1, 0), np.uint64), ONLY).tolist() == [[[0], [0]]]
    assert sum_rows(np.zeros((1, 0, 70), np.int8), np.zeros((1, 0), np.uint64), ONLY).sum() == 0
    assert sum_rows(np.zeros((1, 0, 3), np.int8), np.zeros((1, 0), np.uint64), ONLY).tolist() == [[0, 0, 0]]
    assert sum_rows(np.zeros((1, 3, 0), np.int8), np.zeros((1, 3), np.uint64), ONLY).shape == (1, 0)
