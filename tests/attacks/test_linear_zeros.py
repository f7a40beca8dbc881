"""Sums that are opened say nothing of what each party put in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tests.attacks.test_linear_views import HIGH, LAST, LOW
from tests.linear_dealer import Dealer
from tests.linear_inputs import acting, only
from tests.linear_mesh import Message, codes, run_parties, together
from tests.unit.linear.test_online import plan
from tests.unit.linear.test_session import agreement, parts_of

from cloister.errors import InternalError
from cloister.linear import _compute, _projection, _zeros
from cloister.linear import _field as field
from cloister.linear._agreed_rows import summary_of
from cloister.linear._compute import Job, compute
from cloister.linear._elements import P
from cloister.linear._field import ELEMENT_BYTES, from_bytes, from_ints, to_ints
from cloister.linear._party import Party
from cloister.linear._plan import FACTOR_BITS
from cloister.linear._roundings import MASK_BITS, own_roundings
from cloister.linear._session import job_of
from cloister.linear._summary import Summary
from cloister.linear._supply import Pool
from cloister.linear._zeros import blinded, zeros_needed

CASE = plan("ridge", steps=40)
ENTRIES = [(i, j) for i in range(5) for j in range(i, 5)]


@pytest.mark.parametrize("malicious", [True, False])
def test_shares_of_opened_statistics_are_not_the_parties_own(malicious: bool) -> None:
    """Before they were blinded, every party sent its own statistics to all others."""
    own, mesh = (HIGH, LOW, LAST), list[Any]()
    job = Job(CASE, entries=ENTRIES, malicious=malicious)
    act = lambda party: compute(party, job, lambda _: own[party.number], degree=1024)  # noqa: E731
    opened = together(3, act, malicious=malicious, mesh_out=mesh)
    total = sum(summary.statistics + summary.correction for summary in own)
    assert opened == [opened[0]] * 3
    for entry, value in zip(ENTRIES, opened[0][0], strict=True):
        assert abs(value - int(total[entry])) <= 3 << MASK_BITS
    last = max(message.step for message in mesh[0].heard)
    for message in mesh[0].heard:
        if message.step == last:
            assert message.kind == "open"
            shares = to_ints(from_bytes(message.body[: len(ENTRIES) * ELEMENT_BYTES], (len(ENTRIES),)))
            assert all(P >> 30 < int(share) < P - (P >> 30) for share in shares)


def made(malicious: bool, cheat: Any = None) -> list[Any]:
    dealer = Dealer(3)

    def act(party: Party) -> Any:
        held = dealer.held(party, zeros_needed(2)) if malicious else []
        values = dealer.shared(party, [5, -7])
        found = blinded(party, Pool(held), values)
        return field.to_centred(party.open(found)).tolist(), field.equal(found.share, values.share)

    return run_parties(3, act, cheat=cheat, malicious=malicious)


@pytest.mark.parametrize("malicious", [True, False])
def test_values_stay_what_they_are_in_new_shares(malicious: bool) -> None:
    assert made(malicious) == [([5, -7], False)] * 3


def test_5903_numbers_that_do_not_sum_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would shift what is opened."""
    original = _zeros._numbers

    def shifted(party: Party, count: int) -> Any:
        found = original(party, count)
        return field.add(found, from_ints([1] + [0] * (count - 1))) if party.number == 1 else found

    monkeypatch.setattr(_zeros, "_numbers", shifted)
    assert codes(made(True))[0] == 5903


def test_5903_another_seed_for_one_party() -> None:
    def cheat(message: Message) -> bytes:
        spoil = message.sender == 1 and message.kind == "seeds of zeros" and message.receiver == 0
        return bytes(len(message.body)) if spoil else message.body

    assert 5903 in codes(made(True, cheat))


def test_9901_a_pool_that_is_too_small() -> None:
    dealer = Dealer(2)

    def act(party: Party) -> Any:
        return blinded(party, Pool(dealer.held(party, 2)), dealer.shared(party, [5, -7]))

    assert all(isinstance(one, InternalError) for one in run_parties(2, act))


def test_the_check_shows_no_combination_of_the_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is opened to see that all is nothing has one number more, hidden as well, which serves nothing else."""
    masks: list[int] = []
    zero = Party.is_zero

    def noted(party: Party, values: Any) -> bool:
        (zeros,) = values
        assert len(zeros) == zeros_needed(2) == 3
        masks.append(int(to_ints(zeros.share[-1:])[0]))
        return zero(party, values)

    monkeypatch.setattr(Party, "is_zero", noted)
    made(True)
    assert len(masks) == 3
    assert sum(masks) % P == 0
    assert all(P >> 30 < mask < P - (P >> 30) for mask in masks)


# ---- the sums themselves -------------------------------------------------------------------------------------------


def statistics(cheat: Any = None, *, opened: str = "means", malicious: bool = True) -> tuple[Job, list[Any], list[Any]]:
    """A session, the parties' own statistics and what each opened."""
    adversary = "malicious" if malicious else "semi-honest"
    held = agreement({"type": "statistics", "open": [opened]}, adversary=adversary)
    job, parts = job_of(held), parts_of(held)
    own = [summary_of(held, place, part) for place, part in enumerate(parts)]

    def act(party: Party) -> Any:
        acting.number = party.number
        return compute(party, job, lambda _: own[party.number], degree=2048)[0]

    return job, own, run_parties(3, act, cheat=cheat, malicious=malicious)


@pytest.mark.parametrize("malicious", [True, False])
def test_opened_means_do_not_come_apart_into_each_partys_own(malicious: bool) -> None:
    """A party's first row are multiples of one public number: it subtracts its own, and solves for the two others'."""
    job, own, outcomes = statistics(malicious=malicious)
    plan, opened = job.plan, outcomes[2]
    assert job.entries is not None
    total = sum(summary.statistics + summary.correction for summary in own)
    a, b = (round(2**FACTOR_BITS * math.sqrt(n / (plan.count * plan.curvature))) for n in plan.rows[:2])
    common = math.gcd(a, b)
    for (_, j), value in list(zip(job.entries, opened, strict=True))[1:]:
        assert abs(value - int(total[0, j])) <= 3 << MASK_BITS
        rest = value - int(own[2].statistics[0, j])
        first = rest // common * pow(a // common, -1, b // common) % (b // common)
        found = [first + k * (b // common) for k in range(-8, 8)]
        bound = math.sqrt(plan.mean_squares[j - 1])
        legal = [r for r in found if abs(r) <= bound * a and abs((rest - a * r) / b) <= bound * b]
        assert int(own[0].factor[0, j]) not in legal


@pytest.mark.parametrize("shift", [1 << 45, -(1 << 60)])
def test_5907_a_sum_is_not_shifted_by_what_was_added_to_it(shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(*arguments: Any) -> Any:
        return own_roundings(*arguments) + shift

    monkeypatch.setattr(_compute, "own_roundings", only(1, shifted, own_roundings))
    monkeypatch.setattr(_projection, "_require_range", only(1, lambda _: None, _projection._require_range))
    assert codes(statistics()[2])[::2] == [5907, 5907]


def test_what_is_added_makes_up_for_the_rounding_of_a_partys_factor() -> None:
    """Else a sum of counts, say of a column of 0 and 1, would tell how each party's was rounded."""
    correction = np.arange(25, dtype=np.int64).reshape(5, 5) << 30
    summary = Summary(HIGH.factor, HIGH.statistics, correction)
    drawn = np.array([own_roundings(summary, ENTRIES) for _ in range(400)]) - [correction[entry] for entry in ENTRIES]
    assert drawn.min() >= -(1 << MASK_BITS)
    assert drawn.max() < 1 << MASK_BITS
    assert drawn.min() < -(1 << MASK_BITS - 1) < 1 << MASK_BITS - 1 < drawn.max()
