"""Which mask hides which tensor: a mask serves one exact integer tensor, and each worker sees one point of it.

Two tensors under one mask show their difference; two points of one mask at one worker show twice the tensor
(``W + U`` and ``W - U``), whatever the modulus; and a worker that has the mask itself needs no second message. So:

* a mask is bound for ever to the first tensor that it hides: that object, at that version. Rounded again, rescaled,
  copied or updated is another tensor. Once the tensor is gone, its mask is spent: no later object can take its place;
* a worker is bound to the first point of a mask that it was given. Sending the same message again is harmless;
* a worker that was dealt a role's key is never sent anything that the role masks.

Whoever violates this gets 9701, before a word is handed out. The ledger is memory of one process and is never saved:
keys are fresh at every start, so nothing that a checkpoint holds could be reused. Tensors are told apart without
reading them, by identity and by torch's version counter; a write through ``numpy``, ``.data`` or a raw pointer is not
seen.
"""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from cloister.errors import InternalError
from cloister.ring._process import ThisProcess
from cloister.ring._words import Mask, MaskId

__all__ = ["THE_MASK", "MaskLedger"]

THE_MASK = 0  # the point of a worker that is given the mask alone: an additive share, or a role's key
_SWEEP_FROM = 256


@dataclass(slots=True)
class _Binding:
    tensor: weakref.ref[Tensor]
    version: int
    points: dict[str, int] = field(default_factory=dict[str, int])


class _Spent:
    """A set of counters, as disjoint runs: a role's counters are used nearly in order, so there are few."""

    __slots__ = ("_starts", "_stops")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def __contains__(self, counter: int) -> bool:
        at = bisect_right(self._starts, counter)
        return at > 0 and counter < self._stops[at - 1]

    def add(self, counter: int) -> None:
        """Adds a counter that is not in the set."""
        at = bisect_right(self._starts, counter)
        after = at > 0 and self._stops[at - 1] == counter
        before = at < len(self._starts) and self._starts[at] == counter + 1
        if after and before:
            self._stops[at - 1] = self._stops.pop(at)
            del self._starts[at]
        elif after:
            self._stops[at - 1] = counter + 1
        elif before:
            self._starts[at] = counter
        else:
            self._starts.insert(at, counter)
            self._stops.insert(at, counter + 1)


class MaskLedger:
    """What every mask of this start was used for. Safe to use from several threads."""

    def __init__(self) -> None:
        self._process = ThisProcess()
        self._lock = threading.Lock()
        self._live: dict[MaskId, _Binding] = {}
        self._spent: dict[str, _Spent] = {}
        self._dealt: dict[str, set[str]] = {}  # role -> workers that have its key
        self._served: dict[str, set[str]] = {}  # role -> workers that were sent anything of it
        self._sweep_at = _SWEEP_FROM

    def bind(self, mask: Mask, tensor: Tensor, points: Mapping[str, int]) -> None:
        """Binds a mask to the integers that it is about to hide, and each worker to its point.

        Args:
            mask: The mask.
            tensor: The integers themselves, not a copy or a view; kept alive for as long as messages of it are made.
            points: For each worker, by name, the odd point it is given, or :data:`THE_MASK`. Workers that one operator
                runs are one worker here.

        Raises:
            InternalError: 9701 when the mask is bound to anything else, or a worker to another point, or in a fork.
                Nothing is bound then.
        """
        self._process.require()
        for point in points.values():
            if point % 2 == 0 and point != THE_MASK:
                raise InternalError(9701, "an even multiple of a mask does not hide the lowest bit")
        with self._lock:
            binding = self._binding(mask.id, tensor)
            dealt = self._dealt.get(mask.id.role, set())
            for worker, point in points.items():
                if binding.points.get(worker, point) != point:
                    raise InternalError(9701, "a worker was about to see a second point of one mask")
                if worker in dealt and point != THE_MASK:
                    raise InternalError(9701, "a worker that has a role's key was about to be sent what it masks")
            binding.points.update(points)
            self._live[mask.id] = binding
            self._served.setdefault(mask.id.role, set()).update(w for w, p in points.items() if p != THE_MASK)
            self._sweep()

    def deal(self, role: str, worker: str) -> None:
        """Notes that ``worker`` is given the role's key, and so every mask of it, past and to come.

        Raises:
            InternalError: 9701 when it was sent anything that the role masks, or in a fork.
        """
        self._process.require()
        with self._lock:
            if worker in self._served.get(role, ()):
                raise InternalError(9701, "a worker that was sent masked tensors was about to get their role's key")
            self._dealt.setdefault(role, set()).add(worker)

    def _binding(self, mask: MaskId, tensor: Tensor) -> _Binding:
        """The mask's binding if it is to this very tensor, or a new one if it has none."""
        if tensor.is_inference():
            raise InternalError(9701, "a tensor whose changes torch does not count was about to be masked")
        version = tensor._version
        bound = self._live.get(mask)
        if bound is None:
            if mask.counter in self._spent.get(mask.role, ()):
                raise InternalError(9701, "a mask of a tensor that is gone was about to hide another")
            return _Binding(weakref.ref(tensor), version)
        if bound.tensor() is not tensor:  # a dead reference gives None, which no tensor is
            raise InternalError(9701, "one mask was about to hide two tensors")
        if bound.version != version:
            raise InternalError(9701, "a tensor was changed in place and was about to be masked again by the same mask")
        return bound

    def _sweep(self) -> None:
        """Forgets all of dead tensors but that their masks are spent."""
        if len(self._live) < self._sweep_at:
            return
        for mask in [mask for mask, binding in self._live.items() if binding.tensor() is None]:
            del self._live[mask]
            self._spent.setdefault(mask.role, _Spent()).add(mask.counter)
        self._sweep_at = max(_SWEEP_FROM, 2 * len(self._live))
