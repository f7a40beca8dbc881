"""Groups of ciphertexts: what a_l, c_l and the secrets are, exactly, and how groups are sent."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from tests.exact_numbers import EDGES, field_integers, negacyclic, refused
from tests.linear_lattice import SESSION, centred, plain, signed

from cloister.linear._elements import P
from cloister.linear._field import Elements, from_ints, to_ints
from cloister.linear._groups import Group, Wide, encrypt, group_bytes, publics
from cloister.linear._primes import DROPPED, FULL, KEPT
from cloister.linear._streams import PublicStream, residues
from cloister.linear._transcript import labelled

RINGS = Wide.of(64)
A = publics(SESSION, 3, degree=64)
Q = FULL.modulus


def messages(width: int, seed: int = 1) -> Elements:
    return from_ints(np.array(field_integers(64 * width, seed=seed), object).reshape(width, 64))


def test_the_rings_of_the_protocol() -> None:
    assert Wide.of(32768) == Wide(FULL, KEPT, DROPPED)
    assert RINGS.full.modulus == Q == RINGS.kept.modulus * RINGS.dropped.modulus


def test_public_polynomials_follow_from_the_session_and_their_place() -> None:
    again = publics(SESSION, 2, degree=64)
    assert (again.polynomials == A.first(2)).all()
    for place in range(3):
        expected = residues(PublicStream(labelled("a", SESSION, place + 1), "a"), RINGS.full)
        assert (A.polynomials[place] == expected).all()
    assert (publics(bytes(32), 3, degree=64).polynomials != A.polynomials).mean() > 0.99
    assert (A.polynomials[0] != A.polynomials[1]).mean() > 0.99


@pytest.mark.parametrize("width", [1, 3])
def test_a_ciphertext_is_its_equation(width: int) -> None:
    wanted = messages(width)
    secrets, group = encrypt(A, wanted)
    key = [int(x) for x in secrets.key]
    assert set(key) == {-1, 0, 1}
    assert secrets.width == group.width == width
    for place in range(width):
        a, c = (plain(x[place], RINGS.full) for x in (A.polynomials, group.polynomials))
        noise, half = [int(x) for x in secrets.noises[place]], signed(secrets.halves[place])
        product = negacyclic(a, key, Q)
        assert c == [(x + P * e + m) % Q for x, e, m in zip(product, noise, half, strict=True)]
        assert max(map(abs, noise)) <= 21
        assert max(map(abs, half)) <= P // 2
        assert [2 * m % P for m in half] == to_ints(wanted[place]).tolist()


def test_messages_at_the_edges_of_the_field() -> None:
    many = (EDGES * 2)[:64]
    secrets, _ = encrypt(A, from_ints([many]))
    assert signed(secrets.halves[0]) == centred([value * pow(2, -1, P) % P for value in many], P)


def test_every_group_has_a_secret_of_its_own() -> None:
    made = [encrypt(A, messages(1))[0] for _ in range(4)]
    assert len({each.key.tobytes() for each in made}) == len({each.noises.tobytes() for each in made}) == 4


def test_the_parts_of_a_witness_are_what_was_encrypted() -> None:
    secrets, _ = encrypt(A, messages(2))
    key, noises, halves = secrets.parts
    assert signed(key[0]) == secrets.key.tolist()
    assert [signed(e) for e in noises] == secrets.noises.tolist()
    assert (halves == secrets.halves).all()


def test_a_group_comes_through_bytes() -> None:
    _, group = encrypt(A, messages(2))
    data = group.to_bytes()
    assert len(data) == group_bytes(2, degree=64) == 2 * 64 * 522 // 8
    assert (Group.from_bytes(data, 2, party=1, degree=64).polynomials == group.polynomials).all()
    for width, other in ((1, data), (3, data), (2, data[:-1]), (2, data + b"\0"), (2, b""), (2, b"\xff" * len(data))):
        refused(lambda width=width, other=other: Group.from_bytes(other, width, party=1, degree=64), 6903)


def test_secrets_are_not_shown_compared_or_pickled() -> None:
    secrets, _ = encrypt(A, messages(1))
    assert repr(secrets) == "<Secrets of width 1>"
    for act in (lambda: secrets == secrets, lambda: pickle.dumps(secrets), lambda: copy.deepcopy(secrets)):
        with pytest.raises(TypeError):
            act()
    with pytest.raises(TypeError):
        hash(secrets)


def test_secrets_can_be_overwritten() -> None:
    secrets, _ = encrypt(A, messages(1))
    held = (secrets.key, secrets.noises, secrets.halves, secrets.doubled)
    secrets.wipe()
    assert not any(array.any() for array in held)


def test_2911_other_shapes() -> None:
    refused(lambda: encrypt(A, messages(1)[0]), 2911)
    refused(lambda: encrypt(A, messages(1)[:, :32]), 2911)
    refused(lambda: encrypt(A, messages(4)), 2911)
    refused(lambda: encrypt(A, messages(1)[:0]), 2911)
    refused(lambda: A.first(0), 2911)
