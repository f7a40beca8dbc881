"""What a session asks of its links: in every step each party sends every other one message of a size that all know.

Sizes follow from the agreement, so whoever receives knows how many bytes are due before one is read. What waits behind
a link, another thread, a delaying relay or a TLS connection, is no business of the protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Channel"]


class Channel(Protocol):
    """One party's links to all others.

    Attributes:
        party: Its own place, from 0.
        parties: How many there are.
    """

    party: int
    parties: int

    def swap(self, kind: str, bodies: Sequence[bytes], size_bytes: int) -> list[bytes]:
        """One step: sends ``bodies[j]`` to party j and gives what every party sent here.

        Args:
            kind: Of the step, such as ``open``; frames carry it and the number of the step.
            bodies: One a party, each of ``size_bytes``; the own one comes back as it is.
            size_bytes: Of every message of this step, at all parties.

        Raises:
            PeerError: 6901 when a peer does not answer in time, 6902 when a link breaks, 6903 when a frame is
                not the one that is due, 6905 when a peer aborted.
        """
        ...

    def begin(self, phase: str) -> None:
        """Says which phase of the session the next steps belong to: it is counted, and an abort tells it."""
        ...

    def abort(self, code: int) -> None:
        """Tells all peers that this party stops, by its code, and closes the links; more than once is once."""
        ...
