"""``cloister audit verify``: check a finished run, offline."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli._identity import Home
from cloister.cli._voice import Json, show
from cloister.errors import CloisterError, InputError, RefusedError

if TYPE_CHECKING:
    from datetime import datetime

    from cloister.audit import AuditReport, Check
    from cloister.party import PublicIdentity

__all__ = ["moment", "register"]

_log = logging.getLogger("cloister.cli")

_SIGNS = {"asserted": "✓", "refuted": "✗", "unknown": "?"}


def verify(
    bundle: Annotated[Path, typer.Argument(help="what 'cloister run bundle' made")],
    at: Annotated[str, typer.Option("--at", help="the time to judge by, such as 2026-01-31T12:00:00Z, or 'now'")],
    manifest: Annotated[
        str | None, typer.Option("--manifest", help="the agreement that you mean: its id, or your signed copy")
    ] = None,
    head: Annotated[
        list[Path] | None, typer.Option("--head", help="a tree head that you got from a key manager yourself")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="write the report as one HTML file")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Check signatures, evidence, key releases, images and receipts of a run. Needs no network and trusts no runner.

    Exit status 0 means accepted. The owners' keys must be known to you: pinned, your own, or fixed by --manifest.
    Without --head, whether the log is complete stays unknown.
    """
    from cloister.audit import render_html
    from cloister.audit import verify as audit
    from cloister.cli._heads import read_heads
    from cloister.receipt import MAX_BUNDLE_BYTES, parse_bundle
    from cloister.wire import read_bounded, write_atomic

    whole = parse_bundle(read_bounded(bundle, max_bytes=MAX_BUNDLE_BYTES, what="bundle"))
    heads = [envelope for path in head or [] for envelope in read_heads(path)]
    wanted = None if manifest is None else _manifest_id(manifest)
    report = audit(whole, at=moment(at), manifest=wanted, pins=_known(home), heads=heads)
    _log.info("audit of manifest %s, run %s: %s", report.manifest, report.run or "not shown", report.outcome)
    if html is not None:
        try:
            write_atomic(html, render_html(report, whole.signed.manifest).encode())
        except OSError as error:
            raise InputError(2001, f"cannot write the report: {error.strerror}: '{html}'") from error
    show(report.as_json(), _text(report), json=json)
    if json:
        raise typer.Exit(_status(report))
    report.require()


def _known(home: Path | None) -> dict[str, PublicIdentity]:
    """The identities that the auditor pinned, and the auditor's own.

    Raises:
        RefusedError: 3001 when one of the auditor's own has a pinned name, and other keys.
    """
    from cloister.party import Pins, PublicIdentity, home_folder
    from cloister.wire import read_bounded

    folder = home_folder(home)
    known = Pins(folder).all()
    for path in sorted(folder.glob("*.pub")) if folder.is_dir() else []:
        if not path.with_suffix(".key").is_file():
            continue  # a partner's file, downloaded into the folder and never pinned
        own = PublicIdentity.parse(read_bounded(path, max_bytes=16 * 1024, what="public identity"), what=f"'{path}'")
        pinned = known.setdefault(own.name, own)
        if not pinned.same_keys(sign=own.sign, hpke=own.hpke):
            raise RefusedError(3001, f"'{own.name}' is pinned to other keys", expected=pinned.sign, got=own.sign)
    return known


def _manifest_id(text: str) -> str:
    """The id of the manifest that the auditor means: as it stands, or of the signed copy in a file."""
    import re

    from cloister.manifest import MAX_SIGNED_BYTES, load_signed, require_signed
    from cloister.wire import read_bounded

    if re.fullmatch(r"[0-9a-f]{64}", text):
        return text
    signed = load_signed(read_bounded(text, max_bytes=MAX_SIGNED_BYTES, what="signed manifest"))
    require_signed(signed)
    return signed.manifest.id


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
    for group in dict.fromkeys(check.group for check in report.checks):
        lines.append(group)
        for check in report.checks:
            if check.group == group:
                code = f"CLOISTER-{check.code}: " if check.code else ""
                reason = f" ({code}{check.reason})" if check.reason else ""
                lines.append(f"  {_SIGNS[check.status]} {check.subject}: {check.what}{reason}")
                lines += [f"      {name:<8} {value}" for name, value in _compared(check)]
    counts = report.as_json()["count"]
    said = {"asserted": "ACCEPTED", "refuted": "REFUSED", "unknown": "NOT ACCEPTED"}[report.outcome]
    told = f"{counts['asserted']} asserted, {counts['refuted']} refuted, {counts['unknown']} unknown"
    return "\n".join([*lines, f"{said}  {told}, judged as of {report.at:%Y-%m-%dT%H:%M:%SZ}"])


def _compared(check: Check) -> list[tuple[str, str]]:
    pairs = (("expected", check.expected), ("got", check.got))
    return [(name, value) for name, value in pairs if value is not None]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(no_args_is_help=True)

    @group.callback()
    def _group() -> None:  # pyright: ignore[reportUnusedFunction]
        """Check a finished run, offline."""

    group.command()(verify)
    app.add_typer(group, name="audit")
