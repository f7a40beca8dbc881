"""A stage in a real launcher that is killed, goes on from its checkpoint, and does not from yesterday's."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.audits import PINS
from tests.launched import Granted, granted, one_stage

from cloister.audit import verify
from cloister.enclave import Job, ProcessExecutor, StageTask
from cloister.errors import CloisterError
from cloister.manifest import CheckpointTerms, Limits, Manifest
from cloister.receipt import verify_receipt
from cloister.run import Runner, make_bundle
from cloister.seal import SealedImage, seal_folder
from cloister.wire import VerifyKey

pytestmark = pytest.mark.slow

COUNT = """
import json, os, pathlib, time
folder = pathlib.Path(os.environ["CLOISTER_CHECKPOINT"])
state = folder / "state"
found = json.loads(state.read_text()) if state.exists() else {"number": 0, "starts": []}
first, goal = not found["starts"], found["number"] + 20
found["starts"].append(found["number"])
while first or found["number"] < goal:  # the first attempt ends when it is killed
    found["number"] += 1
    (folder / "new").write_text(json.dumps(found))
    os.replace(folder / "new", state)
    time.sleep(0.1)
pathlib.Path("/outputs/joined/n").write_text(json.dumps(found))
"""


class Launchers(ProcessExecutor):
    """Real launchers, the last of which a test can kill."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[StageTask] = []

    def submit(self, job: Job) -> StageTask:
        self.tasks.append(super().submit(job))
        return self.tasks[-1]


@dataclass
class Counting:
    """A granted run of one stage, ``prepare``, which counts."""

    granted: Granted
    launchers: Launchers = field(default_factory=Launchers)

    def run(self) -> int:
        """Executes the run as far as it goes; the code that it ended with."""
        run = self.granted
        runner = Runner(run.folder, run.host, executor=self.launchers, clients=run.world.clients)
        try:
            runner.run()
        except CloisterError as error:
            return error.code
        return 0

    def checkpoints(self) -> dict[Path, bytes]:
        """What the host's storage holds of the stage's checkpoints."""
        found = {}
        for path in Path(self.granted.host.storage).glob("*/prepare.checkpoint.*"):
            with contextlib.suppress(FileNotFoundError):  # replaced by its successor
                found[path] = path.read_bytes()
        return found

    def killed(self) -> dict[Path, bytes]:
        """Executes the run until its first checkpoint is history, kills the launcher, and returns that checkpoint.

        That a second one lies in storage would not do: the first goes once every key manager knows the second.
        """
        ended: list[int] = []
        thread = threading.Thread(target=lambda: ended.append(self.run()))
        thread.start()
        first: dict[Path, bytes] = {}
        try:
            deadline = time.monotonic() + 120
            while not first or self.checkpoints().keys() & first.keys():
                found = self.checkpoints()
                first = first or (found if len(found) == 1 else {})
                assert thread.is_alive(), ended
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            self.launchers.tasks[-1].cancel()
            thread.join()
        assert ended == [6503]
        return first


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[Counting]:
    sealed = {name: _sealed(tmp_path, name) for name in ("data-a", "data-b", "scripts")}
    with granted(tmp_path, sealed, lambda manifest: _counting(manifest, sealed)) as run:
        yield Counting(run)


def _sealed(folder: Path, name: str) -> SealedImage:
    (folder / name).mkdir()
    (folder / name / "main.py").write_text(COUNT if name == "scripts" else name)
    return seal_folder(folder / name, folder / f"{name}.image")


def _counting(manifest: Manifest, sealed: dict[str, SealedImage]) -> Manifest:
    prepare = manifest.stages["prepare"].model_copy(
        update={
            "checkpoint": CheckpointTerms(max_bytes=1 << 16),
            "limits": Limits(memory_bytes=1 << 29, time_s=300, processes=64),
        }
    )
    return one_stage(manifest, sealed, prepare)


def test_a_killed_stage_goes_on_from_its_last_checkpoint_and_from_no_other(counting: Counting) -> None:
    (yesterday,) = counting.killed().values()
    last = counting.checkpoints()
    for path in last:
        path.write_bytes(yesterday)
    assert counting.run() == 5507
    for path in last:
        path.unlink()
    assert counting.run() == 5507
    for path, raw in last.items():
        path.write_bytes(raw)
    assert counting.run() == 0

    world, state = counting.granted.world, counting.granted.folder.state()
    target = counting.granted.collected("joined", Path(counting.granted.host.storage) / "collected")
    counted = json.loads((target / "n").read_text())
    beginning, resumed = counted["starts"]  # the attempts that were refused began nothing
    assert beginning == 0 < resumed
    assert counted["number"] == resumed + 20

    (record,) = [each for each in state.attempts if each.receipt is not None]
    assert record.claims is not None
    assert record.receipt is not None
    facts = verify_receipt(record.receipt, key=VerifyKey.parse(record.claims.sign), manifest=world.manifest)
    assert facts.resumed is not None
    assert (facts.attempt, facts.resumed.attempt) == (4, 1)
    report = verify(make_bundle(counting.granted.folder, world.clients, now=world.clock()), at=world.clock(), pins=PINS)
    report.require()
    (check,) = [each for each in report.checks if each.what.startswith("its checkpoints follow")]
    assert f"attempt 4 went on from number {facts.resumed.sequence} of attempt 1" in check.reason
