"""What every executor must do."""

import sys
import time

import pytest
from tests.enclaves import World

from cloister.enclave import EXECUTORS, ProcessExecutor, StageFailure, StageOutcome, executor_named
from cloister.enclave import _executor as executors
from cloister.errors import CloisterError, InputError, PeerError
from cloister.wire import SigningKey, sign_envelope


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.build(tmp_path_factory.mktemp("executor") / "world", "pass")


def code_of(outcome):
    with pytest.raises(CloisterError) as caught:
        outcome.require()
    return caught.value.code


@pytest.mark.parametrize("name", EXECUTORS)
class TestExecutor:
    """The contract; each rule is run against each executor."""

    def test_it_has_the_name_it_is_registered_under(self, name):
        assert executor_named(name).name == name

    def test_a_refusal_is_an_outcome_and_not_an_exception(self, name, world):
        forged = sign_envelope("cloister/attempt-grant/v1", {}, SigningKey.generate())
        task = executor_named(name).submit(world.job.model_copy(update={"grant": forged}))
        assert code_of(task.outcome()) == 5001
        assert task.done()

    def test_a_manifest_without_its_signatures_is_an_outcome(self, name, world):
        bare = world.signed.model_copy(update={"signatures": {}})
        task = executor_named(name).submit(world.job.model_copy(update={"manifest": bare}))
        assert code_of(task.outcome()) == 3301

    def test_a_stage_that_does_not_exist_is_an_outcome(self, name, world):
        task = executor_named(name).submit(world.job.model_copy(update={"stage": "other"}))
        assert code_of(task.outcome()) == 2501

    def test_cancelling_what_has_ended_changes_nothing(self, name, world):
        task = executor_named(name).submit(world.job.model_copy(update={"stage": "other"}))
        before = task.outcome()
        task.cancel()
        assert task.outcome() == before


def test_an_unknown_executor_is_an_input_error():
    with pytest.raises(InputError) as caught:
        executor_named("ray")
    assert caught.value.code == 2503


def as_launcher(monkeypatch, source):
    command = [sys.executable, "-c", source]
    monkeypatch.setattr(executors, "boundary_command", lambda argv, memory_bytes: command)
    return ProcessExecutor()


def test_cancelling_kills_the_launcher_and_is_an_outcome(world, monkeypatch):
    task = as_launcher(monkeypatch, "import time; time.sleep(60)").submit(world.job)
    with pytest.raises(TimeoutError):
        task.outcome(0.2)
    started = time.monotonic()
    task.cancel()
    assert code_of(task.outcome()) == 6503
    assert time.monotonic() - started < 5


def test_a_launcher_that_dies_is_an_outcome(world, monkeypatch):
    task = as_launcher(monkeypatch, "import os; os.abort()").submit(world.job)
    assert code_of(task.outcome()) == 6501


@pytest.mark.parametrize("said", ["nonsense", "{}", '{"result": null}', "[1]"])
def test_a_launcher_that_talks_nonsense_is_an_outcome(world, monkeypatch, said):
    task = as_launcher(monkeypatch, f"print({said!r})").submit(world.job)
    assert code_of(task.outcome()) == 6502


def test_a_launcher_that_never_stops_talking_is_killed(world, monkeypatch):
    monkeypatch.setattr(executors, "MAX_OUTCOME_BYTES", 1 << 16)
    task = as_launcher(monkeypatch, "while True: print('x' * 4096)").submit(world.job)
    assert code_of(task.outcome()) == 6502


def test_the_launcher_does_not_get_this_process_s_python_variables(world, monkeypatch):
    monkeypatch.setenv("PYTHONSTARTUP", "/x")
    monkeypatch.setenv("LD_PRELOAD_X", "/x")
    source = "import os, sys\nsys.exit(any(n.startswith(('PYTHON', 'LD_')) for n in os.environ) and print('x'))"
    assert code_of(as_launcher(monkeypatch, source).submit(world.job).outcome()) == 6501


def test_an_error_that_is_not_ours_is_named_by_its_type_alone():
    failure = StageFailure.of(ValueError("secret"))
    assert (failure.code, failure.what) == (9001, "ValueError")


def test_a_failure_keeps_its_facts():
    error = StageFailure.of(PeerError(6501, "it ended", got="x", expected="y", hint="z")).error()
    assert (error.code, error.what, error.got, error.expected, error.hint) == (6501, "it ended", "x", "y", "z")


def test_an_outcome_of_neither_kind_is_our_bug():
    assert code_of(StageOutcome()) == 9001
