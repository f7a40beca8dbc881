"""The host leaves code and settings where a key manager might find them when its command starts."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import cloister
from cloister.attest import SimulatedSite
from cloister.enclave import _entry, become, closed_environment, measure_installed, start_command
from cloister.keys import KeyManagerClient, ServiceEvidence, open_signed
from cloister.wire import VerifyKey

HOSTILE = {
    "OPENSSL_CONF": "/tmp/evil.cnf",
    "PYTHONPATH": "/evil",
    "PYTHONSTARTUP": "/evil.py",
    "FSSPEC_CONFIG_DIR": "/evil",
    "HTTPS_PROXY": "http://evil.invalid",
    "WEB_CONCURRENCY": "9",
    "PGOPTIONS": "-c session_replication_role=evil",
    "PGAPPNAME": "evil",
    "PGSERVICEFILE": "/evil",
    "PGPASSFILE": "/evil",
}
CLOISTER = (sys.executable, "-m", "cloister")


def start(*arguments, **env):
    environment = {**os.environ, **HOSTILE, **env}
    command = [*CLOISTER, *map(str, arguments), "--json"]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def first_object(process):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line == "}\n":
            break
    return json.loads("".join(lines))


def test_no_variable_of_the_host_reaches_a_key_manager_or_its_store(tmp_path):
    """The store is the host's PostgreSQL: the first message to it says whatever ``PG*`` variables make of it."""
    SimulatedSite.create(tmp_path / "site")
    with socket.create_server(("127.0.0.1", 0)) as store:
        store.settimeout(120)
        url = f"postgresql+psycopg://keys:swordfish@127.0.0.1:{store.getsockname()[1]}/db?sslmode=disable"
        process = start("keys", "serve", "--site", tmp_path / "site", CLOISTER_KEYS_SERVE_STORE=url)
        most = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.prlimit(process.pid, resource.RLIMIT_CORE, (most, most))
        try:
            asked, _ = store.accept()
            with asked:
                message = asked.recv(4096)
            files = Path(f"/proc/{process.pid}")
            variables, arguments = (files / "environ").read_bytes(), (files / "cmdline").read_bytes()
            limits = (files / "limits").read_text()
        finally:
            process.kill()
            process.communicate()
    assert b"user\0keys\0" in message
    assert b"evil" not in message
    names = {line.partition(b"=")[0].decode() for line in variables.split(b"\0") if line}
    assert names <= set(closed_environment(os.environ))
    assert b"swordfish" not in variables + arguments
    assert limits.partition("Max core file size")[2].split()[:2] == ["0", "0"]


def test_what_a_process_becomes_is_closed_from_its_first_instruction(monkeypatch):
    """It would close itself, but only after it had read what the host says."""
    given, started = [], []

    def dup2(handle, to):
        given.append((os.pread(handle, 99, 0), to))
        os.close(handle)

    with monkeypatch.context() as patch:  # no longer than that: pytest has uses of its own for these
        patch.setattr(_entry.os, "dup2", dup2)
        patch.setattr(_entry.os, "set_inheritable", lambda *_: None)
        patch.setattr(_entry.os, "execve", lambda *arguments: started.append(arguments))
        for name, value in HOSTILE.items():
            patch.setenv(name, value)
        become("cloister.cli._key_manager", b"the job")
    assert given == [(b"the job", 0)]
    assert started == [(sys.executable, start_command("cloister.cli._key_manager"), closed_environment(os.environ))]


@pytest.mark.slow
def test_a_key_manager_reads_no_bytecode_beside_its_sources(tmp_path):
    """In an installation of its own, so that the host's ``__pycache__`` is planted in nobody else's."""
    source = shutil.copytree(
        Path(cloister.__file__).parent, tmp_path / "src" / "cloister", ignore=shutil.ignore_patterns("__pycache__")
    )
    venv.create(tmp_path / "venv", symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    others = [place for place in sys.path if Path(place).name == "site-packages"]
    (packages / "ours.pth").write_text("\n".join([str(tmp_path / "src"), *others]))
    plant(source / "keys" / "_sql.py", tmp_path)
    python = str(tmp_path / "venv" / "bin" / "python")
    control = subprocess.run([python, "-c", "import cloister.keys._sql"], capture_output=True, check=True)
    assert control.stderr == b"UNMEASURED\n"
    SimulatedSite.create(tmp_path / "site")
    where = ["--store", f"sqlite:///{tmp_path / 'store.db'}", "--site", str(tmp_path / "site")]
    made = subprocess.run([python, "-m", "cloister", "keys", "init", *where], capture_output=True, check=True)
    assert b"UNMEASURED" not in made.stderr
    assert (tmp_path / "store.db").is_file()


def plant(source, folder):
    """Bytecode that does what ``source`` does and then says that it ran; it never looks at the source."""
    import py_compile

    evil = folder / "evil.py"
    evil.write_text(source.read_text() + "\nimport os\nos.write(2, b'UNMEASURED\\n')\n")
    target = source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(evil), cfile=str(target), invalidation_mode=mode)


@pytest.mark.slow
def test_a_closed_key_manager_is_the_measured_one_and_stops_as_it_is_told(tmp_path):
    SimulatedSite.create(tmp_path / "site")
    where = ("--store", f"sqlite:///{tmp_path / 'store.db'}", "--site", tmp_path / "site")
    with start("keys", "init", *where) as process:
        made = first_object(process)
    assert (process.returncode, made["measurement"]) == (0, measure_installed("key-manager").measurement)
    for how, status in ((signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)):
        with start("keys", "serve", *where, "--listen", "127.0.0.1:0") as process:
            ready = first_object(process)
            assert (ready["locked"], ready["sign"]) == (False, made["sign"])
            with KeyManagerClient(f"http://{ready['listen']}", VerifyKey.parse(made["sign"]), timeout_s=30) as client:
                said = open_signed(ServiceEvidence, client.evidence(), client.key)
            assert bytes.fromhex(made["measurement"]) in said.evidence.quote
            process.send_signal(how)
        assert process.returncode == status
