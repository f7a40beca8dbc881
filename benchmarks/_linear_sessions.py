"""Sessions of a linear fit in processes of their own, and what their parties measured, put together."""

from __future__ import annotations

import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from _linear_rows import Plain, World, agreement
from cloister.linear._agreement import Agreement
from cloister.linear._estimate import Network, Primitives, estimate, measured
from cloister.wire import Secret, SigningKey

__all__ = ["MIB", "PHASES", "Case", "Place", "error_of", "estimated_s", "free_ports", "median_of", "prepare", "run"]

MIB = 1 << 20
PHASES = ("start", "read", "connect", "session", "groups", "answers", "checks", "inputs", "online", "release")
"""Of a party's process, one after the other."""
ONE_THREAD = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True)
class Case:
    """What is fitted, and by how many.

    Attributes:
        model: ``lasso`` or ``ridge``.
        malicious: Else semi-honest.
        features: d.
        rows: Of each party.
        parties: How many.
        degree: Of ciphertexts; 32768 but in tests.
    """

    model: str
    malicious: bool
    features: int
    rows: int
    parties: int
    degree: int = 32768

    @property
    def name(self) -> str:
        return f"{self.model}, {'malicious' if self.malicious else 'semi-honest'}"


@dataclass(frozen=True)
class Place:
    """Where a party runs.

    Attributes:
        address: Where the others call it.
        listen: Where it listens: behind a relay another place.
        before: What its command begins with, such as a network of its own.
    """

    address: str
    listen: str
    before: Sequence[str] = field(default_factory=list)


def free_ports(many: int) -> list[int]:
    """Ports of this machine that nobody listens at."""
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(many)]
    ports = [one.getsockname()[1] for one in taken]
    for one in taken:
        one.close()
    return ports


def prepare(case: Case, folder: Path) -> tuple[Plain, list[dict[str, Any]]]:
    """Every party reads its rows, one after the other so that each has the machine to itself.

    Returns:
        The plaintext contender with the moments of all rows, and what each party's reading took.
    """
    plain, found = Plain(World(case.features)), []
    for party in range(case.parties):
        path = folder / f"moments-{case.features}-{case.rows}-{party}.npz"
        if not path.exists():
            job = {"command": "read", "features": case.features, "party": party, "rows": case.rows}
            found.append(_finished(_launched(job | {"moments": str(path)})))
        with np.load(path) as moments:
            plain.take(moments["plain"], int(moments["count"]))
    return plain, found


def run(
    case: Case,
    folder: Path,
    *,
    places: Sequence[Place] = (),
    files: Sequence[Path] = (),
    profile: Path | None = None,
) -> dict[str, Any]:
    """One session between processes.

    Args:
        case: Prepared by :func:`prepare`.
        folder: Where the moments of the rows are.
        places: Of the parties; by default ports of this machine.
        files: Parquet files to read instead.
        profile: Where party 0 leaves its profile; it is slower then.
    """
    if not places:
        places = [Place(at, at) for at in (f"127.0.0.1:{port}" for port in free_ports(case.parties))]
    seeds = [secrets.token_bytes(32) for _ in places]
    keys = [str(SigningKey(Secret(seed)).public) for seed in seeds]
    held = _agreed(case, keys, [place.address for place in places])
    common = {"command": "session", "agreement": held.canonical().decode(), "degree": case.degree}
    launched = time.monotonic()
    running = [
        _launched(
            common
            | {"party": party, "seed": seeds[party].hex(), "listen": place.listen, "launched": launched}
            | {"moments": str(folder / f"moments-{case.features}-{case.rows}-{party}.npz")}
            | {"file": str(files[party]) if files else None}
            | {"profile": str(profile) if profile and party == 0 else None},
            place.before,
        )
        for party, place in enumerate(places)
    ]
    found = [_finished(process) for process in running]
    wall_s = time.monotonic() - launched
    assert all(one["model"] == found[0]["model"] for one in found)
    return {"wall_s": wall_s, **_together(found)}


def _agreed(case: Case, keys: Sequence[str], addresses: Sequence[str]) -> Agreement:
    rows = [case.rows] * case.parties
    return agreement(World(case.features), rows, case.model, malicious=case.malicious, keys=keys, addresses=addresses)


@lru_cache
def _primitives() -> Primitives:
    return measured()


def estimated_s(case: Case) -> float:
    """What ``cloister linear estimate`` says of a session whose parties share this machine."""
    keys = [str(SigningKey(Secret(secrets.token_bytes(32))).public) for _ in range(case.parties)]
    held = _agreed(case, keys, [f"127.0.0.1:{port}" for port in range(1, case.parties + 1)])
    found = estimate(
        held.plan(),
        _primitives(),
        network=Network(round_trip_s=1e-4, bytes_s=1e9),
        malicious=case.malicious,
        shared_by=max(1, case.parties / (os.cpu_count() or 1)),
    )
    return found.seconds


def error_of(model: Sequence[float], plain: np.ndarray) -> float:
    """Of the coefficients, without the intercept, relative to those of the plaintext fit."""
    return float(np.linalg.norm(np.array(model)[1:] - plain[1:]) / np.linalg.norm(plain[1:]))


def median_of(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of several sessions of a case, each number by itself."""
    first = runs[0]
    if not isinstance(first, dict):
        return statistics.median(runs) if isinstance(first, int | float) else first
    return {name: median_of([each[name] for each in runs]) for name in first}


def _launched(job: dict[str, Any], before: Sequence[str] = ()) -> subprocess.Popen[str]:
    command = [*before, sys.executable, str(Path(__file__).with_name("_linear_party.py"))]
    # what was compiled is kept, as where it is installed: without, every party compiles for ten seconds
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment | ONE_THREAD
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(job))
    process.stdin.close()
    process.stdin = None
    return process


def _finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a party ended with {process.returncode}")
    return json.loads(output)


def _together(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over parties of times and traffic; the greatest memory; the sum of CPU."""
    phases: dict[str, dict[str, float]] = {}
    for phase in PHASES:
        rows = [one["phases"][phase] for one in found if phase in one["phases"]]
        names = dict.fromkeys(name for row in rows for name in row)
        phases[phase] = {name: statistics.fmean(row.get(name, 0) for row in rows) for name in names}
    total = {way: max(_sum(one["phases"], way) for one in found) for way in ("up_bytes", "down_bytes")}
    return {
        "cpu_s": sum(one["cpu_s"] for one in found),
        "peak_bytes": max(one["peak_bytes"] for one in found),
        **total,
        "steps": sum(row.get("steps", 0) for row in phases.values()),
        "phases": phases,
        "model": found[0]["model"],
    }


def _sum(phases: dict[str, dict[str, float]], name: str) -> float:
    return sum(row.get(name, 0) for row in phases.values())
