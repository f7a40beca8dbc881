"""A stranger with an agreement of their own at a shared key manager: no harm to anybody else's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.keyworld import IDENTITIES, KEYS, NOW, World, attester_of, code_of

from cloister.errors import CloisterError
from cloister.keys import (
    CollectChallengeRequest,
    KeyRule,
    Settings,
    StageSession,
    install_key,
    obtain,
    suspend_manifest,
    verify_service,
)
from cloister.keys._trace import Trace
from cloister.manifest import (
    Image,
    Manifest,
    Output,
    Party,
    Release,
    SignedManifest,
    Stage,
    Tee,
    sign,
)
from cloister.party import Identity
from cloister.wire import Secret

STRANGER = Identity.generate("mallory")
CODE = b"\x66" * 48


def tee(world: World, code: bytes) -> Tee:
    return Tee(type="tdx", measurements=(code.hex(),), simulated_root=world.site.root_spki)


def agreement(world: World, images: int, groups: int) -> Manifest:
    """A manifest of the stranger's alone: ``images`` reach stage ``s`` through ``groups`` stages of at most 64 each."""
    names = [f"part-{index:03d}x" for index in range(images)]
    size = -(-images // groups)
    one = {"tee": "launcher", "code": "scripts", "argv": ("x",)}
    stages = {
        f"p{group}x": Stage(
            **one, inputs=tuple(names[group * size :][:size]), outputs={f"o{group}x": Output(max_bytes=1)}
        )
        for group in range(groups)
    }
    inner = tuple(f"o{group}x" for group in range(groups))
    return Manifest(
        cloister=1,
        name="stranger",
        valid=world.manifest.valid,
        parties={
            "mallory": Party(sign=str(STRANGER.signing_key.public), hpke=str(STRANGER.opening_key.public)),
        },
        key_managers={"shared": world.manifest.key_managers["shared"]},
        registrar="shared",
        tees={"launcher": tee(world, CODE), "keys": tee(world, KEYS)},
        images={
            name: Image(
                id=f"{number:064x}",
                kind="code" if name == "scripts" else "dataset",
                owner="mallory",
                key_manager="shared",
            )
            for number, name in enumerate((*names, "scripts"), start=1)
        },
        stages={**stages, "s": Stage(**one, inputs=inner, outputs={"o": Output(max_bytes=1)})},
        releases=(Release(output="o", nobody=True), *(Release(output=name, stage="s") for name in inner)),
    )


def installed(world: World, manifest: Manifest, policy: dict[str, Any] | None = None) -> None:
    client = world.clients["shared"]
    client.install_manifest(sign(SignedManifest(manifest=manifest), STRANGER))
    service = verify_service(client, manifest, "shared", at=NOW, allow_simulated=True)
    for name in manifest.images:
        rule = KeyRule(uses=9, simulated=True, policy=None if name == "scripts" else policy)
        install_key(client, service, manifest=manifest, image=name, key=Secret.random(64), rule=rule, identity=STRANGER)


def release(world: World, manifest: Manifest, stage: str) -> None:
    client = world.clients["shared"]
    grant = client.start_attempt(client.start_run(manifest.id), stage)
    obtain(StageSession(manifest, stage), grant, clients=world.clients, attester=attester_of(world, CODE))


def policy_of(size: int) -> dict[str, Any]:
    long = [f"{index:04d}" + "A" * 1000 for index in range(size)]
    either = [{"claim": "tee.type", "equals": "tdx"}, {"claim": "tee.type", "in": long}]
    return {"version": "1.0.0", "anyOf": [{"authority": "x", "anyOf": either}]}


@pytest.fixture
def world(tmp_path: Path):
    made = World.make(tmp_path, names=("shared",))
    made.install()
    yield made
    made.close()


def test_a_policy_as_large_as_a_log_entry_is_not_installed(world: World) -> None:
    assert code_of(lambda: installed(world, agreement(world, 1, 1), policy_of(400))) == 2003


def test_large_policies_do_not_swell_a_release_beyond_what_can_be_read_back(world: World) -> None:
    manifest = agreement(world, 40, 1)
    installed(world, manifest, policy_of(50))
    release(world, manifest, "p0x")
    store = world.stores["shared"]
    assert len(store.read(store.size() - 1, store.size())[0]) < 1 << 20
    world.restart("shared")
    world.attempt(world.run(), "prepare").obtain()


def test_a_stage_that_very_many_images_reach_disturbs_nobody(world: World) -> None:
    """More rules than an entry shows: the decision is logged in short, or refused, but never takes a batch with it."""
    manifest = agreement(world, 256, 4)
    installed(world, manifest)
    before = world.stores["shared"].size()
    assert code_of(lambda: release(world, manifest, "s")) == 3417
    assert world.stores["shared"].size() > before
    assert not world.services["shared"].desk._stale
    world.attempt(world.run(), "prepare").obtain()


def test_an_error_that_is_ours_is_a_refusal_of_one_request(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from cloister.keys import _core

    def broken(*_: object) -> None:
        raise ZeroDivisionError("private words")

    run = world.run()
    honest = _core.ACTIONS["attempt"]
    monkeypatch.setitem(_core.ACTIONS, "attempt", (honest[0], broken))
    with pytest.raises(CloisterError) as caught:
        world.registrar.start_attempt(run, "prepare")
    assert caught.value.code == 9001
    assert "private" not in str(caught.value.as_json())
    monkeypatch.setitem(_core.ACTIONS, "attempt", honest)
    assert world.registrar.start_attempt(run, "prepare")


def test_noise_does_not_hold_up_a_partys_stop(tmp_path: Path) -> None:
    world = World.make(tmp_path, names=("shared",), settings=Settings(free_entries=20, free_entries_per_s=0))
    world.install()
    for _ in range(30):
        code_of(lambda: world.registrar.start_run("f" * 64))
    suspend_manifest(world.registrar, manifest=world.manifest, identity=IDENTITIES["hospital-a"], reason="stop", at=NOW)
    world.close()


def test_unsigned_requests_take_no_session(world: World) -> None:
    ask = CollectChallengeRequest(manifest=world.manifest.id, run="0" * 32, output="metrics", party="hospital-a")
    assert code_of(lambda: world.registrar.collect_challenge(ask)) == 3417


def test_a_stranger_who_takes_all_sessions_gives_one_up(tmp_path: Path) -> None:
    world = World.make(tmp_path, names=("shared",), settings=Settings(open_sessions=4))
    world.install()
    manifest = agreement(world, 1, 1)
    client = world.clients["shared"]
    client.install_manifest(sign(SignedManifest(manifest=manifest), STRANGER))
    run = client.start_run(manifest.id)
    for _ in range(4):
        client.challenge(client.start_attempt(run, "p0x"))
    assert code_of(lambda: client.challenge(client.start_attempt(run, "p0x"))) == 3425
    world.attempt(world.run(), "prepare").obtain()
    world.close()


def test_a_long_trace_keeps_its_first_and_last_steps() -> None:
    trace = Trace()
    for number in range(2000):
        with trace.rule(f"rule {number}"):
            pass
    assert len(trace.steps) == 512
    assert (trace.steps[0].rule, trace.steps[-1].rule) == ("rule 0", "rule 1999")
    assert trace.steps[256].reason == "1489 steps that passed are left out"


def test_no_key_is_sealed_under_a_document_in_the_owners_name(world: World) -> None:
    """Same names, same image, the stranger's keys, the stranger's enclave: signed by everybody it names."""
    client = world.clients["shared"]
    forged = world.manifest.model_copy(
        update={"parties": {**world.manifest.parties, "hospital-a": agreement(world, 1, 1).parties["mallory"]}}
    )
    service = verify_service(client, forged, "shared", at=NOW, allow_simulated=True)
    sealed: list[bytes] = []

    class Watching:
        def seal(self, plaintext: bytes, *, info: bytes) -> bytes:
            sealed.append(plaintext)
            return service.hpke.seal(plaintext, info=info)

    watched = replace(service, hpke=Watching())  # type: ignore[arg-type]
    rule = KeyRule(uses=1, simulated=True)
    given = {"manifest": forged, "image": "data-a", "key": Secret.random(64), "rule": rule}
    assert code_of(lambda: install_key(client, watched, identity=IDENTITIES["hospital-a"], **given)) == 3438
    assert sealed == []
