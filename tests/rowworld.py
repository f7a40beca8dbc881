"""Oracles and generators for rows: each example alone, in float64, by torch's own autograd."""

import math

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

LIMIT = 1 << 27
LAYOUTS = ("first", "last", "sliced", "reversed")


def drawn(shape: tuple[int, ...], seed: int, layout: str = "first") -> Tensor:
    """Normal float32, with a mean other than zero; laid out as asked."""
    generator = torch.Generator().manual_seed(seed)

    def fresh(size: tuple[int, ...]) -> Tensor:
        return torch.randn(size, generator=generator) + 0.25

    if layout == "last" and len(shape) == 4:
        return fresh(shape).contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        return fresh(tuple(2 * size + 1 for size in shape))[tuple(slice(1, None, 2) for _ in shape)]
    if layout == "reversed":
        return fresh(tuple(reversed(shape))).permute(*reversed(range(len(shape))))
    return fresh(shape)


def conv2d_oracle(x: Tensor, dy: Tensor, *, kernel: tuple[int, int], groups: int, **geometry: tuple) -> Tensor:
    """``(B, O, C/g, h, w)`` float64."""
    rows = []
    for one, gradient in zip(x.double(), dy.double(), strict=True):
        weight = torch.zeros(dy.shape[1], x.shape[1] // groups, *kernel, dtype=torch.float64, requires_grad=True)
        F.conv2d(one[None], weight, groups=groups, **geometry).backward(gradient[None])
        rows.append(weight.grad)
    shape = (0, dy.shape[1], x.shape[1] // groups, *kernel)
    return torch.stack(rows) if rows else torch.zeros(shape, dtype=torch.float64)


def linear_oracle(x: Tensor, dy: Tensor) -> Tensor:
    """``(B, O, I)`` float64: dyᵀ · x, position by position."""
    left, right = (side.double().reshape(len(x), math.prod(x.shape[1:-1]), side.shape[-1]) for side in (dy, x))
    return torch.einsum("bto,bti->boi", left, right)


def embedding_oracle(tokens: Tensor, dy: Tensor, vocabulary: int) -> Tensor:
    """``(B, V, D)`` float64."""
    rows = torch.zeros(len(tokens), vocabulary, dy.shape[2], dtype=torch.float64)
    for example, (which, gradient) in enumerate(zip(tokens, dy.double(), strict=True)):
        weight = torch.zeros(vocabulary, dy.shape[2], dtype=torch.float64, requires_grad=True)
        F.embedding(which, weight).backward(gradient)
        rows[example] = weight.grad
    return rows


def sum_oracle(rows: Tensor, factors: Tensor) -> Tensor:
    """``(P,)`` int64: each coordinate scaled and rounded by itself, in numbers of Python's."""
    total = [0] * rows.shape[1]
    scaled = rows * factors.float()[:, None]
    for row in scaled.tolist():
        for column, value in enumerate(row):
            if abs(value) <= LIMIT:  # no number is not
                total[column] += round(value)
    return torch.tensor(total, dtype=torch.int64)


PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def convolutions(draw: st.DrawFn) -> dict:
    """Geometries of every kind, with channels on both sides of every tile; empty batches and batches of one."""
    kernel = draw(st.sampled_from(((1, 1), (3, 3), (3, 3), (1, 3), (5, 5), (2, 4), (7, 3), (3, 7))))
    groups = draw(st.sampled_from((1, 1, 1, 2, 3, 8)))
    inputs = draw(st.sampled_from((1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17)))
    outputs = draw(st.sampled_from((1, 2, 3, 5, 8, 9, 16, 17, 32, 35, 48)))
    if groups > 1:
        inputs, outputs = min(inputs, 9), min(outputs, 17)
    if draw(st.integers(0, 4)) == 0:  # depthwise
        groups, inputs, outputs = draw(st.sampled_from((2, 5, 16, 19, 33))), 1, draw(st.sampled_from((1, 2)))
    stride, dilation = draw(PAIRS), draw(st.sampled_from(((1, 1), (1, 1), (2, 1), (1, 2), (2, 3))))
    padding = draw(st.sampled_from(((0, 0), (1, 1), (2, 0), (0, 3), (4, 4))))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    height, width = (size + draw(st.sampled_from((0, 1, 3, 8, 17))) for size in least)
    return {
        "shape": (draw(st.sampled_from((0, 1, 1, 2, 3))), groups * inputs, height, width),
        "outputs": groups * outputs,
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }
