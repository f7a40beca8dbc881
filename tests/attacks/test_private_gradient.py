"""Models and loops that would make a gradient less private than it is said to be: each is refused, by its code."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.clipped_sums import engine_for, private_gradient
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cloister.errors import UnsupportedError
from cloister.privacy._clipping import Flat

ROWS = 6


def loss(outputs: Tensor, rows: Tensor) -> Tensor:
    return F.cross_entropy(outputs, rows % 3, reduction="none")


class Net(nn.Module):
    """One layer, and something before it or after it that is not right."""

    def __init__(self, before: Callable[..., Tensor] | None = None, after: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("seen", torch.zeros(4))
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Any:
        x = self.layer(x) * self.scale
        if self.before is not None:
            x = self.before(self, x)
        y = self.head(torch.tanh(x))
        return y if self.after is None else self.after(self, y)


def centred(net: Net, x: Tensor) -> Tensor:
    return x - x.mean(0)


def unheard(net: Net, x: Tensor) -> Tensor:
    return x + 0.0 * net.layer(x - x.mean(0))


def rolled(net: Net, x: Tensor) -> Tensor:
    return x.roll(1, 0)


def ordered(net: Net, x: Tensor) -> Tensor:
    return x.sort(0).values


def attending(net: Net, x: Tensor) -> Tensor:
    return torch.softmax(x @ x.T, 1) @ x


def normed(net: Net, x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True)


def flattened(net: Net, x: Tensor) -> Tensor:
    return F.linear(x.flatten(), torch.ones(4, x.numel()) / 9).expand(len(x), 4)


def noisy(net: Net, x: Tensor) -> Tensor:
    return x + torch.randn(4, generator=torch.Generator().manual_seed(secrets.randbits(60)))


def counting(net: Net, x: Tensor) -> Tensor:
    return net.layer(x) if len(x) == 3 else x


def remembering(net: Net, x: Tensor) -> Tensor:
    y = x + net.seen
    net.seen.copy_(x.detach().mean(0))
    return y


def overwriting(net: Net, x: Tensor) -> Tensor:
    kept = torch.zeros(len(x), 4)
    kept[:] = x
    return kept


def collecting(net: Net, x: Tensor) -> Tensor:
    torch.sum(x.detach(), 0, out=net.seen)
    return x


def collecting_lists(net: Net, x: Tensor) -> Tensor:
    torch._foreach_add_([net.seen], [x.detach().sum(0)])
    return x


def averaging(net: Net, x: Tensor) -> Tensor:
    return F.instance_norm(x.unsqueeze(-1).expand(-1, -1, 3), net.seen, torch.ones(4)).mean(2)


def averaging_unseen(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        F.instance_norm(x.unsqueeze(-1).expand(-1, -1, 3), net.seen, torch.ones(4), weight=net.scale)
    return x


def renorming(net: Net, x: Tensor) -> Tensor:
    table = net.seen.view(4, 1)
    table.fill_(2.0)
    return x + F.embedding((x.detach() > 0).long(), table, max_norm=1.0).squeeze(2)


def learning(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        net.scale.copy_(x.mean(0))
    return x


def learning_out(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        torch.mul(net.scale, x.mean(0), out=net.scale)
    return x


def writing(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        net.scale.mul_(0.5)
    return x


def strange(net: Net, x: Tensor) -> Tensor:
    return torch.einsum("bi,i->bi", x, net.scale)


def swapped(net: Net, x: Tensor) -> Tensor:
    return (net.head.weight @ x.T).T @ net.head.weight


MIXING = [
    (centred, 8857), (unheard, 8857), (rolled, 8857), (ordered, 8857), (attending, 8857), (normed, 8852),
    (flattened, 8857), (noisy, 8860), (counting, 8859), (remembering, 8853), (overwriting, 8853), (writing, 8854),
    (strange, 8855), (swapped, 8855), (collecting, 8853), (collecting_lists, 8853), (averaging, 8853),
    (averaging_unseen, 8853), (renorming, 8853), (learning, 8854), (learning_out, 8854),
]  # fmt: skip


@pytest.mark.parametrize(("move", "code"), MIXING, ids=[move.__name__ for move, _ in MIXING])
def test_what_mixes_examples_or_hides_a_use_is_refused(move: Callable[..., Tensor], code: int) -> None:
    torch.manual_seed(1)
    engine = engine_for(Net(move), Flat(1.0), ROWS)
    with pytest.raises(UnsupportedError) as refused:
        private_gradient(engine, [torch.randn(ROWS, 4)], loss, ROWS)
    assert refused.value.code == code


@pytest.mark.parametrize("move", [remembering, collecting, learning, learning_out])
def test_what_says_that_it_writes_is_refused_before_it_writes(move: Callable[..., Tensor]) -> None:
    torch.manual_seed(1)
    net = Net(move)
    with pytest.raises(UnsupportedError):
        private_gradient(engine_for(net, Flat(1.0), ROWS), [torch.randn(ROWS, 4)], loss, ROWS)
    assert torch.equal(net.seen, torch.zeros(4))
    assert torch.equal(net.scale, torch.ones(4))


def test_outputs_that_mix_examples_are_refused_though_no_parameter_sees_it() -> None:
    torch.manual_seed(1)
    model = Net(after=lambda net, y: (y, y.detach() - y.detach().mean(0)))
    engine = engine_for(model, Flat(1.0), ROWS)
    with pytest.raises(UnsupportedError) as refused:
        private_gradient(engine, [torch.randn(ROWS, 4)], lambda outputs, rows: loss(outputs[0], rows), ROWS)
    assert refused.value.code == 8857


def test_a_batch_of_padding_alone_does_not_hide_that_examples_are_mixed() -> None:
    engine = engine_for(Net(centred), Flat(1.0), ROWS)
    with pytest.raises(UnsupportedError) as refused:
        private_gradient(engine, [torch.zeros(ROWS, 4)], loss, ROWS)
    assert refused.value.code == 8857


def begun(model: nn.Module, x: Tensor) -> tuple[object, Tensor]:
    engine = engine_for(model, Flat(1.0), ROWS)
    model.train()
    return engine, engine.forward(model.__call__, ((x,), {}), ROWS)


def test_a_penalty_on_weights_is_told_from_a_private_gradient() -> None:
    torch.manual_seed(1)
    model = Net()
    engine, outputs = begun(model, torch.randn(ROWS, 4))
    (loss(outputs, torch.arange(ROWS)).mean() + model.scale.square().sum()).backward()
    with pytest.raises(UnsupportedError) as refused:
        engine.gather(torch.arange(ROWS))
    assert (refused.value.code, refused.value.got) == (8861, "scale")


def test_a_block_that_is_computed_again_unseen_is_told_from_a_private_gradient() -> None:
    torch.manual_seed(1)
    engine = engine_for(Net(lambda net, x: checkpoint(net.layer, x, use_reentrant=True)), Flat(1.0), ROWS)
    with pytest.raises(UnsupportedError) as refused:
        private_gradient(engine, [torch.randn(ROWS, 4)], loss, ROWS)
    assert (refused.value.code, refused.value.got) == (8861, "layer.weight")


def test_a_block_whose_saved_tensors_are_made_again_unseen_is_refused() -> None:
    torch.manual_seed(1)
    engine = engine_for(Net(lambda net, x: checkpoint(net.layer, x, use_reentrant=False)), Flat(1.0), ROWS)
    with pytest.raises(UnsupportedError) as refused:
        private_gradient(engine, [torch.randn(ROWS, 4)], loss, ROWS)
    assert refused.value.code == 8866


def test_an_example_does_not_contribute_twice_in_one_step() -> None:
    torch.manual_seed(1)
    _, outputs = begun(Net(), torch.randn(ROWS, 4))
    found = loss(outputs, torch.arange(ROWS)).mean()
    found.backward(retain_graph=True)
    with pytest.raises(UnsupportedError) as refused:
        found.backward()
    assert refused.value.code == 8862


def test_a_micro_batch_is_neither_lost_nor_summed_twice() -> None:
    torch.manual_seed(1)
    model, x = Net(), torch.randn(ROWS, 4)
    engine, outputs = begun(model, x)
    loss(outputs, torch.arange(ROWS)).mean().backward()
    with pytest.raises(UnsupportedError) as refused:
        engine.forward(model.__call__, ((x,), {}), ROWS)
    assert refused.value.code == 8864
    engine.gather(torch.arange(ROWS))
    with pytest.raises(UnsupportedError) as refused:
        engine.gather(torch.arange(ROWS))
    assert refused.value.code == 8865


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)
        self.turn = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if self.turn == 0 else self.two(x) if self.turn == 1 else self.one(x) + self.two(x)


@pytest.mark.parametrize("turn", [1, 2])
def test_a_forward_that_changes_its_ways_is_refused(turn: int) -> None:
    torch.manual_seed(1)
    model = Branching()
    engine = engine_for(model, Flat(1.0), ROWS)
    private_gradient(engine, [torch.randn(ROWS, 4)], loss, ROWS)
    model.turn = turn
    with pytest.raises(UnsupportedError) as refused:
        private_gradient(engine, [torch.randn(ROWS, 4)], loss, ROWS)
    assert refused.value.code == 8856


def test_another_number_of_rows_than_the_micro_batch_is_refused() -> None:
    torch.manual_seed(1)
    engine = engine_for(Net(), Flat(1.0), ROWS)
    private_gradient(engine, [torch.randn(ROWS, 4)], loss, ROWS)
    with pytest.raises(UnsupportedError) as refused:
        engine.forward(engine.model.__call__, ((torch.randn(ROWS - 1, 4),), {}), ROWS)
    assert refused.value.code == 8856


def test_autocast_is_refused() -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UnsupportedError) as refused:
        begun(Net(), torch.randn(ROWS, 4))
    assert refused.value.code == 8863


def test_nothing_to_train_and_half_precision_are_refused() -> None:
    with pytest.raises(UnsupportedError) as refused:
        engine_for(Net().requires_grad_(False), Flat(1.0), ROWS)
    assert refused.value.code == 8850
    with pytest.raises(UnsupportedError) as refused:
        engine_for(Net().half(), Flat(1.0), ROWS)
    assert refused.value.code == 8851


def test_a_use_without_an_axis_of_examples_is_refused() -> None:
    def longer(net: Net, x: Tensor) -> Tensor:
        return net.layer(torch.cat([x, torch.zeros(1, 4)]))[: len(x)]

    torch.manual_seed(1)
    engine = engine_for(Net(longer), Flat(1.0), ROWS)
    with pytest.raises(UnsupportedError) as refused:
        private_gradient(engine, [torch.randn(ROWS, 4)], loss, ROWS)
    assert refused.value.code == 8858
