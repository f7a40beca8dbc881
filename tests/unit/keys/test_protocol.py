"""The protocol from installation to collection, over two key managers, without a socket."""

from pathlib import Path

import pytest
from tests.keyworld import IDENTITIES, World, code_of

from cloister.errors import CloisterError
from cloister.keys import (
    RefusalEntry,
    RegistrationRequest,
    ReleaseEntry,
    StageSession,
    collect_output,
)
from cloister.keys._binding import derive_output_key
from cloister.manifest import Manifest
from cloister.wire import Secret, digest


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
    refusal = world.shown("keys-b", run=attempt.opened.run)[-1]
    assert isinstance(refusal, RefusalEntry)
    assert (refusal.action, refusal.code, refusal.subject) == ("release", 3409, "prepare")
    assert refusal.trace[-1].outcome == "failed"
    assert [step.outcome for step in refusal.trace[:-1]] == ["passed"] * (len(refusal.trace) - 1)
    assert any(isinstance(entry, ReleaseEntry) for entry in world.shown("keys-a"))


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


def test_stage_that_the_manifest_does_not_have(world: World) -> None:
    world.install()
    run = world.run()
    assert code_of(lambda: world.registrar.start_attempt(run, "steal")) == 3428


def test_proof_from_a_size_that_the_log_never_had(world: World) -> None:
    import httpx

    with httpx.Client(transport=world.transports[0]) as http:
        answer = http.get("http://keys.test/v1/log/proof?from=99")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, 3436)


def test_key_manager_without_a_part_in_a_stage_refuses_it(tmp_path: Path) -> None:
    def change(manifest: Manifest) -> Manifest:
        image = manifest.images["data-a"].model_copy(update={"key_manager": "keys-b"})
        return manifest.model_copy(update={"images": {**manifest.images, "data-a": image}})

    world = World.make(tmp_path, names=("keys-a", "keys-b", "keys-c"), change=change)
    world.install()
    stages = {**world.manifest.stages}
    assert world.attempt(world.run(), "prepare").session.contributors == ("keys-a", "keys-b", "keys-c")
    stages["prepare"] = stages["prepare"].model_copy(update={"inputs": ("data-b",)})
    stages["train"] = stages["train"].model_copy(update={"inputs": ("joined", "data-a")})
    world.agree(world.manifest.model_copy(update={"stages": stages}))
    world.install()
    attempt = world.attempt(world.run(), "prepare")
    assert attempt.session.contributors == ("keys-a", "keys-c")
    assert code_of(lambda: world.clients["keys-b"].challenge(attempt.grant)) == 3405
    obtained, _ = world.finish(world.run(), "prepare")
    world.close()
    assert obtained.granted.images


def test_output_key_needs_every_part(world: World) -> None:
    parts = {"keys-a": Secret(b"a" * 32), "keys-b": Secret(b"b" * 32)}
    place = {"share": Secret(b"s" * 32), "grant": "0" * 64, "manifest": "1" * 64, "run": "r", "stage": "s"}
    key = derive_output_key(parts, **place, attempt=1, output="o")
    changed = [
        derive_output_key({**parts, "keys-a": Secret(b"x" * 32)}, **place, attempt=1, output="o"),
        derive_output_key({"keys-a": parts["keys-b"], "keys-b": parts["keys-a"]}, **place, attempt=1, output="o"),
        derive_output_key({"keys-a": parts["keys-a"], "keys-c": parts["keys-b"]}, **place, attempt=1, output="o"),
        derive_output_key(parts, **{**place, "share": Secret(b"x" * 32)}, attempt=1, output="o"),
        derive_output_key(parts, **{**place, "grant": "2" * 64}, attempt=1, output="o"),
        derive_output_key(parts, **place, attempt=2, output="o"),
        derive_output_key(parts, **place, attempt=1, output="p"),
    ]
    assert len(key) == 64
    assert len({key.reveal(), *(each.reveal() for each in changed)}) == 8
    with pytest.raises(ValueError, match="32 bytes"):
        derive_output_key({"keys-a": Secret(b"short")}, **place, attempt=1, output="o")
