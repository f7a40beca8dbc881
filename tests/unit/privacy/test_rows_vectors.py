"""Vectors as wide as the processor's, and right on narrower ones: the same kernels, compiled for other processors."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.privacy._vectors import _shape

SCRIPT = """
import torch
from tests.contract.test_row_kernels import TestCpu
from cloister.privacy._vectors import REGISTERS, WIDTH
assert (WIDTH, REGISTERS) == {shape}, (WIDTH, REGISTERS)
contract, layouts = TestCpu(), ("first", "last")
for kernel, inputs, outputs, groups in ((3, 5, 35, 1), (3, 8, 16, 1), (7, 3, 20, 1), (1, 9, 17, 1), (3, 1, 1, 19)):
    of = dict(shape=(2, groups * inputs, 13, 21), outputs=groups * outputs, kernel=(kernel, kernel), groups=groups)
    contract.convolution(of | dict(stride=(1, 2), padding=(1, 0), dilation=(1, 1)), layouts, 1)
    layouts = layouts[::-1]
contract.test_outer_products_need_no_row(contract_kernels := __import__("cloister.privacy._kernels", fromlist=["x"])
    .row_kernels(torch.device("cpu")), 20, 70, 6)
contract.test_no_sum_of_the_largest_leaves_its_words(contract_kernels, 200)
contract.test_what_is_no_number_or_too_large_counts_as_nothing(contract_kernels, 135)
contract.test_halves_go_to_even_numbers(contract_kernels)
for layouts in (("first", "first"), ("last", "last")):
    contract.test_gradients_of_group_norms(contract_kernels, (2, 21, 9, 13), 3, layouts)
    contract.test_group_norms(contract_kernels, (2, 21, 9, 13), 3, layouts[0])
contract.test_gradients_of_layer_norms(contract_kernels, (2, 3, 21), ("first", "first"))
"""

X86 = {"haswell": ("+avx,+avx2,+fma", (8, 16)), "x86-64": ("+sse2", (4, 16))}
PROCESSORS = X86 if platform.machine() in ("x86_64", "AMD64") else {}


@pytest.mark.parametrize(
    ("features", "shape"),
    [
        ({"avx512f", "avx2", "avx"}, (16, 32)),
        ({"avx2", "avx"}, (8, 16)),
        ({"neon"}, (4, 32)),
        ({"sse2"}, (4, 16)),
        (set(), (4, 16)),
    ],
)
def test_as_wide_as_the_features_allow(features: set[str], shape: tuple[int, int]) -> None:
    assert _shape(features) == shape


@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS)
def test_right_on_narrower_processors(processor: str, tmp_path: Path) -> None:
    features, shape = PROCESSORS[processor]
    chosen = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(shape=shape)],
        cwd=Path(__file__).parents[3],
        env=os.environ | chosen,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
