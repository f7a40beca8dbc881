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
from cloister.run._host import Host
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


def start_run(signed: SignedManifest, folder: RunFolder, clients: Mapping[str, KeyManagerClient]) -> RunState:
    """Installs the agreement at every key manager and asks the registrar for a run.

    Args:
        signed: With every required signature.
        folder: Where the run's state goes.
        clients: Each key manager of the manifest, by name.

    Raises:
        InputError: 2552 when the folder holds a run.
        CloisterError: what a key manager refused, or why it does not answer.
    """
    manifest = signed.manifest
    folder.require_free()
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
        self._lock = threading.Lock()
        self._tasks: list[StageTask] = []
        self._stopped = False

    @property
    def state(self) -> RunState:
        """The run, as far as it came."""
        return self._state

    def run(self) -> RunState:
        """Runs every stage that has not ended, independent ones side by side.

        Raises:
            CloisterError: whatever ended a stage for good, under its own code.
        """
        self._make_storage()
        with ThreadPoolExecutor(self._host.parallel, thread_name_prefix="stage") as pool:
            try:
                self._walk(pool)
            except BaseException:
                self._stop()
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
        if self._deliver_pending(stage):
            return
        last: CloisterError | None = None
        for _ in range(self._host.attempts):
            try:
                self._attempt(stage)
            except CloisterError as error:
                last = error
                if not _worth_retrying(error):
                    break
                _log.warning("stage %s failed: %s", stage, error)
            else:
                return
        if last is None:
            raise IntegrityError(5551, f"stage '{stage}' was never attempted")
        raise last

    def _attempt(self, stage: str) -> None:
        envelope = self._clients[self._manifest.registrar].start_attempt(self._state.grant, stage)
        key = VerifyKey.parse(self._manifest.key_managers[self._manifest.registrar].sign)
        grant = open_signed(AttemptGrant, envelope, key)
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
        self._register(record, outputs)
        self._tell(Event(stage, grant.attempt, "finished", result=result))

    def _outcome(self, job: Job) -> StageOutcome:
        task = self._executor.submit(job)
        with self._lock:
            self._tasks.append(task)
            stopped = self._stopped
        if stopped:
            task.cancel()
        return task.outcome()

    def _stop(self) -> None:
        """Ends every attempt that runs: nothing of it stays alive."""
        with self._lock:
            self._stopped = True
            tasks = list(self._tasks)
        for task in tasks:
            task.cancel()

    def _job(self, stage: str, grant: Envelope, outputs: dict[str, str]) -> Job:
        wanted = self._manifest.stages[stage]
        inputs = {name: self._input_url(name) for name in (wanted.code, *wanted.inputs)}
        managers = {
            name: self._host.key_manager_url(name, self._manifest) for name in contributors_of(self._manifest, stage)
        }
        return Job(
            manifest=self._signed,
            stage=stage,
            grant=grant,
            key_managers=managers,
            inputs=inputs,
            outputs=outputs,
            site=self._host.site,
        )

    def _input_url(self, name: str) -> str:
        return self._host.image_url(name) if name in self._manifest.images else self._state.outputs[name].url

    def _output_url(self, name: str, attempt: int) -> str:
        storage = self._host.storage.rstrip("/")
        return f"{storage}/{self._state.run}/{name}.attempt{attempt}.cloister"

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
        except (OSError, ImportError, ValueError) as error:
            raise PeerError(6553, f"cannot write to '{self._host.storage}': {error}") from error

    def _deliver_pending(self, stage: str) -> bool:
        """Delivers a registration that an interruption left behind; True when the stage has ended with it."""
        for record in self._state.attempts:
            if record.consumer == stage and record.registration is not None:
                names = self._manifest.stages[stage].outputs
                self._register(record, {name: self._output_url(name, record.attempt) for name in names})
                return True
        return False

    def _register(self, record: AttemptRecord, urls: Mapping[str, str]) -> None:
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
            name: Produced(stage=record.consumer, attempt=record.attempt, image=images[name], url=urls[name])
            for name in urls
        }
        with self._lock:
            self._state = self._state.model_copy(update={"outputs": {**self._state.outputs, **produced}})
            self._folder.save(self._state)

    def _attested(self, record: AttemptRecord, said: StageResult | StageFailure) -> AttemptRecord:
        """The record with the attempt's evidence; its collateral goes once into the run's table."""
        if said.evidence is None:
            return record.model_copy(update={"claims": said.claims, "releases": said.releases})
        collateral = said.evidence.collateral
        mark = None if collateral is None else digest(collateral.canonical())
        if collateral is not None and mark is not None:
            with self._lock:
                table = {**self._state.collaterals, mark: collateral}
                self._state = self._state.model_copy(update={"collaterals": table})
        bare = said.evidence.model_copy(update={"collateral": None})
        update = {"claims": said.claims, "evidence": bare, "collateral": mark, "releases": said.releases}
        return record.model_copy(update=update)

    def _record(self, record: AttemptRecord) -> None:
        """Adds or replaces an attempt's record, and saves."""
        with self._lock:
            same = (record.consumer, record.attempt)
            others = tuple(each for each in self._state.attempts if (each.consumer, each.attempt) != same)
            self._state = self._state.model_copy(update={"attempts": (*others, record)})
            self._folder.save(self._state)


def _worth_retrying(error: CloisterError) -> bool:
    """A peer that did not answer, or a script that failed; never a refusal, bad evidence or changed bytes."""
    return error.exit_status == 6 or error.code in _SCRIPT_FAILURES


_SCRIPT_FAILURES = frozenset({5501, 5502, 5503})
