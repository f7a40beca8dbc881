"""Opacus as an oracle: another engine, written by others, makes the same sum, the same noise and the same ε.

Tolerances: both engines work in float32, and Opacus adds 10⁻⁶ to a norm before it divides by it. So where norms are
about 1, sums agree to 10⁻⁵ of their length, if Opacus clips to the norm that ours scales to, which is 2⁻¹⁷ below what
the user says. Tests of distributions have a false alarm in a million runs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from tests.clipped_sums import NoNoise, relative
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cloister.ledger import Account, Relation, sampled_gaussian
from cloister.privacy import Flat, PrivateOptimizer, RunKey, make_private
from cloister.wire import Secret

opacus: Any = pytest.importorskip("opacus", reason="Opacus is not installed: pip install opacus")
fast: Any = pytest.importorskip("opacus.utils.fast_gradient_clipping_utils")

pytestmark = [
    # an embedding's and the first layer's inputs want no gradient, which torch tells those who hook them
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
    # of the divergence with which Opacus' accountant bounds its grid
    pytest.mark.filterwarnings("ignore:Optimal order is the:UserWarning"),
]

RECORDS, EXPECTED, CLASSES = 60, 12, 5
SUMS_AGREE = 1e-5
FALSE_ALARM = 1e-6
RELEASES = 128


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Words(nn.Module):
    """Tokens, embedded, normed and read one by one; the padding token has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(30, 12, padding_idx=0), nn.LayerNorm(12)
        self.inner, self.head = nn.Linear(12, 16), nn.Linear(16, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(self.norm(self.words(tokens)))).mean(1))


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.Tanh(), nn.Linear(20, CLASSES))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, groups=4), nn.ReLU(),
        nn.Conv2d(8, 6, 1, bias=False), nn.ReLU(), nn.Conv2d(6, 6, 2, dilation=1), nn.Flatten(), nn.LazyLinear(CLASSES),
    )  # fmt: skip


def group_norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.GroupNorm(4, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, CLASSES),
    )  # fmt: skip


def layer_norms() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.LayerNorm(20), nn.ReLU(), nn.Linear(20, CLASSES))


def pictures() -> Tensor:
    return torch.randn(RECORDS, 3, 4, 4) * torch.logspace(-1, 0.5, RECORDS).view(-1, 1, 1, 1)


def wide_pictures() -> Tensor:
    return torch.randn(RECORDS, 3, 8, 8) * torch.logspace(-1, 0.5, RECORDS).view(-1, 1, 1, 1)


def tokens() -> Tensor:
    return torch.randint(0, 30, (RECORDS, 6))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (linear, pictures),
    "convolutions": (convolutions, wide_pictures),
    "group norms": (group_norms, wide_pictures),
    "layer norms": (layer_norms, pictures),
    "embedding": (Words, tokens),
}


def network(name: str) -> tuple[nn.Module, TensorDataset]:
    torch.manual_seed(11)
    build, data = NETWORKS[name]
    model, inputs = build(), data()
    with torch.no_grad():
        model(inputs[:2])  # lazy layers get their shape
    return model, TensorDataset(inputs, torch.randint(0, CLASSES, (RECORDS,)))


def made_private(model: nn.Module, data: TensorDataset, **settings: Any) -> tuple[nn.Module, PrivateOptimizer, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    settings = {"noise_multiplier": "0.125", "delta": "1e-5"} | settings
    return make_private(model, optimizer, DataLoader(data, batch_size=EXPECTED), **settings)


def norms(model: nn.Module, data: TensorDataset) -> Tensor:
    """Of each record's gradient."""
    found = []
    for inputs, label in data:
        gradients = torch.autograd.grad(F.cross_entropy(model(inputs[None]), label[None]), [*model.parameters()])
        found.append(torch.cat([gradient.flatten() for gradient in gradients]).norm())
    return torch.stack(found)


def flat(model: nn.Module) -> Tensor:
    found = [parameter.grad for parameter in model.parameters()]
    return torch.cat([each.double().flatten() for each in found if each is not None])


def scaled_to(optimizer: PrivateOptimizer) -> float:
    """The norm that our engine scales a long row to: the clip, less what rounding may add."""
    grid = optimizer.privacy.engine.grid
    return grid.radius() * float(grid.step)


def by_hooks(model: nn.Module, inputs: Tensor, labels: Tensor, norm: float, noise: float = 0.0) -> Tensor:
    """Opacus' gradient by per-sample gradients."""
    wrapped = opacus.GradSampleModule(copy.deepcopy(model))
    optimizer = opacus.optimizers.DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=1.0),
        noise_multiplier=noise,
        max_grad_norm=norm,
        expected_batch_size=EXPECTED,
    )
    F.cross_entropy(wrapped(inputs), labels).backward()
    optimizer.pre_step()
    return flat(wrapped)


def by_ghost(model: nn.Module, inputs: Tensor, labels: Tensor, norm: float) -> Tensor:
    """Opacus' gradient by ghost clipping."""
    wrapped = opacus.grad_sample.GradSampleModuleFastGradientClipping(
        copy.deepcopy(model), max_grad_norm=norm, use_ghost_clipping=True
    )
    optimizer = opacus.optimizers.DPOptimizerFastGradientClipping(
        torch.optim.SGD(wrapped.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=norm,
        expected_batch_size=EXPECTED,
    )
    loss = fast.DPLossFastGradientClipping(wrapped, optimizer, nn.CrossEntropyLoss())
    loss(wrapped(inputs), labels).backward()
    optimizer.pre_step()
    return flat(wrapped)


# ---- sums ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("oracle", "kernels"), [(by_hooks, "cpu"), (by_hooks, "torch"), (by_ghost, "cpu")])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_clipped_sum_of_a_drawn_batch_is_that_of_opacus(
    name: str, oracle: Callable[..., Tensor], kernels: str
) -> None:
    model, data = network(name)
    before, lengths = copy.deepcopy(model), norms(model, data)
    clip = float(lengths.median())
    settings = {"clip": clip, "kernels": kernels, "micro_batch": 8, "key": RunKey(Secret(bytes(range(32))))}
    model, optimizer, loader = made_private(model, data, **settings)
    optimizer.privacy.engine.noise = NoNoise()
    drawn: list[tuple[Tensor, Tensor]] = []
    for inputs, labels in loader:  # one logical batch, in micro-batches
        F.cross_entropy(model(inputs), labels).backward()
        drawn.append((inputs[loader.mask], labels[loader.mask]))
        if optimizer.privacy.gather():
            break
    inputs, labels = (torch.cat(each) for each in zip(*drawn, strict=True))
    drawn_lengths = norms(before, TensorDataset(inputs, labels))
    assert drawn_lengths.min() < clip < drawn_lengths.max(), "the batch shows nothing: all are clipped, or none is"
    assert relative(flat(model), oracle(before, inputs, labels, scaled_to(optimizer))) <= SUMS_AGREE


# ---- noise -----------------------------------------------------------------------------------------------------------


def released_noise(multiplier: str, clip: float, releases: int) -> Tensor:
    """``(releases, parameters)``: what our engine adds to the sum, over the standard deviation that it is to have."""
    model, data = network("linear")
    model, optimizer, _ = made_private(model, data, noise_multiplier=multiplier, clip=Flat(clip))
    found = []
    for _ in range(releases):
        optimizer.privacy.engine.release()  # of a batch that nobody is in
        found.append(flat(model) * EXPECTED)
        optimizer.zero_grad()
    return torch.stack(found) / (float(multiplier) * clip)


@pytest.mark.parametrize(("multiplier", "clip"), [("0.75", 1.0), ("4", 0.125)])
def test_the_noise_of_a_release_is_a_normal_of_the_stated_deviation(multiplier: str, clip: float) -> None:
    noise = released_noise(multiplier, clip, RELEASES).numpy()
    assert stats.kstest(noise.ravel(), "norm").pvalue > FALSE_ALARM
    whole = stats.chi2(noise.size).cdf((noise**2).sum())  # a deviation 1.5 % off would be seen nearly always
    assert FALSE_ALARM / 2 < whole < 1 - FALSE_ALARM / 2
    each = stats.chi2(len(noise)).cdf((noise**2).sum(0))  # no parameter has more or less than the others
    assert stats.kstest(each, "uniform").pvalue > FALSE_ALARM
    assert each.min() * each.size > FALSE_ALARM / 2
    assert (1 - each.max()) * each.size > FALSE_ALARM / 2
    releases = (noise**2).sum(1)  # nor has any release
    assert stats.kstest(releases, stats.chi2(noise.shape[1]).cdf).pvalue > FALSE_ALARM


def test_the_noise_is_distributed_as_that_of_opacus() -> None:
    model, data = network("linear")
    inputs, labels = data[:4]
    multiplier, clip = 0.75, 2.0
    plain = by_hooks(model, inputs, labels, clip)
    theirs = [by_hooks(model, inputs, labels, clip, multiplier) - plain for _ in range(RELEASES)]
    noise = torch.stack(theirs) * EXPECTED / (multiplier * clip)
    ours = released_noise("0.75", clip, RELEASES)
    assert stats.ks_2samp(ours.numpy().ravel(), noise.numpy().ravel()).pvalue > FALSE_ALARM
    ratio = float(ours.square().mean() / noise.square().mean())
    assert abs(math.log(ratio)) < stats.norm.isf(FALSE_ALARM / 2) * math.sqrt(4 / ours.numel())


# ---- ε ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probability", "multiplier", "steps", "delta"),
    [
        ("64/50000", "1", 23437, "1e-5"),
        ("256/45000", "0.8", 1760, "1e-5"),
        ("1024/45000", "1.5", 880, "1e-6"),
        ("4096/50000", "3", 875, "1e-5"),
        ("1/2", "12", 50, "1e-5"),
    ],
)
def test_epsilon_lies_where_opacus_says(probability: str, multiplier: str, steps: int, delta: str) -> None:
    event = sampled_gaussian(
        unit="record",
        relation=Relation.ADD_OR_REMOVE_ONE,
        sampling_probability=probability,
        noise_multiplier=multiplier,
        steps=steps,
    )
    spent = Account([event]).epsilon(delta)
    assert spent.pld is not None
    accountant = opacus.accountants.PRVAccountant()
    accountant.history = [(float(multiplier), float(Fraction(probability)), steps)]
    wide, part = 0.01, float(delta) / 1000
    composed = accountant._get_dprv(eps_error=wide, delta_error=part)
    lower, estimate, upper = composed.compute_epsilon(float(delta), part, wide)
    assert accountant.get_epsilon(float(delta)) == upper
    assert lower <= float(spent.pld) <= upper
    assert abs(float(spent.pld) - estimate) <= 5e-3 + 1e-3 * estimate  # each has a grid, ours rounds up
    assert spent.rdp is not None
    assert float(spent.rdp) >= lower
