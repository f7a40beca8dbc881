"""The backward of layer norms, compiled, which leaves each example's own gradients behind.

A position's gradients are read once: they go into the sums over positions, which are the example's gradients of weight
and bias, and into the two sums over channels that the gradient of the position's own input asks for.

Lanes are channels. A lane of the sums over positions has at most ``_TERMS`` terms in float32; those are added in
float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba.np.numpy_support import carray

from cloister._compiled import compiled
from cloister.privacy._packing import padded
from cloister.privacy._registers import (
    Register,
    accumulate,
    add,
    load,
    multiply,
    multiply_add,
    splat,
    store,
    subtract,
    total,
)
from cloister.privacy._threads import scratch, share
from cloister.privacy._vectors import WIDTH, pointer

__all__ = ["LayerNorm", "Positions", "layer_norm_backward"]

_TERMS = 32  # that a lane sums in float32


class Positions(NamedTuple):
    """Where positions lie; a position's channels are adjacent float32.

    Attributes:
        address: Of the first.
        batch: Bytes from one example to the next.
        step: Bytes from one position to the next.
    """

    address: int
    batch: int
    step: int


class LayerNorm(NamedTuple):
    """A layer norm.

    Attributes:
        positions: Of an example.
        channels: Of a position.
        means: Address of ``positions`` float32 an example.
        deviations: The same of their reciprocals.
        weight: Address of a float32 a channel; 0 where there is none.
    """

    positions: int
    channels: int
    means: int
    deviations: int
    weight: int


def layer_norm_backward(
    x: Positions, dy: Positions, dx: int, weights: int, biases: int, norm: LayerNorm, count: int
) -> None:
    """Writes gradients.

    Args:
        x: What was normalised.
        dy: The gradients of the result.
        dx: Address of those of the input, which lie one behind the other; 0 for none.
        weights: Address of ``channels`` float32 an example: the gradients of the weight.
        biases: The same of the bias.
        norm: The norm, with its statistics.
        count: Examples.
    """
    size = 28 * padded(norm.channels)
    share(count, lambda first, last: _backward(x, dy, dx, weights, biases, norm, scratch(size), first, last))


@compiled
def _backward(
    x: Positions, dy: Positions, dx: int, weights: int, biases: int, norm: LayerNorm, memory: int, first: int, last: int
) -> None:
    channels, positions = norm.channels, norm.positions
    width = (channels + WIDTH - 1) // WIDTH * WIDTH
    totals = carray(pointer(memory), (2 * width,), np.float64)
    sums, scales = memory + 16 * width, memory + 24 * width
    factors = carray(pointer(scales), (channels,), np.float32)
    for channel in range(channels):
        factors[channel] = 1
    if norm.weight:
        found = carray(pointer(norm.weight), (channels,), np.float32)
        for channel in range(channels):
            factors[channel] = found[channel]
    for example in range(first, last):
        means = carray(pointer(norm.means + 4 * example * positions), (positions,), np.float32)
        deviations = carray(pointer(norm.deviations + 4 * example * positions), (positions,), np.float32)
        for channel in range(2 * width):
            totals[channel] = 0
        for at in range(0, positions, _TERMS):
            _clear(sums, width)
            for position in range(at, min(at + _TERMS, positions)):
                left = x.address + example * x.batch + position * x.step
                right = dy.address + example * dy.batch + position * dy.step
                middle, deviation = splat(means[position]), splat(deviations[position])
                found = _gradients(left, right, scales, sums, channels, width, middle, deviation)
                if dx:
                    scale = np.float64(deviations[position])
                    slope = splat(np.float32(-scale * scale * found[0] / channels))
                    shift = splat(np.float32(-scale * found[1] / channels))
                    to = dx + 4 * channels * (example * positions + position)
                    _inputs(left, right, to, scales, channels, middle, deviation, slope, shift)
            for channel in range(0, 2 * width, WIDTH):
                accumulate(load(sums + 4 * channel, None), memory + 8 * channel)
        weight = carray(pointer(weights + 4 * example * channels), (channels,), np.float32)
        bias = carray(pointer(biases + 4 * example * channels), (channels,), np.float32)
        for channel in range(channels):
            weight[channel], bias[channel] = np.float32(totals[channel]), np.float32(totals[width + channel])


@compiled
def _clear(sums: int, width: int) -> None:
    zero = splat(np.float32(0))
    for channel in range(0, 2 * width, WIDTH):
        store(zero, sums + 4 * channel, None)


@compiled
def _gradients(
    x: int, dy: int, scales: int, sums: int, channels: int, width: int, middle: Register, deviation: Register
) -> tuple[float, float]:
    """Adds a position to the sums over positions; gives its own: of products with the normalised input, and without."""
    products = alone = splat(np.float32(0))
    for at in range(0, 4 * (channels // WIDTH * WIDTH), 4 * WIDTH):
        value, gradient = multiply(subtract(load(x + at, None), middle), deviation), load(dy + at, None)
        _add(value, gradient, sums + at, width)
        scaled = multiply(gradient, load(scales + at, None))
        products, alone = multiply_add(value, scaled, products), add(alone, scaled)
    some = channels % WIDTH
    if some:
        at = 4 * (channels - some)
        value, gradient = multiply(subtract(load(x + at, some), middle), deviation), load(dy + at, some)
        _add(value, gradient, sums + at, width)
        scaled = multiply(gradient, load(scales + at, some))
        products, alone = multiply_add(value, scaled, products), add(alone, scaled)
    return total(products), total(alone)


@compiled
def _add(value: Register, gradient: Register, sums: int, width: int) -> None:
    store(multiply_add(value, gradient, load(sums, None)), sums, None)
    store(add(load(sums + 4 * width, None), gradient), sums + 4 * width, None)


@compiled
def _inputs(
    x: int, dy: int, dx: int, scales: int, channels: int,
    middle: Register, deviation: Register, slope: Register, shift: Register,
) -> None:  # fmt: skip
    """``dy · scale · deviation + (x - middle) · slope + shift``."""
    for at in range(0, 4 * (channels // WIDTH * WIDTH), 4 * WIDTH):
        rest = multiply_add(subtract(load(x + at, None), middle), slope, shift)
        scaled = multiply(load(dy + at, None), load(scales + at, None))
        store(multiply_add(scaled, deviation, rest), dx + at, None)
    some = channels % WIDTH
    if some:
        at = 4 * (channels - some)
        rest = multiply_add(subtract(load(x + at, some), middle), slope, shift)
        scaled = multiply(load(dy + at, some), load(scales + at, some))
        store(multiply_add(scaled, deviation, rest), dx + at, some)
