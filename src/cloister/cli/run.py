"""``cloister run``: the host's commands, and a party's for what a run releases to it."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli._identity import Home, PassphraseFile
from cloister.cli._voice import Json, note, show
from cloister.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cloister.keys import KeyManagerClient
    from cloister.manifest import Manifest, SignedManifest
    from cloister.run import Event, Host, RunFolder, RunState

__all__ = ["register"]

Folder = Annotated[Path, typer.Argument(help="the run's folder")]
HostFile = Annotated[Path, typer.Option("--host", help="the host's TOML file: where things lie (docs/hosting.md)")]
OwnManifest = Annotated[
    Path | None, typer.Option("--manifest", help="the signed manifest; the run folder's own where there is one")
]
OfStage = Annotated[str | None, typer.Option("--stage", help="in a folder: of which stage")]
OfAttempt = Annotated[
    int | None, typer.Option("--attempt", min=1, help="in a folder: which attempt of it, else the newest")
]
JudgedAt = Annotated[str, typer.Option("--at", help="the time to judge the launcher's evidence by")]


def start(
    manifest: Annotated[Path, typer.Argument(help="the signed manifest")],
    folder: Annotated[Path, typer.Option("--dir", help="where the run's state goes")],
    host: HostFile,
    json: Json = False,
) -> None:
    """Start a run and execute every stage."""
    from cloister.run import RunFolder, load_host, start_run

    signed, where, place = _signed(manifest), load_host(host), RunFolder(folder)
    state = start_run(signed, place, _clients(signed.manifest, where), host=where)
    note(f"run {state.run} of manifest {state.manifest[:16]}…")
    _execute(place, where, json=json)


def resume(folder: Folder, host: HostFile, json: Json = False) -> None:
    """Go on with a run that was interrupted or failed."""
    from cloister.run import RunFolder, load_host

    _execute(RunFolder(folder), load_host(host), json=json)


def status(folder: Folder, json: Json = False) -> None:
    """Show how far a run has come."""
    from cloister.run import RunFolder

    place = RunFolder(folder)
    _show(place.manifest().manifest, place.state(), json=json)


def bundle(
    folder: Folder,
    host: HostFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="the bundle's file")],
    receipts: Annotated[list[Path] | None, typer.Option(help="receipts of predictions to include, a line each")] = None,
    head: Annotated[
        list[Path] | None, typer.Option(help="tree heads that a party keeps: prove that the logs continue them")
    ] = None,
    json: Json = False,
) -> None:
    """Gather all that an offline audit needs into one file."""
    from datetime import UTC, datetime

    from cloister.cli._heads import read_heads
    from cloister.run import RunFolder, load_host, make_bundle
    from cloister.wire import Envelope, parse_message, read_bounded, write_atomic

    place, where = RunFolder(folder), load_host(host)
    lines = [
        line for path in receipts or [] for line in read_bounded(path, max_bytes=16 << 20, what="receipts").splitlines()
    ]
    inference = [parse_message(Envelope, line, what="receipt") for line in lines if line]
    clients = _clients(place.manifest().manifest, where)
    heads = [envelope for path in head or [] for envelope in read_heads(path)]
    made = make_bundle(place, clients, now=datetime.now(UTC), inference=inference, heads=heads)
    data = made.canonical()
    write_atomic(out, data)
    facts = {"bundle": str(out), "bytes": len(data), "run": place.state().run, "attempts": len(made.attempts)}
    show(facts, f"{out}  {len(data):,} bytes\nnext: cloister audit verify {out} --at now", json=json)


def serve(
    folder: Folder,
    host: HostFile,
    service: Annotated[str | None, typer.Option(help="which, where the manifest has more than one")] = None,
    listen: Annotated[str, typer.Option(help="HOST:PORT")] = "127.0.0.1:8443",
    json: Json = False,
) -> None:
    """Start a service of a finished run in its enclave, until it is stopped."""
    from cloister.run import RunFolder, load_host
    from cloister.serve.hosting import run_service

    place, where = RunFolder(folder), load_host(host)
    manifest = place.manifest().manifest
    names = sorted(manifest.services)
    if service is None and len(names) != 1:
        raise InputError(2005, "which service?", expected=names, hint="name it with --service")

    def ready(model: str) -> None:
        show({"service": service or names[0], "listen": listen, "model": model}, json=json)

    run_service(place, where, service or names[0], clients=_clients(manifest, where), listen=listen, ready=ready)


def collect(
    manifest: Annotated[Path, typer.Argument(help="the signed manifest")],
    output: Annotated[str, typer.Argument(help="the output that the manifest releases to you")],
    run: Annotated[str, typer.Option(help="the run's id")],
    image: Annotated[str, typer.Option(help="where its sealed image lies (any fsspec URL)")],
    as_party: Annotated[str, typer.Option("--as", help="who you are")],
    to: Annotated[Path, typer.Option(help="the folder to open it into")],
    key_manager: Annotated[
        list[str] | None, typer.Option(help="NAME=URL, where the manifest has no hint or the host moved it")
    ] = None,
    home: Home = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Collect an output as a party: gather its key from every key manager and open it."""
    from cloister.cli._identity import open_identity
    from cloister.keys import collect_output
    from cloister.seal import open_image, unpack

    signed = _signed(manifest)
    urls = dict(_pair(text) for text in key_manager or [])
    clients = _clients_at(signed.manifest, lambda name: urls.get(name) or signed.manifest.key_managers[name].url)
    identity = open_identity(as_party, home=home, passphrase_file=passphrase_file)
    found = collect_output(signed.manifest, output, run=run, identity=identity, clients=clients)
    if found.assurance == "simulated":
        note("SIMULATED: the enclaves that made this output are simulated")
    with open_image(image, image_id=found.image, key=found.key) as reader:
        unpack(reader, to)
    show({"output": output, "image": found.image, "folder": str(to), "assurance": found.assurance}, json=json)


def log(
    where: Annotated[Path, typer.Argument(help="the run's folder, or a sealed log that the host handed over")],
    as_party: Annotated[str, typer.Option("--as", help="who you are")],
    manifest: OwnManifest = None,
    stage: OfStage = None,
    attempt: OfAttempt = None,
    at: JudgedAt = "now",
    home: Home = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Read what a stage's script printed, as a party that the manifest lets read it."""
    from cloister.cli._identity import open_identity
    from cloister.cli.audit import moment
    from cloister.run import parse_log, read_log
    from cloister.wire import read_bounded

    path = _log_file(where, stage, attempt) if where.is_dir() else where
    if manifest is None and not where.is_dir():
        raise InputError(2005, "a sealed log alone does not say whose launcher may sign it", hint="name --manifest")
    signed = _signed(manifest or where / "manifest.json")
    kept = parse_log(read_bounded(path, max_bytes=4 << 20, what="sealed log"))
    identity = open_identity(as_party, home=home, passphrase_file=passphrase_file)
    text, facts = read_log(kept, signed.manifest, party=identity.name, key=identity.opening_key, at=moment(at))
    if facts["assurance"] == "simulated":
        note("SIMULATED: the enclave that printed this is simulated")
    shown = text.decode(errors="backslashreplace")
    show({**facts, "attempt": kept.attempt, "text": shown}, shown.rstrip("\n"), json=json)


def findings(
    where: Annotated[Path, typer.Argument(help="the run's folder, or sealed findings that the host handed over")],
    as_party: Annotated[str, typer.Option("--as", help="who you are")],
    manifest: OwnManifest = None,
    stage: OfStage = None,
    attempt: OfAttempt = None,
    at: JudgedAt = "now",
    home: Home = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Read which products of a stage's workers were wrong (5701), as an owner of the stage's data."""
    from cloister.cli._identity import open_identity
    from cloister.cli.audit import moment
    from cloister.run import parse_findings, read_findings
    from cloister.wire import read_bounded

    path = _findings_file(where, stage, attempt) if where.is_dir() else where
    if manifest is None and not where.is_dir():
        raise InputError(2005, "findings alone do not say whose launcher may sign them", hint="name --manifest")
    signed = _signed(manifest or where / "manifest.json")
    kept = parse_findings(read_bounded(path, max_bytes=48 << 20, what="findings"))
    identity = open_identity(as_party, home=home, passphrase_file=passphrase_file)
    found = read_findings(kept, signed.manifest, party=identity.name, key=identity.opening_key, at=moment(at))
    if found.session["assurance"] == "simulated":
        note("SIMULATED: the enclave that found this is simulated")
    facts = {**found.session, "attempt": kept.attempt, "count": found.count, "failures": list(found.failures)}
    lines = [f"stage {kept.stage}, attempt {kept.attempt}: {found.count} products were wrong; the first of them:"]
    lines += ["  " + ", ".join(f"{name} {value}" for name, value in each.items()) for each in found.failures]
    show(facts, "\n".join(lines), json=json)


def _findings_file(folder: Path, stage: str | None, attempt: int | None) -> Path:
    """The newest findings of a run's folder that fit."""
    from cloister.run import RunFolder

    for path in reversed(RunFolder(folder).findings_files()):
        of, _, number = path.stem.rpartition("-")
        if stage in (None, of) and attempt in (None, int(number)):
            return path
    raise InputError(2556, "no such findings", got=f"{stage or 'any stage'}, {attempt or 'any attempt'}")


def _log_file(folder: Path, stage: str | None, attempt: int | None) -> Path:
    """The newest sealed log of a run's folder that fits."""
    from cloister.run import RunFolder, parse_log
    from cloister.wire import read_bounded

    for path in reversed(RunFolder(folder).log_files()):
        kept = parse_log(read_bounded(path, max_bytes=4 << 20, what="sealed log"))
        if stage in (None, kept.stage) and attempt in (None, kept.attempt):
            return path
    raise InputError(2556, got=f"{stage or 'any stage'}, {attempt or 'any attempt'}")


def _signed(path: Path) -> SignedManifest:
    from cloister.manifest import load_signed, require_signed
    from cloister.wire import read_bounded

    signed = load_signed(read_bounded(path, max_bytes=16 << 20, what="signed manifest"))
    require_signed(signed)
    return signed


def _clients(manifest: Manifest, host: Host) -> dict[str, KeyManagerClient]:
    return _clients_at(manifest, lambda name: host.key_manager_url(name, manifest))


def _clients_at(manifest: Manifest, where: Callable[[str], str | None]) -> dict[str, KeyManagerClient]:
    from cloister.keys import KeyManagerClient
    from cloister.wire import VerifyKey

    clients: dict[str, KeyManagerClient] = {}
    for name, manager in manifest.key_managers.items():
        url = where(name)
        if url is None:
            raise InputError(2551, f"where does key manager '{name}' listen?", hint=f"--key-manager {name}=URL")
        clients[name] = KeyManagerClient(url, VerifyKey.parse(manager.sign))
    return clients


def _pair(text: str) -> tuple[str, str]:
    name, sign, url = text.partition("=")
    if not sign or not url:
        raise InputError(2005, "not NAME=URL", got=text)
    return name, url


def _execute(folder: RunFolder, host: Host, *, json: bool) -> None:
    from cloister.cli._offloader import offloader
    from cloister.enclave import executor_named
    from cloister.run import Runner

    manifest = folder.manifest().manifest
    executor, clients, times = (
        executor_named(host.executor, offloader=offloader),
        _clients(manifest, host),
        _Times(),
    )
    try:
        with _progress(manifest, folder.state()) as tell:

            def told(event: Event) -> None:
                times.add(event)
                tell(event)

            state = Runner(folder, host, executor=executor, clients=clients, tell=told).run()
    except KeyboardInterrupt:
        note(f"interrupted; every attempt that ran was ended. Go on with: cloister run resume {folder.path} --host …")
        raise typer.Exit(130) from None
    _show(manifest, state, times=times.taken, json=json)


class _Times:
    """How long the stages took that end in this command: the script and each step by the launcher, all by our clock."""

    def __init__(self) -> None:
        self.taken: dict[str, dict[str, Any]] = {}
        self._began: dict[tuple[str, int], float] = {}

    def add(self, event: Event) -> None:
        """Takes note; from any thread."""
        place, now = (event.stage, event.attempt), monotonic()
        if event.status == "started":
            self._began[place] = now
        elif event.result is not None:
            self.taken[event.stage] = {
                "attempt_ms": round((now - self._began[place]) * 1000),
                "script_ms": event.result.script_ms,
                "fixed_ms": event.result.fixed_ms,
            }


@contextmanager
def _progress(manifest: Manifest, state: RunState) -> Iterator[Callable[[Event], None]]:
    """A line a stage on stderr: a live one on a terminal, plain ones elsewhere."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda event: note(_line(event))
        return
    columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        done = {output.stage for output in state.outputs.values()}
        rows = {
            name: bars.add_task(name, total=1, completed=int(name in done), start=False) for name in manifest.stages
        }

        def tell(event: Event) -> None:
            if event.status == "started":
                bars.start_task(rows[event.stage])
            finished = event.status == "finished"
            bars.update(rows[event.stage], description=_line(event), completed=int(finished))

        yield tell


def _line(event: Event) -> str:
    line = f"{event.stage} attempt {event.attempt} {event.status}"
    return f"{line}: {event.error}" if event.error else line


def _show(
    manifest: Manifest, state: RunState, *, times: Mapping[str, dict[str, Any]] = MappingProxyType({}), json: bool
) -> None:
    stages: dict[str, Any] = {}
    for stage in manifest.stages:
        outputs = {name: out.as_json() for name, out in state.outputs.items() if out.stage == stage}
        attempts = [record for record in state.attempts if record.consumer == stage]
        last = attempts[-1] if attempts else None
        if outputs:
            said = "finished"
        elif last is None:
            said = "waiting"
        elif last.code is not None:
            said = f"failed ({last.code})"
        else:
            said = "registering" if last.registration is not None else "started"
        codes = [record.code for record in attempts if record.code is not None]
        row = {"status": said, "attempts": len(attempts), "failures": codes, "outputs": outputs}
        stages[stage] = row | times.get(stage, {})
    done = all(row["status"] == "finished" for row in stages.values())
    facts = {"run": state.run, "manifest": state.manifest, "finished": done, "stages": stages}
    lines = [f"run {state.run}"]
    width = max(len(stage) for stage in stages)
    for stage, row in stages.items():
        tried = f"attempt {row['attempts']}" if row["attempts"] else "no attempt yet"
        failed = (
            f"; failed before: {', '.join(map(str, row['failures']))}" if row["failures"] and row["outputs"] else ""
        )
        lines.append(f"  {stage:<{width}}  {row['status']}, {tried}{_taken(row)}{failed}")
        lines += [f"  {'':<{width}}  {name} {out['image'][:16]}…  {out['url']}" for name, out in row["outputs"].items()]
    show(facts, "\n".join(lines), json=json)


def _taken(row: dict[str, Any]) -> str:
    if "script_ms" not in row:
        return ""
    script_s = row["script_ms"] / 1000
    return f", script {script_s:.1f} s, around it {row['attempt_ms'] / 1000 - script_s:.1f} s"


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(no_args_is_help=True)

    @group.callback()
    def _group() -> None:  # pyright: ignore[reportUnusedFunction]
        """Execute a manifest; collect what it releases."""

    for command in (start, resume, status, bundle, serve, collect, log, findings):
        group.command()(command)
    app.add_typer(group, name="run")
