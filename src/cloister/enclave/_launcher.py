"""The launcher: one attempt at one stage, from a signed manifest to sealed outputs and a signed receipt.

1. The manifest is signed by everybody whose data is read, and the grant is the registrar's, for this stage of it.
2. What the manifest asks for can be given here: nothing is weakened to make a stage run.
3. Fresh keys are made, a challenge is fetched from every contributor, the evidence binds both, keys are released.
4. Which image an input is comes from the manifest, or, for earlier outputs, from inside the released plaintext.
5. Each input is verified and decrypted into memory, and unpacked by a process that sees nothing else.
6. The script runs. From step 5 on an error says its code to the host and no more: its text could be the data.
7. Each output is checked, and sealed once under this attempt's key.
8. The outputs are registered under the attested key; the receipt is signed; plaintext is removed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from cloister.attest import Attester, SimulatedSite, find_attester
from cloister.enclave._bytecode import BYTECODE_KEY_LABEL
from cloister.enclave._confinement import Confinement, InProcess, Sandboxed
from cloister.enclave._installed import measure_installed
from cloister.enclave._job import Job, StageFailure, StageOutcome, StageResult
from cloister.enclave._logs import seal_log
from cloister.enclave._measurement import Measured
from cloister.enclave._release import AttemptKeys, ObtainKeys, obtain_keys
from cloister.enclave._sandbox import Outcome
from cloister.enclave._workspace import Workspace, check_output, check_unpacked
from cloister.errors import CloisterError, InputError, IntegrityError, InternalError, PeerError, RefusedError, error_for
from cloister.keys import AttemptGrant, open_signed
from cloister.manifest import Manifest, Stage, check_environment, inputs_of, require_signed
from cloister.receipt import Sandbox, SealedOutput, StageFacts, sign_receipt
from cloister.seal import open_image, seal_folder
from cloister.wire import Envelope, SealingKey, VerifyKey

__all__ = ["launch", "launch_inline", "launch_sandboxed"]

Clock = Callable[[], datetime]


def _now() -> datetime:
    return datetime.now(UTC)


def launch_sandboxed(job: Job, *, private: Path, now: Clock = _now) -> StageOutcome:
    """Runs a job as this installation's launcher, its script in bubblewrap, its plaintext under ``private``."""
    return _launch_measured(job, private, now, confined=True)


def launch_inline(job: Job, *, now: Clock = _now) -> StageOutcome:
    """Runs a job in this process, without a sandbox, its plaintext in a folder for temporary files."""
    with tempfile.TemporaryDirectory(prefix="cloister-inline-") as private:
        return _launch_measured(job, Path(private), now, confined=False)


def _launch_measured(job: Job, private: Path, now: Clock, *, confined: bool) -> StageOutcome:
    try:
        sandbox: Sandbox = "bubblewrap" if confined else "UNSANDBOXED"
        measured = measure_installed("launcher", sandbox=sandbox, remember=job.site is not None)
        with contextlib.ExitStack() as cleanup:

            def confinement(stage: Stage) -> Confinement:
                if not confined:
                    return InProcess()
                tee = job.manifest.manifest.tees[stage.tee].type
                key = _attester(job, tee, measured).sealing_key(BYTECODE_KEY_LABEL)
                return cleanup.enter_context(Sandboxed(stage.limits, measured=measured, bytecode_key=key))

            return launch(
                job,
                attester=lambda tee: _attester(job, tee, measured),
                confinement=confinement,
                private=private,
                now=now,
            )
    except Exception as error:
        return StageOutcome(failure=StageFailure.of(error))


def _attester(job: Job, tee: str, measured: Measured) -> Attester:
    if job.site is None:
        return find_attester()
    kind = "tdx" if tee == "tdx" else "sgx"
    return SimulatedSite.open(job.site).attester(bytes.fromhex(measured.for_tee(kind)), tee=kind)


def launch(
    job: Job,
    *,
    attester: Callable[[str], Attester],
    confinement: Callable[[Stage], Confinement],
    private: Path,
    now: Clock = _now,
    obtain: ObtainKeys = obtain_keys,
) -> StageOutcome:
    """One attempt; whatever happens, plaintext under ``private`` is gone when this returns.

    Args:
        job: From the host; nothing in it is trusted.
        attester: The TEE of a kind that this process runs in.
        confinement: How a stage's script is run.
        private: An empty folder in private memory.
        now: The host's clock.
        obtain: Attests and gets the keys.
    """
    attempt = _Attempt(job, private, now)
    try:
        return StageOutcome(result=attempt.run(attester, confinement, obtain))
    except Exception as error:
        return StageOutcome(failure=attempt.failure(error))
    finally:
        attempt.wipe()


class _Attempt:
    """What is known so far about one attempt; the steps are numbered as in the module's docstring."""

    def __init__(self, job: Job, private: Path, now: Clock) -> None:
        self._job, self._private, self._now = job, private, now
        self._keys: AttemptKeys | None = None
        self._work: Workspace | None = None
        self._log = bytearray()
        self._fixed: dict[str, int] = {}
        self._grant_digest = ""

    def run(
        self, attester: Callable[[str], Attester], confinement: Callable[[Stage], Confinement], obtain: ObtainKeys
    ) -> StageResult:
        """Steps 1 to 8."""
        with self._timed("verify"):
            manifest, stage, grant = self._agreed()  # 1
            tee = manifest.tees[stage.tee]
            self._possible(manifest, stage)  # 2
            platform = attester(tee.type)
            confined = confinement(stage)
            if confined.sandbox == "UNSANDBOXED" and not (platform.simulated and tee.simulated_root):
                raise RefusedError(3504)
        with self._timed("release"):
            keys = obtain(self._job, grant, platform)  # 3
            self._keys = keys
        ids = {name: keys.image_of(name) for name in inputs_of(manifest, self._job.stage)}  # 4
        self._work = work = Workspace.create(self._private, outputs=stage.outputs)
        for name in ids:
            self._open(name, ids[name], stage, keys, confined, work)  # 5
        started = self._now()
        ended = self._script(confined, stage, work)  # 6
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
        return StageFailure.of(error, claims=keys.claims, evidence=keys.evidence, releases=dict(keys.releases), log=log)

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

    def _possible(self, manifest: Manifest, stage: Stage) -> None:
        check_environment(stage.env)
        if stage.network:
            raise RefusedError(3503, got=", ".join(stage.network))
        job = self._job
        for kind, names, places in (
            ("input", inputs_of(manifest, job.stage), job.inputs),
            ("output", stage.outputs, job.outputs),
        ):
            for name in names:
                if name not in places:
                    raise InputError(2505, f"the job names no place for the {kind} {name!r}")

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

    def _script(self, confined: Confinement, stage: Stage, work: Workspace) -> Outcome:
        begun = time.monotonic()
        with self._closed():
            ended = confined.run(stage, work)
        self._fixed["sandbox"] = round((time.monotonic() - begun - ended.seconds) * 1000)
        if ended.dropped_bytes:
            self._log += b"[%d bytes before this were dropped]\n" % ended.dropped_bytes
        self._log += ended.output
        if ended.ended != "exited":
            self._note(f"[killed after {ended.seconds:.1f} s]")
            raise IntegrityError({"memory": 5502, "time": 5503, "processes": 5504}[ended.ended])
        if ended.status != 0:
            self._note(f"[the script ended with status {ended.status}]")
            what = f"the script failed with status {ended.status}" if confined.sandbox == "UNSANDBOXED" else None
            raise IntegrityError(5501, what)
        return ended

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

    @contextlib.contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._fixed[step] = self._fixed.get(step, 0) + round((time.monotonic() - started) * 1000)


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
