"""That every party encrypted a *constant* as its global key, before anybody shows it a tag.

The proof of ciphertexts bounds what is encrypted, and does not show that it is constant. It must be: of ``Δ(X)``, the
tag of one opened value would show its neighbours, which are not opened. So party i spends a polynomial of uniform
values x, draws ζ with ``Σζ_t x_t = 0``, and says ζ to party j. That is the sum of the keys, which j must know without
the tags: ``κ = Σζ_t K_t = Σζ_t M_t - Δ_j·0``. For another Δ(X) it depends on x, and j would have to guess it, with
probability (N+1)/p. Party i, too, could lie about ζ, and would have to guess Δ_j.

Both could copy each other's sum, so j commits to its own before i says it.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cloister.errors import IntegrityError
from cloister.linear import _field as field
from cloister.linear._elements import WORDS
from cloister.linear._field import ELEMENT_BYTES, Elements
from cloister.linear._party import Party, received
from cloister.linear._shared import Shared, peer_row
from cloister.linear._streams import SEED_BYTES, PublicStream, elements
from cloister.linear._transcript import DIGEST_BYTES, labelled

__all__ = ["require_constant_keys"]

_NONCE_BYTES = 32


def require_constant_keys(party: Party, polynomial: Shared) -> None:
    """Checks every pair both ways, by one polynomial of uniform values that is used for nothing else.

    Raises:
        IntegrityError: 5902 when a sum is another, 5910 when one was not what its owner had committed to.
    """
    count = len(polynomial)
    own = {peer: _Zeta.orthogonal(polynomial.share) for peer in party.peers}
    heard = _each(party, "shape", SEED_BYTES + ELEMENT_BYTES, lambda peer: own[peer].to_bytes())
    sums: dict[int, bytes] = {}
    for peer in party.peers:
        zeta = _Zeta.from_bytes(heard[peer], peer).weights(count)
        sums[peer] = field.to_bytes(field.dot(polynomial.keys(peer_row(party.number, peer)), zeta))
    nonces = {peer: secrets.token_bytes(_NONCE_BYTES) for peer in party.peers}

    def commitment(holder: int, owner: int, opening: bytes) -> bytes:
        return labelled("shape", party.session, holder, owner, opening)

    def committed(peer: int) -> bytes:
        return commitment(peer, party.number, sums[peer] + nonces[peer])

    commitments = _each(party, "shape commitment", DIGEST_BYTES, committed)
    tags: dict[int, bytes] = {}
    for peer in party.peers:
        tags[peer] = field.to_bytes(field.dot(polynomial.tags(peer_row(party.number, peer)), own[peer].weights(count)))
    heard = _each(party, "shape tag", ELEMENT_BYTES, lambda peer: tags[peer])
    _require_equal(party, heard, sums)
    opened = _each(party, "shape opening", ELEMENT_BYTES + _NONCE_BYTES, lambda peer: sums[peer] + nonces[peer])
    for peer in party.peers:
        if not hmac.compare_digest(commitments[peer], commitment(party.number, peer, opened[peer])):
            raise IntegrityError(5910, f"party {peer} opens another sum than it committed to")
    _require_equal(party, [body[:ELEMENT_BYTES] for body in opened], tags)


def _each(party: Party, kind: str, size_bytes: int, body: Callable[[int], bytes]) -> list[bytes]:
    """One message to each peer."""
    bodies = [bytes(size_bytes) if peer == party.number else body(peer) for peer in range(party.count)]
    return party.swap(kind, bodies, size_bytes)


def _require_equal(party: Party, heard: Sequence[bytes], expected: Mapping[int, bytes]) -> None:
    for peer in party.peers:
        if not hmac.compare_digest(heard[peer], expected[peer]):
            raise IntegrityError(5902, f"party {peer}'s global key and its tags do not belong together")


class _Zeta:
    """Public weights: all but the last by a seed."""

    def __init__(self, seed: bytes, last: Elements) -> None:
        self.seed, self.last = seed, last

    @classmethod
    def orthogonal(cls, values: Elements) -> _Zeta:
        """With which the values sum to 0."""
        seed = secrets.token_bytes(SEED_BYTES)
        first = elements(PublicStream(seed, "shape"), len(values) - 1)
        rest = field.negate(field.dot(values[:-1], first))
        return cls(seed, field.multiply(rest, field.inverse(values[-1:])[0]))

    @classmethod
    def from_bytes(cls, data: bytes, party: int) -> _Zeta:
        return cls(data[:SEED_BYTES], received(data[SEED_BYTES:], (), party))

    def to_bytes(self) -> bytes:
        return self.seed + field.to_bytes(self.last)

    def weights(self, count: int) -> Elements:
        out = np.empty((count, WORDS), np.uint64)
        out[:-1] = elements(PublicStream(self.seed, "shape"), count - 1)
        out[-1] = self.last
        return out
