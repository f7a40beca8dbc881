"""The protocol from installation to collection, over two key managers, without a socket."""

import pytest
from tests.keyworld import IDENTITIES, World

from cloister.errors import CloisterError
from cloister.keys import (
    LogEntries,
    RefusalEntry,
    RegistrationRequest,
    ReleaseEntry,
    StageSession,
    collect_output,
    open_signed,
    verify_entries,
)
from cloister.wire import digest


def test_whole_pipeline_hands_each_stage_its_keys_and_no_other(world: World) -> None:
    world.install()
    run = world.run()
    prepared, outputs = world.finish(run, "prepare")
    images = prepared.granted.images
    assert set(images) == {"data-a", "data-b", "scripts"}
    assert all(images[name].matches(world.keys[name]) for name in images)
    assert prepared.granted.assurance == "simulated"

    trained, made = world.finish(run, "train")
    image, key = trained.granted.inputs["joined"]
    assert set(trained.granted.images) == {"scripts"}
    assert image == outputs["joined"]
    assert key.matches(prepared.session.output_key("joined"))

    service = world.attempt(run, "answers").obtain()
    image, key = service.granted.inputs["model"]
    assert (image, service.granted.clients) == (made["model"], ("doctor",))
    assert key.matches(trained.session.output_key("model"))
    assert not key.matches(trained.session.output_key("metrics"))

    grant = world.attempt(run, "answers").opened
    found = collect_output(
        world.manifest, "metrics", run=grant.run, identity=IDENTITIES["hospital-a"], clients=world.clients
    )
    assert (found.image, found.assurance) == (made["metrics"], "simulated")
    assert found.key.matches(trained.session.output_key("metrics"))


def test_second_attempt_has_other_output_keys(world: World) -> None:
    world.install()
    run = world.run()
    first, second = world.attempt(run, "prepare").obtain(), world.attempt(run, "prepare").obtain()
    assert first.claims.attempt == 1
    assert second.claims.attempt == 2
    assert not first.session.output_key("joined").matches(second.session.output_key("joined"))


def test_registration_delivered_twice_is_answered_alike(world: World) -> None:
    world.install()
    run = world.run()
    obtained = world.attempt(run, "prepare").obtain()
    registration = obtained.session.registration(outputs={"joined": "1" * 64}, receipt_digest="0" * 64)
    world.register(registration, obtained)
    size = world.services["keys-a"].desk.core.size
    world.register(registration, obtained)
    assert world.services["keys-a"].desk.core.size == size


def test_installing_again_is_answered_alike_and_costs_no_entry(world: World) -> None:
    world.install()
    sizes = [service.desk.core.size for service in world.services.values()]
    world.install()
    assert [service.desk.core.size for service in world.services.values()] == sizes


def test_run_survives_a_restart_of_every_key_manager(world: World) -> None:
    world.install()
    run = world.run()
    attempt = world.attempt(run, "prepare")
    obtained = attempt.obtain()
    for name in list(world.services):
        world.restart(name)
    registration = obtained.session.registration(outputs={"joined": "1" * 64}, receipt_digest="0" * 64)
    world.register(registration, obtained)
    trained = world.attempt(run, "train").obtain()
    assert trained.granted.inputs["joined"][1].matches(obtained.session.output_key("joined"))


def test_restart_ends_open_sessions(world: World) -> None:
    world.install()
    attempt = world.attempt(world.run(), "prepare")
    claims = attempt.claims()
    world.restart("keys-a")
    with pytest.raises(CloisterError) as raised:
        world.clients["keys-a"].release(attempt.session.request("keys-a", attempt.evidence(claims)))
    assert raised.value.code == 3421


def test_log_shows_every_decision_of_a_run_with_its_trace(world: World) -> None:
    world.install("data-a", "scripts")
    run = world.run()
    attempt = world.attempt(run, "prepare")
    with pytest.raises(CloisterError) as raised:
        attempt.obtain()
    assert raised.value.code == 3409
    client = world.clients["keys-b"]
    answer = open_signed(LogEntries, client.entries(world.manifest.id, run=attempt.opened.run), client.key)
    entries = verify_entries(answer, manifest=world.manifest.id, run=attempt.opened.run, key=client.key)
    refusal = entries[-1]
    assert isinstance(refusal, RefusalEntry)
    assert (refusal.action, refusal.code, refusal.subject) == ("release", 3409, "prepare")
    assert refusal.trace[-1].outcome == "failed"
    assert [step.outcome for step in refusal.trace[:-1]] == ["passed"] * (len(refusal.trace) - 1)
    released = open_signed(LogEntries, world.clients["keys-a"].entries(world.manifest.id), world.clients["keys-a"].key)
    assert any(isinstance(item.entry, ReleaseEntry) for item in released.entries)


def test_other_key_managers_want_the_registrars_receipt(world: World) -> None:
    world.install()
    obtained = world.attempt(world.run(), "prepare").obtain()
    registration = obtained.session.registration(outputs={"joined": "1" * 64}, receipt_digest="0" * 64)
    with pytest.raises(CloisterError) as raised:
        world.clients["keys-b"].register(RegistrationRequest(registration=registration))
    assert raised.value.code == 3430


def test_a_session_is_for_one_consumer(world: World) -> None:
    world.install()
    attempt = world.attempt(world.run(), "prepare")
    other = StageSession(world.manifest, "train")
    challenges = {name: world.clients[name].challenge(attempt.grant) for name in other.contributors}
    with pytest.raises(CloisterError) as raised:
        other.claims(attempt.grant, challenges)
    assert raised.value.code == 3424


def test_statement_digests_in_the_log_are_those_of_what_was_signed(world: World) -> None:
    world.install()
    obtained = world.attempt(world.run(), "prepare").obtain()
    registration = obtained.session.registration(outputs={"joined": "1" * 64}, receipt_digest="0" * 64)
    world.register(registration, obtained)
    done = world.services["keys-b"].desk.core._state.registered
    assert [entry.registration for _, entry in done.values()] == [digest(registration.payload)]
