"""A host replays, swaps or relays what one launcher said to get keys for another."""

from tests.keyworld import IDENTITIES, Attempt, World, code_of, last_refusal

from cloister.attest import SessionClaims
from cloister.keys import AttemptGrant, ReleaseRequest, RunGrant, StageSession, sign_message
from cloister.wire import OpeningKey, SigningKey


def ready(world: World, stage: str = "prepare") -> tuple[Attempt, SessionClaims, ReleaseRequest]:
    attempt = world.attempt(world.run(), stage)
    claims = attempt.claims()
    return attempt, claims, attempt.session.request("keys-a", attempt.evidence(claims))


def release(world: World, request: ReleaseRequest) -> int:
    return code_of(lambda: world.clients["keys-a"].release(request))


def test_replayed_nonce(key_world: World) -> None:
    _, _, request = ready(key_world)
    key_world.clients["keys-a"].release(request)
    assert release(key_world, request) == 3423
    assert last_refusal(key_world, "keys-a").code == 3423


def test_nonce_is_spent_by_a_refused_request_too(key_world: World) -> None:
    attempt, claims, request = ready(key_world)
    wrong = request.model_copy(update={"evidence": attempt.evidence(claims, debug=True)})
    assert release(key_world, wrong) == 4141
    assert release(key_world, request) == 3423


def test_session_that_was_never_opened(key_world: World) -> None:
    _, _, request = ready(key_world)
    assert release(key_world, request.model_copy(update={"session": "0" * 32})) == 3421


def test_session_of_another_key_manager(key_world: World) -> None:
    attempt, _, request = ready(key_world)
    other = attempt.session.request("keys-b", request.evidence)
    assert release(key_world, other) == 3421


def test_expired_session(key_world: World) -> None:
    _, _, request = ready(key_world)
    key_world.clock.turn(seconds=key_world.settings.session_s + 1)
    assert release(key_world, request) == 3422


def test_session_of_another_attempt(key_world: World) -> None:
    run = key_world.run()
    first, second = key_world.attempt(run, "prepare"), key_world.attempt(run, "prepare")
    claims = first.claims()
    request = first.session.request("keys-a", first.evidence(claims)).model_copy(update={"grant": second.grant})
    assert release(key_world, request) == 3424


def test_stage_swap(key_world: World) -> None:
    """A session for the stage that may read the data, used with the grant of another stage."""
    run = key_world.run()
    train = key_world.attempt(run, "train")
    _, _, request = ready(key_world)
    assert release(key_world, request.model_copy(update={"grant": train.grant})) == 3424


def test_evidence_of_another_session(key_world: World) -> None:
    attempt, claims, request = ready(key_world)
    stale = attempt.evidence(claims.model_copy(update={"nonces": {"keys-a": b"n" * 32, "keys-b": b"n" * 32}}))
    assert release(key_world, request.model_copy(update={"evidence": stale})) == 4150


def test_nonce_of_another_session(key_world: World) -> None:
    attempt, claims, request = ready(key_world)
    claims = claims.model_copy(update={"nonces": {**claims.nonces, "keys-a": claims.nonces["keys-b"]}})
    changed = request.model_copy(update={"claims": claims, "evidence": attempt.evidence(claims)})
    assert release(key_world, changed) == 4151


def test_key_substitution(key_world: World) -> None:
    """The host puts its own HPKE key into the claims of a genuine launcher."""
    _, claims, request = ready(key_world)
    mine = claims.model_copy(update={"hpke": str(OpeningKey.generate().public)})
    assert release(key_world, request.model_copy(update={"claims": mine})) == 4150


def attested_to(key_world: World, **change: object) -> int:
    """A genuine enclave that attests to something else than this attempt."""
    attempt, claims, request = ready(key_world)
    claims = claims.model_copy(update=change)
    return release(key_world, request.model_copy(update={"claims": claims, "evidence": attempt.evidence(claims)}))


def test_wrong_purpose(key_world: World) -> None:
    assert attested_to(key_world, purpose="service") == 4152


def test_wrong_manifest(key_world: World) -> None:
    assert attested_to(key_world, manifest="0" * 64) == 4153


def test_wrong_run(key_world: World) -> None:
    assert attested_to(key_world, run="0" * 32) == 4154


def test_wrong_stage(key_world: World) -> None:
    assert attested_to(key_world, stage="train") == 4155


def test_wrong_attempt(key_world: World) -> None:
    assert attested_to(key_world, attempt=2) == 4156


def test_claims_that_leave_the_run_out(key_world: World) -> None:
    assert attested_to(key_world, run=None) == 4154


def test_grant_that_the_registrar_did_not_sign(key_world: World) -> None:
    attempt, _, request = ready(key_world)
    grant = AttemptGrant(**{**attempt.opened.model_dump(), "attempt": 7})
    forged = sign_message(grant, IDENTITIES["lab"].signing_key)
    assert code_of(lambda: key_world.clients["keys-a"].challenge(forged)) == 5402
    assert release(key_world, request.model_copy(update={"grant": forged})) == 5402


def test_grant_signed_by_another_key_manager_of_the_manifest(key_world: World) -> None:
    attempt, _, _ = ready(key_world)
    key = key_world.services["keys-b"].desk.core._sign
    forged = sign_message(attempt.opened, key)
    assert code_of(lambda: key_world.clients["keys-b"].challenge(forged)) == 5402


def test_run_grant_in_place_of_an_attempt_grant(key_world: World) -> None:
    run = key_world.run()
    assert code_of(lambda: key_world.clients["keys-a"].challenge(run)) == 5402


def test_run_that_the_registrar_never_granted(key_world: World) -> None:
    """A run grant that is genuine in form but not in this registrar's log."""
    key = key_world.services["keys-a"].desk.core._sign
    grant = RunGrant(manifest=key_world.manifest.id, run="1" * 32, registrar="keys-a", issued_at="2026-11-20T12:00:00Z")
    assert code_of(lambda: key_world.registrar.start_attempt(sign_message(grant, key), "prepare")) == 3427


def test_attempt_asked_of_a_key_manager_that_is_not_the_registrar(key_world: World) -> None:
    assert code_of(lambda: key_world.clients["keys-b"].start_run(key_world.manifest.id)) == 3426


def test_second_launcher_for_one_attempt(key_world: World) -> None:
    """Two enclaves for one grant: the second gets nothing, so one attempt has one set of output keys."""
    attempt = key_world.attempt(key_world.run(), "prepare")
    attempt.obtain()
    twin = Attempt(key_world, StageSession(key_world.manifest, "prepare"), attempt.grant)
    assert code_of(twin.obtain) == 3416


def test_launcher_refuses_challenges_that_leave_a_key_manager_out(key_world: World) -> None:
    attempt = key_world.attempt(key_world.run(), "prepare")
    challenges = {"keys-a": key_world.clients["keys-a"].challenge(attempt.grant)}
    assert code_of(lambda: attempt.session.claims(attempt.grant, challenges)) == 5407


def test_claims_with_keys_that_are_none(key_world: World) -> None:
    assert attested_to(key_world, hpke="x25519:none") == 2005
    assert attested_to(key_world, sign=str(SigningKey.generate().public)[:-1]) == 2005
