"""``cloister worker``: a key is made once, and a service stops when it is told to."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.workers import IDENTITY, WorkerProcess, compute, matmul, put, words, worker_at

from cloister.cli import main
from cloister.party import WorkerIdentity

posix = pytest.mark.skipif(os.name != "posix", reason="file modes and signals are POSIX's")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["worker", *arguments])
    output = capsys.readouterr()
    return int(caught.value.code or 0), output.out, output.err


def code_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> int:
    out = run(capsys, *arguments, "--json")[1]
    return int(json.loads(out)["error"]["code"])


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return IDENTITY.save(tmp_path)


@pytest.mark.parametrize("option", [(), ("--post-quantum",)])
def test_init_writes_a_private_key_and_prints_the_public_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: tuple[str, ...]
) -> None:
    status, out, _ = run(capsys, "init", "gpu-1", "--dir", str(tmp_path), *option, "--json")
    facts = json.loads(out)
    assert (status, facts["name"]) == (0, "gpu-1")
    assert str(WorkerIdentity.load(facts["key_file"]).opening_key.public) == facts["key"]
    public = json.loads(Path(facts["public_file"]).read_text())
    assert public == {"format": "cloister/worker/v1", "name": "gpu-1", "key": facts["key"]}
    if os.name == "posix":
        assert stat.S_IMODE(Path(facts["key_file"]).stat().st_mode) == 0o600


def test_init_says_what_to_do_with_each_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, _ = run(capsys, "init", "gpu", "--dir", str(tmp_path))
    identity = WorkerIdentity.load(tmp_path / "gpu.key")
    assert status == 0
    assert str(identity.opening_key.public) in out
    assert "not encrypted" in out


def test_init_replaces_no_key(capsys: pytest.CaptureFixture[str], key: Path) -> None:
    before = key.read_bytes()
    assert code_of(capsys, "init", "gpu", "--dir", str(key.parent)) == 2007
    assert key.read_bytes() == before


@pytest.mark.parametrize("name", ["", "GPU", "../gpu", "a" * 65])
def test_a_name_that_manifests_do_not_take_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    assert code_of(capsys, "init", name, "--dir", str(tmp_path)) == 2005
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--memory", "8 GB"), 2328),
        (("--memory", "lots"), 2328),
        (("--device", "abacus"), 2791),
        (("--device", "meta"), 2791),
        (("--device", f"cuda:{torch.cuda.device_count()}"), 2791),
        (("--listen", "nowhere"), 2005),
        (("--listen", "127.0.0.1:99999"), 2005),
        (("--listen", f"{'a' * 80}.example:1"), 2005),
        (("--listen", "192.0.2.1:0"), 6708),
    ],
)
def test_serve_refuses_what_it_cannot_do(
    capsys: pytest.CaptureFixture[str], key: Path, options: tuple[str, ...], code: int
) -> None:
    assert code_of(capsys, "serve", "--key", str(key), *options) == code


def test_serve_needs_a_key_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert code_of(capsys, "serve", "--key", str(tmp_path / "none.key")) == 2001


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_serves_until_it_is_told_to_stop(tmp_path: Path, number: int) -> None:
    """In the middle of a session, too; its log names no value and no shape."""
    process = WorkerProcess(tmp_path, "--memory", "64 MiB", "--sessions", "1")
    worker = worker_at(process.address)
    try:
        assert process.facts["key"] == str(IDENTITY.opening_key.public)
        assert (process.facts["memory_bytes"], process.facts["sessions"]) == (64 << 20, 1)
        worker.start({})
        left = words(100003, 2)
        worker.submit(*put(9007199, left))
        worker.submit(*put(2, words(3, 2)))
        assert worker.submit(compute(matmul(100003, 2, 3), (1, 9007199, 2))).result(20).shape == (100003, 3)
        process.send(number)
        assert process.process.wait(20) == 0
    finally:
        worker.close()
        process.end()
    log = process.log.read_text()
    assert "session opened" in log
    assert "3 commands, 1 products" in log
    for hidden in ("100003", "9007199", *map(str, left[:4].flatten().tolist())):
        assert hidden not in log


def test_help_does_not_import_torch(capsys: pytest.CaptureFixture[str]) -> None:
    program = (
        "import sys\nfrom cloister.cli import main\n"
        "try: main(['worker', 'serve', '--help'])\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "False"


def test_without_torch_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, key: Path
) -> None:
    monkeypatch.setattr("cloister.cli.worker.find_spec", lambda name: None)
    assert code_of(capsys, "serve", "--key", str(key)) == 2006


def test_a_key_is_made_where_there_is_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom cloister.cli import main\n"
        "try: main(['worker', 'init', 'gpu', '--dir', sys.argv[1]])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, timeout=60)
    assert (tmp_path / "gpu.key").is_file()
