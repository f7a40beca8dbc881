"""The demo's story: seven steps, every role a process of its own, every number measured or counted.

The commands are the ones that hospitals would type; they are written to ``commands.txt`` as they run.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from cloister.demo._hospitals import Hospitals, write_hospitals
from cloister.demo._machine import is_machine_prepared, machine_folder, prepare_machine
from cloister.demo._manifest import contributions, manifest_text
from cloister.demo._private import (
    HOSPITALS,
    agree_on_terms,
    compared,
    counted,
    make_program,
    measured,
    prepare_records,
    price,
    spent,
    told,
)
from cloister.demo._roles import Role, Script, free_port
from cloister.errors import InputError, IntegrityError

__all__ = ["Story", "tell"]

SCRIPTS = ("preprocess_a.py", "preprocess_b.py", "aggregate.py", "train.py")
OPERATORS = ("gpu-x", "gpu-y", "gpu-z")  # each with a worker of its own name
NAMES = ("hospital-a", "hospital-b", "lab", "doctor", "keys", "host", *OPERATORS)
SIGNERS = ("hospital-a", "hospital-b", "lab")
MARKER = "demo.json"  # written last: a folder that has it holds a finished run


@dataclass(slots=True)
class Story:
    """Where the demo is, and what it has found so far."""

    folder: Path
    say: Callable[[str], None]
    private: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    roles: dict[str, Role] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def step(self, number: int, name: str, text: str) -> None:
        """Prints one line of the story."""
        self.say(f" {number}/7 {name:<9} {text}")

    def path(self, *parts: str) -> str:
        """A path inside the demo's folder, relative to it: what commands get."""
        return str(Path(*parts))


def tell(folder: Path, say: Callable[[str], None], *, force: bool = False, private: bool = False) -> dict[str, Any]:
    """Runs the whole demo in ``folder`` and returns its facts.

    Args:
        folder: Made; its content is replaced only with ``force``, and only when an earlier demo left it.
        say: Prints one line.
        force: Replace an earlier demo.
        private: Train with differential privacy, by the manifest's terms.

    Raises:
        InputError: 2007 when the folder exists; 2006 when an extra is missing.
        CloisterError: whatever went wrong in a role, under its own code.
    """
    _require_extras()
    _clear(folder, force=force)
    say(" SIMULATED ENCLAVES: no hardware protection. Software signs the evidence, under this demo's development root.")
    if not is_machine_prepared(private=private):
        say(" Preparing this machine, once: its enclaves compile what they import, from measured source (a minute).")
        with suppress(InputError):  # nothing could be kept: stages compile for themselves
            prepare_machine(private=private)
    story = Story(folder.resolve(), say, private)
    script = Script(folder / "commands.txt")
    story.roles = {name: Role(name, story.folder / name, story.folder, script) for name in NAMES}
    with ExitStack() as stack:
        background = stack.enter_context(ThreadPoolExecutor(3))  # roles that know nothing of each other, and servers
        host = background.submit(_host, story)
        listening = background.submit(_key_manager, story, stack, host)
        operators = background.submit(_operators, story)
        hospitals = _data(story)
        host.result()
        operators.result()
        _agreement(story)
        listening.result()
        working = background.submit(_workers, story, stack)  # nobody needs them before the training
        _keys(story)
        without = background.submit(compared, story) if private else None
        serving = _train(story, stack, background)
        working.result()
        address = serving.result()
        head = background.submit(_head, story)
        _infer(story, hospitals, address)
        if without is not None:
            measured(story, address, without.result())
        _audit(story, head.result())
    story.facts["seconds"] = round(time.monotonic() - story.began, 1)
    (story.folder / MARKER).write_text(json.dumps(story.facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return story.facts


def _require_extras() -> None:
    import importlib.util

    needed = ["fastapi", "uvicorn", "sqlalchemy", "onnxruntime", "onnx", "sklearn", "torch", "numba"]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(2006, f"the demo needs {', '.join(missing)}", hint='pip install "cloister[demo]"')


def _clear(folder: Path, *, force: bool) -> None:
    if folder.exists() and any(folder.iterdir()):
        if not force:
            raise InputError(
                2007, f"'{folder}' is there already", hint="cloister demo --dir OTHER, or --force to replace"
            )
        if not (folder / "commands.txt").is_file():
            raise InputError(2007, f"'{folder}' was not made by the demo, so --force does not remove it")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _data(story: Story) -> Hospitals:
    """1: identities, data in two shapes, sealed images."""
    hospitals = write_hospitals(story.folder / "data")
    for name in ("hospital-a", "hospital-b"):
        shutil.move(story.folder / "data" / name, story.folder / name / "data")
    doctor = story.folder / "doctor"
    doctor.mkdir()
    shutil.move(hospitals.patients, doctor / "patients.csv")
    shutil.rmtree(story.folder / "data")
    scripts = story.folder / "lab" / "scripts"
    scripts.mkdir(parents=True)
    for folder, name in (("private", "export.py"),) if story.private else (("scripts", name) for name in SCRIPTS):
        text = resources.files("cloister.demo").joinpath(folder, name).read_bytes()
        (scripts / name).write_bytes(text)
    (story.folder / "storage").mkdir()
    work: list[Callable[[], None]] = []
    if story.private:
        work = [lambda: make_program(story), *(partial(prepare_records, story, name) for name in HOSPITALS)]
    story.facts["identities"], story.facts["images"] = {}, {}
    with ThreadPoolExecutor(2) as pool:
        for act in [pool.submit(act) for act in work]:
            act.result()
        list(pool.map(partial(_contribute, story), (*SIGNERS, "doctor")))
    done = "sealed, keys stay home"
    if story.private:
        agree_on_terms(story)
        done = f"cleaned at home:\n               records of {counted(story)} to test with"
    told = f"hospital-a {hospitals.rows_a} biopsies, hospital-b {hospitals.rows_b} in another shape → {done}"
    story.step(1, "data", told)
    return hospitals


def _contribute(story: Story, name: str) -> None:
    """Somebody's identity, and the images of what is theirs."""
    role = story.roles[name]
    story.facts["identities"][name] = role.run("party", "init", name)
    for image, made in contributions(private=story.private).items():
        if made.owner == name:
            to, key = story.path("storage", f"{image}.cloister"), story.path(name, f"{image}.cloister-key")
            what = ("seal", story.path(name, made.folder), "--name", image)
            story.facts["images"][image] = role.run(*what, "--to", to, "--key-out", key)


def _host(story: Story) -> None:
    """The simulated site, the key manager's new store, and the measurements that a manifest pins."""
    host, keys = story.roles["host"], story.roles["keys"]
    site = str(machine_folder())
    story.facts["site"] = host.run("attest", "site", site, "--reuse")
    roles = [part for kind in ("launcher", "service", "key-manager") for part in ("--role", kind)]
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(keys.run, "keys", "init", "--store", _store(story), "--site", site)
        found = host.run("enclave", "measure", *roles)
        story.facts["measurements"] = {kind: measured["measurement"] for kind, measured in found.items()}
        story.facts["port"] = free_port()
        story.facts["keys"] = {**made.result(), "url": f"http://127.0.0.1:{story.facts['port']}"}


def _key_manager(story: Story, stack: ExitStack, host: Future[None]) -> None:
    """The key manager's process; nobody needs it before the owners install their keys."""
    host.result()
    listen, site = f"127.0.0.1:{story.facts['port']}", story.facts["site"]["site"]
    server = story.roles["keys"].serve("keys", "serve", "--store", _store(story), "--site", site, "--listen", listen)
    stack.callback(server.close)


def _store(story: Story) -> str:
    return f"sqlite:///{story.folder / 'keys' / 'store.db'}"


def _operators(story: Story) -> None:
    """Who run the workers: each a party of its own, and its worker's key."""
    story.facts["workers"] = {}
    story.facts["operators"] = {}
    for name in OPERATORS:
        role = story.roles[name]
        story.facts["operators"][name] = role.run("party", "init", name)
        made = role.run("worker", "init", name, "--dir", story.path(name))
        story.facts["workers"][name] = {"key": made["key"], "url": f"tcp://127.0.0.1:{free_port()}"}


def _workers(story: Story, stack: ExitStack) -> None:
    """The workers' processes, on the CPU here; they see shares, and work for whoever reaches them."""
    for name in OPERATORS:
        address = story.facts["workers"][name]["url"].removeprefix("tcp://")
        key = story.path(name, f"{name}.key")
        stack.callback(story.roles[name].serve("worker", "serve", "--key", key, "--listen", address).close)


def _agreement(story: Story) -> None:
    """2: one manifest, pinned identities, three signatures."""
    manifest = manifest_text(story.facts, people=_people(story))
    (story.folder / "host" / "manifest.yaml").write_text(manifest, encoding="utf-8")
    host = story.roles["host"]
    signed = story.path("host", "manifest.signed.json")
    proposed = host.run("manifest", "propose", story.path("host", "manifest.yaml"), "-o", signed)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: _pin(story, name), SIGNERS))
    read = price(story, signed) if story.private else ()
    for name in SIGNERS:
        story.roles[name].run("manifest", "sign", signed, "--as", name, "--yes")
    story.facts["manifest"] = proposed["id"]
    story.step(
        2,
        "manifest",
        f"{proposed['id'][:12]}… proposed by the host, signed by hospital-a, hospital-b and lab    host/manifest.yaml",
    )
    for line in read:
        story.say(f"               {line}")


def _people(story: Story) -> dict[str, Any]:
    return {**story.facts["identities"], **story.facts["operators"]}


def _pin(story: Story, name: str) -> None:
    """What the partners do by phone: each reads out eight words, the other pins the keys that they belong to."""
    people = _people(story)
    others = [other for other in people if other != name]
    words = [part for other in others for part in ("--fingerprint", people[other]["fingerprint"])]
    story.roles[name].run("party", "trust", *(story.path(other, "home", f"{other}.pub") for other in others), *words)


def _keys(story: Story) -> None:
    """3: each owner verifies the key manager's evidence and installs its key."""
    signed = story.path("host", "manifest.signed.json")
    images = {name: made.owner for name, made in contributions(private=story.private).items()}

    def install(image: str, owner: str) -> dict[str, Any]:
        key = story.path(owner, f"{image}.cloister-key")
        arguments = ("keys", "install", signed, "--image", image, "--key-file", key, "--as", owner, "--allow-simulated")
        return story.roles[owner].run(*arguments)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda item: install(*item), images.items()))
    story.step(
        3,
        "keys",
        f"{len(SIGNERS)} owners verified the key manager's evidence (measurement ✓ debug off ✓ nonce ✓) "
        "and installed their keys",
    )


def _train(story: Story, stack: ExitStack, background: ThreadPoolExecutor) -> Future[str]:
    """4 and 5: the stages, each in an attested, sandboxed enclave.

    Returns:
        The address of the service, which starts as soon as there is a model.
    """
    host = story.roles["host"]
    lines = ['storage = "../storage"', f'site = "{machine_folder()}"', "[images]"]
    lines += [f'{name} = "../storage/{name}.cloister"' for name in story.facts["images"]]
    (story.folder / "host" / "host.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    began = time.monotonic()
    signed, where = story.path("host", "manifest.signed.json"), story.path("host", "host.toml")
    run = host.run("run", "start", signed, "--host", where, "--dir", story.path("host", "run"))
    seconds = time.monotonic() - began
    serving = background.submit(_serve, story, stack)
    story.facts["run"] = run
    story.step(
        4,
        "attest",
        f"{len(run['stages'])} stages: evidence over each key manager's nonce ✓  claims bound ✓  keys released by HPKE",
    )
    receipt = _receipt(story)
    made = spent(story, receipt) if story.private else _reported(story, run)
    story.step(5, "train", f"{len(run['stages'])} sandboxed stages in {seconds:.1f} s → {made}")
    found = story.facts["offload"] = receipt.get("offload")
    if found:
        story.say(
            f"               {found['products']} products by three workers, who saw shares ({found['mode']}); "
            f"each was checked,\n               a wrong one passed with probability below 2^-{found['error_bits']}"
        )
    return serving


def _reported(story: Story, run: dict[str, Any]) -> str:
    """What the report says that was released to the hospitals."""
    hospital, image = story.roles["hospital-a"], run["stages"]["train"]["outputs"]["report"]["url"]
    where = ("--run", run["run"], "--image", image, "--as", hospital.name, "--to", story.path(hospital.name, "report"))
    hospital.run("run", "collect", story.path("host", "manifest.signed.json"), "report", *where)
    metrics = json.loads((hospital.folder / "report" / "metrics.json").read_text(encoding="utf-8"))
    story.facts["metrics"] = metrics
    return (
        f"{metrics['train_patients']} patients to train, {metrics['test_patients']} to test: "
        f"accuracy {metrics['accuracy']:.3f}, AUC {metrics['auc']:.3f}"
    )


def _receipt(story: Story) -> dict[str, Any]:
    """What the training stage's receipt says."""
    from cloister.run import RunFolder
    from cloister.wire import parse_json

    attempts = RunFolder(story.folder / "host" / "run").state().attempts
    receipt = next(each.receipt for each in attempts if each.consumer == "train" and each.receipt is not None)
    said: dict[str, Any] = parse_json(receipt.payload, what="receipt")
    return said["predicate"]


def _serve(story: Story, stack: ExitStack) -> str:
    """The confidential service's process, and where it listens."""
    address = f"127.0.0.1:{free_port()}"
    where, folder = story.path("host", "host.toml"), story.path("host", "run")
    server = story.roles["host"].serve("run", "serve", folder, "--host", where, "--listen", address)
    stack.callback(server.close)
    return f"http://{address}"


def _infer(story: Story, hospitals: Hospitals, url: str) -> None:
    """6: the sealed model answers a doctor about five patients it has never seen."""
    doctor = story.roles["doctor"]
    where = ("--manifest", story.path("host", "manifest.signed.json"), "--id", story.facts["manifest"], "--url", url)
    receipts = ("--receipts", story.path("doctor", "receipts.jsonl"))
    answers = doctor.run("predict", story.path("doctor", "patients.csv"), *where, "--as", "doctor", *receipts)
    story.facts["predictions"] = answers["predictions"]
    story.step(
        6, "infer", f"{len(answers['predictions'])} patients asked of the sealed model; the host saw ciphertext only"
    )
    for row in answers["predictions"]:
        story.say(f"               {row['row']:<12} {row['text']}   pathology says {hospitals.diagnoses[row['row']]}")


def _head(story: Story) -> str:
    """The key manager's tree head, which hospital A fetches itself once nobody is released a key any more."""
    head = story.path("hospital-a", "head.json")
    story.roles["hospital-a"].run("keys", "head", story.path("host", "manifest.signed.json"), "--out", head)
    return head


def _audit(story: Story, head: str) -> None:
    """7: hospital A checks everything offline, against the head that it has."""
    host, hospital = story.roles["host"], story.roles["hospital-a"]
    bundle = story.path("host", "run.bundle.json")
    asked = ("doctor", *HOSPITALS) if story.private else ("doctor",)
    receipts = [part for name in asked for part in ("--receipts", story.path(name, "receipts.jsonl"))]
    host.run(
        "run", "bundle", story.path("host", "run"), "--host", story.path("host", "host.toml"), "-o", bundle, *receipts
    )
    report = hospital.run("audit", "verify", bundle, "--at", "now", "--head", head, "--html", "audit.html")
    story.facts["audit"] = {"outcome": report["outcome"], **report["count"]}
    if report["outcome"] != "asserted":
        refuted = [check for check in report["checks"] if check["status"] != "asserted" and check["required"]]
        raise IntegrityError(5360, f"the demo's own audit did not pass: {refuted[:3]}")
    count = report["count"]
    story.step(
        7,
        "audit",
        f"{count['asserted']} checks passed, {count['refuted']} failed, {count['unknown']} not provable (it says why)",
    )
    for line in told(report) if story.private else ():
        story.say(f"               {line}")
