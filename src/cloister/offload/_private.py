"""The seam to private training: what a watched forward asks of the offloading that runs inside it.

Private training (:mod:`cloister.privacy`) makes every product with a trained parameter itself, so that its gradient
is one an example. Both look at the same calls: a :class:`~cloister.offload._passes.Pass` inside, the private watch
around it. So a pass that runs inside a private forward stands back from whatever that claims: it hands the call on,
and the private form asks it back how the product is made (:meth:`cloister.offload._passes.Call.apart`). All other
products it has made as ever, with scales that let no example into another's numbers (:mod:`cloister.offload._apart`).
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cloister.offload._engine import Engine
    from cloister.offload._passes import Call
    from cloister.ring import RoundingStream

__all__ = ["PRIVATE", "PrivateForward", "privately", "take_call"]


class PrivateForward(Protocol):
    """One private forward on this thread.

    Attributes:
        examples: Rows of its micro-batch.
        rounding: Bytes for stochastic rounding. Nobody who sees what is released may know them: see ``_apart``.
    """

    examples: int
    rounding: RoundingStream

    def claims(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call is for a private form: it takes a trained parameter, or what was computed from some."""
        ...

    def entered(self, engine: Engine) -> None:
        """Is told of an engine that makes products in this forward."""
        ...


class _Private(threading.local):
    def __init__(self) -> None:
        self.forward: PrivateForward | None = None
        self.call: Call | None = None


PRIVATE = _Private()
"""The private forward that runs on this thread, and the call that was handed on to it last."""


@contextmanager
def privately(forward: PrivateForward) -> Iterator[None]:
    """Every pass that this thread opens meanwhile is part of a private forward."""
    before = PRIVATE.forward
    PRIVATE.forward = forward
    try:
        yield
    finally:
        PRIVATE.forward = before


def take_call() -> Call | None:
    """The call that a pass has handed on, for the form that answers it; None where nothing is offloaded."""
    call, PRIVATE.call = PRIVATE.call, None
    return call
