"""Norms as a model's own code calls them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.clipped_sums import engine_for, exact_gradient, private_gradient, relative
from torch import Tensor, nn
from torch.nn import functional as F

from cloister.errors import UnsupportedError
from cloister.privacy._clipping import Flat

ROWS, CLASSES = 5, 3


class Called(nn.Module):
    """An instance norm by the operator's own order, its arguments by place."""

    def __init__(self) -> None:
        super().__init__()
        self.raw, self.bias = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.instance_norm(x, torch.exp(self.raw), self.bias, None, None, True, 0.1, 1e-3, False)
        return F.instance_norm(torch.tanh(y), weight=self.raw, eps=1e-2)


def along(axes: int, **options: Any) -> nn.Module:
    norms: tuple[type[nn.Module], ...] = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
    return nn.Sequential(norms[axes - 1](4, affine=True, **options), nn.Tanh(), norms[axes - 1](4, affine=True))


def loss(outputs: Tensor, rows: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(1)[:, :CLASSES], rows % CLASSES, reduction="none")


def drawn(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)
    return model


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda: along(1), (4, 6)),
        (lambda: along(2, eps=1e-2), (4, 3, 5)),
        (lambda: along(3), (4, 2, 3, 2)),
        (Called, (4, 6)),
    ],
    ids=["1d", "2d", "3d", "functions"],
)
def test_an_instance_norm_is_a_group_norm_of_single_channels(model: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    engine, x = engine_for(drawn(model()), Flat(0.5), ROWS), torch.randn(ROWS, *shape)
    gradient = private_gradient(engine, [x], loss, ROWS)
    assert relative(gradient, exact_gradient(engine, [x], loss, range(ROWS))) <= 2e-6


@pytest.mark.parametrize("trained", [True, False])
def test_8855_statistics_of_other_batches_have_no_form_and_are_not_written(trained: bool) -> None:
    torch.manual_seed(3)
    model = along(2, track_running_stats=True)
    norm = model.get_submodule("0").train(trained)
    norm.train = lambda mode=True: norm  # stays so
    engine = engine_for(model, Flat(0.5), ROWS)
    with pytest.raises(UnsupportedError) as refused:
        private_gradient(engine, [torch.randn(ROWS, 4, 3, 5)], loss, ROWS)
    assert refused.value.code == 8855
    assert torch.equal(model.get_buffer("0.running_mean"), torch.zeros(4))
