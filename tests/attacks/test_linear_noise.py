"""Somebody tries to see one record through the noise of a linear fit, or to open rows before they are paid for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from cloister.errors import BudgetError, InputError
from cloister.ledger import Budget, Relation, open_book
from cloister.linear import Privacy, Ridge, Scaling
from cloister.linear._noise import clip_rows, noised
from cloister.linear._rows import Rows

PRIVACY = Privacy(clip=2.0, noise_multiplier="1")
SCALING = Scaling(("x0",), (0.0, 0.0), (1.0, 1.0))


class Unread:
    """Rows that must not be opened."""

    names = ("x0",)

    def chunks(self) -> Iterator[Rows]:
        pytest.fail("the rows were opened")


@pytest.mark.parametrize("value", [1e3, 1e30, 1e200, np.inf, np.nan])
def test_a_record_of_any_size_moves_no_more_than_the_noise_is_for(value: float) -> None:
    """Also one that no reader would let through: what is added up is bounded without trust in floats."""
    rows = np.array([[1.0, value, -value], [1.0, 0.5, value], [1.0, 0.1, 0.2]])
    with np.errstate(invalid="ignore", over="ignore"):
        clipped = clip_rows(rows, PRIVACY, counted=True)
    assert ((clipped**2).sum(axis=1) <= PRIVACY.reach).all()
    assert np.abs(clipped[2] / 4096 - rows[2]).max() < 2**-12


def test_no_entry_tells_of_a_record_without_noise() -> None:
    """Each entry but the public count differs between two summaries of the same rows."""
    rows = np.column_stack([np.ones(500), np.random.default_rng(0).normal(size=(500, 3))])
    grams = [noised([rows], PRIVACY, width=4).triangle for _ in range(2)]
    first, second = (np.triu(triangle.T @ triangle) for triangle in grams)
    same = np.isclose(first, second, rtol=0, atol=1e-6) & (np.triu(np.ones((4, 4))) > 0)
    assert np.argwhere(same).tolist() == [[0, 0]]


def test_a_member_is_not_told_from_a_stranger() -> None:
    """The best test of one entry is right no more often than ε allows: here at most 0.75 of the time, with σ = C²."""
    others = np.array([[1.0, 0.0]] * 20)
    member = np.array([[1.0, np.sqrt(3.0)]])
    special = np.array([[1.0, 0.0]])
    seen = {}
    for name, record in (("in", member), ("out", special)):
        table = np.vstack([others, record])
        triangles = [noised([table], PRIVACY, width=2).triangle for _ in range(600)]
        seen[name] = np.array([(triangle.T @ triangle)[0, 1] for triangle in triangles])
    middle = (seen["in"].mean() + seen["out"].mean()) / 2
    right = ((seen["in"] > middle).mean() + (seen["out"] <= middle).mean()) / 2
    assert right < 0.75
    assert right > 0.5  # the test sees the record at all: one that could not would prove nothing


def test_7801_rows_are_not_opened_before_they_are_paid_for() -> None:
    spent = open_book(
        Budget(owner="clinic", unit="record", relation=Relation.REPLACE_SPECIAL, epsilon="0.01", delta="0.00001")
    )
    with pytest.raises(BudgetError) as refused:
        Ridge(1.0, scaling=SCALING).fit_local([Unread(), Unread()], privacy=PRIVACY, books=[spent])
    assert refused.value.code == 7801


def test_2901_a_scaling_from_the_rows_would_tell_of_them() -> None:
    with pytest.raises(InputError) as refused:
        Ridge(1.0).fit_local([Unread(), Unread()], privacy=PRIVACY)
    assert refused.value.code == 2901
