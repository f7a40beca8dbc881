"""Key releases per second and their latency, against a real server process over loopback.

What is measured: ``POST /v1/releases`` of a running key manager (simulated TDX evidence, verified in full for each
request; SQLite on disk, synced before each answer; hybrid HPKE; signed answer with log receipt), 64 connections at
once. Challenges and evidence are made before the clock starts: making them is the launcher's work.

Baseline, in the same run, by the same client: a FastAPI endpoint without any check that makes one synced SQLite commit
a request. The ratio says what attestation, policy, encryption, signatures and the log cost on top of that.

    python benchmarks/key_release.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from _machine import machine
from cloister.attest import SimulatedSite
from cloister.keys import (
    KeyManagerClient,
    KeyRelease,
    KeyRule,
    Service,
    StageSession,
    initialise,
    install_key,
    listen_at,
    open_signed,
    require_receipt,
    store_at,
    verify_service,
)
from cloister.manifest import (
    Image,
    KeyManager,
    Manifest,
    Output,
    Party,
    Release,
    SignedManifest,
    Stage,
    Tee,
    Validity,
    sign,
)
from cloister.party import Identity
from cloister.wire import Envelope, Secret, VerifyKey, parse_message

LAUNCHER, KEYS = b"\x11" * 48, b"\x22" * 48
CONNECTIONS = 64
USES = 1_000_000


def serve_keys(store: str, site: str) -> None:
    service = Service(store_at(store), attester=SimulatedSite.open(site).attester(KEYS))
    listen_at(service, "127.0.0.1:0", ready=lambda address: print(address, flush=True))


def serve_baseline(path: str) -> None:
    """No signature, no policy, no encryption: the least that a durable answer costs in this framework."""
    import socket
    import threading

    import uvicorn
    from fastapi import FastAPI, Request, Response

    database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        database.execute(f"PRAGMA {pragma}")
    database.execute("CREATE TABLE entries (place INTEGER PRIMARY KEY, leaf BLOB)")
    lock = threading.Lock()
    app = FastAPI()

    def commit(body: bytes) -> None:
        with lock:
            database.execute("BEGIN IMMEDIATE")
            database.execute("INSERT INTO entries (leaf) VALUES (?)", (body[:1500],))
            database.execute("COMMIT")

    async def release(request: Request) -> Response:
        body = await request.body()
        await asyncio.get_running_loop().run_in_executor(None, commit, body)
        return Response(b'{"ok":true}', media_type="application/json")

    app.add_route("/v1/releases", release, methods=["POST"])
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(512)
        print(f"127.0.0.1:{taken.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")).run(sockets=[taken])


@contextmanager
def server(*arguments: str) -> Iterator[tuple[str, int]]:
    """A server process of this script; its address and process id."""
    command = [sys.executable, __file__, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise SystemExit("the server did not start")
        yield address, process.pid
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


# ---- the world -----------------------------------------------------------------------------------------------------


def agreement(sign_key: str, root: str, owner: Identity) -> SignedManifest:
    now = datetime.now(UTC)

    def tee(code: bytes) -> Tee:
        return Tee(type="tdx", measurements=(code.hex(),), simulated_root=root)

    def image(digit: str, kind: str) -> Image:
        return Image(id=digit * 64, kind=kind, owner=owner.name, key_manager="keys", uses=USES)  # type: ignore[arg-type]

    def at(moment: datetime) -> str:
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

    made = Output(max_bytes=1 << 20)
    stage = Stage(tee="launcher", code="scripts", argv=("python", "x.py"), inputs=("data",), outputs={"model": made})
    manifest = Manifest(
        cloister=1,
        name="benchmark",
        valid=Validity(not_before=at(now - timedelta(hours=1)), not_after=at(now + timedelta(days=1))),
        parties={owner.name: Party(sign=str(owner.signing_key.public), hpke=str(owner.opening_key.public))},
        key_managers={"keys": KeyManager(sign=sign_key, tee="keys")},
        registrar="keys",
        tees={"launcher": tee(LAUNCHER), "keys": tee(KEYS)},
        images={"data": image("a", "dataset"), "scripts": image("b", "code")},
        stages={"train": stage},
        releases=(Release(output="model", party=owner.name),),
    )
    return sign(SignedManifest(manifest=manifest), owner)


def install(client: KeyManagerClient, signed: SignedManifest, owner: Identity) -> None:
    now = datetime.now(UTC)
    service = verify_service(client, signed.manifest, "keys", at=now, allow_simulated=True)
    client.install_manifest(signed)
    for image in signed.manifest.images:
        rule = KeyRule(uses=USES, simulated=True)
        given = {"manifest": signed.manifest, "image": image, "key": Secret.random(64), "rule": rule}
        install_key(client, service, identity=owner, **given)


def requests(client: KeyManagerClient, signed: SignedManifest, site: SimulatedSite, count: int) -> list[bytes]:
    """Release requests that are ready to send: each its own attempt, session and evidence."""
    attester, bodies = site.attester(LAUNCHER), list[bytes]()
    run = client.start_run(signed.manifest.id)
    for number in range(count):
        if number % 500 == 499:
            run = client.start_run(signed.manifest.id)
        grant = client.start_attempt(run, "train")
        session = StageSession(signed.manifest, "train")
        claims = session.claims(grant, {"keys": client.challenge(grant)})
        bodies.append(session.request("keys", attester.attest(claims.report_data())).canonical())
    return bodies


# ---- the load ------------------------------------------------------------------------------------------------------


async def drive(address: str, bodies: list[bytes], connections: int) -> tuple[float, list[float], list[bytes]]:
    """Sends every body once over so many kept-alive connections: seconds in all, latency of each, answers.

    The client is as small as it can be, so that it takes little of the cores that the server needs too.
    """
    host, port = address.split(":")
    waiting, latencies, answers = iter(bodies), list[float](), list[bytes]()

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for body in waiting:
            head = f"POST /v1/releases HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
            began = time.perf_counter()
            writer.write(head.encode() + body)
            header = await reader.readuntil(b"\r\n\r\n")
            length = int(header.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            answer = await reader.readexactly(length)
            latencies.append(time.perf_counter() - began)
            if not header.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"the server refused: {answer[:400]!r}")
            answers.append(answer)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(connections)))
    return time.perf_counter() - began, latencies, answers


def measure(address: str, pid: int, bodies: list[bytes], connections: int) -> tuple[dict[str, float], list[bytes]]:
    cpu = cpu_seconds(pid)
    seconds, latencies, answers = asyncio.run(drive(address, bodies, connections))
    cuts = statistics.quantiles(latencies, n=100)
    return {
        "per_s": len(bodies) / seconds,
        "p50_ms": cuts[49] * 1e3,
        "p99_ms": cuts[98] * 1e3,
        "server_cpu_ms": (cpu_seconds(pid) - cpu) / len(bodies) * 1e3,
        "requests": len(bodies),
        "connections": connections,
    }, answers


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def check(answers: list[bytes], key: VerifyKey) -> None:
    """Every answer is a signed release whose receipt holds; every log entry is another one."""
    indices = set[int]()
    for answer in answers:
        said = open_signed(KeyRelease, parse_message(Envelope, answer, what="answer"), key)
        require_receipt(said.receipt, key)
        indices.add(said.receipt.index)
    if len(indices) != len(answers):
        raise SystemExit("two releases share a log entry")


def run(count: int, folder: Path, note: Callable[[str], None]) -> dict[str, dict[str, float]]:
    site = SimulatedSite.create(folder / "site")
    url = f"sqlite:///{folder / 'store.db'}"
    made = initialise(store_at(url), now=datetime.now(UTC), attester=site.attester(KEYS))
    owner, key = Identity.generate("owner"), VerifyKey.parse(made.sign)
    results: dict[str, dict[str, float]] = {}
    few = count // 8
    with server("--serve-keys", url, str(folder / "site")) as (address, pid):
        client = KeyManagerClient(f"http://{address}", key)
        signed = agreement(made.sign, site.root_spki, owner)
        install(client, signed, owner)
        note(f"making {count} attested requests")
        bodies = requests(client, signed, site, count + 64 + few)
        warm, one, load = bodies[:64], bodies[64 : 64 + few], bodies[64 + few :]
        measure(address, pid, warm, 8)
        results["release, 1 at a time"], _ = measure(address, pid, one, 1)
        results[f"release, {CONNECTIONS} at once"], answers = measure(address, pid, load, CONNECTIONS)
        check(answers, key)
    with server("--serve-baseline", str(folder / "baseline.db")) as (address, pid):
        measure(address, pid, warm, 8)
        results["baseline, 1 at a time"], _ = measure(address, pid, one, 1)
        results[f"baseline, {CONNECTIONS} at once"], _ = measure(address, pid, load, CONNECTIONS)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="400 requests in place of 3000")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--folder", type=Path, help="where the databases go; a temporary folder by default")
    parser.add_argument("--serve-keys", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--serve-baseline", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve_keys:
        return serve_keys(*asked.serve_keys)
    if asked.serve_baseline:
        return serve_baseline(asked.serve_baseline)
    count = 400 if asked.quick else 3000
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        results = run(count, Path(folder), lambda text: print(text, file=sys.stderr))
    keys, base = results[f"release, {CONNECTIONS} at once"], results[f"baseline, {CONNECTIONS} at once"]
    ratio = keys["per_s"] / base["per_s"]
    where = machine()
    print(f"{'':<24}{'per s':>9}{'p50 ms':>9}{'p99 ms':>9}{'server CPU ms':>15}")
    for name, row in results.items():
        cells = f"{row['per_s']:>9.0f}{row['p50_ms']:>9.1f}{row['p99_ms']:>9.1f}{row['server_cpu_ms']:>15.2f}"
        print(f"{name:<24}{cells}")
    print(f"release / baseline at {CONNECTIONS}: {ratio:.2f}    ({where}; client on the same cores)")
    if asked.json:
        facts = {"results": results, "ratio": ratio, "machine": where}
        asked.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
