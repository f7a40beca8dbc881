"""On macOS and Windows the library, attest, predict and audit work: nothing they import needs Linux."""

import subprocess
import sys

import pytest

ELSEWHERE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {"resource", "fcntl", "pwd", "grp", "termios", "syslog"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules.pop(name, None)
"""


@pytest.mark.parametrize("room", ["attest", "party", "manifest", "receipt", "keys", "serve", "audit", "seal", "cli"])
def test_a_room_is_imported_without_unix_modules(room: str) -> None:
    program = f"{ELSEWHERE}\nimport cloister.{room}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
