"""Compiled functions: the words' arithmetic, and kept on disk only where Python may keep its own."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from cloister import _compiled
from cloister._compiled import compiled


def total(values: Any) -> int:
    found = np.int32(0)
    for value in values:
        found = np.int32(found + value)
    return found


def test_what_is_compiled_gives_the_same_and_wraps() -> None:
    values = np.array([2**31 - 1, 1, 5], dtype=np.int32)
    assert compiled(total)(values) == -(2**31) + 5


def test_the_room_is_imported_without_triton() -> None:
    script = (
        "import sys; sys.modules.update(triton=None);"
        "import torch, cloister.ring as ring;"
        "kernels = ring.kernels_for(torch.device('cpu'));"
        "w = torch.ones(4, 3, dtype=torch.int8);"
        "print(kernels.product(ring.Product(ring.MatMul(), 'forward', x=(2, 3), w=(4, 3)), w[:2], w).sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "24\n"), done.stderr


@pytest.mark.parametrize("told", ["dont_write_bytecode", "pycache_prefix", "no folder"])
def test_nothing_is_read_where_python_may_keep_nothing(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def njit(*, cache: bool = False, **options: object) -> Any:
        asked.append(cache)
        if cache and told == "no folder":
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(_compiled, "njit", njit)
    monkeypatch.setattr(sys, "dont_write_bytecode", told == "dont_write_bytecode")
    monkeypatch.setattr(sys, "pycache_prefix", "/nowhere" if told == "pycache_prefix" else None)
    assert compiled(total) is total
    assert asked == ([True, False] if told == "no folder" else [False])


def test_it_is_kept_where_python_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(
        _compiled, "njit", lambda **options: asked.append(options["cache"]) or (lambda function: function)
    )
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    compiled(total)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/named/by/whoever/started/this")
    compiled(total)
    assert asked == [True, True]
