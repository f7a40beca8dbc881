"""Noise: the exact distribution, what one record moves at most, what is charged, and that models stay useful."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.linear_data import Floats, conditioned, split

from cloister.errors import BudgetError, InputError
from cloister.ledger import Book, Budget, Relation, open_book
from cloister.linear import LogisticRegression, Privacy, Ridge, Scaling, _noise, statistics_local
from cloister.linear._gaussian import discrete_gaussian
from cloister.linear._noise import charge, clip_rows, noised

PRIVACY = Privacy(clip=3.0, noise_multiplier="4")


def rows(many: int = 400, width: int = 5, seed: int = 0) -> Floats:
    generator = np.random.default_rng(seed)
    return np.column_stack([np.ones(many), generator.normal(size=(many, width - 1))])


# ---- the distribution ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [Fraction(1, 3), Fraction(9, 4), Fraction(20)])
def test_draws_are_of_the_discrete_gaussian(variance: Fraction) -> None:
    draws = np.array([discrete_gaussian(variance) for _ in range(20_000)])
    sizes = np.arange(-40, 41)
    chances = np.exp(-(sizes**2) / (2 * float(variance)))
    chances /= chances.sum()
    often = chances * len(draws) > 8
    found = np.array([(draws == size).sum() for size in sizes[often]])
    rest = len(draws) - found.sum()
    expected = chances[often] * len(draws)
    beyond = len(draws) - expected.sum()
    assert stats.chisquare(np.append(found, rest), np.append(expected, beyond)).pvalue > 1e-6


def test_wide_draws_are_normal() -> None:
    sigma = 2**45
    draws = np.array([discrete_gaussian(Fraction(sigma) ** 2) for _ in range(3000)], dtype=float) / sigma
    assert stats.kstest(draws, "norm").pvalue > 1e-6


# ---- clipping --------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([1.25, 2.0, 3.0, 40.0]),
    st.sampled_from([1e-3, 1.0, 30.0, 1e12, 1e200]),
    st.booleans(),
)
def test_no_row_is_longer_than_agreed(seed: int, clip: float, size: float, counted: bool) -> None:
    privacy = Privacy(clip=clip, noise_multiplier="1")
    table = rows(40, 6, seed)
    table[:, 1:] *= size
    clipped = clip_rows(table, privacy, counted=counted)
    exact = clipped.astype(np.int64).astype(object)
    assert (clipped == np.rint(clipped)).all()
    lengths = (exact**2).sum(axis=1)
    assert max(lengths) <= privacy.reach
    if counted:
        assert (clipped[:, 0] == 4096).all()
    lengths_before = np.linalg.norm(np.clip(table, -1e100, 1e100), axis=1)
    small = lengths_before < clip * 0.99
    assert np.abs(clipped[small] / 4096 - table[small]).max(initial=0) <= 2**-13
    long = np.linalg.norm(np.clip(table[:, 1:], -1e100, 1e100), axis=1) > clip
    if long.any() and clip > 1.5 and size < 1e100:  # shortened, not left out
        assert min(lengths[long]) > 0.9 * privacy.reach


def test_one_record_moves_the_triangle_by_no_more_than_the_sensitivity() -> None:
    table = rows(50, 7, 3) * np.geomspace(0.1, 100, 50)[:, None]
    table[:, 0] = 1
    clipped = clip_rows(table, PRIVACY, counted=True).astype(np.int64).astype(object)
    for record in clipped:
        moved = np.outer(record, record)
        moved[0, 0] = 0  # the count is public
        triangle = [moved[i, j] for i in range(7) for j in range(i, 7)]
        assert sum(entry**2 for entry in triangle) <= PRIVACY.reach**2


# ---- the factor ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counted", [True, False])
def test_every_entry_but_the_count_gets_one_draw_of_the_variance(
    monkeypatch: pytest.MonkeyPatch, counted: bool
) -> None:
    asked: list[Fraction] = []

    def silent(variance: Fraction) -> int:
        asked.append(variance)
        return 0

    monkeypatch.setattr(_noise, "discrete_gaussian", silent)
    table = rows(4000)
    table[:, 0] = 1 if counted else 0.5
    factor = noised([table[:100], table[100:]], PRIVACY, width=5, counted=counted)
    assert asked == [PRIVACY.sigma**2] * (15 - counted)
    clipped = clip_rows(table, PRIVACY, counted=counted) / 4096
    exact = clipped.T @ clipped
    lift = float(PRIVACY.sigma) / 2**24 * (2 * 2 + 6)
    if counted:
        exact[1:, 1:] += lift * np.eye(4)
    else:
        exact += lift * np.eye(5)
    assert np.allclose(factor.triangle.T @ factor.triangle, exact, rtol=1e-9, atol=1e-7)


def test_it_is_a_legal_input_with_the_count_in_its_corner() -> None:
    for seed in range(10):
        table = rows(30, 6, seed)  # fewer rows than the noise is strong
        loud = Privacy(clip=4.0, noise_multiplier="50")
        factor = noised([table], loud, width=6)
        gram = factor.triangle.T @ factor.triangle
        assert np.isclose(gram[0, 0], 30)
        assert factor.count == 30
        weighted = noised([table], loud, width=6, counted=False)
        assert 30 / 256 * (1 - 1e-9) <= weighted.mean_squares()[0] * 30 <= 30 * (1 + 1e-9)


def test_the_noise_has_the_size_that_is_charged() -> None:
    """On one entry outside the diagonal, over many draws."""
    table = rows(200, 3)
    clipped = clip_rows(table, PRIVACY, counted=True) / 4096
    exact = (clipped.T @ clipped)[0, 1]
    found = []
    for _ in range(400):
        triangle = noised([table], PRIVACY, width=3).triangle
        found.append((triangle.T @ triangle)[0, 1] - exact)
    assert stats.kstest(np.array(found) / (4 * 9), "norm").pvalue > 1e-6


def test_2901_so_many_rows_that_sums_would_not_be_exact() -> None:
    huge = np.lib.stride_tricks.as_strided(np.ones(3), shape=(1 << 19, 3), strides=(0, 8))
    with pytest.raises(InputError) as refused:
        noised([huge], Privacy(clip=64, noise_multiplier="1"), width=3)
    assert refused.value.code == 2901


@pytest.mark.parametrize(
    ("code", "clip", "noise"),
    [
        (2901, 1.0, "1"),
        (2901, 65, "1"),
        (2901, 4.0, "1e11"),
        (2901, 2.0, "536870913"),
        (2801, 2.0, "0"),
        (2801, 2.0, "-1"),
        (2801, "x", "1"),
    ],
)
def test_terms_that_hide_nothing_are_refused(code: int, clip: Any, noise: str) -> None:
    with pytest.raises(InputError) as refused:
        Privacy(clip=clip, noise_multiplier=noise)
    assert refused.value.code == code


# ---- fits and budgets ------------------------------------------------------------------------------------

D = 4
SCALING = Scaling(tuple(f"x{j}" for j in range(D)), (0.0,) * (D + 1), (1.0,) * (D + 1))


def people(many: int = 40_000) -> tuple[Floats, Floats]:
    generator = np.random.default_rng(5)
    features = generator.normal(size=(many, D))
    return features, features @ [0.5, -0.3, 0.0, 0.2] + 0.1 + 0.5 * generator.normal(size=many)


def book(epsilon: str) -> Book:
    return open_book(
        Budget(owner="clinic", unit="record", relation=Relation.REPLACE_SPECIAL, epsilon=epsilon, delta="0.00001")
    )


def test_a_private_fit_is_near_the_one_without_noise_and_charged() -> None:
    parts = split(*people(), "even")
    exact = Ridge(1.0, scaling=SCALING).fit_local(parts)
    private = Ridge(1.0, scaling=SCALING).fit_local(
        parts, privacy=Privacy(clip=4.0, noise_multiplier="5"), books=[book("8")] * 4
    )
    assert 0 < np.abs(private.coef_ - exact.coef_).max() < 0.2
    assert private.event_.noise_multiplier == "5"
    assert private.event_.count == 1
    assert 0 < float(private.event_.slack) < 1e-12
    assert [len(one.postings) for one in private.books_] == [1] * 4
    assert len({one.postings[0].charge for one in private.books_}) == 4
    again = Ridge(1.0, scaling=SCALING).fit_local(parts, privacy=Privacy(clip=4.0, noise_multiplier="5"))
    assert (again.coef_ != private.coef_).all()  # noise is never the same


def test_a_newton_fit_is_charged_for_every_round() -> None:
    features, response = people()
    parts = split(features, (response > 0.1).astype(float), "even")
    model = LogisticRegression(C=0.1, method="newton", rounds=2, scaling=SCALING, classes=(0, 1))
    model.fit_local(parts, privacy=Privacy(clip=4.0, noise_multiplier="10"))
    assert model.event_.count == 3
    plain = LogisticRegression(C=0.1, method="newton", rounds=2, scaling=SCALING, classes=(0, 1)).fit_local(parts)
    assert 0 < np.abs(model.coef_ - plain.coef_).max() < 0.5 * np.abs(plain.coef_).max()


def test_7801_a_budget_that_is_spent_charges_nobody() -> None:
    event = PRIVACY.event(columns=6, releases=4)
    with pytest.raises(BudgetError) as refused:
        charge([book("100"), book("0.01")], event, delta="1e-6")
    assert refused.value.code == 7801


def test_private_statistics_are_near_and_need_a_scaling() -> None:
    parts = split(*people(), "even")
    found = statistics_local(parts, opened=["means"], scaling=SCALING, privacy=Privacy(clip=4.0, noise_multiplier="5"))
    assert found.means is not None
    assert np.abs(found.means - [0, 0, 0, 0, 0.1]).max() < 0.05
    with pytest.raises(InputError) as refused:
        statistics_local(parts, privacy=PRIVACY)
    assert refused.value.code == 2901


def test_2901_labels_are_agreed_where_there_is_noise() -> None:
    features, labels = conditioned(200, D, 3)
    with pytest.raises(InputError) as refused:
        LogisticRegression(scaling=SCALING).fit_local(split(features, (labels > 3) * 1.0, "even"), privacy=PRIVACY)
    assert refused.value.code == 2901
