"""Failed checks: recorded where they happen, told at one place, in one way.

A worker that lies chooses where and how. If each way of failing looked different outside the enclave (another code,
another layer, another moment), its lies would be questions and the failures answers: a product that is moved out of
range for some private values only reveals, one abort after the other, those values. So:

* A failed check raises nothing. The run goes on with zeros in the answer's place, so that nothing which the worker
  chose decides what happens next, and stops at the first of two points: before an optimizer's step, or at the end of
  a forward pass without gradients.
* What is raised there is 5701 without a word about layer, step, check or worker.
* What failed, and where, is for the parties. It is sealed to their keys, at one size whatever it says.
* A verdict is final: nothing is multiplied afterwards, and nobody tries again on his own. The first optimizer that
  asks is refused, whichever it is, since gradients flow on into other models; then it and those of this model.
"""

from __future__ import annotations

import json
import threading
import weakref
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

from cloister.errors import IntegrityError
from cloister.wire import write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import nn
    from torch.optim import Optimizer

    from cloister.ring import Role
    from cloister.wire import SealingKey

__all__ = ["EVIDENCE_INFO", "Failure", "Verdict"]

EVIDENCE_INFO = b"cloister offload evidence/v1"
_EVIDENCE_BYTES = 1 << 16  # each sealed record has this size, whatever failed and how often
_LISTED = 128


@dataclass(frozen=True, slots=True)
class Failure:
    """One product whose answer was not the product. For the parties only.

    Attributes:
        layer: Whose product it was.
        role: Which of the three.
        step: How many forward passes of the model had begun.
        part: Which part of a product that was cut.
        workers: Who answered; which of them lied is not known.
        holds: Whether the Freivalds check held.
        odd: Words that had to be even and were not.
        beyond: Integers beyond the public bound.
    """

    layer: str
    role: Role
    step: int
    part: int
    workers: tuple[str, ...]
    holds: bool
    odd: int
    beyond: int


class Verdict:
    """What the checks of one conversion found.

    Args:
        parties: Keys that failures are sealed to, by party.
        evidence: Folder for the sealed records, one file a party.
        elsewhere: Whether a check failed, where the checks are made in another process.
    """

    def __init__(
        self,
        *,
        parties: Mapping[str, SealingKey] | None = None,
        evidence: Path | None = None,
        elsewhere: Callable[[], bool] | None = None,
    ) -> None:
        self._parties = dict(parties or {})
        self._evidence = evidence
        self._elsewhere = elsewhere
        self._failures: list[Failure] = []
        self._count = 0
        self._lock = threading.Lock()
        self._told = False
        self._model: weakref.ref[nn.Module] | None = None
        self._refused: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        _open_verdicts.add(self)

    def bind(self, model: nn.Module) -> None:
        """Names the model whose products these checks are of."""
        self._model = weakref.ref(model)

    @property
    def failed(self) -> bool:
        """Whether any check failed so far. Secret until :meth:`settle` has told it."""
        return self._count > 0 or (self._elsewhere is not None and self._elsewhere())

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The first failures. Secret: for whoever may see the data."""
        return tuple(self._failures)

    def record(self, failure: Failure) -> None:
        """Notes a failure."""
        with self._lock:
            self._count += 1
            if len(self._failures) < _LISTED:
                self._failures.append(failure)

    def settle(self) -> None:
        """Returns when every check so far held.

        Raises:
            IntegrityError: 5701 otherwise, now and at every later call.
        """
        if not self.failed:
            return
        with self._lock:
            first, self._told = not self._told, True
        if first and self._evidence is not None:
            self._evidence.mkdir(parents=True, exist_ok=True)
            for party, sealed in self.sealed().items():
                write_atomic(self._evidence / f"{party}.evidence", sealed)
        raise IntegrityError(5701)

    def sealed(self) -> dict[str, bytes]:
        """What failed, sealed to each party; of one size whatever it says."""
        record = self._record()
        return {party: key.seal(record, info=EVIDENCE_INFO) for party, key in self._parties.items()}

    def before_step(self, optimizer: Optimizer) -> None:
        """Returns when the optimizer's gradients may be used.

        Raises:
            IntegrityError: 5701 otherwise.
        """
        if self.failed and (not self._told or optimizer in self._refused or self._trains(optimizer)):
            self._refused.add(optimizer)
            self.settle()

    def _trains(self, optimizer: Optimizer) -> bool:
        model = None if self._model is None else self._model()
        own = set() if model is None else {id(parameter) for parameter in model.parameters()}
        return any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])

    def _record(self) -> bytes:
        listed: list[dict[str, Any]] = []
        for failure in self._failures:
            listed.append(asdict(failure))
            if len(self._as_bytes(listed)) > _EVIDENCE_BYTES:
                listed.pop()
                break
        return self._as_bytes(listed).ljust(_EVIDENCE_BYTES)

    def _as_bytes(self, listed: list[dict[str, Any]]) -> bytes:
        return json.dumps({"format": 1, "count": self._count, "failures": listed}).encode()


_open_verdicts: weakref.WeakSet[Verdict] = weakref.WeakSet()


def _before_step(optimizer: Optimizer, *_: object) -> None:
    for verdict in tuple(_open_verdicts):
        verdict.before_step(optimizer)


register_optimizer_step_pre_hook(_before_step)
