"""The groups of a session: each party encrypts, says so to all, and proves that what it said is small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cloister.linear._answered import Target
from cloister.linear._field import Elements
from cloister.linear._groups import Group, Publics, Secrets, encrypt, group_bytes
from cloister.linear._party import Party
from cloister.linear._proof import Prover, response_bytes, verify
from cloister.linear._transcript import DIGEST_BYTES

__all__ = ["Keyring", "exchange_groups"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Keyring:
    """Groups of one width, of every party.

    Attributes:
        secrets: Of the own groups.
        groups: By party, then in order.
        flood: Φ of answers on them.
    """

    secrets: Sequence[Secrets]
    groups: Sequence[Sequence[Group]]
    flood: int

    def target(self, place: int) -> Target:
        """The groups in this place."""
        return Target(self.secrets[place], [groups[place] for groups in self.groups], self.flood)

    def wipe(self) -> None:
        """Overwrites the own secrets."""
        for secrets in self.secrets:
            secrets.wipe()


def exchange_groups(party: Party, publics: Publics, messages: Sequence[Elements], flood: int) -> Keyring:
    """Encrypts, and verifies what the others encrypted.

    Args:
        party: Whose.
        publics: The session's.
        messages: ``(w, N, 3)`` each, all of one width, as many as everybody has.
        flood: Φ of answers on these groups.

    Raises:
        PeerError: 6903 for what are no groups, 6906 when a proof must be begun again.
        IntegrityError: 5901 when a proof is wrong, 5909 when one said different things.
    """
    made = [encrypt(publics, message) for message in messages]
    keyring = Keyring([own for own, _ in made], [], flood)
    try:
        return replace(keyring, groups=_exchanged(party, publics, made))
    except BaseException:
        keyring.wipe()
        raise


def _exchanged(party: Party, publics: Publics, made: Sequence[tuple[Secrets, Group]]) -> list[list[Group]]:
    """By party; of all others with a proof."""
    width, degree = made[0][1].width, publics.degree
    size = group_bytes(width, degree=degree)
    data = b"".join(group.to_bytes() for _, group in made)
    if not party.malicious:
        said = party.swap("groups", [data] * party.count, size * len(made))
        return [_parsed(body, width, peer, degree) for peer, body in enumerate(said)]
    prover = Prover(publics, [own for own, _ in made], party.number)
    said = party.broadcast("groups", prover.commitment + data, DIGEST_BYTES + size * len(made))
    commitments = [body[:DIGEST_BYTES] for body in said]
    groups = [_parsed(body[DIGEST_BYTES:], width, peer, degree) for peer, body in enumerate(said)]
    coin = party.toss()
    responses = party.broadcast("proof", prover.respond(coin), response_bytes(width, len(made), degree=degree))
    for peer in party.peers:
        verify(publics, groups[peer], peer, commitments[peer], coin, responses[peer])
    return groups


def _parsed(data: bytes, width: int, party: int, degree: int) -> list[Group]:
    size = group_bytes(width, degree=degree)
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return [Group.from_bytes(piece, width, party=party, degree=degree) for piece in pieces]
