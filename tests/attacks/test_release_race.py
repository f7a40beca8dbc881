"""What was true when the evidence was looked at, and no longer is when the keys would leave."""

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.keyworld import IDENTITIES, World

from cloister.keys import revoke_image, suspend_manifest


def decided_after(world: World, act: Callable[[], object]) -> int:
    """The code of a release that was prepared, evidence and all, before ``act`` and decided after it; 0 if released."""
    attempt = world.attempt(world.run(), "prepare")
    request = attempt.session.request("keys-a", attempt.evidence(attempt.claims()))
    core = world.services["keys-a"].desk.core
    prepared = core.prepare("release", request, now=world.clock())
    assert prepared.verdict is not None
    act()
    outcome = core.decide(prepared, now=world.clock()).outcome
    return 0 if outcome.refused is None else outcome.refused.code


def stop(world: World) -> dict[str, Any]:
    return {"manifest": world.manifest, "at": world.clock()}


def test_nothing_happened_in_between(key_world: World) -> None:
    assert decided_after(key_world, lambda: None) == 0


def test_suspended_in_between(key_world: World) -> None:
    client, who = key_world.clients["keys-a"], IDENTITIES["lab"]
    act = partial(suspend_manifest, client, identity=who, reason="", **stop(key_world))
    assert decided_after(key_world, act) == 3404


def test_revoked_in_between(key_world: World) -> None:
    client, who = key_world.clients["keys-a"], IDENTITIES["hospital-a"]
    act = partial(revoke_image, client, image="data-a", identity=who, **stop(key_world))
    assert decided_after(key_world, act) == 3410


def test_session_expired_in_between(key_world: World) -> None:
    assert decided_after(key_world, lambda: key_world.clock.turn(hours=1)) == 3422


def test_manifest_ended_in_between(key_world: World) -> None:
    assert decided_after(key_world, lambda: key_world.clock.turn(days=400)) == 3403
