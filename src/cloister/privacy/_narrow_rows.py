"""Weight gradients of convolutions with few outputs a group, depthwise ones above all: a lane an output.

A group's few outputs would fill a part of a vector. So a vector holds outputs of many groups, beside the one input
channel of its group that each of them reads: sums of products lane by lane
(:func:`cloister.privacy._vectors.product_tile`), over positions, one for each tap and each input of a group. The row's
order, the blocks and the turning are those of :mod:`cloister.privacy._conv_rows`.
"""

from __future__ import annotations

import numpy as np
from numba.np.numpy_support import carray

from cloister._compiled import compiled
from cloister.privacy._conv_rows import Target, square_row
from cloister.privacy._packing import Images, Windows, gather, pack_inputs, pack_outputs, reach
from cloister.privacy._threads import scratch, share
from cloister.privacy._turning import table_bytes, turn_row, turning_table
from cloister.privacy._vectors import WIDTH, pointer, product_tile

__all__ = ["is_narrow", "narrow_rows"]

_POSITIONS = 256  # of a block, whose inputs and gradients of one vector fit a nearest cache
_ONE = np.int64(1)
_WIDTH = np.int64(WIDTH)


def is_narrow(windows: Windows, outputs: int) -> bool:
    """Whether a convolution with so many outputs, of all groups, belongs here."""
    return windows.groups > 1 and 2 * (outputs // windows.groups) <= WIDTH


def narrow_rows(x: Images, y: Images, windows: Windows, count: int, target: Target) -> None:
    """As :func:`cloister.privacy._conv_rows.wide_rows`."""
    columns = min(y.width, _POSITIONS)
    rows = min(y.height, max(1, _POSITIONS // y.width))
    high = reach(rows, windows.stride_high, windows.taps_high, windows.dilation_high)
    wide = reach(columns, windows.stride_wide, windows.taps_wide, windows.dilation_wide)
    taps, inputs = windows.taps_high * windows.taps_wide, x.channels // windows.groups
    size = 8 * WIDTH + 4 * WIDTH * (9 + rows * columns + high * wide)
    if target.turned:
        size += 64 + table_bytes(taps, inputs) + 4 * taps * inputs * y.channels

    def work(first: int, last: int) -> None:
        _narrow(x, y, windows, rows, columns, target, scratch(size), first, last)

    share(count, work)


@compiled
def _narrow(
    x: Images, y: Images, windows: Windows, rows: int, columns: int, target: Target, scratch: int, first: int, last: int
) -> None:
    inputs, outputs = x.channels // windows.groups, y.channels // windows.groups
    taps = windows.taps_high * windows.taps_wide
    size = taps * inputs * y.channels
    lanes = carray(pointer(scratch), (WIDTH,), np.float64)
    tile = scratch + 8 * WIDTH
    gradients = tile + 4 * WIDTH * 9
    own = (gradients + 4 * WIDTH * rows * columns + 63) // 64 * 64
    table = own + 4 * size
    panel = own
    if target.turned:
        panel = table + turning_table(table, taps, inputs, 4 * y.channels)
    for example in range(first, last):
        lanes[:] = 0.0
        found = 0.0
        row = target.rows + example * target.stride
        made = own if target.turned else row
        for channel in range(0, y.channels, WIDTH):
            valid = min(WIDTH, y.channels - channel)
            for i in range(0, y.height, rows):
                high = min(rows, y.height - i)
                for j in range(0, y.width, columns):
                    wide = min(columns, y.width - j)
                    if y.last and valid == WIDTH:  # they lie as they are read
                        column = 4 * y.channels
                        start = y.address + example * y.batch + (i * y.width + j) * column + 4 * channel
                        step = y.width * column
                    else:
                        pack_outputs(y, example, channel, valid, i, j, high, wide, gradients)
                        start, column, step = gradients, 4 * WIDTH, 4 * WIDTH * wide
                    add = 1 if (target.add and not target.turned) or i or j else 0
                    ended = i + high == y.height and j + wide == y.width
                    kept = scratch if ended and target.squares and not (target.add and target.turned) else 0
                    for one in range(inputs):
                        if outputs == 1:
                            first_input = channel * inputs + one
                            pack_inputs(
                                x, windows, _WIDTH, example, first_input, inputs, valid, i, j, high, wide, panel
                            )
                        else:
                            _pack_shared(x, windows, example, channel, valid, outputs, one, i, j, high, wide, panel)
                        out = made + 4 * (one * y.channels + channel)
                        found += _block(
                            windows, panel, start, step, column, high, wide,
                            out, 4 * inputs * y.channels, valid, add, kept, tile,
                        )  # fmt: skip
        if target.turned:
            turn_row(own, table, taps * inputs, y.channels, row, target.add)
            if target.add and target.squares:
                found += square_row(row, size)
        if target.squares:
            for lane in range(WIDTH):
                found += lanes[lane]
            carray(pointer(target.squares + 8 * example), (1,), np.float64)[0] += found


@compiled
def _block(
    windows: Windows, panel: int, y: int, y_row: int, y_column: int, high: int, wide: int,
    out: int, between: int, valid: int, add: int, squares: int, tile: int,
) -> float:  # fmt: skip
    """Adds a block of positions to one vector of outputs and one input each; returns the squares that were cut."""
    found = 0.0
    reach_wide = reach(wide, windows.stride_wide, windows.taps_wide, windows.dilation_wide)
    column = 4 * WIDTH
    a, b = column * reach_wide * windows.stride_high, column * windows.stride_wide
    tap_row, tap_column = column * reach_wide * windows.dilation_high, column * windows.dilation_wide
    c, d = y_row, y_column
    square = windows.taps_high == 3 and windows.taps_wide == 3
    for row in range(0, windows.taps_high, 3 if square else 1):
        at = 0
        while at < windows.taps_wide:
            some = 3 if windows.taps_wide - at >= 3 else 1
            taps = 9 if square else some
            x = panel + row * tap_row + at * tap_column
            goes = out + (row * windows.taps_wide + at) * between
            here, step, e, f = goes, between, add, squares
            if valid < WIDTH:
                here, step, e, f = tile, column, 0, 0
            if square:
                product_tile(3, 3, x, a, b, tap_row, tap_column, y, c, d, high, wide, here, 3 * step, step, e, f)
            elif some == 3:
                product_tile(1, 3, x, a, b, 0, tap_column, y, c, d, high, wide, here, 0, step, e, f)
            else:
                product_tile(1, 1, x, a, b, 0, 0, y, c, d, high, wide, here, 0, step, e, f)
            if valid < WIDTH:
                for tap in range(taps):
                    source = carray(pointer(tile + tap * column), (valid,), np.float32)
                    place = carray(pointer(goes + tap * between), (valid,), np.float32)
                    for lane in range(valid):
                        value = source[lane] + place[lane] if add else source[lane]
                        place[lane] = value
                        if squares:
                            found += np.float64(value) * np.float64(value)
            at += some
    return found


@compiled
def _pack_shared(
    x: Images, windows: Windows, example: int, channel: int, valid: int, outputs: int, one: int,
    i: int, j: int, high: int, wide: int, panel: int,
) -> None:  # fmt: skip
    """A panel whose lanes are the inputs that so many outputs read, where several of a group read the same."""
    inputs = x.channels // windows.groups
    reach_high = reach(high, windows.stride_high, windows.taps_high, windows.dilation_high)
    reach_wide = reach(wide, windows.stride_wide, windows.taps_wide, windows.dilation_wide)
    top, left = i * windows.stride_high - windows.padding_high, j * windows.stride_wide - windows.padding_wide
    between = 4 * (x.channels if x.last else 1)
    plane = 4 * (1 if x.last else x.height * x.width)
    for line in range(reach_high):
        at = panel + 4 * WIDTH * line * reach_wide
        values = carray(pointer(at), (reach_wide, WIDTH), np.float32)
        if not 0 <= top + line < x.height:
            values[:] = 0
            continue
        before = min(reach_wide, max(0, -left))
        count = max(before, min(reach_wide, x.width - left)) - before
        values[:before] = 0
        values[before + count :] = 0
        start = x.address + example * x.batch + ((top + line) * x.width + left + before) * between
        for lane in range(WIDTH):
            kept = _ONE if lane < valid else 0
            source = start + ((channel + lane * kept) // outputs * inputs + one) * plane
            gather(source, between, plane, kept, _ONE, count, at + 4 * (WIDTH * before + lane), 4 * WIDTH)
