"""A key manager whose measurement does not change with the code: in a process of its own, or in this one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from cloister.attest import SimulatedSite
from cloister.keys import KeyManagerClient, Service, create_app, listen_at, store_at
from cloister.wire import VerifyKey

__all__ = ["KEYS", "ServerProcess", "served"]

KEYS = b"\x22" * 48


@contextlib.contextmanager
def served(service: Service) -> Iterator[str]:
    """The key manager's HTTP service on a free port of loopback."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(service), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


class ServerProcess:
    """One start of a server process.

    Args:
        url: The store.
        site: Folder of the simulated site.
    """

    def __init__(self, url: str, site: Path) -> None:
        command = [sys.executable, "-m", "tests.keyserver", url, str(site)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1], start_new_session=True
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        if not self.address:
            raise RuntimeError(f"the server ended with {self.process.wait()}")

    def client(self, key: VerifyKey) -> KeyManagerClient:
        return KeyManagerClient(f"http://{self.address}", key, timeout_s=10)

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, nothing said goodbye to."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def main() -> None:
    url, site = sys.argv[1:3]
    service = Service(store_at(url), attester=SimulatedSite.open(site).attester(KEYS))
    listen_at(service, "127.0.0.1:0", ready=lambda address: print(address, flush=True))  # noqa: T201


if __name__ == "__main__":
    main()
