"""Who gets an output: sibling stages, other parties, second registrations, key managers that lie to a launcher."""

from typing import Any

from tests.keyworld import IDENTITIES, World, code_of

from cloister.errors import CloisterError
from cloister.keys import (
    CollectChallengeRequest,
    CollectRequest,
    KeyManagerClient,
    KeyRelease,
    Registration,
    RegistrationRequest,
    ReleasedInput,
    ReleasedKeys,
    StageSession,
    collect_output,
    combine_parts,
    open_signed,
    sign_message,
)
from cloister.keys._binding import release_info
from cloister.manifest import Manifest, Release
from cloister.wire import Envelope, SealingKey, Secret, SigningKey, parse_message

DIGEST = "7" * 64


def registration_of(obtained: Any, **outputs: str) -> Envelope:
    return obtained.session.registration(outputs=outputs or {"joined": DIGEST}, receipt_digest="0" * 64)


def register(world: World, envelope: Envelope, name: str = "keys-a", **how: Any) -> int:
    return code_of(lambda: world.clients[name].register(RegistrationRequest(registration=envelope, **how)))


# ---- registration --------------------------------------------------------------------------------------------------


def test_second_registration_with_other_bytes(key_world: World) -> None:
    obtained = key_world.attempt(key_world.run(), "prepare").obtain()
    key_world.register(registration_of(obtained), obtained)
    assert register(key_world, registration_of(obtained, joined="8" * 64)) == 3429


def test_registration_of_another_attempt_after_the_first(key_world: World) -> None:
    run = key_world.run()
    first, second = key_world.attempt(run, "prepare").obtain(), key_world.attempt(run, "prepare").obtain()
    key_world.register(registration_of(second), second)
    assert register(key_world, registration_of(first)) == 3429


def test_second_attempt_after_registration(key_world: World) -> None:
    run = key_world.run()
    late = key_world.attempt(run, "prepare")
    request = late.session.request("keys-a", late.evidence(late.claims()))
    key_world.finish(run, "prepare")
    assert code_of(lambda: key_world.registrar.start_attempt(run, "prepare")) == 3415
    assert code_of(lambda: key_world.clients["keys-b"].challenge(late.grant)) == 3415
    assert code_of(lambda: key_world.clients["keys-a"].release(request)) == 3415


def test_registration_by_another_key_than_the_attested_one(key_world: World) -> None:
    obtained = key_world.attempt(key_world.run(), "prepare").obtain()
    honest = parse_message(Registration, registration_of(obtained).payload, what="registration")
    assert register(key_world, sign_message(honest, SigningKey.generate())) == 5401


def test_registration_of_other_claims(key_world: World) -> None:
    run = key_world.run()
    obtained = key_world.attempt(run, "prepare").obtain()
    honest = parse_message(Registration, registration_of(obtained).payload, what="registration")
    other = honest.model_copy(update={"claims": "1" * 64})
    assert register(key_world, sign_message(other, obtained.session.sign)) == 5401


def test_registration_of_an_attempt_that_got_no_keys(key_world: World) -> None:
    attempt = key_world.attempt(key_world.run(), "prepare")
    attempt.claims()
    place = {"manifest": key_world.manifest.id, "run": attempt.opened.run, "stage": "prepare", "attempt": 1}
    shares = {"keys-a": b"", "keys-b": b""}
    made = Registration(**place, claims="0" * 64, outputs={"joined": DIGEST}, shares=shares, receipt="0" * 64)
    assert register(key_world, sign_message(made, attempt.session.sign)) == 3431


def test_registration_that_leaves_an_output_out_or_adds_one(key_world: World) -> None:
    run = key_world.run()
    key_world.finish(run, "prepare")
    obtained = key_world.attempt(run, "train").obtain()
    assert register(key_world, registration_of(obtained, model=DIGEST)) == 3432
    assert register(key_world, registration_of(obtained, model=DIGEST, metrics=DIGEST, more=DIGEST)) == 3432


def test_registration_without_a_share_for_every_contributor(key_world: World) -> None:
    obtained = key_world.attempt(key_world.run(), "prepare").obtain()
    honest = parse_message(Registration, registration_of(obtained).payload, what="registration")
    partial = honest.model_copy(update={"shares": {"keys-a": honest.shares["keys-a"]}})
    assert register(key_world, sign_message(partial, obtained.session.sign)) == 3432


def test_share_sealed_for_another_key_manager(key_world: World) -> None:
    obtained = key_world.attempt(key_world.run(), "prepare").obtain()
    honest = parse_message(Registration, registration_of(obtained).payload, what="registration")
    swapped = {"keys-a": honest.shares["keys-b"], "keys-b": honest.shares["keys-a"]}
    changed = honest.model_copy(update={"shares": swapped})
    assert register(key_world, sign_message(changed, obtained.session.sign)) == 5002


def test_registrars_receipt_that_somebody_else_signed(key_world: World) -> None:
    obtained = key_world.attempt(key_world.run(), "prepare").obtain()
    envelope = registration_of(obtained)
    receipt = key_world.clients["keys-a"].register(RegistrationRequest(registration=envelope))
    forged = receipt.model_copy(
        update={"signatures": tuple(s.model_copy(update={"sig": bytes(64)}) for s in receipt.signatures)}
    )
    assert register(key_world, envelope, "keys-b", registrar=forged) == 5402


def test_registrars_receipt_of_another_registration(key_world: World) -> None:
    one, two = (key_world.attempt(key_world.run(), "prepare").obtain() for _ in range(2))
    receipt = key_world.clients["keys-a"].register(RegistrationRequest(registration=registration_of(one)))
    assert register(key_world, registration_of(two), "keys-b", registrar=receipt) == 3430


# ---- who may read an output ----------------------------------------------------------------------------------------


def test_output_key_asked_by_a_sibling_stage(tmp_path: Any) -> None:
    """Both stages exist and the sibling lists the output as input, but no release names it."""

    def change(manifest: Manifest) -> Manifest:
        stages = dict(manifest.stages)
        stages["spy"] = stages["train"].model_copy(update={"outputs": {"copy": stages["train"].outputs["model"]}})
        releases = (*manifest.releases, Release(output="joined", stage="spy"), Release(output="copy", nobody=True))
        return manifest.model_copy(update={"stages": stages, "releases": releases})

    world = World.make(tmp_path, change=change)
    world.install()
    run = world.run()
    world.finish(run, "prepare")
    for service in world.services.values():  # a manifest without that release is refused before, by its own rules
        agreement = service.desk.core._state.agreements[world.manifest.id]
        fewer = tuple(item for item in agreement.manifest.releases if item.stage != "spy")
        object.__setattr__(agreement, "manifest", agreement.manifest.model_copy(update={"releases": fewer}))
    assert code_of(world.attempt(run, "spy").obtain) == 3418
    world.close()


def test_input_that_is_not_registered(key_world: World) -> None:
    assert code_of(key_world.attempt(key_world.run(), "train").obtain) == 3417


def test_input_of_another_run(key_world: World) -> None:
    key_world.finish(key_world.run(), "prepare")
    assert code_of(key_world.attempt(key_world.run(), "train").obtain) == 3417


def collect(world: World, run: str, party: str, output: str = "metrics") -> int:
    clients, identity = world.clients, IDENTITIES[party]
    return code_of(lambda: collect_output(world.manifest, output, run=run, identity=identity, clients=clients))


def trained(world: World) -> str:
    run = world.run()
    world.finish(run, "prepare")
    return world.finish(run, "train")[0].claims.run or ""


def test_output_asked_by_a_party_that_no_release_names(key_world: World) -> None:
    run = trained(key_world)
    assert collect(key_world, run, "hospital-b") == 3418
    asked = CollectChallengeRequest(manifest=key_world.manifest.id, run=run, output="metrics", party="hospital-b")
    assert code_of(lambda: key_world.clients["keys-a"].collect_challenge(asked)) == 3418


def test_output_asked_in_the_name_of_another_party(key_world: World) -> None:
    run = trained(key_world)
    client = key_world.clients["keys-a"]
    place = {"manifest": key_world.manifest.id, "run": run, "output": "metrics", "party": "hospital-a"}
    challenge = client.collect_challenge(CollectChallengeRequest(**place))
    request = CollectRequest(**place, session=challenge.session, nonce=challenge.nonce)
    forged = sign_message(request, IDENTITIES["hospital-b"].signing_key)
    assert code_of(lambda: client.collect(forged)) == 3406


def test_replayed_collect_request(key_world: World) -> None:
    run = trained(key_world)
    client = key_world.clients["keys-a"]
    place = {"manifest": key_world.manifest.id, "run": run, "output": "metrics", "party": "hospital-a"}
    challenge = client.collect_challenge(CollectChallengeRequest(**place))
    request = CollectRequest(**place, session=challenge.session, nonce=challenge.nonce)
    signed = sign_message(request, IDENTITIES["hospital-a"].signing_key)
    client.collect(signed)
    assert code_of(lambda: client.collect(signed)) == 3423


def test_collect_with_a_nonce_of_its_own(key_world: World) -> None:
    run = trained(key_world)
    client = key_world.clients["keys-a"]
    place = {"manifest": key_world.manifest.id, "run": run, "output": "metrics", "party": "hospital-a"}
    challenge = client.collect_challenge(CollectChallengeRequest(**place))
    request = CollectRequest(**place, session=challenge.session, nonce=bytes(32))
    signed = sign_message(request, IDENTITIES["hospital-a"].signing_key)
    assert code_of(lambda: client.collect(signed)) == 3424


def test_output_collected_more_often_than_agreed(key_world: World) -> None:
    run = trained(key_world)
    clients, identity = key_world.clients, IDENTITIES["hospital-a"]
    for _ in range(2):
        collect_output(key_world.manifest, "metrics", run=run, identity=identity, clients=clients)
    assert collect(key_world, run, "hospital-a") == 3411


def test_collect_session_used_for_a_release(key_world: World) -> None:
    run = trained(key_world)
    client = key_world.clients["keys-a"]
    asked = CollectChallengeRequest(manifest=key_world.manifest.id, run=run, output="metrics", party="hospital-a")
    challenge = client.collect_challenge(asked)
    attempt = key_world.attempt(key_world.run(), "prepare")
    request = attempt.session.request("keys-a", attempt.evidence(attempt.claims()))
    crossed = request.model_copy(update={"session": challenge.session})
    assert code_of(lambda: client.release(crossed)) == 3424


# ---- a key manager that lies to the launcher -----------------------------------------------------------------------


class Lying:
    """A key manager of the manifest that changes what it releases, with its own genuine keys."""

    def __init__(self, world: World, name: str, **change: Any) -> None:
        self._client: KeyManagerClient = world.clients[name]
        self._key = world.services[name].desk.core._sign
        self._change = change
        self.session: StageSession | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def release(self, request: Any) -> Envelope:
        said = open_signed(KeyRelease, self._client.release(request), self._client.key)
        assert self.session is not None
        place = {"manifest": said.manifest, "run": said.run, "stage": said.consumer}
        info = release_info(**place, attempt=said.attempt, session=said.session)
        keys = parse_message(ReleasedKeys, self.session._opening.open(said.sealed, info=info), what="keys")
        told = self._change.get("keys", lambda each: each)(keys)
        sealed = SealingKey.parse(request.claims.hpke).seal(told.canonical(), info=info)
        changed = said.model_copy(update={"sealed": sealed, **self._change.get("answer", {})})
        return sign_message(changed, self._change.get("signer", self._key))


def lied_to(world: World, name: str, stage: str = "prepare", **change: Any) -> int:
    run = world.run()
    if stage == "train":
        world.finish(run, "prepare")
    attempt = world.attempt(run, stage)
    liar = Lying(world, name, **change)
    liar.session = attempt.session
    world.clients = {**world.clients, name: liar}  # type: ignore[dict-item]
    try:
        attempt.obtain()
    except CloisterError as error:
        return error.code
    return 0


def test_unchanged_lie_passes(key_world: World) -> None:
    assert lied_to(key_world, "keys-b") == 0


def test_answer_signed_by_another_key(key_world: World) -> None:
    assert lied_to(key_world, "keys-b", signer=SigningKey.generate()) == 5001


def test_answer_about_another_session(key_world: World) -> None:
    assert lied_to(key_world, "keys-b", answer={"session": "0" * 32}) == 5407


def test_answer_about_other_claims(key_world: World) -> None:
    assert lied_to(key_world, "keys-b", answer={"claims": "0" * 64}) == 5407


def test_release_that_leaves_a_key_out(key_world: World) -> None:
    assert lied_to(key_world, "keys-b", keys=lambda k: k.model_copy(update={"images": {}})) == 5409


def test_release_of_a_key_that_another_key_manager_holds(key_world: World) -> None:
    more = {"data-b": b"1" * 64, "data-a": b"2" * 64}
    assert lied_to(key_world, "keys-b", keys=lambda k: k.model_copy(update={"images": more})) == 5409


def test_release_without_a_contribution(key_world: World) -> None:
    assert lied_to(key_world, "keys-b", keys=lambda k: k.model_copy(update={"contribution": None})) == 5409


def changed_input(**change: Any) -> Any:
    def change_it(keys: ReleasedKeys) -> ReleasedKeys:
        inputs = {name: ReleasedInput(**{**part.model_dump(), **change}) for name, part in keys.inputs.items()}
        return keys.model_copy(update={"inputs": inputs})

    return change_it


def test_input_image_swapped_by_one_key_manager(key_world: World) -> None:
    assert lied_to(key_world, "keys-b", "train", keys=changed_input(image="9" * 64)) == 5408


def test_input_of_an_older_attempt_from_one_key_manager(key_world: World) -> None:
    assert lied_to(key_world, "keys-b", "train", keys=changed_input(attempt=2)) == 5408


def test_another_share_from_one_key_manager(key_world: World) -> None:
    assert lied_to(key_world, "keys-b", "train", keys=changed_input(share=bytes(32))) == 5408


def test_release_without_a_receipt_of_its_own(key_world: World) -> None:
    """A receipt of another entry of the same log."""
    run = key_world.run()
    first = key_world.attempt(run, "prepare").obtain()
    other = open_signed(KeyRelease, first.releases["keys-b"], key_world.clients["keys-b"].key).receipt
    assert lied_to(key_world, "keys-b", answer={"receipt": other}) == 5411


def test_release_with_a_receipt_that_is_in_no_tree(key_world: World) -> None:
    run = key_world.run()
    first = key_world.attempt(run, "prepare").obtain()
    other = open_signed(KeyRelease, first.releases["keys-b"], key_world.clients["keys-b"].key).receipt
    moved = other.model_copy(update={"index": other.index - 1})
    assert lied_to(key_world, "keys-b", answer={"receipt": moved}) == 5003


def test_key_manager_that_hands_out_no_part_of_an_input(key_world: World) -> None:
    assert lied_to(key_world, "keys-b", "train", keys=lambda k: k.model_copy(update={"inputs": {}})) == 5409


def test_parts_of_an_output_that_are_not_all_there(key_world: World) -> None:
    run = key_world.run()
    key_world.finish(run, "prepare")
    assert code_of(lambda: combine_parts(key_world.manifest, run="r", output="joined", parts={})) == 5409
    assert code_of(lambda: combine_parts(key_world.manifest, run="r", output="nothing", parts={})) == 5409


def test_launcher_seals_no_output_that_the_stage_does_not_have(key_world: World) -> None:
    obtained = key_world.attempt(key_world.run(), "prepare").obtain()
    assert code_of(lambda: obtained.session.output_key("model")) == 3432


def test_launcher_opens_nothing_without_every_answer(key_world: World) -> None:
    attempt = key_world.attempt(key_world.run(), "prepare")
    request = attempt.session.request("keys-a", attempt.evidence(attempt.claims()))
    only = {"keys-a": key_world.clients["keys-a"].release(request)}
    assert code_of(lambda: attempt.session.open(only)) == 5407


def test_share_of_another_size(key_world: World) -> None:
    obtained = key_world.attempt(key_world.run(), "prepare").obtain()
    obtained.session._share = Secret(b"short")
    assert register(key_world, registration_of(obtained)) == 3432
