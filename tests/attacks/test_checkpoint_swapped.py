"""A host that puts another checkpoint in the last one's place, and a script that makes one of what is not its own."""

import os
from pathlib import Path

import pytest
from tests.enclaves import World
from tests.keyworld import code_of

from cloister.enclave import _checkpoint as module
from cloister.keys import CheckpointRecord
from cloister.manifest import CheckpointTerms
from cloister.wire import Secret, digest

TERMS = {"checkpoint": CheckpointTerms(max_bytes=1 << 16)}
SAVES = """
import os, sys, time
state = "/checkpoint/state"
if os.path.exists(state):
    open("/outputs/model/n", "w").write(open(state).read())
    sys.exit(0)
for number in ("1", "2"):
    open("/checkpoint/new", "w").write(number)
    os.replace("/checkpoint/new", state)
    time.sleep(0.4)
sys.exit(1)
"""


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_S", 0.02)


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A stage whose first attempt saved twice and failed; the host kept the first checkpoint too."""
    monkeypatch.setattr(module, "remove_file", lambda _: None)
    here = World.build(tmp_path / "world", SAVES, stage=TERMS)
    assert code(here) == 5501
    assert [each.sequence for each in here.saved] == [1, 2]
    return here


def code(here: World, attempt: int = 1) -> int:
    grant = here.granted(here.signed.manifest, attempt=attempt)
    outcome = here.launch(here.job.model_copy(update={"grant": grant}))
    return 0 if outcome.failure is None else outcome.failure.code


def kept(here: World, sequence: int = 2) -> Path:
    return here.folder / f"train.checkpoint.attempt1.{sequence}.cloister"


def test_the_last_checkpoint_itself_is_accepted(killed: World) -> None:
    outcome = killed.launch(killed.job.model_copy(update={"grant": killed.granted(killed.signed.manifest, attempt=2)}))
    assert (killed.unpacked(outcome) / "n").read_text() == "2"


def test_yesterdays_checkpoint_in_the_last_ones_place_is_refused(killed: World) -> None:
    kept(killed).write_bytes(kept(killed, 1).read_bytes())
    assert code(killed, 2) == 5507
    assert not os.path.exists(killed.job.outputs["model"])


def test_a_checkpoint_that_is_withheld_is_refused_as_a_rolled_back_one(killed: World) -> None:
    kept(killed).unlink()
    assert code(killed, 2) == 5507


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw[:-1],
        lambda raw: raw + b"\0",
        lambda raw: raw[:40],
        lambda raw: b"",
        lambda raw: raw[:60] + bytes([raw[60] ^ 1]) + raw[61:],
        lambda raw: raw[:30] + bytes([raw[30] ^ 1]) + raw[31:],
        lambda raw: raw[:-1] + bytes([raw[-1] ^ 128]),
        lambda raw: raw * 3,
    ],
)
def test_a_checkpoint_that_was_changed_or_cut_off_is_refused(killed: World, change) -> None:
    kept(killed).write_bytes(change(kept(killed).read_bytes()))
    assert code(killed, 2) == 5507
    assert not list((killed.folder / "private").rglob("state"))


def test_a_file_that_is_far_too_large_is_not_read(killed: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._HashingReader, "read", lambda *_: pytest.fail("read"))
    os.truncate(kept(killed), 1 << 40)
    assert code(killed, 2) == 5507


def recorded(here: World, raw: bytes, *, attempt: int = 1, sequence: int = 2) -> None:
    """A key manager that lies: it says that these bytes are the last checkpoint."""
    here.saved.append(CheckpointRecord(attempt=attempt, sequence=sequence, checkpoint=digest(raw)))
    (here.folder / f"train.checkpoint.attempt{attempt}.{sequence}.cloister").write_bytes(raw)


def test_a_lying_key_manager_cannot_pass_an_older_number_off_as_the_last(killed: World) -> None:
    recorded(killed, kept(killed, 1).read_bytes())
    assert code(killed, 2) == 5508


def test_nor_another_attempts(killed: World) -> None:
    recorded(killed, kept(killed).read_bytes(), attempt=2)
    assert code(killed, 3) == 5508


def test_nor_another_runs_or_stages_whose_key_is_another(killed: World, tmp_path: Path) -> None:
    other = World.build(tmp_path / "other", SAVES, stage=TERMS)
    assert code(other) == 5501
    recorded(killed, kept(other).read_bytes())
    assert code(killed, 2) == 5508


def test_nor_bytes_of_its_own(killed: World) -> None:
    raw = kept(killed).read_bytes()
    recorded(killed, raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:])
    assert code(killed, 2) == 5508


def test_a_state_that_is_shorter_than_it_says_is_none(killed: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sealed by a launcher that differs from ours: the length is believed only when the bytes are there."""
    head = module._HEAD.pack(module._MAGIC, 1, 2, b"s" * 32)
    pieces = module.Pieces(killed.checkpoint_key, salt=b"s" * 32, label=module._LABEL, head=head)
    for plain in (module._LENGTH.pack(1 << 60) + b"x", b"1234", b""):
        recorded(killed, head + pieces.seal(plain, number=0, last=True))
        assert code(killed, 2) == 5508


def test_the_key_is_not_the_keys_holders_guess(killed: World) -> None:
    killed.checkpoint_key = Secret(bytes(32))
    assert code(killed, 2) == 5508


# ---- the script ------------------------------------------------------------------------------------------------------

STAY = "\nimport time; time.sleep(10)"


@pytest.mark.parametrize(
    "script",
    [
        "os.symlink('/inputs/data/x.txt', '/checkpoint/state')",
        "os.symlink('/etc/passwd', '/checkpoint/state')",
        "os.symlink('/proc/self/mem', '/checkpoint/state')",
        "os.symlink('nowhere', '/checkpoint/state')",
        "os.mkfifo('/checkpoint/state')",
        "os.mkdir('/checkpoint/state')",
        "import socket; socket.socket(socket.AF_UNIX).bind('/checkpoint/state')",
    ],
)
def test_what_is_no_ordinary_file_is_never_taken_and_ends_the_stage(tmp_path: Path, script: str) -> None:
    here = World.build(tmp_path / "world", "import os; " + script + STAY, stage=TERMS)
    assert code(here) == 3507
    assert not here.saved
    assert not list(here.folder.glob("train.checkpoint.*"))


@pytest.mark.parametrize("write", ["f.write(bytes((1 << 16) + 1))", "f.truncate(1 << 40)"])
def test_more_bytes_than_agreed_are_not_sealed_and_end_the_stage(tmp_path: Path, write: str) -> None:
    script = f"with open('/checkpoint/new', 'wb') as f: {write}\n"
    script += "import os; os.replace('/checkpoint/new', '/checkpoint/state')"
    here = World.build(tmp_path / "world", script + STAY, stage=TERMS)
    assert code(here) == 3508
    assert not here.saved


def test_exactly_the_agreed_bytes_are_saved(tmp_path: Path) -> None:
    script = "open('/checkpoint/state', 'wb').write(bytes(1 << 16)); import time; time.sleep(0.5)"
    here = World.build(tmp_path / "world", script, stage=TERMS)
    assert code(here) == 0
    assert here.saved


def test_a_file_of_another_mount_cannot_be_linked_in(tmp_path: Path) -> None:
    script = "import os; os.link('/inputs/data/x.txt', '/checkpoint/state')"
    assert code(World.build(tmp_path / "world", script, stage=TERMS)) == 5501


def test_a_fault_at_the_very_end_is_not_missed(tmp_path: Path) -> None:
    script = "import os, time; os.symlink('/etc/passwd', '/checkpoint/state'); time.sleep(0.3)"
    assert code(World.build(tmp_path / "world", script, stage=TERMS)) == 3507


def test_a_manifest_cannot_set_the_variable(tmp_path: Path) -> None:
    stage = {**TERMS, "env": {"CLOISTER_CHECKPOINT": "/outputs/model"}}
    assert code_of(lambda: World.build(tmp_path / "world", "", stage=stage)) == 3304
