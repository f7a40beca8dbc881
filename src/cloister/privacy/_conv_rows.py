"""Weight gradients of convolutions and Linear layers, an example a row, compiled.

For one example and one tap of the kernel, the gradient is a product of two matrices: inputs by positions times
positions by outputs. Positions are taken in blocks that fit the second cache. Of each block the inputs, padded, are
copied to panels of a few channels, the outputs' gradients to rows of whole vectors; from there tiles of the result are
summed in registers (:func:`cloister.privacy._vectors.outer_tile`) and added to the row. The last block leaves the
squares behind.

===============  ==============================================  =====================================================
tile             taken for                                       panel of the inputs
===============  ==============================================  =====================================================
3 taps × some    kernels 3 wide, undilated                       some channels a position: the three taps' lie side by
                                                                 side
a run            few channels, undilated kernels                 all channels a position: a kernel row's taps and
                                                                 channels are one run
one tap          anything else, 1×1 and Linear among them        some channels a position
===============  ==============================================  =====================================================

Biases come with it: a position's gradients are a product with ones, and lie in the nearest cache.

The row comes out in the order (kernel row, kernel column, input, output); for the weight's own order it is made in
memory of the thread's own and turned, which takes up to a half more where an example has few positions.

A sum has at most ``_POSITIONS`` terms before it is added to the row, so its error grows with the square root of that
and of the number of blocks, not of all positions. While one example is summed, the next one is fetched.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba.np.numpy_support import carray

from cloister._compiled import compiled
from cloister.privacy._packing import (
    Images,
    Windows,
    ask_ahead,
    pack_inputs,
    pack_outputs,
    padded,
    reach,
)
from cloister.privacy._threads import scratch, share
from cloister.privacy._turning import table_bytes, turn_row, turning_table
from cloister.privacy._vectors import REGISTERS, WIDTH, outer_tile, pointer

__all__ = ["NOWHERE", "Target", "square_row", "wide_rows"]

# Tiles of (taps, channels): accumulators, and two or three registers more, must fit. With two vectors of outputs, with
# one; then runs, shortest first. One tap takes _PANEL channels.
_PAIR, _SINGLE, _RUNS, _PANEL = (4, 8, (4, 8, 9, 12), 8) if REGISTERS == 32 else (2, 4, (3, 4, 5, 6), 4)
_RUN_0, _RUN_1, _RUN_2, _RUN_3 = _RUNS
_TAPS = 3
_TILE = 2 * max(_TAPS * _PAIR, _TAPS * _SINGLE, *_RUNS)  # vectors that a tile which is cut takes, at most
_FEW = 8  # channels below which a kernel row is one run
_NEAR = 16384  # floats of a block of gradients: with the inputs a part of a second cache
_LEAST, _POSITIONS = 128, 1024  # positions of a block
_ALIGNMENT = 64  # bytes of a cache line, and of the widest vector
_LANES = 32  # sums of squares beside each other, where one would be a chain
_LANES_BYTES = 2 * 8 * WIDTH + 4 * WIDTH  # squares of a row, of its biases, and the number one
_SHORT = 64  # positions of a sum of gradients
_NONE, _ONE = np.int64(0), np.int64(1)  # plain numbers: for a constant, numba would compile a callee once more


class Target(NamedTuple):
    """Where rows go.

    Attributes:
        rows: Address of the first example's row, float32.
        stride: Bytes between rows.
        squares: Address of a float64 an example, which its row's squared norm is added to; 0 for none.
        add: 1 to add to the rows, 0 to overwrite them.
        turned: 1 for the weight's own order, (output, input, kernel row, kernel column).
    """

    rows: int
    stride: int
    squares: int
    add: int
    turned: int


NOWHERE = Target(0, 0, 0, 0, 0)


class Block(NamedTuple):
    """How the work is cut; follows from shapes alone.

    Attributes:
        rows: Of positions, at once.
        columns: Of positions, at once.
        panel: Channels of an input panel.
        together: Taps of a kernel row that a panel serves at once.
        form: The tile; see ``_tile``.
        taps: Of the tile.
        channels: Of the tile.
    """

    rows: int
    columns: int
    panel: int
    together: int
    form: int
    taps: int
    channels: int


def wide_rows(x: Images, y: Images, windows: Windows, count: int, target: Target, biases: Target = NOWHERE) -> None:
    """Writes, or adds, the gradients of ``count`` examples.

    Args:
        x: The inputs.
        y: The gradients of the outputs.
        windows: The geometry; ``x`` and ``y`` fit it.
        count: Examples.
        target: Where they go.
        biases: Where the sums of ``y`` over positions go; its ``turned`` says nothing.
    """
    block, size = _cut(x.channels, y.channels, y.height, y.width, windows, target.turned)

    def work(first: int, last: int) -> None:
        _wide(x, y, windows, block, target, biases, scratch(size), first, last)

    share(count, work)


@lru_cache(maxsize=1024)
def _cut(inputs: int, outputs: int, height: int, width: int, windows: Windows, turned: int) -> tuple[Block, int]:
    """How a convolution is cut, and the bytes of scratch that it takes."""
    inputs, channels = inputs // windows.groups, outputs // windows.groups
    taps = windows.taps_wide if windows.dilation_wide == 1 else 1
    if taps == _TAPS and inputs >= _PAIR:
        form = 1 if channels <= WIDTH and inputs >= _SINGLE else 0
        panel = _SINGLE if form else _PAIR
        shape = (panel, taps, form, taps, panel)
    elif taps > 1 and inputs < _FEW:
        run = taps * inputs
        form = next((n for n, length in enumerate(_RUNS) if length >= run), len(_RUNS) - 1)
        shape = (inputs, taps, 2 + form, 1, _RUNS[form])
    else:
        shape = (_PANEL, 1, 2 + _RUNS.index(_PANEL), 1, _PANEL)
    positions = min(max(_NEAR // padded(channels), _LEAST), _POSITIONS)
    block = Block(_even(height, max(1, positions // width)), _even(width, positions), *shape)
    high = reach(block.rows, windows.stride_high, windows.taps_high, windows.dilation_high)
    wide = reach(block.columns, windows.stride_wide, windows.taps_wide, windows.dilation_wide)
    floats = WIDTH * _TILE + block.rows * block.columns * padded(channels)
    floats += -(-inputs // block.panel) * high * wide * block.panel + max(_RUNS)  # a run's last tile reads past its end
    size = _LANES_BYTES + 4 * floats + _ALIGNMENT
    if turned:
        taps = windows.taps_high * windows.taps_wide
        size += table_bytes(taps, inputs) + 4 * taps * inputs * outputs
    return block, size


def _even(length: int, most: int) -> int:
    """The length of parts, as few as there can be and as long as each other, as far as that goes."""
    return -(-length // -(-length // most))


# ---- compiled --------------------------------------------------------------------------------------------


@compiled
def _wide(
    x: Images, y: Images, windows: Windows, block: Block, target: Target, biases: Target, scratch: int,
    first: int, last: int,
) -> None:  # fmt: skip
    inputs, outputs = x.channels // windows.groups, y.channels // windows.groups
    width = (outputs + WIDTH - 1) // WIDTH * WIDTH
    taps = windows.taps_high * windows.taps_wide
    lanes = carray(pointer(scratch), (2 * WIDTH,), np.float64)
    one = scratch + 2 * 8 * WIDTH
    carray(pointer(one), (1,), np.float32)[0] = 1.0
    tile = scratch + _LANES_BYTES
    columns = tile + 4 * WIDTH * _TILE
    own = (columns + 4 * block.rows * block.columns * width + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT
    size = taps * inputs * y.channels
    table = own + 4 * size
    panels = own
    if target.turned:
        panels = table + turning_table(table, taps, inputs, 4 * y.channels)
    parts = windows.groups * ((y.height + block.rows - 1) // block.rows)
    parts *= (y.width + block.columns - 1) // block.columns
    in_place = y.last == 1 and outputs % WIDTH == 0
    for example in range(first, last):
        lanes[:] = 0.0
        found = found_biases = 0.0
        row = target.rows + example * target.stride
        made = own if target.turned else row
        part = _NONE
        for group in range(windows.groups):
            for i in range(0, y.height, block.rows):
                high = min(block.rows, y.height - i)
                for j in range(0, y.width, block.columns):
                    wide = min(block.columns, y.width - j)
                    pack_inputs(
                        x, windows, block.panel, example, group * inputs, _ONE, inputs, i, j, high, wide, panels
                    )
                    if in_place:
                        column = 4 * y.channels
                        start = y.address + example * y.batch
                        start += (i * y.width + j) * column + 4 * group * outputs
                        step = y.width * column
                    else:
                        pack_outputs(y, example, group * outputs, outputs, i, j, high, wide, columns)
                        start, column, step = columns, 4 * width, 4 * width * wide
                    ahead = example + 1 if example + 1 < last else -1
                    add = 1 if (target.add and not target.turned) or i or j else 0
                    ended = i + high == y.height and j + wide == y.width
                    kept = scratch if ended and target.squares and not (target.add and target.turned) else 0
                    found += _block(
                        x, y, windows, block, group, ahead, part, parts, panels, start, step, column, high, wide,
                        made, add, kept, tile,
                    )  # fmt: skip
                    part += 1
                    if biases.rows:
                        goes = biases.rows + example * biases.stride + 4 * group * outputs
                        kept = scratch + 8 * WIDTH if ended and biases.squares else 0
                        add = 1 if biases.add or i or j else 0
                        found_biases += _sums(one, start, step, column, high, wide, outputs, goes, add, kept, tile)
        if target.turned:
            turn_row(own, table, taps * inputs, y.channels, row, target.add)
            if target.add and target.squares:
                found += square_row(row, size)
        if target.squares:
            for lane in range(WIDTH):
                found += lanes[lane]
            carray(pointer(target.squares + 8 * example), (1,), np.float64)[0] += found
        if biases.squares:
            for lane in range(WIDTH):
                found_biases += lanes[WIDTH + lane]
            carray(pointer(biases.squares + 8 * example), (1,), np.float64)[0] += found_biases


@compiled
def _sums(
    one: int, start: int, step: int, column: int, high: int, wide: int, outputs: int, row: int, add: int, squares: int,
    tile: int,
) -> float:  # fmt: skip
    """Adds a block's gradients to one example's biases; returns the squares of tiles that were cut.

    In short sums: gradients that are alike at all positions, as behind a mean, would lose digits in long ones.
    """
    found = 0.0
    for line in range(high):
        for first in range(0, wide, _SHORT):
            some = min(_SHORT, wide - first)
            begun = 1 if add or line or first else 0
            kept = squares if line + 1 == high and first + some == wide else 0
            for n in range(0, outputs, 2 * WIDTH):
                left = min(outputs - n, 2 * WIDTH)
                y, goes = start + line * step + first * column + 4 * n, row + 4 * n
                if left == 2 * WIDTH:
                    outer_tile(2, 1, 1, one, 0, 0, y, 0, column, 1, some, goes, 0, 0, begun, kept)
                elif left == WIDTH:
                    outer_tile(1, 1, 1, one, 0, 0, y, 0, column, 1, some, goes, 0, 0, begun, kept)
                else:  # the columns behind are zeros: such gradients were copied
                    outer_tile(1, 1, 1, one, 0, 0, y, 0, column, 1, some, tile, 0, 0, 0, 0)
                    if left > WIDTH:
                        beyond = y + 4 * WIDTH
                        outer_tile(1, 1, 1, one, 0, 0, beyond, 0, column, 1, some, tile + 4 * WIDTH, 0, 0, 0, 0)
                    found += _cut_tile(tile, 1, 1, 1, left, goes, 0, 0, begun, kept)
    return found


@compiled
def square_row(row: int, size: int) -> float:
    """The squared norm of so many floats."""
    lanes = np.zeros(_LANES)
    for start in range(0, size, _LANES):
        some = min(_LANES, size - start)
        values = carray(pointer(row + 4 * start), (some,), np.float32)
        for lane in range(some):
            lanes[lane] += np.float64(values[lane]) * np.float64(values[lane])
    found = 0.0
    for lane in range(_LANES):
        found += lanes[lane]
    return found


@compiled
def _block(
    x: Images, y: Images, windows: Windows, block: Block, group: int, ahead: int, part: int, parts: int,
    panels: int, start: int, y_row: int, y_column: int, high: int, wide: int,
    row: int, add: int, squares: int, tile: int,
) -> float:  # fmt: skip
    """Adds a block of positions to one example's row; returns the squares of tiles that were cut.

    On the way it asks for its share of the example ``ahead``, so that nobody waits for it.
    """
    inputs, outputs = x.channels // windows.groups, y.channels // windows.groups
    found = 0.0
    reach_high = reach(high, windows.stride_high, windows.taps_high, windows.dilation_high)
    reach_wide = reach(wide, windows.stride_wide, windows.taps_wide, windows.dilation_wide)
    x_row = 4 * reach_wide * block.panel * windows.stride_high
    x_column = 4 * block.panel * windows.stride_wide
    run = block.together * block.panel if block.taps == 1 else block.channels
    between_channels = 4 * y.channels
    between_taps = between_channels * inputs
    steps = (inputs + block.panel - 1) // block.panel * windows.taps_high
    for channel in range(0, inputs, block.panel):
        panel = panels + 4 * channel * reach_high * reach_wide
        valid_channels = min(block.panel, inputs - channel)
        if block.taps == 1 and block.together > 1:
            valid_channels = run
        for tap_row in range(windows.taps_high):
            if ahead >= 0:
                step = part * steps + channel // block.panel * windows.taps_high + tap_row
                ask_ahead(x, ahead, step, parts * steps)
                ask_ahead(y, ahead, step, parts * steps)
            for tap_column in range(0, windows.taps_wide, block.together):
                tap = tap_row * windows.dilation_high * reach_wide + tap_column * windows.dilation_wide
                out = (tap_row * windows.taps_wide + tap_column) * between_taps + channel * between_channels
                out += row + 4 * group * outputs
                for offset in range(0, run, block.channels):
                    at = panel + 4 * (block.panel * tap + offset)
                    valid = min(block.channels, valid_channels - offset)
                    here = out + offset * between_channels
                    for n in range(0, outputs, 2 * WIDTH):
                        left = min(outputs - n, 2 * WIDTH)
                        vectors = 1 if left <= WIDTH else 2
                        whole = left == vectors * WIDTH and valid == block.channels
                        goes, by_tap, by_channel = here + 4 * n, between_taps, between_channels
                        if not whole:
                            goes, by_tap, by_channel = tile, 8 * WIDTH * block.channels, 8 * WIDTH
                        _tile(
                            vectors, block.form, at, x_row, x_column, start + 4 * n, y_row, y_column, high, wide,
                            goes, by_tap, by_channel, add if whole else 0, squares if whole else 0,
                        )  # fmt: skip
                        if not whole:
                            found += _cut_tile(
                                tile, block.taps, block.channels, valid, left, here + 4 * n,
                                between_taps, between_channels, add, squares,
                            )  # fmt: skip
    return found


@compiled
def _tile(
    vectors: int, form: int, x: int, x_row: int, x_column: int, y: int, y_row: int, y_column: int,
    rows: int, columns: int, out: int, out_tap: int, out_channel: int, add: int, squares: int,
) -> None:  # fmt: skip
    a, b, c, d = x_row, x_column, y_row, y_column
    e, f, g, h = out_tap, out_channel, add, squares
    if vectors == 2:
        if form == 0:
            outer_tile(2, _TAPS, _PAIR, x, a, b, y, c, d, rows, columns, out, e, f, g, h)
        elif form == 2:
            outer_tile(2, 1, _RUN_0, x, a, b, y, c, d, rows, columns, out, e, f, g, h)
        elif form == 3:
            outer_tile(2, 1, _RUN_1, x, a, b, y, c, d, rows, columns, out, e, f, g, h)
        elif form == 4:
            outer_tile(2, 1, _RUN_2, x, a, b, y, c, d, rows, columns, out, e, f, g, h)
        else:
            outer_tile(2, 1, _RUN_3, x, a, b, y, c, d, rows, columns, out, e, f, g, h)
    elif form == 0:
        outer_tile(1, _TAPS, _PAIR, x, a, b, y, c, d, rows, columns, out, e, f, g, h)
    elif form == 1:
        outer_tile(1, _TAPS, _SINGLE, x, a, b, y, c, d, rows, columns, out, e, f, g, h)
    elif form == 2:
        outer_tile(1, 1, _RUN_0, x, a, b, y, c, d, rows, columns, out, e, f, g, h)
    elif form == 3:
        outer_tile(1, 1, _RUN_1, x, a, b, y, c, d, rows, columns, out, e, f, g, h)
    elif form == 4:
        outer_tile(1, 1, _RUN_2, x, a, b, y, c, d, rows, columns, out, e, f, g, h)
    else:
        outer_tile(1, 1, _RUN_3, x, a, b, y, c, d, rows, columns, out, e, f, g, h)


@compiled
def _cut_tile(
    tile: int, taps: int, channels: int, valid: int, outputs: int,
    out: int, out_tap: int, out_channel: int, add: int, squares: int,
) -> float:  # fmt: skip
    """Takes over the part of a tile that lies within the row; returns its squares."""
    found = 0.0
    for tap in range(taps):
        for channel in range(valid):
            source = carray(pointer(tile + 8 * WIDTH * (tap * channels + channel)), (outputs,), np.float32)
            target = carray(pointer(out + tap * out_tap + channel * out_channel), (outputs,), np.float32)
            for n in range(outputs):
                value = source[n] + target[n] if add else source[n]
                target[n] = value
                if squares:
                    found += np.float64(value) * np.float64(value)
    return found
