"""Sums that are opened say nothing of what each party put in."""

from __future__ import annotations

from typing import Any

import pytest
from tests.attacks.test_linear_views import HIGH, LAST, LOW
from tests.linear_dealer import Dealer
from tests.linear_mesh import Message, codes, run_parties, together
from tests.unit.linear.test_online import plan

from cloister.errors import InternalError
from cloister.linear import _field as field
from cloister.linear import _zeros
from cloister.linear._compute import Job, compute
from cloister.linear._elements import P
from cloister.linear._field import ELEMENT_BYTES, from_bytes, from_ints, to_ints
from cloister.linear._party import Party
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
    total = sum(summary.statistics for summary in own)
    assert opened == [[tuple(int(total[entry]) for entry in ENTRIES)]] * 3
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
