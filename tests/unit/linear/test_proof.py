"""Proofs of groups: what honest provers say is accepted, is exactly ``y + W·w``, and hides the witness."""

from __future__ import annotations

import pytest
from tests.exact_numbers import refused
from tests.linear_lattice import SESSION, signed

from cloister.linear import _proof
from cloister.linear._budget import BOX_BITS, NOISE, RING, ROWS
from cloister.linear._elements import P
from cloister.linear._groups import Group, Publics, Secrets, encrypt, publics
from cloister.linear._proof import NONCE_BYTES, Prover, challenges, response_bytes, verify
from cloister.linear._streams import SecretStream, elements

A = publics(SESSION, 3, degree=64)
COIN = bytes(range(100, 132))


def groups(width: int, count: int, a: Publics = A) -> tuple[list[Secrets], list[Group]]:
    made = [encrypt(a, elements(SecretStream("test"), width, a.degree)) for _ in range(count)]
    return [secrets for secrets, _ in made], [group for _, group in made]


def turned(x: list[int], exponent: int) -> list[int]:
    size = len(x)
    out = [0] * size
    for i, value in enumerate(x):
        place = (i + exponent) % (2 * size)
        out[place % size] = -value if place >= size else value
    return out


def test_the_parameters_are_the_budgets() -> None:
    assert (_proof.ROWS, _proof.BOX_BITS, _proof._NOISE) == (ROWS, BOX_BITS, NOISE)


@pytest.mark.parametrize(("width", "count"), [(1, 1), (1, 6), (3, 1), (2, 3)])
def test_honest_groups_are_accepted(width: int, count: int) -> None:
    secrets, made = groups(width, count)
    prover = Prover(A, secrets, 2)
    response = prover.respond(COIN)
    assert len(response) == response_bytes(width, count, degree=64)
    sent = [Group.from_bytes(group.to_bytes(), width, party=2, degree=64) for group in made]
    verify(A, sent, 2, prover.commitment, COIN, response)


def test_a_response_is_the_masks_and_the_turned_witnesses() -> None:
    secrets, _ = groups(2, 3)
    prover = Prover(A, secrets, 0)
    masks = [[[signed(x) for x in part] for part in row] for row in prover._rows]
    response = prover.respond(COIN)
    shape = _proof._Shape(64, 2, 3)
    rows = _proof.unpack(response[:-NONCE_BYTES], shape.bits, 64, party=0)
    found = [[[signed(x) for x in part] for part in row] for row in _proof._parsed(rows, shape)]
    for expected, row in zip(masks, challenges(A, 0, COIN, 2, 3).tolist(), strict=True):
        for witness, challenge in zip(secrets, row, strict=True):
            for part, own in zip(expected, witness.parts, strict=True):
                for place, x in enumerate(own):
                    more = turned(signed(x), challenge) if challenge >= 0 else [0] * 64
                    part[place] = [a + b for a, b in zip(part[place], more, strict=True)]
    assert found == masks


@pytest.mark.parametrize(("width", "count"), [(1, 6), (4, 1)])
def test_every_response_in_the_box_has_one_mask_whatever_the_witness(width: int, count: int) -> None:
    """Masks reach exactly as much further than the box as witnesses can move them: what is left is uniform."""
    shape = _proof._Shape(64, width, count)
    for (_, moved), box, most in zip(shape.parts, shape.boxes, (1, 21, P // 2), strict=True):
        assert moved == count * most
        assert box + moved == moved << BOX_BITS


def test_challenges_follow_from_coin_party_and_shape() -> None:
    found = challenges(A, 1, COIN, 1, 500)
    assert found.shape == (3, 500)
    assert set(found.ravel().tolist()) == set(range(-1, 128))
    assert (challenges(A, 1, COIN, 1, 500) == found).all()
    others = (
        challenges(A, 2, COIN, 1, 500),
        challenges(A, 1, COIN, 2, 500),
        challenges(A, 1, bytes(32), 1, 500),
        challenges(publics(bytes(32), 1, degree=64), 1, COIN, 1, 500),
    )
    for other in others:
        assert (other == found).mean() < 0.1


def test_6906_a_response_that_leaves_the_box_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets, _ = groups(1, 2)
    prover = Prover(A, secrets, 0)
    held = [part for row in prover._rows for part in row]
    prover._rows[2][1][0, 5, 0] = 42 << 38  # the end of the masks' box
    monkeypatch.setattr(_proof, "challenges", lambda *_: _proof.np.array([[0, 0]] * 3))
    for secret in secrets:
        secret.noises[0, 5] = 1
    refused(lambda: prover.respond(COIN), 6906)
    assert not any(part.any() for part in held)
    refused(lambda: prover.respond(COIN), 9901)


def test_9901_masks_serve_one_coin() -> None:
    secrets, _ = groups(1, 1)
    prover = Prover(A, secrets, 0)
    held = [part for row in prover._rows for part in row]
    prover.respond(COIN)
    assert not any(part.any() for part in held)
    refused(lambda: prover.respond(bytes(32)), 9901)


def test_a_prover_can_be_wiped_and_is_not_pickled() -> None:
    secrets, _ = groups(1, 1)
    prover = Prover(A, secrets, 0)
    held = [part for row in prover._rows for part in row]
    assert repr(prover) == "<Prover>"
    with pytest.raises(TypeError):
        prover.__reduce_ex__(4)
    prover.wipe()
    assert not any(part.any() for part in held)
    refused(lambda: prover.respond(COIN), 9901)


def test_the_protocols_sizes() -> None:
    """Bits of a coefficient of s, e and m: as many as twice the bound of each has."""
    for width, count, (key, noise, half) in ((1, 1, (39, 44, 222)), (4, 1, (39, 44, 222)), (1, 6, (42, 46, 225))):
        size_bytes = ROWS * RING * (key + width * (noise + half)) // 8 + NONCE_BYTES
        assert response_bytes(width, count) == size_bytes


def test_at_the_degree_of_the_protocol() -> None:
    a = publics(SESSION, 1)
    secrets, made = groups(1, 2, a)
    prover = Prover(a, secrets, 3)
    response = prover.respond(COIN)
    verify(a, made, 3, prover.commitment, COIN, response)
    refused(lambda: verify(a, made[::-1], 3, prover.commitment, COIN, response), 5901)


def test_2911_no_groups_or_of_different_widths() -> None:
    one, two = groups(1, 1), groups(2, 1)
    refused(lambda: Prover(A, [], 0), 2911)
    refused(lambda: Prover(A, one[0] + two[0], 0), 2911)
    refused(lambda: verify(A, one[1] + two[1], 0, bytes(32), COIN, b""), 2911)
    refused(lambda: verify(A, [], 0, bytes(32), COIN, b""), 2911)


def test_masks_fill_the_box_that_hides_a_witness() -> None:
    """Of 192 draws some lie in the outer half on both sides."""
    secrets, _ = groups(1, 2)
    for part, most in zip(zip(*Prover(A, secrets, 0)._rows, strict=True), (2, 42, 2 * (P // 2)), strict=True):
        values = [value for polynomials in part for x in polynomials for value in signed(x)]
        outer = most << BOX_BITS - 1
        assert max(values) > outer > -outer > min(values)
        assert max(map(abs, values)) <= 2 * outer
