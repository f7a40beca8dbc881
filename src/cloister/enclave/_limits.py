"""Limits on a group of processes: memory and number, by the kernel's control groups where they are writable.

Without a writable control group memory is watched (a script can overshoot for a fraction of a second) and the number
of processes is a resource limit, which the kernel does not apply to root; a receipt is no different, because limits
protect the host and the neighbours, not the data.
"""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import time
from pathlib import Path
from typing import Literal

from cloister.manifest import Limits

__all__ = ["ResourceGroup"]

_ROOT = Path("/sys/fs/cgroup")
_PREFIX = "cloister-"
_PAGE = resource.getpagesize()


class ResourceGroup:
    """The processes of one attempt: its unpackers and its script. Use as a context manager."""

    def __init__(self, limits: Limits, *, control_groups: bool = True) -> None:
        self._limits = limits
        self._name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
        self._groups: list[Path] = []
        self._memory: Path | None = None
        self._pids: Path | None = None
        if control_groups and not self._unified():
            self._legacy()

    def __enter__(self) -> ResourceGroup:
        return self

    def __exit__(self, *_: object) -> None:
        for group in self._groups:
            for _attempt in range(50):  # killed processes leave a group a little later than they die
                with contextlib.suppress(OSError):
                    group.rmdir()
                if not group.exists():
                    break
                time.sleep(0.02)

    @property
    def by_kernel(self) -> bool:
        """Whether the kernel itself holds the memory limit."""
        return self._memory is not None

    def add(self, pid: int) -> None:
        """Puts a process that has not run anything yet, and so all its descendants, under the limits."""
        for group in dict.fromkeys(group for group in (self._memory, self._pids) if group):
            (group / "cgroup.procs").write_text(str(pid))
        with contextlib.suppress(PermissionError, ProcessLookupError):
            if self._pids is None:
                resource.prlimit(pid, resource.RLIMIT_NPROC, (self._limits.processes, self._limits.processes))
            if self._memory is None:
                resource.prlimit(pid, resource.RLIMIT_DATA, (self._limits.memory_bytes, self._limits.memory_bytes))

    def exceeded(self, pid: int) -> Literal["memory", "processes"] | None:
        """Which limit the processes under ``pid`` went over, as far as it can be seen now."""
        if self._memory is not None:
            return "memory" if _oom_kills(self._memory) > 0 else None
        pids = _descendants(pid, at_most=self._limits.processes + 1)
        if len(pids) > self._limits.processes:
            return "processes"
        return "memory" if _memory_of(pids, self._limits.memory_bytes) > self._limits.memory_bytes else None

    def _unified(self) -> bool:
        """Control groups, version 2: beside or below our own, wherever the controllers were delegated."""
        own = _own_path("0", "")
        for mount in (_ROOT, _ROOT / "unified"):
            if own is None or not (mount / "cgroup.controllers").is_file():
                continue
            home = mount / own
            for parent in (home, home.parent) if home != mount else (home,):
                _forget_dead(parent)
                group = parent / self._name
                try:
                    group.mkdir()
                except OSError:
                    continue
                if self._set(group / "memory.max", self._limits.memory_bytes):
                    self._groups.append(group)
                    self._memory = group
                    self._set(group / "memory.swap.max", 0)
                    self._set(group / "memory.oom.group", 1)
                    if self._set(group / "pids.max", self._limits.processes):
                        self._pids = group
                    return True
                with contextlib.suppress(OSError):
                    group.rmdir()
        return False

    def _legacy(self) -> None:
        """Control groups, version 1: one tree a controller."""
        for controller in ("memory", "pids"):
            own = _own_path(None, controller)
            if own is None:
                continue
            _forget_dead(_ROOT / controller / own)
            group = _ROOT / controller / own / self._name
            with contextlib.suppress(OSError):
                group.mkdir()
                self._groups.append(group)
                if controller == "memory" and self._set(group / "memory.limit_in_bytes", self._limits.memory_bytes):
                    self._set(group / "memory.memsw.limit_in_bytes", self._limits.memory_bytes)
                    self._memory = group
                elif controller == "pids" and self._set(group / "pids.max", self._limits.processes):
                    self._pids = group

    @staticmethod
    def _set(path: Path, value: int) -> bool:
        try:
            path.write_text(str(value))
        except OSError:
            return False
        return True


def _forget_dead(parent: Path) -> None:
    """Removes the groups of launchers that were killed before they could."""
    for group in parent.glob(f"{_PREFIX}*"):
        pid = group.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            with contextlib.suppress(OSError):
                group.rmdir()


def _own_path(hierarchy: str | None, controller: str) -> str | None:
    """Our own group's path in a hierarchy, relative to its mount."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == hierarchy or (hierarchy is None and controller in controllers.split(",")):
            return path.lstrip("/")
    return None


def _oom_kills(group: Path) -> int:
    for name in ("memory.events", "memory.oom_control"):
        with contextlib.suppress(OSError):
            for line in (group / name).read_text().splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
    return 0


def _memory_of(pids: list[int], limit: int) -> int:
    """Memory of a process tree and of its private file systems, exact only when it is near ``limit``: exact is slow."""
    files = _file_systems(pids[0])
    rough = files + sum(_resident(each) for each in pids)
    return rough if rough <= limit else files + sum(_proportional(each) for each in pids)


def _descendants(pid: int, *, at_most: int) -> list[int]:
    found: list[int] = []
    waiting = [pid]
    while waiting and len(found) < at_most:
        each = waiting.pop()
        found.append(each)
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{each}/task"):
                waiting += map(int, Path(f"/proc/{each}/task/{task}/children").read_text().split())
    return found


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return 0


def _proportional(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return _resident(pid)


def _file_systems(pid: int) -> int:
    """Bytes in the sandbox's own file systems; while it is being set up its root is still the host's, which is none."""
    total = 0
    for folder in ("tmp", "dev/shm"):
        with contextlib.suppress(OSError):
            inside = f"/proc/{pid}/root/{folder}"
            if os.stat(inside).st_dev != os.stat(f"/{folder}").st_dev:
                status = os.statvfs(inside)
                total += (status.f_blocks - status.f_bfree) * status.f_frsize
    return total
