"""Runs without a sandbox: real key managers in this process, and an executor whose launchers attest and sign for real.

What a launcher seals is made up (image ids are digests of names); everything that is signed is signed by who must.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.keyworld import LAUNCHER, World, attester_of

from cloister.enclave import Job, StageFailure, StageOutcome, StageResult, seal_log
from cloister.enclave._findings import RECORD_INFO, sign_findings
from cloister.errors import CloisterError, PeerError
from cloister.keys import (
    AttemptGrant,
    IndexedEntry,
    LogPage,
    LogQuery,
    MerkleLog,
    RegistrationRequest,
    RunGrant,
    StageSession,
    TreeHead,
    obtain,
    open_signed,
    parse_entry,
    sign_message,
)
from cloister.keys._selection import selects
from cloister.ledger import Ledger, begin_ledger
from cloister.manifest import (
    PRIVATE_TRAINING,
    Manifest,
    OffloadTerms,
    Output,
    PrivacyBudget,
    PrivacyTerms,
    Release,
    Stage,
    Worker,
    inputs_of,
    order_of,
    readers_of_findings,
)
from cloister.receipt import AttemptRecord, Bundle, OffloadFacts, Resumed, SealedOutput, StageFacts, sign_receipt
from cloister.run import Event, Host, RunFolder, Runner, make_bundle, start_run
from cloister.serve import RECEIPT_LABEL, InferenceReceipt
from cloister.wire import Envelope, OpeningKey, SealingKey, VerifyKey, digest, sign_envelope

__all__ = [
    "BUDGET",
    "TERMS",
    "FakeExecutor",
    "Place",
    "edit",
    "made",
    "many_stages",
    "relog",
    "rerecord",
    "served",
    "with_logs",
    "with_offload",
    "with_privacy",
]

AT = "2026-11-20T12:00:00Z"


def with_logs(manifest: Manifest) -> Manifest:
    """The manifest, with ``train`` telling hospital-a what it prints."""
    train = manifest.stages["train"].model_copy(update={"logs": ("hospital-a",)})
    return manifest.model_copy(update={"stages": {**manifest.stages, "train": train}})


def with_offload(manifest: Manifest) -> Manifest:
    """The manifest, with the layers of ``train`` on three workers, one of which hospital-b operates."""
    operators = {"gpu-x": "lab", "gpu-y": "doctor", "gpu-z": "hospital-b"}
    workers = {
        name: Worker(
            operator=operator, url=f"tcp://{name}:8430", key=str(OpeningKey.generate(post_quantum=False).public)
        )
        for name, operator in operators.items()
    }
    terms = OffloadTerms(mode="shared3", workers=tuple(workers))
    train = manifest.stages["train"].model_copy(update={"network": terms.workers, "offload": terms})
    return manifest.model_copy(update={"workers": workers, "stages": {**manifest.stages, "train": train}})


TERMS = PrivacyTerms(
    epsilon="2", delta="1e-6", unit="record", units=1000, batch=10, steps=100, noise_multiplier="1", clip="1"
)
BUDGET = PrivacyBudget(epsilon="2", delta="1e-5", unit="record")


def with_privacy(manifest: Manifest, *, budget: PrivacyBudget | None = BUDGET) -> Manifest:
    """The manifest, with ``prepare`` a private training of both data sets, and ``train`` what becomes of its result."""
    prepare = manifest.stages["prepare"].model_copy(update={"argv": PRIVATE_TRAINING, "privacy": TERMS})
    images = {
        name: image if image.kind == "code" else image.model_copy(update={"budget": budget, "uses": 50})
        for name, image in manifest.images.items()
    }
    return manifest.model_copy(update={"stages": {**manifest.stages, "prepare": prepare}, "images": images})


def _trained(manifest: Manifest, stage: str, run: str) -> Ledger | None:
    if manifest.stages[stage].privacy is None:
        return None
    order = order_of(manifest, stage, run=run)
    return begin_ledger(run=order.id, unit=order.unit, relation=order.relation).append(order.event)


def _offloaded(stage: Stage) -> OffloadFacts | None:
    if stage.offload is None:
        return None
    counts = {"products": 1200, "checks": 1200, "error_bits": 47, "sent_bytes": 5000000, "received_bytes": 3000000}
    return OffloadFacts(mode=stage.offload.mode, workers=stage.offload.workers, models=1, **counts)


def made(attempt: AttemptGrant, output: str) -> str:
    """The image id that a fake attempt gives an output."""
    return digest(f"{attempt.run} {attempt.consumer} {attempt.attempt} {output}".encode())


class FakeTask:
    """An attempt in a thread; ``cancel`` ends its waiting."""

    def __init__(self, work: Callable[[threading.Event], StageOutcome]) -> None:
        self._halt, self._outcome = threading.Event(), StageOutcome(failure=StageFailure.of(PeerError(6501)))
        self.cancelled = False
        self._thread = threading.Thread(target=self._follow, args=(work,))
        self._thread.start()

    def _follow(self, work: Callable[[threading.Event], StageOutcome]) -> None:
        self._outcome = work(self._halt)

    def done(self) -> bool:
        return not self._thread.is_alive()

    def outcome(self, timeout_s: float | None = None) -> StageOutcome:
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError
        return self._outcome

    def cancel(self) -> None:
        self.cancelled = True
        self._halt.set()
        self._thread.join()


@dataclass
class FakeExecutor:
    """Launchers that attest, get their keys, register and sign like real ones, and run no script.

    ``script`` is asked (stage, attempt, halt) in place of the stage's script; what it raises ends the attempt.
    ``deliver`` says at which key managers the launcher itself delivers its registration, ``after`` is called then,
    and ``lie`` changes the receipt before it is signed. ``record`` is what failed when a script ends with 5701.
    ``saves`` says how many checkpoints an attempt saves first.
    """

    world: World
    script: Callable[[str, int, threading.Event], None] = lambda stage, attempt, halt: None
    deliver: Callable[[str], bool] = lambda name: True
    after: Callable[[str, int], None] = lambda stage, attempt: None
    text: bytes = b"epoch 1\n"
    record: bytes = b'{"format": 1, "count": 1, "failures": [{"layer": "classifier.first", "step": 3}]}'
    lie: Callable[[StageFacts], StageFacts] = lambda facts: facts
    saves: Callable[[str, int], int] = lambda stage, attempt: 0
    jobs: list[Job] = field(default_factory=list)
    tasks: list[FakeTask] = field(default_factory=list)

    name = "fake"

    def submit(self, job: Job) -> FakeTask:
        self.jobs.append(job)
        task = FakeTask(lambda halt: self._launch(job, halt))
        self.tasks.append(task)
        return task

    def _launch(self, job: Job, halt: threading.Event) -> StageOutcome:
        more: dict[str, Any] = {}
        try:
            return StageOutcome(result=self._attempt(job, halt, more))
        except CloisterError as error:
            return StageOutcome(failure=StageFailure.of(error, **more))

    def _attempt(self, job: Job, halt: threading.Event, more: dict[str, Any]) -> StageResult:
        manifest, clients = job.manifest.manifest, self.world.clients
        stage = manifest.stages[job.stage]
        grant = open_signed(AttemptGrant, job.grant, self.world.registrar.key)
        session = StageSession(manifest, job.stage)
        got = obtain(session, job.grant, clients=clients, attester=attester_of(self.world, LAUNCHER))
        log = None
        if stage.logs:
            readers = {name: SealingKey.parse(manifest.parties[name].hpke) for name in stage.logs}
            log = seal_log(self.text, readers=readers, attempt=grant.digest(), key=session.sign)
        more |= {"claims": got.claims, "evidence": got.evidence, "releases": dict(got.releases), "log": log}
        last = None if got.granted.checkpoints is None else got.granted.checkpoints.last
        for number in range(self.saves(job.stage, grant.attempt)):
            sequence = number + 1 + (0 if last is None else last.sequence)
            saved = session.checkpoint(sequence=sequence, checkpoint=digest(f"{grant.attempt} {sequence}".encode()))
            for name in session.contributors:
                clients[name].save_checkpoint(saved)
        try:
            self.script(job.stage, grant.attempt, halt)
        except CloisterError as error:
            if error.code == 5701:
                told = {n: manifest.parties[n] for n in readers_of_findings(manifest, job.stage)}
                record = self.record.ljust(4096)
                sealed = {n: SealingKey.parse(p.hpke).seal(record, info=RECORD_INFO) for n, p in told.items()}
                more["findings"] = sign_findings(sealed, attempt=grant.digest(), key=session.sign)
            raise
        if halt.is_set():
            raise PeerError(6503)
        images = {name: made(grant, name) for name in stage.outputs}
        inputs = {
            name: manifest.images[name].id if name in manifest.images else got.granted.inputs[name][0]
            for name in inputs_of(manifest, job.stage)
        }
        facts = StageFacts(
            manifest=manifest.id,
            run=grant.run,
            stage=job.stage,
            attempt=grant.attempt,
            inputs=inputs,
            outputs={name: SealedOutput(image=image, size_bytes=1000) for name, image in images.items()},
            claims=got.claims.digest(),
            evidence=got.evidence.quote_digest(),
            assurance="simulated",
            sandbox="bubblewrap",
            exit_status=0,
            started_at=AT,
            ended_at=AT,
            logs=tuple(sorted(stage.logs)),
            offload=_offloaded(stage),
            resumed=None if last is None else Resumed(attempt=last.attempt, sequence=last.sequence),
            privacy=_trained(manifest, job.stage, grant.run),
        )
        receipt = sign_receipt(self.lie(facts), key=session.sign)
        registration = session.registration(outputs=images, receipt_digest=digest(receipt.payload))
        done = self._deliver(session, registration)
        self.after(job.stage, grant.attempt)
        return StageResult(
            claims=got.claims,
            evidence=got.evidence,
            releases=dict(got.releases),
            registration=registration,
            registrations=done,
            receipt=receipt,
            images=images,
            log=log,
            fixed_ms={},
            script_ms=1,
        )

    def _deliver(self, session: StageSession, registration: Envelope) -> dict[str, Envelope]:
        first, done = self.world.manifest.registrar, dict[str, Envelope]()
        for name in (first, *(each for each in session.contributors if each != first)):
            if not self.deliver(name):
                break
            request = RegistrationRequest(registration=registration, registrar=done.get(first))
            done[name] = self.world.clients[name].register(request)
        return done


@dataclass
class Place:
    """A run's folder and everything to execute it with."""

    world: World
    folder: RunFolder
    host: Host
    executor: FakeExecutor
    events: list[Event] = field(default_factory=list)

    @classmethod
    def start(cls, world: World, path: Path, **host: Any) -> Place:
        """A run that was granted, and has not begun."""
        folder = RunFolder(path / "run")
        where = {name: str(path / f"{name}.cloister") for name in world.manifest.images}
        managers = dict.fromkeys(world.manifest.key_managers, "http://keys.test")
        place = Host(storage=str(path / "storage"), images=where, key_managers=managers, retry_after_s=0)
        start_run(world.signed, folder, world.clients, host=place)
        return cls(world, folder, place.model_copy(update=host), FakeExecutor(world))

    def runner(self) -> Runner:
        return Runner(
            self.folder, self.host, executor=self.executor, clients=self.world.clients, tell=self.events.append
        )

    def run(self) -> Place:
        self.runner().run()
        return self

    def said(self) -> list[tuple[str, int, str]]:
        return [(event.stage, event.attempt, event.status) for event in self.events]

    def bundle(self, **how: Any) -> Bundle:
        return make_bundle(self.folder, self.world.clients, now=self.world.clock(), **how)


def served(place: Place, **lies: Any) -> Envelope:
    """Starts the service ``answers`` as a record of the run; a receipt of one prediction, with ``lies`` in it."""
    world, state = place.world, place.folder.state()
    attempt = world.attempt(state.grant, "answers")
    got = attempt.obtain()
    grant = open_signed(AttemptGrant, attempt.grant, VerifyKey.parse(world.manifest.key_managers["keys-a"].sign))
    record = AttemptRecord(
        consumer="answers",
        attempt=grant.attempt,
        grant=attempt.grant,
        claims=got.claims,
        evidence=got.evidence.model_copy(update={"collateral": None}),
        collateral=digest(got.evidence.collateral.canonical()),
        releases=dict(got.releases),
    )
    table = {**state.collaterals, record.collateral: got.evidence.collateral}
    place.folder.save(state.model_copy(update={"attempts": (*state.attempts, record), "collaterals": table}))
    said = InferenceReceipt(
        **{
            "manifest": world.manifest.id,
            "run": grant.run,
            "service": "answers",
            "attempt": grant.attempt,
            "model": got.granted.inputs["model"][0],
            "claims": digest(b"claims over the client's nonce"),
            "request": digest(b"request"),
            "outputs": digest(b"outputs"),
            "at": AT,
            "assurance": "simulated",
            **lies,
        }
    )
    return sign_envelope(RECEIPT_LABEL, said.as_json(), got.session.sign)


def many_stages(manifest: Manifest, count: int) -> Manifest:
    """The manifest with ``count`` stages in a row, and nothing else."""
    stages: dict[str, Stage] = {}
    releases: list[Release] = []
    read = "data-a"
    for number in range(count):
        name, output = f"stage-{number:03d}", f"part-{number:03d}"
        inputs = (read, "data-b") if number == 0 else (read,)
        stages[name] = Stage(
            tee="launcher",
            code="scripts",
            argv=("python", "main.py"),
            inputs=inputs,
            outputs={output: Output(max_bytes=1 << 20)},
        )
        if number:
            releases.append(Release(output=read, stage=name))
        read = output
    releases.append(Release(output=read, party="hospital-a"))
    images = dict(manifest.images) | {"scripts": manifest.images["scripts"].model_copy(update={"uses": 1000})}
    update = {"stages": stages, "services": {}, "releases": tuple(releases), "images": images}
    return manifest.model_copy(update=update)


def edit(bundle: Bundle, consumer: str, /, **fields: Any) -> Bundle:
    """The bundle with the records of ``consumer`` changed, as a runner can."""
    attempts = tuple(
        record.model_copy(update=fields) if record.consumer == consumer else record for record in bundle.attempts
    )
    return bundle.model_copy(update={"attempts": attempts})


def relog(world: World, bundle: Bundle, name: str, change: Callable[[list[Any]], list[Any]]) -> Bundle:
    """The bundle with another log of a key manager, which signs it: what a broken key manager could show."""
    key = world.services[name].desk.core._sign
    store = world.stores[name]
    entries = change([parse_entry(leaf) for leaf in store.read(0, store.size())])
    log = MerkleLog()
    for entry in entries:
        log.append(entry.canonical())
    run = open_signed(RunGrant, bundle.run, world.registrar.key).run
    tree = TreeHead(key_manager=str(key.public), size=log.size, root=log.root().hex(), at=entries[-1].at)

    def page(selection: Any) -> Envelope:
        asked = LogQuery(manifest=world.manifest.id, run=run, selection=selection, size=log.size)
        mine = [i for i, entry in enumerate(entries) if selects(asked, entry)]
        said = LogPage(
            key_manager=tree.key_manager,
            asked=asked,
            root=tree.root,
            total=len(mine),
            entries=tuple(IndexedEntry(index=i, entry=entries[i]) for i in mine),
            proof=tuple(step.hex() for step in log.joint_inclusion(mine, log.size)),
        )
        return sign_message(said, key)

    new = {"head": sign_message(tree, key), "account": (page("account"),), "refusals": page("refusals")}
    return rerecord(bundle, name, **new)


def rerecord(bundle: Bundle, name: str, /, **fields: Any) -> Bundle:
    """The bundle with the record of a key manager changed, as a runner can."""
    record = bundle.key_managers[name].model_copy(update=fields)
    return bundle.model_copy(update={"key_managers": {**bundle.key_managers, name: record}})
