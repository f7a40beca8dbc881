"""``python -m cloister.serve``: one job on standard input, one line when ready, then requests until it is stopped."""

from __future__ import annotations

import os
import sys

from cloister.attest import Attester, SimulatedSite, find_attester
from cloister.enclave import (
    MAX_JOB_BYTES,
    Measured,
    Sandboxed,
    StageFailure,
    close_process,
    ensure_closed,
    measure_installed,
    private_folder,
)
from cloister.errors import InputError
from cloister.serve._http import create_app
from cloister.serve._process import ServiceJob, open_service
from cloister.wire import parse_message


def main() -> int:
    """Runs the service; the exit status is 0, or the first digit of the failure's code."""
    ensure_closed("cloister.serve")
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints by accident does not reach the answer
    try:
        close_process()
        data = sys.stdin.buffer.read(MAX_JOB_BYTES + 1)
        task = parse_message(ServiceJob, data, what="service job", max_bytes=MAX_JOB_BYTES)
        host, port = _address(task.listen)
        measured = measure_installed("service", remember=task.job.site is not None)
        service = open_service(
            task.job,
            attester=lambda tee: _attester(task.job.site, tee, measured),
            sandbox=lambda service: Sandboxed(service.limits),
            private=private_folder(),
        )
        app = create_app(service.core, ready=lambda: service.model.ready)
    except Exception as error:
        failure = StageFailure.of(error)
        answer.write(failure.canonical() + b"\n")
        answer.flush()
        return failure.code // 1000
    import uvicorn

    config = uvicorn.Config(app, host=host, port=port, log_config=None, access_log=False, server_header=False)
    server = uvicorn.Server(config)
    ready = server.startup

    async def startup(*arguments: object, **options: object) -> None:
        await ready(*arguments, **options)  # type: ignore[arg-type]
        answer.write(service.started.canonical() + b"\n")
        answer.flush()

    server.startup = startup  # type: ignore[method-assign]
    try:
        server.run()
    finally:
        service.model.close()
    return 0


def _attester(site: str | None, tee: str, measured: Measured) -> Attester:
    if site is None:
        return find_attester()
    kind = "tdx" if tee == "tdx" else "sgx"
    return SimulatedSite.open(site).attester(bytes.fromhex(measured.for_tee(kind)), tee=kind)


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(2005, "not an address to listen on", expected="HOST:PORT", got=listen[:80])
    return host.strip("[]"), int(port)


if __name__ == "__main__":
    sys.exit(main())
