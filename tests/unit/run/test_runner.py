import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.audits import PINS, code_of_audit
from tests.keyworld import NOW, World, code_of
from tests.runs import FakeExecutor, Place

from cloister.audit import verify
from cloister.enclave import StageOutcome
from cloister.errors import CloisterError, PeerError, all_codes, error_for
from cloister.keys import RegistrationReceipt, open_signed
from cloister.manifest import Manifest, Release, Stage
from cloister.run import Runner, start_run, worth_retrying
from cloister.run import _state as state_module

FINISHED = [("prepare", 1, "started"), ("prepare", 1, "finished"), ("train", 1, "started"), ("train", 1, "finished")]


class KilledError(BaseException):
    """The host's process ends here."""


def failing(*codes: int) -> Callable[[str, int, threading.Event], None]:
    """A script of ``train`` that ends its first attempts with these codes."""

    def script(stage: str, attempt: int, halt: threading.Event) -> None:
        if stage == "train" and attempt <= len(codes):
            raise error_for(codes[attempt - 1])

    return script


def accepted(place: Place) -> bool:
    return code_of_audit(verify(place.bundle(), at=NOW, pins=PINS)) == 0


# ---- the graph -------------------------------------------------------------------------------------------------


def test_stages_run_after_those_whose_outputs_they_read(place: Place) -> None:
    place.run()
    assert place.said() == FINISHED
    assert accepted(place)


def side_by_side(manifest: Manifest) -> Manifest:
    """``prepare`` split in two that do not read each other, and ``train`` reading both."""
    prepare, train = manifest.stages["prepare"], manifest.stages["train"]
    output = next(iter(prepare.outputs.values()))

    def half(name: str) -> Stage:
        return prepare.model_copy(update={"inputs": (f"data-{name}",), "outputs": {f"half-{name}": output}})

    stages = {
        "prepare-a": half("a"),
        "prepare-b": half("b"),
        "train": train.model_copy(update={"inputs": ("half-a", "half-b")}),
    }
    releases = [release for release in manifest.releases if release.output != "joined"]
    releases += [Release(output=f"half-{name}", stage="train") for name in ("a", "b")]
    return manifest.model_copy(update={"stages": stages, "releases": tuple(releases)})


@pytest.fixture
def wide(tmp_path: Path) -> Any:
    world = World.make(tmp_path, change=side_by_side)
    world.install()
    yield Place.start(world, tmp_path)
    world.close()


def test_independent_stages_run_side_by_side(wide: Place) -> None:
    meeting = threading.Barrier(2, timeout=10)

    def script(stage: str, attempt: int, halt: threading.Event) -> None:
        if stage != "train":
            meeting.wait()

    wide.executor.script = script
    wide.run()
    assert wide.said()[-2:] == [("train", 1, "started"), ("train", 1, "finished")]
    assert accepted(wide)


def test_never_more_stages_at_once_than_the_host_says(wide: Place) -> None:
    running, most = [], []

    def script(stage: str, attempt: int, halt: threading.Event) -> None:
        running.append(stage)
        most.append(len(running))
        time.sleep(0.02)
        running.remove(stage)

    wide.executor.script = script
    wide.host = wide.host.model_copy(update={"parallel": 1})
    wide.run()
    assert max(most) == 1


def test_after_a_failure_nothing_new_begins_and_what_runs_may_end(wide: Place) -> None:
    begun = threading.Event()

    def script(stage: str, attempt: int, halt: threading.Event) -> None:
        if stage == "prepare-a":
            begun.wait(10)
            raise error_for(5502)
        begun.set()

    wide.executor.script = script
    assert code_of(wide.run) == 5502
    assert ("prepare-b", 1, "finished") in wide.said()
    assert not any(stage == "train" for stage, _, _ in wide.said())


# ---- retry -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [5501, 6201, 6401, 6405, 6501, 6502, 6706])
def test_a_failure_that_may_pass_is_tried_again(place: Place, code: int) -> None:
    place.executor.script = failing(code)
    place.run()
    assert place.said()[-3:] == [("train", 1, "failed"), ("train", 2, "started"), ("train", 2, "finished")]
    assert [record.code for record in place.folder.state().attempts] == [None, code, None]
    assert accepted(place)


@pytest.mark.parametrize(
    "code", [2505, 3404, 3411, 3504, 4402, 5003, 5202, 5408, 5502, 5503, 5504, 5505, 5701, 5711, 6503, 9001]
)
def test_refusal_evidence_changed_bytes_and_limits_are_never_tried_again(place: Place, code: int) -> None:
    place.executor.script = failing(code)
    assert code_of(place.run) == code
    assert len([event for event in place.events if event.stage == "train" and event.status == "started"]) == 1


def test_an_attempt_that_ends_with_nothing_is_a_failure(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """An executor broke its contract: neither a result nor a failure."""
    monkeypatch.setattr(place.executor, "_launch", lambda job, halt: StageOutcome())
    assert code_of(place.run) == 5551
    assert place.said() == [("prepare", 1, "started"), ("prepare", 1, "failed")]
    assert [record.code for record in place.folder.state().attempts] == [5551]


def test_every_code_is_decided_by_its_branch() -> None:
    again = {code for code in all_codes() if worth_retrying(error_for(code))}
    assert again == {5501} | {code for code in all_codes() if code // 1000 == 6} - {6503}


def test_a_stage_is_tried_as_often_as_the_host_says(place: Place) -> None:
    place.executor.script = failing(5501, 5501, 5501)
    place.host = place.host.model_copy(update={"attempts": 3})
    assert code_of(place.run) == 5501
    assert [record.attempt for record in place.folder.state().attempts] == [1, 1, 2, 3]


def test_a_peer_that_did_not_answer_is_given_time(place: Place) -> None:
    place.executor.script = failing(6401)
    place.host = place.host.model_copy(update={"retry_after_s": 1})
    begun = time.monotonic()
    place.run()
    assert time.monotonic() - begun >= 1


# ---- registrations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [(), ("keys-a",), ("keys-a", "keys-b")])
def test_the_host_delivers_what_the_launcher_could_not(place: Place, there: tuple[str, ...]) -> None:
    place.executor.deliver = lambda name: name in there
    place.run()
    assert place.said() == FINISHED
    assert accepted(place)


class FailingClient:
    """A key manager that does not answer registrations, so often."""

    def __init__(self, inner: Any, times: int) -> None:
        self._inner, self.times = inner, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def register(self, request: Any) -> Any:
        if self.times:
            self.times -= 1
            raise PeerError(6401)
        return self._inner.register(request)


@pytest.mark.parametrize("silent", ["keys-a", "keys-b"])
def test_a_registration_that_was_not_answered_is_delivered_again_and_costs_no_attempt(
    place: Place, silent: str
) -> None:
    place.executor.deliver = lambda name: False
    clients = {**place.world.clients, silent: FailingClient(place.world.clients[silent], 1)}
    Runner(place.folder, place.host, executor=place.executor, clients=clients, tell=place.events.append).run()
    assert [record.attempt for record in place.folder.state().attempts] == [1, 1]
    assert accepted(place)


def test_a_key_manager_that_never_answers_ends_the_run_and_resume_delivers(place: Place) -> None:
    place.executor.deliver = lambda name: False
    clients = {**place.world.clients, "keys-b": FailingClient(place.world.clients["keys-b"], 100)}
    runner = Runner(place.folder, place.host, executor=place.executor, clients=clients)
    assert code_of(runner.run) == 6401
    [record] = place.folder.state().attempts
    assert set(record.registered) == {"keys-a"}
    place.run()
    assert [(r.consumer, r.attempt) for r in place.folder.state().attempts] == [("prepare", 1), ("train", 1)]
    assert accepted(place)


def test_outputs_lie_where_the_attempt_wrote_them(place: Place) -> None:
    place.executor.script = failing(5501)
    state = place.run().runner().state
    assert state.outputs["model"].url == f"{place.host.storage}/{state.run}/model.attempt2.cloister"
    receipt = open_signed(RegistrationReceipt, state.attempts[-1].registered["keys-a"], place.world.registrar.key)
    assert receipt.outputs["model"] == state.outputs["model"].image


# ---- interruption --------------------------------------------------------------------------------------------------


def killed_at(place: Place, monkeypatch: pytest.MonkeyPatch, point: int) -> bool:
    """Runs until the given write to the run's folder, which never happens; False when there are not so many."""
    left, real = [point], state_module.write_atomic

    def write(path: Any, data: bytes) -> None:
        if left[0] == 0:
            raise KilledError
        left[0] -= 1
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(state_module, "write_atomic", write)
        try:
            place.run()
        except KilledError:
            return True
    return False


@pytest.mark.parametrize("delivers", [False, True], ids=["host delivers", "launcher delivers"])
def test_resume_after_a_kill_at_any_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delivers: bool) -> None:
    """What was not lost with the interruption is finished, and the audit accepts it.

    Where the launcher delivered, and the host died before it kept the outcome, the stage has ended without anybody
    knowing how: that is said, and nothing is attempted again.
    """
    point, ends, kills = 0, set(), True
    while kills:
        world = World.make(tmp_path / f"{delivers}-{point}", site=None)
        world.install()
        place = Place.start(world, tmp_path / f"{delivers}-{point}")
        place.executor.deliver = lambda name: delivers
        kills = killed_at(place, monkeypatch, point)
        place.folder.state()
        try:
            place.run()
        except CloisterError as error:
            ends.add(error.code)
        else:
            ends.add(0)
            assert accepted(place)
        world.close()
        point += 1
    assert point > 8
    assert ends == ({0, 5552} if delivers else {0})


def test_resume_after_a_kill_while_a_stage_runs(place: Place) -> None:
    def script(stage: str, attempt: int, halt: threading.Event) -> None:
        if stage == "train" and attempt == 1:
            raise KilledError

    place.executor.script = script
    with pytest.raises(KilledError):
        place.run() if _in_process(place) else None
    place.executor.script = lambda *_: None
    place.run()
    assert [(r.consumer, r.attempt, r.claims is None) for r in place.folder.state().attempts] == [
        ("prepare", 1, False),
        ("train", 1, True),
        ("train", 2, False),
    ]
    assert accepted(place)


def _in_process(place: Place) -> bool:
    """Makes the executor run attempts in the runner's own thread, so that a kill reaches the runner."""

    class Task:
        def __init__(self, work: Callable[[], Any]) -> None:
            self.work = work

        def outcome(self, timeout_s: float | None = None) -> Any:
            return self.work()

        def done(self) -> bool:
            return False

        def cancel(self) -> None:
            return

    place.executor.submit = lambda job: Task(lambda: FakeExecutor._launch(place.executor, job, threading.Event()))
    return True


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A process that was started in the background ignores interrupts, and so would its tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_ends_every_attempt_and_resume_goes_on(wide: Place) -> None:
    both = threading.Barrier(3, timeout=10)

    def script(stage: str, attempt: int, halt: threading.Event) -> None:
        if attempt == 1:
            both.wait()
            halt.wait(30)

    def interrupt() -> None:
        both.wait()
        os.kill(os.getpid(), signal.SIGINT)

    wide.executor.script = script
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        wide.run()
    assert all(task.done() and task.cancelled for task in wide.executor.tasks)
    assert len(wide.executor.tasks) == 2, "a stop is no failure to be tried again"
    wide.executor.script = lambda *_: None
    wide.run()
    assert {r.code for r in wide.folder.state().attempts if r.attempt == 1 and r.consumer != "train"} == {6503}
    assert accepted(wide)


def test_a_bug_ends_every_attempt(wide: Place) -> None:
    inside = threading.Event()

    def script(stage: str, attempt: int, halt: threading.Event) -> None:
        if stage == "prepare-a":
            inside.wait(10)
            return
        inside.set()
        halt.wait(30)

    def tell(event: Any) -> None:
        if event.status == "finished":
            raise ZeroDivisionError

    wide.executor.script = script
    with pytest.raises(ZeroDivisionError):
        Runner(wide.folder, wide.host, executor=wide.executor, clients=wide.world.clients, tell=tell).run()
    assert all(task.done() for task in wide.executor.tasks)


# ---- before anything starts ------------------------------------------------------------------------------------


def test_a_run_is_executed_by_one_process(place: Place) -> None:
    with place.folder.working():
        assert code_of(place.run) == 2555
    place.run()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"images": {}}, 2551),
        ({"images": {"dataa": "x"}}, 2554),
        ({"key_managers": {}}, 2551),
        ({"key_managers": {"keys-z": "http://keys.test"}}, 2554),
    ],
)
def test_addresses_are_compared_with_the_manifest_before_anything_is_asked(
    place: Place, tmp_path: Path, change: dict[str, Any], code: int
) -> None:
    host = place.host.model_copy(update=change)
    runner = Runner(place.folder, host, executor=place.executor, clients=place.world.clients)
    assert code_of(runner.run) == code
    size = place.world.stores["keys-a"].size()
    other = type(place.folder)(tmp_path / "another")
    assert code_of(lambda: start_run(place.world.signed, other, place.world.clients, host=host)) == code
    assert place.world.stores["keys-a"].size() == size


def test_storage_that_cannot_be_written(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for storage in (str(tmp_path / "file" / "x"), "nosuch://x"):
        place.host = place.host.model_copy(update={"storage": storage})
        assert code_of(place.run) == 6553
    assert place.events == []


def test_memory_storage_needs_no_folder(place: Place) -> None:
    place.host = place.host.model_copy(update={"storage": "memory://outputs/"})
    state = place.run().runner().state
    assert state.outputs["model"].url == f"memory://outputs/{state.run}/model.attempt1.cloister"


def test_a_folder_holds_one_run(place: Place) -> None:
    assert code_of(lambda: start_run(place.world.signed, place.folder, place.world.clients)) == 2552


def test_suspended_manifest_ends_the_run_under_its_own_code(place: Place) -> None:
    from tests.keyworld import IDENTITIES

    from cloister.keys import suspend_manifest

    suspend_manifest(
        place.world.registrar, manifest=place.world.manifest, identity=IDENTITIES["lab"], reason="stop", at=NOW
    )
    assert code_of(place.run) == 3404
