"""What a launcher needs to let layers leave, as a seam: a broker that multiplies for the script, and says how it went.

The links to the workers and the keys of their masks are the broker's, in the launcher's process. The script has two
things of it: variables, and descriptors that it inherits. Neither is a way to a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

from cloister.manifest import OffloadTerms, Worker
from cloister.receipt import OffloadFacts
from cloister.wire import SealingKey

__all__ = ["WRONG_PRODUCT", "Broker", "OffloadEnd", "Offloader"]

WRONG_PRODUCT = 5701
"""The one code of every failed check: which one it was is for the parties."""


@dataclass(frozen=True, slots=True)
class OffloadEnd:
    """How the offloading of one attempt ended.

    Attributes:
        code: ``WRONG_PRODUCT`` when any check failed, whatever else happened; else the code that a worker's link ended
            with (67xx, 57xx); else None.
        facts: For the receipt.
        evidence: What failed, sealed to each party; records of one size. Empty unless a check failed.
    """

    code: int | None
    facts: OffloadFacts
    evidence: Mapping[str, bytes] = field(default_factory=dict[str, bytes])


class Broker(Protocol):
    """Multiplies for one script. A context manager: nothing is open before it is entered, nothing after it was left.

    Contract: what the script does to its side ends nothing but its own products. ``end`` says the same after a failed
    check whichever it was, and takes what a worker did for no reason to end earlier.
    """

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables that the script finds it by; once entered."""
        ...

    @property
    def descriptors(self) -> Sequence[int]:
        """Descriptors that the script inherits under the same numbers; once entered."""
        ...

    def __enter__(self) -> Self:
        """Opens the script's side."""
        ...

    def __exit__(self, *_: object) -> None:
        """Ends it, as :meth:`end`."""
        ...

    @property
    def wrong(self) -> bool:
        """Whether a check has failed; true before the script has anything in the wrong product's place."""
        ...

    def end(self) -> OffloadEnd:
        """Ends every link, and says how it went; the same again at every later call."""
        ...


class Offloader(Protocol):
    """Makes the broker of one attempt. Nothing is connected or opened by that."""

    def __call__(
        self,
        terms: OffloadTerms,
        /,
        *,
        workers: Mapping[str, Worker],
        memory_bytes: int,
        parties: Mapping[str, SealingKey],
    ) -> Broker:
        """The broker.

        Args:
            terms: The stage's.
            workers: Those of the terms, in their order; the key is the manifest's, the address is the host's word.
            memory_bytes: What script and broker may share at most.
            parties: Whom failed checks are told, sealed.

        Raises:
            InputError: 2005 when an address is none; 2006 when what multiplies is not installed.
        """
        ...
