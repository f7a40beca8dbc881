"""Convolutions with few channels a group, depthwise ones above all: one product at a time, in int32.

As matrices they would be many tiny ones; as they stand they are limited by memory. ``int32`` multiplication and
addition wrap, so one word product is one instruction. On a CPU the loops are compiled and share the images among
torch's threads; elsewhere torch makes one pass for each tap.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cloister._compiled import compiled
from cloister.ring._windows import Axis, framed, windows

if TYPE_CHECKING:
    from torch import Tensor

    from cloister.ring._operators import Shape

__all__ = ["is_narrow", "narrow_correlation", "narrow_weights"]

_CHANNELS = 8  # of a group, below which its matrices are slower than this: see benchmarks/ring_kernels.py
_PIECE_BYTES = 1 << 22  # of framed images at once, on a CPU
_PIECE_BYTES_GPU = 1 << 28


def is_narrow(w: Shape, groups: int) -> bool:
    """Whether a convolution with weights ``(O, C / groups, h, w)`` belongs here."""
    return groups > 1 and min(w[0] // groups, w[1]) <= _CHANNELS


def narrow_correlation(images: Tensor, weights: Tensor, rows: Axis, columns: Axis, out: Tensor) -> None:
    """Sums each window of ``images`` with its group's ``weights`` into ``out``.

    Shapes: ``images`` is ``(B, C, H, W)``, ``weights`` is ``(O, C / groups, h, w)``, both integers; ``out`` is
    ``(B, O, rows.count, columns.count)`` int32, of any strides, and is overwritten.
    """
    filters = weights.to(torch.int32).contiguous()
    correlate = _correlate_compiled if images.device.type == "cpu" else _correlate_by_tap
    for which, frame in _frames(images, rows, columns):
        out[which] = correlate(frame, filters, rows, columns)


def narrow_weights(images: Tensor, gradients: Tensor, rows: Axis, columns: Axis, out: Tensor) -> None:
    """Sums windows of ``images`` with ``gradients`` ``(B, O, rows.count, columns.count)`` over images and places.

    Shapes: ``out`` is ``(O, C / groups, rows.taps, columns.taps)`` int32, and is overwritten.
    """
    gather = _gather_compiled if images.device.type == "cpu" else _gather_by_tap
    out.zero_()
    for which, frame in _frames(images, rows, columns):
        gather(frame, gradients[which].to(torch.int32).contiguous(), rows, columns, out)


def _frames(images: Tensor, rows: Axis, columns: Axis) -> Any:
    """Some images at a time, as int32, framed."""
    size = images.shape[1] * rows.reach * columns.reach * 4
    most = _PIECE_BYTES if images.device.type == "cpu" else _PIECE_BYTES_GPU
    together = max(1, most // size)
    for image in range(0, images.shape[0], together):
        which = slice(image, image + together)
        yield which, framed(images[which], rows, columns, channels_last=False).to(torch.int32)


# ---- torch: one pass a tap -------------------------------------------------------------------------------


def _correlate_by_tap(frame: Tensor, weights: Tensor, rows: Axis, columns: Axis) -> Tensor:
    each = weights.shape[1]
    groups = frame.shape[1] // each
    filters = weights.view(groups, -1, *weights.shape[1:])
    read = windows(frame[None], rows, columns, groups)[:, :, :, :, 0].permute(1, 0, 2, 3, 4, 5, 6)
    shape = (frame.shape[0], groups, filters.shape[1], rows.count, columns.count)
    out = torch.zeros(shape, dtype=torch.int32, device=frame.device)
    for row in range(rows.taps):
        for column in range(columns.taps):
            for channel in range(each):
                image = read[:, :, None, :, :, row, column, channel]
                out.addcmul_(image, filters[None, :, :, channel, row, column, None, None])
    return out.flatten(1, 2)


def _gather_by_tap(frame: Tensor, gradients: Tensor, rows: Axis, columns: Axis, out: Tensor) -> None:
    each = out.shape[1]
    groups = frame.shape[1] // each
    read = windows(frame[None], rows, columns, groups)[:, :, :, :, 0].permute(1, 0, 2, 3, 4, 5, 6)
    grouped = gradients.view(gradients.shape[0], groups, -1, rows.count, columns.count)
    total = out.view(groups, -1, *out.shape[1:])
    for row in range(rows.taps):
        for column in range(columns.taps):
            for channel in range(each):
                image = read[:, :, None, :, :, row, column, channel]
                total[:, :, channel, row, column] += (image * grouped).sum((0, 3, 4), dtype=torch.int32)


# ---- CPU: compiled ---------------------------------------------------------------------------------------


def _correlate_compiled(frame: Tensor, weights: Tensor, rows: Axis, columns: Axis) -> Tensor:
    out = torch.zeros(frame.shape[0], weights.shape[0], rows.count, columns.count, dtype=torch.int32)
    arrays = frame.numpy(), weights.numpy(), out.numpy()
    geometry = rows.step, rows.spread, columns.step, columns.spread
    _shared(frame.shape[0] * weights.shape[0], lambda first, last: _correlate(*arrays, *geometry, first, last))
    return out


def _gather_compiled(frame: Tensor, gradients: Tensor, rows: Axis, columns: Axis, out: Tensor) -> None:
    arrays = frame.numpy(), gradients.numpy(), out.numpy()
    geometry = rows.step, rows.spread, columns.step, columns.spread
    _shared(out.shape[0], lambda first, last: _gather(*arrays, *geometry, first, last))


def _shared(count: int, work: Callable[[int, int], None]) -> None:
    """Shares ``count`` independent pieces among as many threads as torch uses."""
    threads = min(torch.get_num_threads(), count)
    if threads == 1:
        work(0, count)
        return
    edges = [count * part // threads for part in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, edges, edges[1:]))


@compiled
def _correlate(
    frame: Any,
    weights: Any,
    out: Any,
    row_step: int,
    row_spread: int,
    column_step: int,
    column_spread: int,
    first: int,
    last: int,
) -> None:
    outputs, each, height, width = weights.shape
    group_outputs = outputs * each // frame.shape[1]
    for piece in range(first, last):
        image, output = piece // outputs, piece % outputs
        for channel in range(each):
            source = frame[image, output // group_outputs * each + channel]
            for place in range(out.shape[2]):
                line = out[image, output, place]
                for row in range(height):
                    read = source[place * row_step + row * row_spread]
                    for column in range(width):
                        factor = weights[output, channel, row, column]
                        start = column * column_spread
                        if column_step == 1:
                            for i in range(line.size):
                                line[i] = np.int32(line[i] + np.int32(factor * read[start + i]))
                        else:
                            for i in range(line.size):
                                line[i] = np.int32(line[i] + np.int32(factor * read[start + i * column_step]))


@compiled
def _gather(
    frame: Any,
    gradients: Any,
    out: Any,
    row_step: int,
    row_spread: int,
    column_step: int,
    column_spread: int,
    first: int,
    last: int,
) -> None:
    outputs, each, height, width = out.shape
    group_outputs = outputs * each // frame.shape[1]
    for output in range(first, last):
        for image in range(frame.shape[0]):
            for channel in range(each):
                source = frame[image, output // group_outputs * each + channel]
                for place in range(gradients.shape[2]):
                    line = gradients[image, output, place]
                    for row in range(height):
                        read = source[place * row_step + row * row_spread]
                        for column in range(width):
                            start = column * column_spread
                            total = np.int32(0)
                            if column_step == 1:
                                for i in range(line.size):
                                    total = np.int32(total + np.int32(line[i] * read[start + i]))
                            else:
                                for i in range(line.size):
                                    total = np.int32(total + np.int32(line[i] * read[start + i * column_step]))
                            out[output, channel, row, column] = np.int32(out[output, channel, row, column] + total)
