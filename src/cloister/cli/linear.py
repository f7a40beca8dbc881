"""``cloister linear``: one linear model of joined rows, between parties that trust nobody and need no enclave."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli._identity import Home, PassphraseFile, open_identity
from cloister.cli._linear_run import Signed, check, estimated, read_signed, require_room, run
from cloister.cli._voice import Json, note, show
from cloister.cli.manifest import _public, _write_new
from cloister.errors import InputError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloister.linear._agreement import Agreement
    from cloister.linear._compare import Comparison
    from cloister.linear._consent import Signed as SignedAgreement
    from cloister.linear._estimate import Estimate
    from cloister.linear._explore import Explored

__all__ = ["register"]

_log = logging.getLogger("cloister.cli")

_linear = typer.Typer(
    name="linear", help="Fit one linear model of joined rows, without an enclave.", no_args_is_help=True
)
_File = Annotated[Path, typer.Argument(help="an agreement in YAML, or a signed agreement", metavar="FILE")]


@_linear.command()
def new(
    name: Annotated[str, typer.Argument(help="what the parties call this agreement")],
    party: Annotated[
        list[str], typer.Option("--party", help="WHO@HOST:PORT, in order; WHO is a public file or a pinned or own name")
    ],
    model: Annotated[str, typer.Option(help="ridge, lasso, elastic-net, logistic or statistics")] = "lasso",
    response: Annotated[str, typer.Option(help="the column that the model shall tell")] = "FILL-IN",
    columns: Annotated[
        Path | None, typer.Option(help="a CSV file whose first line names the columns; nothing else of it is read")
    ] = None,
    adversary: Annotated[str, typer.Option(help="malicious, or semi-honest (weaker)")] = "malicious",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="file to write (never overwritten)")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Write a commented agreement to start from, with the parties' keys filled in."""
    from datetime import UTC, datetime

    require_room()
    from cloister.linear._draft import draft

    if adversary not in ("malicious", "semi-honest"):
        raise InputError(2019, "no such adversary", expected="malicious or semi-honest", got=adversary[:40])
    parties = [_at(text, home) for text in party]
    features = [one for one in _header(columns) if one != response] if columns else []
    text = draft(
        name,
        kind=model,
        parties=parties,
        features=features,
        response=response,
        adversary=adversary,
        now=datetime.now(UTC),
    )
    if out is None:
        show({"agreement": text}, text, json=json)
        return
    _write_new(out, text.encode())
    said = f"wrote {out}: fill in what says FILL-IN, then 'cloister linear explore {out} --data ROWS'"
    show({"file": str(out)}, said, json=json)


@_linear.command()
def sign(
    files: Annotated[
        list[Path], typer.Argument(help="an agreement, or copies of one with some signatures each", metavar="FILE…")
    ],
    as_: Annotated[
        str | None, typer.Option("--as", help="your identity's name; without it copies are only joined")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="file to write (else NAME.signed.json, or the first file itself)")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="you have read the review and consent")] = False,
    passphrase_file: PassphraseFile = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Show what an agreement means, ask for consent, and add your signature; join the signatures of copies."""
    require_room()
    from cloister.linear import _consent as room
    from cloister.linear._review import review
    from cloister.party import Pins, home_folder
    from cloister.wire import write_atomic

    signed = room.merge(*(_proposed(path) for path in files))
    if as_ is not None:
        identity = open_identity(as_, home=home, passphrase_file=passphrase_file)
        pinned = {**Pins(home_folder(home)).all(), identity.name: identity.public}
        room.require_pinned(signed.agreement, pinned)
        note(review(signed.agreement, party=identity.name).text() + "\n")
        if not yes and not _says_yes(signed.agreement):
            raise RefusedError(3307, f"'{identity.name}' did not consent to {signed.agreement.id[:12]}")
        signed = room.sign(signed, identity)
        _log.info("agreement %s: signed by %s", signed.agreement.id, identity.name)
    target = out or (files[0] if files[0].suffix == ".json" else files[0].with_suffix(".signed.json"))
    if target in files and out is None:
        write_atomic(target, signed.canonical() + b"\n")
    else:
        _write_new(target, signed.canonical() + b"\n")
    facts = {"id": signed.agreement.id, "file": str(target)} | _signers(signed)
    still = f"; still needed: {', '.join(signed.missing)}" if signed.missing else "; complete"
    by = (", ".join(facts["signed_by"]) or "nobody yet") + still
    show(facts, f"agreement  {signed.agreement.id}\nfile       {target}\nsigned by  {by}", json=json)


@_linear.command()
def estimate(
    file: _File,
    round_trip_ms: Annotated[float, typer.Option("--round-trip", min=0, help="between parties, in milliseconds")] = 1.0,
    bandwidth: Annotated[
        float, typer.Option(min=0.001, help="that a party sends, in Mbit/s, to all together")
    ] = 1000.0,
    shared_by: Annotated[
        float, typer.Option(min=1, help="how many times slower this processor is, being shared")
    ] = 1.0,
    measure: Annotated[bool, typer.Option(help="time this machine for a few seconds first")] = True,
    json: Json = False,
) -> None:
    """Say how long a session will take and what it sends, by phase; the number of rows does not matter."""
    require_room()
    from cloister.linear import _estimate as room
    from cloister.linear._sound import require_sound

    agreement = _read(file)
    require_sound(agreement)
    primitives = room.measured() if measure else room.Primitives()
    network = room.Network(round_trip_s=round_trip_ms / 1e3, bytes_s=bandwidth * 1e6 / 8)

    def of(malicious: bool) -> Estimate:
        return estimated(agreement, primitives, network=network, malicious=malicious, shared_by=shared_by)

    found, weaker = of(agreement.malicious), of(False)
    facts = _estimated(found) | {"agreement": agreement.id, "semi_honest_seconds": round(weaker.seconds, 2)}
    lines = [f"{'phase':<10}{'seconds':>9}{'MB up':>9}{'rounds':>8}"]
    lines += [
        f"{name:<10}{phase.cpu_s + phase.network_s:>9.1f}{phase.up_bytes / 1e6:>9.1f}{phase.rounds:>8}"
        for name, phase in found.phases.items()
    ]
    lines.append(f"{'in all':<10}{found.seconds:>9.1f}{found.up_bytes / 1e6:>9.1f}   a party")
    if agreement.malicious:
        lines.append(f"semi-honest would be {weaker.seconds:.1f} s (weaker: one party that cheats reads everything)")
    show(facts, "\n".join(lines), json=json)


@_linear.command()
def compare(
    file: Signed,
    model: Annotated[Path, typer.Argument(help="what 'linear run' wrote", metavar="MODEL")],
    data: Annotated[list[Path], typer.Option("--data", help="pooled rows, of the past or for a test; may be repeated")],
    json: Json = False,
) -> None:
    """Hold a session's model against a local fit of rows that you have pooled; nothing is sent."""
    require_room()
    from cloister.linear._agreed_rows import rows_of
    from cloister.linear._compare import compared
    from cloister.linear._model import MAX_MODEL_BYTES, read_model
    from cloister.wire import read_bounded

    agreement = read_signed(file).agreement
    kept = read_model(read_bounded(model, max_bytes=MAX_MODEL_BYTES, what="model"), agreement, what=f"'{model}'")
    found = compared(agreement, kept, [rows_of(agreement, path) for path in data])
    show(_compared(found), _compared_text(found), json=json)


@_linear.command()
def explore(
    file: Annotated[Path, typer.Argument(help="an agreement in YAML, or a signed one", metavar="FILE")],
    data: Annotated[list[Path], typer.Option("--data", help="rows that lie here: one file, or one a party")],
    alpha: Annotated[list[str] | None, typer.Option(help="penalties to try instead of the agreed one")] = None,
    json: Json = False,
) -> None:
    """Try an agreement on rows that lie here, before anybody signs: bounds they need, convergence; nothing is sent."""
    require_room()
    from cloister.linear._explore import explored

    found = explored(_read(file), data, penalties=alpha or [])
    show(found.as_json(), "\n".join(_explored(found)), json=json)
    if not found.good:
        raise typer.Exit(2)


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    _linear.command()(check)
    _linear.command()(run)
    app.add_typer(_linear)


def _read(path: Path) -> Agreement:
    """An agreement from YAML, or from a signed one."""
    from cloister.linear import _consent as room
    from cloister.wire import read_bounded

    data = read_bounded(path, max_bytes=room.MAX_BYTES, what="agreement")
    if data.lstrip().startswith(b"{") and b'"payloadType"' in data:
        return room.load_signed(data, what=f"'{path}'").agreement
    return room.load_agreement(data, what=path.name)


def _proposed(path: Path) -> SignedAgreement:
    from cloister.linear import _consent as room

    return read_signed(path) if path.suffix == ".json" and _is_signed(path) else room.propose(_read(path))


def _is_signed(path: Path) -> bool:
    from cloister.linear._consent import MAX_BYTES
    from cloister.wire import read_bounded

    return b'"payloadType"' in read_bounded(path, max_bytes=MAX_BYTES, what="agreement")


def _at(text: str, home: Path | None) -> tuple[Any, str]:
    who, at, address = text.rpartition("@")
    if not at or not who:
        raise InputError(2019, f"not a party: {text[:80]!r}", expected="WHO@HOST:PORT")
    return _public(who, home), address


def _header(path: Path) -> list[str]:
    """The names in a CSV's first line, read as its rows will be."""
    import csv

    from cloister.linear._files import other_separator, separator_of

    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # some programs begin files with a mark
            names = next(csv.reader([file.readline(1 << 20)], delimiter=separator_of(path)))
    except (OSError, UnicodeDecodeError, StopIteration, csv.Error) as error:
        raise InputError(2001, f"cannot read the names of columns: '{path}'", got=type(error).__name__) from None
    if hint := other_separator(names):
        raise InputError(2906, f"the first line of '{path}' is read as one column", hint=hint)
    return names


def _signers(signed: SignedAgreement) -> dict[str, Any]:
    return {"signed_by": sorted(signed.signers), "missing": list(signed.missing)}


def _says_yes(agreement: Agreement) -> bool:
    if not sys.stdin.isatty():
        return False
    return str(typer.prompt(f"type 'yes' to sign {agreement.id[:12]}", err=True)).strip() == "yes"


def _estimated(found: Estimate) -> dict[str, Any]:
    phases = {
        name: {"seconds": round(one.cpu_s + one.network_s, 3), "up_bytes": one.up_bytes, "rounds": one.rounds}
        for name, one in found.phases.items()
    }
    return {"phases": phases, "seconds": round(found.seconds, 3), "up_bytes": found.up_bytes}


def _compared(found: Comparison) -> dict[str, Any]:
    rows = [
        {"name": row.name, "score": row.score, "nonzero": row.nonzero, "distance": row.distance, "note": row.note}
        for row in found.models
    ]
    return {"rows": found.rows, "measure": found.measure, "models": rows}


def _compared_text(found: Comparison) -> str:
    lines = [f"{found.rows} rows"]
    for row in found.models:
        if row.note:
            lines.append(f"{row.name:<24} {row.note}")
            continue
        score = "none" if row.score is None else f"{row.score:.6f}"
        lines.append(f"{row.name:<24} {found.measure} {score}, {row.nonzero} coefficients, {row.distance:.2e} away")
    return "\n".join(lines)


def _explored(found: Explored) -> Iterator[str]:
    for count, agreed in zip(found.rows, found.agreed_rows, strict=True):
        yield f"rows       {count} (agreed {agreed})"
    for name, need in found.needed.curvatures.items():
        yield f"curvature  {need} (agreed {found.agreed.curvatures[name]}) of '{name}'"
    squares = found.needed.mean_squares
    most = max(squares, key=lambda name: float(squares[name]))
    yield f"squares    at most {squares[most]} (agreed {found.agreed.mean_squares[most]}), of column '{most}'"
    yield from (f"broken     {one.what}: expected {one.expected}, got {one.got} [{one.code}]" for one in found.beyond)
    for trial in found.trials:
        reached = "" if trial.score is None else f", {found.measure} {trial.score:.4f}"
        said = f"{trial.nonzero} of {len(squares) - 1} coefficients{reached}"
        if trial.problem is not None:
            said = f"{trial.problem}; {trial.problem.hint}"
        wider = "" if trial.bounds == "agreed" else "with the needed bounds, not the agreed: "
        yield f"penalty    {trial.penalty:<12} {wider}{said}"
    yield from (f"note       {text}" for text in found.notes)
