"""The runner: walks the graph, retries, resumes, delivers registrations. It moves ciphertext and holds no key."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Literal

from cloister.enclave import Executor, Job, StageFailure, StageOutcome, StageResult, StageTask
from cloister.errors import CloisterError, IntegrityError, PeerError
from cloister.keys import AttemptGrant, KeyManagerClient, RegistrationRequest, RunGrant, open_signed
from cloister.manifest import Manifest, SignedManifest, contributors_of, producer_of, stage_order
from cloister.receipt import AttemptRecord
from cloister.run._findings import keep_findings
from cloister.run._host import Host
from cloister.run._logs import keep_log
from cloister.run._state import Produced, RunFolder, RunState
from cloister.wire import Envelope, VerifyKey, digest, parse_json

__all__ = ["Event", "Runner", "start_run"]

_log = logging.getLogger("cloister.run")

Status = Literal["started", "failed", "finished"]


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a stage, for progress and logs."""

    stage: str
    attempt: int
    status: Status
    error: CloisterError | None = None
    result: StageResult | None = None


def start_run(
    signed: SignedManifest, folder: RunFolder, clients: Mapping[str, KeyManagerClient], *, host: Host | None = None
) -> RunState:
    """Installs the agreement at every key manager and asks the registrar for a run.

    Args:
        signed: With every required signature.
        folder: Where the run's state goes.
        clients: Each key manager of the manifest, by name.
        host: Where given, its addresses are checked against the manifest before anything is asked of anybody.

    Raises:
        InputError: 2552 when the folder holds a run; 2551, 2554 when the host's addresses do not fit the manifest.
        CloisterError: what a key manager refused, or why it does not answer.
    """
    manifest = signed.manifest
    folder.require_free()
    if host is not None:
        host.require_complete(manifest)
    for name in sorted(manifest.key_managers):
        clients[name].install_manifest(signed)
    envelope = clients[manifest.registrar].start_run(manifest.id)
    grant = open_signed(RunGrant, envelope, VerifyKey.parse(manifest.key_managers[manifest.registrar].sign))
    state = RunState(manifest=manifest.id, run=grant.run, grant=envelope)
    folder.create(signed, state)
    return state


class Runner:
    """Executes one run until it ends or cannot go on; calling :meth:`run` again goes on where it stopped.

    Args:
        folder: The run's state; saved after every step.
        host: Addresses and choices.
        executor: How stages are started.
        clients: Each key manager of the manifest, by name.
        tell: Called, from any thread, with each event.
    """

    def __init__(
        self,
        folder: RunFolder,
        host: Host,
        *,
        executor: Executor,
        clients: Mapping[str, KeyManagerClient],
        tell: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self._folder = folder
        self._signed = folder.manifest()
        self._manifest: Manifest = self._signed.manifest
        self._state = folder.state()
        self._host = host
        self._executor = executor
        self._clients = clients
        self._tell = tell
        self._registrar = VerifyKey.parse(self._manifest.key_managers[self._manifest.registrar].sign)
        self._lock = threading.Lock()
        self._tasks: list[StageTask] = []
        self._halt = threading.Event()

    @property
    def state(self) -> RunState:
        """The run, as far as it came."""
        return self._state

    def run(self) -> RunState:
        """Runs every stage that has not ended, independent ones side by side.

        Whatever ends it early (a failure, an interrupt) ends every attempt that runs: nothing stays alive.

        Raises:
            InputError: 2551, 2554 when the host's addresses do not fit the manifest; 2555 when another process
                executes this run.
            PeerError: 6553 when the storage cannot be written.
            CloisterError: whatever ended a stage for good, under its own code.
        """
        self._host.require_complete(self._manifest)
        with self._folder.working():
            self._make_storage()
            with ThreadPoolExecutor(self._host.parallel, thread_name_prefix="stage") as pool:
                try:
                    self._walk(pool)
                except BaseException:
                    self._stop()
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        return self._state

    def _walk(self, pool: ThreadPoolExecutor) -> None:
        """Submits each stage once all its sources are done; after a failure only waits for what runs."""
        waiting = {stage: self._sources(stage) for stage in stage_order(self._manifest)}
        done = {output.stage for output in self._state.outputs.values()}
        running: dict[Future[None], str] = {}
        failure: CloisterError | None = None
        while True:
            ready = [stage for stage, needs in waiting.items() if stage not in done and needs <= done]
            for stage in ready if failure is None else []:
                if stage not in running.values():
                    running[pool.submit(self._stage, stage)] = stage
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                stage = running.pop(future)
                error = future.exception()
                if error is None:
                    done.add(stage)
                elif isinstance(error, CloisterError):
                    failure = failure or error
                else:
                    raise error
        if failure is not None:
            raise failure

    def _sources(self, stage: str) -> set[str]:
        producers = (producer_of(self._manifest, name) for name in self._manifest.stages[stage].inputs)
        return {producer for producer in producers if producer is not None}

    def _stage(self, stage: str) -> None:
        """Attempts ``stage`` until its outputs are registered everywhere."""
        for left in reversed(range(self._host.attempts)):
            try:
                # A registration that was cut off, now or in an earlier life, goes first: another attempt would be
                # refused, or would cost a use of every key for nothing.
                if not self._deliver_pending(stage):
                    self._attempt(stage)
                return
            except CloisterError as error:
                if left == 0 or self._halt.is_set() or not worth_retrying(error):
                    raise
                _log.warning("stage %s is tried again: %s", stage, error)
                if error.exit_status == 6:
                    self._halt.wait(self._host.retry_after_s)
                if self._halt.is_set():
                    raise

    def _attempt(self, stage: str) -> None:
        envelope = self._granted(stage)
        grant = open_signed(AttemptGrant, envelope, self._registrar)
        record = AttemptRecord(consumer=stage, attempt=grant.attempt, grant=envelope)
        self._record(record)
        self._tell(Event(stage, grant.attempt, "started"))
        outputs = {name: self._output_url(name, grant.attempt) for name in self._manifest.stages[stage].outputs}
        outcome = self._outcome(self._job(stage, envelope, outputs))
        if outcome.failure is not None or outcome.result is None:
            failure = outcome.failure or StageFailure.of(IntegrityError(5551))
            self._record(self._attested(record, failure).model_copy(update={"code": failure.code}))
            error = failure.error()
            self._tell(Event(stage, grant.attempt, "failed", error=error))
            raise error
        result = outcome.result
        record = self._attested(record, result).model_copy(
            update={"registration": result.registration, "receipt": result.receipt, "registered": result.registrations}
        )
        self._record(record)
        self._register(record)
        self._tell(Event(stage, grant.attempt, "finished", result=result))

    def _granted(self, stage: str) -> Envelope:
        try:
            return self._clients[self._manifest.registrar].start_attempt(self._state.grant, stage)
        except CloisterError as error:
            if error.code != 3415:
                raise
            raise IntegrityError(5552, f"stage '{stage}' has ended, and its outcome was lost", got=error.what) from None

    def _outcome(self, job: Job) -> StageOutcome:
        if self._halt.is_set():
            raise PeerError(6503)
        task = self._executor.submit(job)
        with self._lock:
            self._tasks.append(task)
        if self._halt.is_set():
            task.cancel()
        try:
            return task.outcome()
        finally:
            with self._lock:
                self._tasks.remove(task)

    def _stop(self) -> None:
        """Ends every attempt that runs: nothing of it stays alive, and none is tried again."""
        self._halt.set()
        with self._lock:
            tasks = list(self._tasks)
        for task in tasks:
            task.cancel()

    def _job(self, stage: str, grant: Envelope, outputs: dict[str, str]) -> Job:
        wanted = self._manifest.stages[stage]
        inputs = {name: self._input_url(name) for name in (wanted.code, *wanted.inputs)}
        managers = {
            name: self._host.key_manager_url(name, self._manifest) for name in contributors_of(self._manifest, stage)
        }
        workers = () if wanted.offload is None else wanted.offload.workers
        return Job(
            manifest=self._signed,
            stage=stage,
            grant=grant,
            key_managers=managers,
            inputs=inputs,
            outputs=outputs,
            checkpoint=None if wanted.checkpoint is None else self._storage_url(f"{stage}.checkpoint"),
            workers={name: self._host.worker_url(name, self._manifest) for name in workers},
            site=self._host.site,
        )

    def _input_url(self, name: str) -> str:
        return self._host.image_url(name) if name in self._manifest.images else self._state.outputs[name].url

    def _output_url(self, name: str, attempt: int) -> str:
        return self._storage_url(f"{name}.attempt{attempt}.cloister")

    def _storage_url(self, name: str) -> str:
        return f"{self._host.storage.rstrip('/')}/{self._state.run}/{name}"

    def _make_storage(self) -> None:
        """The run's place in the host's storage: a folder where storage has folders, nothing on object stores.

        Raises:
            PeerError: 6553 when the storage cannot be written.
        """
        import fsspec

        url = f"{self._host.storage.rstrip('/')}/{self._state.run}"
        try:
            storage, path = fsspec.url_to_fs(url)
            storage.makedirs(path, exist_ok=True)
        except Exception as error:  # every storage brings errors of its own
            what = str(error) or type(error).__name__
            raise PeerError(6553, f"cannot write to '{self._host.storage}': {what}"[:500]) from error

    def _deliver_pending(self, stage: str) -> bool:
        """Delivers a registration that was cut off; True when the stage has ended with it."""
        for record in self._state.attempts:
            if record.consumer == stage and record.registration is not None:
                self._register(record)
                self._tell(Event(stage, record.attempt, "finished"))
                return True
        return False

    def _register(self, record: AttemptRecord) -> None:
        """Delivers the registration, to the registrar first; the same bytes twice do no harm."""
        if record.registration is None:
            raise IntegrityError(5551, f"stage '{record.consumer}' ended without a registration")
        registered = dict(record.registered)
        first = self._manifest.registrar
        names = [first, *(name for name in contributors_of(self._manifest, record.consumer) if name != first)]
        for name in names:
            if name not in registered:
                request = RegistrationRequest(registration=record.registration, registrar=registered.get(first))
                registered[name] = self._clients[name].register(request)
                self._record(record.model_copy(update={"registered": dict(registered)}))
        images: dict[str, str] = parse_json(record.registration.payload, what="registration")["outputs"]
        produced = {
            name: Produced(
                stage=record.consumer,
                attempt=record.attempt,
                image=images[name],
                url=self._output_url(name, record.attempt),
            )
            for name in self._manifest.stages[record.consumer].outputs
        }
        with self._lock:
            self._state = self._state.model_copy(update={"outputs": {**self._state.outputs, **produced}})
            self._folder.update(self._state)

    def _attested(self, record: AttemptRecord, said: StageResult | StageFailure) -> AttemptRecord:
        """The record with the attempt's evidence. Collateral is filed once for all; what is sealed to parties apart."""
        whose = {"stage": record.consumer, "attempt": record.attempt, "grant": record.grant}
        kept = keep_log(self._manifest, **whose, said=said)
        if kept is not None:
            self._folder.save_log(kept)
        findings = keep_findings(self._manifest, **whose, said=said)
        if findings is not None:
            self._folder.save_findings(findings)
        if said.evidence is None:
            return record.model_copy(update={"claims": said.claims, "releases": said.releases})
        collateral = said.evidence.collateral
        mark = None if collateral is None else digest(collateral.canonical())
        if collateral is not None and mark is not None:
            with self._lock:
                table = {**self._state.collaterals, mark: collateral}
                self._state = self._state.model_copy(update={"collaterals": table})
                self._folder.save_collateral(mark, collateral)
        bare = said.evidence.model_copy(update={"collateral": None})
        update = {"claims": said.claims, "evidence": bare, "collateral": mark, "releases": said.releases}
        return record.model_copy(update=update)

    def _record(self, record: AttemptRecord) -> None:
        """Adds or replaces an attempt's record, and saves it."""
        with self._lock:
            place = (record.consumer, record.attempt)
            attempts = list(self._state.attempts)
            for at, each in enumerate(attempts):
                if (each.consumer, each.attempt) == place:
                    attempts[at] = record
                    break
            else:
                attempts.append(record)
            self._state = self._state.model_copy(update={"attempts": tuple(attempts)})
            self._folder.save_attempt(record)


def worth_retrying(error: CloisterError) -> bool:
    """Whether another attempt may end otherwise, and gives nobody a second throw.

    Yes: a peer that did not answer, or answered nonsense (6xxx), and a script that ended with an error (5501): both may
    pass. No: a limit that was hit (5502 memory, 5503 time, 5504 processes): the same script on the same data hits it
    again, at the cost of a use of every key. Never: a refusal (3xxx), evidence (4xxx), changed bytes (the other 5xxx):
    a host that cheats would be asked again until it succeeds, and a worker that lies (5701) would have one more
    question answered. A stop by the host itself (6503) is meant.
    """
    return error.code == _SCRIPT_FAILED or (error.exit_status == 6 and error.code != _STOPPED)


_SCRIPT_FAILED, _STOPPED = 5501, 6503
