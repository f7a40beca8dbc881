"""ε and δ: against closed forms, published values, another composition, and each other."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from typing import Any

import dp_accounting
import numpy
import pytest
from dp_accounting.pld import privacy_loss_distribution
from scipy.special import ndtr

from cloister.errors import BudgetError, InputError, IntegrityError
from cloister.ledger import (
    Account,
    Event,
    Gaussian,
    Laplace,
    Method,
    Relation,
    SampledGaussian,
    Selection,
    Unaccounted,
    exact,
    ratio,
)
from cloister.ledger import _account as account_module
from cloister.ledger._pld import PER_STEP, PER_SUM, LossDistribution, _repeated

ADDED, REPLACED, SPECIAL = Relation.ADD_OR_REMOVE_ONE, Relation.REPLACE_ONE, Relation.REPLACE_SPECIAL
MYELIN: dict[str, Any] = {"sampling_probability": ratio("64/50000"), "noise_multiplier": "1", "count": 23_437}


def sampled(relation: Relation = ADDED, **change: Any) -> SampledGaussian:
    return SampledGaussian(unit="record", relation=relation, **(MYELIN | change))


def gaussian(noise: str, count: int = 1, relation: Relation = ADDED) -> Gaussian:
    return Gaussian(unit="record", relation=relation, noise_multiplier=noise, count=count)


def balle_wang(epsilon: float, sensitivity: float) -> float:
    """The exact δ of the Gaussian mechanism with standard deviation 1."""
    shifted = epsilon / sensitivity
    return float(ndtr(sensitivity / 2 - shifted) - math.exp(epsilon) * ndtr(-sensitivity / 2 - shifted))


def test_the_published_value() -> None:
    spent = Account([sampled()]).epsilon("1e-5")
    assert spent.pld is not None
    assert spent.rdp is not None
    assert round(float(spent.pld), 3) == 0.979
    assert round(float(spent.rdp), 3) == 1.147
    assert (spent.epsilon, spent.by, spent.delta) == (spent.pld, Method.PLD, "0.00001")


@pytest.mark.parametrize(("noise", "count"), [("1", 1), ("4", 1), ("10", 100), ("0.5", 1)])
@pytest.mark.parametrize("relation", list(Relation))
def test_a_gaussian_is_the_closed_form(noise: str, count: int, relation: Relation) -> None:
    account = Account([gaussian(noise, count, relation)])
    sensitivity = relation.contributions * math.sqrt(count) / float(noise)
    for epsilon in ("0.25", "1", "3"):
        true = balle_wang(float(epsilon), sensitivity)
        found = account.delta(epsilon)
        assert true <= float(found.delta) <= true * 1.01 + 1e-11
        assert found.rdp is not None
        assert float(found.rdp) >= true
    spent = account.epsilon("1e-6")
    assert spent.epsilon is not None
    assert balle_wang(float(spent.epsilon), sensitivity) <= 1e-6
    assert balle_wang(float(spent.epsilon) * 0.999, sensitivity) > 1e-6


def test_laplace_is_the_closed_form_and_pure_at_its_epsilon() -> None:
    metric = Laplace(unit="record", relation=ADDED, noise_multiplier="2", count=1)
    account = Account([metric])
    assert float(account.delta("0.1").delta) == pytest.approx(1 - math.exp((0.1 - 0.5) / 2), rel=1e-3)
    assert float(account.delta("0.500001").delta) < 1e-4
    spent = account.epsilon("1e-9")
    assert spent.epsilon is not None
    assert 0.4999 < float(spent.epsilon) <= 0.5001
    replaced = Account([metric.model_copy(update={"relation": REPLACED, "noise_multiplier": "4"})])
    assert replaced.epsilon("1e-9").epsilon == spent.epsilon


def test_the_relation_and_its_directions() -> None:
    """dp-accounting composes both directions of adding apart; zero-out is the same pair; replacing costs more."""
    added, special, replaced = (Account([sampled(relation)]).epsilon("1e-5") for relation in (ADDED, SPECIAL, REPLACED))
    assert added.epsilon == special.epsilon
    assert exact(replaced.epsilon or "0") > exact(added.epsilon or "0") * Fraction(3, 2)
    one = privacy_loss_distribution.from_gaussian_mechanism(1.0, sampling_prob=0.3)
    removed, appended = (pmf.get_delta_for_epsilon(0.2) for pmf in (one._pmf_remove, one._pmf_add))
    assert removed > appended > 0
    event = sampled(sampling_probability="3/10", count=1)
    assert float(Account([event]).delta("0.2").delta) == pytest.approx(float(removed), rel=1e-3)


def test_a_replaced_unit_costs_no_more_than_one_removed_and_one_added() -> None:
    terms: dict[str, Any] = {"sampling_probability": "1/20", "noise_multiplier": "2", "count": 100}
    apart, together = Account([sampled(ADDED, **terms)]), Account([sampled(REPLACED, **terms)])
    for epsilon in ("0.5", "1"):
        group = (1 + math.exp(float(epsilon))) * float(apart.delta(epsilon).delta)
        doubled = str(2 * Fraction(epsilon)) if "." not in epsilon else str(2 * float(epsilon))
        assert float(together.delta(doubled).delta) <= group


@pytest.mark.parametrize("angle", [0.0, 0.8, math.pi / 2, 2.5])
@pytest.mark.parametrize("norms", [(1.0, 1.0), (0.6, 1.0), (1.0, 0.3)])
@pytest.mark.parametrize("growth", [0.5, 1.0, 1.3, 3.0])
def test_opposite_contributions_dominate_all_others(angle: float, norms: tuple[float, float], growth: float) -> None:
    """The pair that REPLACE_ONE is counted by, against pairs in the plane, for every hockey-stick divergence."""
    q, noise = 0.4, 0.8
    axis = numpy.arange(-6, 6, 0.02)
    x, y = numpy.meshgrid(axis, axis)

    def density(at: tuple[float, float]) -> Any:
        return numpy.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * noise**2)) * (0.02**2 / (2 * math.pi * noise**2))

    def divergence(one: tuple[float, float], other: tuple[float, float]) -> float:
        rest = (1 - q) * density((0, 0))
        return float(numpy.maximum(0, rest + q * density(one) - growth * (rest + q * density(other))).sum())

    some = divergence((norms[0], 0), (norms[1] * math.cos(angle), norms[1] * math.sin(angle)))
    assert some <= divergence((1, 0), (-1, 0)) + 1e-9


def test_different_events_compose() -> None:
    kind: dict[str, Any] = {"unit": "record", "relation": ADDED}
    together = Account([gaussian("3"), gaussian("4")]).epsilon("1e-6")
    assert together.epsilon == Account([gaussian("2.4")]).epsilon("1e-6").epsilon  # 1/3² + 1/4² = 1/2.4²
    training = sampled(count=2000)
    mixed: list[Event] = [training, Laplace(**kind, noise_multiplier="10", count=5), gaussian("8", 2)]
    ours = Account(mixed).epsilon("1e-5")
    theirs = dp_accounting.pld.PLDAccountant()
    theirs.compose(dp_accounting.PoissonSampledDpEvent(64 / 50_000, dp_accounting.GaussianDpEvent(1.0)), 2000)
    theirs.compose(dp_accounting.LaplaceDpEvent(10.0), 5)
    theirs.compose(dp_accounting.GaussianDpEvent(8.0), 2)
    assert float(ours.epsilon or 0) == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-4)
    for part in mixed:
        assert exact(ours.epsilon or "0") > exact(Account([part]).epsilon("1e-5").epsilon or "0")


def test_steps_in_pieces_are_the_same_steps() -> None:
    whole = Account([sampled(count=3000)]).epsilon("1e-5")
    assert Account([sampled(count=1000), sampled(count=1999), sampled(count=1)]).epsilon("1e-5") == whole


@pytest.mark.parametrize("steps", [1000, pytest.param(300_007, marks=pytest.mark.slow)])
def test_what_floating_point_loses_is_below_what_is_charged(steps: int) -> None:
    noise = math.sqrt(steps)
    one = privacy_loss_distribution.from_gaussian_mechanism(noise, value_discretization_interval=1 / noise / 8)
    many = _repeated(one, steps)
    for epsilon in (6.0, 7.0, 8.0, 9.0, 10.0):
        lost = balle_wang(epsilon, 1.0) - many.get_delta_for_epsilon(epsilon)
        assert lost <= (PER_SUM + steps * PER_STEP) / 5


def test_a_delta_below_that_is_answered_by_the_loose_method_and_says_so() -> None:
    spent = Account([sampled()]).epsilon("1e-13")
    assert (spent.pld, spent.by) == (None, Method.RDP)
    assert spent.epsilon == spent.rdp
    assert "floating point" in spent.remark
    tiny = Account([sampled()]).delta("12")
    assert tiny.by is Method.RDP
    assert float(tiny.delta) < PER_SUM


def test_losses_beyond_a_distribution_are_answered_by_the_loose_method_and_say_so() -> None:
    account = Account([gaussian("0.015625", 10**6)])
    assert (account.epsilon("1e-5").epsilon, account.delta("100").delta) == (None, "1")
    assert "beyond" in account.epsilon("1e-5").remark
    assert "beyond" in account.delta("100").remark


def test_slack_raises_epsilon_and_can_be_too_much() -> None:
    without, little = Account([sampled()]), Account([sampled(slack="0.000001")])
    raised = little.epsilon("1e-5")
    assert exact(raised.epsilon or "0") > exact(without.epsilon("1e-5").epsilon or "0")
    at = exact(raised.epsilon or "0")
    cost = (1 + math.exp(float(at))) * 1e-6 + float(without.delta(raised.epsilon or "0").delta)
    assert cost == pytest.approx(1e-5, rel=1e-2)
    with pytest.raises(BudgetError) as caught:
        Account([sampled(slack="0.00001")]).epsilon("1e-5")
    assert caught.value.code == 7803


def test_epsilon_and_delta_are_rounded_towards_more() -> None:
    account = Account([sampled(count=1000)])
    spent = account.epsilon("1e-6")
    assert exact(account.delta(spent.epsilon or "0").delta) <= Fraction(1001, 1000) * exact("1e-6")
    less = exact(spent.epsilon or "0") - Fraction(2, 10**6)
    assert exact(account.delta(str(float(less))).delta) > exact("1e-6") * Fraction(9999, 10_000)


def test_a_search_is_answered_by_the_loose_method_and_says_so() -> None:
    search = Selection(unit="record", relation=ADDED, trial=(sampled(count=500),), distribution="poisson", mean="10")
    spent = Account([search, sampled(count=500)]).epsilon("1e-5")
    assert (spent.pld, spent.by) == (None, Method.RDP)
    assert "selection" in spent.remark
    one = Account([sampled(count=500)]).epsilon("1e-5")
    assert exact(spent.epsilon or "0") > exact(one.epsilon or "0")


def test_trials_that_are_all_shown_are_charged_one_by_one() -> None:
    trial = sampled(count=500)
    ten = Account([trial] * 10).epsilon("1e-5")
    assert ten == Account([sampled(count=5000)]).epsilon("1e-5")


def test_what_is_not_accounted_for_makes_the_sum_unknown() -> None:
    void = Unaccounted(unit="record", relation=ADDED, reason="noise was made of floats")
    spent = Account([sampled(), void]).epsilon("1e-5")
    assert (spent.epsilon, spent.pld, spent.rdp) == (None, None, None)
    assert spent.unknown == ("noise was made of floats",)
    assert Account([void]).delta("8").delta == "1"


def test_a_void_amount_of_noise_has_no_epsilon() -> None:
    spent = Account([sampled(sampling_probability="1/2", noise_multiplier="0.5", count=10_000)]).epsilon("1e-5")
    assert (spent.epsilon, spent.pld, spent.rdp) == (None, None, None)


@pytest.mark.parametrize(
    "events",
    [
        [],
        [sampled(), gaussian("1", relation=REPLACED)],
        [sampled(), sampled().model_copy(update={"unit": "patient"})],
    ],
)
def test_units_and_relations_are_never_mixed(events: list[Event]) -> None:
    with pytest.raises(InputError) as caught:
        Account(events)
    assert caught.value.code == 2802


def test_an_account_of_too_many_different_events_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        Account([gaussian(str(noise)) for noise in range(1, 66)])
    assert caught.value.code == 2803


@pytest.mark.parametrize("delta", ["1", "2", "x", "-0.1"])
def test_a_delta_that_is_none_is_refused(delta: str) -> None:
    with pytest.raises(InputError) as caught:
        Account([gaussian("1")], by=Method.RDP).epsilon(delta)
    assert caught.value.code == 2801


def test_an_epsilon_out_of_range_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        Account([gaussian("1")], by=Method.RDP).delta("501")
    assert caught.value.code == 2801


def test_accountants_that_contradict_each_other_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Rényi divergence that forgets to double the sensitivity, as the library's accountant would."""
    halved = {order: rho / 4 for order, rho in Account([gaussian("2", relation=REPLACED)])._rdp.items()}
    monkeypatch.setattr(account_module, "divergences", lambda _: halved)
    account = Account([gaussian("2", relation=REPLACED)])
    for ask in (lambda: account.epsilon("1e-6"), lambda: account.delta("3")):
        with pytest.raises(IntegrityError) as caught:
            ask()
        assert caught.value.code == 5803


def test_a_tight_answer_that_is_missing_contradicts_a_loose_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossDistribution, "delta", lambda self, epsilon: 1.0)
    with pytest.raises(IntegrityError) as caught:
        Account([gaussian("2")]).epsilon("1e-6")
    assert caught.value.code == 5803


def test_without_the_extra_the_tight_method_says_so_and_the_loose_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "dp_accounting"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dp_accounting", None)  # importing it now raises
    with pytest.raises(InputError, match="privacy") as caught:
        Account([sampled()])
    assert caught.value.code == 2006
    spent = Account([sampled()], by=Method.RDP).epsilon("1e-5")
    assert (spent.pld, spent.epsilon) == (None, spent.rdp)
    assert float(spent.rdp or 0) == pytest.approx(1.1467, abs=1e-4)


@pytest.mark.parametrize(
    "terms",
    [
        {"sampling_probability": "1/1000000", "noise_multiplier": "10", "count": 1_000_000},
        {"sampling_probability": "1/10000", "noise_multiplier": "2", "count": 10_000_000},
        {"sampling_probability": "1/100", "noise_multiplier": "0.0625", "count": 10},
        {"sampling_probability": "1/2", "noise_multiplier": "1024", "count": 2**40},
        {"sampling_probability": "1/1000000000", "noise_multiplier": "0.02", "count": 1000},
        {"sampling_probability": "1/10000000000000000000", "noise_multiplier": "1", "count": 1},
        {"sampling_probability": "1/1000000000", "noise_multiplier": "1000", "count": 1_000_000},
        {"sampling_probability": "1/10000000000000000000", "noise_multiplier": "1099511627776", "count": 1_000_000},
    ],
)
def test_extreme_terms_are_answered_soundly_and_soon(terms: dict[str, Any]) -> None:
    spent = Account([sampled(**terms)]).epsilon("1e-5")
    if spent.pld is not None and spent.rdp is not None:
        assert exact(spent.pld) <= exact(spent.rdp) * Fraction(101, 100)
