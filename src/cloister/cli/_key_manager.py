"""The process of a key manager: one job on standard input, then what ``cloister keys init`` or ``serve`` says.

A key manager holds what every owner entrusted to it, so it runs as closed as a launcher: measured code, the few
variables that ``closed_environment`` names, no debugger, no core dump. The command reads its options where any command
does, and then *becomes* this program: what it was told, the address of the store with its password included, is a job
and nothing else. A job says where things lie; it changes nothing that a manifest or an owner's rule decides.

It lies in this room because a key manager knows neither its TEE nor how its code is measured: here both are given.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from pydantic import Field

from cloister.attest import Attester, SimulatedSite, find_attester
from cloister.cli._logging import configure
from cloister.cli._voice import exiting, note, show
from cloister.enclave import become, close_process, ensure_closed, measure_installed
from cloister.errors import InputError
from cloister.keys import Service, initialise, listen_at, store_at
from cloister.party import PublicIdentity
from cloister.wire import Message, SealingKey, parse_message, read_bounded, write_private

__all__ = ["PROGRAM", "InitTask", "KeyManagerJob", "ServeTask", "execute", "start"]

PROGRAM = "cloister.cli._key_manager"
MAX_JOB_BYTES = 1 << 20
_IDENTITY_BYTES = 1 << 16


class InitTask(Message):
    """Make a key manager.

    Attributes:
        task: Which one this is.
        administrators: Files with their public identities; none where the TEE seals.
        threshold: How many of them unlock it together.
        shares_to: Folder for their shares.
    """

    task: Literal["init"] = "init"
    administrators: tuple[str, ...] = ()
    threshold: int = 1
    shares_to: str | None = None


class ServeTask(Message):
    """Serve one.

    Attributes:
        task: Which one this is.
        listen: ``HOST:PORT``.
    """

    task: Literal["serve"] = "serve"
    listen: str


class KeyManagerJob(Message):
    """What a command tells the process that it becomes.

    Attributes:
        format: Of this message; another is refused.
        store: URL of the store.
        site: Folder of the simulated site; None on hardware.
        todo: What is to be done.
        json_out: Whether the result is JSON.
        log_level: As of every command.
        log_json: As of every command.
    """

    format: Literal["cloister/key-manager-job/v1"] = "cloister/key-manager-job/v1"
    store: str = Field(repr=False)  # its password is nobody's to read
    site: str | None = None
    todo: Annotated[InitTask | ServeTask, Field(discriminator="task")]
    json_out: bool = False
    log_level: str = "warning"
    log_json: bool = False


def start(context: typer.Context, todo: InitTask | ServeTask, *, store: str, site: Path | None, json: bool) -> NoReturn:
    """Ends a command and goes on as the key manager's own process.

    Raises:
        InputError: 2008 on another system than Linux; 2002 when an option is not text that JSON can hold.
    """
    if not sys.platform.startswith("linux"):
        raise InputError(2008, f"a key manager runs on Linux only, this is {sys.platform}")
    root = context.find_root().params
    job = KeyManagerJob(
        store=store,
        site=None if site is None else str(site),
        todo=todo,
        json_out=json,
        log_level=root["log_level"],
        log_json=root["log_json"],
    )
    become(PROGRAM, job.canonical())


def execute(job: KeyManagerJob, *, attester: Callable[[str | None], Attester] | None = None) -> None:
    """Does what the job says; a service is served until it is told to stop.

    Args:
        job: From the host; nothing in it is trusted.
        attester: Of the simulated site in that folder, or of this machine's TEE.
    """
    platform = (attester or _attester)(job.site)
    if isinstance(job.todo, InitTask):
        _init(job.todo, job.store, platform, json=job.json_out)
    else:
        _serve(job.todo, job.store, platform, json=job.json_out)


def _init(todo: InitTask, store: str, attester: Attester, *, json: bool) -> None:
    people = [
        PublicIdentity.parse(read_bounded(Path(path), max_bytes=_IDENTITY_BYTES, what="public identity"))
        for path in todo.administrators
    ]
    names = [person.name for person in people]
    if len(set(names)) != len(names):
        raise InputError(2404, "an administrator is named twice", got=", ".join(sorted(names)))
    if people and todo.shares_to is None:
        raise InputError(2404, "where do the administrators' shares go?", hint="pass --shares-to FOLDER")
    keys = {person.name: SealingKey.parse(person.hpke) for person in people}
    made = initialise(
        store_at(store), now=datetime.now(UTC), attester=attester, administrators=keys, threshold=todo.threshold
    )
    written: dict[str, str] = {}
    for name, share in made.shares.items():
        target = Path(todo.shares_to or "") / f"{name}.share.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_private(target, share.canonical() + b"\n")
        written[name] = str(target)
    facts: dict[str, Any] = {
        "store": made.store,
        "sign": made.sign,
        "measurement": attester.measurement,
        "simulated": attester.simulated,
    }
    if written:
        facts |= {"threshold": todo.threshold, "shares": written}
    if attester.simulated:
        note("SIMULATED: the state key is protected by the site's file alone")
    show(facts, json=json)


def _serve(todo: ServeTask, store: str, attester: Attester, *, json: bool) -> None:
    service = Service(store_at(store), attester=attester)

    def ready(address: str) -> None:
        if service.locked:
            note("locked: waiting for administrators ('cloister keys unlock')")
        facts: dict[str, Any] = {"listen": address, "locked": service.locked}
        if not service.locked:
            facts["sign"] = service.desk.core.name
        show(facts, json=json)

    listen_at(service, todo.listen, ready=ready)


def _attester(site: str | None) -> Attester:
    if site is None:
        return find_attester()
    measured = measure_installed("key-manager")
    return SimulatedSite.open(site).attester(bytes.fromhex(measured.for_tee("tdx")))


def main() -> None:
    """Takes the job and does it; the exit status is 0, or the first digit of the failure's code."""
    ensure_closed(PROGRAM)
    with exiting(json=False):
        close_process()
        data = sys.stdin.buffer.read(MAX_JOB_BYTES + 1)
        job = parse_message(KeyManagerJob, data, what="key manager job", max_bytes=MAX_JOB_BYTES, secret=True)
    with exiting(json=job.json_out):
        configure(job.log_level, json=job.log_json)
        execute(job)


if __name__ == "__main__":
    main()
