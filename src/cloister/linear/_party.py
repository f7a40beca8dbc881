"""One party in a session: what it says to all, coin tosses, and openings that are verified before they are used.

Rules:

* Messages to all are echoed: each party then tells the others what it received, by hash, and a difference ends the
  session. No two honest parties go on from different messages.
* A value is opened by its shares, and every share is checked against its tag *before* anything is computed from the
  sum or sent. Deferred checks would leak: masks of truncations are bounded, and hide only what is.
* The challenges of tags are hashes of the shares they are for, so no coin is tossed for an opening.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence

import numpy as np

from cloister.errors import InputError, IntegrityError, PeerError
from cloister.linear import _field as field
from cloister.linear._channel import Channel
from cloister.linear._elements import WORDS
from cloister.linear._field import ELEMENT_BYTES, Elements
from cloister.linear._shared import Held, Shared, peer_row
from cloister.linear._streams import PublicStream, SecretStream, elements
from cloister.linear._transcript import DIGEST_BYTES, Transcript, labelled

__all__ = ["COIN_BYTES", "Party", "received"]

COIN_BYTES = 32
_NONCE_BYTES = 32


def received(data: bytes, shape: tuple[int, ...], party: int) -> Elements:
    """Field elements that a peer sent; raises 6903 for what are none."""
    try:
        return field.from_bytes(data, shape)
    except InputError:
        raise PeerError(6903, f"party {party} sent what are no field elements") from None


class Party:
    """One party's side of a session.

    Args:
        channel: Its links.
        session: What all call the session, 32 bytes.
        malicious: Whether shares have tags; without, nothing that others send is checked.

    Attributes:
        number: Its place, from 0.
        count: n.
        key: Δ, ``(3,)``: its secret global key.
        transcript: Of what all see alike.
    """

    def __init__(self, channel: Channel, session: bytes, *, malicious: bool = True) -> None:
        self.channel = channel
        self.number, self.count = channel.party, channel.parties
        self.session = session
        self.malicious = malicious
        self.key: Elements = elements(SecretStream("global key"), 1)[0]
        self.transcript = Transcript(session)
        self._openings = self._coins = 0

    @property
    def peers(self) -> list[int]:
        """All others, in ascending order."""
        return [j for j in range(self.count) if j != self.number]

    @property
    def rows(self) -> int:
        """Of a shared value."""
        return 2 * self.count - 1 if self.malicious else 1

    def __repr__(self) -> str:
        return f"<Party {self.number} of {self.count}>"

    # ---- messages ----------------------------------------------------------------------------------------

    def begin(self, phase: str) -> None:
        """Says which phase of the session the next steps belong to."""
        self.channel.begin(phase)

    def swap(self, kind: str, bodies: Sequence[bytes], size_bytes: int) -> list[bytes]:
        """One step with a message of its own to each; raises as :class:`cloister.linear._channel.Channel`."""
        return self.channel.swap(kind, bodies, size_bytes)

    def broadcast(self, kind: str, body: bytes, size_bytes: int) -> list[bytes]:
        """The same message to all, and what each party said to all.

        Raises:
            IntegrityError: 5909 when a peer received something else from somebody.
        """
        said = self.swap(kind, [body] * self.count, size_bytes)
        digest = labelled("echo", self.session, kind.encode(), *said)
        for heard in self.swap(f"{kind} echo", [digest] * self.count, DIGEST_BYTES):
            if not hmac.compare_digest(heard, digest):
                raise IntegrityError(5909, f"parties received different messages in '{kind}'")
        self.transcript.add(kind, digest)  # which stands for all that was said
        return said

    def toss(self) -> bytes:
        """32 bytes that nobody could choose: all commit, then all open.

        Raises:
            IntegrityError: 5909, and 5910 when a commitment opens to something else.
        """
        number, self._coins = self._coins, self._coins + 1
        own = secrets.token_bytes(COIN_BYTES + _NONCE_BYTES)

        def commitment(party: int, opening: bytes) -> bytes:
            return labelled("coin", self.session, number, party, opening)

        committed = self.broadcast("coin commitment", commitment(self.number, own), DIGEST_BYTES)
        opened = self.swap("coin", [own] * self.count, len(own))
        for party, opening in enumerate(opened):
            if not hmac.compare_digest(committed[party], commitment(party, opening)):
                raise IntegrityError(5910, f"party {party} opens another coin than it committed to")
        self.transcript.add("coin", *opened)
        coins = np.frombuffer(b"".join(opened), np.uint8).reshape(self.count, -1)[:, :COIN_BYTES]
        return np.bitwise_xor.reduce(coins, axis=0).tobytes()

    # ---- values ------------------------------------------------------------------------------------------

    def open(self, values: Shared) -> Elements:
        """What shared values are, ``(…, 3)``: to everybody, every share checked.

        Raises:
            IntegrityError: 5908 when a share has not the tag that it should have.
        """
        number, self._openings = self._openings, self._openings + 1
        flat = values.reshaped(-1)
        count = len(flat)
        shares = field.to_bytes(flat.share)
        bodies = [shares + tag for tag in self._tags(number, flat, shares)]
        total = flat.share
        opened: list[bytes] = []
        for party, body in enumerate(self.swap("open", bodies, len(bodies[self.number]))):
            data, tag = body[: ELEMENT_BYTES * count], body[ELEMENT_BYTES * count :]
            opened.append(data)
            if party == self.number:
                continue
            share = received(data, (count,), party)
            if self.malicious:
                self._require_tag(number, flat, party, data, share, tag)
            total = field.add(total, share)
        self.transcript.add("open", *opened)
        return total.reshape(*values.shape, WORDS)

    def _weights(self, number: int, party: int, shares: bytes, count: int) -> Elements:
        """Of the shares that a party opens: they follow from those."""
        return elements(PublicStream(labelled("open", self.session, number, party, shares), "weights"), count)

    def _tags(self, number: int, flat: Shared, shares: bytes) -> list[bytes]:
        """For each party, of all shares at once; none without tags, zeros for oneself."""
        if not self.malicious:
            return [b""] * self.count
        weights = self._weights(number, self.number, shares, len(flat))
        weighed = field.to_bytes(field.dot(flat.rows[1 : self.count], weights[None]))
        tags = [weighed[start : start + ELEMENT_BYTES] for start in range(0, len(weighed), ELEMENT_BYTES)]
        return [*tags[: self.number], bytes(ELEMENT_BYTES), *tags[self.number :]]

    def _require_tag(self, number: int, flat: Shared, party: int, data: bytes, share: Elements, tag: bytes) -> None:
        weights = self._weights(number, party, data, len(flat))
        expected = field.dot(flat.keys(peer_row(self.number, party)), weights)
        expected = field.add(expected, field.multiply(self.key, field.dot(share, weights)))
        if not field.equal(received(tag, (), party), expected):
            raise IntegrityError(5908, f"party {party} opened shares that are not the ones it holds")

    def is_zero(self, values: Sequence[Shared]) -> bool:
        """Whether all shared values are 0, by one opened combination; one that is not passes with probability 2/p."""
        stream = PublicStream(self.toss(), "zeros")
        total = self.nothing(1)
        for value in values:
            flat = value.reshaped(-1)
            total = total + flat.weighted(elements(stream, len(flat))).reshaped(1)
        return not self.open(total).any()

    def plus(self, values: Shared, public: Elements) -> Shared:
        """Shared values and public ones: party 0 adds them to its share, the others to their keys for it."""
        rows = values.rows.copy()
        if self.number == 0:
            rows[0] = field.add(rows[0], np.broadcast_to(public, rows[0].shape))
        elif self.malicious:
            rows[self.count] = field.subtract(rows[self.count], field.multiply(self.key, public))
        return Shared(rows)

    def nothing(self, *shape: int) -> Shared:
        """Shared zeros."""
        return Shared(np.zeros((self.rows, *shape, WORDS), np.uint64))

    def joined(self, held: Sequence[Held]) -> Shared:
        """The sums of what each party holds, in the order of the parties."""
        total = held[0].shared(self.number, self.count)
        for other in held[1:]:
            total = total + other.shared(self.number, self.count)
        return total

    def wipe(self) -> None:
        """Overwrites the global key."""
        self.key[...] = 0
