"""``cloister linear check|run``: whether the parties could begin, and the session itself."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli._identity import Home, PassphraseFile, open_identity
from cloister.cli._voice import Json, note, show
from cloister.errors import CloisterError, InputError

if TYPE_CHECKING:
    from cloister.linear._agreement import Agreement
    from cloister.linear._consent import Signed as SignedAgreement
    from cloister.linear._estimate import Estimate, Primitives
    from cloister.linear._link import Traffic
    from cloister.linear._preflight import Peer
    from cloister.party import Identity

__all__ = ["Signed", "check", "estimated", "read_signed", "require_room", "run"]

_log = logging.getLogger("cloister.cli")

Signed = Annotated[Path, typer.Argument(help="an agreement with everybody's signatures", metavar="FILE")]
Data = Annotated[Path, typer.Option("--data", help="your rows: CSV, Parquet or Arrow; they stay here")]
_As = Annotated[str, typer.Option("--as", help="your identity's name")]
_Listen = Annotated[str | None, typer.Option("--listen", help="HOST:PORT instead of the agreed port on all addresses")]


def check(
    file: Signed,
    as_: _As,
    data: Annotated[Path | None, typer.Option("--data", help="your rows, to see whether they keep the bounds")] = None,
    wait: Annotated[int, typer.Option(min=1, max=86400, help="for the others, in seconds; all run it together")] = 30,
    listen: _Listen = None,
    passphrase_file: PassphraseFile = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """See whether a session could begin: signatures, your rows, and every other party. Nothing of your data is sent."""
    require_room()
    from cloister.linear._agreed_rows import rows_of, summary_of
    from cloister.linear._consent import require_in_force, require_signed
    from cloister.linear._fit import own_place, timestamp
    from cloister.linear._journal import Journal
    from cloister.linear._preflight import preflight
    from cloister.linear._review import review
    from cloister.party import home_folder

    signed = read_signed(file)
    identity = open_identity(as_, home=home, passphrase_file=passphrase_file)
    agreement, folder = signed.agreement, home_folder(home)
    party = own_place(agreement, identity, folder)
    note(review(agreement, party=identity.name).text() + "\n")
    problems: list[CloisterError] = []
    facts: dict[str, Any] = {"agreement": agreement.id, "party": identity.name, "missing": list(signed.missing)}
    for ask in (lambda: require_signed(signed), lambda: require_in_force(agreement, at=timestamp())):
        with _collecting(problems):
            ask()
    counts = Journal(folder, agreement.id, identity.name).counts()
    facts["journal"] = {"begun": counts.begun, "released": counts.released, "failed": counts.failed}
    facts["consent_needed"] = counts.needs_consent
    if data is not None:
        facts["data"] = "not within the bounds"
        with _collecting(problems), _shown(agreement, agreement.parties[party].rows) as shown:
            summary_of(agreement, party, rows_of(agreement, data, progress=shown.read))
            facts["data"] = "within the bounds"
    peers = preflight(agreement, party, identity.signing_key, wait_s=wait, listen=listen)
    facts["peers"] = [_peer(peer) for peer in peers]
    problems += [peer.problem for peer in peers if peer.problem is not None]
    facts |= {"ready": not problems, "problems": [problem.as_json() for problem in problems]}
    show(facts, "\n".join(_checked(facts, peers)), json=json)
    if problems:
        if not json:
            for problem in problems[1:]:
                note(str(problem))
            raise problems[0]
        raise typer.Exit(problems[0].exit_status)


def run(
    file: Signed,
    as_: _As,
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="the model's file to write (never overwritten)")],
    consent: Annotated[
        bool, typer.Option("--consent", help="this agreement was run before; let it run once more")
    ] = False,
    book: Annotated[
        Path | None, typer.Option("--book", help="your privacy book; needed where the agreement has privacy terms")
    ] = None,
    open_book: Annotated[
        str | None, typer.Option("--open-book", help="EPSILON,DELTA: begin a new book with these caps, for ever")
    ] = None,
    listen: _Listen = None,
    passphrase_file: PassphraseFile = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Fit the model, or open statistics, together with the other parties, who run the same line on their own rows."""
    require_room()
    from cloister.linear._agreed_rows import rows_of
    from cloister.linear._fit import fit_agreed, own_place
    from cloister.linear._model import statistics_in
    from cloister.party import home_folder
    from cloister.wire import write_atomic

    if out.exists():
        raise InputError(2007, f"the file is already there: '{out}'", hint="choose another name, or remove it yourself")
    if not os.access(out.parent, os.W_OK):
        raise InputError(2001, f"nothing can be written there: '{out.parent}'")
    signed = read_signed(file)
    identity = open_identity(as_, home=home, passphrase_file=passphrase_file)
    agreement, folder = signed.agreement, home_folder(home)
    party = own_place(agreement, identity, folder)
    with _shown(agreement, agreement.parties[party].rows) as shown:
        fit = fit_agreed(
            signed,
            rows_of(agreement, data, progress=shown.read),
            identity=identity,
            home=folder,
            consent=consent,
            charge=lambda: _charge(agreement, identity, book, open_book, folder),
            listen=listen,
            told=lambda: nullcontext(shown.told),
        )
    kept, traffic = fit.file, fit.traffic
    what = "model" if kept.statistics is None else "statistics"
    try:
        write_atomic(out, kept.canonical() + b"\n")
    except OSError as error:
        hint = f"the {what} {'was' if kept.statistics is None else 'were'} released, and kept in '{fit.kept}'"
        raise InputError(2001, f"cannot write: {error.strerror}: '{out}'", hint=hint) from error
    _log.info("agreement %s: %s %s", agreement.id, what, out)
    up = sum(one.up_bytes for one in traffic.values())
    facts = {
        "file": str(out),
        "agreement": agreement.id,
        "session": kept.session,
        "transcript": kept.transcript,
        "columns": list(kept.columns),
        "up_bytes": up,
        "traffic": {phase: one.up_bytes for phase, one in traffic.items()},
    }
    if kept.statistics is None:
        facts |= {"coefficients": list(kept.coefficients), "intercept": kept.intercept}
        nonzero = sum(float(one) != 0 for one in kept.coefficients)
        found = f"   {len(kept.coefficients)} coefficients, {nonzero} not zero"
    else:
        facts["statistics"] = kept.statistics.as_json()
        found = ""
    text = (
        f"{what:<10}  {out}{found}\n"
        f"transcript  {kept.transcript[:16]}… (the same at all {len(agreement.parties)} parties: all have signed it)\n"
        f"sent        {up / 1e6:.1f} MB"
    )
    show(facts, text, json=json)
    if kept.statistics is not None and not json:
        from rich.console import Console

        Console().print(statistics_in(agreement, kept).table())


def require_room() -> None:
    """Raises 2006 without the extra ``linear``."""
    if find_spec("numba") is None:
        raise InputError(2006, "linear models need numba", hint='pip install "cloister[linear]"')


def estimated(agreement: Agreement, primitives: Primitives, **named: Any) -> Estimate:
    """What a session of an agreement takes one party; ``named`` as of ``estimate``."""
    from cloister.linear._estimate import estimate
    from cloister.linear._statistics import entries_of
    from cloister.linear._terms import StatisticsTerms

    plan, *again = agreement.plans()
    entries = 0
    if isinstance(agreement.model, StatisticsTerms):
        entries = len(entries_of(agreement.model.open, plan.columns + 1))
    fits = {"fits": agreement.fits, "again": again[0] if again else None, "entries": entries}
    return estimate(plan, primitives, **fits, **named)


def read_signed(path: Path) -> SignedAgreement:
    """A signed agreement from its file."""
    from cloister.linear._consent import MAX_BYTES, load_signed
    from cloister.wire import read_bounded

    return load_signed(read_bounded(path, max_bytes=MAX_BYTES, what="signed agreement"), what=f"'{path}'")


def _charge(agreement: Agreement, identity: Identity, book: Path | None, open_book: str | None, home: Path) -> None:
    """Charges the owner's budget, before the data are opened."""
    if agreement.privacy is None:
        return
    from cloister.linear._book import charge_book, open_budget

    if book is None:
        raise InputError(2019, "the agreement has privacy terms: name your book with --book")
    if open_book is not None:
        epsilon, _, delta = open_book.partition(",")
        open_budget(book, home, owner=identity.name, epsilon=epsilon, delta=delta)
    charged = charge_book(agreement, book, home, owner=identity.name)
    note(f"privacy: ε {charged.epsilon_spent() or 'unknown'} of {charged.budget.epsilon} is spent")


@dataclass(frozen=True, slots=True)
class _Shown:
    """What is told of rows that were read, and of a session's phases."""

    read: Callable[[int], None]
    told: Callable[[str, Traffic], None]


@contextmanager
def _shown(agreement: Agreement, rows: int) -> Iterator[_Shown]:
    """Progress on stderr: bars of rows and of what was sent by phase on a terminal, a line a phase elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from cloister.linear._estimate import Primitives

    console, seen = Console(stderr=True), list[str]()
    if not console.is_terminal:

        def said(phase: str, traffic: Traffic) -> None:
            if phase not in seen:
                seen.append(phase)
                note(phase)

        note("reading rows")
        yield _Shown(lambda done: None, said)
        return
    expected = estimated(agreement, Primitives(), malicious=agreement.malicious)
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        reading = bars.add_task("rows", total=rows)
        bar = {
            name: bars.add_task(name, total=max(1, phase.up_bytes), start=False, visible=False)
            for name, phase in expected.phases.items()
        }

        def tell(phase: str, traffic: Traffic) -> None:
            if phase not in seen:
                for name in seen:
                    bars.stop_task(bar[name])
                seen.append(phase)
                bars.start_task(bar[phase])
            bars.update(bar[phase], completed=traffic.up_bytes, visible=True)

        yield _Shown(lambda done: bars.update(reading, completed=done), tell)


@contextmanager
def _collecting(problems: list[CloisterError]) -> Iterator[None]:
    try:
        yield
    except CloisterError as problem:
        problems.append(problem)


def _peer(peer: Peer) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": peer.name, "ready": peer.problem is None}
    if peer.round_trip_s is not None and peer.clock_s is not None:
        facts |= {"round_trip_ms": round(peer.round_trip_s * 1e3, 1), "clock_s": round(peer.clock_s, 2)}
        facts["release"] = peer.release
    return facts | ({"problem": peer.problem.as_json()} if peer.problem else {})


def _checked(facts: dict[str, Any], peers: list[Peer]) -> Iterator[str]:
    missing = ", ".join(facts["missing"])
    yield f"agreement  {facts['agreement'][:16]}…  {'not signed by ' + missing if missing else 'signed by all'}"
    journal = facts["journal"]
    before = f"{journal['begun']} begun, {journal['released']} released, {journal['failed']} failed"
    yield f"sessions   {before}" + ("; your consent is needed for another one" if facts["consent_needed"] else "")
    if "data" in facts:
        yield f"your rows  {facts['data']}"
    width = max(len(peer.name) for peer in peers)
    for peer in peers:
        if peer.round_trip_s is None or peer.clock_s is None:
            yield f"{peer.name:<{width}}  no: {peer.problem.what if peer.problem else 'unknown'}"
            continue
        sign = "ok" if peer.problem is None else f"no: {peer.problem.what}"
        took = f"{peer.round_trip_s * 1e3:.0f} ms, clock {peer.clock_s:+.1f} s, release {peer.release}"
        yield f"{peer.name:<{width}}  {took}, TLS 1.3, {sign}"
