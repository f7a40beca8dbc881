"""Who may say which checkpoint is the last: older attempts, forks, strangers, ended stages, lying key managers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.attacks.test_release_outputs import Lying, lied_to
from tests.keyworld import World, code_of

from cloister.keys import (
    Checkpoint,
    CheckpointRecord,
    Obtained,
    ReleasedCheckpoint,
    combine_checkpoints,
    open_signed,
    sign_message,
)
from cloister.keys._binding import derive_checkpoint_key
from cloister.keys._state import checkpoint_id
from cloister.manifest import CheckpointTerms, Manifest
from cloister.wire import Envelope, Secret, SigningKey

ONE, TWO, THREE = ("1" * 64, "2" * 64, "3" * 64)
BOTH = ("keys-a", "keys-b")


def saving(manifest: Manifest) -> Manifest:
    """The manifest, with ``prepare`` saving checkpoints."""
    prepare = manifest.stages["prepare"].model_copy(update={"checkpoint": CheckpointTerms(max_bytes=1 << 20)})
    return manifest.model_copy(update={"stages": {**manifest.stages, "prepare": prepare}})


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World.make(tmp_path, change=saving)
    made.install()
    yield made
    made.close()


def save(world: World, by: Obtained, sequence: int, checkpoint: str, *names: str) -> None:
    envelope = by.session.checkpoint(sequence=sequence, checkpoint=checkpoint)
    for name in names or BOTH:
        receipt = world.clients[name].save_checkpoint(envelope)
        by.session.require_saved(receipt, sequence=sequence, checkpoint=checkpoint)


def refused(world: World, by: Obtained, sequence: int, checkpoint: str, name: str = "keys-a") -> int:
    return code_of(lambda: save(world, by, sequence, checkpoint, name))


def last_of(by: Obtained) -> tuple[int, int, str] | None:
    assert by.granted.checkpoints is not None
    last = by.granted.checkpoints.last
    return None if last is None else (last.attempt, last.sequence, last.checkpoint)


def key_of(by: Obtained) -> Secret:
    assert by.granted.checkpoints is not None
    return by.granted.checkpoints.key


def test_the_next_attempt_gets_the_key_and_the_last_checkpoint(world: World) -> None:
    run = world.run()
    first = world.attempt(run, "prepare").obtain()
    assert last_of(first) is None
    save(world, first, 1, ONE)
    save(world, first, 2, TWO)
    for name in BOTH:
        world.restart(name)  # what is not in the log did not happen
    second = world.attempt(run, "prepare").obtain()
    assert last_of(second) == (1, 2, TWO)
    assert key_of(second).matches(key_of(first))
    save(world, second, 3, THREE)
    assert last_of(world.attempt(run, "prepare").obtain()) == (2, 3, THREE)


def test_another_run_and_another_stage_have_another_key_and_no_record(world: World) -> None:
    first = world.attempt(world.run(), "prepare").obtain()
    save(world, first, 1, ONE)
    other = world.attempt(world.run(), "prepare").obtain()
    assert last_of(other) is None
    assert not key_of(other).matches(key_of(first))


def test_a_stage_without_terms_gets_nothing_and_saves_nothing(world: World) -> None:
    run = world.run()
    world.finish(run, "prepare")
    train = world.attempt(run, "train").obtain()
    assert train.granted.checkpoints is None
    assert refused(world, train, 1, ONE) == 3439


def test_an_answer_that_was_lost_is_given_again(world: World) -> None:
    first = world.attempt(world.run(), "prepare").obtain()
    envelope = first.session.checkpoint(sequence=1, checkpoint=ONE)
    world.clients["keys-a"].save_checkpoint(envelope)
    size = world.services["keys-a"].desk.core.size
    world.clients["keys-a"].save_checkpoint(envelope)
    assert world.services["keys-a"].desk.core.size == size


@pytest.mark.parametrize(("sequence", "checkpoint"), [(2, THREE), (2, ONE), (1, ONE)])
def test_a_number_is_not_used_twice_and_does_not_go_back(world: World, sequence: int, checkpoint: str) -> None:
    first = world.attempt(world.run(), "prepare").obtain()
    save(world, first, 1, ONE)
    save(world, first, 2, TWO)
    assert refused(world, first, sequence, checkpoint) == 3441


def test_an_older_attempt_saves_nothing_once_its_successor_has_keys(world: World) -> None:
    run = world.run()
    first = world.attempt(run, "prepare").obtain()
    save(world, first, 1, ONE)
    second = world.attempt(run, "prepare").obtain()
    assert refused(world, first, 2, TWO) == 3440
    save(world, second, 2, THREE)
    assert refused(world, first, 3, TWO) == 3440
    assert last_of(world.attempt(run, "prepare").obtain()) == (2, 2, THREE)


def test_an_attempt_that_got_no_keys_saves_nothing(world: World) -> None:
    attempt = world.attempt(world.run(), "prepare")
    attempt.claims()
    envelope = attempt.session.checkpoint(sequence=1, checkpoint=ONE)
    assert code_of(lambda: world.clients["keys-a"].save_checkpoint(envelope)) == 3431


def test_a_strangers_word_and_other_claims_count_for_nothing(world: World) -> None:
    first = world.attempt(world.run(), "prepare").obtain()
    said = open_signed(Checkpoint, first.session.checkpoint(sequence=1, checkpoint=ONE), first.session.sign.public)
    forged = sign_message(said, SigningKey.generate())
    crossed = sign_message(said.model_copy(update={"claims": "0" * 64}), first.session.sign)
    for envelope in (forged, crossed):
        assert code_of(lambda each=envelope: world.clients["keys-a"].save_checkpoint(each)) == 5401


def test_a_registration_does_not_pass_for_a_checkpoint(world: World) -> None:
    first = world.attempt(world.run(), "prepare").obtain()
    registration: Envelope = first.session.registration(outputs={"joined": ONE}, receipt_digest="0" * 64)
    assert code_of(lambda: world.clients["keys-a"].save_checkpoint(registration)) == 2005


def test_a_stage_that_ended_gives_no_key_takes_no_checkpoint_and_keeps_no_secret(world: World) -> None:
    run = world.run()
    late = world.attempt(run, "prepare")
    request = late.session.request("keys-a", late.evidence(late.claims()))
    obtained, _ = world.finish(run, "prepare")
    assert code_of(lambda: world.clients["keys-a"].release(request)) == 3415
    assert refused(world, obtained, 1, ONE) == 3415
    secret = checkpoint_id(world.manifest.id, obtained.claims.run or "", "prepare")
    for name in BOTH:
        assert not world.stores[name].boxes([secret])
        world.restart(name)  # and nothing misses it


def test_of_an_attempt_that_was_killed_between_two_key_managers_the_newer_record_counts(world: World) -> None:
    run = world.run()
    first = world.attempt(run, "prepare").obtain()
    save(world, first, 1, ONE)
    save(world, first, 2, TWO, "keys-b")
    second = world.attempt(run, "prepare").obtain()
    assert last_of(second) == (1, 2, TWO)
    save(world, second, 3, THREE)
    assert last_of(world.attempt(run, "prepare").obtain()) == (2, 3, THREE)


def parts(*records: tuple[int, int, str] | None) -> dict[str, ReleasedCheckpoint]:
    def part(record: tuple[int, int, str] | None) -> ReleasedCheckpoint:
        attempt, sequence, checkpoint = record or (0, 0, "")
        last = CheckpointRecord(attempt=attempt, sequence=sequence, checkpoint=checkpoint) if record else None
        return ReleasedCheckpoint(contribution=bytes(32), last=last)

    return {name: part(record) for name, record in zip(BOTH, records, strict=False)}


@pytest.mark.parametrize(
    "records",
    [
        ((1, 2, ONE), (1, 2, TWO)),  # one number, two checkpoints
        ((1, 2, ONE), (2, 2, ONE)),
        ((2, 2, ONE), (1, 3, TWO)),  # an attempt that lived on, at a key manager that let it
    ],
)
def test_a_fork_shows_where_the_key_managers_differ(world: World, records: Any) -> None:
    known = parts(*records)
    assert code_of(lambda: combine_checkpoints(world.manifest, run="r", stage="prepare", parts=known)) == 5408


def test_a_key_manager_without_a_part_is_not_passed_over(world: World) -> None:
    assert code_of(lambda: combine_checkpoints(world.manifest, run="r", stage="prepare", parts=parts(None))) == 5409


def test_the_key_is_bound_to_its_place_and_to_every_part() -> None:
    place = {"manifest": "a" * 64, "run": "r", "stage": "s"}
    one, two = Secret(b"1" * 32), Secret(b"2" * 32)
    keys = [
        derive_checkpoint_key(contributions, **(place | change)).reveal()
        for contributions, change in (
            ({"a": one, "b": two}, {}),
            ({"a": two, "b": one}, {}),
            ({"a": one, "c": two}, {}),
            ({"a": one}, {}),
            ({"a": one, "b": two}, {"manifest": "b" * 64}),
            ({"a": one, "b": two}, {"run": "q"}),
            ({"a": one, "b": two}, {"stage": "t"}),
        )
    ]
    assert len(set(keys)) == len(keys)
    for wrong in ({}, {"a": Secret(b"short")}):
        with pytest.raises(ValueError, match="32 bytes"):
            derive_checkpoint_key(wrong, **place)


def test_a_release_without_the_checkpoints_part_is_refused(world: World) -> None:
    assert lied_to(world, "keys-b", keys=lambda k: k.model_copy(update={"checkpoint": None})) == 5409


def test_nor_one_where_all_key_managers_leave_it_out(world: World) -> None:
    attempt = world.attempt(world.run(), "prepare")
    liars = {name: Lying(world, name, keys=lambda k: k.model_copy(update={"checkpoint": None})) for name in BOTH}
    for liar in liars.values():
        liar.session = attempt.session
    world.clients = {**world.clients, **liars}  # type: ignore[dict-item]
    assert code_of(attempt.obtain) == 5409


def test_a_receipt_for_another_checkpoint_is_none(world: World) -> None:
    first = world.attempt(world.run(), "prepare").obtain()
    client = world.clients["keys-a"]
    one = client.save_checkpoint(first.session.checkpoint(sequence=1, checkpoint=ONE))
    two = client.save_checkpoint(first.session.checkpoint(sequence=2, checkpoint=TWO))
    crossed = two.model_copy(update={"receipt": one.receipt})
    assert code_of(lambda: first.session.require_saved(one, sequence=2, checkpoint=TWO)) == 5407
    assert code_of(lambda: first.session.require_saved(crossed, sequence=2, checkpoint=TWO)) == 5411


def test_an_attempt_saves_so_often_and_no_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister.keys._checkpoints.MAX_CHECKPOINTS", 2)
    first = world.attempt(world.run(), "prepare").obtain()
    save(world, first, 1, ONE)
    save(world, first, 2, TWO)
    assert refused(world, first, 3, THREE) == 3425
