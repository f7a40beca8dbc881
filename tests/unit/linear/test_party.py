"""Shares with tags, openings, coin tosses and broadcasts between threads."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from tests.linear_dealer import Dealer
from tests.linear_mesh import together

from cloister.linear import _field as field
from cloister.linear._bits import random_bits
from cloister.linear._field import from_ints, to_ints
from cloister.linear._multiply import multiply_by
from cloister.linear._party import Party
from cloister.linear._shared import Held, Shared, concatenated, peer_row
from cloister.linear._supply import Triples
from cloister.linear._transcript import Transcript, labelled


@pytest.mark.parametrize("parties", [2, 3, 5])
@pytest.mark.parametrize("malicious", [True, False])
def test_linear_maps_of_shares_are_those_of_values(parties: int, malicious: bool) -> None:
    dealer = Dealer(parties)
    x, y = [5, -3, 7, 11], [2, 2, -9, 0]
    matrix = from_ints([[1, 2, 3, 4], [0, -1, 0, 5]])

    def act(party: Party) -> Any:
        a, b = dealer.shared(party, x), dealer.shared(party, y)
        opened = [
            party.open(a + b),
            party.open(a - b),
            party.open(-a),
            party.open(a.scaled(from_ints(-2))),
            party.open(a.scaled(from_ints([1, 2, 3, 4]))),
            party.open(a.mapped(matrix)),
            party.open(a.weighted(from_ints([1, 1, 2, 0]))),
            party.open(a.reshaped(2, 2).total()),
            party.open(party.plus(a, from_ints([10, 20, 30, 40]))),
            party.open(party.plus(a, from_ints(1))[1:3]),
            party.open(concatenated([a, b])),
        ]
        return [field.to_centred(value).tolist() for value in opened], party.transcript.digest()

    outcomes = together(parties, act, malicious=malicious)
    expected = [
        [7, -1, -2, 11],
        [3, -5, 16, 11],
        [-5, 3, -7, -11],
        [-10, 6, -14, -22],
        [5, -6, 21, 44],
        [64, 58],
        16,
        [2, 18],
        [15, 17, 37, 51],
        [-2, 8],
        [*x, *y],
    ]
    assert [outcome[0] for outcome in outcomes] == [expected] * parties
    assert len({outcome[1] for outcome in outcomes}) == 1


def test_products_and_bits() -> None:
    dealer = Dealer(3)
    rng = np.random.default_rng(5)
    a, b = (rng.integers(0, 2**62, 200).astype(object) for _ in range(2))

    def act(party: Party) -> Any:
        made = Triples(*(dealer.shared(party, value) for value in (a, b, a * b)))
        again = Triples(*(dealer.shared(party, value) for value in (b, a, a * b)))
        x = dealer.shared(party, np.arange(200))
        y = dealer.shared(party, np.arange(200) - 50)
        bits = random_bits(party, again, dealer.shared(party, shape=(200,)))
        return to_ints(party.open(bits)).tolist(), field.to_centred(party.open(multiply_by(party, made, x, y))).tolist()

    outcomes = together(3, act)
    bits, products = outcomes[0]
    assert outcomes == [outcomes[0]] * 3
    assert products == [i * (i - 50) for i in range(200)]
    assert set(bits) == {0, 1}
    assert 60 < sum(bits) < 140


def test_coins_are_equal_and_new() -> None:
    def act(party: Party) -> Any:
        return party.toss(), party.toss()

    outcomes = together(4, act)
    assert outcomes == [outcomes[0]] * 4
    assert len(outcomes[0][0]) == 32
    assert outcomes[0][0] != outcomes[0][1]


def test_held_values_are_those_of_their_owner() -> None:
    dealer = Dealer(3)

    def act(party: Party) -> Any:
        held = dealer.held(party, 4)
        assert [one.owner for one in held] == [0, 1, 2]
        own = held[party.number].value
        joined = party.joined(held)
        for owner in range(3):
            assert field.equal(joined.held(party.number, owner).rows, held[owner].rows)
        return own, party.open(joined)

    outcomes = together(3, act)
    summed = outcomes[0][0]
    for own, _ in outcomes[1:]:
        summed = field.add(summed, own)
    assert all(field.equal(opened, summed) for _, opened in outcomes)


def test_zero_is_told_from_what_is_not() -> None:
    dealer = Dealer(2)

    def act(party: Party) -> Any:
        nothing, something = dealer.shared(party, [0, 0, 0]), dealer.shared(party, [0, 1, -1])
        return party.is_zero([nothing, nothing]), party.is_zero([nothing, something])

    assert together(2, act) == [(True, False)] * 2


@pytest.mark.parametrize("secret", [Shared(np.ones((3, 2, 3), np.uint64)), Held(np.ones((2, 2, 3), np.uint64), 0)])
def test_secret_values_are_neither_shown_nor_compared_nor_pickled(secret: Any) -> None:
    assert repr(secret) == f"<{type(secret).__name__} (2,)>"
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        _ = secret == secret
    with pytest.raises(TypeError):
        hash(secret)


def test_places_of_peers() -> None:
    assert [peer_row(1, peer) for peer in (0, 2, 3)] == [0, 1, 2]


def test_hashes_tell_parts_and_labels_apart() -> None:
    digests = {
        labelled("a", b"xy"),
        labelled("a", b"x", b"y"),
        labelled("b", b"xy"),
        labelled("a", 1),
        labelled("a", 2),
    }
    assert len(digests) == 5
    first, second = Transcript(bytes(32)), Transcript(bytes(32))
    first.add("open", b"1")
    assert first.digest() != second.digest()
    second.add("open", b"1")
    assert first.digest() == second.digest() != Transcript(bytes(31) + b"1").digest()
