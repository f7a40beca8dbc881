"""A key manager whose state key is in k of n administrators' hands."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.keyworld import KEYS, NOW, World, attester_of, code_of

from cloister.keys import (
    EvidenceRequest,
    KeyManagerClient,
    LocalTransport,
    MemoryStore,
    Service,
    UnlockRequest,
    create_app,
    initialise,
    unlock,
)
from cloister.keys._binding import unlock_info
from cloister.manifest import Tee
from cloister.party import Identity
from cloister.wire import Envelope, SealingKey, VerifyKey

ADMINISTRATORS = {name: Identity.generate(name) for name in ("ada", "bob", "eve")}


class Locked:
    """A locked service of 2 of 3 administrators, and how to reach it."""

    def __init__(self, world: World) -> None:
        self.world, self.store = world, MemoryStore()
        keys = {name: identity.opening_key.public for name, identity in ADMINISTRATORS.items()}
        self.made = initialise(self.store, now=NOW, administrators=keys, threshold=2)
        self.transports: list[LocalTransport] = []
        self.start()

    def start(self) -> None:
        self.service = Service(self.store, attester=attester_of(self.world, KEYS), clock=self.world.clock)
        self.transports.append(LocalTransport(create_app(self.service)))
        key = VerifyKey.parse(self.made.sign)
        self.client = KeyManagerClient("http://keys.test", key, transport=self.transports[-1])

    def deliver(self, name: str, share: Envelope | None = None, **how: Any) -> Any:
        tee = how.pop("tee", self.world.manifest.tees["keys"])
        given = {"tee": tee, "identity": ADMINISTRATORS[name], "at": NOW, "allow_simulated": True, **how}
        return unlock(self.client, share or self.made.shares[name], **given)

    def close(self) -> None:
        if not self.service.locked:
            self.service.desk.close()
        for transport in self.transports:
            transport.close()


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Locked]:
    world = World.make(tmp_path)
    made = Locked(world)
    yield made
    made.close()
    world.close()


def test_two_of_three_open_it(locked: Locked) -> None:
    assert locked.service.locked
    assert locked.deliver("eve").received == 1
    assert locked.service.locked
    assert locked.deliver("ada").received == 2
    assert not locked.service.locked
    assert locked.client.head()
    assert locked.client.evidence()


def test_restart_locks_it_again(locked: Locked) -> None:
    locked.deliver("ada")
    locked.deliver("bob")
    locked.service.desk.close()
    locked.start()
    assert locked.service.locked
    locked.deliver("bob")
    locked.deliver("eve")
    assert not locked.service.locked


def test_one_share_twice_is_one_share(locked: Locked) -> None:
    assert locked.deliver("ada").received == 1
    assert locked.deliver("ada").received == 1
    assert locked.service.locked


def test_locked_service_answers_nothing_else(locked: Locked) -> None:
    assert code_of(lambda: locked.service.desk) == 3433
    assert code_of(locked.client.head) == 6403  # it cannot even sign its refusal
    assert code_of(lambda: locked.client.start_run("0" * 64)) == 6403
    assert code_of(locked.client.evidence) == 5001


def test_open_service_takes_no_share(locked: Locked) -> None:
    locked.deliver("ada")
    locked.deliver("bob")
    assert code_of(lambda: locked.deliver("eve")) == 3434


def test_share_goes_to_no_other_code(locked: Locked) -> None:
    other = Tee(type="tdx", measurements=("9" * 96,), simulated_root=locked.world.site.root_spki)
    assert code_of(lambda: locked.deliver("ada", tee=other)) == 4402
    assert locked.service.locked


def test_share_goes_to_no_simulated_enclave_without_consent(locked: Locked) -> None:
    assert code_of(lambda: locked.deliver("ada", allow_simulated=False)) == 3435


def test_share_of_another_administrator_does_not_open(locked: Locked) -> None:
    assert code_of(lambda: locked.deliver("ada", locked.made.shares["bob"])) == 5410


def test_share_of_another_store(locked: Locked) -> None:
    other = Locked(locked.world)
    assert code_of(lambda: locked.deliver("ada", other.made.shares["ada"])) == 5001
    other.close()


def sealed_to(locked: Locked, name: str, piece: bytes, **change: str) -> UnlockRequest:
    _, said = locked.client.locked_evidence(b"n" * 32)
    claims = said.claims.digest()
    key = SealingKey.parse(said.claims.hpke)
    sealed = key.seal(piece, info=unlock_info(administrator=name, claims=change.get("bound", claims)))
    return UnlockRequest(administrator=name, claims=change.get("claims", claims), sealed=sealed)


def test_wrong_share_is_turned_away_by_itself(locked: Locked) -> None:
    """A stranger's share must not spoil the honest ones that are there."""
    locked.deliver("ada")
    assert code_of(lambda: locked.service.unlock(sealed_to(locked, "bob", bytes(32)))) == 5410
    assert code_of(lambda: locked.service.unlock(sealed_to(locked, "mallory", bytes(32)))) == 5410
    locked.deliver("bob")
    assert not locked.service.locked


def test_share_for_evidence_that_was_never_given(locked: Locked) -> None:
    assert code_of(lambda: locked.service.unlock(sealed_to(locked, "ada", bytes(32), claims="0" * 64))) == 3421


def test_share_bound_to_other_evidence(locked: Locked) -> None:
    assert code_of(lambda: locked.service.unlock(sealed_to(locked, "ada", bytes(32), bound="0" * 64))) == 5002


def test_questions_to_a_locked_service_are_bounded(locked: Locked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister.keys._service.MAX_QUESTIONS", 2)
    for number in range(2):
        locked.service.evidence(EvidenceRequest(nonce=bytes([number]) * 32))
    assert code_of(lambda: locked.service.evidence(EvidenceRequest(nonce=b"x" * 32))) == 3425


def test_state_key_needs_a_tee_that_seals_or_administrators() -> None:
    assert code_of(lambda: initialise(MemoryStore(), now=NOW)) == 2404


def test_threshold_above_the_number_of_administrators() -> None:
    keys = {"ada": ADMINISTRATORS["ada"].opening_key.public}
    assert code_of(lambda: initialise(MemoryStore(), now=NOW, administrators=keys, threshold=2)) == 2404
