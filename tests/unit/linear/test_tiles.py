"""Tiles: one polynomial product is many matrix products, compared with Python's integers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.exact_numbers import EDGES, refused

from cloister.linear._budget import budget_of
from cloister.linear._field import Elements, add, from_ints, matvec, multiply, to_ints
from cloister.linear._field_ntt import to_coefficients, to_slots
from cloister.linear._plan import Plan
from cloister.linear._streams import PublicStream, elements
from cloister.linear._tiles import Packing, pack_left, pack_right, unpack


def drawn(seed: int, *shape: int) -> Elements:
    made = elements(PublicStream(seed.to_bytes(32, "little"), "test"), *shape)
    flat = made.reshape(-1, 3)
    flat[:: max(1, len(flat) // 7)] = from_ints(EDGES[seed % len(EDGES)])
    return made


def product(left: Elements, right: Elements) -> Elements:
    """``Σ_l left[l]·right[l]`` of coefficients."""
    total = np.zeros(left.shape[1:], np.uint64)
    for x, y in zip(left, right, strict=True):
        total = add(total, multiply(to_slots(x), to_slots(y)))
    return to_coefficients(total)


def check(packing: Packing, vectors: int, seed: int) -> None:
    matrix, many = drawn(seed, packing.columns, packing.columns), drawn(seed + 1, vectors, packing.columns)
    found = product(pack_left(matrix, packing), pack_right(many, packing))[packing.useful(vectors)]
    made = unpack(found, packing)
    assert made.shape == (vectors, packing.columns, 3)
    assert (made == np.stack([matvec(matrix, vector) for vector in many])).all()


@given(data=st.data())
def test_products_of_any_size(data: st.DataObject) -> None:
    degree = data.draw(st.sampled_from((32, 64, 256, 1024)))
    columns = data.draw(st.integers(1, 30 if degree > 256 else 4))
    tiles = data.draw(st.integers(1, columns))
    wide = -(-columns // tiles)
    most = (degree + 1 - wide) // (columns * wide)
    vectors = data.draw(st.integers(1, max(1, most)))
    if columns * vectors * wide + wide > degree + 1:
        refused(lambda: Packing(columns, tiles, vectors, degree), 2911)
        return
    check(
        Packing(columns, tiles, vectors, degree), data.draw(st.integers(1, vectors)), data.draw(st.integers(0, 10**6))
    )


@pytest.mark.parametrize(("columns", "tiles", "vectors", "degree"), [(8, 8, 8, 64), (5, 2, 2, 32)])
def test_the_last_that_does_not_wrap(columns: int, tiles: int, vectors: int, degree: int) -> None:
    packing = Packing(columns, tiles, vectors, degree)
    assert columns * vectors * packing.wide + packing.wide == degree + 1
    check(packing, vectors, 5)
    refused(lambda: Packing(columns, tiles, vectors + 1, degree), 2911)


def test_integers_in_small() -> None:
    """[[1, 2], [3, 4]]·(5, 6) = (17, 39), in one block of both columns: 2a+1-b and b, for a and b from 0."""
    packing = Packing(2, 1, 1, 16)
    left, right = pack_left(from_ints([[1, 2], [3, 4]]), packing), pack_right(from_ints([[5, 6]]), packing)
    assert to_ints(left)[0].tolist() == [2, 1, 4, 3, *[0] * 12]
    assert to_ints(right)[0].tolist() == [5, 6, *[0] * 14]
    assert packing.useful().tolist() == [1, 3]
    assert to_ints(product(left, right)).tolist() == [10, 17, 26, 39, 18, *[0] * 11]
    assert to_ints(unpack(product(left, right)[packing.useful()], packing)).tolist() == [[17, 39]]


@pytest.mark.parametrize("features", [90, 300])
def test_the_budgets_choice(features: int) -> None:
    plan = Plan(method="ridge", rows=(500,) * 4, curvature=Fraction(20), mean_squares=(Fraction(2),) * (features + 1))
    tiles = budget_of(plan).tiles
    packing = Packing(plan.columns, tiles.tiles, tiles.vectors)
    check(packing, tiles.vectors, 3)
    useful = packing.useful()
    assert len(set(useful.tolist())) == len(useful) == plan.columns * tiles.vectors
    assert useful.max() < packing.degree


def test_2911_other_shapes() -> None:
    packing = Packing(3, 2, 2, 32)
    for act in (
        lambda: Packing(3, 0, 1, 32),
        lambda: Packing(3, 4, 1, 32),
        lambda: Packing(3, 1, 0, 32),
        lambda: pack_left(drawn(1, 3, 2), packing),
        lambda: pack_left(np.zeros((3, 3, 3)), packing),
        lambda: pack_right(drawn(1, 3, 3), packing),
        lambda: pack_right(drawn(1, 0, 3), packing),
        lambda: pack_right(drawn(1, 2, 2), packing),
        lambda: pack_right(drawn(1, 3), packing),
        lambda: unpack(drawn(1, 4), packing),
        lambda: unpack(drawn(1, 9), packing),
        lambda: unpack(drawn(1, 0), packing),
        lambda: packing.useful(3),
    ):
        refused(act, 2911)
