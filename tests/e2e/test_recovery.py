"""Real processes throughout: two key managers, a stage that fails before it succeeds, a runner that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cloister.demo._roles import Role, Script, free_port
from cloister.errors import CloisterError
from cloister.run import RunFolder

pytestmark = pytest.mark.slow

OWNERS = {"hospital-a": "keys-a", "hospital-b": "keys-b", "lab": "keys-a"}
IMAGES = {"hospital-a": "data-a", "hospital-b": "data-b", "lab": "scripts"}
COPY = "import pathlib, sys; pathlib.Path(sys.argv[2], 'n').write_bytes(pathlib.Path(sys.argv[1], 'n').read_bytes())"
JOIN = """
import pathlib, sys, time
if time.time() < float(sys.argv[4]):
    time.sleep(10)  # so that the next attempt is under way when the runner is killed
    sys.exit(3)
total = sum(int(pathlib.Path(folder, 'n').read_text()) for folder in sys.argv[1:3])
pathlib.Path(sys.argv[3], 'total').write_text(str(total))
"""


@dataclass
class Site:
    """The roles of one run, and what they agreed on."""

    folder: Path
    roles: dict[str, Role]
    signed: Path

    def runner(self, *arguments: object) -> subprocess.Popen[str]:
        return self.roles["host"]._start([*map(str, arguments), "--json"], stdout=subprocess.PIPE)

    def failures(self, stage: str) -> list[int]:
        """Under which codes the runner wrote down that attempts of a stage ended, so far."""
        try:
            state = RunFolder(self.folder / "host" / "run").state()
        except CloisterError:  # not begun
            return []
        return [record.code for record in state.attempts if record.consumer == stage and record.code]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    script = Script(tmp_path / "commands.txt")
    names = (*OWNERS, "host", "keys-a", "keys-b")
    roles = {name: Role(name, tmp_path / name, tmp_path, script) for name in names}
    host = roles["host"]
    with ExitStack() as stack:
        people = {name: roles[name].run("party", "init", name) for name in OWNERS}
        (tmp_path / "storage").mkdir()
        images = {owner: _sealed(tmp_path, roles[owner], owner) for owner in OWNERS}
        root = host.run("attest", "site", "host/site")["root_spki"]
        measured = {
            kind: host.run("enclave", "measure", "--role", kind)["measurement"] for kind in ("launcher", "key-manager")
        }
        managers = {name: _served(tmp_path, roles[name], name, stack) for name in ("keys-a", "keys-b")}
        manifest = _manifest(people, images, root, measured, managers)
        (tmp_path / "host" / "manifest.yaml").write_text(json.dumps(manifest), encoding="utf-8")
        signed = tmp_path / "host" / "manifest.signed.json"
        host.run("manifest", "propose", "host/manifest.yaml", "-o", str(signed))
        for name in OWNERS:
            others = [other for other in OWNERS if other != name]
            words = [part for other in others for part in ("--fingerprint", people[other]["fingerprint"])]
            roles[name].run("party", "trust", *(f"{other}/home/{other}.pub" for other in others), *words)
            roles[name].run("manifest", "sign", str(signed), "--as", name, "--yes")
        for name, image in IMAGES.items():
            key = f"{name}/{image}.cloister-key"
            arguments = ("--image", image, "--key-file", key, "--as", name, "--allow-simulated")
            roles[name].run("keys", "install", str(signed), *arguments)
        lines = ['storage = "../storage"', 'site = "site"', "attempts = 9", "[images]"]
        lines += [f'{image} = "../storage/{image}.cloister"' for image in IMAGES.values()]
        (tmp_path / "host" / "host.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
        yield Site(tmp_path, roles, signed)


def _sealed(folder: Path, role: Role, owner: str) -> dict[str, Any]:
    source = folder / owner / "content"
    source.mkdir(parents=True)
    if owner == "lab":
        (source / "copy.py").write_text(COPY)
        (source / "join.py").write_text(JOIN)
    else:
        (source / "n").write_text("40" if owner == "hospital-a" else "2")
    image = IMAGES[owner]
    places = ("--to", f"storage/{image}.cloister", "--key-out", f"{owner}/{image}.cloister-key")
    return role.run("seal", f"{owner}/content", "--name", image, *places)


def _served(folder: Path, role: Role, name: str, stack: ExitStack) -> dict[str, Any]:
    store = f"sqlite:///{folder / name / 'store.db'}"
    (folder / name).mkdir(exist_ok=True)
    facts = role.run("keys", "init", "--store", store, "--site", "host/site")
    port = free_port()
    server = role.serve("keys", "serve", "--store", store, "--site", "host/site", "--listen", f"127.0.0.1:{port}")
    stack.callback(server.close)
    return {"sign": facts["sign"], "url": f"http://127.0.0.1:{port}"}


def _manifest(
    people: dict[str, Any], images: dict[str, Any], root: str, measured: dict[str, str], managers: dict[str, Any]
) -> dict[str, Any]:
    now = datetime.now(UTC)
    until = f"{time.time() + 75:.0f}"  # the join's first attempts end before, its last begins after
    limits = {"memory_bytes": "1 GiB", "time_s": "2 min"}

    def stage(inputs: list[str], output: str, *argv: str) -> dict[str, Any]:
        outputs = {output: {"max_bytes": "1 MiB"}}
        command = ["python", *argv]
        return {
            "tee": "launcher",
            "code": "scripts",
            "argv": command,
            "inputs": inputs,
            "outputs": outputs,
            "limits": limits,
        }

    tee = {"type": "tdx", "tcb": ["UpToDate"], "simulated_root": root}
    return {
        "cloister": 1,
        "name": "recovery",
        "purpose": "Two hospitals add two numbers, each with a key manager of its own.",
        "valid": {
            "not_before": (now - timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "not_after": (now + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        },
        "parties": {name: {"sign": facts["sign"], "hpke": facts["hpke"]} for name, facts in people.items()},
        "tees": {kind: {**tee, "measurements": [measurement]} for kind, measurement in measured.items()},
        "registrar": "keys-a",
        "key_managers": {name: {**facts, "tee": "key-manager"} for name, facts in managers.items()},
        "images": {
            IMAGES[owner]: {
                "id": facts["id"],
                "kind": "code" if owner == "lab" else "dataset",
                "owner": owner,
                "key_manager": OWNERS[owner],
                "uses": 40,
            }
            for owner, facts in images.items()
        },
        "stages": {
            "prepare": stage(["data-a"], "clean", "copy.py", "/inputs/data-a", "/outputs/clean"),
            "join": stage(
                ["clean", "data-b"], "sum", "join.py", "/inputs/clean", "/inputs/data-b", "/outputs/sum", until
            ),
        },
        "releases": [{"output": "clean", "stage": "join"}, {"output": "sum", "party": "hospital-a"}],
    }


def test_a_failed_attempt_is_tried_again_and_a_killed_runner_goes_on(site: Site) -> None:
    host, hospital = site.roles["host"], site.roles["hospital-a"]
    runner = site.runner("run", "start", site.signed, "--host", "host/host.toml", "--dir", "host/run")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not site.failures("join"):
        time.sleep(0.2)
        assert runner.poll() is None, (site.folder / "host" / "log.txt").read_text()
    os.killpg(runner.pid, signal.SIGKILL)
    runner.communicate()
    assert site.failures("join")[0] == 5501  # the script really failed
    done = host.run("run", "resume", "host/run", "--host", "host/host.toml")
    assert done["stages"]["prepare"]["attempts"] == 1  # what was finished is not done again
    assert done["stages"]["join"]["attempts"] >= 2
    output = done["stages"]["join"]["outputs"]["sum"]
    collected = ("--run", done["run"], "--image", output["url"], "--as", "hospital-a", "--to", "hospital-a/sum")
    hospital.run("run", "collect", str(site.signed), "sum", *collected)
    assert (site.folder / "hospital-a" / "sum" / "total").read_text() == "42"
    hospital.run("keys", "head", str(site.signed), "--out", "hospital-a/heads.json")
    host.run("run", "bundle", "host/run", "--host", "host/host.toml", "-o", "host/run.bundle.json")
    audit = ("audit", "verify", "host/run.bundle.json", "--at", "now", "--head", "hospital-a/heads.json")
    report = hospital.run(*audit)
    assert report["outcome"] == "asserted"
    complete = {
        check["subject"]: check["status"] for check in report["checks"] if check["what"].startswith("the log is")
    }
    assert complete == {"keys-a": "asserted", "keys-b": "asserted"}
