"""The host hands a party findings that the stage's launcher never made: to clear a worker, or to blame another."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.keyworld import IDENTITIES, NOW, World, code_of
from tests.runs import Place, with_offload

from cloister.enclave._findings import RECORD_INFO, sign_findings
from cloister.errors import IntegrityError
from cloister.run import KeptFindings, parse_findings, read_findings
from cloister.wire import SigningKey


def lying(stage: str, attempt: int, halt: object) -> None:
    if stage == "train" and attempt <= 2:
        raise IntegrityError(5701)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    world = World.make(tmp_path, change=with_offload)
    world.install()
    made = Place.start(world, tmp_path)
    made.executor.script = lying
    for _ in range(2):
        assert code_of(made.run) == 5701
    yield made
    world.close()


def both(place: Place) -> tuple[KeptFindings, KeptFindings]:
    first, second = (parse_findings(path.read_bytes()) for path in sorted(place.folder.findings_files()))
    return first, second


def outcome(kept: KeptFindings, place: Place) -> int:
    key = IDENTITIES["hospital-a"].opening_key
    return code_of(lambda: read_findings(kept, place.world.manifest, party="hospital-a", key=key, at=NOW))


def test_findings_changed(place: Place) -> None:
    kept, _ = both(place)
    payload = bytearray(kept.findings.payload)
    payload[-3] ^= 1
    changed = kept.findings.model_copy(update={"payload": bytes(payload)})
    assert outcome(kept.model_copy(update={"findings": changed}), place) == 5001


def test_findings_of_another_attempt(place: Place) -> None:
    first, second = both(place)
    assert outcome(first.model_copy(update={"findings": second.findings}), place) == 5001
    assert outcome(first.model_copy(update={"grant": second.grant}), place) == 3502
    assert outcome(first.model_copy(update={"grant": second.grant, "attempt": 2}), place) == 4156


def test_findings_that_the_host_wrote(place: Place) -> None:
    """Anybody can seal a record to a party; only the attested key can sign it."""
    kept, _ = both(place)
    record = b'{"format": 1, "count": 1, "failures": [{"workers": ["gpu-y"]}]}'
    sealed = {"hospital-a": IDENTITIES["hospital-a"].opening_key.public.seal(record, info=RECORD_INFO)}
    forged = sign_findings(sealed, attempt="0" * 64, key=SigningKey.generate())
    assert outcome(kept.model_copy(update={"findings": forged}), place) == 5001
