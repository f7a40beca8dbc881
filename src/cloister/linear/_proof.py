"""The proof that groups are real encryptions of small things: one for all groups of one width of one party.

The map ``φ(s, e_1..e_w, m_1..m_w) = (a_l·s + p·e_l + m_l)_l`` is linear, so the owner shows
``z_v = y_v + Σ_k W_vk·w_k`` for V masked rows, U witnesses w_k and challenges W_vk that are 0 or ±X^i:

1. The prover draws masks y_v and says :attr:`Prover.commitment`, a hash of all ``T_v = φ(y_v)``, together with the
   groups.
2. A coin is tossed. W follows from it, for each prover its own.
3. The prover answers with z and opens its hash. Where a coefficient leaves the box, ``±(2^38 - 1)·U·B``, it begins
   again (6906): in the box all z are equally likely, whatever the witness.
4. The verifier requires that z is in the box and that the hash is that of ``φ(z_v) - Σ_k W_vk·c_k`` (5901).

Two answers to challenges that differ in one column give a short witness of ``2c_k``: ``2/(X^i - X^j)`` has coefficients
-1, 0, 1 (F. Benhamouda, J. Camenisch, S. Krenn, V. Lyubashevsky, G. Neven, ASIACRYPT 2014). So a prover without one
passes with probability ``(2N+1)^-3``; that whoever passes knows one is shown by rewinding. It is zero-knowledge with
the hash as a random oracle; a mask serves one coin only (9901).
"""

from __future__ import annotations

import hmac
import secrets as system
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError, IntegrityError, InternalError, PeerError
from cloister.linear import _ntt
from cloister.linear._boxes import add_turned, boxed_bits, from_box, is_within, masks, to_box
from cloister.linear._elements import P
from cloister.linear._groups import Group, Publics, Secret, Secrets, image
from cloister.linear._packed import pack, packed_bytes, unpack
from cloister.linear._polynomials import Words, subtract_turned
from cloister.linear._primes import DEGREE
from cloister.linear._residues import Residues, add
from cloister.linear._streams import PublicStream, SecretStream, box
from cloister.linear._transcript import labelled

__all__ = ["BOX_BITS", "NONCE_BYTES", "ROWS", "Prover", "challenges", "response_bytes", "verify"]

ROWS, BOX_BITS, NONCE_BYTES = 3, 38, 32
_NOISE = 21
_MOST_GROUPS = 1 << 16


class Prover(Secret):
    """One proof, for one coin.

    Args:
        a: The session's public polynomials.
        witnesses: What the party keeps of its groups of one width, in their order.
        party: Its number.

    Attributes:
        commitment: 32 bytes, to be said together with the groups.
    """

    def __init__(self, a: Publics, witnesses: Sequence[Secrets], party: int) -> None:
        self._shape = _shape_of(a, witnesses)
        self._public, self._witnesses, self._party = a, witnesses, party
        stream = SecretStream("proof")
        parts = self._shape.parts
        self._rows = [[masks(stream, many, a.degree, most << BOX_BITS) for many, most in parts] for _ in range(ROWS)]
        self._nonce = system.token_bytes(NONCE_BYTES)
        publics = a.first(self._shape.width)
        images = (image(publics, y, a.rings.full) for y in self._rows)
        self.commitment = _commitment(a, party, images, self._nonce)

    def respond(self, coin: bytes) -> bytes:
        """The masked witnesses and the opening, for all; the masks are overwritten.

        Raises:
            PeerError: 6906 when z leaves its box: the caller says ``again``, and the session ends.
            InternalError: 9901 for a second coin.
        """
        if not self._rows:
            raise InternalError(9901, "the masks of a proof were about to be used twice")
        rows, self._rows = self._rows, []
        try:
            found = challenges(self._public, self._party, coin, self._shape.width, self._shape.groups)
            for totals, row in zip(rows, found, strict=True):
                for witness, challenge in zip(self._witnesses, row.tolist(), strict=True):
                    _add(totals, witness, challenge)
            boxed = [each for totals in rows for each in zip(totals, self._shape.boxes, strict=True)]
            if not all([is_within(part, most) for part, most in boxed]):  # all of them, whichever is outside
                raise PeerError(6906)
            words = np.concatenate([to_box(x, most) for part, most in boxed for x in part])
            return pack(words, self._shape.bits) + self._nonce
        finally:
            _wipe(rows)

    def wipe(self) -> None:
        """Overwrites the masks."""
        _wipe(self._rows)
        self._rows = []


def verify(a: Publics, groups: Sequence[Group], party: int, commitment: bytes, coin: bytes, response: bytes) -> None:
    """Returns when a party's groups of one width are proven.

    Raises:
        PeerError: 6903 when the response has another size.
        IntegrityError: 5901 when it proves nothing.
    """
    shape = _shape_of(a, groups)
    rows = unpack(response[:-NONCE_BYTES], shape.bits, a.degree, party=party)
    answered = list(_parsed(rows, shape))
    if not all(is_within(x, most) for parts in answered for x, most in zip(parts, shape.boxes, strict=True)):
        raise IntegrityError(5901, f"party {party}'s proof of its ciphertexts leaves its box")
    images = _images(a, groups, answered, challenges(a, party, coin, shape.width, shape.groups))
    if not hmac.compare_digest(commitment, _commitment(a, party, images, response[-NONCE_BYTES:])):
        raise IntegrityError(5901, f"party {party}'s proof of its ciphertexts is not one of these")


def response_bytes(width: int, groups: int, *, degree: int = DEGREE) -> int:
    """Of a response on the wire."""
    return packed_bytes(_Shape(degree, width, groups).bits, degree) + NONCE_BYTES


def challenges(a: Publics, party: int, coin: bytes, width: int, groups: int) -> NDArray[np.int64]:
    """W of a coin, ``(V, U)``: -1 for 0, else the exponent i from 0 to 2N - 1 of X^i, where X^N is -1."""
    seed = labelled("challenges", a.session, party, width, groups, coin)
    drawn = box(PublicStream(seed, "challenges"), ROWS * groups, -1, 2 * a.degree - 1)
    return drawn[:, 0].view(np.int64).reshape(ROWS, groups)


# ---- private ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shape:
    """Of a proof.

    Attributes:
        degree, width, groups: N, w, U.
    """

    degree: int
    width: int
    groups: int

    def __post_init__(self) -> None:
        if not 1 <= self.groups <= _MOST_GROUPS:
            raise InputError(2911, "no such proof", expected=f"1 to {_MOST_GROUPS} groups", got=self.groups)

    @property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """Of s, of e and of m: how many polynomials, and ``U·B``."""
        return (1, self.groups), (self.width, self.groups * _NOISE), (self.width, self.groups * (P // 2))

    @property
    def boxes(self) -> tuple[int, ...]:
        """``(2^38 - 1)·U·B`` of each part."""
        return tuple(((1 << BOX_BITS) - 1) * bound for _, bound in self.parts)

    @property
    def bits(self) -> list[int]:
        """Of a response's rows of words."""
        row = [boxed_bits(most) * many for (many, _), most in zip(self.parts, self.boxes, strict=True)]
        return [bits for part in row for bits in part] * ROWS


def _shape_of(a: Publics, groups: Sequence[Secrets] | Sequence[Group]) -> _Shape:
    shape = _Shape(a.degree, groups[0].width if groups else 0, len(groups))
    if any(each.width != shape.width for each in groups):
        raise InputError(2911, "groups of different widths", expected=shape.width)
    return shape


def _add(totals: list[Words], witness: Secrets, challenge: int) -> None:
    """Adds ``W·w``."""
    if challenge < 0:
        return
    for total, part in zip(totals, witness.parts, strict=True):
        for turned, x in zip(total, part, strict=True):
            add_turned(turned, x, challenge)


def _wipe(rows: list[list[Words]]) -> None:
    for totals in rows:
        for part in totals:
            part[...] = 0


def _parsed(rows: Words, shape: _Shape) -> Sequence[list[Words]]:
    """For each v: z's parts, ``(1 or w, N, W)``."""
    start, out = 0, []
    for _ in range(ROWS):
        parts: list[Words] = []
        for (many, _), most in zip(shape.parts, shape.boxes, strict=True):
            words = len(boxed_bits(most))
            ends = range(start + words, start + words * (many + 1), words)
            parts.append(np.stack([from_box(rows[end - words : end], most) for end in ends]))
            start += words * many
        out.append(parts)
    return out


def _images(
    a: Publics, groups: Sequence[Group], answered: Sequence[list[Words]], found: NDArray[np.int64]
) -> Sequence[Residues]:
    """``φ(z_v) - Σ_k W_vk·c_k``: turned as coefficients, which takes one transform for each ciphertext."""
    full, publics = a.rings.full, a.first(groups[0].width)
    turned = np.zeros((ROWS, *publics.shape), np.uint64)
    for group, column in zip(groups, found.T.tolist(), strict=True):
        coefficients = _ntt.inverse(group.polynomials, full)
        for v, challenge in enumerate(column):
            for place in range(len(coefficients) if challenge >= 0 else 0):
                subtract_turned(turned[v, place], coefficients[place], challenge, full)
    return [add(image(publics, z, full), _ntt.forward(turned[v], full), full) for v, z in enumerate(answered)]


def _commitment(a: Publics, party: int, images: Iterable[Residues], nonce: bytes) -> bytes:
    return labelled("proof", a.session, party, *(x.astype("<u8", copy=False).tobytes() for x in images), nonce)
