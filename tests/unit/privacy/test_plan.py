"""Where a use of parameters has its examples: what is found, what is not, and what has no form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.clipped_sums import engine_for, exact_gradient, private_gradient, relative
from torch import Tensor, nn

from cloister.errors import UnsupportedError
from cloister.privacy._clipping import Flat
from cloister.privacy._plan import Site, Trial, plan_for
from cloister.privacy._slots import Source, slots_of
from cloister.privacy._trial_rows import Places

ROWS = 7


class Net(nn.Module):
    """A forward of one's own, with some parameters."""

    def __init__(self, forward: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.words = nn.Linear(4, 4), nn.Embedding(6, 4)
        self.line, self.norm = nn.Conv1d(4, 4, 1), nn.GroupNorm(2, 4)
        self.first, self.token = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(1, 1, 4))
        self.one, self.steps = nn.Parameter(torch.randn(())), nn.Parameter(torch.randn(3, 1, 4))
        self.run = forward

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def loss(outputs: Tensor, rows: Tensor) -> Tensor:
    return outputs.flatten(1).sin().sum(1)


def fractions() -> Tensor:
    return torch.randn(ROWS, 3, 4)


def token_first(net: Net, x: Tensor) -> Tensor:
    """Steps first, a token before them."""
    steps = torch.cat([net.token.expand(1, len(x), 4), x.transpose(0, 1)])
    return net.layer(steps).tanh().transpose(0, 1)


def steps_first(net: Net, x: Tensor) -> Tensor:
    steps = x.transpose(0, 1)
    return net.layer(steps * net.steps.expand_as(steps)).transpose(0, 1)


def turned(net: Net, x: Tensor) -> Tensor:
    """Examples on the last axis."""
    return (net.layer(x).permute(1, 2, 0) * net.first[:, None]).permute(2, 0, 1)


def filled(net: Net, x: Tensor) -> Tensor:
    return net.layer(x.masked_fill(x > 0, net.one))


def filled_by_data(net: Net, x: Tensor) -> Tensor:
    return net.layer(net.first.expand(3, 4).masked_fill(x > 0, -1.0))


def counted_from_one(net: Net, x: Tensor) -> Tensor:
    return net.layer(net.words(x - 1).flatten(0, 1)).view(len(x), -1)


def rounded(net: Net, x: Tensor) -> Tensor:
    """What is between 0 and 2 is all the same to it; folded."""
    return net.words((x > 50).long().flatten()).view(len(x), -1)


def inner(net: Net, x: Tensor) -> Tensor:
    """Two pictures an example, folded, at an attention of their own; a mask that can hide all of them."""
    some = net.layer(x).flatten(0, 1)[:, None]
    hidden = (x.flatten(0, 1) < -1)[:, None, :1]
    return F.scaled_dot_product_attention(some, some, some, attn_mask=~hidden).nan_to_num().view(len(x), -1)


NETWORKS: dict[str, tuple[Callable[[Net, Tensor], Tensor], Callable[[], Tensor]]] = {
    "token first": (token_first, fractions),
    "steps first": (steps_first, fractions),
    "turned": (turned, fractions),
    "filled": (filled, fractions),
    "filled by data": (filled_by_data, fractions),
    "counted from one": (counted_from_one, lambda: torch.randint(1, 7, (ROWS, 3))),
    "rounded": (rounded, lambda: torch.randint(0, 255, (ROWS, 3), dtype=torch.uint8)),
    "inner": (inner, fractions),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_clipped_sum(name: str) -> None:
    torch.manual_seed(2)
    forward, data = NETWORKS[name]
    engine, x = engine_for(Net(forward), Flat(0.5), ROWS), data()
    gradient = private_gradient(engine, [x], loss, ROWS)
    assert relative(gradient, exact_gradient(engine, [x], loss, range(ROWS))) <= 1e-6


@dataclass
class Outputs:
    found: Tensor


def convolved(net: Net, x: Tensor) -> Tensor:
    """One picture whose positions are the examples."""
    return net.line(x[:, 0].T[None])[0].T


def grouped(net: Net, x: Tensor) -> Tensor:
    """One picture whose channels are all examples' channels."""
    count = len(x)
    some = x.transpose(1, 2).reshape(1, count * 4, 3)
    weight, bias = (each.repeat(count) for each in (net.norm.weight, net.norm.bias))
    return F.group_norm(some, 2 * count, weight, bias).view(count, -1)


def in_one_row(net: Net, x: Tensor) -> Tensor:
    """All examples' columns side by side, a weight for each on the diagonal."""
    weight = torch.block_diag(*[net.layer.weight] * len(x))
    return F.linear(x[:, 0].reshape(1, -1), weight).view(len(x), 4)


def across(net: Net, x: Tensor) -> Tensor:
    """A product over the examples."""
    return net.layer((net.steps[:, 0, :1].expand(3, len(x)) @ x.transpose(0, 1)).transpose(0, 1)[: len(x)])


def asked(net: Net, x: Tensor) -> Tensor:
    """Attention from one example to a parameter's row of another."""
    some = net.layer(x[:, 0])[None, None]
    kept = net.first.expand(1, 1, len(x), 4)
    return F.scaled_dot_product_attention(some, kept, kept)[0, 0]


def paired(net: Net, x: Tensor) -> Any:
    scores = net.layer(x[:, 0])
    return scores, scores.detach() @ scores.detach().T


def rolled_fold(net: Net, x: Tensor) -> Any:
    """Mixed after the last use, folded."""
    scores = net.layer(x)
    return scores, scores.detach().roll(1, 0).flatten(0, 1)


def in_a_class(net: Net, x: Tensor) -> Any:
    scores = net.layer(x[:, 0])
    return Outputs(scores - scores.mean(0))


@pytest.mark.parametrize(
    ("forward", "code"),
    [
        (convolved, 8858), (grouped, 8858), (in_one_row, 8858), (across, 8855), (asked, 8855), (paired, 8857),
        (rolled_fold, 8857), (in_a_class, 8857),
    ],
)  # fmt: skip
def test_what_a_form_would_take_for_something_else_is_refused(forward: Callable[[Net, Tensor], Any], code: int) -> None:
    torch.manual_seed(2)
    engine = engine_for(Net(forward), Flat(0.5), ROWS)
    with pytest.raises(UnsupportedError) as refused:
        engine.forward(engine.model.__call__, ((fractions(),), {}), ROWS)
    assert refused.value.code == code


def test_a_gradient_that_cannot_be_compared_is_refused() -> None:
    """A form whose result has other rows than its data; what comes back to it says nothing of examples."""
    model = nn.Linear(4, 4)
    (slot, _) = slots_of(model, dict.fromkeys(("weight", "bias"), 0))

    def run(arguments: Any, trial: Trial) -> Tensor:
        use = trial.begin("linear", (Source(slot.parameter, (slot,), True),), arguments)
        use.returned(torch.ones(1, 4))
        return arguments

    with pytest.raises(UnsupportedError) as refused:
        plan_for(run, torch.randn(ROWS, 4), ROWS)
    assert refused.value.code == 8858


def test_a_parameter_has_one_row_or_as_many_as_the_data() -> None:
    site = Site("mul", (), axis=1, outer=1, inner=2)
    for rows in (1, 10):
        assert site.spread(torch.zeros(3, rows, 4), 5, (0, 2)).shape == (3, 10, 4)
    with pytest.raises(UnsupportedError) as refused:
        site.spread(torch.zeros(3, 2, 4), 5, ())
    assert refused.value.code == 8855


@pytest.fixture
def watched_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where an accelerator is used, whose kernels end the process over a place that there is not."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)


@pytest.mark.usefixtures("watched_places")
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_same_where_places_are_watched(name: str) -> None:
    test_it_is_the_clipped_sum(name)


@pytest.mark.parametrize(
    "name_a_place",
    [
        lambda place: F.embedding(place, torch.zeros(4, 2)),
        lambda place: torch.zeros(4)[place],
        lambda place: torch.zeros(4).gather(0, place),
        lambda place: torch.zeros(4).scatter_(0, place, 1.0),
        lambda place: torch.zeros(4).index_put_((place,), torch.ones(1)),
        lambda place: F.cross_entropy(torch.zeros(1, 4), place),
    ],
)
def test_a_place_that_there_is_not_is_refused_before_a_kernel_is_asked(name_a_place: Callable[[Tensor], Any]) -> None:
    with Places():
        name_a_place(torch.tensor([3]))
        with pytest.raises(IndexError, match="made-up"):
            name_a_place(torch.tensor([4]))
