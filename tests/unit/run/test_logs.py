import pytest
from tests.keyworld import IDENTITIES, NOW, code_of
from tests.runs import Place

from cloister.errors import IntegrityError
from cloister.run import KeptLog, parse_log, read_log


def kept(place: Place) -> KeptLog:
    [path] = place.folder.log_files()
    return parse_log(path.read_bytes())


def read(log: KeptLog, place: Place, party: str = "hospital-a", **how: object) -> tuple[bytes, object]:
    key = IDENTITIES[party].opening_key
    return read_log(log, place.world.manifest, party=party, key=key, **{"at": NOW, **how})


def test_a_named_party_reads_what_the_script_printed(place: Place) -> None:
    place.executor.text = "épisode 1\n".encode()
    place.run()
    text, facts = read(kept(place), place)
    assert text.decode() == "épisode 1\n"
    assert facts == {"run": place.folder.state().run, "stage": "train", "assurance": "simulated"}


def test_the_log_of_a_failed_attempt_is_kept_too(place: Place) -> None:
    def script(stage: str, attempt: int, halt: object) -> None:
        if stage == "train" and attempt == 1:
            raise IntegrityError(5501)

    place.executor.script = script
    place.run()
    assert [path.name for path in place.folder.log_files()] == ["train-1.json", "train-2.json"]
    text, _ = read(parse_log(place.folder.log_files()[0].read_bytes()), place)
    assert text == b"epoch 1\n"


def test_nobody_else_reads_it_and_the_bundle_does_not_carry_it(place: Place) -> None:
    place.run()
    assert code_of(lambda: read(kept(place), place, "hospital-b")) == 2502
    assert b"epoch 1" not in b"".join(p.read_bytes() for p in place.folder.path.rglob("*") if p.is_file())
    assert kept(place).log.payload not in place.bundle().canonical()
    wrong = IDENTITIES["hospital-b"].opening_key
    assert code_of(lambda: read_log(kept(place), place.world.manifest, party="hospital-a", key=wrong, at=NOW)) == 5002


@pytest.mark.parametrize(("data", "code"), [(b"{", 2002), (b"[]", 2005), (b'{"format":"x"}', 2004), (b"{}", 2005)])
def test_files_that_are_no_log(data: bytes, code: int) -> None:
    assert code_of(lambda: parse_log(data)) == code
