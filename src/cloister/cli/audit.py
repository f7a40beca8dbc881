"""``cloister audit verify``: check a finished run, offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli._identity import Home
from cloister.cli._voice import Json, show
from cloister.errors import CloisterError, InputError

if TYPE_CHECKING:
    from datetime import datetime

    from cloister.audit import AuditReport
    from cloister.wire import Envelope

__all__ = ["moment", "register"]

_SIGNS = {"asserted": "✓", "refuted": "✗", "unknown": "?"}


def verify(
    bundle: Annotated[Path, typer.Argument(help="what 'cloister run bundle' made")],
    at: Annotated[str, typer.Option("--at", help="the time to judge by, such as 2026-01-31T12:00:00Z, or 'now'")],
    head: Annotated[
        list[Path] | None, typer.Option("--head", help="a tree head that you got from a key manager yourself")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="write the report as one HTML file")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Check signatures, evidence, key releases, images and receipts of a run. Needs no network and trusts no runner.

    Exit status 0 means accepted. Without --head, whether the log is complete stays unknown.
    """
    from cloister.audit import render_html
    from cloister.audit import verify as audit
    from cloister.party import Pins, home_folder
    from cloister.receipt import MAX_BUNDLE_BYTES, parse_bundle
    from cloister.wire import read_bounded, write_atomic

    whole = parse_bundle(read_bounded(bundle, max_bytes=MAX_BUNDLE_BYTES, what="bundle"))
    heads = [envelope for path in head or [] for envelope in _heads(path)]
    report = audit(whole, at=moment(at), pins=Pins(home_folder(home)).all(), heads=heads)
    if html is not None:
        write_atomic(html, render_html(report, whole.signed.manifest).encode())
    show(report.as_json(), _text(report), json=json)
    if json:
        raise typer.Exit(_status(report))
    report.require()


def moment(text: str) -> datetime:
    """The time that a person wrote.

    Raises:
        InputError: 2005 when it is neither ``now`` nor an RFC 3339 time.
    """
    from datetime import UTC, datetime

    if text == "now":
        return datetime.now(UTC)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(2005, "not a time", expected="2026-01-31T12:00:00Z, or now", got=text[:40]) from None
    return found.replace(tzinfo=found.tzinfo or UTC).astimezone(UTC)


def _heads(path: Path) -> list[Envelope]:
    """The head (or the list of heads and proofs) in a file."""
    from cloister.wire import Envelope, parse_json, parse_message, read_bounded

    value: Any = parse_json(read_bounded(path, max_bytes=1 << 20, what="tree head"), what="tree head")
    return [parse_message(Envelope, item, what="tree head") for item in (value if isinstance(value, list) else [value])]


def _status(report: AuditReport) -> int:
    try:
        report.require()
    except CloisterError as error:
        return error.exit_status
    return 0


def _text(report: AuditReport) -> str:
    lines = [f"manifest  {report.manifest}", f"run       {report.run or 'not shown'}"]
    if report.simulated:
        lines.append("SIMULATED enclaves: this shows that the protocol was kept, not that hardware hid anything")
    if report.unsandboxed:
        lines.append(f"UNSANDBOXED stages: {', '.join(report.unsandboxed)}")
    group = ""
    for check in report.checks:
        if check.group != group:
            group = check.group
            lines.append(group)
        code = f"CLOISTER-{check.code}: " if check.code else ""
        reason = f" ({code}{check.reason})" if check.reason else ""
        lines.append(f"  {_SIGNS[check.status]} {check.subject}: {check.what}{reason}")
    counts = report.as_json()["count"]
    said = {"asserted": "ACCEPTED", "refuted": "REFUSED", "unknown": "NOT ACCEPTED"}[report.outcome]
    told = f"{counts['asserted']} asserted, {counts['refuted']} refuted, {counts['unknown']} unknown"
    return "\n".join([*lines, f"{said}  {told}, judged as of {report.at:%Y-%m-%dT%H:%M:%SZ}"])


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(no_args_is_help=True)

    @group.callback()
    def _group() -> None:  # pyright: ignore[reportUnusedFunction]
        """Check a finished run, offline."""

    group.command()(verify)
    app.add_typer(group, name="audit")
