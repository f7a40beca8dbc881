"""Coins, openings, bits and checks against who waits for what others say, and whose errors would cancel each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.attacks.test_linear_preprocess import CHEAT, first_of, flipped, outcomes, stopped
from tests.linear_dealer import Dealer
from tests.linear_mesh import MeshChannel, Message, codes, run_parties
from tests.unit.linear.test_online import plan

from cloister.linear import _field as field
from cloister.linear import _keyring, _preprocess, _shape, _triples
from cloister.linear._bits import random_bits
from cloister.linear._budget import require_sound
from cloister.linear._demand import demand
from cloister.linear._field import ELEMENT_BYTES, from_ints
from cloister.linear._online import Online
from cloister.linear._party import COIN_BYTES, Party
from cloister.linear._plan import SHIFT_BITS
from cloister.linear._supply import Mask, Supply, Triples
from cloister.linear._transcript import DIGEST_BYTES, labelled

# ---- coins -----------------------------------------------------------------------------------------------


def after_the_other(party: Party, kind: str, size_bytes: int, answer: Any) -> bytes:
    """A step in which party 1 of two waits for the other's message, and makes its own of it."""
    channel = party.channel
    assert isinstance(channel, MeshChannel)
    heard = channel._received(0, kind, channel._step, size_bytes)
    channel._mesh.boxes[1, 0].put((kind, channel._step, answer(heard)))
    channel._step += 1
    return heard


def test_5910_who_repeats_the_others_coin_is_refused() -> None:
    """The sum of two equal coins would be what the cheat likes: zero."""

    def act(party: Party) -> Any:
        if party.number == 0:
            return party.toss()
        size = 2 * COIN_BYTES
        said = after_the_other(party, "coin commitment", DIGEST_BYTES, lambda heard: heard)
        digest = labelled("echo", party.session, b"coin commitment", said, said)
        after_the_other(party, "coin commitment echo", DIGEST_BYTES, lambda _: digest)
        return after_the_other(party, "coin", size, lambda heard: heard)

    assert codes(run_parties(2, act))[0] == 5910


def test_5910_a_coin_that_is_chosen_when_the_others_are_known() -> None:
    def act(party: Party) -> Any:
        if party.number == 0:
            return party.toss()
        first = bytes(2 * COIN_BYTES)
        own = labelled("coin", party.session, 0, 1, first)
        said = after_the_other(party, "coin commitment", DIGEST_BYTES, lambda _: own)
        digest = labelled("echo", party.session, b"coin commitment", said, own)
        after_the_other(party, "coin commitment echo", DIGEST_BYTES, lambda _: digest)
        return after_the_other(party, "coin", len(first), lambda heard: heard)  # so that the sum is zero

    assert codes(run_parties(2, act))[0] == 5910


# ---- openings --------------------------------------------------------------------------------------------


def test_5908_shares_may_not_be_shifted_by_what_known_weights_cancel() -> None:
    """Weights are a hash of the shares that are sent: who shifts them does not know them before."""
    dealer = Dealer(2)
    parties: dict[int, Party] = {}

    def cheat(message: Message) -> bytes:
        if message.kind != "open" or message.sender != CHEAT:
            return message.body
        shares = message.body[: 2 * ELEMENT_BYTES]
        weights = parties[CHEAT]._weights(0, CHEAT, shares, 2)
        shift = np.stack([weights[1], field.negate(weights[0])])
        moved = field.add(field.from_bytes(shares, (2,)), shift)
        return field.to_bytes(moved) + message.body[2 * ELEMENT_BYTES :]

    def act(party: Party) -> Any:
        parties[party.number] = party
        return party.open(dealer.shared(party, [1, 2]))

    assert codes(run_parties(2, act, cheat=cheat))[0] == 5908


def test_5908_a_share_of_the_value_before_is_not_one_of_the_next() -> None:
    """Also where both values and all shares of honest parties are the same."""
    dealer = Dealer(2)
    first: list[bytes] = []

    def cheat(message: Message) -> bytes:
        if message.kind == "open" and message.sender == CHEAT:
            first.append(message.body)
            return first[0]
        return message.body

    def act(party: Party) -> Any:
        return [party.open(dealer.shared(party, [7])) for _ in range(2)]

    assert codes(run_parties(2, act, cheat=cheat))[0] == 5908


@pytest.mark.parametrize("bits", [SHIFT_BITS, 4])
def test_5911_a_truncation_that_left_its_range(bits: int) -> None:
    case = plan("lasso", features=1, parties=2, rounds=2, half=2)
    needs = demand(case, level=require_sound(case).level)
    dealer = Dealer(2, needs)

    def act(party: Party) -> Any:
        stock = dealer.stock(party)
        wide = dealer.shared(party, [[1 << needs.top(0) + 2] * needs.columns] * 2)
        stock = replace(stock, residuals=Mask(stock.residuals.low, wide), relaxations=Mask(stock.relaxations.low, wide))
        return Online(party, needs, Supply(stock)).truncate(dealer.shared(party, [5] * needs.columns), bits)

    found = codes(run_parties(2, act))
    assert 5911 in found
    assert set(found) <= {5911, 6905}


# ---- checks of correlated randomness ---------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "uniform"), [(1, None), (0, [0] * 50)], ids=["squares", "zero"])
def test_5904_bits_of_what_is_no_square(wrong: int, uniform: list[int] | None) -> None:
    dealer = Dealer(2)
    rng = np.random.default_rng(5)
    a, b = (rng.integers(0, 2**62, 50).astype(object) for _ in range(2))

    def act(party: Party) -> Any:
        triples = Triples(*(dealer.shared(party, value) for value in (a, b, a * b + wrong)))
        return random_bits(party, triples, dealer.shared(party, uniform, shape=(50,)))

    found = codes(run_parties(2, act))
    assert 5904 in found
    assert set(found) <= {5904, 6905}


def spoiled_products(monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    """The cheat's first slot is wrong in the first products of a batch: in c, or in both c and ĉ."""
    original, calls = _triples._products, [0]

    def wrong(party: Party, *rest: Any) -> Any:
        shared, product = original(party, *rest)
        if party.number == CHEAT:
            calls[0] += 1
            product[0] = field.add(product[0], from_ints(1 if calls[0] % 2 or many == 2 else 0))
        return shared, product

    monkeypatch.setattr(_triples, "_products", wrong)


def test_5904_equal_errors_in_both_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """They cancel where the weight of the sacrifice is known to be 1."""
    spoiled_products(monkeypatch, 2)
    stopped(outcomes(), 5904)


def test_5904_an_error_in_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a triple that makes no random bit: nothing else would find it before it is used."""
    spoiled_products(monkeypatch, 1)
    stopped(outcomes(), 5904)


def test_5905_errors_that_cancel_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """One product is too large by what the next is too small: their sum with weights of 1 is right."""
    original = _preprocess.multiply_vectors

    def wrong(party: Party, *rest: Any) -> Any:
        out = original(party, *rest)
        if party.number == CHEAT:
            out[0], out[1] = field.add(out[0], from_ints(1)), field.subtract(out[1], from_ints(1))
        return out

    monkeypatch.setattr(_preprocess, "multiply_vectors", wrong)
    stopped(outcomes(), 5905)


def test_5903_values_of_which_the_sum_alone_is_the_same_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """For one party a value is greater, and the next one less: a combination by a coin tells."""
    original = _preprocess.require_consistent

    def wrong(party: Party, values: Any, mask: Any) -> None:
        if party.number == 0:  # as if the cheat had answered party 0 with other values: its keys for them are others
            row, shift = party.count, field.multiply(party.key, from_ints(1))
            rows = values[0].rows.reshape(2 * party.count - 1, -1, 3)
            rows[row, 0], rows[row, 1] = field.subtract(rows[row, 0], shift), field.add(rows[row, 1], shift)
        original(party, values, mask)

    monkeypatch.setattr(_preprocess, "require_consistent", wrong)
    stopped(outcomes(), 5903)


# ---- order -----------------------------------------------------------------------------------------------

CHALLENGED = {
    1: {"groups"},
    2: {"groups", "proof"},
    3: {"values", "products", "matrix", "shape opening"},
    4: {"consistency", "consistency tags"},
}
"""By toss: what must have been received before."""


def test_every_challenge_is_tossed_when_what_it_challenges_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at every honest party: a coin needs the own one of each, which it shows in its step alone."""
    tossed: list[list[str]] = []
    swap, toss = Party.swap, Party.toss
    steps: list[str] = []

    def swapped(party: Party, kind: str, *rest: Any) -> Any:
        heard = swap(party, kind, *rest)
        if party.number == 0:
            steps.append(kind)
        return heard

    def noted(party: Party) -> bytes:
        if party.number == 0:
            tossed.append(list(steps))
            steps.clear()
        return toss(party)

    monkeypatch.setattr(Party, "swap", swapped)
    monkeypatch.setattr(Party, "toss", noted)
    assert codes(outcomes()) == [None] * 3
    for number, kinds in CHALLENGED.items():
        assert kinds <= set(tossed[number - 1]), number
    before = [kind for kinds in tossed for kind in kinds]
    assert "open" not in before[: before.index("consistency")]  # nothing is opened, and no tag shown, before


def test_5910_who_opens_the_sum_that_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is no constant, and an owner that says what it heard: it had committed to something else."""
    exchange, told = _preprocess.exchange_groups, {}
    original = _shape._each
    seen: list[int] = []

    def change(party: Party, publics: Any, messages: list[Any], flood: int) -> Any:
        if party.number == CHEAT and not seen:
            seen.append(1)
            messages[0][0, 1] = from_ints(1)
        return exchange(party, publics, messages, flood)

    def each(party: Party, kind: str, size_bytes: int, body: Any) -> Any:
        if party.number == CHEAT and kind == "shape opening":
            made = body
            body = lambda peer: told[peer] + made(peer)[ELEMENT_BYTES:]  # noqa: E731
        heard = original(party, kind, size_bytes, body)
        if party.number == CHEAT and kind == "shape tag":
            told.update(enumerate(heard))
        return heard

    equal = _shape._require_equal
    monkeypatch.setattr(_preprocess, "exchange_groups", change)
    monkeypatch.setattr(_shape, "_each", each)
    monkeypatch.setattr(_shape, "_require_equal", lambda party, *rest: party.number == CHEAT or equal(party, *rest))
    stopped(outcomes(), 5910)


def test_what_is_wiped_is_gone() -> None:
    def act(party: Party) -> Any:
        party.wipe()
        return party.key.any()

    assert run_parties(2, act) == [False, False]


@pytest.mark.parametrize("kind", ["groups", "proof", "values", "consistency tags", "open"])
def test_no_key_of_a_ciphertext_outlives_the_checks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they pass or somebody cheats."""
    made: list[Any] = []
    encrypt, own = _keyring.encrypt, _preprocess._Maker._own

    def kept(*rest: Any) -> Any:
        secrets, group = encrypt(*rest)
        made.append(secrets)
        return secrets, group

    def values(maker: Any, pool: int) -> Any:
        made.append(own(maker, pool))
        return made[-1]

    monkeypatch.setattr(_keyring, "encrypt", kept)
    monkeypatch.setattr(_preprocess._Maker, "_own", values)
    found = codes(outcomes(first_of(kind, flipped(40))))
    assert found[0] is not None
    assert len(made) >= 6
    for one in made:
        arrays = one.values.values() if hasattr(one, "values") else (one.key, one.noises, one.halves, one.doubled)
        assert not any(array.any() for array in arrays)
