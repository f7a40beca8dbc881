"""Parties that prove their inputs to each other: legal statistics, proofs over the dealer's pool, and forged ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from fractions import Fraction
from math import isqrt
from typing import Any

import numpy as np
from tests.linear_dealer import Dealer
from tests.linear_mesh import Cheat, run_parties

from cloister.linear import _inputs
from cloister.linear._gram import RowFactor
from cloister.linear._inputs import Witness
from cloister.linear._party import Party
from cloister.linear._plan import Plan
from cloister.linear._shared import Shared
from cloister.linear._summary import Summary, summarise
from cloister.linear._supply import Pool

__all__ = ["FEATURES", "PLAN", "acting", "four_squares", "of_factor", "only", "proven", "summaries", "witnesses"]

FEATURES = 4
PLAN = Plan(method="ridge", rows=(700, 300, 500), curvature=Fraction(4), mean_squares=(Fraction(2),) * (FEATURES + 1))

acting = threading.local()
"""``acting.number``: whose thread this is, for forgeries of one party."""


def summaries(plan: Plan = PLAN, seed: int = 0) -> list[Summary]:
    """Legal ones."""
    return [_summary(plan, party, seed) for party in range(plan.parties)]


def witnesses(plan: Plan = PLAN, seed: int = 0) -> list[Witness]:
    """Of legal summaries."""
    return [_inputs.witness(plan, party, summary) for party, summary in enumerate(summaries(plan, seed))]


def proven(own: list[Witness], plan: Plan = PLAN, *, cheat: Cheat | None = None, **kwargs: Any) -> list[Any]:
    """What the parties have at the end, ``Shared``, or their errors."""
    dealer = Dealer(plan.parties)

    def act(party: Party) -> Shared:
        acting.number = party.number
        pool = Pool(dealer.held(party, _inputs.pool_needed(plan)))
        return _inputs.prove_inputs(party, plan, own[party.number], pool)

    return run_parties(plan.parties, act, cheat=cheat, **kwargs)


def only(number: int, forged: Callable[..., Any], honest: Callable[..., Any]) -> Callable[..., Any]:
    """``forged`` in one party's thread, ``honest`` in the others'."""
    return lambda *args: (forged if acting.number == number else honest)(*args)


def of_factor(factor: np.ndarray, party: int, plan: Plan = PLAN) -> Witness:
    """Of any R; refused where it is not legal, unless ``_inputs._require_limits`` is switched off."""
    return _inputs.witness(plan, party, Summary(factor, factor.T @ factor, np.zeros_like(factor)))


def four_squares(total: int) -> list[int]:
    """Integers whose squares add up to any positive one (J. Lagrange, 1770)."""
    for first in range(isqrt(total), -1, -1):
        rest = total - first * first
        for second in range(isqrt(rest), max(-1, isqrt(rest) - 50), -1):
            left = rest - second * second
            for third in range(isqrt(left), isqrt(left // 2) - 1, -1):
                fourth = isqrt(left - third * third)
                if fourth * fourth == left - third * third:
                    return [first, second, third, fourth]
    raise AssertionError("every integer is a sum of four squares")


def _summary(plan: Plan, party: int, seed: int) -> Summary:
    generator = np.random.default_rng((seed, party))
    features = plan.features
    columns = generator.normal(size=(plan.rows[party], features + 1)) + 0.5 * generator.normal(
        size=(plan.rows[party], 1)
    )
    columns = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    factor = RowFactor(features + 2)
    factor.add(np.column_stack([np.ones(plan.rows[party]), columns]))
    return summarise(plan, party, factor, [f"x{k}" for k in range(features)])
