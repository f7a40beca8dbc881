"""Checkpoints of a stage: what a script renames to /checkpoint/state is there at its next attempt's start."""

import secrets
import threading
from pathlib import Path

import pytest
from tests.enclaves import IDENTITIES, World

from cloister.enclave import _checkpoint as module
from cloister.enclave import open_log
from cloister.errors import CloisterError, PeerError, RefusedError
from cloister.keys._checkpoints import MAX_CHECKPOINTS
from cloister.manifest import CheckpointTerms
from cloister.receipt import Resumed, verify_receipt

TERMS = {"checkpoint": CheckpointTerms(max_bytes=1 << 20), "logs": ("hospital",)}
COUNT = """
import os, pathlib, sys, time
folder = pathlib.Path(os.environ["CLOISTER_CHECKPOINT"])
state, kept = folder / "state", pathlib.Path("/outputs/model/n")
number = int(state.read_text()) if state.exists() else 0
print("starts at", number)
while number < 6:
    number += 1
    (folder / "new").write_text(str(number))
    os.replace(folder / "new", state)
    time.sleep(0.05)
    if {ends}:
        sys.exit(3)
kept.write_text(str(number))
"""


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_S", 0.02)


def build(tmp_path: Path, script: str, **options) -> World:
    return World.build(tmp_path / "world", script, **{"stage": TERMS, **options})


def granted(here: World, attempt: int):
    grant = here.granted(here.signed.manifest, attempt=attempt)
    return here.job.model_copy(update={"grant": grant})


def facts_of(here: World, outcome):
    return verify_receipt(outcome.require().receipt, key=here.session.public, manifest=here.signed.manifest)


def code_of(outcome) -> int:
    return 0 if outcome.failure is None else outcome.failure.code


def test_a_stage_that_fails_goes_on_from_what_it_saved_last(tmp_path):
    here = build(tmp_path, COUNT.replace("{ends}", "number in (2, 4)"))
    assert code_of(here.launch(granted(here, 1))) == 5501
    assert (here.saved[-1].attempt, here.saved[-1].sequence) == (1, len(here.saved))
    assert code_of(here.launch(granted(here, 2))) == 5501
    outcome = here.launch(granted(here, 3))
    assert (here.unpacked(outcome) / "n").read_text() == "6"
    before = [each for each in here.saved if each.attempt == 2][-1]
    assert facts_of(here, outcome).resumed == Resumed(attempt=2, sequence=before.sequence)
    assert before.sequence > [each for each in here.saved if each.attempt == 1][-1].sequence


def test_a_first_attempt_finds_an_empty_folder_and_its_receipt_says_nothing(tmp_path):
    script = "import os; assert os.listdir('/checkpoint') == []"
    here = build(tmp_path, script)
    outcome = here.launch()
    assert facts_of(here, outcome).resumed is None
    assert b"resumed" not in outcome.require().receipt.payload


def test_a_stage_without_terms_sees_neither_folder_nor_variable(tmp_path):
    script = "import os; assert not os.path.exists('/checkpoint') and 'CLOISTER_CHECKPOINT' not in os.environ"
    here = build(tmp_path, script, stage={})
    assert here.launch().require().images
    assert not here.saved


def test_a_state_of_any_length_comes_back(tmp_path):
    script = (
        "import os, sys; p = '/checkpoint/state'\n"
        "if os.path.exists(p): open('/outputs/model/x', 'wb').write(open(p, 'rb').read()); sys.exit(0)\n"
        "open('/checkpoint/new', 'wb').write(bytes(range(256)) * {n}); os.replace('/checkpoint/new', p); sys.exit(1)"
    )
    for n in (0, 1, 1 << 12):
        here = World.build(tmp_path / str(n), script.replace("{n}", str(n)), stage=TERMS)
        assert code_of(here.launch(granted(here, 1))) == 5501
        assert (here.unpacked(here.launch(granted(here, 2))) / "x").read_bytes() == bytes(range(256)) * n


def test_storage_sees_no_state_and_sizes_in_steps_only(tmp_path):
    script = (
        "import os; open('/checkpoint/new', 'w').write('secret 42' * {n})\n"
        "os.replace('/checkpoint/new', '/checkpoint/state'); 1/0"
    )
    sizes = set()
    for n in (1, 3000):
        here = World.build(tmp_path / str(n), script.replace("{n}", str(n)), stage=TERMS)
        here.launch()
        (kept,) = here.folder.glob("train.checkpoint.*")
        assert b"secret 42" not in kept.read_bytes()
        sizes.add(kept.stat().st_size)
    assert len(sizes) == 1


def test_one_checkpoint_is_kept_and_it_is_the_last(tmp_path):
    here = build(tmp_path, COUNT.replace("{ends}", "number == 6"))
    here.launch(granted(here, 1))
    assert len(here.saved) > 1
    (kept,) = here.folder.glob("train.checkpoint.*")
    assert kept.name == f"train.checkpoint.attempt1.{here.saved[-1].sequence}.cloister"


def log_of(here: World, said) -> str:
    key = IDENTITIES["hospital"].opening_key
    log = open_log(said.log, party="hospital", key=key, session=here.session.public, attempt=here.grant_digest)
    return log.decode()


def test_storage_that_fails_costs_the_checkpoint_and_not_the_stage(tmp_path, monkeypatch):
    here = build(tmp_path, "import os, time; open('/checkpoint/state', 'w').write('x'); time.sleep(0.5)")

    def failing(*_, **__):
        raise PeerError(6201, "no space")

    monkeypatch.setattr(module, "open_sink", failing)
    result = here.launch().require()
    assert not here.saved
    assert "checkpoint 1 was not saved" in log_of(here, result)


class Refusing:
    """Key managers that refuse every checkpoint."""

    def __init__(self, here: World, error: CloisterError) -> None:
        self._obtain, self._error = here.obtain, error

    def __call__(self, job, grant, attester):
        keys = self._obtain(job, grant, attester)
        keys.save_checkpoint = self.refuse
        return keys

    def refuse(self, sequence: int, checkpoint: str) -> None:
        raise self._error


SLEEP = (
    "import time; print('begun', flush=True); open('/checkpoint/state', 'w').write('x')\n"
    "time.sleep({s}); print('slept')"
)


@pytest.mark.parametrize("error", [PeerError(6401), RefusedError(3425)])
def test_a_key_manager_that_does_not_answer_costs_the_checkpoint(tmp_path, error):
    here = build(tmp_path, SLEEP.replace("{s}", "0.3"))
    here.obtain = Refusing(here, error)
    result = here.launch().require()
    assert f"CLOISTER-{error.code}" in log_of(here, result)


@pytest.mark.parametrize("code", [3440, 3404])
def test_a_refusal_that_stands_ends_the_attempt_at_once(tmp_path, code):
    here = build(tmp_path, SLEEP.replace("{s}", "20"))
    here.obtain = Refusing(here, RefusedError(code))
    failure = here.launch().failure
    assert failure is not None
    assert failure.code == code
    said = log_of(here, failure)
    assert "begun" in said
    assert "slept" not in said
    assert f"CLOISTER-{code}" in said


def test_a_file_that_is_written_where_it_lies_is_not_taken_half(tmp_path, monkeypatch):
    """The copy is compared with the file again: what changed meanwhile is no checkpoint."""
    here = build(tmp_path, "import time; open('/checkpoint/state', 'w').write('x' * 100); time.sleep(0.3)")
    state = here.folder / "private" / "checkpoint" / "state"

    class Slow(module.PieceWriter):
        def write(self, data):
            state.write_bytes(secrets.token_bytes(100))
            return super().write(data)

    monkeypatch.setattr(module, "PieceWriter", Slow)
    result = here.launch().require()
    assert not here.saved
    assert "rename" in log_of(here, result)
    assert not list(here.folder.glob("train.checkpoint.*"))


def test_no_thread_is_left(tmp_path):
    here = build(tmp_path, "1/0")
    here.launch()
    assert not [each for each in threading.enumerate() if each.name == "cloister-checkpoints"]


def test_inline_saves_too(tmp_path):
    script = (
        "import os, pathlib; p = pathlib.Path(os.environ['CLOISTER_CHECKPOINT'], 'state')\n"
        "had = p.exists() and p.read_text(); p.with_name('new').write_text('7'); os.replace(p.with_name('new'), p)\n"
        "assert had == '7'"
    )
    here = build(tmp_path, script)
    assert code_of(here.launch(granted(here, 1), inline=True)) == 5501
    assert here.launch(granted(here, 2), inline=True).require().images


def test_a_job_without_a_place_for_checkpoints_is_an_error_before_any_key(tmp_path):
    here = build(tmp_path, "")
    assert code_of(here.launch(here.job.model_copy(update={"checkpoint": None}))) == 2505
    assert here.obtained == 0


def test_key_managers_take_as_many_checkpoints_as_a_launcher_makes():
    assert module._MOST < MAX_CHECKPOINTS


def test_storage_may_be_any_that_only_stores(tmp_path):
    here = build(tmp_path, COUNT.replace("{ends}", "number == 2"))
    place = f"memory://{tmp_path.name}/train.checkpoint"
    here.job = here.job.model_copy(update={"checkpoint": place})
    assert code_of(here.launch(granted(here, 1))) == 5501
    outcome = here.launch(granted(here, 2))
    assert (here.unpacked(outcome) / "n").read_text() == "6"
    assert facts_of(here, outcome).resumed is not None


TRAIN = """
import pathlib, sys, torch
from cloister.offload import load_checkpoint, save_checkpoint

torch.manual_seed(0)
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
found = load_checkpoint(None, model, optimizer=optimizer, missing_ok=True)
for epoch in range(found.sequence if found else 0, 4):
    optimizer.zero_grad()
    model(torch.randn(5, 3)).square().mean().backward()
    optimizer.step()
    save_checkpoint(None, model, optimizer=optimizer, sequence=epoch + 1)
    if epoch == 1 and FAILS:
        sys.exit(3)
fresh = found.fresh if found else "first"
weight = model.weight.detach().numpy().tobytes().hex()
pathlib.Path(sys.argv[1]).write_text(f"{fresh} {weight}")
"""


def test_a_training_that_was_cut_off_ends_with_the_bits_of_one_that_was_not(tmp_path):
    """Inline: in a sandbox torch would be compiled for each attempt, and what is seen there is what is seen here."""
    argv = {"argv": ("python", "train.py", "/outputs/model/w")}
    whole = World.build(tmp_path / "whole", TRAIN.replace("FAILS", "False"), stage=TERMS | argv)
    expected = (whole.unpacked(whole.launch(inline=True)) / "w").read_text()
    here = World.build(tmp_path / "cut", TRAIN.replace("FAILS", "True"), stage=TERMS | argv)
    assert code_of(here.launch(granted(here, 1), inline=True)) == 5501
    resumed = (here.unpacked(here.launch(granted(here, 2), inline=True)) / "w").read_text()
    assert expected.startswith("first ")
    assert resumed.split() == ["True", expected.split()[1]]
