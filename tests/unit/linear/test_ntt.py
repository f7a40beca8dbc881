"""The transform of ciphertexts: values at the stated roots, products of polynomials, and back."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tests.exact_numbers import negacyclic, refused

from cloister.linear import _ntt
from cloister.linear import _residues as residues
from cloister.linear._primes import FULL, Basis, largest
from cloister.linear._residues import Residues

SIZES = [16, 32, 128]


def basis_of(degree: int) -> Basis:
    step = 2 * degree
    return Basis(largest(20, 1, step) + largest(53, 1, step) + largest(62, 2, step), degree)


def polynomials(basis: Basis, seed: int) -> Residues:
    generator = random.Random(seed)
    return np.array(
        [[generator.choice((0, 1, q - 1, generator.randrange(q))) for _ in range(basis.degree)] for q in basis.primes],
        np.uint64,
    )


def root(q: int, degree: int) -> int:
    candidates = (pow(base, (q - 1) // (2 * degree), q) for base in range(2, q))
    return next(root for root in candidates if pow(root, degree, q) == q - 1)


@pytest.mark.parametrize("degree", SIZES)
def test_values_stand_where_they_are_said_to(degree: int) -> None:
    basis = basis_of(degree)
    x = polynomials(basis, degree)
    values = _ntt.forward(x, basis)
    for row, q in enumerate(basis.primes):
        psi = root(q, degree)
        points = [pow(psi, int(exponent), q) for exponent in _ntt.exponents(degree)]
        assert sorted(points) == sorted({pow(psi, odd, q) for odd in range(1, 2 * degree, 2)})
        expected = [sum(int(c) * pow(point, k, q) for k, c in enumerate(x[row])) % q for point in points]
        assert values[row].tolist() == expected


@pytest.mark.parametrize("degree", SIZES)
def test_products_of_values_are_products_of_polynomials(degree: int) -> None:
    basis = basis_of(degree)
    x, y = polynomials(basis, 1), polynomials(basis, 2)
    made = _ntt.inverse(residues.multiply(_ntt.forward(x, basis), _ntt.forward(y, basis), basis), basis)
    for row, q in enumerate(basis.primes):
        assert made[row].tolist() == negacyclic(x[row].tolist(), y[row].tolist(), q)


@pytest.mark.parametrize("basis", [basis_of(16), basis_of(128), FULL])
def test_edges_come_back(basis: Basis) -> None:
    """All zeros, all at the greatest residue, and these in turn: the greatest sums on the way."""
    top = np.array(basis.primes, np.uint64)[:, None] - np.uint64(1)
    for pattern in (0, 1, np.arange(basis.degree) % 2, np.arange(basis.degree) < basis.degree // 2):
        x = np.ascontiguousarray(top * np.broadcast_to(pattern, basis.shape).astype(np.uint64))
        assert (_ntt.inverse(_ntt.forward(x, basis), basis) == x).all()
        assert (_ntt.forward(_ntt.inverse(x, basis), basis) == x).all()


def test_full_size_comes_back_and_multiplies_by_x() -> None:
    x = polynomials(FULL, 3)
    shift = np.zeros(FULL.shape, np.uint64)
    shift[:, 1] = 1
    made = _ntt.inverse(residues.multiply(_ntt.forward(x, FULL), _ntt.forward(shift, FULL), FULL), FULL)
    assert (made[:, 1:] == x[:, :-1]).all()
    assert (made[:, :1] == residues.subtract(np.zeros_like(x[:, :1]), x[:, -1:], FULL)).all()
    assert (_ntt.inverse(_ntt.forward(x, FULL), FULL) == x).all()


def test_several_at_once_and_none_is_changed() -> None:
    basis = basis_of(16)
    x = np.stack([polynomials(basis, seed) for seed in range(3)])
    before = x.copy()
    assert (_ntt.forward(x, basis)[2] == _ntt.forward(x[2], basis)).all()
    assert (_ntt.inverse(x, basis)[1] == _ntt.inverse(x[1], basis)).all()
    assert (x == before).all()


@pytest.mark.parametrize("shape", [(4, 32), (3, 16), (16,), (4, 8), (4, 16, 1)])
def test_2911_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    for act in (_ntt.forward, _ntt.inverse):
        refused(lambda act=act: act(np.zeros(shape, np.uint64), basis_of(16)), 2911)
