"""The runner, who makes the bundle, leaves out, swaps and edits."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.audits import PINS, Finished, code_of_audit, finished_run, refuted
from tests.keyworld import IDENTITIES, NOW, World, code_of
from tests.runs import FakeExecutor, Place, edit, rerecord, served

from cloister.attest import SimulatedSite
from cloister.audit import verify
from cloister.errors import IntegrityError
from cloister.keys import KeyRelease, LogPage, open_head, open_signed
from cloister.manifest import SignedManifest, sign
from cloister.party import Identity
from cloister.receipt import AttemptRecord, Bundle
from cloister.wire import Envelope, digest

__all__ = ["finished_run"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World.make(tmp_path)
    made.install()
    yield made
    made.close()


def record_of(bundle: Bundle, consumer: str) -> AttemptRecord:
    return next(record for record in bundle.attempts if record.consumer == consumer)


def flipped(envelope: Envelope, at: int = -3) -> Envelope:
    payload = bytearray(envelope.payload)
    payload[at] ^= 1
    return envelope.model_copy(update={"payload": bytes(payload)})


def test_untouched_bundle_is_accepted(finished_run: Finished) -> None:
    assert code_of_audit(finished_run.audit()) == 0


# ---- stages ----------------------------------------------------------------------------------------------------


def test_stage_swap(finished_run: Finished) -> None:
    names = {"prepare": "train", "train": "prepare"}
    attempts = tuple(
        r.model_copy(update={"consumer": names.get(r.consumer, r.consumer)}) for r in finished_run.bundle.attempts
    )
    swapped = finished_run.bundle.model_copy(update={"attempts": attempts})
    assert code_of_audit(finished_run.audit(swapped)) == 5361


def test_receipts_of_two_stages_swapped(finished_run: Finished) -> None:
    bundle = finished_run.bundle
    other = record_of(bundle, "prepare").receipt
    assert code_of_audit(finished_run.audit(edit(bundle, "train", receipt=other))) == 5364


def test_attempt_numbered_otherwise(finished_run: Finished) -> None:
    assert code_of_audit(finished_run.audit(edit(finished_run.bundle, "train", attempt=2))) == 5361


def test_attempt_listed_twice(finished_run: Finished) -> None:
    bundle = finished_run.bundle
    for consumer in ("train", "answers"):
        twice = bundle.model_copy(update={"attempts": (*bundle.attempts, record_of(bundle, consumer))})
        assert code_of_audit(finished_run.audit(twice)) == 5369


def test_stage_that_the_manifest_does_not_have(finished_run: Finished) -> None:
    assert code_of_audit(finished_run.audit(edit(finished_run.bundle, "train", consumer="another"))) == 5361


# ---- dropped ---------------------------------------------------------------------------------------------------


def test_dropped_attempt_of_a_stage_that_ended(finished_run: Finished) -> None:
    bundle = finished_run.bundle
    without = tuple(record for record in bundle.attempts if record.consumer != "train")
    assert code_of_audit(finished_run.audit(bundle.model_copy(update={"attempts": without}))) == 4350


def test_dropped_attempt_that_failed_after_it_got_keys(world: World, tmp_path: Path) -> None:
    place = Place.start(world, tmp_path)
    place.executor = FakeExecutor(world, script=_fails_once)
    bundle = place.run().bundle()
    assert code_of_audit(verify(bundle, at=NOW, pins=PINS)) == 0
    without = tuple(record for record in bundle.attempts if record.code is None)
    assert len(without) == len(bundle.attempts) - 1
    assert code_of_audit(verify(bundle.model_copy(update={"attempts": without}), at=NOW, pins=PINS)) == 4350


def _fails_once(stage: str, attempt: int, _: object) -> None:
    if (stage, attempt) == ("train", 1):
        raise IntegrityError(5501)


def test_dropped_receipt(finished_run: Finished) -> None:
    assert code_of_audit(finished_run.audit(edit(finished_run.bundle, "train", receipt=None))) == 5364


def test_dropped_release_of_an_attempt_that_was_registered(finished_run: Finished) -> None:
    releases = dict(record_of(finished_run.bundle, "train").releases)
    del releases["keys-b"]
    assert code_of_audit(finished_run.audit(edit(finished_run.bundle, "train", releases=releases))) == 4350


def test_dropped_release_of_a_service(finished_run: Finished) -> None:
    assert code_of_audit(finished_run.audit(edit(finished_run.bundle, "answers", releases={}))) == 4350


def test_dropped_registration_receipt(finished_run: Finished) -> None:
    registered = dict(record_of(finished_run.bundle, "train").registered)
    del registered["keys-b"]
    assert code_of_audit(finished_run.audit(edit(finished_run.bundle, "train", registered=registered))) == 5363


def test_dropped_registration(finished_run: Finished) -> None:
    dropped = edit(finished_run.bundle, "train", registration=None, receipt=None)
    assert code_of_audit(finished_run.audit(dropped)) == 4350


def test_outputs_without_evidence(finished_run: Finished) -> None:
    assert code_of_audit(finished_run.audit(edit(finished_run.bundle, "train", evidence=None))) == 5361


def test_dropped_key_manager(finished_run: Finished) -> None:
    bundle = finished_run.bundle
    report = finished_run.audit(bundle.model_copy(update={"key_managers": {"keys-a": bundle.key_managers["keys-a"]}}))
    missing = [check for check in report.checks if check.group == "key manager" and check.status == "unknown"]
    assert [(check.subject, check.required) for check in missing] == [("keys-b", True)]
    assert report.outcome == "refuted"


def test_nothing_ran(world: World, tmp_path: Path) -> None:
    bundle = Place.start(world, tmp_path).bundle()
    assert code_of_audit(verify(bundle, at=NOW, pins=PINS)) == 4350


# ---- from elsewhere --------------------------------------------------------------------------------------------


def test_parts_of_another_run(world: World, tmp_path: Path) -> None:
    places = [Place.start(world, tmp_path / name).run() for name in ("one", "two")]
    mine, other = (place.bundle() for place in places)
    theirs = record_of(other, "train")
    moves = {
        5364: edit(mine, "train", receipt=theirs.receipt),
        5361: edit(mine, "train", **{name: getattr(theirs, name) for name in AttemptRecord.model_fields}),
    }
    for code, bundle in moves.items():
        assert code_of_audit(verify(bundle, at=NOW, pins=PINS)) == code
    grant = mine.model_copy(update={"run": other.run})
    assert code_of_audit(verify(grant, at=NOW, pins=PINS)) == 5361


def test_grants_for_another_manifest(world: World, tmp_path: Path) -> None:
    bundle = Place.start(world, tmp_path / "one").run().bundle()
    world.agree(world.manifest.model_copy(update={"purpose": "something else"}))
    world.install()
    other = Place.start(world, tmp_path / "two").run().bundle()
    assert bundle.signed.manifest.id != other.signed.manifest.id
    run = verify(bundle.model_copy(update={"run": other.run}), at=NOW, pins=PINS)
    assert code_of_audit(run) == 5361
    assert not run.run  # not even the run's name is believed
    attempt = edit(bundle, "train", grant=record_of(other, "train").grant)
    assert code_of_audit(verify(attempt, at=NOW, pins=PINS)) == 5361
    theirs = other.key_managers["keys-a"]
    log = rerecord(bundle, "keys-a", head=theirs.head, account=theirs.account, refusals=theirs.refusals)
    assert code_of_audit(verify(log, at=NOW, pins=PINS)) == 5361


# ---- of the log ------------------------------------------------------------------------------------------------


@pytest.fixture
def paged(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[World, Bundle]:
    """A run whose account at ``keys-a`` has a page for each entry."""
    place = Place.start(world, tmp_path).run()
    monkeypatch.setattr("cloister.keys._client.MAX_PAGE_ENTRIES", 1)
    return world, place.bundle(heads=[])


def kinds(world: World, bundle: Bundle) -> list[str]:
    """What each page of the account at ``keys-a`` shows."""
    opened = (open_signed(LogPage, each, world.clients["keys-a"].key) for each in bundle.key_managers["keys-a"].account)
    return [item.entry.kind for page in opened for item in page.entries]


def test_release_hidden_by_leaving_out_its_page(paged: tuple[World, Bundle]) -> None:
    """Whichever page the runner leaves out, the log is no longer whole: no audit says that nothing is missing."""
    world, bundle = paged
    assert code_of_audit(verify(bundle, at=NOW, pins=PINS)) == 0
    pages = bundle.key_managers["keys-a"].account
    assert kinds(world, bundle).count("release") == 2
    for gone in range(len(pages)):
        report = verify(
            rerecord(bundle, "keys-a", account=(*pages[:gone], *pages[gone + 1 :])),
            at=NOW,
            pins=PINS,
            heads=[client.head() for client in world.clients.values()],
        )
        assert code_of_audit(report) == 5412
        told = [c for c in report.checks if c.subject == "keys-a" and c.what.startswith("the log is complete")]
        assert told == []


@pytest.mark.parametrize(
    ("choose", "code"),
    [
        (lambda pages: (*pages, pages[-1]), 5412),
        (lambda pages: (*pages[:2], *pages[1:]), 5412),
        (lambda pages: (pages[1], pages[0], *pages[2:]), 5412),
        (lambda pages: (), 5412),
    ],
    ids=["last twice", "one twice", "swapped", "none"],
)
def test_pages_of_the_account_repeated_or_swapped(
    paged: tuple[World, Bundle], choose: Callable[[tuple[Envelope, ...]], tuple[Envelope, ...]], code: int
) -> None:
    bundle = paged[1]
    changed = rerecord(bundle, "keys-a", account=choose(bundle.key_managers["keys-a"].account))
    assert code_of_audit(verify(changed, at=NOW, pins=PINS)) == code


def other_pages(finished_run: Finished, **asked: Any) -> tuple[Envelope, ...]:
    """Pages that the key manager signs for whoever asks, under the head of the bundle."""
    client, record = finished_run.world.clients["keys-a"], finished_run.bundle.key_managers["keys-a"]
    asked = {"manifest": finished_run.world.manifest.id, "run": finished_run.place.folder.state().run, **asked}
    return tuple(envelope for envelope, _ in client.pages(open_head(record.head, client.key), **asked))


@pytest.mark.parametrize(
    "asked",
    [{"selection": "all"}, {"selection": "refusals"}, {"selection": "account", "run": "0" * 32}],
    ids=["the run alone hides suspensions and keys", "refusals", "of another run"],
)
def test_account_that_is_none_of_this_run(finished_run: Finished, asked: dict[str, Any]) -> None:
    other = rerecord(finished_run.bundle, "keys-a", account=other_pages(finished_run, **asked))
    assert code_of_audit(finished_run.audit(other)) == 5361


def test_refusals_of_another_run(finished_run: Finished) -> None:
    for asked in ({"selection": "refusals", "run": "0" * 32}, {"selection": "all"}):
        [page] = other_pages(finished_run, **asked)
        assert code_of_audit(finished_run.audit(rerecord(finished_run.bundle, "keys-a", refusals=page))) == 5361


def test_account_under_another_head_than_the_bundles(world: World, tmp_path: Path) -> None:
    place = Place.start(world, tmp_path).run()
    early = place.bundle().key_managers["keys-a"]
    world.run()
    late = place.bundle()
    for fields in ({"account": early.account}, {"refusals": early.refusals}, {"head": early.head}):
        assert code_of_audit(verify(rerecord(late, "keys-a", **fields), at=NOW, pins=PINS)) == 5407


def test_first_refusals_hidden_by_a_later_page(world: World, tmp_path: Path) -> None:
    place = Place.start(world, tmp_path)
    grant, client = place.folder.state().grant, world.registrar
    for name in ("one", "other"):
        assert code_of(lambda name=name: client.start_attempt(grant, name)) == 3428
    bundle = place.run().bundle()
    tree = open_head(bundle.key_managers["keys-a"].head, client.key)
    asked = {"manifest": world.manifest.id, "run": place.folder.state().run, "selection": "refusals"}
    [(later, _)] = client.pages(tree, start=1, **asked)
    assert code_of_audit(verify(rerecord(bundle, "keys-a", refusals=later), at=NOW, pins=PINS)) == 5412
    [(fewer, _)] = client.pages(tree, count=1, **asked)
    report = verify(rerecord(bundle, "keys-a", refusals=fewer), at=NOW, pins=PINS)
    told = [(c.subject, c.status, c.reason) for c in report.checks if c.group == "refusal"]
    assert [(subject, status) for subject, status, _ in told] == [("one", "asserted"), ("keys-a", "unknown")]
    assert told[1][2].startswith("1 of 2;")


def test_release_hidden_behind_an_old_head(world: World, tmp_path: Path) -> None:
    """A bundle from before the release is whole as of then, and never complete for who holds a newer head."""
    place = Place.start(world, tmp_path).run()
    bundle, client = place.bundle(), world.clients["keys-a"]
    held = open_head(bundle.key_managers["keys-a"].head, client.key)
    world.attempt(place.folder.state().grant, "answers").obtain()
    for heads in ([client.head()], [client.consistency(held)]):
        report = verify(bundle, at=NOW, pins=PINS, heads=heads)
        told = [c for c in report.checks if c.subject == "keys-a" and c.what.startswith("the log is complete")]
        assert [c.status for c in told] == ["unknown"]
    shown = verify(place.bundle(), at=NOW, pins=PINS, heads=[client.head()])
    assert code_of_audit(shown) == 4350
    assert any("the bundle leaves out" in check.what for check in shown.checks)


def test_release_of_the_other_key_manager(finished_run: Finished) -> None:
    releases = dict(record_of(finished_run.bundle, "train").releases)
    releases["keys-b"] = releases["keys-a"]
    assert code_of_audit(finished_run.audit(edit(finished_run.bundle, "train", releases=releases))) == 5001


def test_release_of_another_attempt(finished_run: Finished) -> None:
    releases = record_of(finished_run.bundle, "prepare").releases
    assert code_of_audit(finished_run.audit(edit(finished_run.bundle, "train", releases=releases))) == 5361


@pytest.mark.parametrize(("field", "code"), [("releases", 5361), ("registered", 5363)])
def test_answer_of_somebody_who_contributes_nothing(finished_run: Finished, field: str, code: int) -> None:
    said = dict(getattr(record_of(finished_run.bundle, "train"), field))
    said["lab"] = said["keys-a"]
    report = finished_run.audit(edit(finished_run.bundle, "train", **{field: said}))
    assert code_of_audit(report) == code
    if field == "releases":
        assert any("contributes nothing" in check.reason for check in report.checks)


def test_key_manager_that_the_manifest_does_not_name(finished_run: Finished) -> None:
    managers = {**finished_run.bundle.key_managers, "keys-c": finished_run.bundle.key_managers["keys-a"]}
    assert code_of_audit(finished_run.audit(finished_run.bundle.model_copy(update={"key_managers": managers}))) == 5361


def test_evidence_of_the_other_key_manager(finished_run: Finished) -> None:
    managers = dict(finished_run.bundle.key_managers)
    managers["keys-a"] = managers["keys-a"].model_copy(update={"evidence": managers["keys-b"].evidence})
    assert code_of_audit(finished_run.audit(finished_run.bundle.model_copy(update={"key_managers": managers}))) == 5001


# ---- edited ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["registration", "receipt", "grant"])
def test_edited_envelope(finished_run: Finished, field: str) -> None:
    changed = flipped(getattr(record_of(finished_run.bundle, "train"), field))
    code = code_of_audit(finished_run.audit(edit(finished_run.bundle, "train", **{field: changed})))
    assert code == (5364 if field == "receipt" else 5001)


def test_edited_log(finished_run: Finished) -> None:
    record = finished_run.bundle.key_managers["keys-a"]
    changes = {
        "account": (flipped(record.account[0]),),
        "refusals": flipped(record.refusals),
        "head": flipped(record.head),
    }
    for field, changed in changes.items():
        report = finished_run.audit(rerecord(finished_run.bundle, "keys-a", **{field: changed}))
        assert code_of_audit(report) == 5001, field


def test_key_put_in_place_of_the_attested_one(finished_run: Finished) -> None:
    claims = record_of(finished_run.bundle, "train").claims
    assert claims is not None
    for field in ("hpke", "sign"):
        other = claims.model_copy(update={field: getattr(record_of(finished_run.bundle, "prepare").claims, field)})
        assert code_of_audit(finished_run.audit(edit(finished_run.bundle, "train", claims=other))) == 4150


def test_quote_of_another_attempt(finished_run: Finished) -> None:
    other = record_of(finished_run.bundle, "prepare").evidence
    assert code_of_audit(finished_run.audit(edit(finished_run.bundle, "train", evidence=other))) == 4150


def test_manifest_edited_after_signing(finished_run: Finished) -> None:
    manifest = finished_run.bundle.signed.manifest.model_copy(update={"purpose": "something else"})
    signed = finished_run.bundle.signed.model_copy(update={"manifest": manifest})
    assert code_of_audit(finished_run.audit(finished_run.bundle.model_copy(update={"signed": signed}))) == 5301


def test_manifest_that_breaks_its_own_rules(finished_run: Finished) -> None:
    manifest = finished_run.bundle.signed.manifest
    broken = manifest.model_copy(update={"tees": {"keys": manifest.tees["keys"]}})
    signed = SignedManifest(manifest=broken, signatures=finished_run.bundle.signed.signatures)
    assert code_of_audit(finished_run.audit(finished_run.bundle.model_copy(update={"signed": signed}))) == 2312


def test_owner_who_has_not_signed(finished_run: Finished) -> None:
    signatures = dict(finished_run.bundle.signed.signatures)
    del signatures["hospital-b"]
    signed = finished_run.bundle.signed.model_copy(update={"signatures": signatures})
    assert code_of_audit(finished_run.audit(finished_run.bundle.model_copy(update={"signed": signed}))) == 3301


# ---- parties ---------------------------------------------------------------------------------------------------


def test_party_keys_that_are_not_the_pinned_ones(finished_run: Finished) -> None:
    somebody = Identity.generate("hospital-a").public
    report = finished_run.audit(pins={**PINS, "hospital-a": somebody})
    assert code_of_audit(report) == 5362
    assert [(c.expected, c.got) for c in refuted(report)] == [(somebody.sign, PINS["hospital-a"].sign)]


def test_parties_that_nobody_knows(finished_run: Finished) -> None:
    """Whoever makes up all parties makes a bundle that is consistent: it must not be accepted for that."""
    assert code_of_audit(finished_run.audit(pins=None)) == 4350
    assert code_of_audit(finished_run.audit(pins={k: v for k, v in PINS.items() if k != "lab"})) == 4350


def test_manifest_that_the_auditor_did_not_mean(finished_run: Finished) -> None:
    assert code_of_audit(finished_run.audit(pins=None, manifest=finished_run.world.manifest.id)) == 0
    assert code_of_audit(finished_run.audit(pins=None, manifest="0" * 64)) == 5361


# ---- evidence and collateral -------------------------------------------------------------------------------------


def test_collateral_filed_under_another_digest(finished_run: Finished) -> None:
    bundle, site = finished_run.bundle, finished_run.world.site
    old = site.attester(b"\x11" * 48, clock=lambda: NOW - timedelta(hours=1)).attest(bytes(64)).collateral
    assert old is not None
    table = dict.fromkeys(bundle.collaterals, old)
    assert code_of_audit(finished_run.audit(bundle.model_copy(update={"collaterals": table}))) == 5368


def test_collateral_of_another_site(finished_run: Finished, tmp_path: Path) -> None:
    site = SimulatedSite.create(tmp_path / "other", created=NOW - timedelta(days=1))
    other = site.attester(b"\x11" * 48, clock=finished_run.world.clock).attest(bytes(64)).collateral
    assert other is not None
    mark = digest(other.canonical())
    bundle = edit(finished_run.bundle, "train", collateral=mark)
    bundle = bundle.model_copy(update={"collaterals": {**bundle.collaterals, mark: other}})
    assert code_of_audit(finished_run.audit(bundle)) // 100 == 41


def test_collateral_left_out(finished_run: Finished) -> None:
    bundle = finished_run.bundle.model_copy(update={"collaterals": {}})
    assert code_of_audit(finished_run.audit(bundle)) // 100 == 41


def test_expired_collateral(finished_run: Finished) -> None:
    report = finished_run.audit(at=NOW + timedelta(days=400))
    assert code_of_audit(report) // 100 == 41
    assert {check.group for check in refuted(report)} == {"key manager", "attempt", "inference"}


def test_development_root_under_a_production_manifest(finished_run: Finished) -> None:
    manifest = finished_run.world.manifest
    hardware = {"type": "sgx", "measurements": ("11" * 32,), "simulated_root": None}
    tees = {name: tee.model_copy(update=hardware) for name, tee in manifest.tees.items()}
    signed = SignedManifest(manifest=manifest.model_copy(update={"tees": tees}))
    for identity in IDENTITIES.values():
        signed = sign(signed, identity)
    report = finished_run.audit(finished_run.bundle.model_copy(update={"signed": signed}))
    assert {check.code for check in refuted(report) if check.group == "key manager"} == {4112}


# ---- inference ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lies", "code"),
    [
        ({"run": "0" * 32}, 5361),
        ({"manifest": "0" * 64}, 5361),
        ({"attempt": 7}, 5361),
        ({"model": "0" * 64}, 5365),
        ({"assurance": "hardware"}, 5364),
    ],
)
def test_answer_of_another_model_or_run(world: World, tmp_path: Path, lies: dict[str, object], code: int) -> None:
    place = Place.start(world, tmp_path).run()
    receipt = served(place, **lies)
    assert code_of_audit(verify(place.bundle(inference=[receipt]), at=NOW, pins=PINS)) == code


def test_answer_that_no_attested_service_signed(finished_run: Finished) -> None:
    without = tuple(record for record in finished_run.bundle.attempts if record.consumer != "answers")
    report = finished_run.audit(finished_run.bundle.model_copy(update={"attempts": without}))
    assert [check.code for check in refuted(report)] == [5001]


# ---- a launcher whose code lies --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("assurance", "hardware", 5364),
        ("run", "0" * 32, 5364),
        ("attempt", 2, 5364),
        ("evidence", "0" * 64, 5364),
        ("claims", "0" * 64, 5364),
        ("inputs", {"scripts": "c" * 64, "joined": "0" * 64}, 5365),
        ("inputs", {"scripts": "0" * 64, "joined": "0" * 64}, 5351),
    ],
)
def test_receipt_that_says_something_else(world: World, tmp_path: Path, field: str, value: object, code: int) -> None:
    def lie(facts):
        return facts.model_copy(update={field: value}) if facts.stage == "train" else facts

    place = Place.start(world, tmp_path)
    place.executor.lie = lie
    assert code_of_audit(verify(place.run().bundle(), at=NOW, pins=PINS)) == code


def test_receipt_of_other_outputs(world: World, tmp_path: Path) -> None:
    def lie(facts):
        swapped = dict(zip(facts.outputs, reversed(list(facts.outputs.values())), strict=True))
        return facts.model_copy(update={"outputs": swapped})

    place = Place.start(world, tmp_path)
    place.executor.lie = lie
    assert code_of_audit(verify(place.run().bundle(), at=NOW, pins=PINS)) == 5364


def test_releases_say_what_they_are(finished_run: Finished) -> None:
    """The check above rests on it: the answers in the bundle are the key managers' own."""
    record = record_of(finished_run.bundle, "train")
    for name, envelope in record.releases.items():
        release = open_signed(KeyRelease, envelope, finished_run.world.clients[name].key)
        assert release.consumer == "train"
