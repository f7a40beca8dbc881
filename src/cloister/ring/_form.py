"""The trilinear form of an operator with a rank-one tensor in the result's place, over F_p, without the product.

:mod:`cloister.ring._operators` defines the form ``T(x, w, y)``. Here two of its tensors are ``int8`` operands and the
third is R, an outer product of vectors of field elements. Each operand is contracted with the vectors of its own axes
first, which is nearly all of the work; nothing is unfolded. Costs in multiplications of 64-bit words: an ``int8`` by
an element takes two, two elements one; ``|·|`` is a number of entries, images are ``(B, C, H, W)``, taps ``h × w``:

* matrix product: ``2·|left| + 2·|right|`` and one inner product. Where one contraction must run down the columns, the
  smaller operand takes it, as rows are read faster.
* ``forward``: filters are summed over their outputs, ``f[c, k] = Σ_o r_o w[o, c, k]``; images are reduced to one number
  a channel and tap, ``m[c, k] = Σ_b r_b Σ_p s_p x[b, c, p + k]``; then ``T = <f, m>``. As ``s_p = s_i·s_j``, pixels are
  summed an axis at a time. Large batches are summed before that, ``2·|w| + 2·|x| + w·C·H·W``; small ones after,
  ``2·|w| + 2·w·|x| + w·B·C·H``; both ``+ h·w·C·H + h·w·C``.
* ``input_gradient``: the same with the output's gradient for the images, and filters summed over their inputs.
* ``weight_gradient``: images and gradients are summed over channels, which leaves one image a sample and group, as the
  batch cannot be summed: ``2·|x| + 2·|y| + B·groups·(w·H·W' + h·H'·W' + H'·W')``. For a depthwise convolution this
  exceeds the product itself: there is nothing to sum.

Sizes decide the order of the work, values never do.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloister.ring._contractions import dot_rows, sum_rows
from cloister.ring._field import Elements, P, correlate, dot_fields, outer_product
from cloister.ring._operators import Conv2d, MatMul, Product

__all__ = ["axes", "evaluate", "multiplications", "outer"]

Integers = NDArray[np.int8]
_ONLY = np.zeros(1, np.int64)
_FIELD = 10  # a product of elements takes as long as this many of an int8 by a limb: it chooses an order, no more
_LARGEST = 1 << 20  # elements of the weight gradient's intermediate images that are held at once


def axes(product: Product) -> tuple[int, ...]:
    """Lengths of R's vectors: every axis of a convolution's result; all rows, and columns, of a matrix product's."""
    if isinstance(product.operator, MatMul):
        return math.prod(product.result[:-1]), product.result[-1]
    return product.result


def outer(vectors: tuple[Elements, ...]) -> Elements:
    """The entries of an outer product, row-major; one multiplication an entry of each partial product."""
    entries = vectors[0]
    for vector in vectors[1:]:
        entries = outer_product(entries, vector)
    return entries


def evaluate(product: Product, vectors: tuple[Elements, ...], left: Integers, right: Integers) -> int:
    """``T`` with ``R = outer(vectors)`` in the result's place, in ``[0, p)``.

    Shapes: ``left`` and ``right`` int8, contiguous, as ``product.left`` and ``product.right``; ``vectors`` as long as
    :func:`axes` says.
    """
    if not (left.size and right.size):
        return 0
    if isinstance(product.operator, MatMul):
        return _matmul(product, vectors, left, right)
    if product.role == "weight_gradient":
        return _weights(product, product.operator, vectors, left, right)
    return _images(product, product.operator, vectors, left, right)


def multiplications(product: Product) -> int:
    """Multiplications of 64-bit words in :func:`evaluate`, from public shapes."""
    entries = 2 * (math.prod(product.left) + math.prod(product.right))
    if isinstance(product.operator, MatMul):
        down_left = product.role == "forward" and _left_is_smaller(product)
        return entries + math.prod((product.w if down_left else product.left)[:-1])
    if product.role == "weight_gradient":
        batch, _, rows, _ = product.x
        height, width = product.w[2:]
        out = math.prod(product.y[2:])
        return entries + batch * product.operator.groups * (width * rows * product.y[3] + height * out + out)
    images = _plane(product)
    image, line = images.channels * images.rows * images.columns, images.channels * images.rows * images.width
    if _sums_batch(images):
        columns = image * images.width
    else:
        columns = 2 * (images.width - 1) * images.batch * image + images.batch * line  # |x| is counted once already
    taps = images.channels * images.height * images.width
    pixels = images.columns if images.height == images.width == 1 else 0  # of the row that joins two axes into one
    return entries + columns + line * images.height + taps + pixels


def _dot(left: Elements, right: Elements) -> int:
    return int(dot_fields(left.reshape(1, -1), right.reshape(1, -1))[0, 0])


# ---- matrix products -------------------------------------------------------------------------------------


def _left_is_smaller(product: Product) -> bool:
    return math.prod(product.left) <= math.prod(product.right)


def _matmul(product: Product, vectors: tuple[Elements, ...], left: Integers, right: Integers) -> int:
    count = math.prod(product.x[:-2])
    left = left.reshape(count, *left.shape[-2:])
    right = right.reshape(count, *right.shape[-2:])
    each, shared = np.arange(count), np.zeros(count, np.int64)
    by_row, by_column = vectors[0].reshape(count, -1), vectors[1].reshape(1, -1)
    if product.role == "weight_gradient":  # x (B, I) and y (B, O): both to (B,)
        inputs = dot_rows(left, by_column[:, None], shared)
        return _dot(inputs, dot_rows(right, by_row[:, None], each))
    if product.role == "forward" and _left_is_smaller(product):  # x (B, I) to (I,), w (O, I) to (O,)
        inputs = sum_rows(left, by_row, each)
        outputs = dot_rows(right, inputs[:, None], each)
        return _dot(outputs.reshape(count, -1), np.broadcast_to(by_column, (count, by_column.size)))
    # w (O, I) to the vector over the contracted axis, then the left rows to (B,)
    if product.role == "forward":
        contracted = sum_rows(right, by_column, shared)
    else:
        contracted = dot_rows(right, by_column[:, None], shared)[..., 0]
    return _dot(dot_rows(left, contracted[:, None], each), by_row)


# ---- convolutions: forward and input gradient ------------------------------------------------------------


class _Images(NamedTuple):
    """The int8 images of a product and the kernel over them. A pointwise kernel sees each image as one long row."""

    batch: int
    channels: int
    rows: int
    columns: int
    height: int
    width: int


def _plane(product: Product) -> _Images:
    batch, channels, rows, columns = product.left
    height, width = product.w[2:]
    if height == width == 1:
        rows, columns = 1, rows * columns
    return _Images(batch, channels, rows, columns, height, width)


def _sums_batch(images: _Images) -> bool:
    """Whether to sum the images first: one field product a tap then replaces B·(w - 1) of int8 by element."""
    return images.batch * (images.width - 1) * 2 > _FIELD * images.width


def _images(product: Product, operator: Conv2d, vectors: tuple[Elements, ...], left: Integers, right: Integers) -> int:
    by_sample, by_channel, by_row, by_column = vectors
    groups, (outputs, inputs, height, width) = operator.groups, right.shape
    if product.role == "forward":  # a filter a global input channel
        filters = right.reshape(groups, outputs // groups, inputs * height * width)
        summed = sum_rows(filters, by_channel.reshape(groups, -1), np.arange(groups))
    else:  # a filter an output channel
        filters = right.reshape(outputs, inputs, height * width)
        summed = sum_rows(filters, by_channel.reshape(groups, -1), np.arange(outputs) // (outputs // groups))
    rows, columns = (_taps(product, operator, axis, s) for axis, s in enumerate((by_row, by_column)))
    images = _plane(product)
    if images.height == images.width == 1:
        rows, columns = np.ones((1, 1), np.uint64), outer((rows[0], columns[0])).reshape(1, -1)
    return _dot(summed, _moments(images, left, by_sample, rows, columns))


def _taps(product: Product, operator: Conv2d, axis: int, factors: Elements) -> Elements:
    """``out[a, q]``: the factor of the pixel that tap ``a`` joins to pixel ``q`` of the operand's images, or zero.

    Shapes: ``(size of the result's axis,)`` to ``(taps, size of the operand's axis)``.
    """
    taps = np.arange(product.w[2 + axis])[:, None]
    pixels = np.arange(product.y[2 + axis])
    place = pixels * operator.stride[axis] + taps * operator.dilation[axis] - operator.padding[axis]
    tap, pixel = np.nonzero((place >= 0) & (place < product.x[2 + axis]))
    out = np.zeros((taps.size, product.left[2 + axis]), np.uint64)
    if product.role == "forward":
        out[tap, place[tap, pixel]] = factors[pixel]
    else:
        out[tap, pixel] = factors[place[tap, pixel]]
    return out


def _moments(images: _Images, values: Integers, by_sample: Elements, rows: Elements, columns: Elements) -> Elements:
    """One element a channel and tap: ``Σ_bpq by_sample[b] · rows[a, p] · columns[e, q] · values[b, c, p, q]``.

    Shapes: ``(height, rows)`` and ``(width, columns)`` elements, to ``(channels, height, width)``.
    """
    lines = images.channels * images.rows
    if _sums_batch(images):
        summed = sum_rows(values.reshape(1, images.batch, -1), by_sample[None], _ONLY)
        across = dot_fields(summed.reshape(lines, images.columns), columns)
    else:
        each = dot_rows(values.reshape(1, images.batch * lines, images.columns), columns[None], _ONLY)
        by_line = np.ascontiguousarray(each.reshape(images.batch, lines * images.width).T)
        across = dot_fields(by_line, by_sample[None])
    by_tap = across.reshape(images.channels, images.rows, images.width).transpose(0, 2, 1)
    down = dot_fields(np.ascontiguousarray(by_tap).reshape(-1, images.rows), rows)
    return down.reshape(images.channels, images.width, images.height).transpose(0, 2, 1)


# ---- convolutions: weight gradient -----------------------------------------------------------------------


def _weights(product: Product, operator: Conv2d, vectors: tuple[Elements, ...], left: Integers, right: Integers) -> int:
    by_output, by_input, by_row, by_column = vectors
    total = 0
    largest = max(math.prod(product.x[2:]), math.prod(product.y[2:])) * operator.groups
    step = max(1, _LARGEST // largest)
    for start in range(0, product.x[0], step):
        images = _one_channel(left[start : start + step], operator.groups, by_input.reshape(1, -1))
        gradients = _one_channel(right[start : start + step], operator.groups, by_output.reshape(operator.groups, -1))
        for axis, taps in ((2, by_column), (1, by_row)):
            geometry = (part[axis - 1] for part in (operator.stride, operator.padding, operator.dilation))
            before, size, after = images.shape[:axis], product.y[1 + axis], images.shape[axis + 1 :]
            lines = images.reshape(math.prod(before), -1, math.prod(after))
            images = correlate(lines, taps, *geometry, size).reshape(*before, size, *after)
        total += _dot(images, gradients)
    return total % P


def _one_channel(values: Integers, groups: int, factors: Elements) -> Elements:
    """Sums each group's channels: ``(B, C, H, W)`` int8 and ``(1 or groups, C / groups)`` to ``(B·groups, H, W)``."""
    batch, channels, rows, columns = values.shape
    which = np.arange(batch * groups) % len(factors)
    summed = sum_rows(values.reshape(batch * groups, channels // groups, rows * columns), factors, which)
    return summed.reshape(batch * groups, rows, columns)
