"""A network for each party, joined by a bridge, each with a rate up and down by tc's tbf; gone again at the end.

Needs Linux, root, ``ip`` and ``tc``. Everything has this process's id in its name, and nothing else is touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Network", "can_shape", "shaped"]

_BURST = "128kb"
_QUEUE = "2mb"  # TCP of the same machine meets no losses in it


@dataclass(frozen=True)
class Network:
    """One party's.

    Attributes:
        address: Its own.
        before: What a command begins with to run in it.
    """

    address: str
    before: Sequence[str]


def can_shape() -> bool:
    """Whether networks can be made and limited here: it tries with one."""
    if os.geteuid() or not all(shutil.which(tool) for tool in ("ip", "tc")):
        return False
    try:
        with shaped(1, mbit=100) as (one,):
            return _did([*one.before, "true"])
    except subprocess.CalledProcessError:
        return False


@contextmanager
def shaped(parties: int, *, mbit: float) -> Iterator[list[Network]]:
    """So many networks that reach each other.

    Args:
        parties: How many.
        mbit: Million bits a second of each, up, and as many down.

    Raises:
        subprocess.CalledProcessError: What the system refused; nothing of it is left.
    """
    mark = f"cb{os.getpid()}"
    spaces = [f"{mark}-{place}" for place in range(parties)]
    limit = ["root", "tbf", "rate", f"{mbit:g}mbit", "burst", _BURST, "limit", _QUEUE]
    try:
        _must("ip", "link", "add", mark, "type", "bridge")
        _must("ip", "link", "set", mark, "up")
        for place, space in enumerate(spaces):
            outer = f"{mark}v{place}"
            _must("ip", "netns", "add", space)
            _must("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
            _must("ip", "link", "set", outer, "master", mark, "up")
            _must("ip", "-n", space, "link", "set", "lo", "up")
            _must("ip", "-n", space, "address", "add", f"{_address(place)}/24", "dev", "eth0")
            _must("ip", "-n", space, "link", "set", "eth0", "up")
            _must("tc", "-n", space, "qdisc", "add", "dev", "eth0", *limit)
            _must("tc", "qdisc", "add", "dev", outer, *limit)
        yield [Network(_address(place), ["ip", "netns", "exec", space]) for place, space in enumerate(spaces)]
    finally:
        with contextlib.suppress(OSError):
            for place, space in enumerate(spaces):
                _did(["ip", "link", "del", f"{mark}v{place}"])  # and its other end
                _did(["ip", "netns", "del", space])
            _did(["ip", "link", "del", mark])


def _address(place: int) -> str:
    return f"10.213.77.{place + 1}"


def _must(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _did(command: Sequence[str]) -> bool:
    return not subprocess.run(command, check=False, capture_output=True).returncode
