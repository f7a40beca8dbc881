"""One party of a benchmark as a process of its own: it reads a job from its input and writes what it measured.

{"command": "read", …}      draws its rows, reduces them, keeps their moments in a file
{"command": "session", …}   fits with the others over TLS, from the moments or from a Parquet file
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cloister.linear._agreed_rows import rows_of, summary_of
from cloister.linear._agreement import Agreement
from cloister.linear._consent import load_agreement
from cloister.linear._gram import RowFactor
from cloister.linear._link import TlsChannel
from cloister.linear._local import reduced
from cloister.linear._meeting import connect
from cloister.linear._plan import ITERATE_BITS
from cloister.linear._rows import Part, Rows
from cloister.linear._session import run_session
from cloister.linear._summary import Summary, summarise
from cloister.party import Identity
from cloister.wire import OpeningKey, Secret, SigningKey

__all__ = ["Timed", "peak_bytes"]


def peak_bytes() -> int:
    """Of this process so far, as the kernel counts it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


class Timed:
    """A channel that keeps the time of each phase, and how much of it a party spent in its links."""

    def __init__(self, channel: TlsChannel) -> None:
        self.party, self.parties = channel.party, channel.parties
        self.phases: dict[str, dict[str, float]] = {}
        self._channel = channel
        self._since = (time.perf_counter(), time.process_time())
        self._phase = channel.phase

    def begin(self, phase: str) -> None:
        self.note()
        self._phase = phase
        self._channel.begin(phase)

    def note(self) -> None:
        """Counts the time since it was last counted to the phase that runs."""
        now = (time.perf_counter(), time.process_time())
        self._count(wall_s=now[0] - self._since[0], cpu_s=now[1] - self._since[1])
        self._since = now

    def swap(self, kind: str, bodies: Sequence[bytes], size_bytes: int) -> list[bytes]:
        start = time.perf_counter()
        received = self._channel.swap(kind, bodies, size_bytes)
        self._count(link_s=time.perf_counter() - start, steps=1)
        return received

    def abort(self, code: int) -> None:
        self._channel.abort(code)

    def _count(self, **found: float) -> None:
        row = self.phases.setdefault(self._phase, {})
        for name, value in found.items():
            row[name] = row.get(name, 0) + value


def read(job: dict[str, Any]) -> dict[str, Any]:
    """Draws and reduces; ours and the plain contender's share of the time."""
    from _linear_rows import Drawn, Plain, World
    from cloister.linear._scaling import Scaling

    world = World(job["features"])
    plain, taken = Plain(world), {"draw": 0.0, "plain": 0.0}
    part = Drawn(world, job["party"], job["rows"], plain, taken)
    scaling = Scaling(part.names, tuple(plain.centres), tuple(plain.scales))
    start = time.perf_counter()
    factor = reduced(scaling.chunks(part), world.features + 2, None)
    whole = time.perf_counter() - start
    np.savez(job["moments"], ours=factor._gram, plain=plain.gram, count=factor.count)
    return taken | {"read": whole - sum(taken.values()), "peak_bytes": peak_bytes()}


def session(job: dict[str, Any]) -> dict[str, Any]:
    """One session, from the start of this process to the model."""
    held, place = load_agreement(job["agreement"].encode()), job["party"]
    key = SigningKey(Secret(bytes.fromhex(job["seed"])))
    identity = Identity(held.parties[place].name, key, OpeningKey.generate())
    phases: dict[str, dict[str, float]] = {}
    phases["start"] = {"wall_s": time.monotonic() - job["launched"], "cpu_s": time.process_time()}
    summary, part = own(held, place, job)
    known = time.monotonic() - job["launched"], time.process_time()
    phases["read"] = {name: at - phases["start"][name] for name, at in zip(("wall_s", "cpu_s"), known, strict=True)}
    with connect(held, place, key, listen=job["listen"]) as channel:
        met = time.monotonic() - job["launched"], time.process_time()
        phases["connect"] = {name: at - was for name, at, was in zip(("wall_s", "cpu_s"), met, known, strict=True)}
        timed = Timed(channel)
        released = run_session(timed, held, summary, identity=identity, part=part, degree=job["degree"])
        timed.note()
    for name, row in timed.phases.items():
        traffic = channel.traffic.get(name)
        up, down = (traffic.up_bytes, traffic.down_bytes) if traffic else (0, 0)
        phases[name] = row | {"up_bytes": up, "down_bytes": down}
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "phases": phases,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_bytes": peak_bytes(),
        "model": [value / 2**ITERATE_BITS for value in released.values],
    }


def own(held: Agreement, place: int, job: dict[str, Any]) -> tuple[Summary, Part]:
    """What this party puts in, and its rows, which no fit but Newton's reads again."""
    if job.get("file"):
        part = rows_of(held, Path(job["file"]))
        return summary_of(held, place, part), part
    with np.load(job["moments"]) as moments:
        factor = RowFactor.of(moments["ours"], int(moments["count"]))
    return summarise(held.plan(), place, factor, held.columns), Rows(held.columns, np.empty((0, 0)), np.empty(0))


def main() -> None:
    job = json.loads(sys.stdin.read())
    work = {"read": read, "session": session}[job["command"]]
    if job.get("profile"):
        import cProfile

        profile = cProfile.Profile()
        found = profile.runcall(work, job)
        profile.dump_stats(job["profile"])
    else:
        found = work(job)
    print(json.dumps(found), flush=True)
    os._exit(0)  # what follows is the interpreter's, not the party's


if __name__ == "__main__":
    main()
