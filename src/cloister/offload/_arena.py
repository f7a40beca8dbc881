"""Memory that a stage's script and its launcher both map: where tensors pass from one to the other without a copy.

The launcher makes it and seals its size, so that a script which shortens the file cannot kill who reads it. The script
alone decides what lies where; the launcher checks every place it is told, and nothing that it must believe later stays
here: it rounds and masks a tensor in one reading, into memory of its own.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref
from bisect import bisect_left, insort
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cloister.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["Arena", "Region", "Regions", "make_arena"]

_ALIGNED = 64  # bytes: a cache line, and the widest vector
_WORD = 4

Region = tuple[int, int]
"""Offset and size in bytes."""


def make_arena(size_bytes: int) -> int:
    """A descriptor of that many bytes of memory, which are only taken as they are written; its size is final."""
    handle = os.memfd_create("offload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(handle, size_bytes)
    fcntl.fcntl(handle, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return handle


class Arena:
    """One side's view of the memory.

    Args:
        handle: Its descriptor; the caller may close it afterwards.
    """

    def __init__(self, handle: int) -> None:
        self.size_bytes = os.fstat(handle).st_size
        self._map = mmap.mmap(handle, self.size_bytes)

    def tensor(self, at: int, shape: Sequence[int]) -> Tensor:
        """float32 of ``shape`` at an offset, in place.

        Raises:
            InputError: 2727 when it would lie outside, or askew.
        """
        return torch.from_numpy(self._array(at, shape))

    def lent(self, region: Region, shape: Sequence[int], back: deque[Region]) -> Tensor:
        """The same; ``region`` is appended to ``back`` when no tensor refers to that storage any more."""
        array = self._array(region[0], shape)
        weakref.finalize(array, back.append, region).atexit = False
        return torch.from_numpy(array)

    def _array(self, at: int, shape: Sequence[int]) -> np.ndarray[Any, Any]:
        count = 1
        for length in shape:
            count *= length
        if at < 0 or at % _ALIGNED or at + _WORD * count > self.size_bytes:
            raise InputError(2727, expected=f"{_WORD * count} bytes within {self.size_bytes}", got=f"offset {at}")
        return np.frombuffer(self._map, np.float32, count, at).reshape(tuple(shape))


class Regions:
    """Which parts of the memory are free; the script's book-keeping. Not safe to use from two threads at once."""

    def __init__(self, size_bytes: int) -> None:
        self._free: list[Region] = [(0, size_bytes // _ALIGNED * _ALIGNED)]

    def take(self, size_bytes: int) -> Region | None:
        """The first free part that is large enough; None when there is none."""
        wanted = max(_ALIGNED, -(-size_bytes // _ALIGNED) * _ALIGNED)
        for index, (offset, size) in enumerate(self._free):
            if size >= wanted:
                if size == wanted:
                    del self._free[index]
                else:
                    self._free[index] = (offset + wanted, size - wanted)
                return offset, wanted
        return None

    def give(self, region: Region) -> None:
        """Frees what was taken."""
        offset, size = region
        at = bisect_left(self._free, region)
        if at < len(self._free) and offset + size == self._free[at][0]:
            size += self._free.pop(at)[1]
        if at and sum(self._free[at - 1]) == offset:
            before = self._free.pop(at - 1)
            offset, size = before[0], before[1] + size
        insort(self._free, (offset, size))
