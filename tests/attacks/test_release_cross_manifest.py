"""A stranger's own, perfectly signed manifest that reuses the names and the run id of somebody else's."""

from tests.keyworld import LAUNCHER, World, attester_of, code_of

from cloister.keys import (
    AttemptGrant,
    KeyRelease,
    KeyRule,
    StageSession,
    install_key,
    open_signed,
    sign_message,
    verify_service,
)
from cloister.keys._messages import Registration, RegistrationRequest
from cloister.manifest import Image, KeyManager, Manifest, Party, Release, SignedManifest, Tee, sign
from cloister.party import Identity
from cloister.wire import Envelope, Secret, SigningKey

MALLORY = Identity.generate("mallory")
EVIL = SigningKey.generate()  # mallory's own "key manager": it signs whatever she likes


def manifest_of_mallory(world: World) -> Manifest:
    """Stages, outputs and releases as in the victims' manifest; registrar, owner and enclave are mallory's."""
    theirs = world.manifest
    code = Image(id="d" * 64, kind="code", owner="mallory", key_manager="keys-b")
    stages = {
        "prepare": theirs.stages["prepare"].model_copy(update={"inputs": ()}),
        "train": theirs.stages["train"],
    }
    tee = Tee(type="tdx", measurements=(LAUNCHER.hex(),), simulated_root=world.site.root_spki)
    return Manifest(
        cloister=1,
        name="mallory",
        valid=theirs.valid,
        parties={"mallory": Party(sign=str(MALLORY.signing_key.public), hpke=str(MALLORY.opening_key.public))},
        key_managers={
            "evil": KeyManager(sign=str(EVIL.public), tee="launcher"),
            "keys-b": KeyManager(sign=str(world.clients["keys-b"].key), tee="keys"),
        },
        registrar="evil",
        tees={"launcher": tee, "keys": theirs.tees["keys"]},
        images={"scripts": code},
        stages=stages,
        releases=(
            Release(output="joined", stage="train"),
            Release(output="model", party="mallory"),
            Release(output="metrics", party="mallory"),
        ),
    )


def installed(world: World) -> Manifest:
    manifest = manifest_of_mallory(world)
    client = world.clients["keys-b"]
    client.install_manifest(sign(SignedManifest(manifest=manifest), MALLORY))
    service = verify_service(client, manifest, "keys-b", at=world.clock(), allow_simulated=True)
    rule = KeyRule(uses=10, simulated=True)
    given = {"manifest": manifest, "image": "scripts", "key": Secret.random(64), "rule": rule}
    install_key(client, service, identity=MALLORY, **given)
    return manifest


def granted(manifest: Manifest, run: str, consumer: str) -> Envelope:
    grant = AttemptGrant(manifest=manifest.id, run=run, consumer=consumer, attempt=1, issued_at="2026-11-20T12:00:00Z")
    return sign_message(grant, EVIL)


def ask(world: World, manifest: Manifest, run: str, consumer: str) -> tuple[StageSession, Envelope]:
    """Mallory's launcher asks ``keys-b``, the key manager that she shares with her victims."""
    client, grant = world.clients["keys-b"], granted(manifest, run, consumer)
    session = StageSession(manifest, consumer)
    challenge = client.challenge(grant)
    own = challenge.model_copy(update={"nonce": bytes(32)})
    claims = session.claims(grant, {"keys-b": challenge, "evil": own})
    evidence = attester_of(world, LAUNCHER).attest(claims.report_data())
    return session, client.release(session.request("keys-b", evidence))


def test_run_id_of_another_manifest_opens_none_of_its_outputs(key_world: World) -> None:
    run = key_world.run()
    obtained, _ = key_world.finish(run, "prepare")
    manifest = installed(key_world)
    assert code_of(lambda: ask(key_world, manifest, obtained.claims.run or "", "train")) == 3417


def test_run_id_of_another_manifest_blocks_none_of_its_stages(key_world: World) -> None:
    """Mallory releases and registers first under the victims' run id; their own run goes on."""
    attempt = key_world.attempt(key_world.run(), "prepare")
    run = attempt.opened.run
    manifest = installed(key_world)
    session, release = ask(key_world, manifest, run, "prepare")
    said = open_signed(KeyRelease, release, key_world.clients["keys-b"].key)
    made = Registration(
        manifest=manifest.id,
        run=run,
        stage="prepare",
        attempt=1,
        claims=said.claims,
        outputs={"joined": "9" * 64},
        shares={"keys-b": b"x", "evil": b"x"},
        receipt="0" * 64,
    )
    request = RegistrationRequest(registration=sign_message(made, session.sign))
    assert code_of(lambda: key_world.clients["keys-b"].register(request)) == 3430
    assert attempt.obtain().granted.images
