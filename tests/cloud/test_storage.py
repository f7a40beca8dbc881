"""Images in S3, Google Cloud Storage and Azure Blob Storage, each as an emulator of it speaks.

`make cloud` installs the storages' own clients and the emulators in an environment of their own, and runs this.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

pytest.importorskip("moto", reason="emulators of cloud storage come with `make cloud`")

pytestmark = pytest.mark.filterwarnings(  # the storages' own clients, by which this module plays the attacker
    "ignore:Sending a large body:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)

ROOT = Path(__file__).parents[2]
BUCKET = "bucket"
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Published by the emulator's makers: every Azurite has it."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def emulator(*command: str, port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None, f"{command[0]} ended with status {process.returncode}"
            assert time.monotonic() < deadline, f"{command[0]} does not listen"
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


def beside(name: str) -> str:
    return str(Path(sys.executable).parent / name)


@contextlib.contextmanager
def s3(port: int) -> Iterator[dict[str, str]]:
    keys = {"AWS_ACCESS_KEY_ID": "who", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
    with emulator(beside("moto_server"), "-H", "127.0.0.1", "-p", str(port), port=port):
        yield {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}


@contextlib.contextmanager
def gs(port: int) -> Iterator[dict[str, str]]:
    command = (beside("gcp-storage-emulator"), "start", "--host=127.0.0.1", f"--port={port}", "--in-memory")
    with emulator(*command, f"--default-bucket={BUCKET}", port=port):
        yield {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}", "GOOGLE_CLOUD_PROJECT": "any"}


@contextlib.contextmanager
def abfs(port: int) -> Iterator[dict[str, str]]:
    program = shutil.which("azurite-blob", path=f"{ROOT / 'build/cloud/node_modules/.bin'}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("Azurite, Azure's own emulator, is not installed: `npm install azurite`")
    options = ("--inMemoryPersistence", "--skipApiVersionCheck", "--silent", "--disableTelemetry")
    with emulator(program, "--blobHost", "127.0.0.1", "--blobPort", str(port), *options, port=port):
        account = f"AccountName=devstoreaccount1;AccountKey={AZURITE_KEY}"
        endpoint = f"BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1"
        yield {"AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=http;{account};{endpoint};"}


@pytest.fixture(params=[s3, gs, abfs], ids=lambda storage: storage.__name__)
def storage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket's URL; the storage's client finds its way as a user tells it, by variables."""
    with request.param(free_port()) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        protocol = request.param.__name__
        files = client(protocol)
        if protocol != "gs":  # made by its emulator
            files.mkdir(BUCKET)
        yield f"{protocol}://{BUCKET}"


def client(protocol: str) -> Any:
    given = {"connection_string": os.environ["AZURE_STORAGE_CONNECTION_STRING"]} if protocol == "abfs" else {}
    return fsspec.filesystem(protocol, skip_instance_cache=True, **given)


def cloister(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "cloister", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, json.loads(done.stdout)


def test_an_image_makes_the_round_trip_and_a_changed_one_does_not(storage: str, tmp_path: Path) -> None:
    folder, url, key = tmp_path / "folder", f"{storage}/rows.cloister", tmp_path / "rows.cloister-key"
    folder.mkdir()
    rows = secrets.token_bytes(5_000_000)
    (folder / "rows.csv").write_bytes(rows)

    status, sealed = cloister("seal", folder, "--name", "rows", "--to", url, "--key-out", key)
    assert (status, sealed["url"]) == (0, url)
    files = client(url.partition(":")[0])
    path = url.partition("://")[2]
    assert files.info(path)["size"] == sealed["bytes"]
    assert rows[:4096] not in files.cat_file(path)

    status, verified = cloister("image", "verify", url, "--id", sealed["id"])
    assert (status, verified["verified"]) == (0, True)
    status, _ = cloister("image", "open", url, "--id", sealed["id"], "--key", key, "--to", tmp_path / "opened")
    assert status == 0
    assert (tmp_path / "opened" / "rows.csv").read_bytes() == rows

    status, again = cloister("seal", folder, "--name", "rows", "--to", url, "--key-out", tmp_path / "other")
    assert (status, again["error"]["code"]) == (2, 2007)  # what is there is not replaced unasked

    changed = bytearray(files.cat_file(path))
    changed[len(changed) // 2] ^= 1
    files.pipe_file(path, bytes(changed))
    status, refused = cloister("image", "verify", url, "--id", sealed["id"])
    assert (status, refused["error"]["code"]) == (5, 5208)


def test_nothing_there_is_one_clear_line(storage: str) -> None:
    status, said = cloister("image", "verify", f"{storage}/nothing.cloister", "--id", "0" * 64)
    assert status in (2, 6)
    assert "nothing.cloister" in said["error"]["what"]
