"""In a private forward an entry of a product depends on the two slices that it is made of, and on nothing else."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cloister.offload import Layer, offload, offloading, privately
from cloister.offload._apart import integers_of
from cloister.offload._engine import Engine
from cloister.ring import Conv2d, MatMul, RoundingState, RoundingStream


class Forward:
    """A private forward that claims nothing."""

    def __init__(self, examples: int = 4) -> None:
        self.examples = examples
        self.rounding = RoundingStream(RoundingState("11" * 32, 0))
        self.engines: list[Engine] = []

    def claims(self, args: Any, kwargs: Any) -> bool:
        return False

    def entered(self, engine: Engine) -> None:
        self.engines.append(engine)


def engine(**numerics: Any) -> Engine:
    return offloading(offload(nn.Linear(2, 2), mode="enclave", **numerics)).engine


def made(operator: Any, x: Tensor, w: Tensor, dy: Tensor, rounding: str) -> tuple[Tensor, Tensor, Tensor]:
    """The product of data with data, and both gradients."""
    with privately(Forward()):
        apart = engine(rounding=rounding).apart(Layer("it", operator, "activation"), x.shape, w, data=True)
        return apart.forward(x), apart.toward_x(dy), apart.toward_data(dy)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_a_product_of_matrices_is_right_and_keeps_rows_apart(leading: tuple[int, ...], rounding: str) -> None:
    torch.manual_seed(0)
    x, w, dy = (torch.randn(*leading, *shape) for shape in ((4, 6), (5, 6), (4, 5)))
    x, w, dy = (each * 10.0 ** torch.randint(-6, 6, (*each.shape[:-1], 1)) for each in (x, w, dy))
    first = made(MatMul(), x, w, dy, rounding)
    for found, exact, sizes in zip(
        first, (x @ w.mT, dy @ w, dy.mT @ x), ((x, w), (dy, w.mT), (dy.mT, x.mT)), strict=True
    ):
        bound = sizes[0].abs().amax(-1, keepdim=True) * sizes[1].abs().amax(-1, keepdim=True).mT
        assert bool(((found - exact).abs() <= 6 * bound * (2 / 64)).all())
    other_x, other_w, other_dy = x.clone(), w.clone(), dy.clone()
    other_x[..., 1, :], other_w[..., 2, :] = 1e9, -1e9
    other_dy[..., 1, :] *= 1e9
    y, dx, _ = made(MatMul(), other_x, w, other_dy, rounding)
    rows = [0, 2, 3]
    assert torch.equal(y[..., rows, :], first[0][..., rows, :])
    assert torch.equal(dx[..., rows, :], first[1][..., rows, :])
    y, _, _ = made(MatMul(), x, other_w, dy, rounding)
    assert torch.equal(y[..., [0, 1, 3, 4]], first[0][..., [0, 1, 3, 4]])
    other_dy, other_x = dy.clone(), x.clone()
    other_dy[..., 3] *= 1e9
    other_x[..., 4] *= 1e9
    _, _, dw = made(MatMul(), other_x, w, other_dy, rounding)
    kept = dw[..., [0, 1, 2, 4], :][..., [0, 1, 2, 3, 5]]
    assert torch.equal(kept, first[2][..., [0, 1, 2, 4], :][..., [0, 1, 2, 3, 5]])


@pytest.mark.parametrize("leading", [(3,), (2, 3)])
def test_leading_axes_are_kept_apart_in_every_role(leading: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    given = [torch.randn(*leading, *shape) for shape in ((4, 6), (5, 6), (4, 5))]
    first = made(MatMul(), *given, "stochastic")  # type: ignore[misc]
    for which in range(3):
        other = [each.clone() for each in given]
        other[which][0] *= 1e12
        for one, changed in zip(first, made(MatMul(), *other, "stochastic"), strict=True):  # type: ignore[misc]
            assert torch.equal(one[1:], changed[1:])


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_keeps_pictures_and_groups_apart(groups: int) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(8, 4 // groups, 3, 3))
    operator = Conv2d((2, 1), (1, 1), (1, 1), groups)
    x, dy = torch.randn(3, 4, 6, 6), torch.randn(3, 8, 3, 6)
    used = engine()  # one, whose weight is rounded once

    def both(x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        with privately(Forward(3)):
            apart = used.apart(Layer("it", operator, "frozen"), x.shape, weight)
            return apart.forward(x), apart.toward_x(dy)

    y, dx = both(x, dy)
    exact = F.conv2d(x, weight.detach(), None, operator.stride, operator.padding, operator.dilation, groups)
    assert float((y - exact).norm() / exact.norm()) < 0.05
    wild, wilder = x.clone(), dy.clone()
    wild[1], wilder[1] = math.nan, 1e30
    other, other_dx = both(wild, wilder)
    assert torch.equal(other[[0, 2]], y[[0, 2]])
    assert torch.equal(other_dx[[0, 2]], dx[[0, 2]])
    assert other[1].isnan().all()
    if groups > 1:
        wild, each = x.clone(), 4 // groups
        wild[:, :each] = 1e20
        assert torch.equal(both(wild, dy)[0][:, 8 // groups :], y[:, 8 // groups :])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_harms_its_own_slice_alone_and_stops_nothing(value: float) -> None:
    torch.manual_seed(0)
    x, w, dy = torch.randn(4, 6), torch.randn(5, 6), torch.randn(4, 5)
    first = made(MatMul(), x, w, dy, "nearest")
    x[2, 3] = value
    y, _, dw = made(MatMul(), x, w, dy, "nearest")
    assert y[2].isnan().all()
    assert torch.equal(y[[0, 1, 3]], first[0][[0, 1, 3]])
    assert dw[:, 3].isnan().all()
    assert torch.equal(dw[:, [0, 1, 2, 4, 5]], first[2][:, [0, 1, 2, 4, 5]])


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_magnitude_of_float32_has_integers(bits: int) -> None:
    rows = torch.tensor([[2.0**power, -(2.0**power) / 3] for power in range(-149, 128)] + [[0.0, 0.0]])
    found = integers_of(rows, over=(-1,), bits=bits, rounding=None)
    back = found.values * found.units
    unit = torch.maximum(rows.abs().amax(1, keepdim=True), torch.tensor(2.0**-101)) * 2.0 ** (2 - bits)
    assert bool(((back - rows).abs() <= unit).all())
    assert found.values[-1].tolist() == [0, 0]
    assert found.empty.flatten().tolist() == [False] * 277 + [True]
    most = torch.full((1, 2), torch.finfo(torch.float32).max)
    assert bool((integers_of(most, over=(-1,), bits=bits, rounding=None).units > 0).all())


def test_integers_go_out_under_one_fixed_scale_whatever_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    used = engine()
    said: list[dict[str, Any]] = []
    hide = used.products.hide

    def noted(*args: Any, **kwargs: Any) -> Any:
        said.append({name: value for name, value in kwargs.items() if name != "product"})
        return hide(*args, **kwargs)

    monkeypatch.setattr(used.products, "hide", noted)
    w = torch.randn(5, 6)
    for value in (1e-20, 1.0, 1e20):
        with privately(Forward()):
            apart = used.apart(Layer("it", MatMul(), "activation"), (4, 6), w, data=True)
            apart.forward(torch.full((4, 6), value))
            apart.toward_x(torch.full((4, 5), value))
    assert all(each["exponent"] == 0 and not each["stochastic"] for each in said)
    assert len(said) == 12


def test_layers_that_read_one_tensor_hide_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    used, count = engine(), [0]
    hide = used.products.hide

    def noted(*args: Any, **kwargs: Any) -> Any:
        count[0] += args[1] == "x"
        return hide(*args, **kwargs)

    monkeypatch.setattr(used.products, "hide", noted)
    x, layers = torch.randn(4, 6), [nn.Parameter(torch.randn(5, 6)) for _ in range(3)]
    with privately(Forward()):
        for number, w in enumerate(layers):
            used.apart(Layer(str(number), MatMul(), "parameter"), x.shape, w).forward(x)
        assert count == [1]
        x += 1
        used.apart(Layer("0", MatMul(), "parameter"), x.shape, layers[0]).forward(x)
        assert count == [2]
