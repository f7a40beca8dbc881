"""Discrete noise against rounded continuous noise: the proof's steps, against exact sums."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import mpmath
import pytest

from cloister.errors import InputError
from cloister.ledger import exact, noise_slack, with_slack

SIGMAS = ["2", "2.5", "4", "9"]


def discrete(sigma: str) -> dict[int, Any]:
    s = mpmath.mpf(sigma)
    weights = {k: mpmath.exp(-(k**2) / (2 * s**2)) for k in range(-int(14 * s), int(14 * s) + 1)}
    whole = mpmath.fsum(weights.values())
    return {k: weight / whole for k, weight in weights.items()}


def rounded(sigma: str) -> dict[int, Any]:
    s = mpmath.mpf(sigma)
    half = mpmath.mpf(1) / 2
    return {
        k: (mpmath.erfc((abs(k) - half) / (s * mpmath.sqrt(2))) - mpmath.erfc((abs(k) + half) / (s * mpmath.sqrt(2))))
        / 2
        for k in range(-int(14 * s), int(14 * s) + 1)
    }


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_divergence_of_one_draw_is_below_the_proofs(sigma: str) -> None:
    with mpmath.workdps(50):
        p, r = discrete(sigma), rounded(sigma)
        divergence = mpmath.fsum(p[k] * mpmath.log(p[k] / r[k]) for k in p)
        assert 0 < divergence < 1 / (288 * mpmath.mpf(sigma) ** 4)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_each_step_of_the_proof_holds_at_every_point(sigma: str) -> None:
    with mpmath.workdps(50):
        s = mpmath.mpf(sigma)
        density = 1 / (s * mpmath.sqrt(2 * mpmath.pi))
        for k, mass in rounded(sigma).items():
            shown = -1 / (24 * s**2) + k**2 / (24 * s**4) - k**4 / (960 * s**8)
            assert mpmath.log(mass / (density * mpmath.exp(-(k**2) / (2 * s**2)))) >= shown
        p = discrete(sigma)
        exponentially_small = 2000 * s**4 * mpmath.exp(-2 * mpmath.pi**2 * s**2) + mpmath.mpf(10) ** -35
        assert abs(mpmath.fsum(k**2 * p[k] for k in p) / s**2 - 1) < exponentially_small
        assert abs(mpmath.fsum(k**4 * p[k] for k in p) / (3 * s**4) - 1) < exponentially_small


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("sigma", ["2", "4"])
def test_the_exact_distance_of_some_draws_is_within_the_slack(sigma: str, draws: int) -> None:
    with mpmath.workdps(30):
        p, r = discrete(sigma), rounded(sigma)
        keys = [k for k in p if p[k] > mpmath.mpf(10) ** -12]
        distance = mpmath.mpf(0)
        for ks in itertools.product(keys, repeat=draws):
            distance += abs(mpmath.fprod(p[k] for k in ks) - mpmath.fprod(r[k] for k in ks)) / 2
        slack = exact(noise_slack(sigma=exact(sigma), draws=draws, sampler_distance=Fraction(0)))
        assert distance < mpmath.mpf(slack.numerator) / slack.denominator
        assert distance > 0


def test_rounding_is_post_processing_because_the_sum_is_whole() -> None:
    for whole in (-(2**40), -3, 0, 7, 2**40):
        for part in (-0.5001, -0.4999, 0.25, 0.4999, 1.5001):
            exactly = Fraction(whole) + Fraction(part)
            assert math.floor(exactly + Fraction(1, 2)) == whole + math.floor(Fraction(part) + Fraction(1, 2))


def test_the_slack_is_the_formula_rounded_up() -> None:
    for sigma, draws, distance in ((2**24, 467_000 * 23_437, Fraction(1, 2**90)), (2**20, 1, Fraction(0))):
        with mpmath.workdps(40):
            true = mpmath.sqrt(draws) / (24 * mpmath.mpf(sigma) ** 2)
            true += draws * mpmath.mpf(distance.numerator) / distance.denominator
            slack = exact(noise_slack(sigma=Fraction(sigma), draws=draws, sampler_distance=distance))
            assert true <= mpmath.mpf(slack.numerator) / slack.denominator <= true * mpmath.mpf("1.002")


def test_a_slack_is_at_most_one() -> None:
    assert noise_slack(sigma=Fraction(2), draws=10**12, sampler_distance=Fraction(0)) == "1"


@pytest.mark.parametrize(
    ("sigma", "draws", "distance"),
    [(1, 1, Fraction(0)), (2, 0, Fraction(0)), (2, 1, Fraction(2)), (2, 1, Fraction(-1))],
)
def test_noise_that_is_not_described_is_refused(sigma: int, draws: int, distance: Fraction) -> None:
    with pytest.raises(InputError) as caught:
        noise_slack(sigma=Fraction(sigma), draws=draws, sampler_distance=distance)
    assert caught.value.code == 2801


def test_slack_costs_delta_times_one_plus_e_to_epsilon() -> None:
    slack = Fraction(1, 10**9)
    for epsilon in (0, 1, 8):
        true = mpmath.mpf("1e-6") + (1 + mpmath.exp(epsilon)) * mpmath.mpf("1e-9")
        assert true <= with_slack(epsilon=Fraction(epsilon), delta=1e-6, slack=slack) <= true * (1 + 1e-9)
    assert with_slack(epsilon=Fraction(3), delta=1e-6, slack=Fraction(0)) == 1e-6
    assert with_slack(epsilon=Fraction(1000), delta=1e-6, slack=slack) == 1.0


def test_the_bound_with_slack_holds_for_mechanisms_that_reach_it() -> None:
    """Ideal P, Q at (ln 3, 0); real ones a distance of 1/100 off in the worst direction."""
    ideal_p, ideal_q = (Fraction(3, 4), Fraction(1, 4)), (Fraction(1, 4), Fraction(3, 4))
    s = Fraction(1, 100)
    real_p, real_q = (ideal_p[0] + s, ideal_p[1] - s), (ideal_q[0] - s, ideal_q[1] + s)
    delta = max(p - 3 * q for p, q in zip(real_p, real_q, strict=True))
    assert delta == (1 + 3) * s
    assert with_slack(epsilon=Fraction(math.log(3)), delta=0.0, slack=s) == pytest.approx(float(delta), rel=1e-9)
