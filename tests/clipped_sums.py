"""Slow and obvious twins: rows by torch's own operators, and clipped sums from micro-batches of one in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cloister.privacy._clipping import Clipping
from cloister.privacy._engine import Engine
from cloister.privacy._kernels import NormGradients

Loss = Callable[[Any, Tensor], Tensor]
"""Of the outputs and the rows' numbers: one loss a row."""


class PlainRows:
    """Rows as anybody would write them."""

    def linear_rows(self, x: Tensor, dy: Tensor, rows: Tensor, squares: Any, *, add: bool = False) -> None:
        self._put(torch.einsum("bti,bto->boi", x, dy), rows, squares, add)

    def conv2d_rows(
        self,
        x: Tensor,
        dy: Tensor,
        rows: Tensor,
        squares: Any,
        *,
        kernel: Any,
        groups: int,
        add: bool = False,
        order: str,
        biases: Any = None,
        **shape: Any,
    ) -> None:
        size = (dy.shape[1], x.shape[1] // groups, *kernel)
        each = [
            torch.nn.grad.conv2d_weight(x[b : b + 1], size, dy[b : b + 1], groups=groups, **shape)
            for b in range(len(x))
        ]
        made = torch.stack(each)
        self._put(made if order == "weight" else made.permute(0, 3, 4, 2, 1), rows, squares, add)
        if biases is not None:
            self.bias_rows(dy, *biases, add=add)

    def embedding_rows(self, tokens: Tensor, dy: Tensor, rows: Tensor, squares: Any, *, add: bool = False) -> None:
        made = torch.zeros(len(rows), rows.shape[1] // dy.shape[2], dy.shape[2])
        for b in range(len(made)):
            made[b].index_add_(0, tokens[b], dy[b])
        self._put(made, rows, squares, add)

    def embedding_squares(self, tokens: Tensor, dy: Tensor, squares: Tensor) -> None:
        rows = torch.zeros(len(tokens), int(tokens.max() + 1) * dy.shape[2])
        self.embedding_rows(tokens, dy, rows, squares)

    def embedding_sum_rounded(self, tokens: Tensor, dy: Tensor, factors: Tensor, total: Tensor) -> None:
        rows = torch.zeros(len(tokens), len(total))
        self.embedding_rows(tokens, dy, rows, None)
        self.sum_rounded(rows, factors, total)

    def bias_rows(self, dy: Tensor, rows: Tensor, squares: Any, *, add: bool = False) -> None:
        self._put(dy.flatten(2).sum(2) if dy.dim() > 2 else dy, rows, squares, add)

    def group_norm(
        self, x: Tensor, weight: Any, bias: Any, *, groups: int, eps: float, rectified: bool, summand: Any
    ) -> tuple[Tensor, ...]:
        sizes = len(x), x.shape[1], x[0, 0].numel(), groups
        y, *statistics = torch.native_group_norm(x.contiguous(), weight, bias, *sizes, eps)
        y = y if summand is None else y + summand
        return y.clamp(min=0) if rectified else y, *statistics

    def group_norm_backward(
        self,
        x: Tensor,
        dy: Tensor,
        weight: Any,
        mean: Tensor,
        deviation: Tensor,
        *,
        input: bool,
        rectified: Any,
        summand: bool,
    ) -> NormGradients:
        dy = dy if rectified is None else dy * (rectified > 0)
        each = [
            torch.ops.aten.native_group_norm_backward(
                dy[b : b + 1].contiguous(), x[b : b + 1].contiguous(), mean[b : b + 1], deviation[b : b + 1], weight,
                1, x.shape[1], x[0, 0].numel(), mean.shape[1], [True, True, True],
            )
            for b in range(len(x))
        ]  # fmt: skip
        dx, weights, biases = zip(*each, strict=True)
        return NormGradients(torch.stack(weights), torch.stack(biases), torch.cat(dx), dy if summand else None)

    def layer_norm_backward(
        self, x: Tensor, dy: Tensor, weight: Any, mean: Tensor, deviation: Tensor, *, input: bool
    ) -> NormGradients:
        weight = torch.ones(x.shape[-1]) if weight is None else weight
        each = [
            torch.ops.aten.native_layer_norm_backward(
                dy[b].contiguous(), x[b].contiguous(), [x.shape[-1]],
                mean[b].contiguous().unsqueeze(-1), deviation[b].contiguous().unsqueeze(-1),
                weight, weight, [True, True, True],
            )
            for b in range(len(x))
        ]  # fmt: skip
        dx, weights, biases = zip(*each, strict=True)
        return NormGradients(torch.stack(weights), torch.stack(biases), torch.stack(dx))

    def square_rows(self, rows: Tensor, squares: Tensor) -> None:
        squares += rows.double().square().sum(1)

    def sum_rounded(self, rows: Tensor, factors: Tensor, total: Tensor) -> None:
        scaled = torch.where(factors[:, None] == 0, 0.0, rows.double() * factors[:, None])
        total += scaled.round().long().sum(0)

    def outer_squares(self, x: Tensor, dy: Tensor, squares: Tensor) -> None:
        squares += x.double().square().sum(1) * dy.double().square().sum(1)

    def outer_sum_rounded(self, x: Tensor, dy: Tensor, factors: Tensor, total: Tensor) -> None:
        self.sum_rounded(torch.einsum("bi,bo->boi", x, dy).flatten(1), factors, total)

    def release(self, total: Tensor, scale: float, released: Tensor) -> None:
        released.copy_(total.double() * scale)
        total.zero_()

    def _put(self, made: Tensor, rows: Tensor, squares: Any, add: bool) -> None:
        if add:
            rows += made.flatten(1)
        else:
            rows.copy_(made.flatten(1))
        if squares is not None:
            self.square_rows(rows, squares)


class NoNoise:
    """Adds nothing, so that sums can be seen."""

    distance = None

    def add_to(self, total: Tensor) -> None:
        pass

    def prefetch(self, *counts: int) -> None:
        pass


def engine_for(
    model: nn.Module, clipping: Clipping, examples: int, *, arena_bytes: int = 1 << 30, **other: Any
) -> Engine:
    """An engine without noise; its grid is fine."""
    settings = {"kernels": PlainRows(), "reduction": "mean"} | other
    return Engine(
        model,
        clipping,
        noise_multiplier="0.125",
        noise=NoNoise(),
        expected=float(examples),
        arena_bytes=arena_bytes,
        **settings,
    )


def private_gradient(
    engine: Engine, arguments: Sequence[Tensor], loss: Loss, examples: int, owners: Tensor | None = None
) -> Tensor:
    """One step's gradient of all trained parameters, flat, by the engine."""
    engine.model.train()
    outputs = engine.forward(engine.model.__call__, (tuple(arguments), {}), examples)
    losses = loss(outputs, torch.arange(examples))
    (losses.mean() if engine.reduction == "mean" else losses.sum()).backward()
    engine.gather(torch.arange(examples) if owners is None else owners)
    engine.release()
    made = [p.grad.double().flatten() for p in engine.model.parameters() if p.requires_grad]
    for parameter in engine.model.parameters():
        parameter.grad = None
    return torch.cat(made)


def exact_gradient(engine: Engine, arguments: Sequence[Tensor], loss: Loss, examples: Sequence[int]) -> Tensor:
    """The same of these examples, from micro-batches of one in float64, each clipped to the grid's own radius."""
    model = copy.deepcopy(engine.model).double()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    numbers = torch.tensor(engine.clipping.groups(names))
    grid = engine.grid
    radii = [radius * float(grid.step) for radius in engine.radii(grid)]
    total = torch.zeros(sum(parameter.numel() for parameter in parameters), dtype=torch.float64)
    for row in examples:
        some = [each[row : row + 1].double() if each.is_floating_point() else each[row : row + 1] for each in arguments]
        gradients = torch.autograd.grad(loss(model(*some), torch.tensor([row])).sum(), parameters, allow_unused=True)
        flat = [
            torch.zeros(parameter.numel(), dtype=torch.float64) if gradient is None else gradient.flatten()
            for gradient, parameter in zip(gradients, parameters, strict=True)
        ]
        squares = torch.zeros(len(radii), dtype=torch.float64)
        squares.index_add_(0, numbers, torch.stack([each.square().sum() for each in flat]))
        factors = engine.clipping.factors(squares.unsqueeze(1), radii=radii, whole=1.0)[:, 0]
        total += torch.cat([each * factors[number] for each, number in zip(flat, numbers, strict=True)])
    return total / engine.expected


def relative(made: Tensor, exact: Tensor) -> float:
    """The distance of two vectors over the length of the second."""
    return float((made - exact).norm() / exact.norm())
