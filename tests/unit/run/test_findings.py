import json
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.keyworld import IDENTITIES, NOW, World, code_of
from tests.runs import Place, with_offload

from cloister.errors import IntegrityError
from cloister.run import KeptFindings, parse_findings, read_findings


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    world = World.make(tmp_path, change=with_offload)
    world.install()
    made = Place.start(world, tmp_path)
    made.executor.script = lying
    yield made
    world.close()


def lying(stage: str, attempt: int, halt: object) -> None:
    if stage == "train" and attempt == 1:
        raise IntegrityError(5701)


def kept(place: Place) -> KeptFindings:
    [path] = place.folder.findings_files()
    return parse_findings(path.read_bytes())


def read(found: KeptFindings, place: Place, party: str = "hospital-a") -> object:
    key = IDENTITIES[party].opening_key
    return read_findings(found, place.world.manifest, party=party, key=key, at=NOW)


def test_a_lie_ends_the_run_and_is_never_tried_again(place: Place) -> None:
    assert code_of(place.run) == 5701
    assert place.said()[-2:] == [("train", 1, "started"), ("train", 1, "failed")]
    assert [record.code for record in place.folder.state().attempts] == [None, 5701]


def test_an_owner_of_the_data_reads_what_was_wrong(place: Place) -> None:
    code_of(place.run)
    found = read(kept(place), place)
    assert (found.count, found.failures) == (1, ({"layer": "classifier.first", "step": 3},))
    assert found.session == {"run": place.folder.state().run, "stage": "train", "assurance": "simulated"}
    assert place.folder.findings_files()[0].name == "train-1.json"


@pytest.mark.parametrize("party", ["hospital-b", "lab", "doctor"])
def test_an_operator_reads_nothing_even_as_an_owner(place: Place, party: str) -> None:
    code_of(place.run)
    assert code_of(lambda: read(kept(place), place, party)) == 2502


def test_the_hosts_folder_holds_nothing_of_it_in_the_clear(place: Place) -> None:
    code_of(place.run)
    files = [path.read_bytes() for path in place.folder.path.rglob("*") if path.is_file()]
    signed = json.loads(kept(place).findings.payload)
    assert set(signed["sealed"]) == {"hospital-a"}
    for data in (*files, b64decode(signed["sealed"]["hospital-a"])):
        assert b'"failures"' not in data
        assert b'"layer"' not in data


def test_the_parties_may_have_the_stage_attempted_again(place: Place) -> None:
    """After they read them: the host says ``resume``, and another attempt is granted like any other."""
    code_of(place.run)
    place.run()
    assert place.said()[-1] == ("train", 2, "finished")


def test_a_stage_that_ends_well_leaves_none(place: Place) -> None:
    place.executor.script = lambda *_: None
    place.run()
    assert place.folder.findings_files() == []


def test_the_launcher_is_told_where_the_workers_are(place: Place) -> None:
    place.host = place.host.model_copy(update={"workers": {"gpu-y": "tcp://10.0.0.7:9000"}})
    code_of(place.run)
    first, second = place.executor.jobs
    assert first.workers == {}
    assert second.workers == {
        "gpu-x": "tcp://gpu-x:8430", "gpu-y": "tcp://10.0.0.7:9000", "gpu-z": "tcp://gpu-z:8430"
    }  # fmt: skip


def test_an_address_for_a_worker_that_the_manifest_does_not_name(place: Place) -> None:
    place.host = place.host.model_copy(update={"workers": {"gpu-q": "tcp://10.0.0.7:9000"}})
    assert code_of(place.run) == 2554


@pytest.mark.parametrize("record", [b"[]", b'{"format": 2, "failures": []}', b'{"format": 1}', b"{"])
def test_a_record_that_is_none(place: Place, record: bytes) -> None:
    place.executor.record = record
    code_of(place.run)
    assert code_of(lambda: read(kept(place), place)) == (2002 if record == b"{" else 2005)


@pytest.mark.parametrize(("data", "code"), [(b"{", 2002), (b"[]", 2005), (b'{"format":"x"}', 2004), (b"{}", 2005)])
def test_files_that_are_no_findings(data: bytes, code: int) -> None:
    assert code_of(lambda: parse_findings(data)) == code
