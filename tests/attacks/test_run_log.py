"""The host hands a party a log that the stage's launcher never wrote, or another attempt's."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from tests.keyworld import IDENTITIES, NOW, World, code_of
from tests.runs import Place, with_logs

from cloister.enclave import seal_log
from cloister.errors import IntegrityError
from cloister.run import KeptLog, parse_log, read_log
from cloister.wire import SealingKey, SigningKey


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    world = World.make(tmp_path, change=with_logs)
    world.install()
    made = Place.start(world, tmp_path)
    made.executor.script = _fails_once
    yield made.run()
    world.close()


def _fails_once(stage: str, attempt: int, halt: object) -> None:
    if stage == "train" and attempt == 1:
        raise IntegrityError(5501)


def logs(place: Place) -> tuple[KeptLog, KeptLog]:
    """Those of the attempt that failed and of the one that ended."""
    first, second = (parse_log(path.read_bytes()) for path in place.folder.log_files())
    return first, second


def read(log: KeptLog, place: Place, **how: object) -> Callable[[], object]:
    key = IDENTITIES["hospital-a"].opening_key
    how = {"party": "hospital-a", "at": NOW, **how}
    return lambda: read_log(log, place.world.manifest, key=key, **how)


def test_log_changed(place: Place) -> None:
    log, _ = logs(place)
    payload = bytearray(log.log.payload)
    payload[-3] ^= 1
    changed = log.log.model_copy(update={"payload": bytes(payload)})
    assert code_of(read(log.model_copy(update={"log": changed}), place)) == 5001


def test_log_of_another_attempt(place: Place) -> None:
    failed, ended = logs(place)
    assert code_of(read(failed.model_copy(update={"log": ended.log}), place)) == 5001
    assert code_of(read(failed.model_copy(update={"grant": ended.grant}), place)) == 3502
    assert code_of(read(failed.model_copy(update={"grant": ended.grant, "attempt": 2}), place)) == 4156
    assert code_of(read(failed.model_copy(update={"attempt": 2}), place)) == 3502


def test_log_that_the_host_wrote(place: Place) -> None:
    """Anybody can seal to the party's public key; only the attested key signs."""
    log, _ = logs(place)
    mine = SigningKey.generate()
    reader = SealingKey.parse(place.world.manifest.parties["hospital-a"].hpke)
    forged = seal_log(b"accuracy 0.99", readers={"hospital-a": reader}, attempt="0" * 64, key=mine)
    assert code_of(read(log.model_copy(update={"log": forged}), place)) == 5001
    claims = log.claims.model_copy(update={"sign": str(mine.public)})
    assert code_of(read(log.model_copy(update={"log": forged, "claims": claims}), place)) == 4150


def test_log_of_other_code(place: Place) -> None:
    log, _ = logs(place)
    evidence = place.world.site.attester(b"\x44" * 48, clock=place.world.clock).attest(log.claims.report_data())
    assert code_of(read(log.model_copy(update={"evidence": evidence}), place)) == 4402


def test_evidence_that_has_expired(place: Place) -> None:
    log, _ = logs(place)
    assert code_of(read(log, place, at=NOW + timedelta(days=400))) == 4131


def test_stage_that_the_manifest_does_not_have(place: Place) -> None:
    log, _ = logs(place)
    assert code_of(read(log.model_copy(update={"stage": "another"}), place)) == 2501
