"""What a convolution's kernels read, copied to where they read it fast: panels of inputs, rows of gradients.

Both layouts of pictures come in, channels first and channels last, with any stride between examples; what goes out is
the same. A panel has a few channels of each position side by side, and zeros where the kernel reaches beyond the
picture. A row of gradients has a position's channels side by side, as many as whole vectors hold, zeros behind them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba.np.numpy_support import carray

from cloister._compiled import compiled
from cloister.privacy._vectors import WIDTH, copy, fetch, interleave, pointer

__all__ = [
    "Images",
    "Windows",
    "ask_ahead",
    "gather",
    "pack_inputs",
    "pack_outputs",
    "padded",
    "reach",
]

_LINE = 64  # bytes of a cache line
_FLOAT, _WIDTH = np.int64(4), np.int64(WIDTH)  # plain numbers: for a constant, numba would compile a callee once more


class Images(NamedTuple):
    """One side of a convolution: where its examples lie.

    Attributes:
        address: Of the first example, float32.
        batch: Bytes from one example to the next.
        last: 1 where a position's channels are adjacent, 0 where a channel's positions are. Nothing lies between.
        channels: Of all groups.
        height: Positions.
        width: Positions.
    """

    address: int
    batch: int
    last: int
    channels: int
    height: int
    width: int


class Windows(NamedTuple):
    """What a convolution reads: its kernel's taps, their steps, and the padding."""

    taps_high: int
    taps_wide: int
    stride_high: int
    stride_wide: int
    padding_high: int
    padding_wide: int
    dilation_high: int
    dilation_wide: int
    groups: int


def padded(channels: int) -> int:
    """Channels of whole vectors."""
    return -(-channels // WIDTH) * WIDTH


@compiled
def reach(positions: int, stride: int, taps: int, dilation: int) -> int:
    """How many inputs along an axis so many positions read."""
    return (positions - 1) * stride + (taps - 1) * dilation + 1


@compiled
def pack_outputs(
    y: Images, example: int, first: int, channels: int, i: int, j: int, high: int, wide: int, target: int
) -> None:
    """Copies a block of some channels' gradients: a row of whole vectors a position."""
    width = (channels + WIDTH - 1) // WIDTH * WIDTH
    start = y.address + example * y.batch
    plane = 4 * y.height * y.width
    for row in range(high):
        at = target + 4 * width * wide * row
        position = (i + row) * y.width + j
        for channel in range(0, width, WIDTH):
            valid = min(WIDTH, channels - channel)
            if y.last:
                source = start + 4 * (position * y.channels + first + channel)
                gather(source, 4 * y.channels, _FLOAT, valid, _WIDTH, wide, at + 4 * channel, 4 * width)
            else:
                source = start + 4 * position + (first + channel) * plane
                done = 0
                if valid == WIDTH:
                    while wide - done >= WIDTH:
                        interleave(WIDTH, WIDTH, source + 4 * done, plane, at + 4 * (channel + done * width), 4 * width)
                        done += WIDTH
                rest = at + 4 * (channel + done * width)
                gather(source + 4 * done, _FLOAT, plane, valid, _WIDTH, wide - done, rest, 4 * width)


@compiled
def pack_inputs(
    x: Images, windows: Windows, panel: int, example: int, first: int, apart: int, channels: int,
    i: int, j: int, high: int, wide: int, target: int,
) -> None:  # fmt: skip
    """Copies what a block of positions reads of the channels ``first``, ``first + apart``, …: panels, one by one."""
    reach_high = reach(high, windows.stride_high, windows.taps_high, windows.dilation_high)
    reach_wide = reach(wide, windows.stride_wide, windows.taps_wide, windows.dilation_wide)
    top, left = i * windows.stride_high - windows.padding_high, j * windows.stride_wide - windows.padding_wide
    before = min(reach_wide, max(0, -left))
    count = max(before, min(reach_wide, x.width - left)) - before
    start = x.address + example * x.batch
    plane = 4 * x.height * x.width
    step = 4 * panel
    for channel in range(0, channels, panel):
        valid = min(panel, channels - channel)
        for line in range(reach_high):
            at = target + 4 * channel * reach_high * reach_wide + step * line * reach_wide
            inside = 0 <= top + line < x.height
            _zeros(at, panel * (before if inside else reach_wide))
            if not inside:
                continue
            at += step * before
            _zeros(at + step * count, panel * (reach_wide - before - count))
            position = (top + line) * x.width + left + before
            if x.last:
                source = start + 4 * (position * x.channels + first + channel * apart)
                gather(source, 4 * x.channels, 4 * apart, valid, panel, count, at, step)
            else:
                source = start + 4 * position + (first + channel * apart) * plane
                done = _transpose(source, plane * apart, panel, count, at) if valid == panel else 0
                gather(source + 4 * done, _FLOAT, plane * apart, valid, panel, count - done, at + step * done, step)


@compiled
def _zeros(target: int, count: int) -> None:
    values = carray(pointer(target), (count,), np.float32)
    for index in range(count):
        values[index] = 0


@compiled
def _transpose(source: int, plane: int, panel: int, count: int, target: int) -> int:
    """Copies as many positions of whole panels as vectors reach; returns how many."""
    done = 0
    step = 4 * panel
    if panel == 4:
        while count - done >= WIDTH:
            interleave(4, WIDTH, source + 4 * done, plane, target + step * done, step)
            done += WIDTH
        while count - done >= 4:
            interleave(4, 4, source + 4 * done, plane, target + step * done, step)
            done += 4
    elif panel == 8:
        while count - done >= WIDTH:
            interleave(8, WIDTH, source + 4 * done, plane, target + step * done, step)
            done += WIDTH
        while count - done >= 4:
            interleave(8, 4, source + 4 * done, plane, target + step * done, step)
            done += 4
    elif panel == WIDTH:
        while count - done >= WIDTH:
            interleave(WIDTH, WIDTH, source + 4 * done, plane, target + step * done, step)
            done += WIDTH
    return done


@compiled
def gather(source: int, between: int, apart: int, valid: int, panel: int, count: int, target: int, step: int) -> None:
    """Copies ``valid`` floats ``apart`` bytes from each other, for positions ``between`` bytes apart; zeros behind."""
    if apart == 4 and valid == panel:
        if panel == 4:
            for position in range(count):
                copy(4, source + position * between, target + position * step)
            return
        if panel == 8:
            for position in range(count):
                copy(8, source + position * between, target + position * step)
            return
        if panel == WIDTH:
            for position in range(count):
                copy(WIDTH, source + position * between, target + position * step)
            return
    for channel in range(panel):
        for position in range(count):
            found = np.float32(0)
            if channel < valid:
                found = carray(pointer(source + position * between + channel * apart), (1,), np.float32)[0]
            carray(pointer(target + position * step + 4 * channel), (1,), np.float32)[0] = found


@compiled
def ask_ahead(images: Images, example: int, part: int, parts: int) -> None:
    """Asks for one of ``parts`` parts of an example, which is read later."""
    size = 4 * images.channels * images.height * images.width
    start = images.address + example * images.batch
    for line in range(size * part // parts // _LINE, size * (part + 1) // parts // _LINE):
        fetch(start + line * _LINE)
