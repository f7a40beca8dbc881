"""A PostgreSQL server of the test's own: fresh cluster, unix socket in a temporary folder, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["postgres_server"]

_PORT = "54329"  # names the socket only: nothing listens on TCP


def _programs() -> Path | None:
    """The folder of ``initdb`` and ``postgres``."""
    found = [Path(path) for path in (shutil.which("initdb"),) if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    return next((path.parent for path in found if (path.parent / "postgres").exists()), None)


@contextmanager
def postgres_server() -> Generator[str]:
    """The SQLAlchemy URL of an empty server; skips the test, with the reason, where there is none to start."""
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL server programs (initdb, postgres)")
    owner = _owner()
    folder = Path(tempfile.mkdtemp(prefix="cloister-pg-"))
    if owner is not None:
        os.chown(folder, owner, -1)
    who = {} if owner is None else {"user": owner}
    data = folder / "data"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": folder, "env": {"LC_ALL": "C.UTF-8"}}
    try:
        setup = [programs / "initdb", "-D", data, "-A", "trust", "-U", "cloister", "--no-sync"]
        subprocess.run(setup, check=True, **quiet, **who)
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", f"port={_PORT}"]
        server = subprocess.Popen([programs / "postgres", "-D", data, *options], **quiet, **who)
        try:
            _wait(folder, server)
            yield f"postgresql+psycopg://cloister@/postgres?host={folder}&port={_PORT}"
        finally:
            server.terminate()
            server.communicate(timeout=30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _owner() -> int | None:
    """Who runs the server: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody").pw_uid
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user 'nobody'")


def _wait(folder: Path, server: subprocess.Popen[bytes]) -> None:
    import psycopg

    for _ in range(300):
        if server.poll() is not None:
            raise RuntimeError(f"PostgreSQL ended: {server.communicate()[1][-2000:]!r}")
        try:
            psycopg.connect(host=str(folder), port=_PORT, user="cloister", dbname="postgres").close()
        except psycopg.OperationalError:
            import time

            time.sleep(0.1)
        else:
            return
    raise RuntimeError("PostgreSQL does not answer")
