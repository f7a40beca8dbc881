"""One session's computation, from the first group to what is opened: preprocessing, inputs, program, release.

Nothing here knows of people, files or networks: a party, what was agreed in numbers, and the own summaries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cloister.linear import _field as field
from cloister.linear._budget import Budget, budget_of
from cloister.linear._demand import Demand
from cloister.linear._inputs import pool_needed, share_inputs
from cloister.linear._newton import newton
from cloister.linear._online import Online
from cloister.linear._party import Party
from cloister.linear._plan import Plan
from cloister.linear._preprocess import make_pool, preprocess
from cloister.linear._primes import DEGREE
from cloister.linear._program import fit
from cloister.linear._roundings import own_roundings, rounded, roundings_needed
from cloister.linear._summary import Summary
from cloister.linear._supply import Pool, Supply
from cloister.linear._zeros import blinded, zeros_needed

__all__ = ["Job", "Point", "compute", "needs_of"]

Point = tuple[int, ...]
"""An iterate in ulp of 2^-36, the intercept first."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is computed.

    Attributes:
        plan: Of the fit, or of the statistics.
        newton: Of each of Newton's rounds; None without.
        rounds: Of Newton's method.
        first: Makes of the fitted model the point at which Newton's first round begins.
        entries: Of S that are opened and nothing else: statistics. None for a fit.
        malicious: Whether cheaters are defended against.
    """

    plan: Plan
    newton: Plan | None = None
    rounds: int = 0
    first: Callable[[Point], Point] = tuple
    entries: Sequence[tuple[int, int]] | None = None
    malicious: bool = True

    @property
    def fits(self) -> int:
        """In one session."""
        return 1 + self.rounds if self.newton is not None else 1


def needs_of(job: Job, *, degree: int = DEGREE) -> tuple[Demand, Budget]:
    """What a fit's session uses up, and its packing and floods: those of the plan with the greatest values."""
    budget = budget_of(job.plan, fits=job.fits, again=job.newton, malicious=job.malicious, ring=degree)
    return budget.needs, budget


def compute(party: Party, job: Job, summary: Callable[[Point | None], Summary], *, degree: int = DEGREE) -> list[Point]:
    """All that is opened: the models of all fits in their order, or the entries of the statistics.

    Args:
        party: Who, at its place in the plans.
        job: What all agreed on.
        summary: Of the own rows; of those of a Newton round at the point that it is given.
        degree: N, less than 32768 in tests alone.

    Raises:
        InputError: What the own rows break; nothing of them was said then.
        IntegrityError: 59xx when somebody cheats.
        PeerError: 69xx as the links have it.
        RefusedError: 3902 when a fit did not converge.
    """
    own = summary(None)
    if job.entries is not None:
        return [_statistics(party, job, job.entries, own, degree)]
    needs, budget = needs_of(job, degree=degree)
    pool = sum(pool_needed(plan) for plan in _each(job)) if job.malicious else 0
    stock, left = preprocess(party, needs, budget, pool=pool, degree=degree)
    supply = Supply(stock)
    try:
        online = Online(party, needs, supply)
        first = _fit(party, online, job.plan, own, left, ())
        if job.newton is None:
            return [first]
        plan = job.newton
        start = job.first(first)

        def again(point: Point) -> Point:
            return _fit(party, online, plan, summary(point), left, point)

        return [first, *newton(plan, start, rounds=job.rounds, fit_once=again)]
    finally:
        supply.wipe()
        left.wipe()


def _each(job: Job) -> list[Plan]:
    return [job.plan, *([job.newton] * job.rounds if job.newton is not None else [])]


def _fit(party: Party, online: Online, plan: Plan, own: Summary, pool: Pool, offset: Point) -> Point:
    party.begin("inputs")
    statistics = share_inputs(party, plan, own, pool)
    party.begin("online")
    return fit(online, plan, statistics, offset)


def _statistics(party: Party, job: Job, opened: Sequence[tuple[int, int]], own: Summary, degree: int) -> Point:
    budget = budget_of(replace(job.plan, method="ridge", l1=0), malicious=job.malicious)
    needed = pool_needed(job.plan) + roundings_needed(job.plan, len(opened)) + zeros_needed(len(opened))
    pool = make_pool(party, budget, needed if job.malicious else 0, degree=degree)
    try:
        party.begin("inputs")
        statistics = share_inputs(party, job.plan, own, pool)
        rows, places = (list(place) for place in zip(*opened, strict=True))
        sums = rounded(party, job.plan, pool, statistics[rows, places], own_roundings(own, opened))
        party.begin("online")
        entries = blinded(party, pool, sums)  # each party's share is what it put in
        return tuple(int(value) for value in field.to_centred(party.open(entries)))
    finally:
        pool.wipe()
