"""An audit by canaries: its statistics are what they say, its canaries do what they say, and nobody else notices."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.stats
import torch
from tests.broken_engines import BATCH, FEATURES, RECORDS, audited, loss
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cloister.errors import InputError, IntegrityError, RefusedError
from cloister.privacy import Automatic, CanaryAudit, Groups, PerBlock, PerLayer, Quantile, canary_audit
from cloister.privacy._canaries import FIRST, ORDINARY, Directions, far_out
from cloister.privacy._guesses import Guesses, best_guesses
from cloister.privacy._tails import few_squares, interval, lower_tail, most_variance, two_sided, upper_tail
from cloister.privacy._wager import Wager


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- tails --------------------------------------------------------------------------------------------------------

BINOMIALS = [(10, 0.5, 9), (1000, 0.05, 80), (10**6, 0.01, 10300), (50, 0.3, 10), (10**7, 0.001, 9500), (7, 0.9, 7)]


@pytest.mark.parametrize(("count", "probability", "number"), BINOMIALS)
def test_tails_are_the_binomial_s_and_never_below(count: int, probability: float, number: int) -> None:
    binomial = scipy.stats.binom(count, probability)
    for made, exact in (
        (upper_tail(count, probability, number), binomial.sf(number - 1)),
        (lower_tail(count, probability, number), binomial.cdf(number)),
    ):
        assert exact * (1 - 1e-9) <= made <= min(1.0, exact * (1 + 3e-6))
    assert two_sided(count, probability, number) <= 1
    assert upper_tail(count, probability, 0) == lower_tail(count, probability, count) == 1
    assert upper_tail(count, probability, count + 1) == lower_tail(count, probability, -1) == 0


def test_certain_trials_have_certain_tails() -> None:
    assert (upper_tail(5, 1.0, 5), lower_tail(5, 1.0, 4), upper_tail(5, 0.0, 1), lower_tail(5, 0.0, 0)) == (1, 0, 0, 1)


@pytest.mark.parametrize(("count", "found"), [(10, 0), (10, 10), (100, 3), (5000, 17)])
def test_an_interval_is_clopper_s_and_pearson_s(count: int, found: int) -> None:
    low, high = interval(count, found, confidence=0.9)
    exact = scipy.stats.binomtest(found, count).proportion_ci(0.9, method="exact")
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=1e-6)


@pytest.mark.parametrize("degrees", [1, 10, 1000])
@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.9, 0.99])
def test_a_small_chi_square_is_no_likelier_than_said(degrees: int, ratio: float) -> None:
    assert scipy.stats.chi2(degrees).cdf(degrees * ratio) <= few_squares(degrees, ratio)
    assert few_squares(degrees, 1.0) == 1
    assert few_squares(degrees, 0.0) == 0
    # a variance that is bounded from above by what was seen: the one at which seeing so little has the chance left
    most = most_variance(degrees, 4.0, confidence=0.99)
    assert few_squares(degrees, 4.0 / most) == pytest.approx(0.01, rel=1e-6)


# ---- guesses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
def test_randomised_response_is_contradicted_no_oftener_than_said(epsilon: float) -> None:
    """It is the mechanism at which the bound is sharp: each coin told right with e^ε/(1+e^ε)."""
    coins = 300
    share = 1 / (1 + math.exp(-epsilon))
    for chance in (0.2, 0.01, 1e-4):
        right = np.arange(coins + 1)
        contradicted = np.array([Guesses(coins, ((coins, v),)).chance(epsilon, 0.0) <= chance for v in right.tolist()])
        masses = scipy.stats.binom(coins, share).pmf(right)
        assert masses[contradicted].sum() <= chance
        assert contradicted[-1]


def paper_s(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """As printed in the paper's appendix."""
    q = 1 / (1 + math.exp(-epsilon))
    beta, alpha, total = scipy.stats.binom.sf(v - 1, r, q), 0.0, 0.0
    for i in range(1, v + 1):
        total += scipy.stats.binom.pmf(v - i, r, q)
        alpha = max(alpha, total / i)
    return min(1.0, beta + 2 * m * delta * alpha)


@pytest.mark.parametrize(("guessed", "right"), [(200, 180), (50, 50), (10, 7), (1, 1), (4, 0)])
def test_the_chance_of_guesses_is_the_paper_s(guessed: int, right: int) -> None:
    for epsilon, delta in ((0.1, 0.0), (1.0, 1e-4), (3.0, 1e-3)):
        made = Guesses(400, ((guessed, right),)).chance(epsilon, delta)
        assert made == pytest.approx(paper_s(400, guessed, right, epsilon, delta) if right else 1.0, rel=1e-6)


def test_a_bound_grows_with_right_guesses_and_falls_with_ways_that_were_tried() -> None:
    bounds = [Guesses(400, ((200, right),)).epsilon(1e-6, confidence=0.95) for right in (90, 120, 150, 180, 200)]
    assert bounds[0] == 0
    assert bounds == sorted(bounds)
    one, many = Guesses(400, ((200, 180),)), Guesses(400, ((200, 180), (10, 4), (20, 9)))
    assert many.epsilon(1e-6, confidence=0.95) < one.epsilon(1e-6, confidence=0.95)
    assert (many.guessed, many.right) == (200, 180)
    assert one.epsilon(1e-6, confidence=0.999) < one.epsilon(1e-6, confidence=0.95)


def test_guesses_are_in_for_high_scores_and_out_for_low_ones() -> None:
    scores = np.array([5.0, -3.0, 4.0, -2.0, 0.1, 0.2, -0.1, -0.2])
    included = np.array([True, False, True, False, False, True, True, False])
    assert best_guesses([scores], included).tried[-2:] == ((4, 4), (8, 6))
    assert best_guesses([-scores], included).tried[-1] == (8, 2)


# ---- bets ---------------------------------------------------------------------------------------------------------


def test_a_stake_is_fair() -> None:
    outliers, probability = 7, 0.15
    masses = scipy.stats.binom(outliers, probability).pmf(np.arange(outliers + 1))
    for exponent in (-2.0, -0.1, 0.5, 3.0):
        mean = (masses * np.exp(exponent * np.arange(outliers + 1))).sum()
        assert Wager(outliers, probability)._fair(exponent) == pytest.approx(math.log(mean))


def test_a_gambler_gets_rich_on_what_is_there_and_not_on_what_is_not() -> None:
    random = np.random.default_rng(3)
    torch.manual_seed(3)
    direction = torch.nn.functional.normalize(torch.randn(200), dim=0)
    moved, still, hinted = Wager(8, 0.125), Wager(8, 0.125), Wager(8, 0.125)
    for _ in range(300):
        drawn, noise = int(random.binomial(8, 0.125)), torch.randn(200)
        still.see(noise, drawn)
        moved.see(noise + 3 * drawn * direction, drawn)
        hinted.see(noise + 0.7 * drawn * direction, drawn, direction)
    assert moved.improbability > 40
    assert hinted.improbability > 15
    assert still.improbability < 7


# ---- canaries -----------------------------------------------------------------------------------------------------


def test_directions_are_orthogonal_and_of_norm_one() -> None:
    directions = Directions(9, 100)
    rows = torch.zeros(9, 100).scatter_(1, directions.places, directions.signs)
    assert torch.allclose(rows @ rows.T, torch.eye(9), atol=1e-6)
    vector = torch.randn(100)
    assert directions.scores(vector) == pytest.approx((rows @ vector).numpy(), abs=1e-5)
    assert not torch.equal(Directions(9, 100).places, directions.places)


class Silent:
    def __init__(self, noise: Any) -> None:
        self.sigma, self.distance = noise.sigma, noise.distance

    def add_to(self, total: torch.Tensor) -> None:
        pass

    def prefetch(self, *counts: int) -> None:
        pass


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_canary_that_is_in_adds_the_clipping_norm_and_all_others_nothing(reduction: str) -> None:
    torch.manual_seed(0)
    audit = audited(canaries=50, clip=0.25, loss_reduction=reduction, micro_batch=512)  # a batch at once
    audit.privacy.engine.noise = Silent(audit.privacy.engine.noise)
    seen = []
    audit.model.loss = lambda model, batch: 0.0 * loss(model, batch)  # records have no gradient of their own
    for batch in audit.loader:
        before = torch.cat([each.detach().flatten() for each in audit.model.model.parameters()])
        audit.step(batch)
        after = torch.cat([each.detach().flatten() for each in audit.model.model.parameters()])
        marks = set(batch[0].tolist()) - {0, ORDINARY}
        scores = audit.witness.directions.scores((before - after) / 0.2 * audit._expected / 0.25)
        drawn = np.array([FIRST + number in marks for number in range(50)])
        seen.append(bool((drawn & ~audit.witness.included).any()))
        assert scores == pytest.approx((drawn & audit.witness.included).astype(float), abs=1e-3)
    assert any(seen)
    assert audit.witness.reach(0.5)[0] == pytest.approx(1.0, abs=1e-3)


def test_nothing_of_the_user_s_is_touched() -> None:
    torch.manual_seed(0)
    x = torch.randn(RECORDS, FEATURES)
    loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=BATCH)
    model = nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    kept, kind = [each.detach().clone() for each in model.parameters()], type(model)
    audit = CanaryAudit(
        model, loss, optimizer, loader, canaries=8, clip=1.0, noise_multiplier="1", delta="1e-5", micro_batch=32
    )
    for batch in audit.loader:
        audit.step(batch)
    assert audit.witness.steps == audit.loader.epoch_steps
    assert type(model) is kind
    assert all(torch.equal(one, other) for one, other in zip(kept, model.parameters(), strict=True))
    assert all(each.grad is None for each in model.parameters())
    assert not optimizer.state
    assert not optimizer._optimizer_step_pre_hooks
    assert len(loader.dataset) == RECORDS
    assert not torch.equal(kept[0], next(audit.model.model.parameters()))


@pytest.mark.parametrize(
    "clip",
    [Automatic(1.0), PerLayer(1.0), PerBlock(1.0, ("0", "2")), Quantile(1.0, noise=10.0)],
    ids=lambda clip: type(clip).__name__,
)
def test_every_way_of_clipping_passes_its_audit(clip: Any) -> None:
    torch.manual_seed(0)
    audit = audited(canaries=32, clip=clip, noise_multiplier="1")
    for batch in audit.loader:
        audit.step(batch)
    assert all(chance > 1e-8 for chance, _, _ in audit.witness.checks().values()), audit.witness.checks()


def test_all_drawn_in_every_step_are_told_by_their_coins() -> None:
    torch.manual_seed(0)
    x = torch.randn(24, FEATURES)
    model = nn.Linear(FEATURES, 8)
    audit = CanaryAudit(
        model,
        loss,
        torch.optim.SGD(model.parameters(), lr=0.01),
        DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=24),
        canaries=40,
        expected_batch=65,  # records, canaries, and an outlier
        clip=1.0,
        noise_multiplier="0.2",
        delta="1e-5",
    )
    assert audit.witness.terms.probability == 1
    audit.model.loss = lambda model, batch: 0.0 * loss(model, batch)
    while audit.witness.steps < 8:
        for batch in audit.loader:
            audit.step(batch)
    assert all(chance > 1e-8 for chance, _, _ in audit.witness.checks().values()), audit.witness.checks()
    reach, low = audit.witness.reach(0.05)
    assert reach == pytest.approx(1.0, abs=0.15)
    assert 0 < low < reach
    included = audit.witness.included
    assert audit.witness.scores[included].min() > audit.witness.scores[~included].max()


def test_an_outlier_is_far_out_in_what_it_has_of_floating_point() -> None:
    tensor = torch.ones(2)
    record = {"x": tensor, "y": [torch.tensor(3), (np.ones(2, np.float32), "name")]}
    made = far_out(record)
    assert torch.equal(made["x"], 100 * tensor)
    assert made["y"][0] == 3
    assert made["y"][1][0].tolist() == [100.0, 100.0]
    assert made["y"][1][1] == "name"


# ---- reports ------------------------------------------------------------------------------------------------------


def test_a_report_is_json_and_a_picture_and_says_what_to_charge() -> None:
    torch.manual_seed(0)
    audit = audited(canaries=32, noise_multiplier="1")
    for batch in audit.loader:
        audit.step(batch)
    report = audit.report(false_alarm=1e-9)
    assert report.verdict == "not contradicted"
    assert report.events == audit.privacy.events
    assert report.claimed.epsilon is not None
    assert report.epsilon_bound <= float(report.claimed.epsilon)
    assert report.epsilon_implied is not None
    made = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert made["verdict"] == "not contradicted"
    assert len(made["canaries"]["scores"]) == made["canaries"]["coins"] == 32
    assert {finding["name"] for finding in made["findings"]} >= {"noise", "reach", "isolation"}
    assert ElementTree.fromstring(report.plot()).tag.endswith("svg")  # noqa: S314 - our own
    assert "proven" not in report.plot() + json.dumps(made)


def test_noise_that_nobody_can_count_leaves_nothing_to_hold_guesses_against() -> None:
    torch.manual_seed(0)
    audit = audited(canaries=8, dangerous_float_noise=True)
    for batch in audit.loader:
        audit.step(batch)
    report = audit.report()
    assert (report.claimed.epsilon, report.epsilon_implied) == (None, None)
    assert report.findings[0].chance == 1
    assert "unknown" in report.plot()


def test_an_audit_for_a_budget_is_calibrated_for_its_epochs() -> None:
    torch.manual_seed(0)
    x = torch.randn(RECORDS, FEATURES)
    model = nn.Linear(FEATURES, 2)
    report = canary_audit(
        model,
        loss,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=BATCH),
        epochs=2,
        canaries=16,
        clip=1.0,
        epsilon="2",
        delta="1e-5",
        false_alarm=1e-9,
    )
    assert report.claimed.epsilon is not None
    assert 1.9 < float(report.claimed.epsilon) <= 2


# ---- refusals -----------------------------------------------------------------------------------------------------


PAIRS = Groups.of([row // 2 for row in range(RECORDS)], most_rows=2)


@pytest.mark.parametrize("settings", [{"canaries": 7}, {"canaries": 10**6}, {"groups": PAIRS}])
def test_canaries_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refused:
        audited(**settings)
    assert refused.value.code == 2860


def test_a_loader_that_cannot_be_analysed_is_not_audited() -> None:
    x = torch.randn(8, 2)
    model = nn.Linear(2, 4)
    loader = DataLoader(TensorDataset(x, x), batch_size=2, sampler=torch.utils.data.WeightedRandomSampler([1.0] * 8, 8))
    with pytest.raises(RefusedError) as refused:
        CanaryAudit(model, loss, torch.optim.SGD(model.parameters()), loader, canaries=8, clip=1.0, delta="1e-5")
    assert refused.value.code == 3810


def test_a_report_without_a_step_or_out_of_range_is_refused() -> None:
    audit = audited(canaries=8)
    with pytest.raises(InputError) as refused:
        audit.report()
    assert refused.value.code == 2861
    for batch in audit.loader:
        audit.step(batch)
        break
    with pytest.raises(InputError) as refused:
        audit.report(confidence=1.0)
    assert refused.value.code == 2861


def test_a_release_that_is_no_number_is_found_out() -> None:
    audit = audited(canaries=8)
    with pytest.raises(IntegrityError) as refused:
        audit.witness.see([], torch.full((sum(audit.witness.sizes.values()),), math.nan))
    assert refused.value.code == 5860


def test_a_loss_that_is_no_loss_a_row_is_refused() -> None:
    audit = audited(canaries=8)
    audit.model.loss = lambda model, batch: loss(model, batch).mean()
    with pytest.raises(InputError) as refused:
        audit.step(next(iter(audit.loader)))
    assert refused.value.code == 2850
