"""A product as a node of autograd, and the node that collects a weight's gradient last.

In backward, the gradient of an input is needed at once and that of a weight only by the optimizer. So a layer's
node asks for both, waits for the first and hands the second on as a promise to the weight's :class:`Tap`: a node that
was made when the forward pass began, before all others, and which autograd therefore visits after them. By then the
workers have long answered.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from cloister.offload._apart import Apart
    from cloister.offload._engine import Call

__all__ = ["Multiply", "MultiplyApart", "Tap"]


class Multiply(torch.autograd.Function):
    """``(x, w, token, call)`` to the layer's forward product. ``w`` is None where a token stands for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor | None, token: Tensor | None, call: Call) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.call = call
        return call.forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return None, None, None, None
        dx, dw = ctx.call.backward(dy, for_x=ctx.needs_input_grad[0], for_w=ctx.needs_input_grad[1])
        return dx, dw, None, None


class MultiplyApart(torch.autograd.Function):
    """``(x, w, apart)`` to the forward product of a layer without trained parameters, in a private forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, apart: Apart) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.apart = apart
        return apart.forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return None, None, None
        for_x, for_w, _ = ctx.needs_input_grad
        return ctx.apart.toward_x(dy) if for_x else None, ctx.apart.toward_data(dy) if for_w else None, None


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, promises: list[Callable[[], Tensor]]) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.promises = promises
        return parameter.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor | None) -> tuple[Tensor | None, None]:
        total: Tensor | None = None
        while ctx.promises:
            gradient = ctx.promises.pop(0)()
            total = gradient if total is None else total + gradient
        return total, None


class Tap:
    """One parameter's place in one pass: a token for its layers' nodes, and the promises that they leave.

    Attributes:
        parameter: The parameter.
        token: Empty; carries the edge of the graph.
    """

    __slots__ = ("parameter", "promises", "token")

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = weakref.ref(parameter)
        self.promises: list[Callable[[], Tensor]] = []
        self.token: Tensor = _Tap.apply(parameter, self.promises)
