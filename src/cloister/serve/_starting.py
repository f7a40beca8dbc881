"""Starts a service of a finished run and keeps its evidence for the audit."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress

from cloister.enclave import Job, StageFailure, boundary_command, closed_environment, start_command
from cloister.errors import InputError, PeerError
from cloister.keys import AttemptGrant, KeyManagerClient, open_signed
from cloister.manifest import contributors_of
from cloister.receipt import AttemptRecord
from cloister.run import Host, RunFolder
from cloister.serve._process import ServiceJob, ServiceStarted
from cloister.wire import VerifyKey, digest, parse_message

__all__ = ["run_service"]

_MAX_LINE = 8 << 20


def run_service(
    folder: RunFolder,
    host: Host,
    service: str,
    *,
    clients: Mapping[str, KeyManagerClient],
    listen: str,
    ready: Callable[[str], None],
) -> None:
    """Starts ``service`` in a process of its own and waits until that process ends.

    Args:
        folder: A run whose model is registered.
        host: Addresses.
        service: Which of the manifest's services.
        clients: Each key manager of the manifest, by name.
        listen: ``HOST:PORT``.
        ready: Called with the model's image id once requests are answered.

    Raises:
        InputError: 2501 no such service; 2553 the model is not there yet.
        PeerError: 6554 when the service ends by itself.
        CloisterError: why it did not start.
    """
    signed = folder.manifest()
    manifest, state = signed.manifest, folder.state()
    if service not in manifest.services:
        raise InputError(2501, f"the manifest has no service {service!r}", expected=", ".join(manifest.services))
    model = manifest.services[service].model
    if model not in state.outputs:
        raise InputError(2553, f"the model '{model}' is not there yet")
    envelope = clients[manifest.registrar].start_attempt(state.grant, service)
    grant = open_signed(AttemptGrant, envelope, VerifyKey.parse(manifest.key_managers[manifest.registrar].sign))
    managers = {name: host.key_manager_url(name, manifest) for name in contributors_of(manifest, service)}
    job = Job(
        manifest=signed,
        stage=service,
        grant=envelope,
        key_managers=managers,
        inputs={model: state.outputs[model].url},
        outputs={},
        site=host.site,
    )
    command = boundary_command(
        start_command("cloister.serve"), memory_bytes=manifest.services[service].limits.memory_bytes
    )
    pipe, env = subprocess.PIPE, closed_environment(os.environ)
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=env, start_new_session=True)
    try:
        started = _started(process, ServiceJob(job=job, listen=listen))
        record = AttemptRecord(consumer=service, attempt=grant.attempt, grant=envelope)
        _keep(folder, record, started)
        ready(started.model)
        status = process.wait()
        raise PeerError(6554, got=f"exit status {status}")
    finally:
        _stop(process)


def _started(process: subprocess.Popen[bytes], job: ServiceJob) -> ServiceStarted:
    if process.stdin is None or process.stdout is None:
        raise PeerError(6554)
    with suppress(BrokenPipeError):
        process.stdin.write(job.canonical())
        process.stdin.close()
    line = process.stdout.readline(_MAX_LINE)
    if b'"cloister/service-started/v1"' in line:
        return parse_message(ServiceStarted, line, what="service's first line", max_bytes=_MAX_LINE)
    if not line:
        raise PeerError(6554, got=f"exit status {process.wait()}")
    raise parse_message(StageFailure, line, what="service's first line", max_bytes=_MAX_LINE).error()


def _keep(folder: RunFolder, record: AttemptRecord, started: ServiceStarted) -> None:
    """Adds the service's start to the run's folder, and touches nothing else of it."""
    collateral = started.evidence.collateral
    mark = None if collateral is None else digest(collateral.canonical())
    if collateral is not None and mark is not None:
        folder.save_collateral(mark, collateral)
    update = {
        "claims": started.claims,
        "evidence": started.evidence.model_copy(update={"collateral": None}),
        "collateral": mark,
        "releases": started.releases,
    }
    folder.save_attempt(record.model_copy(update=update))


def _stop(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
