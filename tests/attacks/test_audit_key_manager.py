"""A key manager that breaks its terms, or whose host rolls it back or forks it: its own log gives it away."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.audits import PINS, Finished, code_of_audit, finished_run, refuted
from tests.keyworld import IDENTITIES, NOW, World
from tests.runs import Place, edit, relog, rerecord

from cloister.audit import verify
from cloister.keys import (
    AttemptEntry,
    CollectEntry,
    KeyEntry,
    ManifestEntry,
    RegistrationEntry,
    RegistrationRequest,
    ReleaseEntry,
    RevocationEntry,
    RunEntry,
    SuspensionEntry,
    TreeHead,
    collect_output,
    revoke_image,
    sign_message,
    store_at,
    suspend_manifest,
)
from cloister.manifest import Manifest

__all__ = ["finished_run"]

Entries = list[Any]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World.make(tmp_path)
    made.install()
    yield made
    made.close()


def of(entries: Entries, kind: type[Any], **fields: Any) -> Any:
    """The first entry of a kind with these fields."""
    return next(
        e for e in entries if isinstance(e, kind) and all(getattr(e, name) == value for name, value in fields.items())
    )


def again(entries: Entries, consumer: str, /, **fields: Any) -> ReleaseEntry:
    """A release like the one to ``consumer``, in another run: receipts of this run still stand where they stood."""
    other = {"run": "0" * 32, "session": "1" * 32}
    return of(entries, ReleaseEntry, consumer=consumer).model_copy(update={**other, **fields})


def add(make: Callable[[Entries], Entries]) -> Callable[[Entries], Entries]:
    return lambda entries: [*entries, *make(entries)]


def rewrite(make: Callable[[Entries], Entries]) -> Callable[[Entries], Entries]:
    """A log that was rewritten, and has grown since: no head inside the bundle is of its size."""
    return lambda entries: [*make(entries), of(entries, RunEntry).model_copy(update={"run": "f" * 32})]


def codes(finished_run: Finished, change: Callable[[Entries], Entries], name: str = "keys-a") -> set[int | None]:
    report = finished_run.audit(relog(finished_run.world, finished_run.bundle, name, change))
    return {check.code for check in refuted(report)}


def test_the_same_log_signed_again_is_accepted(finished_run: Finished) -> None:
    assert codes(finished_run, lambda entries: entries) == set()


# ---- terms -------------------------------------------------------------------------------------------------------


def test_key_used_more_often_than_agreed(finished_run: Finished) -> None:
    more = [{"run": f"{n:032x}"} for n in range(5)]
    assert codes(finished_run, add(lambda e: [again(e, "prepare", **each) for each in more[:4]])) == set()
    assert codes(finished_run, add(lambda e: [again(e, "prepare", **each) for each in more])) == {5355}


def test_output_released_more_often_than_agreed(finished_run: Finished) -> None:
    def more(entries: Entries) -> Entries:
        done = of(entries, RegistrationEntry, stage="prepare")
        runs = [f"{n:032x}" for n in range(3)]
        return [
            entry for run in runs for entry in (done.model_copy(update={"run": run}), again(entries, "train", run=run))
        ]

    assert codes(finished_run, add(more)) == {5355}


def collected(entries: Entries, **fields: Any) -> CollectEntry:
    done = of(entries, RegistrationEntry, stage="train")
    said = {"output": "metrics", "party": "hospital-a", "image": done.outputs["metrics"], **fields}
    return CollectEntry(
        at=done.at, manifest=done.manifest, run=done.run, statement="0" * 64, assurance="simulated", **said
    )


def test_output_collected(finished_run: Finished) -> None:
    assert codes(finished_run, add(lambda e: [collected(e)])) == set()
    assert codes(finished_run, add(lambda e: [collected(e)] * 3)) == {5355}
    assert codes(finished_run, add(lambda e: [collected(e, party="lab")])) == {5366}
    assert codes(finished_run, add(lambda e: [collected(e, output="joined")])) == {5366}
    assert codes(finished_run, add(lambda e: [collected(e, image="0" * 64)])) == {5365}


def stop(entries: Entries) -> SuspensionEntry:
    entry = entries[-1]
    return SuspensionEntry(at=entry.at, manifest=entry.manifest, party="lab", reason="no", statement="0" * 64)


def withdrawn(entries: Entries, image: str = "data-a") -> RevocationEntry:
    entry = entries[-1]
    return RevocationEntry(at=entry.at, manifest=entry.manifest, image=image, owner="hospital-a", statement="0" * 64)


@pytest.mark.parametrize(
    "make",
    [
        lambda e: [stop(e), again(e, "prepare")],
        lambda e: [stop(e), collected(e)],
        lambda e: [withdrawn(e), again(e, "prepare")],
        lambda e: [withdrawn(e), collected(e)],
        lambda e: [again(e, "prepare", at="2028-01-01T00:00:00Z")],
    ],
    ids=["suspended", "collected though suspended", "revoked", "collected though revoked", "after the manifest"],
)
def test_release_after_a_stop(finished_run: Finished, make: Callable[[Entries], Entries]) -> None:
    assert codes(finished_run, add(make)) == {5356}


def test_consent_travels_with_the_data(finished_run: Finished) -> None:
    """A release of what was made of an image, after the image was revoked."""

    def make(entries: Entries) -> Entries:
        done = of(entries, RegistrationEntry, stage="prepare").model_copy(update={"run": "0" * 32})
        return [done, withdrawn(entries), again(entries, "train")]

    assert codes(finished_run, add(make)) == {5356}


def test_release_after_the_owners_date(finished_run: Finished) -> None:
    def change(entries: Entries) -> Entries:
        early = {"until": "2026-11-20T11:59:59Z"}
        return [
            e.model_copy(update={"rule": e.rule.model_copy(update=early)})
            if isinstance(e, KeyEntry) and e.image == "data-a"
            else e
            for e in entries
        ]

    assert codes(finished_run, rewrite(change)) == {5356}


def test_release_before_the_agreement(finished_run: Finished) -> None:
    agreed = "manifest"

    def change(entries: Entries) -> Entries:
        return [e.model_copy(update={"manifest": "0" * 64}) if e.kind == agreed else e for e in entries]

    assert codes(finished_run, rewrite(change)) == {5356}
    assert ManifestEntry.model_fields["kind"].default == agreed


def test_simulated_evidence_without_the_owners_consent(finished_run: Finished) -> None:
    def change(entries: Entries) -> Entries:
        return [
            e.model_copy(update={"rule": e.rule.model_copy(update={"simulated": False})})
            if isinstance(e, KeyEntry) and e.image == "data-a"
            else e
            for e in entries
        ]

    assert codes(finished_run, rewrite(change)) == {5357}


@pytest.mark.parametrize(
    "make",
    [
        lambda e: [again(e, "prepare", images=("scripts",))],
        lambda e: [again(e, "prepare", images=("data-a", "data-b", "scripts"))],
        lambda e: [again(e, "prepare", consumer="another")],
        lambda e: [again(e, "prepare"), again(e, "prepare", session="2" * 32)],
    ],
    ids=["less", "more", "to a stage that is none", "twice"],
)
def test_release_that_the_manifest_does_not_grant(finished_run: Finished, make: Callable[[Entries], Entries]) -> None:
    assert 5358 in codes(finished_run, add(make))


def test_release_of_a_key_that_was_never_installed(finished_run: Finished) -> None:
    def change(entries: Entries) -> Entries:
        missing = of(entries, KeyEntry, image="data-a")
        return [e.model_copy(update={"image": "data-b"}) if e is missing else e for e in entries]

    assert 5358 in codes(finished_run, change)


def test_release_of_an_input_that_was_never_registered(finished_run: Finished) -> None:
    assert codes(finished_run, add(lambda e: [again(e, "train")])) == {5365}


# ---- attempts ----------------------------------------------------------------------------------------------------


def second(entries: Entries, stage: str) -> RegistrationEntry:
    return of(entries, RegistrationEntry, stage=stage).model_copy(update={"attempt": 2, "registration": "0" * 64})


def test_second_attempt_registered(finished_run: Finished) -> None:
    assert codes(finished_run, add(lambda e: [second(e, "train")])) == {5359}


def test_release_after_the_registration(finished_run: Finished) -> None:
    run = finished_run.place.folder.state().run
    found = codes(finished_run, add(lambda e: [again(e, "prepare", run=run, attempt=2)]))
    assert found == {5359}


def test_hidden_attempt_is_shown_by_the_log(finished_run: Finished) -> None:
    """The bundle's runner left out an attempt that got keys."""
    run = finished_run.place.folder.state().run

    def make(entries: Entries) -> Entries:
        hidden = again(entries, "answers", run=run, attempt=2, session="3" * 32)
        return [of(entries, AttemptEntry, consumer="answers").model_copy(update={"attempt": 2}), hidden]

    report = finished_run.audit(relog(finished_run.world, finished_run.bundle, "keys-a", add(make)))
    assert code_of_audit(report) == 4350
    assert any(check.group == "release" and check.required for check in report.checks)


def test_attempt_that_the_registrar_never_granted(finished_run: Finished) -> None:
    def change(entries: Entries) -> Entries:
        granted = of(entries, AttemptEntry, consumer="train")
        return [e.model_copy(update={"attempt": 9}) if e is granted else e for e in entries]

    assert codes(finished_run, rewrite(change)) == {5363}


def test_run_that_the_registrar_never_granted(finished_run: Finished) -> None:
    def change(entries: Entries) -> Entries:
        granted = of(entries, RunEntry)
        return [e.model_copy(update={"run": "0" * 32}) if e is granted else e for e in entries]

    assert codes(finished_run, rewrite(change)) == {5363}


@pytest.mark.parametrize("field", ["claims", "evidence", "grant", "sign"])
def test_release_logged_otherwise_than_answered(finished_run: Finished, field: str) -> None:
    def change(entries: Entries) -> Entries:
        said = of(entries, ReleaseEntry, consumer="train")
        return [e.model_copy(update={field: "0" * 64}) if e is said else e for e in entries]

    assert 5363 in codes(finished_run, change)


def test_release_left_out_of_the_log(finished_run: Finished) -> None:
    def change(entries: Entries) -> Entries:
        return [e for e in entries if not (isinstance(e, ReleaseEntry) and e.consumer == "train")]

    assert 5363 in codes(finished_run, change)


def test_another_input_released_than_was_registered(finished_run: Finished) -> None:
    def change(entries: Entries) -> Entries:
        said = of(entries, RegistrationEntry, stage="prepare")
        return [e.model_copy(update={"outputs": {"joined": "0" * 64}}) if e is said else e for e in entries]

    assert {5363, 5365} <= codes(finished_run, change)


# ---- rollback, fork ----------------------------------------------------------------------------------------------


def test_rolled_back_log_is_older_than_its_own_receipts(tmp_path: Path) -> None:
    world = World.make(tmp_path, store=lambda name: store_at(f"sqlite:///{tmp_path / name}.db"))
    world.install()
    place = Place.start(world, tmp_path)
    old = place.bundle().key_managers["keys-a"]
    bundle = place.run().bundle()
    stale = rerecord(bundle, "keys-a", head=old.head, account=old.account, refusals=old.refusals)
    assert code_of_audit(verify(stale, at=NOW, pins=PINS)) == 5363
    world.close()


def test_log_that_ends_before_the_head_of_one_of_its_receipts(world: World, tmp_path: Path) -> None:
    """The entry is there, but the key manager has signed a longer log since: the bundle shows an old one."""
    bundle = finished(world, tmp_path).bundle()
    record = bundle.attempts[-1]
    world.run()
    later = world.registrar.register(RegistrationRequest(registration=record.registration))
    registered = {**record.registered, "keys-a": later}
    report = verify(edit(bundle, "train", registered=registered), at=NOW, pins=PINS)
    assert [(check.code, "older" in check.reason) for check in refuted(report)] == [(5363, True)]


def test_forked_log_shows_by_two_heads_of_one_size(finished_run: Finished) -> None:
    assert code_of_audit(finished_run.audit(heads=finished_run.heads)) == 0
    key = finished_run.world.services["keys-a"].desk.core._sign
    size = finished_run.world.stores["keys-a"].size()
    other = TreeHead(key_manager=str(key.public), size=size, root="0" * 64, at="2026-11-20T12:00:00Z")
    report = finished_run.audit(heads=[*finished_run.heads, sign_message(other, key)])
    assert {check.code for check in refuted(report)} == {5367}


def test_receipt_from_a_fork(finished_run: Finished) -> None:
    """A head inside the bundle contradicts the bundle's own log: same size, another root."""

    def change(entries: Entries) -> Entries:
        last = [i for i, e in enumerate(entries) if isinstance(e, ReleaseEntry)][-1]
        genesis = entries[0].model_copy(update={"hpke": "another"})
        return [genesis, *entries[1 : last + 1]]

    assert 5367 in codes(finished_run, change)


def test_log_that_does_not_continue_the_auditors_head(finished_run: Finished, tmp_path: Path) -> None:
    """The auditor holds a head that the bundle's log was never at, and a proof that connects them with nothing."""
    world = World.make(tmp_path)
    world.install()
    place = Place.start(world, tmp_path)
    client = world.clients["keys-a"]
    head = client.head()
    bundle = place.run().bundle(heads=[head])
    assert code_of_audit(verify(bundle, at=NOW, pins=PINS, heads=[head])) == 0
    forked = relog(world, bundle, "keys-a", lambda e: [e[0], e[1].model_copy(update={"at": e[0].at}), *e[2:], e[-1]])
    report = verify(forked, at=NOW, pins=PINS, heads=[head])
    assert any(c.status == "unknown" and "agrees with the head" in c.what for c in report.checks)
    world.close()


def test_log_that_answers_with_a_false_proof(finished_run: Finished, tmp_path: Path) -> None:
    world = World.make(tmp_path)
    world.install()
    place = Place.start(world, tmp_path)
    held = world.clients["keys-a"].head()
    key = world.services["keys-a"].desk.core._sign
    bundle = place.run().bundle(heads=[held])
    lie = TreeHead(key_manager=str(key.public), size=3, root="0" * 64, at="2026-11-20T12:00:00Z")
    size = world.stores["keys-a"].size()
    proof = world.services["keys-a"].desk.consistency(3)
    bundle = rerecord(bundle, "keys-a", consistency=proof)
    report = verify(bundle, at=NOW, pins=PINS, heads=[sign_message(lie, key)])
    assert size > 3
    assert {check.code for check in refuted(report)} == {5406}
    world.close()


# ---- stops that are in order ---------------------------------------------------------------------------------------


def finished(world: World, tmp_path: Path) -> Place:
    return Place.start(world, tmp_path).run()


def test_manifest_suspended_after_the_run(world: World, tmp_path: Path) -> None:
    place = finished(world, tmp_path)
    suspend_manifest(
        world.clients["keys-b"], manifest=world.manifest, identity=IDENTITIES["lab"], reason="mislabelled", at=NOW
    )
    report = verify(place.bundle(), at=NOW, pins=PINS)
    assert refuted(report) == []
    assert code_of_audit(report) == 4350


def test_image_revoked_after_the_run(world: World, tmp_path: Path) -> None:
    place = finished(world, tmp_path)
    revoke_image(
        world.clients["keys-a"], manifest=world.manifest, image="data-a", identity=IDENTITIES["hospital-a"], at=NOW
    )
    report = verify(place.bundle(), at=NOW, pins=PINS)
    assert code_of_audit(report) == 0
    assert [check.what for check in report.checks if "revoked" in check.what] == ["'hospital-a' revoked image 'data-a'"]


def test_collection_by_the_right_party(world: World, tmp_path: Path) -> None:
    place = finished(world, tmp_path)
    run = place.folder.state().run
    collect_output(world.manifest, "metrics", run=run, identity=IDENTITIES["hospital-a"], clients=world.clients)
    report = verify(place.bundle(), at=NOW, pins=PINS)
    assert code_of_audit(report) == 0
    assert {(each.what, each.to) for each in report.released if each.to.startswith("party")} == {
        ("metrics", "party hospital-a")
    }


def test_key_manager_of_other_code(tmp_path: Path) -> None:
    """Its enclave is not the one that the manifest names: nothing it says counts."""

    def other(manifest: Manifest) -> Manifest:
        tee = manifest.tees["keys"].model_copy(update={"measurements": ("33" * 48,)})
        return manifest.model_copy(update={"tees": {**manifest.tees, "keys": tee}})

    world = World.make(tmp_path, change=other)
    for client in world.clients.values():
        client.install_manifest(world.signed)
    bundle = Place.start(world, tmp_path).bundle()
    report = verify(bundle, at=NOW, pins=PINS)
    assert {check.code for check in refuted(report)} == {4402}
    world.close()
