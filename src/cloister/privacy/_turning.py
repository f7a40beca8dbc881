"""Rows turned to the order of the weight: from outputs adjacent to outputs first."""

from __future__ import annotations

import numpy as np
from numba.np.numpy_support import carray

from cloister._compiled import compiled
from cloister.privacy._vectors import WIDTH, pointer, turn

__all__ = ["table_bytes", "turn_row", "turning_table"]


def table_bytes(taps: int, inputs: int) -> int:
    """The size of what :func:`turning_table` writes."""
    return 8 * taps * inputs


@compiled
def turning_table(table: int, taps: int, inputs: int, step: int) -> int:
    """Writes where in a row of the order (tap, input, output) the outputs of each (input, tap) lie; returns its size.

    Args:
        table: Address of an int64 for each.
        taps: Of the kernel.
        inputs: Of a group.
        step: Bytes of all outputs.
    """
    places = carray(pointer(table), (inputs * taps,), np.int64)
    for channel in range(inputs):
        for tap in range(taps):
            places[channel * taps + tap] = (tap * inputs + channel) * step
    return 8 * taps * inputs


@compiled
def turn_row(source: int, table: int, length: int, outputs: int, target: int, add: int) -> None:
    """Copies, or adds, a row to a place where each output's ``length`` floats are adjacent."""
    places = carray(pointer(table), (length,), np.int64)
    whole = length // WIDTH * WIDTH
    for output in range(0, outputs, WIDTH):
        lanes = min(WIDTH, outputs - output)
        first = 0
        if lanes == WIDTH:
            for at in range(0, whole, WIDTH):
                turn(table + 8 * at, source + 4 * output, target + 4 * (output * length + at), 4 * length, add)
            first = whole
        for at in range(first, length):
            column = carray(pointer(source + 4 * output + places[at]), (lanes,), np.float32)
            for lane in range(lanes):
                place = carray(pointer(target + 4 * ((output + lane) * length + at)), (1,), np.float32)
                place[0] = column[lane] + place[0] if add else column[lane]
