import json
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.keyworld import code_of
from tests.runs import Place

from cloister.run import RunFolder
from cloister.run import _state as state_module


def test_state_is_what_was_saved(place: Place) -> None:
    state = place.run().runner().state
    again = RunFolder(place.folder.path).state()
    assert again.model_copy(update={"collaterals": dict(sorted(state.collaterals.items()))}) == state.model_copy(
        update={"collaterals": dict(sorted(state.collaterals.items()))}
    )
    assert again.collaterals == state.collaterals


def test_saving_again_changes_nothing(place: Place) -> None:
    state = place.run().folder.state()
    before = {path: path.stat().st_mtime_ns for path in place.folder.path.glob("attempts/*")}
    place.folder.save(state)
    assert {path: path.stat().st_mtime_ns for path in place.folder.path.glob("attempts/*")} == before
    assert place.folder.state() == state


def test_records_keep_the_order_of_their_grants(place: Place) -> None:
    state = place.run().folder.state()
    extra = [state.attempts[-1].model_copy(update={"attempt": n}) for n in range(2, 14)]
    for record in extra:
        place.folder.save_attempt(record)
    place.folder.save_attempt(extra[0].model_copy(update={"code": 5501}))
    found = place.folder.state().attempts
    assert [record.attempt for record in found] == [1, 1, *range(2, 14)]
    assert found[2].code == 5501


def test_readers_never_see_half_a_file(place: Place) -> None:
    place.run()
    state, stop, seen = place.folder.state(), threading.Event(), list[int]()

    def read() -> None:
        while not stop.is_set():
            seen.append(len(RunFolder(place.folder.path).state().attempts))

    reader = threading.Thread(target=read)
    reader.start()
    for code in range(5000, 5100):
        place.folder.save_attempt(state.attempts[0].model_copy(update={"code": code}))
        place.folder.update(state)
    stop.set()
    reader.join()
    assert set(seen) == {2}


def test_a_write_that_was_cut_off_leaves_the_old_file(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before = place.run().folder.state()

    def broken(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="No space"):
        place.folder.save_attempt(before.attempts[0].model_copy(update={"code": 5501}))
    monkeypatch.undo()
    (place.folder.path / "attempts" / ".000001-prepare-1.json.x").write_bytes(b"half of it")
    assert place.folder.state() == before


@pytest.mark.parametrize(
    ("file", "text", "code"),
    [
        ("run.json", None, 2001),
        ("run.json", "{", 2002),
        ("run.json", "{}", 2005),
        ("run.json", '{"format":"cloister/run/v9"}', 2004),
        ("manifest.json", "[]", 2005),
        ("attempts/000001-prepare-1.json", "{}", 2005),
    ],
)
def test_files_that_are_not_a_runs(place: Place, file: str, text: str | None, code: int) -> None:
    place.run()
    path = place.folder.path / file
    path.unlink() if text is None else path.write_text(text)
    read = place.folder.manifest if file == "manifest.json" else place.folder.state
    assert code_of(read) == code


def test_a_folder_that_cannot_be_written(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = RunFolder(tmp_path / "file" / "run")
    assert code_of(lambda: folder.create(place.folder.manifest(), place.folder.state())) == 2001


def test_state_holds_no_secret(place: Place) -> None:
    place.run()
    whole = b"".join(path.read_bytes() for path in place.folder.path.rglob("*.json"))
    for key in place.world.keys.values():
        assert key.reveal() not in whole
        assert key.reveal().hex().encode() not in whole
    assert json.loads((place.folder.path / "run.json").read_bytes())["format"] == state_module.RUN_FORMAT
