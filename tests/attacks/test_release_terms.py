"""A host asks for more than was agreed: too much, too often, too late, after a stop, with the clock turned."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.keyworld import IDENTITIES, World, code_of, last_refusal

from cloister.errors import CloisterError
from cloister.keys import (
    KeyInstall,
    KeyRule,
    collect_output,
    install_key,
    revoke_image,
    sign_message,
    suspend_manifest,
    verify_service,
)
from cloister.manifest import Manifest, SignedManifest, sign
from cloister.wire import Secret


def obtain(world: World, stage: str = "prepare") -> int:
    return code_of(world.attempt(world.run(), stage).obtain)


# ---- the agreement -------------------------------------------------------------------------------------------------


def test_manifest_signed_by_a_subset(key_world: World) -> None:
    manifest = key_world.manifest.model_copy(update={"name": "another"})
    signed = sign(SignedManifest(manifest=manifest), IDENTITIES["hospital-a"])
    assert code_of(lambda: key_world.clients["keys-a"].install_manifest(signed)) == 3301
    assert last_refusal(key_world, "keys-a").manifest == manifest.id


def test_manifest_edited_after_signing(key_world: World) -> None:
    assert key_world.signed is not None
    stages = {**key_world.manifest.stages}
    stages["train"] = stages["train"].model_copy(update={"argv": ("python", "steal.py")})
    edited = key_world.manifest.model_copy(update={"stages": stages})
    signed = SignedManifest(manifest=edited, signatures=key_world.signed.signatures)
    assert code_of(lambda: key_world.clients["keys-a"].install_manifest(signed)) == 5301


def test_manifest_that_was_never_installed(key_world: World) -> None:
    assert code_of(lambda: key_world.registrar.start_run("0" * 64)) == 3401


def test_manifest_of_other_key_managers(key_world: World, tmp_path: Path) -> None:
    other = World.make(tmp_path / "other")
    assert code_of(lambda: key_world.clients["keys-a"].install_manifest(other.signed)) == 3405
    other.close()


def test_manifest_out_of_force(key_world: World) -> None:
    run = key_world.run()
    key_world.clock.turn(days=365)
    assert code_of(lambda: key_world.run()) == 3403
    assert code_of(lambda: key_world.registrar.start_attempt(run, "prepare")) == 3403


def test_suspended_by_any_party_and_for_good(key_world: World) -> None:
    attempt = key_world.attempt(key_world.run(), "prepare")
    claims = attempt.claims()
    request = attempt.session.request("keys-a", attempt.evidence(claims))
    client = key_world.clients["keys-a"]
    stop = {"manifest": key_world.manifest, "identity": IDENTITIES["doctor"], "reason": "breach"}
    said = suspend_manifest(client, at=key_world.clock(), **stop)
    assert said.receipt.entry.kind == "suspension"
    assert code_of(lambda: client.release(request)) == 3404
    assert code_of(lambda: client.install_manifest(key_world.signed)) == 3404
    key_world.restart("keys-a")
    assert code_of(lambda: key_world.run()) == 3404


def test_suspension_signed_by_somebody_else(key_world: World) -> None:
    client, outsider = key_world.clients["keys-a"], IDENTITIES["lab"]
    forged = type(outsider)("hospital-a", outsider.signing_key, outsider.opening_key)
    stop = {"manifest": key_world.manifest, "identity": forged, "reason": "", "at": key_world.clock()}
    assert code_of(lambda: suspend_manifest(client, **stop)) == 3406
    assert key_world.attempt(key_world.run(), "prepare").obtain().granted.images


# ---- owners' keys --------------------------------------------------------------------------------------------------


def revoke(world: World, image: str, who: str) -> object:
    client = world.clients[world.manifest.images[image].key_manager]
    at = world.clock()
    return revoke_image(client, manifest=world.manifest, image=image, identity=IDENTITIES[who], at=at)


def test_revoked_key(key_world: World) -> None:
    revoke(key_world, "data-a", "hospital-a")
    assert obtain(key_world) == 3410
    assert code_of(lambda: key_world.install_one("data-a")) == 3410
    assert not [name for name in key_world.stores["keys-a"].boxes() if name.endswith("/data-a")]


def test_revocation_stops_what_was_made_of_the_image_too(key_world: World) -> None:
    run = key_world.run()
    key_world.finish(run, "prepare")
    revoke(key_world, "data-b", "hospital-b")
    assert code_of(key_world.attempt(run, "train").obtain) == 3410


def test_revocation_by_another_party(key_world: World) -> None:
    assert code_of(lambda: revoke(key_world, "data-a", "hospital-b")) == 3406


def test_revocation_survives_a_restart(key_world: World) -> None:
    revoke(key_world, "data-a", "hospital-a")
    key_world.restart("keys-a")
    assert obtain(key_world) == 3410


def test_key_installed_by_another_party(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    world.install("scripts")
    client = world.clients["keys-a"]
    service = verify_service(client, world.manifest, "keys-a", at=world.clock(), allow_simulated=True)
    given = {"manifest": world.manifest, "key": Secret.random(64), "rule": KeyRule(uses=1, simulated=True)}
    forged = type(IDENTITIES["lab"])("hospital-a", IDENTITIES["lab"].signing_key, IDENTITIES["lab"].opening_key)
    assert code_of(lambda: install_key(client, service, image="data-a", identity=forged, **given)) == 3438
    sealed = service.hpke.seal(bytes(64), info=b"whatever the owner's tool would not do")
    install = KeyInstall(manifest=world.manifest.id, image="data-a", sealed=sealed, rule=given["rule"])
    envelope = sign_message(install, forged.signing_key)
    assert code_of(lambda: client.install_key(envelope, manifest=world.manifest.id)) == 3406
    world.close()


def test_key_replaced_after_installation(key_world: World) -> None:
    key_world.keys["data-a"] = Secret.random(64)
    assert code_of(lambda: key_world.install_one("data-a")) == 3407


def test_rule_replaced_after_installation(key_world: World) -> None:
    assert code_of(lambda: key_world.install_one("data-a", uses=1)) == 3407


def test_key_that_is_not_installed(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    world.install("data-a", "scripts")
    assert obtain(world) == 3409
    world.close()


def test_key_that_belongs_to_another_key_manager(key_world: World) -> None:
    client = key_world.clients["keys-b"]
    service = verify_service(client, key_world.manifest, "keys-b", at=key_world.clock(), allow_simulated=True)
    given = {"manifest": key_world.manifest, "key": Secret.random(64), "rule": KeyRule(uses=1, simulated=True)}
    identity = IDENTITIES["hospital-a"]
    assert code_of(lambda: install_key(client, service, image="data-a", identity=identity, **given)) == 3405


# ---- uses and time -------------------------------------------------------------------------------------------------


def test_use_count_exceeded(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    world.install("data-b", "scripts")
    world.install_one("data-a", uses=2)
    run = world.run()
    for _ in range(2):
        world.attempt(run, "prepare").obtain()
    assert code_of(world.attempt(run, "prepare").obtain) == 3411
    world.restart("keys-a")
    assert code_of(world.attempt(run, "prepare").obtain) == 3411
    world.close()


def test_uses_are_not_spent_twice_by_many_at_once(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    world.install("data-b", "scripts")
    world.install_one("data-a", uses=3)
    run = world.run()
    requests = []
    for _ in range(8):
        attempt = world.attempt(run, "prepare")
        requests.append(attempt.session.request("keys-a", attempt.evidence(attempt.claims())))

    def release(request: object) -> int:
        try:
            world.clients["keys-a"].release(request)
        except CloisterError as error:
            return error.code
        return 0

    with ThreadPoolExecutor(8) as pool:
        codes = sorted(pool.map(release, requests))
    assert codes == [0] * 3 + [3411] * 5
    world.close()


def test_output_released_more_often_than_agreed(key_world: World) -> None:
    run = key_world.run()
    key_world.finish(run, "prepare")
    for _ in range(3):
        key_world.attempt(run, "train").obtain()
    assert code_of(key_world.attempt(run, "train").obtain) == 3411


def test_expired_key_by_the_owners_rule(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    world.install("data-b", "scripts")
    world.install_one("data-a", until="2026-11-20T13:00:00Z")
    world.attempt(world.run(), "prepare").obtain()
    world.clock.turn(hours=2)
    assert obtain(world) == 3412
    world.close()


def test_expired_key_by_the_manifest(tmp_path: Path) -> None:
    def change(manifest: Manifest) -> Manifest:
        image = manifest.images["data-b"].model_copy(update={"until": "2026-11-20T13:00:00Z"})
        return manifest.model_copy(update={"images": {**manifest.images, "data-b": image}})

    world = World.make(tmp_path, change=change)
    world.install()
    world.clock.turn(hours=2)
    assert obtain(world) == 3412
    world.close()


def test_clock_turned_back_far(tmp_path: Path) -> None:
    """An expired key stays expired: the log's newest entry is the least that the time can be."""
    world = World.make(tmp_path)
    world.install("data-b", "scripts")
    world.install_one("data-a", until="2026-11-20T13:00:00Z")
    run = world.run()
    world.clock.turn(hours=2)
    world.run()
    world.clock.turn(hours=-2)
    assert code_of(lambda: world.registrar.start_attempt(run, "prepare")) == 3420
    assert last_refusal(world, "keys-a").at == "2026-11-20T14:00:00Z"
    world.close()


def test_clock_turned_back_a_little(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    world.install("data-b", "scripts")
    world.install_one("data-a", until="2026-11-20T12:05:00Z")
    world.clock.turn(minutes=6)
    assert obtain(world) == 3412
    world.clock.turn(minutes=-6)
    assert obtain(world) == 3412
    world.close()


def test_clock_turned_back_over_a_restart(key_world: World) -> None:
    key_world.clock.turn(days=30)
    key_world.run()
    key_world.clock.turn(days=-30)
    key_world.restart("keys-a")
    assert code_of(lambda: key_world.run()) == 3420


# ---- the rest of the terms -----------------------------------------------------------------------------------------


def with_release_until(tmp_path: Path) -> World:
    """An hour for the stage's input and for the party's output."""

    def change(manifest: Manifest) -> Manifest:
        until = {"until": "2026-11-20T13:00:00Z"}
        return manifest.model_copy(update={"releases": tuple(r.model_copy(update=until) for r in manifest.releases)})

    world = World.make(tmp_path, change=change)
    world.install()
    return world


def test_expired_release_of_an_output(tmp_path: Path) -> None:
    world = with_release_until(tmp_path)
    run = world.run()
    world.finish(run, "prepare")
    world.finish(run, "train")
    world.clock.turn(hours=2)
    assert code_of(world.attempt(run, "answers").obtain) == 3412
    clients, identity = world.clients, IDENTITIES["hospital-a"]
    name = next(iter(world.services["keys-a"].desk.core._state.runs))
    asked = {"run": name, "identity": identity, "clients": clients}
    assert code_of(lambda: collect_output(world.manifest, "metrics", **asked)) == 3412
    world.close()


def test_output_of_a_stage_that_has_not_ended(key_world: World) -> None:
    grant = key_world.attempt(key_world.run(), "prepare").opened
    asked = {"run": grant.run, "identity": IDENTITIES["hospital-a"], "clients": key_world.clients}
    assert code_of(lambda: collect_output(key_world.manifest, "metrics", **asked)) == 3417


def test_output_made_of_a_revoked_image(key_world: World) -> None:
    run = key_world.run()
    key_world.finish(run, "prepare")
    obtained, _ = key_world.finish(run, "train")
    revoke(key_world, "data-b", "hospital-b")
    asked = {"run": obtained.claims.run, "identity": IDENTITIES["hospital-a"], "clients": key_world.clients}
    assert code_of(lambda: collect_output(key_world.manifest, "metrics", **asked)) == 3410


def test_manifest_that_has_ended_is_not_installed(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    world.clock.turn(days=400)
    assert code_of(lambda: world.clients["keys-a"].install_manifest(world.signed)) == 3403
    world.close()


def test_stops_for_a_manifest_that_is_not_installed(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    stop = {"manifest": world.manifest, "identity": IDENTITIES["hospital-a"], "at": world.clock()}
    assert code_of(lambda: suspend_manifest(world.clients["keys-a"], reason="", **stop)) == 3401
    assert code_of(lambda: revoke_image(world.clients["keys-a"], image="data-a", **stop)) == 3401
    world.close()


def test_stops_in_the_name_of_nobody(key_world: World) -> None:
    nobody = type(IDENTITIES["lab"])("nobody", IDENTITIES["lab"].signing_key, IDENTITIES["lab"].opening_key)
    stop = {"manifest": key_world.manifest, "at": key_world.clock()}
    assert code_of(lambda: suspend_manifest(key_world.clients["keys-a"], identity=nobody, reason="", **stop)) == 3406
    other = {"image": "data-b", "identity": IDENTITIES["hospital-b"], **stop}
    assert code_of(lambda: revoke_image(key_world.clients["keys-a"], **other)) == 3405


def test_stop_delivered_twice_is_answered_alike(key_world: World) -> None:
    client, size = key_world.clients["keys-a"], key_world.stores["keys-a"].size
    stop = {"manifest": key_world.manifest, "at": key_world.clock()}
    for _ in range(2):
        revoke_image(client, image="data-a", identity=IDENTITIES["hospital-a"], **stop)
    for _ in range(2):
        suspend_manifest(client, identity=IDENTITIES["lab"], reason="", **stop)
    before = size()
    suspend_manifest(client, identity=IDENTITIES["lab"], reason="", **stop)
    assert size() == before


def test_rule_that_outlives_the_manifests_term(tmp_path: Path) -> None:
    def change(manifest: Manifest) -> Manifest:
        image = manifest.images["data-a"].model_copy(update={"until": "2026-11-20T13:00:00Z"})
        return manifest.model_copy(update={"images": {**manifest.images, "data-a": image}})

    world = World.make(tmp_path, change=change)
    world.install("scripts")
    assert code_of(lambda: world.install_one("data-a", until="2026-11-20T13:00:01Z")) == 3408
    world.close()


def test_key_of_another_size(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    world.keys["data-a"] = Secret.random(32)
    world.install("scripts")
    assert code_of(lambda: world.install_one("data-a")) == 3406
    world.close()


def test_attempts_of_a_stage_are_bounded(key_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister.keys._attempts.MAX_ATTEMPTS", 2)
    run = key_world.run()
    key_world.registrar.start_attempt(run, "prepare")
    key_world.registrar.start_attempt(run, "prepare")
    assert code_of(lambda: key_world.registrar.start_attempt(run, "prepare")) == 3425
