"""A key manager in a process of its own, whose measurement does not change with the code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from cloister.attest import SimulatedSite
from cloister.keys import KeyManagerClient, Service, listen_at, store_at
from cloister.wire import VerifyKey

__all__ = ["KEYS", "ServerProcess"]

KEYS = b"\x22" * 48


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
