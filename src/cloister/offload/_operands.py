"""Operands: a tensor of the enclave as integers, and the numbers of the pieces that workers keep of it."""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cloister.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cloister.ring import MaskId, Quantised

__all__ = ["Numerics", "Operand", "Released"]


@dataclass(frozen=True, slots=True)
class Numerics:
    """How numbers become integers.

    Attributes:
        bits: Of every operand, 2 to 8.
        scales: One power of two a ``tensor`` that follows from its values, as in Goten, or one an output ``channel`` of
            each weight. Where a channel scale would vary along what a product sums over, as in the input gradient, the
            weight is rounded again with one that does not, and shared again under another mask. Or ``static``, as in
            Slalom: one a tensor that the first pass fixes.
        rounding: ``stochastic`` while gradients are recorded and to the nearest otherwise, or always to the nearest.

    Raises:
        InputError: 2705 for other bits, 2713 for another word.
    """

    bits: int = 8
    scales: Literal["tensor", "channel", "static"] = "tensor"
    rounding: Literal["stochastic", "nearest"] = "stochastic"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise InputError(2705, expected="2 to 8 bits an operand", got=self.bits)
        if self.scales not in ("tensor", "channel", "static"):
            raise InputError(2713, expected="scales of a 'tensor' or a 'channel', or 'static' ones", got=self.scales)
        if self.rounding not in ("stochastic", "nearest"):
            raise InputError(2713, expected="'stochastic' or 'nearest' rounding", got=self.rounding)


class Released:
    """Handles that nobody needs any more, a queue a worker: told to it with the next command, not by a finaliser."""

    def __init__(self, workers: int) -> None:
        self._queues: list[deque[int]] = [deque() for _ in range(workers)]

    def put(self, handles: Mapping[tuple[int, str], int]) -> None:
        """Queues the handles of one operand. May run at any moment, on any thread: it only appends."""
        for (worker, _), handle in handles.items():
            self._queues[worker].append(handle)

    def take(self, worker: int, most: int) -> tuple[int, ...]:
        """At most so many of a worker's handles; they are the caller's now."""
        queue = self._queues[worker]
        return tuple(queue.popleft() for _ in range(min(most, len(queue))))


class Operand:
    """One hidden tensor: its integers here, its pieces at the workers. Secret.

    When nobody refers to it any more, its pieces are given up.

    Attributes:
        quantised: The integers.
        handles: Number of each piece, by worker and the piece's name.
        mask: Which mask hides it; None where it is shown or nothing is sent.
    """

    __slots__ = ("__weakref__", "handles", "mask", "quantised")

    def __init__(
        self,
        quantised: Quantised,
        handles: Mapping[tuple[int, str], int] | None = None,
        *,
        mask: MaskId | None = None,
        released: Released | None = None,
    ) -> None:
        self.quantised = quantised
        self.handles = dict(handles or {})
        self.mask = mask
        if released is not None:
            weakref.finalize(self, released.put, self.handles).atexit = False

    @property
    def axis(self) -> int | None:
        """Along which its scales vary."""
        return self.quantised.axis

    def __repr__(self) -> str:
        return f"<Operand {self.quantised.shape}>"
