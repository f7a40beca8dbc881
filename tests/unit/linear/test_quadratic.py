"""Quadratic relations of every party: true ones pass, false ones are seen, and nobody uses a mask twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.exact_numbers import field_integers
from tests.linear_dealer import Dealer
from tests.linear_mesh import codes, run_parties, together

from cloister.linear import _field as field
from cloister.linear._commitments import commit, plus_each
from cloister.linear._field import P, from_ints, to_ints
from cloister.linear._party import Party
from cloister.linear._quadratic import QuadraticCheck, masks_needed
from cloister.linear._shared import Shared
from cloister.linear._supply import Pool

TERMS, RELATIONS = 3, 4
SIZE = (2 * TERMS + 1) * RELATIONS


def integers(party: int, parties: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """α, β of a party, and γ = Σ α·β."""
    values = np.array(field_integers(2 * TERMS * RELATIONS, seed=party + parties), object)
    left, right = values.reshape(2, RELATIONS, TERMS)
    return left, right, (left * right).sum(axis=1) % P


def committed(party: Party, dealer: Dealer, changed: Callable[[np.ndarray], None] | None = None) -> tuple[Any, ...]:
    """Values of a party, in three arrays, and what is left of the pool."""
    values = np.concatenate([part.ravel() for part in integers(party.number, party.count)])
    if changed is not None:
        changed(values)
    pool = Pool(dealer.held(party, SIZE + masks_needed(party.count)))
    known = commit(party, "test", pool, from_ints(values))
    half = TERMS * RELATIONS
    left, right = (known[part].reshaped(RELATIONS, TERMS) for part in (slice(half), slice(half, 2 * half)))
    return left, right, known[2 * half :], pool


def session(parties: int, dealer: Dealer, change: Callable[[np.ndarray], None] | None = None) -> Callable[[Party], Any]:
    """All prove; ``change`` is of party 0's values."""

    def act(party: Party) -> Any:
        left, right, result, pool = committed(party, dealer, change if party.number == 0 else None)
        check = QuadraticCheck()
        check.require_products(left, right, result)
        check.require_zeros(result - Shared(result.rows))
        check.run(party, pool, 5907, "test")
        assert pool.left == 0
        return to_ints(result.share).tolist()

    return act


@pytest.mark.parametrize("parties", [2, 3, 5])
def test_true_relations_pass(parties: int) -> None:
    for number, found in enumerate(together(parties, session(parties, Dealer(parties)))):
        assert found == integers(number, parties)[2].tolist()


@pytest.mark.parametrize("place", range(SIZE))
def test_5907_any_value_that_is_one_off(place: int) -> None:
    def change(values: np.ndarray) -> None:
        values[place] = (values[place] + 1) % P

    assert codes(run_parties(3, session(3, Dealer(3), change))) == [None, 5907, 5907]


@pytest.mark.parametrize("zero", [0, 1])
def test_5906_what_is_no_zero_by_the_code_that_was_asked_for(zero: int) -> None:
    dealer = Dealer(2)

    def act(party: Party) -> None:
        pool = Pool(dealer.held(party, 3 + masks_needed(2)))
        known = commit(party, "test", pool, from_ints([0, party.number * (1 - zero), 0]))
        check = QuadraticCheck()
        check.require_zeros(known)
        check.run(party, pool, 5906, "masks")

    assert codes(run_parties(2, act)) == ([None, None] if zero else [5906, None])


def test_public_values_are_each_party_s_own() -> None:
    dealer = Dealer(3)
    public = [from_ints(field_integers(5, seed=10 + k)) for k in range(3)]

    def act(party: Party) -> tuple[list[int], Any]:
        known = commit(party, "test", Pool(dealer.held(party, 5)), from_ints(range(5)))
        moved = plus_each(party, known, public)
        return to_ints(moved.share).tolist(), party.open(moved)

    outcomes = together(3, act)
    total = [(3 * k + sum(int(to_ints(part)[k]) for part in public)) % P for k in range(5)]
    for number, (own, opened) in enumerate(outcomes):
        assert own == [(k + int(to_ints(public[number])[k])) % P for k in range(5)]
        assert to_ints(opened).tolist() == total


def test_what_is_committed_has_the_tags_of_its_values() -> None:
    dealer = Dealer(4)

    def act(party: Party) -> Any:
        known = commit(party, "test", Pool(dealer.held(party, 3)), from_ints([party.number, 7, -party.number]))
        return field.to_centred(party.open(known)).tolist()

    assert together(4, act) == [[6, 28, -6]] * 4
