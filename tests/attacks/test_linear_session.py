"""Every message of every phase of a session, altered in every way: nobody honest comes out with a model.

The kinds of messages are those that an honest session was heard to send, so a new one is attacked as soon as there is
one.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
from tests.linear_mesh import Cheat, Message, codes, run_parties
from tests.linear_people import NAMES, PEOPLE
from tests.unit.linear.test_session import DEGREE, agreement, parts_of

from cloister.linear import _field as field
from cloister.linear import _preprocess as module
from cloister.linear import _projection
from cloister.linear._agreed_rows import summary_of
from cloister.linear._field import from_ints
from cloister.linear._model import Released
from cloister.linear._party import Party
from cloister.linear._session import run_session

CHEAT = 1
HELD = agreement({"type": "lasso", "alpha": "0.1", "rounds": 2, "half": 4}, tolerance="1")  # every fit converges
PARTS = parts_of(HELD)
SUMMARIES = [summary_of(HELD, place, part) for place, part in enumerate(PARTS)]


def session(party: Party) -> Released:
    place = party.number
    identity = PEOPLE[NAMES[place]]
    return run_session(party.channel, HELD, SUMMARIES[place], identity=identity, part=PARTS[place], degree=DEGREE)


@lru_cache(maxsize=1)
def honest() -> tuple[tuple[str, int], ...]:
    """(kind, how often) of the messages that the cheat would have sent to party 0."""
    meshes: list[Any] = []
    outcomes = run_parties(3, session, mesh_out=meshes)
    assert codes(outcomes) == [None] * 3
    found: dict[str, int] = {}
    for message in meshes[0].heard:
        if message.sender == CHEAT and message.receiver == 0:
            found[message.kind] = found.get(message.kind, 0) + 1
    return tuple(found.items())


KINDS = (
    *("hello", "hello signature", "groups", "groups echo", "coin commitment", "coin commitment echo", "coin"),
    *("proof", "proof echo", "values", "products", "matrix", "shape", "shape commitment", "shape tag"),
    *("shape opening", "consistency", "consistency echo", "consistency tags", "open", "projections of masks"),
    *("projections of masks echo", "relations of masks", "inputs", "inputs echo", "bounds of inputs"),
    *("bounds of inputs echo", "projections of inputs", "projections of inputs echo", "relations of inputs"),
    "signature",
)


def test_these_are_all_kinds_of_messages() -> None:
    assert {kind for kind, _ in honest()} == set(KINDS)


def flipped(body: bytes, before: bytes | None, receiver: int = 0) -> bytes:
    """Another bit for another receiver: equal changes of two answers can cancel, which changes nothing."""
    place = len(body) // 3
    return body[:place] + bytes([body[place] ^ (1 << receiver)]) + body[place + 1 :]


def replayed(body: bytes, before: bytes | None) -> bytes:
    """An earlier message of the same size, or another's first half and one's own second."""
    return before if before is not None and before != body else body[: len(body) // 2][::-1] + body[len(body) // 2 :]


def shortened(body: bytes, before: bytes | None) -> bytes:
    return body[:-1]


def nothing(body: bytes, before: bytes | None) -> bytes:
    return bytes(len(body))


def noise(body: bytes, before: bytes | None) -> bytes:
    return secrets.token_bytes(len(body))


Change = Callable[[bytes, "bytes | None"], bytes]


def altering(kind: str, change: Change, *, last: bool, receivers: tuple[int, ...]) -> Cheat:
    """The first or the last message of a kind."""
    count, seen, before = dict(honest())[kind], dict[int, int](), dict[int, bytes]()

    def cheat(message: Message) -> bytes:
        if message.sender != CHEAT or message.kind != kind or message.receiver not in receivers:
            return message.body
        seen[message.receiver] = seen.get(message.receiver, 0) + 1
        if seen[message.receiver] == (count if last else 1):
            if change is flipped:
                return flipped(message.body, None, message.receiver)
            return change(message.body, before.get(message.receiver))
        before[message.receiver] = message.body
        return message.body

    return cheat


def without_a_model(cheat: Cheat, *, honest: tuple[int, ...] = (0, 2)) -> list[int | None]:
    found = codes(run_parties(3, session, cheat=cheat))
    assert None not in [found[place] for place in honest]
    assert -1 not in found
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("receivers", [(0,), (0, 2)], ids=["one", "all"])
def test_a_flipped_bit(kind: str, receivers: tuple[int, ...]) -> None:
    # who has every signature has a model, whatever became of another's
    without_a_model(
        altering(kind, flipped, last=False, receivers=receivers),
        honest=receivers if kind == "signature" else (0, 2),
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [flipped, replayed, shortened, nothing, noise])
@pytest.mark.parametrize("receivers", [(0,), (0, 2)], ids=["one", "all"])
def test_every_alteration_of_the_last_message(kind: str, change: Change, receivers: tuple[int, ...]) -> None:
    without_a_model(
        altering(kind, change, last=True, receivers=receivers), honest=receivers if kind == "signature" else (0, 2)
    )


@pytest.mark.parametrize("step", range(3))
def test_6901_who_leaves_late_leaves_the_others_without_a_model(step: int) -> None:
    """After the certificate's bit, after the model, before the signature: the cheat may know it, honest ones do not."""
    opened = dict(honest())["open"]

    def cheat(message: Message) -> bytes | None:
        if message.sender != CHEAT:
            return message.body
        if message.kind == "open" and message.receiver == 0:
            seen.append(1)
        late = len(seen) >= opened - 1 + step if step < 2 else message.kind == "signature"
        return None if late else message.body

    seen: list[int] = []
    found = without_a_model(cheat)
    assert {found[0], found[2]} <= {6901, 6905}


def test_what_the_cheat_could_learn_late_is_the_bit_and_the_model_alone() -> None:
    """The last two openings are those two, and each comes after everything before it was verified."""
    meshes: list[Any] = []
    run_parties(3, session, mesh_out=meshes)
    sizes = [len(m.body) for m in meshes[0].heard if (m.sender, m.receiver, m.kind) == (CHEAT, 0, "open")]
    element = field.ELEMENT_BYTES
    assert sizes[-2:] == [2 * element, (HELD.plan().columns + 1) * element]


# ---- masks out of range: what a party puts in rather than says --------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step low", 1 << 72),
        ("step high", 1 << 150),
        ("relaxation high", -(1 << 150)),
        ("coarse high", 1 << 120),
        ("residual low", (1 << 183) - 1),
        ("coarse bits", 2),
        ("relaxation bits", -1),
        ("wide bits", 1 << 100),
    ],
)
def test_5906_a_mask_out_of_range(name: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    own = module._Maker._own

    def wide(maker: Any, pool: int) -> Any:
        made = own(maker, pool)
        if maker.party.number == CHEAT:
            made.values[name].reshape(-1, 3)[0] = from_ints(value)
        return made

    def shameless(beyond: Any) -> None:
        """Goes on where honest code stops: what follows is what changed code would send."""

    monkeypatch.setattr(module._Maker, "_own", wide)
    monkeypatch.setattr(_projection, "_require_range", shameless)
    found = codes(run_parties(3, session))
    assert None not in (found[0], found[2])
    assert 5906 in (found[0], found[2])
