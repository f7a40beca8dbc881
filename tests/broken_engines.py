"""Private engines with one part exchanged for a wrong one, which claim what they claimed before.

Each takes a :class:`cloister.privacy.CanaryAudit` that has not begun and breaks its engine, or trains it wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from cloister.privacy import _engine, _watch
from cloister.privacy._canary_audit import CanaryAudit

Broken = Callable[[CanaryAudit], None]

RECORDS, BATCH, FEATURES = 400, 40, 16


def loss(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def audited(*, normed: bool = False, canaries: int = 200, **settings: Any) -> CanaryAudit:
    """An audit of a small network on random records; settings as for the audit."""
    x = torch.randn(RECORDS, FEATURES)
    data = TensorDataset(x, (x[:, 0] > 0).long())
    norm = [nn.BatchNorm1d(64, affine=False)] if normed else []
    model = nn.Sequential(nn.Linear(FEATURES, 64), *norm, nn.Tanh(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    settings = {"clip": 1.0, "noise_multiplier": "2", "delta": "1e-5", **settings}
    loader = DataLoader(data, batch_size=BATCH)
    # a batch at once: what a batch norm mixes is then all of it, and isolation, which has the least power, sees most
    return CanaryAudit(model, loss, optimizer, loader, canaries=canaries, **{"micro_batch": 4 * BATCH} | settings)


# ---- 1: noise -----------------------------------------------------------------------------------------------------


class _Less:
    """The same noise, divided."""

    def __init__(self, noise: Any, by: float) -> None:
        self._noise, self._by = noise, by
        self.sigma, self.distance = noise.sigma, noise.distance

    def add_to(self, total: Tensor) -> None:
        made = torch.zeros_like(total)
        self._noise.add_to(made)
        total += (made / self._by).round().long()

    def prefetch(self, *counts: int) -> None:
        self._noise.prefetch(*counts)


def without_noise(audit: CanaryAudit) -> None:
    audit.privacy.engine.noise = _Less(audit.privacy.engine.noise, float("inf"))


class _Partial(_Less):
    """Leaves one parameter out."""

    def __init__(self, noise: Any, columns: slice) -> None:
        super().__init__(noise, 1)
        self._columns = columns

    def add_to(self, total: Tensor) -> None:
        kept = total[self._columns].clone()
        super().add_to(total)
        total[self._columns] = kept


def without_noise_on_a_layer(audit: CanaryAudit) -> None:
    slot = max(audit.privacy.engine.slots, key=lambda slot: slot.size)
    audit.privacy.engine.noise = _Partial(audit.privacy.engine.noise, slot.columns)


# ---- 2: clipping --------------------------------------------------------------------------------------------------


class _Factors:
    """The same clipping, its factors made by another rule."""

    def __init__(self, clipping: Any, rule: Callable[..., Tensor]) -> None:
        self._clipping, self._rule = clipping, rule
        self.norm, self.groups = clipping.norm, clipping.groups

    def factors(self, squares: Tensor, *, radii: Any, whole: float) -> Tensor:
        return self._rule(self._clipping, squares, radii, whole)


def clipped_too_late(audit: CanaryAudit, times: float = 3.0) -> None:
    """The bound is some times larger than said."""

    def rule(clipping: Any, squares: Tensor, radii: Any, whole: float) -> Tensor:
        return clipping.factors(squares, radii=[times * radius for radius in radii], whole=whole)

    audit.privacy.engine.clipping = _Factors(audit.privacy.engine.clipping, rule)


def clipped_by_batch(audit: CanaryAudit) -> None:
    """The batch's mean gradient is bounded, not each example's."""
    expected = audit.privacy.engine.expected

    def rule(clipping: Any, squares: Tensor, radii: Any, whole: float) -> Tensor:
        length = squares.sum(1, keepdim=True).sqrt()
        return torch.clamp(expected * radii[0] / length, max=whole).expand_as(squares)

    audit.privacy.engine.clipping = _Factors(audit.privacy.engine.clipping, rule)


# ---- 3: examples that are mixed -----------------------------------------------------------------------------------


@contextmanager
def accepting_batch_norms() -> Iterator[None]:
    """An engine that tries a model in evaluation mode, where a batch norm mixes nothing, and knows none by name."""
    honest = _engine.plan_for

    def careless(run: Any, arguments: Any, examples: int) -> Any:
        norms = [each for each in _NORMS if each.training]
        for norm in norms:
            norm.eval()
        try:
            return honest(run, arguments, examples)
        finally:
            for norm in norms:
                norm.train()

    with mock.patch.object(_engine, "plan_for", careless), mock.patch.dict(_watch.MIXERS, clear=True):
        yield
    _NORMS.clear()


_NORMS: list[nn.Module] = []


def with_batch_norm(audit: CanaryAudit) -> None:
    """Only within :func:`accepting_batch_norms`."""
    _NORMS.extend(each for each in audit.model.modules() if isinstance(each, nn.BatchNorm1d))
    assert _NORMS


# ---- 4: sampling --------------------------------------------------------------------------------------------------


def shuffled(audit: CanaryAudit) -> None:
    """Each record once an epoch, in batches of one size."""
    sampler, steps = audit.loader.sampler, audit.loader.epoch_steps

    def sample(step: int) -> Any:
        order = np.random.default_rng(step // steps).permutation(sampler.count)
        return np.sort(order[step % steps :: steps])

    sampler.sample = sample  # type: ignore[method-assign]


def of_one_size(audit: CanaryAudit) -> None:
    """As many records in each step, drawn anew each time."""
    sampler = audit.loader.sampler

    def sample(step: int) -> Any:
        return np.sort(np.random.default_rng(step).permutation(sampler.count)[: round(float(sampler.expected))])

    sampler.sample = sample  # type: ignore[method-assign]


def drawn_too_often(audit: CanaryAudit) -> None:
    """With one and a half the probability that is accounted."""
    sampler = audit.loader.sampler

    def sample(step: int) -> Any:
        random = np.random.default_rng(step).random(sampler.count)
        return np.flatnonzero(random < 1.5 * float(sampler.probability))[: sampler.capacity]

    sampler.sample = sample  # type: ignore[method-assign]


# ---- 5: sums and means --------------------------------------------------------------------------------------------


def noise_on_the_mean(audit: CanaryAudit) -> None:
    """The noise of a mean is added to a sum."""
    engine = audit.privacy.engine
    engine.noise = _Less(engine.noise, engine.expected)


# ---- 6: sampled twice ---------------------------------------------------------------------------------------------


def drawn_twice(audit: CanaryAudit) -> None:
    """Each drawn record stands in the batch twice."""
    sampler = audit.loader.sampler
    honest = sampler.sample
    sampler.sample = lambda step: np.repeat(honest(step), 2)[: sampler.capacity]  # type: ignore[method-assign]


class _Again:
    """The same kernels; what is summed is summed twice."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernels, name)

    def sum_rounded(self, rows: Tensor, factors: Tensor, total: Tensor) -> None:
        for _ in range(2):
            self._kernels.sum_rounded(rows, factors, total)


def summed_twice(audit: CanaryAudit) -> None:
    """Each batch is added to the sum twice."""
    audit.privacy.engine.kernels = _Again(audit.privacy.engine.kernels)


BROKEN: dict[str, tuple[Broken, frozenset[str]]] = {
    "no noise": (without_noise, frozenset({"noise"})),
    "no noise on a layer": (without_noise_on_a_layer, frozenset({"noise"})),
    "clipped too late": (clipped_too_late, frozenset({"reach"})),
    "clipped by batch": (clipped_by_batch, frozenset({"reach"})),
    "batch norm": (with_batch_norm, frozenset({"isolation"})),
    "shuffled": (shuffled, frozenset({"once", "sizes"})),
    "one size": (of_one_size, frozenset({"sizes"})),
    "drawn too often": (drawn_too_often, frozenset({"rate"})),
    "sum and mean": (noise_on_the_mean, frozenset({"noise"})),
    "drawn twice": (drawn_twice, frozenset({"repeats"})),
    "summed twice": (summed_twice, frozenset({"reach"})),
}
"""By name: what breaks it, and findings that must contradict its claim."""
