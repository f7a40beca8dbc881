"""A multiplier in memory: float64 products in place of workers, differentiable, every call on record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from cloister.offload._layers import Layer
from cloister.ring import Conv2d, MatMul, Product
from cloister.ring._operators import Role


@dataclass
class Recorder:
    """Multiplies as ``Product`` says, and remembers it.

    Attributes:
        made: Each product's layer and geometry, in order.
        passes: For each root forward that ended, whether gradients were recorded.
        weights: The second operand of each forward product.
    """

    made: list[tuple[Layer, Product]] = field(default_factory=list)
    passes: list[bool] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    open: int = 0

    def enter(self) -> None:
        self.open += 1

    def leave(self, *, training: bool) -> None:
        self.open -= 1
        self.passes.append(training)

    def multiply(self, layer: Layer, x: Tensor, w: Tensor) -> Tensor:
        assert self.open == 1, "no root forward is open, or two are"
        for operand in (x, w):
            assert (operand.dtype, operand.device.type) == (torch.float32, "cpu")
        self.weights.append(w)
        return _Multiplied.apply(x, w, layer, self)

    def multiplications(self, role: Role | None = None) -> int:
        return sum(product.multiplications for _, product in self.made if role in (None, product.role))

    @property
    def names(self) -> list[str]:
        """Layers in the order of their first product."""
        return list(dict.fromkeys(layer.name for layer, _ in self.made))

    def of(self, name: str) -> list[Product]:
        return [product for layer, product in self.made if layer.name == name]


def exact(product: Product, left: Tensor, right: Tensor) -> Tensor:
    """The product in float64, rounded once; unseen by any mode that counts what torch multiplies."""
    with _disable_current_modes(), torch.no_grad():
        left, right = left.double(), right.double()
        if isinstance(product.operator, MatMul):
            made = {
                "forward": lambda: left @ right.mT,
                "input_gradient": lambda: left @ right,
                "weight_gradient": lambda: right.mT @ left,
            }[product.role]()
        else:
            made = _conv2d(product, product.operator, left, right)
        assert tuple(made.shape) == product.result
        return made.float()


def _conv2d(product: Product, operator: Conv2d, left: Tensor, right: Tensor) -> Tensor:
    geometry: dict[str, Any] = {
        "stride": operator.stride,
        "padding": operator.padding,
        "dilation": operator.dilation,
        "groups": operator.groups,
    }
    if product.role == "forward":
        return F.conv2d(left, right, **geometry)
    if product.role == "input_gradient":
        return torch.nn.grad.conv2d_input(list(product.x), right, left, **geometry)
    return torch.nn.grad.conv2d_weight(left, list(product.w), right, **geometry)


class _Multiplied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, layer: Layer, recorder: Recorder) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.layer, ctx.recorder = layer, recorder
        return _made(ctx, "forward", x, w, x, w)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        x, w = ctx.saved_tensors
        dx = _made(ctx, "input_gradient", x, w, dy, w) if ctx.needs_input_grad[0] else None
        dw = _made(ctx, "weight_gradient", x, w, x, dy) if ctx.needs_input_grad[1] else None
        return dx, dw, None, None


def _made(ctx: Any, role: Role, x: Tensor, w: Tensor, left: Tensor, right: Tensor) -> Tensor:
    product = Product(ctx.layer.operator, role, x=tuple(x.shape), w=tuple(w.shape))
    ctx.recorder.made.append((ctx.layer, product))
    return exact(product, left, right)
