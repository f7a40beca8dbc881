"""The launcher: one attempt at one stage, from a signed manifest to sealed outputs and a signed receipt.

1. The manifest is signed by everybody whose data is read, and the grant is the registrar's, for this stage of it.
2. What the manifest asks for can be given here: nothing is weakened to make a stage run.
3. Fresh keys are made, a challenge is fetched from every contributor, the evidence binds both, keys are released.
4. Which image an input is comes from the manifest, or, for earlier outputs, from inside the released plaintext.
5. Each input is verified and decrypted into memory, and unpacked by a process that sees nothing else.
   Before that, where the stage saves its state, the last checkpoint is opened: without it no data is.
6. The script runs, where the stage offloads layers with a broker beside it; with privacy terms the engine runs in its
   place, and its account is held to them. From step 5 on an error says its code to the host and no more: its text could
   be the data. A wrong product comes before everything else that went wrong.
7. Each output is checked, and sealed once under this attempt's key.
8. The outputs are registered under the attested key; the receipt is signed; plaintext is removed.

Longer than our cap of 400 lines: the steps of one attempt, read in their order.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloister.attest import Attester
from cloister.enclave._bytecode import BYTECODE_KEY_LABEL, use_compiled
from cloister.enclave._checkpoint import StageCheckpoints
from cloister.enclave._confinement import BYTECODE_SHARE, Confinement, InProcess, Sandboxed, StageScript
from cloister.enclave._findings import sign_findings
from cloister.enclave._installed import installed_attester, measure_installed
from cloister.enclave._job import Job, StageFailure, StageOutcome, StageResult
from cloister.enclave._logs import seal_log
from cloister.enclave._offloading import WRONG_PRODUCT, Broker, OffloadEnd, Offloader
from cloister.enclave._release import AttemptKeys, ObtainKeys, obtain_keys
from cloister.enclave._sandbox import Outcome
from cloister.enclave._training import read_account
from cloister.enclave._workspace import Workspace, check_output, check_unpacked
from cloister.errors import CloisterError, InputError, IntegrityError, InternalError, PeerError, RefusedError, error_for
from cloister.keys import AttemptGrant, open_signed
from cloister.ledger import Ledger, TrainingOrder
from cloister.manifest import (
    Manifest,
    OffloadTerms,
    Stage,
    check_environment,
    inputs_of,
    order_of,
    readers_of_findings,
    require_signed,
)
from cloister.receipt import Resumed, Sandbox, SealedOutput, StageFacts, sign_receipt
from cloister.seal import open_image, seal_folder
from cloister.wire import Envelope, SealingKey, Secret, VerifyKey

__all__ = ["launch", "launch_inline", "launch_sandboxed"]

_SHARED_PART = 2  # of the stage's memory is what its script and the broker may share, at most

Clock = Callable[[], datetime]


def _now() -> datetime:
    return datetime.now(UTC)


def launch_sandboxed(
    job: Job, *, private: Path, now: Clock = _now, offloader: Offloader | None = None, multiplying: Sequence[str] = ()
) -> StageOutcome:
    """Runs a job as this installation's launcher, its script in bubblewrap, its plaintext under ``private``.

    ``multiplying`` are the modules that ``offloader`` imports, as :func:`cloister.enclave._bytecode.compiled` has them.
    """
    return _launch_measured(job, private, now, offloader, multiplying, confined=True)


def launch_inline(job: Job, *, now: Clock = _now, offloader: Offloader | None = None) -> StageOutcome:
    """Runs a job in this process, without a sandbox, its plaintext in a folder for temporary files."""
    with tempfile.TemporaryDirectory(prefix="cloister-inline-") as private:
        return _launch_measured(job, Path(private), now, offloader, (), confined=False)


def _launch_measured(
    job: Job, private: Path, now: Clock, offloader: Offloader | None, multiplying: Sequence[str], *, confined: bool
) -> StageOutcome:
    try:
        sandbox: Sandbox = "bubblewrap" if confined else "UNSANDBOXED"
        measured = measure_installed("launcher", sandbox=sandbox, remember=job.site is not None)
        with contextlib.ExitStack() as cleanup:

            def confinement(stage: Stage) -> Confinement:
                if not confined:
                    return InProcess()
                key = bytecode_key(stage)
                return cleanup.enter_context(Sandboxed(stage.limits, measured=measured, bytecode_key=key))

            def bytecode_key(stage: Stage) -> Secret | None:
                tee = job.manifest.manifest.tees[stage.tee].type
                return installed_attester(measured, tee=tee, site=job.site).sealing_key(BYTECODE_KEY_LABEL)

            def prepared(terms: OffloadTerms, /, **given: Any) -> Broker:
                assert offloader is not None  # noqa: S101 - else it is not asked
                stage = job.manifest.manifest.stages[job.stage]
                key = bytecode_key(stage) if multiplying else None
                if key is not None:
                    own, most = private / "multiplying", stage.limits.memory_bytes // BYTECODE_SHARE
                    use_compiled(multiplying, state=measured.files, key=key, private=own, max_bytes=most)
                return offloader(terms, **given)

            return launch(
                job,
                attester=lambda tee: installed_attester(measured, tee=tee, site=job.site),
                confinement=confinement,
                private=private,
                now=now,
                offloader=None if offloader is None else prepared,
            )
    except Exception as error:
        return StageOutcome(failure=StageFailure.of(error))


def launch(
    job: Job,
    *,
    attester: Callable[[str], Attester],
    confinement: Callable[[Stage], Confinement],
    private: Path,
    now: Clock = _now,
    obtain: ObtainKeys = obtain_keys,
    offloader: Offloader | None = None,
) -> StageOutcome:
    """One attempt; whatever happens, plaintext under ``private`` is gone when this returns.

    Args:
        job: From the host; nothing in it is trusted.
        attester: The TEE of a kind that this process runs in.
        confinement: How a stage's script is run.
        private: An empty folder in private memory.
        now: The host's clock.
        obtain: Attests and gets the keys.
        offloader: Lets layers leave; without one no stage that agreed on that is run.
    """
    attempt = _Attempt(job, private, now, offloader)
    try:
        return StageOutcome(result=attempt.run(attester, confinement, obtain))
    except Exception as error:
        return StageOutcome(failure=attempt.failure(error))
    finally:
        attempt.wipe()


class _Attempt:
    """What is known so far about one attempt; the steps are numbered as in the module's docstring."""

    def __init__(self, job: Job, private: Path, now: Clock, offloader: Offloader | None) -> None:
        self._job, self._private, self._now, self._offloader = job, private, now, offloader
        self._keys: AttemptKeys | None = None
        self._work: Workspace | None = None
        self._log = bytearray()
        self._fixed: dict[str, int] = {}
        self._grant_digest = ""
        self._offloaded: OffloadEnd | None = None
        self._checkpoints: StageCheckpoints | None = None

    def run(
        self, attester: Callable[[str], Attester], confinement: Callable[[Stage], Confinement], obtain: ObtainKeys
    ) -> StageResult:
        """Steps 1 to 8."""
        with self._timed("verify"):
            manifest, stage, grant = self._agreed()  # 1
            tee = manifest.tees[stage.tee]
            broker = self._possible(manifest, stage)  # 2
            platform = attester(tee.type)
            confined = confinement(stage)
            if confined.sandbox == "UNSANDBOXED" and not (platform.simulated and tee.simulated_root):
                raise RefusedError(3504)
        with self._timed("release"):
            keys = obtain(self._job, grant, platform)  # 3
            self._keys = keys
        ids = {name: keys.image_of(name) for name in inputs_of(manifest, self._job.stage)}  # 4
        self._work = work = Workspace.create(self._private, outputs=stage.outputs)
        resumed = self._resume(stage, grant, keys, work, broker)
        for name in ids:
            self._open(name, ids[name], stage, keys, confined, work)  # 5
        order = None if stage.privacy is None else order_of(manifest, self._job.stage, run=grant.run)
        started = self._now()
        ended = self._script(confined, StageScript(stage, work, broker, order))  # 6
        account = self._account(stage, work, order)
        outputs = {name: self._seal(name, stage, keys, work) for name in stage.outputs}  # 7
        facts = StageFacts(  # 8
            manifest=manifest.id,
            run=grant.run,
            stage=self._job.stage,
            attempt=grant.attempt,
            inputs=ids,
            outputs=outputs,
            claims=keys.claims.digest(),
            evidence=keys.evidence.quote_digest(),
            assurance="simulated" if platform.simulated else keys.assurance,
            sandbox=confined.sandbox,
            exit_status=0,
            started_at=_stamp(started),
            ended_at=_stamp(max(started, self._now())),
            logs=tuple(sorted(stage.logs)),
            offload=None if self._offloaded is None else self._offloaded.facts,
            resumed=resumed,
            privacy=account,
        )
        with self._timed("register"):
            receipt = sign_receipt(facts, key=keys.sign)
            images = {name: output.image for name, output in outputs.items()}
            registration, registrations = keys.register(images, receipt)
        return StageResult(
            claims=keys.claims,
            evidence=keys.evidence,
            releases=dict(keys.releases),
            registration=registration,
            registrations=registrations,
            receipt=receipt,
            images=images,
            log=self._sealed_log(),
            fixed_ms=self._fixed,
            script_ms=round(ended.seconds * 1000),
        )

    def failure(self, error: Exception) -> StageFailure:
        """What the host learns of ``error``, with the log for those who may read more."""
        keys, log = self._keys, None
        with contextlib.suppress(CloisterError):
            log = self._sealed_log()
        if keys is None:
            return StageFailure.of(error)
        said = {"claims": keys.claims, "evidence": keys.evidence, "releases": dict(keys.releases), "log": log}
        return StageFailure.of(error, **said, findings=self._findings(keys))

    def wipe(self) -> None:
        """Removes plaintext and ends connections."""
        if self._work is not None:
            self._work.wipe()
        if self._keys is not None:
            self._keys.close()

    # ---- the steps -------------------------------------------------------------------------------------------

    def _agreed(self) -> tuple[Manifest, Stage, AttemptGrant]:
        job = self._job
        require_signed(job.manifest)
        manifest = job.manifest.manifest
        stage = manifest.stages.get(job.stage)
        if stage is None:
            raise InputError(2501, f"the manifest has no stage {job.stage!r}", expected=", ".join(manifest.stages))
        registrar = VerifyKey.parse(manifest.key_managers[manifest.registrar].sign)
        grant = open_signed(AttemptGrant, job.grant, registrar)
        self._grant_digest = grant.digest()
        if (grant.manifest, grant.consumer) != (manifest.id, job.stage):
            got = f"{grant.consumer} of {grant.manifest}"
            raise RefusedError(3502, expected=f"{job.stage} of {manifest.id}", got=got)
        return manifest, stage, grant

    def _possible(self, manifest: Manifest, stage: Stage) -> Broker | None:
        """The broker of a stage that offloads, once everything that the stage needs is there."""
        check_environment(stage.env)
        terms = stage.offload
        workers = () if terms is None else terms.workers
        beyond = [name for name in stage.network if name not in workers]
        if beyond:
            raise RefusedError(3503, expected="no network but its offload workers", got=", ".join(beyond))
        job = self._job
        for kind, names, places in (
            ("input", inputs_of(manifest, job.stage), job.inputs),
            ("output", stage.outputs, job.outputs),
            ("worker", workers, job.workers),
        ):
            for name in names:
                if name not in places:
                    raise InputError(2505, f"the job names no place for the {kind} {name!r}")
        if stage.checkpoint is not None and job.checkpoint is None:
            raise InputError(2505, "the job names no place for the stage's checkpoints")
        if terms is None:
            return None
        if self._offloader is None:
            raise RefusedError(3503, "this launcher has no broker for layers that are offloaded", got=terms.mode)
        told = {name: manifest.parties[name] for name in readers_of_findings(manifest, job.stage)}
        return self._offloader(
            terms,
            workers={name: manifest.workers[name].model_copy(update={"url": job.workers[name]}) for name in workers},
            memory_bytes=stage.limits.memory_bytes // _SHARED_PART,
            parties={name: SealingKey.parse(party.hpke) for name, party in told.items()},
        )

    def _resume(
        self, stage: Stage, grant: AttemptGrant, keys: AttemptKeys, work: Workspace, broker: Broker | None
    ) -> Resumed | None:
        """Which checkpoint the script goes on from; it finds the file."""
        if stage.checkpoint is None or self._job.checkpoint is None:
            return None
        with self._timed("resume"):
            self._checkpoints = StageCheckpoints(
                stage,
                place=self._job.checkpoint,
                attempt=grant.attempt,
                keys=keys,
                folder=work.checkpoint,
                warn=self._note,
                tainted=lambda: broker is not None and broker.wrong,
            )
            last = self._checkpoints.restore()
        return None if last is None else Resumed(attempt=last.attempt, sequence=last.sequence)

    def _open(
        self, name: str, image: str, stage: Stage, keys: AttemptKeys, confined: Confinement, work: Workspace
    ) -> None:
        handle = os.memfd_create(name)
        try:
            place, key = self._job.inputs[name], keys.key_of(name)
            with (
                self._timed("open"),
                open_image(place, image_id=image, key=key) as reader,
                os.fdopen(os.dup(handle), "wb") as file,
            ):
                reader.copy_to(file)
            with self._timed("unpack"), self._closed():
                target = work.unpacked(name, stage)
                confined.unpack(handle, target, name=name)
                check_unpacked(target, name=name)
        finally:
            os.close(handle)

    def _script(self, confined: Confinement, script: StageScript) -> Outcome:
        begun = time.monotonic()
        try:
            with self._closed(), self._saving() as halt:
                with self._beside(script.broker):
                    ended = confined.run(script, halt=halt)
                self._save_what_is_left(ended)
        except CloisterError:
            self._require_right_products()
            raise
        self._fixed["sandbox"] = round((time.monotonic() - begun - ended.seconds) * 1000)
        if ended.dropped_bytes:
            self._log += b"[%d bytes before this were dropped]\n" % ended.dropped_bytes
        self._log += ended.output
        self._require_right_products()
        if self._checkpoints is not None:
            with self._closed():
                self._checkpoints.require()
        if ended.ended != "exited":
            self._note(f"[killed after {ended.seconds:.1f} s]")
            raise IntegrityError({"memory": 5502, "time": 5503, "processes": 5504}[ended.ended])
        if self._offloaded is not None and self._offloaded.code is not None:
            self._note(f"[a worker's link ended with {self._offloaded.code}]")
            raise error_for(self._offloaded.code)  # also of a script that went on without it, and ended well
        if ended.status != 0:
            self._note(f"[the script ended with status {ended.status}]")
            what = f"the script failed with status {ended.status}" if confined.sandbox == "UNSANDBOXED" else None
            raise IntegrityError(5501, what)
        return ended

    def _account(self, stage: Stage, work: Workspace, order: TrainingOrder | None) -> Ledger | None:
        """What a private training did; it lies in the output, for whoever gets the model, and is in the receipt."""
        if order is None:
            return None
        (output,) = stage.outputs
        with self._closed():
            return read_account(work.output(output), order)

    @contextlib.contextmanager
    def _saving(self) -> Iterator[threading.Event | None]:
        """Checkpoints are taken as long as the script runs; what is wrong with one ends it."""
        if self._checkpoints is None:
            yield None
            return
        with self._checkpoints as checkpoints:
            yield checkpoints.halt

    def _save_what_is_left(self, ended: Outcome) -> None:
        """What a script saved just before it failed is for its next attempt."""
        if self._checkpoints is not None and (ended.ended, ended.status) != ("exited", 0):
            self._checkpoints.look()

    @contextlib.contextmanager
    def _beside(self, broker: Broker | None) -> Iterator[None]:
        """The broker is there as long as the script, and is asked how it went whatever became of the script."""
        if broker is None:
            yield
            return
        with broker:
            try:
                yield
            finally:
                self._offloaded = broker.end()

    def _require_right_products(self) -> None:
        """Returns unless a check failed. Asked before anything else: what the script made of a lie is an answer too."""
        if self._offloaded is not None and self._offloaded.code == WRONG_PRODUCT:
            self._note("[a worker's answer was wrong]")
            raise IntegrityError(WRONG_PRODUCT) from None

    def _seal(self, name: str, stage: Stage, keys: AttemptKeys, work: Workspace) -> SealedOutput:
        with self._timed("seal"), self._closed():
            size_bytes = check_output(work.output(name), name=name, max_bytes=stage.outputs[name].max_bytes)
            sealed = seal_folder(
                work.output(name), self._job.outputs[name], key=keys.output_key(name), scratch=work.scratch
            )
        return SealedOutput(image=sealed.id, size_bytes=size_bytes)

    # ---- what leaves -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _closed(self) -> Iterator[None]:
        """Data is open in here: of an error the host gets the code, the readers of the log the rest."""
        try:
            yield
        except PeerError:
            raise  # about the host's own storage and network, in its own words
        except CloisterError as error:
            got = "" if error.got is None else f" (got {error.got})"
            self._note(f"[{error}{got}]")
            raise error_for(error.code) from None
        except Exception as error:
            self._note(f"[{type(error).__name__}: {error}]")
            raise InternalError(9001, type(error).__name__) from None

    def _note(self, text: str) -> None:
        self._log += text.encode(errors="replace") + b"\n"

    def _sealed_log(self) -> Envelope | None:
        stage = self._job.manifest.manifest.stages.get(self._job.stage)
        if stage is None or not stage.logs or self._keys is None:
            return None
        parties = self._job.manifest.manifest.parties
        readers = {name: SealingKey.parse(parties[name].hpke) for name in stage.logs}
        return seal_log(bytes(self._log), readers=readers, attempt=self._grant_digest, key=self._keys.sign)

    def _findings(self, keys: AttemptKeys) -> Envelope | None:
        if self._offloaded is None or not self._offloaded.evidence:
            return None
        return sign_findings(self._offloaded.evidence, attempt=self._grant_digest, key=keys.sign)

    @contextlib.contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._fixed[step] = self._fixed.get(step, 0) + round((time.monotonic() - started) * 1000)


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
