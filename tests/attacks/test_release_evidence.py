"""A launcher that is no enclave of the manifest, or one whose platform the parties do not accept."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.keyworld import LAUNCHER, NOW, World, attester_of, code_of, last_refusal

from cloister.attest import CollateralKnobs, SimulatedSite
from cloister.keys import KeyRule, _core, _entries, parse_entry, verify_service
from cloister.manifest import Manifest


def obtain(world: World, **how: Any) -> int:
    attempt = world.attempt(world.run(), "prepare")
    attempt.attester = attester_of(world, how.pop("code", LAUNCHER), **how)
    return code_of(attempt.obtain)


def changed(tmp_path: Path, tee: dict[str, Any]) -> World:
    """A world whose manifest asks something else of launchers."""

    def change(manifest: Manifest) -> Manifest:
        tees = {**manifest.tees, "launcher": manifest.tees["launcher"].model_copy(update=tee)}
        return manifest.model_copy(update={"tees": tees})

    world = World.make(tmp_path, change=change)
    world.install()
    return world


def test_another_measurement(key_world: World) -> None:
    assert obtain(key_world, code=b"\x99" * 48) == 4402
    refusal = last_refusal(key_world, "keys-a")
    assert (refusal.code, refusal.trace[-1].rule) == (4402, "measurement")


def test_another_kind_of_tee(key_world: World) -> None:
    assert obtain(key_world, code=b"\x11" * 32, tee="sgx") == 4401


def test_debug(key_world: World) -> None:
    assert obtain(key_world, debug=True) == 4141


def test_outdated_platform(key_world: World) -> None:
    assert obtain(key_world, collateral=CollateralKnobs(status="OutOfDate")) == 4403


def test_denied_advisory(tmp_path: Path) -> None:
    world = changed(tmp_path, {"deny_advisories": ("INTEL-SA-00837",), "tcb": ("UpToDate", "SWHardeningNeeded")})
    knobs = CollateralKnobs(status="SWHardeningNeeded", advisories=("INTEL-SA-00837",))
    assert obtain(world, collateral=knobs) == 4404
    other = CollateralKnobs(status="SWHardeningNeeded", advisories=("INTEL-SA-00001",))
    attempt = world.attempt(world.run(), "prepare")
    attempt.attester = attester_of(world, LAUNCHER, collateral=other)
    assert attempt.obtain().granted.images
    world.close()


def test_platform_that_is_not_listed(tmp_path: Path) -> None:
    world = changed(tmp_path, {"platforms": ("0" * 32,)})
    assert obtain(world) == 4405
    world.close()


def test_expired_collateral(key_world: World) -> None:
    attempt = key_world.attempt(key_world.run(), "prepare")
    old = key_world.site.collateral(NOW - timedelta(hours=9), knobs=CollateralKnobs(lifetime=timedelta(hours=1)))
    claims = attempt.claims()
    evidence = attempt.evidence(claims).model_copy(update={"collateral": old})
    request = attempt.session.request("keys-a", evidence)
    assert code_of(lambda: key_world.clients["keys-a"].release(request)) // 100 == 41


def test_evidence_without_collateral(key_world: World) -> None:
    assert obtain(key_world, attach_collateral=False) // 100 == 41


def test_another_sites_root(key_world: World, tmp_path: Path) -> None:
    site = SimulatedSite.create(tmp_path / "other", created=NOW - timedelta(days=1))
    attempt = key_world.attempt(key_world.run(), "prepare")
    attempt.attester = site.attester(LAUNCHER, clock=key_world.clock)
    assert code_of(attempt.obtain) // 100 == 41


def test_simulated_without_the_manifests_consent(tmp_path: Path) -> None:
    """A manifest without a development root accepts hardware alone, whatever an owner's rule says."""
    world = changed(tmp_path, {"simulated_root": None, "rtmrs": (("any",) * 4,)})
    assert obtain(world) // 100 == 41
    world.close()


def refused_by_owner(world: World, stage: str = "prepare") -> int:
    return code_of(world.attempt(world.run(), stage).obtain)


def without_consent_of(world: World, image: str) -> World:
    world.install(*(name for name in world.manifest.images if name != image))
    world.install_one(image, simulated=False)
    return world


def test_simulated_without_one_owners_consent(tmp_path: Path) -> None:
    world = without_consent_of(World.make(tmp_path), "data-b")
    assert refused_by_owner(world) == 3413
    assert last_refusal(world, "keys-b").code == 3413
    world.close()


def test_owners_consent_travels_with_the_data(key_world: World, tmp_path: Path) -> None:
    """A stage that never touches the image itself, only what was made of it, still needs its owner's consent."""
    plan = key_world.services["keys-b"].desk.core._state.agreements[key_world.manifest.id]
    assert plan.consumers["train"].images == ()
    assert plan.consumers["train"].reachable == ("data-b",)
    world = without_consent_of(World.make(tmp_path / "w"), "data-b")
    attempt = world.attempt(world.run(), "train")
    request = attempt.session.request("keys-b", attempt.evidence(attempt.claims()))
    assert code_of(lambda: world.clients["keys-b"].release(request)) == 3413
    world.close()


def policy(claim: str, operator: str, value: object) -> dict[str, Any]:
    return {"version": "1.0.0", "anyOf": [{"authority": "hospital-a", "allOf": [{"claim": claim, operator: value}]}]}


def with_policy(tmp_path: Path, terms: dict[str, Any]) -> World:
    world = World.make(tmp_path)
    world.install("data-b", "scripts")
    world.install_one("data-a", policy=terms)
    return world


def test_owners_policy_that_does_not_hold(tmp_path: Path) -> None:
    world = with_policy(tmp_path, policy("tee.platform", "equals", "0" * 32))
    assert refused_by_owner(world) == 3414
    step = last_refusal(world, "keys-a").trace[-1]
    assert step.outcome == "failed"
    assert step.policy is not None
    assert step.policy["parts"][0]["parts"][0]["claim"] == "tee.platform"
    world.close()


def test_owners_policy_over_a_claim_that_is_missing(tmp_path: Path) -> None:
    world = with_policy(tmp_path, policy("tee.no_such_claim", "notEquals", "x"))
    assert refused_by_owner(world) == 3414
    world.close()


def test_owners_policy_that_holds(tmp_path: Path) -> None:
    world = with_policy(tmp_path, policy("pipeline.stage", "in", ["prepare", "train"]))
    assert world.attempt(world.run(), "prepare").obtain().granted.images
    world.close()


def test_a_trace_that_nobody_could_read_back_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are bounded where they are read: one that was written larger would be the key manager's last start."""
    held = policy("pipeline.stage", "equals", "prepare")["anyOf"][0]
    world = with_policy(tmp_path, {"version": "1.0.0", "anyOf": [held] * 20})
    attempt = world.attempt(world.run(), "prepare")
    store = world.stores["keys-a"]
    largest = max(map(len, store.read(0, store.size())))
    for module in (_core, _entries):
        monkeypatch.setattr(module, "MAX_ENTRY_BYTES", largest)
    request = attempt.session.request("keys-a", attempt.evidence(attempt.claims()))
    assert code_of(lambda: world.clients["keys-a"].release(request)) == 3437
    assert (last_refusal(world, "keys-a").code, last_refusal(world, "keys-a").trace) == (3437, ())
    world.restart("keys-a")
    assert "release" not in {parse_entry(leaf).kind for leaf in store.read(0, store.size())}
    world.close()


def test_policy_with_an_unknown_operator_is_refused_at_install(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    world.install("scripts")
    terms = policy("tee.platform", "matches", ".*")
    assert code_of(lambda: world.install_one("data-a", policy=terms)) == 2102
    assert last_refusal(world, "keys-a").action == "install-key"
    world.close()


def verify(world: World, client: Any, **how: Any) -> Callable[[], object]:
    return lambda: verify_service(client, world.manifest, "keys-a", at=world.clock(), **how)


def test_owner_refuses_a_key_manager_that_runs_other_code(tmp_path: Path) -> None:
    def change(manifest: Manifest) -> Manifest:
        tees = {**manifest.tees, "keys": manifest.tees["keys"].model_copy(update={"measurements": ("0" * 96,)})}
        return manifest.model_copy(update={"tees": tees})

    world = World.make(tmp_path, change=change)
    assert code_of(verify(world, world.clients["keys-a"], allow_simulated=True)) == 4402
    world.close()


def test_owner_refuses_simulated_key_manager_without_own_consent(key_world: World) -> None:
    assert code_of(verify(key_world, key_world.clients["keys-a"])) == 3435


def test_rule_wider_than_the_manifest(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    world.install("scripts")
    assert code_of(lambda: world.install_one("data-a", uses=6)) == 3408
    assert KeyRule(uses=5).uses == world.manifest.images["data-a"].uses
    world.close()
