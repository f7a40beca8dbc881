import json
from pathlib import Path
from typing import Any

import pytest
from tests.keyworld import IDENTITIES, World
from tests.runs import FakeExecutor, Place, with_offload

from cloister.cli import main
from cloister.errors import error_for
from cloister.receipt import parse_bundle
from cloister.seal import seal_folder


class Cli:
    """The command line over key managers and launchers of this process."""

    def __init__(self, world: World, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.world, self.folder, self._capsys = world, folder, capsys
        self.executor = FakeExecutor(world)
        self.signed = folder / "signed.json"
        self.signed.write_bytes(world.signed.canonical())
        self.host = folder / "host.toml"
        images = "\n".join(f'{name} = "{name}.cloister"' for name in world.manifest.images)
        managers = "\n".join(f'{name} = "http://keys.test"' for name in world.manifest.key_managers)
        self.host.write_text(
            f'storage = "storage"\nretry_after_s = 0\n[images]\n{images}\n[key_managers]\n{managers}\n'
        )
        self.run_dir = folder / "cli-run"

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(each) for each in arguments])
        said = self._capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    def start(self, *more: object) -> tuple[int, str, str]:
        return self("run", "start", self.signed, "--dir", self.run_dir, "--host", self.host, *more)

    def json(self, *arguments: object) -> Any:
        status, out, _ = self(*arguments, "--json")
        assert status == 0, out
        return json.loads(out)


@pytest.fixture
def cli(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    made = Cli(place.world, tmp_path, capsys)
    monkeypatch.setattr("cloister.cli.run._clients_at", lambda manifest, where: place.world.clients)
    monkeypatch.setattr("cloister.enclave.executor_named", lambda name, offloader: made.executor)
    monkeypatch.setenv("CLOISTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CLOISTER_PASSPHRASE", "correct horse")
    (tmp_path / "home").mkdir()
    IDENTITIES["hospital-a"].save(tmp_path / "home", "correct horse")
    return made


def test_start_says_each_stage_and_shows_the_outputs(cli: Cli) -> None:
    status, out, err = cli.start()
    assert status == 0, err
    assert "prepare  finished, attempt 1" in out
    assert "model " in out
    for line in ("prepare attempt 1 started", "train attempt 1 finished"):
        assert line in err


def test_start_says_how_long_each_stage_took(cli: Cli) -> None:
    facts = cli.json(*_start(cli))
    for row in facts["stages"].values():
        assert (row["script_ms"], row["fixed_ms"]) == (1, {})  # as the executor said
        assert row["attempt_ms"] >= 0
    assert all("script_ms" not in row for row in cli.json("run", "status", cli.run_dir)["stages"].values())


def test_a_person_reads_it_in_seconds(cli: Cli) -> None:
    assert "train    finished, attempt 1, script 0.0 s, around it " in cli.start()[1]


def _start(cli: Cli) -> tuple[object, ...]:
    return ("run", "start", cli.signed, "--dir", cli.run_dir, "--host", cli.host)


def test_status_before_and_after(cli: Cli) -> None:
    cli.executor.script = _fail(5502)
    status, out, err = cli.start()
    assert (status, out) == (5, "")
    assert "train attempt 1 failed: error[CLOISTER-5502]" in err
    assert "more:     cloister explain 5502" in err
    facts = cli.json("run", "status", cli.run_dir)
    assert facts["finished"] is False
    assert {name: row["status"] for name, row in facts["stages"].items()} == {
        "prepare": "finished",
        "train": "failed (5502)",
    }
    cli.executor.script = lambda *_: None
    facts = cli.json("run", "resume", cli.run_dir, "--host", cli.host)
    assert facts["finished"] is True
    assert facts["stages"]["train"]["failures"] == [5502]
    assert facts["stages"]["train"]["attempts"] == 2
    status, out, _ = cli("run", "status", cli.run_dir)
    assert "train    finished, attempt 2; failed before: 5502" in out


def _fail(code: int) -> Any:
    def script(stage: str, attempt: int, halt: object) -> None:
        if stage == "train":
            raise error_for(code)

    return script


def test_failures_as_json(cli: Cli) -> None:
    cli.executor.script = _fail(3404)
    status, out, _ = cli.start("--json")
    assert (status, json.loads(out)["error"]["code"]) == (3, 3404)


def test_interrupt_says_how_to_go_on(cli: Cli) -> None:
    def script(stage: str, attempt: int, halt: object) -> None:
        raise KeyboardInterrupt

    class Task:
        def outcome(self, timeout_s: float | None = None) -> Any:
            raise KeyboardInterrupt

        def cancel(self) -> None:
            return

    cli.executor.submit = lambda job: Task()
    status, _, err = cli.start()
    assert status == 130
    assert "cloister run resume" in err


def test_wrong_host_files(cli: Cli) -> None:
    cli.host.write_text('storage = "x"\n[images]\nother = "y"\n')
    status, _, err = cli.start()
    assert (status, "CLOISTER-2554" in err) == (2, True)
    assert not cli.run_dir.exists()
    assert cli("run", "status", cli.run_dir)[0] == 2


def test_bundle_then_audit(cli: Cli, tmp_path: Path) -> None:
    cli.start()
    heads = tmp_path / "heads.json"
    heads.write_bytes(json.dumps([client.head().as_json() for client in cli.world.clients.values()]).encode())
    cli.world.run()
    out = tmp_path / "run.bundle.json"
    facts = cli.json("run", "bundle", cli.run_dir, "--host", cli.host, "-o", out, "--head", heads)
    assert facts["attempts"] == 2
    assert facts["bytes"] == out.stat().st_size
    bundle = parse_bundle(out.read_bytes())
    assert bundle.key_managers["keys-a"].consistency is not None
    at = "2026-11-20T12:00:00Z"
    audit = ("audit", "verify", out, "--at", at, "--head", heads, "--manifest", cli.signed)
    report = cli.json(*audit)
    complete = [check for check in report["checks"] if check["what"].startswith("the log is complete")]
    assert [check["status"] for check in complete] == ["asserted", "asserted"]


def test_log_of_the_newest_attempt(cli: Cli, tmp_path: Path) -> None:
    cli.start()
    at = ("--at", "2026-11-20T12:00:00Z", "--as", "hospital-a")
    status, out, err = cli("run", "log", cli.run_dir, *at)
    assert (status, out) == (0, "epoch 1\n")
    assert "SIMULATED" in err
    file = cli.run_dir / "logs" / "train-1.json"
    facts = cli.json("run", "log", file, "--manifest", cli.signed, *at)
    assert (facts["stage"], facts["attempt"], facts["text"]) == ("train", 1, "epoch 1\n")
    assert cli("run", "log", file, *at)[0] == 2
    status, _, err = cli("run", "log", cli.run_dir, "--stage", "prepare", *at)
    assert (status, "CLOISTER-2556" in err) == (2, True)


@pytest.mark.parametrize("place", [with_offload], indirect=True)
def test_findings_of_a_worker_that_lied(cli: Cli) -> None:
    cli.executor.script = _fail(5701)
    status, _, err = cli.start()
    assert (status, "train attempt 1 failed: error[CLOISTER-5701]" in err) == (5, True)
    at = ("--at", "2026-11-20T12:00:00Z", "--as", "hospital-a")
    status, out, err = cli("run", "findings", cli.run_dir, *at)
    first = "layer classifier.first, step 3"
    assert out == f"stage train, attempt 1: 1 products were wrong; the first of them:\n  {first}\n"
    assert "SIMULATED" in err
    file = cli.run_dir / "findings" / "train-1.json"
    facts = cli.json("run", "findings", file, "--manifest", cli.signed, *at)
    assert (facts["attempt"], facts["failures"]) == (1, [{"layer": "classifier.first", "step": 3}])
    assert cli("run", "findings", file, *at)[0] == 2
    for which in (("--stage", "prepare"), ("--attempt", "2")):
        status, _, err = cli("run", "findings", cli.run_dir, *which, *at)
        assert (status, "CLOISTER-2556" in err) == (2, True)


def test_collect_opens_what_was_released(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher that really seals ``metrics``: the party gathers its key from every key manager."""
    from tests import runs

    folder = tmp_path / "metrics"
    folder.mkdir()
    (folder / "metrics.json").write_text('{"auc": "0.99"}')
    place = tmp_path / "metrics.cloister"
    real = runs.StageSession.registration

    def registration(self: Any, *, outputs: Any, receipt_digest: str) -> Any:
        if "metrics" in outputs:
            sealed = seal_folder(folder, str(place), key=self.output_key("metrics"))
            outputs = {**outputs, "metrics": sealed.id}
        return real(self, outputs=outputs, receipt_digest=receipt_digest)

    monkeypatch.setattr(runs.StageSession, "registration", registration)
    cli.start()
    run = cli.json("run", "status", cli.run_dir)["run"]
    facts = cli.json(
        "run", "collect", cli.signed, "metrics", "--run", run, "--image", place, "--as", "hospital-a",
        "--to", tmp_path / "opened",
    )  # fmt: skip
    assert facts["assurance"] == "simulated"
    assert (tmp_path / "opened" / "metrics.json").read_text() == '{"auc": "0.99"}'


def test_progress_on_a_terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    cli.executor.script = _fail(5502)
    status, _, err = cli.start()
    assert status == 5
    assert "prepare attempt 1 finished" in err
    assert "train attempt 1 failed" in err


def test_serve_needs_a_finished_run(cli: Cli) -> None:
    cli.executor.script = _fail(5502)
    cli.start()
    status, _, err = cli("run", "serve", cli.run_dir, "--host", cli.host)
    assert (status, "CLOISTER-2553" in err) == (2, True)
