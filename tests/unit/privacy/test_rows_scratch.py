"""Compiled kernels write into their own memory, all of which they asked for, and nowhere else."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.rowworld import convolutions, drawn
from torch.nn import functional as F

from cloister.privacy import _conv_rows, _linear_rows, _narrow_rows
from cloister.privacy._kernels import row_kernels

GUARD = 4096
CANARY = 0xA5


class Guarded:
    """Scratch between two guards."""

    def __init__(self) -> None:
        self.buffers: list[tuple[np.ndarray, int]] = []

    def scratch(self, size_bytes: int) -> int:
        buffer = np.full(size_bytes + 2 * GUARD + 64, CANARY, np.uint8)
        start = math.ceil((buffer.ctypes.data + GUARD) / 64) * 64 - buffer.ctypes.data
        self.buffers.append((buffer, start + size_bytes))
        return buffer.ctypes.data + start

    def intact(self) -> bool:
        before = all((buffer[:GUARD] == CANARY).all() for buffer, _ in self.buffers)
        return before and all((buffer[end:] == CANARY).all() for buffer, end in self.buffers)


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Guarded:
    guard = Guarded()
    for module in (_conv_rows, _linear_rows, _narrow_rows):
        monkeypatch.setattr(module, "scratch", guard.scratch)
    return guard


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(of=convolutions(), order=st.sampled_from(("weight", "kernel")), layout=st.sampled_from(("first", "last")))
def test_convolutions_stay_in_their_scratch(guarded: Guarded, of: dict, order: str, layout: str) -> None:
    guarded.buffers.clear()
    geometry = {name: of[name] for name in ("stride", "padding", "dilation", "groups")}
    x = drawn(of["shape"], 1, layout)
    weight = torch.zeros(of["outputs"], x.shape[1] // of["groups"], *of["kernel"])
    dy = drawn(tuple(F.conv2d(x, weight, **geometry).shape), 2, layout)
    rows, squares = torch.zeros(len(x), weight.numel()), torch.zeros(len(x), dtype=torch.float64)
    row_kernels(torch.device("cpu")).conv2d_rows(x, dy, rows, squares, kernel=of["kernel"], **geometry, order=order)
    assert guarded.buffers or not len(x) or of["kernel"] == (1, 1)
    assert guarded.intact()


@pytest.mark.parametrize(("count", "inputs", "outputs"), [(1, 1, 1), (3, 70, 6), (16, 64, 4), (31, 65, 17)])
def test_sums_of_outer_products_stay_in_their_scratch(guarded: Guarded, count: int, inputs: int, outputs: int) -> None:
    kernels, factors = row_kernels(torch.device("cpu")), torch.ones(count, dtype=torch.float64)
    total = torch.zeros(inputs * outputs, dtype=torch.int64)
    kernels.outer_sum_rounded(drawn((count, inputs), 1), drawn((count, outputs), 2), factors, total)
    assert guarded.buffers
    assert guarded.intact()
