"""Inputs of all parties, shared and proven: what comes out, every bound to the last unit, and no pool element twice."""

from __future__ import annotations

import pickle
from dataclasses import replace
from fractions import Fraction
from math import isqrt

import numpy as np
import pytest
from tests.exact_numbers import refused
from tests.linear_dealer import Dealer
from tests.linear_inputs import FEATURES, PLAN, four_squares, of_factor, proven, summaries, witnesses
from tests.linear_mesh import codes, run_parties, together

from cloister.linear import _field as field
from cloister.linear import _inputs
from cloister.linear._inputs import limits, pool_needed, share_inputs, witness
from cloister.linear._party import Party
from cloister.linear._plan import GRAM_BITS, Plan
from cloister.linear._projection import proven_bits
from cloister.linear._shared import Shared
from cloister.linear._summary import Summary, pooled
from cloister.linear._supply import Pool

D = FEATURES + 1


def shared_and_opened(plan: Plan, given: list[Summary], *, malicious: bool = True) -> list[np.ndarray]:
    dealer = Dealer(plan.parties)

    def act(party: Party) -> np.ndarray:
        pool = Pool(dealer.held(party, pool_needed(plan) if malicious else 0))
        shared = share_inputs(party, plan, given[party.number], pool)
        assert pool.left == 0
        return field.to_centred(party.open(shared))

    return together(plan.parties, act, malicious=malicious)


@pytest.mark.parametrize("parties", [2, 3, 4])
def test_what_is_shared_is_the_sum_of_all_statistics(parties: int) -> None:
    plan = replace(PLAN, rows=(700, 300, 500, 90)[:parties])
    given = summaries(plan)
    for opened in shared_and_opened(plan, given):
        assert (opened == pooled(given)).all()


def test_without_tags_nothing_is_proven() -> None:
    given = summaries()
    for opened in shared_and_opened(PLAN, given, malicious=False):
        assert (opened == pooled(given)).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_party_s_own_curvature_and_rows_with_weights(seed: int) -> None:
    own = replace(PLAN, curvatures=(Fraction(3), Fraction(8), Fraction(3)), curvature=Fraction(4))
    assert codes(proven(witnesses(own, seed), own)) == [None] * 3
    weighted = replace(PLAN, reach=(Fraction(1), Fraction(2)))
    assert codes(proven(witnesses(weighted, seed), weighted)) == [None] * 3


def test_a_factor_that_is_singular_is_legal() -> None:
    """A party with fewer records than columns: rows of zeros in R."""
    own = witnesses()
    factor = own[1].factor.copy()
    factor[2:, 2:] = 0
    own[1] = of_factor(factor, 1)
    assert codes(proven(own)) == [None] * 3


# ---- the witness -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [1, 4, 90])
def test_a_witness_holds_over_the_integers(features: int) -> None:
    plan = replace(PLAN, mean_squares=(Fraction(2),) * (features + 1), curvature=Fraction(max(4, features)))
    for party, own in enumerate(witnesses(plan)):
        r, s, t, z = (part.astype(object) for part in (own.factor, own.statistics, own.slack_factor, own.rest))
        kept = limits(plan, party)
        assert (r.T.dot(r) == s).all()
        identity = kept.curvature * np.eye(plan.columns, dtype=int).astype(object)
        assert ((identity - s[:-1, :-1]) * 2**34 == t.T.dot(t) + z).all()
        assert max(abs(z).ravel()) <= 2**44
        assert (np.tril(own.slack_factor, -1) == 0).all()
        assert max(abs(t).ravel()) <= _inputs._slack_bound(plan)
        assert max(abs(r).ravel()) <= _inputs.factor_bound(plan)


def test_limits_are_those_of_the_specification() -> None:
    for party, rows in enumerate(PLAN.rows):
        kept, unit = limits(PLAN, party), Fraction(rows * 2**GRAM_BITS) / (1500 * 4)
        assert kept.squares == (int(2 * unit),) * D
        assert kept.corner[0] - 1 < unit * (1 - Fraction(1, 2**14)) <= kept.corner[0]
        assert kept.corner[1] <= unit * (1 + Fraction(1, 2**14)) < kept.corner[1] + 1
        assert kept.curvature == int(4 * unit)


def test_pool_elements_of_the_specification() -> None:
    """Section 10: 33, 50 and 54 bits of 64 projections, 46 and 2 of each column."""
    squares = (Fraction(1),) * 91
    plan = replace(PLAN, rows=(1000,) * 4, mean_squares=squares, curvature=Fraction(2))
    corner, square = 92 * 93 // 2, 91 * 92 // 2
    bounds = pool_needed(plan) - 2 * corner - 2 * square - 64 * (33 + 50 + 54) - 3
    assert 0 < bounds <= (91 + 3) * 48


@pytest.mark.parametrize(("columns", "bits"), [(5, 24), (91, 16), (301, 12)])
def test_curvature_that_is_proven(columns: int, bits: int) -> None:
    """``D_i - S_i ≽ 2^-34·Z``, and the norm of Z is at most D times its entries: of eight parties 2^-bits in all."""
    most = 2 ** proven_bits(_inputs._REST, columns * (columns + 1) // 2)
    assert 8 * columns * most <= 2 ** (80 - bits) < 16 * columns * most


@pytest.mark.parametrize("column", range(3, D + 1))
def test_2902_a_column_to_the_last_unit(column: int) -> None:
    """Any integer is a sum of four squares, so a column of R reaches its bound exactly."""
    most = limits(PLAN, 0).squares[column - 1]
    for total in (most, most + 1):
        factor = witnesses()[0].factor.copy()
        factor[:, 1:] = 0
        factor[:4, column] = [*reversed(four_squares(total))]
        if total == most:
            assert codes(proven([of_factor(factor, 0), *witnesses()[1:]])) == [None] * 3
        else:
            refused(lambda factor=factor: of_factor(factor, 0), 2902)


def test_2907_the_corner_to_the_last_unit() -> None:
    least, most = limits(PLAN, 0).corner
    own, roots = witnesses(), (isqrt(least - 1) + 1, isqrt(most))
    for root in roots:
        factor = own[0].factor.copy()
        factor[0, 0] = root
        assert codes(proven([of_factor(factor, 0), *own[1:]])) == [None] * 3
    for root in (roots[0] - 1, roots[1] + 1):
        factor = own[0].factor.copy()
        factor[0, 0] = root
        refused(lambda factor=factor: of_factor(factor, 0), 2907)


def test_2903_more_curvature_than_agreed() -> None:
    own = witnesses()[0]
    strained = replace(PLAN, curvatures=(Fraction(5, 4), Fraction(205, 32), Fraction(205, 32)))
    refused(lambda: witness(strained, 0, Summary(own.factor, own.statistics, 0 * own.statistics)), 2903)


def test_2903_a_rest_that_could_not_be_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_inputs, "_REST", 1 << 30)
    refused(lambda: witness(PLAN, 0, summaries()[0]), 2903)


def test_nothing_is_said_when_the_own_input_is_not_legal() -> None:
    given, meshes = summaries(), []
    factor = given[0].factor.copy()
    factor[0, 0] *= 2
    given[0] = Summary(factor, factor.T @ factor, np.zeros_like(factor))
    dealer = Dealer(3)

    def act(party: Party) -> Shared:
        return share_inputs(party, PLAN, given[party.number], Pool(dealer.held(party, pool_needed(PLAN))))

    assert codes(run_parties(3, act, mesh_out=meshes)) == [2907, 6905, 6905]
    assert [message for message in meshes[0].heard if message.sender == 0] == []


def test_a_witness_is_neither_shown_nor_pickled() -> None:
    own = witnesses()[0]
    assert repr(own) == f"<Witness of {D + 1} columns>"
    with pytest.raises(TypeError):
        pickle.dumps(own)
