"""An audit of one training by canaries: what it releases, held against what it claims.

    audit = CanaryAudit(model, loss, optimizer, loader, clip=1.0, noise_multiplier="1.1", delta="1e-5")
    report = audit.run(epochs=2)
    report.verdict, report.epsilon_bound, report.claimed.epsilon

Rules:

* It is a run of the training that is audited: the same model, loss, data, optimizer and settings, given to
  :func:`cloister.privacy.make_private` as they would be. Only canaries are added (:mod:`cloister.privacy._canaries`).
* Copies of model and optimizer are trained. What was trained beside canaries is not for use, and is not handed out.
* The auditor is white-box: she sees each gradient that the optimizer is given, knows the canaries' directions, and
  which rows the model was fed. Guesses rest on what was released alone.
* The verdict is "contradicted" or "not contradicted". No audit proves that a training is private: one that leaks in a
  way that no canary shows passes. What proves are the engine's own bounds; an audit is held against them.
* The audited run sees the records as any other does. Its ε is spent: charge ``report.events`` where there is a ledger,
  or audit on data that is nobody's.

What it does not see: layers whose gradients the engine would not keep an example, or would make twice, are kept in an
audited run, since canaries use every parameter beside the model's own uses; noise that is repeated from step to step.
"""

from __future__ import annotations

import copy
import math
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cloister.errors import BudgetError, InputError
from cloister.ledger import Account, Event, SampledGaussian, Spent, sampled_gaussian, significant_up
from cloister.privacy._audit_plots import canary_plot
from cloister.privacy._canaries import REACH, Canaried, Directions, carried, far_out, with_canaries
from cloister.privacy._clipping import PerBlock
from cloister.privacy._findings import CHECKS, Finding, Terms, Witness
from cloister.privacy._guesses import Guesses, best_guesses
from cloister.privacy._influence import Influence
from cloister.privacy._private import make_private

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from torch.optim import Optimizer
    from torch.utils.data import DataLoader

    from cloister.privacy._canaries import RowLoss

__all__ = ["CanaryAudit", "CanaryReport", "canary_audit"]

Verdict = Literal["contradicted", "not contradicted"]

_LEAST_MULTIPLIER = 1 / 64  # an account counts no less noise


@dataclass(frozen=True, slots=True)
class CanaryReport:
    """What an audit found.

    Attributes:
        claimed: What the run says that it spent, at its δ.
        events: What happened, to be charged.
        steps: That were seen.
        guesses: About the coins.
        epsilon_bound: The real ε is at least this, at the claimed δ, with the stated confidence. Nothing is assumed for
            it; even of a run that spends all that it claims it reaches a part only.
        epsilon_implied: The ε of a run with noise as large, and canaries that count as much, as measured: as small as
            the confidence allows. It takes the noise for Gaussian. None when there is so little noise that no account
            counts it, or nothing is claimed.
        reach: What a canary added each time that it was drawn, in clipping norms.
        noise: Standard deviation along directions whose canary was not there, in clipping norms; records add to it.
        findings: One a check.
        confidence: Of the two bounds, each.
        false_alarm: At most the probability that a run which is as it claims is contradicted.
        scores: ``(m,)``: of each canary, over all steps.
        included: ``(m,)``: the coins.
    """

    claimed: Spent
    events: tuple[Event, ...]
    steps: int
    guesses: Guesses
    epsilon_bound: float
    epsilon_implied: float | None
    reach: float
    noise: float
    findings: tuple[Finding, ...]
    confidence: float
    false_alarm: float
    scores: NDArray[np.float64]
    included: NDArray[np.bool_]

    @property
    def verdict(self) -> Verdict:
        """Whether any finding contradicts the claim."""
        return "contradicted" if self.contradicted else "not contradicted"

    @property
    def contradicted(self) -> tuple[str, ...]:
        """Names of the findings that do."""
        return tuple(finding.name for finding in self.findings if finding.contradicted)

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "verdict": self.verdict,
            "claimed": {"epsilon": self.claimed.epsilon, "delta": self.claimed.delta},
            "epsilon_bound": self.epsilon_bound,
            "epsilon_implied": self.epsilon_implied,
            "confidence": self.confidence,
            "false_alarm": self.false_alarm,
            "steps": self.steps,
            "canaries": {
                "coins": self.guesses.coins,
                "guessed": self.guesses.guessed,
                "right": self.guesses.right,
                "scores": [round(score, 6) for score in self.scores.tolist()],
                "included": self.included.tolist(),
            },
            "reach": _finite(self.reach),
            "noise": self.noise,
            "findings": [finding.as_json() for finding in self.findings],
            "events": [event.model_dump(mode="json") for event in self.events],
        }

    def plot(self) -> str:
        """An SVG: the canaries' scores, those that were in and those that were out, and the bounds."""
        claimed = "unknown" if self.claimed.epsilon is None else f"{float(self.claimed.epsilon):.3g}"
        implied = "unbounded" if self.epsilon_implied is None else f"{self.epsilon_implied:.3g}"
        lines = (
            f"{self.verdict}: {', '.join(self.contradicted) or 'no finding speaks against the claim'}",
            f"ε claimed {claimed}; shown by guesses {self.epsilon_bound:.3g}, implied by noise and reach {implied}",
        )
        return canary_plot(self.scores, self.included, lines)


class CanaryAudit:
    """A private training with canaries.

    Args:
        model: As it would be trained; a copy is.
        loss: ``loss(model, batch) -> (B,)``: a loss for each row of what the loader gives.
        optimizer: Of all trained parameters; a copy steps.
        loader: The data.
        delta: Of the claim.
        canaries: m, 8 or more, and no more than trained parameters; half of them will be in. More show more.
        outlier: Makes an outlier of a record; its floating-point tensors times 100 when left out.
        settings: As for :func:`cloister.privacy.make_private`, ``clip`` among them.

    Attributes:
        model: What is trained: ``(marks, batch)`` in, losses out.
        optimizer: To be stepped.
        loader: Gives ``(marks, batch)``.
        privacy: What is claimed.
        witness: What was seen.

    Raises:
        InputError: 2860 for a number of canaries that cannot be, or for groups: an audit is of records.
        RefusedError: 3810 when the loader cannot be analysed.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: RowLoss,
        optimizer: Optimizer,
        loader: DataLoader[Any],
        *,
        delta: str | float,
        clip: Any,
        canaries: int = 1000,
        outlier: Callable[[Any], Any] = far_out,
        **settings: Any,
    ) -> None:
        if settings.get("groups") is not None:
            raise InputError(2860, expected="an audit of records", got="groups")
        if isinstance(clip, PerBlock):
            clip = PerBlock(clip.norm, tuple(f"model.{block}" for block in clip.blocks))
        model, optimizer = copy.deepcopy((model, optimizer))
        trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
        parameters, sizes = list(trained.values()), {name: each.numel() for name, each in trained.items()}
        directions = Directions(canaries, sum(sizes.values()))
        included = np.array([secrets.randbits(1) for _ in range(canaries)], dtype=bool)
        norm = float(clip if isinstance(clip, (int, float)) else clip.norm)
        count = len(loader.dataset) + canaries  # type: ignore[arg-type]
        outliers = max(1, count // (settings.get("expected_batch") or loader.batch_size or 1))  # one a step
        wrapped = Canaried(model, loss, directions, included, REACH * norm).to(parameters[0].device).train()
        twin, marked = copy.deepcopy(wrapped), with_canaries(loader, canaries, outliers, outlier)
        self._parameters, self._marks, self._norm = parameters, list[Tensor](), norm
        self.model, self.optimizer, self.loader = make_private(
            wrapped,
            optimizer,
            marked,
            clip=clip,
            delta=delta,
            **settings,
        )
        self.privacy = self.optimizer.privacy
        sampler = self.loader.sampler
        terms = Terms(
            float(sampler.probability),
            sampler.count,
            float(self.privacy.engine.noise_multiplier),
            self.loader.epoch_steps,
            outliers,
        )
        self._expected = float(sampler.expected)
        self._influence: Influence | None = None
        self._try = {"twin": twin, "collate": marked.collate_fn, "outlier": outlier, "data": loader.dataset}
        self.witness = Witness(terms, directions, included, sizes)
        self._sum = settings.get("loss_reduction") == "sum"
        self.optimizer.original.register_step_pre_hook(lambda *_: self._released())

    def step(self, batch: Any) -> None:
        """Trains on what the loader gave, once."""
        marks = batch[0]
        self._norm = self.privacy.engine.clipping.norm
        losses = self.model(*batch)
        self._marks.append(marks)
        (losses.sum() if self._sum else losses.mean()).backward()
        self.optimizer.step()

    def run(self, *, epochs: int, **settings: Any) -> CanaryReport:
        """Trains so many epochs, and reports; ``settings`` as for :meth:`report`."""
        for _ in range(epochs):
            for batch in self.loader:
                self.step(batch)
        return self.report(**settings)

    def report(self, *, confidence: float = 0.95, false_alarm: float = 1e-3) -> CanaryReport:
        """What was seen so far.

        Args:
            confidence: Of the bounds on ε and of nothing else.
            false_alarm: At most the probability that a right engine is contradicted.

        Raises:
            InputError: 2861 before the first step, or when a number is out of range; 2006 without the extra
                ``privacy``.
        """
        witness = self.witness
        if not (witness.steps and 0 < confidence < 1 and 0 < false_alarm < 1):
            raise InputError(2861, got=f"{witness.steps} steps, {confidence}, {false_alarm}")
        events = self.privacy.events_of(witness.steps)
        account = Account(events)
        claimed = account.epsilon(self.privacy.delta)
        guesses = best_guesses([witness.scores, witness.pulses], witness.included)
        each = false_alarm / len(CHECKS)
        found = {"guesses": _guessed(guesses, account, each)} | witness.checks()
        side = (1 - confidence) / 2
        reach, least = witness.reach(side)
        noise, most = witness.noise(side)
        return CanaryReport(
            claimed,
            events,
            witness.steps,
            guesses,
            guesses.epsilon(float(claimed.delta), confidence=confidence),
            _implied(events, claimed.delta, most / least if least else math.inf),
            reach,
            noise,
            tuple(Finding(name, *found[name], found[name][0] < each) for name in CHECKS),
            confidence,
            false_alarm,
            witness.scores,
            witness.included.copy(),
        )

    def _released(self) -> None:
        if self._influence is None:
            self._influence = Influence(self.privacy.engine, self.model, rows=self.loader.micro_batch, **self._try)
        released = carried(self._parameters) * (self._expected / self._norm)
        self.witness.see(self._marks, released, self._influence.along())
        self._marks = []


def canary_audit(
    model: nn.Module,
    loss: RowLoss,
    optimizer: Optimizer,
    loader: DataLoader[Any],
    *,
    epochs: int,
    confidence: float = 0.95,
    false_alarm: float = 1e-3,
    **settings: Any,
) -> CanaryReport:
    """Audits a training, in one run of it; see :class:`CanaryAudit` for what it takes and its errors.

    >>> import torch
    >>> from torch import nn
    >>> from torch.nn.functional import cross_entropy
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> data = TensorDataset(torch.randn(200, 4), torch.randint(0, 2, (200,)))
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> report = canary_audit(
    ...     model,
    ...     lambda model, batch: cross_entropy(model(batch[0]), batch[1], reduction="none"),
    ...     torch.optim.SGD(model.parameters(), lr=0.1),
    ...     DataLoader(data, batch_size=20),
    ...     epochs=2,
    ...     canaries=16,
    ...     clip=1.0,
    ...     noise_multiplier="1.5",
    ...     delta="1e-5",
    ...     false_alarm=1e-9,
    ... )
    >>> report.verdict, report.epsilon_bound <= float(report.claimed.epsilon)
    ('not contradicted', True)
    """
    kept = {"epochs": epochs} if settings.get("epsilon") is not None else {}
    audit = CanaryAudit(model, loss, optimizer, loader, **kept, **settings)
    return audit.run(epochs=epochs, confidence=confidence, false_alarm=false_alarm)


def _guessed(guesses: Guesses, account: Account, chance: float) -> tuple[float, str, str]:
    """Held against ε at a δ so small that it hardly adds to the chance of the guesses."""
    got = f"{guesses.right} of {guesses.guessed} right"
    if account.unknown:
        return 1.0, "nothing: ε is unknown", got
    delta = significant_up(min(1e-5, chance / (8 * guesses.coins)), 2)
    try:
        epsilon = account.epsilon(delta).epsilon
    except BudgetError:  # less δ than noise and sampler may be off
        epsilon = None
    if epsilon is None:
        return 1.0, "nothing: no ε at so small a δ", got
    share = 1 / (1 + math.exp(-float(epsilon)))
    expected = f"at ε = {float(epsilon):.3g}, δ = {float(delta):.0e}: about {guesses.guessed * share:.0f} right at most"
    return guesses.chance(float(epsilon), float(delta)), expected, got


def _implied(events: tuple[Event, ...], delta: str, multiplier: float) -> float | None:
    """ε of the same steps with this noise; 0 where nothing of a canary shows."""
    (event,) = events
    if not isinstance(event, SampledGaussian) or multiplier < _LEAST_MULTIPLIER:
        return None
    if math.isinf(multiplier):
        return 0.0
    measured = sampled_gaussian(
        unit=event.unit,
        relation=event.relation,
        sampling_probability=event.sampling_probability,
        noise_multiplier=significant_up(multiplier),
        steps=event.count,
    )
    epsilon = Account([measured]).epsilon(delta).epsilon
    return None if epsilon is None else float(epsilon)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
