"""Which row kernels a device gets, what is said where there are none, what is refused before anything is written."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cloister.errors import InputError
from cloister.privacy import _kernels
from cloister.privacy._kernels import LIMIT, RowKernels, conv2d_weight, row_kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NAMES = ("cpu", "torch")


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)


def doubles(*shape: int) -> torch.Tensor:
    return zeros(*shape, dtype=torch.float64)


def longs(*shape: int) -> torch.Tensor:
    return zeros(*shape, dtype=torch.int64)


def test_a_cpu_gets_its_own() -> None:
    assert row_kernels(CPU).name == "cpu"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_choice(name: str) -> None:
    assert row_kernels(CPU, prefer=name).name == name


def test_a_gpu_gets_torchs() -> None:
    assert row_kernels(CUDA).name == "torch"


@pytest.mark.parametrize(("device", "name"), [(CPU, "opencl"), (CPU, ""), (CUDA, "cpu"), (torch.device("meta"), None)])
def test_no_such_kernels(device: torch.device, name: str | None) -> None:
    with pytest.raises(InputError) as error:
        row_kernels(device, prefer=name)
    assert error.value.code == 2820


def test_without_numba_a_cpu_gets_torchs_and_nobody_the_compiled_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    assert row_kernels(CPU).name == "torch"
    with pytest.raises(InputError) as error:
        row_kernels(CPU, prefer="cpu")
    assert error.value.code == 2823


def test_another_error_is_not_taken_for_a_missing_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device) -> None:
        raise InputError(2820, got=device)

    monkeypatch.setattr(_kernels, "_cpu", broken)
    with pytest.raises(InputError) as error:
        row_kernels(CPU)
    assert error.value.code == 2820


def test_torchs_kernels_run_where_there_is_no_numba() -> None:
    script = (
        "import sys; from types import ModuleType; sys.modules['numba'] = None;"
        "room = ModuleType('cloister.privacy'); room.__path__ = [sys.argv[1]]; sys.modules[room.__name__] = room;"
        "import torch; from cloister.privacy._kernels import row_kernels;"
        "rows = torch.zeros(2, 6); x, dy = torch.ones(2, 4, 3), torch.ones(2, 4, 2);"
        "row_kernels(torch.device('cpu')).linear_rows(x, dy, rows, None); print(rows.sum().item())"
    )
    room = str(Path(_kernels.__file__).parent)
    done = subprocess.run([sys.executable, "-c", script, room], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "48.0\n"), done.stderr


# ---- what is refused ---------------------------------------------------------------------------------------

GEOMETRY = {"kernel": (3, 3), "padding": (1, 1)}
X, DY, ROWS, SQUARES = zeros(2, 4, 5, 5), zeros(2, 6, 5, 5), zeros(2, 216), doubles(2)


def groups(
    kernels: RowKernels, *, means: tuple = (2, 2), deviations: tuple = (2, 2), count: int = 2, weight: int = 4
) -> None:
    kernels.group_norm_backward(X[:count], X, zeros(weight), zeros(*means), zeros(*deviations))


def layers(kernels: RowKernels, *, means: tuple = (2, 3), count: int = 2, weight: int = 4) -> None:
    x = zeros(2, 3, 4)
    kernels.layer_norm_backward(x[:count], x, zeros(weight), zeros(*means), zeros(2, 3))


SHAPES: dict[str, Callable[[RowKernels], object]] = {
    "half precision": lambda k: k.conv2d_rows(X.bfloat16(), DY, ROWS, SQUARES, **GEOMETRY),
    "half gradients": lambda k: k.conv2d_rows(X, DY.half(), ROWS, SQUARES, **GEOMETRY),
    "another batch": lambda k: k.conv2d_rows(X, DY[:1], ROWS, SQUARES, **GEOMETRY),
    "another size": lambda k: k.conv2d_rows(X, DY[:, :, :4], ROWS, SQUARES, **GEOMETRY),
    "three axes": lambda k: k.conv2d_rows(X[0], DY[0], ROWS, SQUARES, **GEOMETRY),
    "short rows": lambda k: k.conv2d_rows(X, DY, ROWS[:, :-1], SQUARES, **GEOMETRY),
    "few rows": lambda k: k.conv2d_rows(X, DY, ROWS[:1], SQUARES, **GEOMETRY),
    "double rows": lambda k: k.conv2d_rows(X, DY, ROWS.double(), SQUARES, **GEOMETRY),
    "columns apart": lambda k: k.conv2d_rows(X, DY, zeros(216, 2).T, SQUARES, **GEOMETRY),
    "few squares": lambda k: k.conv2d_rows(X, DY, ROWS, doubles(1), **GEOMETRY),
    "float squares": lambda k: k.conv2d_rows(X, DY, ROWS, zeros(2), **GEOMETRY),
    "squares apart": lambda k: k.conv2d_rows(X, DY, ROWS, doubles(4)[::2], **GEOMETRY),
    "rows of another device": lambda k: k.conv2d_rows(X, DY, ROWS.to("meta"), SQUARES, **GEOMETRY),
    "a vector": lambda k: k.linear_rows(zeros(3), zeros(3), zeros(3, 1), None),
    "other positions": lambda k: k.linear_rows(zeros(2, 3, 4), zeros(2, 2, 4), zeros(2, 16), None),
    "linear rows": lambda k: k.linear_rows(zeros(2, 3, 4), zeros(2, 3, 4), zeros(2, 15), None),
    "positions": lambda k: k.outer_squares(zeros(2, 1, 3), zeros(2, 1, 4), SQUARES),
    "outer squares": lambda k: k.outer_squares(zeros(2, 3), zeros(2, 4), doubles(3)),
    "outer total": lambda k: k.outer_sum_rounded(zeros(2, 3), zeros(2, 4), doubles(2), longs(11)),
    "int32 total": lambda k: k.outer_sum_rounded(zeros(2, 3), zeros(2, 4), doubles(2), longs(12).int()),
    "float factors": lambda k: k.sum_rounded(zeros(2, 3), zeros(2), longs(3)),
    "few factors": lambda k: k.sum_rounded(zeros(2, 3), doubles(1), longs(3)),
    "total apart": lambda k: k.sum_rounded(zeros(2, 3), doubles(2), longs(6)[::2]),
    "a row alone": lambda k: k.sum_rounded(zeros(3), doubles(3), longs(3)),
    "rows of three axes": lambda k: k.square_rows(zeros(2, 3, 4), SQUARES),
    "tokens of int32": lambda k: k.embedding_rows(longs(2, 3).int(), zeros(2, 3, 4), zeros(2, 20), None),
    "more tokens": lambda k: k.embedding_rows(longs(2, 4), zeros(2, 3, 4), zeros(2, 20), None),
    "part of a token": lambda k: k.embedding_rows(longs(2, 3), zeros(2, 3, 4), zeros(2, 21), None),
    "token after the last": lambda k: k.embedding_rows(longs(2, 3) + 5, zeros(2, 3, 4), zeros(2, 20), None),
    "token before the first": lambda k: k.embedding_rows(longs(2, 3) - 1, zeros(2, 3, 4), zeros(2, 20), None),
    "summed token": lambda k: k.embedding_sum_rounded(longs(2, 3) + 5, zeros(2, 3, 4), doubles(2), longs(20)),
    "flat tokens": lambda k: k.embedding_squares(longs(6), zeros(2, 3, 4), SQUARES),
    "bias of nothing": lambda k: k.bias_rows(zeros(3), zeros(3, 1), None),
    "another input": lambda k: groups(k, count=1),
    "groups": lambda k: groups(k, means=(2, 3), deviations=(2, 3)),
    "no groups": lambda k: groups(k, means=(2, 0), deviations=(2, 0)),
    "deviations": lambda k: groups(k, deviations=(2, 4)),
    "a group's weight": lambda k: groups(k, weight=5),
    "a layer's input": lambda k: layers(k, count=1),
    "positions' means": lambda k: layers(k, means=(2, 5)),
    "a layer's weight": lambda k: layers(k, weight=3),
    "groups left over": lambda k: k.group_norm(X, None, None, groups=3, eps=1e-5),
    "no group": lambda k: k.group_norm(X, None, None, groups=0, eps=1e-5),
    "a bias": lambda k: k.group_norm(X, None, zeros(5), groups=2, eps=1e-5),
    "a weight apart": lambda k: k.group_norm(X, zeros(8)[::2], None, groups=2, eps=1e-5),
}

GEOMETRIES: dict[str, Callable[[RowKernels], object]] = {
    "no kernel": lambda k: k.conv2d_rows(X, DY, ROWS, SQUARES, kernel=(0, 3)),
    "no stride": lambda k: k.conv2d_rows(X, DY, ROWS, SQUARES, **GEOMETRY, stride=(1, 0)),
    "no dilation": lambda k: k.conv2d_rows(X, DY, ROWS, SQUARES, **GEOMETRY, dilation=(0, 1)),
    "no groups": lambda k: k.conv2d_rows(X, DY, ROWS, SQUARES, **GEOMETRY, groups=0),
    "inputs left over": lambda k: k.conv2d_rows(X, DY, ROWS, SQUARES, **GEOMETRY, groups=3),
    "outputs left over": lambda k: k.conv2d_rows(X, DY, ROWS, SQUARES, **GEOMETRY, groups=4),
    "padding below nothing": lambda k: k.conv2d_rows(X, DY, ROWS, SQUARES, kernel=(3, 3), padding=(1, -1)),
    "a kernel beyond the picture": lambda k: k.conv2d_rows(X, DY, ROWS, SQUARES, kernel=(3, 6)),
    "no such order": lambda k: k.conv2d_rows(X, DY, ROWS, SQUARES, **GEOMETRY, order="random"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", SHAPES)
def test_what_does_not_fit_is_refused(case: str, name: str) -> None:
    with pytest.raises(InputError) as error:
        SHAPES[case](row_kernels(CPU, prefer=name))
    assert error.value.code == 2821


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", GEOMETRIES)
def test_a_geometry_that_there_is_not_is_refused(case: str, name: str) -> None:
    with pytest.raises(InputError) as error:
        GEOMETRIES[case](row_kernels(CPU, prefer=name))
    assert error.value.code == 2822


# ---- what is written ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_torch_counts_who_writes(name: str) -> None:
    kernels = row_kernels(CPU, prefer=name)
    rows, squares, total = zeros(2, 216), doubles(2), longs(216)
    before = [tensor._version for tensor in (rows, squares, total)]
    kernels.conv2d_rows(X, DY, rows, squares, **GEOMETRY)
    kernels.sum_rounded(rows, doubles(2), total)
    assert all(tensor._version > version for tensor, version in zip((rows, squares, total), before, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_tensors_of_inference_mode_may_be_written(name: str) -> None:
    with torch.inference_mode():
        rows = zeros(2, 216)
        row_kernels(CPU, prefer=name).conv2d_rows(X + 1, DY + 1, rows, None, **GEOMETRY)
    assert rows.sum().item() == 2 * 6 * 4 * (4 + 5 + 4) ** 2


def test_the_limit_is_that_of_the_compiled_sum() -> None:
    from cloister.privacy._linear_rows import LIMIT_BITS, PASS

    assert 1 << LIMIT_BITS == LIMIT
    assert PASS * LIMIT < 1 << 31


def test_a_weight_of_the_other_order() -> None:
    row = torch.arange(2 * 3 * 4 * 5)
    weight = conv2d_weight(row, inputs=4, kernel=(2, 3))
    assert weight.shape == (5, 4, 2, 3)
    assert weight[4, 2, 1, 0] == ((1 * 3 + 0) * 4 + 2) * 5 + 4
    assert conv2d_weight(row.expand(7, -1), inputs=4, kernel=(2, 3)).shape == (7, 5, 4, 2, 3)
