"""Logging: one logger a room, on stderr, as JSON objects when that is asked for, and never a secret."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

import cloister
from cloister.cli import main
from cloister.cli._logging import configure
from cloister.party import Identity, fingerprint

SOURCE = Path(cloister.__file__).parent
LOGGER = re.compile(r"^_log = logging\.getLogger\(\"(.*)\"\)", re.MULTILINE)
FIELDS = {"at", "level", "room", "message"}


@pytest.fixture(autouse=True)
def loggers_come_back() -> Iterator[None]:
    logger = logging.getLogger("cloister")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.fixture
def partner(tmp_path: Path) -> tuple[str, ...]:
    """A command that logs one line and says no prose: it pins a partner."""
    identity = Identity.generate("partner")
    (tmp_path / "partner.pub").write_bytes(identity.public.canonical())
    words = fingerprint(identity.public)
    home = str(tmp_path / "home")
    return "party", "trust", str(tmp_path / "partner.pub"), "--fingerprint", words, "--home", home, "--json"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    output = capsys.readouterr()
    return int(caught.value.code or 0), output.out, output.err


def lines_of(text: str) -> list[dict[str, str]]:
    """Every line of stderr, each one JSON object with exactly the fields that are documented."""
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        assert set(line) == FIELDS
        assert datetime.fromisoformat(line["at"]).utcoffset() == UTC.utcoffset(None)
    return lines


def test_log_json_writes_one_object_a_line(capsys: pytest.CaptureFixture[str], partner: tuple[str, ...]) -> None:
    before = datetime.now(UTC)
    status, out, err = run(capsys, "--log-level", "info", "--log-json", *partner)
    (line,) = lines_of(err)
    (pinned,) = json.loads(out)["pinned"]
    assert (status, line["level"], line["room"]) == (0, "info", "cloister.party")
    assert line["message"] == f"pinned: partner, {pinned['sign']}"
    assert before.replace(microsecond=0) <= datetime.fromisoformat(line["at"]) <= datetime.now(UTC)


def test_the_environment_asks_for_json_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, partner: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CLOISTER_LOG_LEVEL", "info")
    monkeypatch.setenv("CLOISTER_LOG_JSON", "true")
    assert [line["room"] for line in lines_of(run(capsys, *partner)[2])] == ["cloister.party"]
    (Path(partner[-2]) / "pins" / "partner.pub").unlink()
    with pytest.raises(json.JSONDecodeError):
        lines_of(run(capsys, "--no-log-json", *partner)[2])


def test_without_it_a_line_is_text_with_the_same_facts(
    capsys: pytest.CaptureFixture[str], partner: tuple[str, ...]
) -> None:
    (line,) = run(capsys, "--log-level", "info", *partner)[2].splitlines()
    assert " INFO cloister.party: pinned: partner, " in line


def test_by_default_only_warnings_are_told(capsys: pytest.CaptureFixture[str], partner: tuple[str, ...]) -> None:
    assert run(capsys, *partner)[2] == ""


def test_sealing_and_opening_are_logged_by_id_and_size_and_never_with_the_key(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if shutil.which("mksquashfs") is None:
        pytest.skip("mksquashfs is not installed (package squashfs-tools)")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.csv").write_text("x,y\n1,2\n")
    image, key = str(tmp_path / "image"), str(tmp_path / "key")
    log = ("--log-level", "debug", "--log-json")
    sealing = ("seal", str(tmp_path / "data"), "--name", "data", "--to", image, "--key-out", key, "--json")
    _, out, err = run(capsys, *log, *sealing)
    made = json.loads(out)
    told = lines_of(err)
    _, _, err = run(capsys, *log, "image", "verify", image, "--id", made["id"], "--json")
    told += lines_of(err)
    opening = ("image", "open", image, "--id", made["id"], "--key", key, "--to", str(tmp_path / "opened"), "--json")
    told += lines_of(run(capsys, *log, *opening)[2])
    about = f"image {made['id']}, {made['bytes']} bytes"
    assert [line["message"] for line in told] == [f"sealed: {about}", f"verified: {about}", f"opened: {about}"]
    assert {line["room"] for line in told} == {"cloister.seal"}
    secret = json.loads(Path(key).read_text())["key"]
    assert len(secret) > 40
    assert secret not in json.dumps(told)


def test_a_line_break_in_a_message_makes_no_second_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", json=True)
    logging.getLogger("cloister.keys").warning("%s", 'one\n{"room": "cloister.seal"}\u2028two')
    (line,) = lines_of(capsys.readouterr().err)
    assert (line["room"], line["level"]) == ("cloister.keys", "warning")
    assert line["message"] == 'one\n{"room": "cloister.seal"}\u2028two'


def test_a_traceback_stays_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure("debug", json=True)
    try:
        raise ValueError("inside")
    except ValueError:
        logging.getLogger("cloister").debug("internal error", exc_info=True)
    (line,) = [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    assert set(line) == FIELDS | {"traceback"}
    assert line["traceback"].endswith("ValueError: inside")


def test_a_rooms_logger_has_its_name_and_the_documentation_lists_the_rooms() -> None:
    rooms = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    found = {(path.parent, name) for path in SOURCE.rglob("*.py") for name in LOGGER.findall(path.read_text())}
    assert {name for _, name in found} == {f"cloister.{folder.name}" for folder, _ in found}
    assert all(name == f"cloister.{folder.name}" for folder, name in found)
    page = (SOURCE.parents[1] / "docs" / "configuration.md").read_text().partition("## Logging")[2]
    logging_rooms = {name.removeprefix("cloister.") for name in re.findall(r"`(cloister\.[a-z]+)`", page)}
    assert logging_rooms == {folder.name for folder, _ in found}
    silent = re.findall(r"`([a-z]+)`", page.partition("The rooms ")[2].partition(" have no logger")[0])
    assert {*silent, "demo"} == rooms - logging_rooms
