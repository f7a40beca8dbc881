"""A party that cheats while correlated randomness is made, or in what it opens: all others stop, with a named code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.exact_numbers import refused
from tests.linear_dealer import Dealer
from tests.linear_mesh import Cheat, Message, codes, run_parties
from tests.unit.linear.test_online import plan, statistics
from tests.unit.linear.test_preprocess import DEGREE, toy

from cloister.linear import _field as field
from cloister.linear import _preprocess as module
from cloister.linear import _shape
from cloister.linear._answers import answer_bytes
from cloister.linear._field import ELEMENT_BYTES, from_ints
from cloister.linear._online import Online
from cloister.linear._party import Party
from cloister.linear._preprocess import preprocess
from cloister.linear._program import fit
from cloister.linear._supply import Supply

CHEAT = 1
CASE = plan("lasso", rounds=6, half=6, tolerance=1)  # so wide that every fit converges


def flipped(at: int) -> Callable[[bytes], bytes]:
    """One bit of one byte."""
    return lambda body: body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


def first_of(kind: str, alter: Callable[[bytes], bytes | None], *, to: int | None = None, skip: int = 0) -> Cheat:
    """Alters one step of a kind, of what the cheat sends to all or to one."""
    steps: list[int] = []

    def cheat(message: Message) -> bytes | None:
        if message.sender != CHEAT or message.kind != kind or (to is not None and message.receiver != to):
            return message.body
        if message.step not in steps:
            steps.append(message.step)
        return alter(message.body) if steps.index(message.step) == skip else message.body

    return cheat


def outcomes(cheat: Cheat | None = None, *, parties: int = 3) -> list[Any]:
    """Of a whole session of which the inputs alone are dealt."""
    needs, budget = toy(CASE)
    dealer = Dealer(parties)

    def act(party: Party) -> Any:
        stock, _ = preprocess(party, needs, budget, pool=0, degree=DEGREE)
        shared = dealer.shared(party, statistics(CASE.features, 1, CASE.curvature))
        return fit(Online(party, needs, Supply(stock)), CASE, shared)

    return run_parties(parties, act, cheat=cheat)


def stopped(found: list[Any], code: int) -> None:
    """No honest party has a model; one of them found the cheat, and the others heard of it."""
    honest = [one for number, one in enumerate(codes(found)) if number != CHEAT]
    assert code in honest
    assert set(honest) <= {code, 6905, 6901, 6902}


def test_nobody_stops_where_nobody_cheats() -> None:
    found = outcomes()
    assert codes(found) == [None] * 3
    assert len(set(found)) == 1


HEAD = answer_bytes(DEGREE)


@pytest.mark.parametrize(
    ("cheat", "code"),
    [
        pytest.param(first_of("groups", flipped(40), to=0), 5909, id="other ciphertexts for one party"),
        pytest.param(first_of("proof", flipped(300), to=2), 5909, id="another proof for one party"),
        pytest.param(first_of("values", flipped(HEAD + 30), to=0, skip=1), 5903, id="tag of a value"),
        pytest.param(first_of("values", flipped(30), to=2, skip=1), 5903, id="another head for one party"),
        pytest.param(first_of("values", flipped(HEAD + 30), to=0), 5902, id="tag that shows the key's shape"),
        pytest.param(first_of("products", flipped(HEAD + 30), to=0), 5904, id="product"),
        pytest.param(first_of("products", flipped(2 * HEAD + 30), to=0), 5903, id="tag of a factor"),
        pytest.param(first_of("matrix", flipped(HEAD + 30), to=0), 5905, id="product with the matrix"),
        pytest.param(first_of("shape", flipped(3), to=0), 5902, id="weights of the key's shape"),
        pytest.param(first_of("shape tag", flipped(3), to=0), 5902, id="sum of tags"),
        pytest.param(first_of("shape opening", flipped(3), to=0), 5910, id="sum of keys"),
        pytest.param(first_of("consistency", flipped(3), to=0), 5909, id="another sum for one party"),
        pytest.param(first_of("consistency tags", flipped(3), to=0), 5903, id="tag of the sum"),
        pytest.param(first_of("coin commitment", flipped(3), to=0), 5909, id="another commitment for one party"),
        pytest.param(first_of("coin", flipped(3)), 5910, id="coin"),
        pytest.param(first_of("coin echo", flipped(3)), None, id="no such message"),
        pytest.param(first_of("open", flipped(3)), 5908, id="share"),
        pytest.param(first_of("open", flipped(-3)), 5908, id="share's tag"),
        pytest.param(first_of("open", flipped(3), to=2, skip=6), 5908, id="share for one party"),
        pytest.param(first_of("open", lambda body: b"\xff" * len(body)), 6903, id="no elements"),
        pytest.param(first_of("open", lambda body: body[:-1]), 6903, id="too short"),
        pytest.param(first_of("open", flipped(3), skip=60), 5908, id="share in the program"),
    ],
)
def test_a_cheat_is_found(cheat: Cheat, code: int | None) -> None:
    found = outcomes(cheat)
    if code is None:
        assert codes(found) == [None] * 3
    else:
        stopped(found, code)


@pytest.mark.parametrize(
    ("kind", "at", "skip", "code"),
    [
        ("groups", 4, 0, 5901),
        ("groups", 5000, 0, 5901),
        ("groups", 40, 1, 5901),
        ("proof", 300, 0, 5901),
        ("proof", -5, 0, 5901),
        ("proof", 300, 1, 5901),
        ("consistency", 3, 0, 5903),
    ],
)
def test_who_says_the_same_lie_to_all_is_found(
    kind: str, at: int, skip: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    broadcast, said = Party.broadcast, [0]

    def lying(party: Party, name: str, body: bytes, size_bytes: int) -> list[bytes]:
        if party.number == CHEAT and name == kind:
            said[0] += 1
            body = flipped(at)(body) if said[0] == skip + 1 else body
        return broadcast(party, name, body, size_bytes)

    monkeypatch.setattr(Party, "broadcast", lying)
    stopped(outcomes(), code)


def test_6901_a_party_that_falls_silent_is_not_waited_for_for_ever() -> None:
    silent: list[bool] = []

    def cheat(message: Message) -> bytes | None:
        if message.sender == CHEAT and (silent or message.kind == "consistency"):
            silent.append(True)
            return None
        return message.body

    stopped(outcomes(cheat), 6901)


def test_a_share_may_not_be_shifted_by_what_sums_to_nothing() -> None:
    """Two parties of one cheat shift their shares against each other: each honest party checks each of them."""

    def cheat(message: Message) -> bytes:
        if message.kind != "open" or message.sender == 2:
            return message.body
        share = field.from_bytes(message.body[:ELEMENT_BYTES], ())
        moved = field.add(share, from_ints(1 if message.sender else -1))
        return field.to_bytes(moved) + message.body[ELEMENT_BYTES:]

    found = codes(run_parties(3, _opens, cheat=cheat))
    assert found[2] == 5908


_DEALER: list[Dealer] = []


def _opens(party: Party) -> Any:
    if party.number == 0:
        _DEALER[:] = [Dealer(3)]
    party.toss()  # the dealer is there
    return party.open(_DEALER[0].shared(party, [1, 2, 3]))


def test_a_replayed_opening_is_refused() -> None:
    heard: dict[int, bytes] = {}

    def cheat(message: Message) -> bytes:
        if message.kind != "open" or message.sender != CHEAT:
            return message.body
        return heard.setdefault(message.receiver, message.body)

    dealer = Dealer(3)

    def act(party: Party) -> Any:
        return [party.open(dealer.shared(party, [value, 2, 3])) for value in (1, 5)]

    stopped(run_parties(3, act, cheat=cheat), 5908)


# ---- what a party does rather than says ------------------------------------------------------------------


def patched(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[..., Any]) -> None:
    """Lets the cheat's calls of a function of the preprocessing pass through ``change(original, party, *rest)``."""
    original = getattr(module, name)

    def call(party: Party, *rest: Any) -> Any:
        return change(original, party, *rest) if party.number == CHEAT else original(party, *rest)

    monkeypatch.setattr(module, name, call)


def test_5902_a_global_key_that_is_no_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def change(original: Any, party: Party, publics: Any, messages: list[Any], flood: int) -> Any:
        if not seen:  # the first groups are those of the key and of the factors
            seen.append(1)
            messages[0][0, 1] = from_ints(1)
        return original(party, publics, messages, flood)

    patched(monkeypatch, "exchange_groups", change)
    equal = _shape._require_equal
    monkeypatch.setattr(_shape, "_require_equal", lambda party, *rest: party.number == CHEAT or equal(party, *rest))
    stopped(outcomes(), 5902)


def test_5903_a_key_that_is_not_the_encrypted_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The party then finds that nobody's tags fit, and cannot make them."""

    def change(original: Any, party: Party, *rest: Any) -> Any:
        party.key = field.add(party.key, from_ints(1))
        return original(party, *rest)

    patched(monkeypatch, "require_consistent", change)
    found = codes(outcomes())
    assert None not in found


def test_5904_a_factor_that_is_not_the_encrypted_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(original: Any, party: Party, publics: Any, tagger: Any, factor: Any, encrypted: Any) -> Any:
        other = factor.copy()
        other[5] = field.add(other[5], from_ints(1))
        return original(party, publics, tagger, other, encrypted)

    patched(monkeypatch, "make_batch", change)
    stopped(outcomes(), 5904)


def test_5905_a_matrix_that_is_not_the_encrypted_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(original: Any, party: Party, publics: Any, packing: Any, square: Any, *rest: Any) -> Any:
        other = square.copy()
        other[1, 2] = field.add(other[1, 2], from_ints(1))
        return original(party, publics, packing, other, *rest)

    patched(monkeypatch, "multiply_vectors", change)
    stopped(outcomes(), 5905)


def test_3904_the_dealer_runs_in_tests_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    refused(lambda: Dealer(2), 3904)
    packaged = {path.name for path in Path(module.__file__).parent.iterdir()}
    assert not any("dealer" in name for name in packaged)
