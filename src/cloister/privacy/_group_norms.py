"""Group norms of examples, compiled: forward, and a backward that leaves each example's own gradients behind.

The sums over positions of ``dy`` and of ``dy · (x - mean)``, channel by channel, are an example's gradients of bias and
weight, and all that the gradient of its input asks for: so one pass makes the sums and another, while the example is
still in the second cache, the gradient. A sum with something else and a ReLU, where they follow, cost no pass of their
own. The mean is taken off before anything is multiplied: where it is many
deviations large, a sum of ``dy · x`` would have no digits left.

A forward takes both moments about some number first, then about the mean that they give; what is left of the sum about
it corrects both (Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983).

Vectors hold channels of a position where those are adjacent, positions of a channel where those are. A lane sums at
most ``_TERMS`` terms in float32, and such sums are added in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba.np.numpy_support import carray

from cloister._compiled import compiled
from cloister.privacy._packing import Images, padded
from cloister.privacy._registers import (
    Register,
    accumulate,
    add,
    kept,
    load,
    multiply_add,
    only,
    splat,
    store,
    subtract,
    total,
)
from cloister.privacy._threads import scratch, share
from cloister.privacy._vectors import WIDTH, pointer

__all__ = ["GroupNorm", "group_norm", "group_norm_backward"]

_TERMS = 32  # that a lane sums in float32
_BLOCK = 2 * _TERMS  # vectors at once: two sums beside each other, where one would be a chain


class GroupNorm(NamedTuple):
    """What belongs to a norm beside its input: addresses of float32.

    Attributes:
        groups: Of channels, equally many in each.
        means: ``groups`` an example.
        deviations: Their reciprocals, likewise.
        weight: A factor a channel, or 0 where there is none.
        bias: A summand a channel, or 0 where there is none.
        eps: Added to each variance.
        summand: What is added to the result; in a backward, where its gradients go. 0 where there is none.
        rectified: 1 where what is below zero is made zero in the end; in a backward, the results, or 0.
    """

    groups: int
    means: int
    deviations: int
    weight: int
    bias: int = 0
    eps: float = 0.0
    summand: int = 0
    rectified: int = 0


def group_norm(x: Images, y: int, norm: GroupNorm, count: int) -> None:
    """Writes means, deviations and normalised examples.

    Args:
        x: What is normalised.
        y: Address of the results, which lie one behind the other, each as its ``x``; so does a summand.
        norm: With room for its statistics.
        count: Examples.
    """
    size = _memory(x)
    share(count, lambda first, last: _forward(x, y, norm, scratch(size), first, last))


def group_norm_backward(x: Images, dy: Images, dx: int, weights: int, biases: int, norm: GroupNorm, count: int) -> None:
    """Writes gradients.

    Args:
        x: What was normalised.
        dy: The gradients of the result, laid out as ``x``.
        dx: Address of those of the input, which lie one behind the other, each as its ``x``; 0 for none.
        weights: Address of ``channels`` float32 an example: the gradients of the weight.
        biases: The same of the bias.
        norm: With its statistics.
        count: Examples.
    """
    size = _memory(x)
    share(count, lambda first, last: _backward(x, dy, dx, weights, biases, norm, scratch(size), first, last))


def _memory(x: Images) -> int:
    """Bytes of two float64 and four float32 a channel."""
    return 32 * padded(x.channels)


@compiled
def _forward(x: Images, y: int, norm: GroupNorm, memory: int, first: int, last: int) -> None:
    channels, positions = x.channels, x.height * x.width
    width = (channels + WIDTH - 1) // WIDTH * WIDTH
    each = channels // norm.groups
    squares = carray(pointer(memory), (width,), np.float64)
    sums = carray(pointer(memory + 8 * width), (width,), np.float64)
    table = carray(pointer(memory + 16 * width), (4, width), np.float32)
    middles, factors, shifts = table[0], table[1], table[2]
    scales, biases = np.empty(channels, np.float32), np.empty(channels, np.float32)
    _copied(norm.weight, 1, scales)
    _copied(norm.bias, 0, biases)
    for example in range(first, last):
        means = carray(pointer(norm.means + 4 * example * norm.groups), (norm.groups,), np.float32)
        deviations = carray(pointer(norm.deviations + 4 * example * norm.groups), (norm.groups,), np.float32)
        start, behind = x.address + example * x.batch, 4 * example * channels * positions
        summand = norm.summand + behind if norm.summand else 0
        for channel in range(channels):
            middles[channel] = 0
        for turn in range(2):
            _clear(memory, width)
            _moments_of(start, channels, positions, memory, width)
            for group in range(norm.groups):
                size = each * positions
                middle = np.float64(middles[group * each])
                rest, square = 0.0, 0.0
                for channel in range(group * each, group * each + each):
                    rest += sums[channel]
                    square += squares[channel]
                mean = np.float32(middle + rest / size)
                for channel in range(group * each, group * each + each):
                    middles[channel] = mean
                if turn:
                    deviation = 1 / np.sqrt(max(0.0, square - rest * rest / size) / size + norm.eps)
                    means[group], deviations[group] = mean, np.float32(deviation)
                    for channel in range(group * each, group * each + each):
                        factors[channel], shifts[channel] = np.float32(scales[channel] * deviation), biases[channel]
        table_at = memory + 16 * width
        _results_of(start, y + behind, summand, norm.rectified, channels, positions, table_at, width)


@compiled
def _backward(
    x: Images, dy: Images, dx: int, weights: int, biases: int, norm: GroupNorm, memory: int, first: int, last: int
) -> None:
    channels, positions = x.channels, x.height * x.width
    width = (channels + WIDTH - 1) // WIDTH * WIDTH
    each = channels // norm.groups
    products = carray(pointer(memory), (width,), np.float64)
    sums = carray(pointer(memory + 8 * width), (width,), np.float64)
    table = carray(pointer(memory + 16 * width), (4, width), np.float32)
    middles, factors, slopes, shifts = table[0], table[1], table[2], table[3]
    size = channels * positions
    scales = np.empty(channels, np.float32)
    _copied(norm.weight, 1, scales)
    for example in range(first, last):
        means = carray(pointer(norm.means + 4 * example * norm.groups), (norm.groups,), np.float32)
        deviations = carray(pointer(norm.deviations + 4 * example * norm.groups), (norm.groups,), np.float32)
        for group in range(norm.groups):
            for channel in range(group * each, group * each + each):
                middles[channel] = means[group]
        left, right, behind = x.address + example * x.batch, dy.address + example * dy.batch, 4 * example * size
        rectified, passed = 0, 0
        if norm.rectified:  # what the ReLU passes is written where it goes, or where the input's gradient will go
            rectified = norm.rectified + behind
            if norm.summand or dx:
                passed = (norm.summand if norm.summand else dx) + behind
        _clear(memory, width)
        if x.last:
            _gradients_last(left, right, rectified, passed, channels, positions, memory, width)
        else:
            _gradients_first(left, right, rectified, passed, middles, products, sums, channels, positions)
        weight = carray(pointer(weights + 4 * example * channels), (channels,), np.float32)
        bias = carray(pointer(biases + 4 * example * channels), (channels,), np.float32)
        for group in range(norm.groups):
            deviation = np.float64(deviations[group])
            of_sums, of_products = 0.0, 0.0
            for channel in range(group * each, group * each + each):
                weight[channel], bias[channel] = np.float32(products[channel] * deviation), np.float32(sums[channel])
                of_sums += scales[channel] * sums[channel]
                of_products += scales[channel] * products[channel]
            shift = np.float32(-deviation * of_sums / (each * positions))
            slope = np.float32(-deviation * deviation * deviation * of_products / (each * positions))
            for channel in range(group * each, group * each + each):
                factors[channel] = np.float32(scales[channel] * deviation)
                slopes[channel], shifts[channel] = slope, shift
        if not dx:
            continue
        if passed:
            right = passed
        if x.last:
            _inputs_last(left, right, dx + behind, channels, positions, memory + 16 * width, width)
        else:
            _inputs_first(left, right, dx + behind, table, channels, positions)


@compiled
def _copied(address: int, otherwise: float, target: np.ndarray) -> None:
    """Copies what a channel has of its own, or the same for all."""
    if address:
        found = carray(pointer(address), (target.size,), np.float32)
        for channel in range(target.size):
            target[channel] = found[channel]
    else:
        for channel in range(target.size):
            target[channel] = otherwise


@compiled
def _clear(memory: int, width: int) -> None:
    sums = carray(pointer(memory), (2 * width,), np.float64)
    for channel in range(2 * width):
        sums[channel] = 0


# ---- moments --------------------------------------------------------------------------------------------------------


@compiled
def _moments_of(start: int, channels: int, positions: int, memory: int, width: int) -> None:
    step = 4 * channels
    for at in range(0, positions, _BLOCK):
        count = min(_BLOCK, positions - at)
        for channel in range(0, channels, WIDTH):
            x, some = start + at * step + 4 * channel, channels - channel
            middle = load(memory + 16 * width + 4 * channel, None)
            if some >= WIDTH:
                squares, sums = _moments(x, step, count, middle, None)
            else:
                squares, sums = _moments(x, step, count, middle, some)
            accumulate(squares, memory + 8 * channel)
            accumulate(sums, memory + 8 * (width + channel))


@compiled
def _moments(x: int, step: int, count: int, middle: Register, some: int | None) -> tuple[Register, Register]:
    """Sums of ``(x - middle)²`` and of ``x - middle``, of ``count`` vectors."""
    squares_0 = squares_1 = sums_0 = sums_1 = splat(np.float32(0))
    for _ in range(count // 2):
        value = only(subtract(load(x, some), middle), some)
        squares_0, sums_0 = multiply_add(value, value, squares_0), add(sums_0, value)
        value = only(subtract(load(x + step, some), middle), some)
        squares_1, sums_1 = multiply_add(value, value, squares_1), add(sums_1, value)
        x += 2 * step
    if count % 2:
        value = only(subtract(load(x, some), middle), some)
        squares_0, sums_0 = multiply_add(value, value, squares_0), add(sums_0, value)
    return add(squares_0, squares_1), add(sums_0, sums_1)


# ---- results --------------------------------------------------------------------------------------------------------


@compiled
def _results_of(
    start: int, to: int, summand: int, rectified: int, channels: int, positions: int, table: int, width: int
) -> None:
    step = 4 * channels
    for at in range(0, positions, _BLOCK):
        count = min(_BLOCK, positions - at)
        for channel in range(0, channels, WIDTH):
            here, some = at * step + 4 * channel, channels - channel
            own = table + 4 * channel
            middle, factor, shift = load(own, None), load(own + 4 * width, None), load(own + 8 * width, None)
            plus = summand + here if summand else 0
            if some >= WIDTH:
                _results(start + here, to + here, plus, rectified, step, count, middle, factor, shift, None)
            else:
                _results(start + here, to + here, plus, rectified, step, count, middle, factor, shift, some)


@compiled
def _results(
    x: int, y: int, summand: int, rectified: int, step: int, count: int,
    middle: Register, factor: Register, shift: Register, some: int | None,
) -> None:  # fmt: skip
    """``(x - middle) · factor + shift``, of ``count`` vectors, and what follows."""
    for index in range(count):
        at = index * step
        value = multiply_add(subtract(load(x + at, some), middle), factor, shift)
        if summand:
            value = add(value, load(summand + at, some))
        if rectified:
            value = kept(value, value)
        store(value, y + at, some)


# ---- sums of gradients ----------------------------------------------------------------------------------------------


@compiled
def _gradients_last(
    left: int, right: int, rectified: int, passed: int, channels: int, positions: int, memory: int, width: int
) -> None:
    step = 4 * channels
    for at in range(0, positions, _BLOCK):
        count = min(_BLOCK, positions - at)
        for channel in range(0, channels, WIDTH):
            here, some = at * step + 4 * channel, channels - channel
            middle = load(memory + 16 * width + 4 * channel, None)
            y, to = rectified + here if rectified else 0, passed + here if passed else 0
            if some >= WIDTH:
                products, sums = _gradients(left + here, right + here, y, to, step, count, middle, None)
            else:
                products, sums = _gradients(left + here, right + here, y, to, step, count, middle, some)
            accumulate(products, memory + 8 * channel)
            accumulate(sums, memory + 8 * (width + channel))


@compiled
def _gradients_first(
    left: int, right: int, rectified: int, passed: int,
    middles: np.ndarray, products: np.ndarray, sums: np.ndarray, channels: int, positions: int,
) -> None:  # fmt: skip
    for channel in range(channels):
        here, middle = 4 * channel * positions, splat(middles[channel])
        of_products, of_sums = 0.0, 0.0
        for at in range(0, positions // WIDTH, _BLOCK):
            count, start = min(_BLOCK, positions // WIDTH - at), here + 4 * WIDTH * at
            y, to = rectified + start if rectified else 0, passed + start if passed else 0
            found = _gradients(left + start, right + start, y, to, 4 * WIDTH, count, middle, None)
            of_products, of_sums = of_products + total(found[0]), of_sums + total(found[1])
        rest = positions % WIDTH
        if rest:
            start = here + 4 * (positions - rest)
            y, to = rectified + start if rectified else 0, passed + start if passed else 0
            found = _gradients(left + start, right + start, y, to, 0, 1, middle, rest)
            of_products, of_sums = of_products + total(found[0]), of_sums + total(found[1])
        products[channel], sums[channel] = of_products, of_sums


@compiled
def _gradients(
    x: int, dy: int, y: int, to: int, step: int, count: int, middle: Register, some: int | None
) -> tuple[Register, Register]:
    """Sums of ``dy · (x - middle)`` and of ``dy``, of ``count`` vectors; of what ``y`` passes, where there is one."""
    products_0 = products_1 = sums_0 = sums_1 = splat(np.float32(0))
    for pair in range(count // 2):
        at = 2 * pair * step
        value, gradient = subtract(load(x + at, some), middle), _passed(dy, y, to, at, some)
        products_0, sums_0 = multiply_add(value, gradient, products_0), add(sums_0, gradient)
        at += step
        value, gradient = subtract(load(x + at, some), middle), _passed(dy, y, to, at, some)
        products_1, sums_1 = multiply_add(value, gradient, products_1), add(sums_1, gradient)
    if count % 2:
        at = (count - 1) * step
        value, gradient = subtract(load(x + at, some), middle), _passed(dy, y, to, at, some)
        products_0, sums_0 = multiply_add(value, gradient, products_0), add(sums_0, gradient)
    return add(products_0, products_1), add(sums_0, sums_1)


@compiled
def _passed(dy: int, y: int, to: int, at: int, some: int | None) -> Register:
    """A vector of gradients; where there are results, what a ReLU passes of it, which is kept."""
    gradient = load(dy + at, some)
    if y:
        gradient = kept(gradient, load(y + at, some))
    if to:
        store(gradient, to + at, some)
    return gradient


# ---- gradients of inputs --------------------------------------------------------------------------------------------


@compiled
def _inputs_last(left: int, right: int, to: int, channels: int, positions: int, table: int, width: int) -> None:
    step = 4 * channels
    for at in range(0, positions, _BLOCK):
        count = min(_BLOCK, positions - at)
        for channel in range(0, channels, WIDTH):
            here, some = at * step + 4 * channel, channels - channel
            own = table + 4 * channel
            middle, factor = load(own, None), load(own + 4 * width, None)
            slope, shift = load(own + 8 * width, None), load(own + 12 * width, None)
            if some >= WIDTH:
                _inputs(left + here, right + here, to + here, step, count, middle, factor, slope, shift, None)
            else:
                _inputs(left + here, right + here, to + here, step, count, middle, factor, slope, shift, some)


@compiled
def _inputs_first(left: int, right: int, to: int, table: np.ndarray, channels: int, positions: int) -> None:
    count, rest = positions // WIDTH, positions % WIDTH
    for channel in range(channels):
        here = 4 * channel * positions
        middle, factor = splat(table[0, channel]), splat(table[1, channel])
        slope, shift = splat(table[2, channel]), splat(table[3, channel])
        _inputs(left + here, right + here, to + here, 4 * WIDTH, count, middle, factor, slope, shift, None)
        if rest:
            here += 4 * (positions - rest)
            _inputs(left + here, right + here, to + here, 0, 1, middle, factor, slope, shift, rest)


@compiled
def _inputs(
    x: int, dy: int, dx: int, step: int, count: int,
    middle: Register, factor: Register, slope: Register, shift: Register, some: int | None,
) -> None:  # fmt: skip
    """``dy · factor + (x - middle) · slope + shift``, of ``count`` vectors."""
    for index in range(count):
        at = index * step
        rest = multiply_add(subtract(load(x + at, some), middle), slope, shift)
        store(multiply_add(load(dy + at, some), factor, rest), dx + at, some)
