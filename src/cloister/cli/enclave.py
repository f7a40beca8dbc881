"""``cloister enclave measure|diff``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloister.cli._voice import Json, note, show

__all__ = ["register"]

_MAX_LISTING_BYTES = 64 << 20  # a listing has about 120 bytes a file; the largest installations have 100,000 files


def measure(
    role: Annotated[str, typer.Option(help="launcher, key-manager or service")] = "launcher",
    inline: Annotated[
        bool, typer.Option("--inline", help="the launcher of the executor 'inline', which has no sandbox")
    ] = False,
    listing: Annotated[Path | None, typer.Option(help="also write the hash of every file there")] = None,
    json: Json = False,
) -> None:
    """Print the measurement that a manifest pins for this installation."""
    from cloister.enclave import measure_installed
    from cloister.errors import InputError

    if inline and role != "launcher":
        raise InputError(2501, "only a launcher can be inline", got=role)
    measured = measure_installed(role, sandbox="UNSANDBOXED" if inline else "bubblewrap")
    if listing is not None:
        listing.write_text(measured.listing_text(), encoding="utf-8")
    facts = {
        "measurement": measured.measurement,
        "sgx": measured.for_tee("sgx"),
        "role": measured.role,
        "python": measured.facts["python"],
        "machine": measured.facts["machine"],
        "files": len(measured.listing),
        "listing": measured.files,
        "configuration": measured.facts["configuration"],
        "roots": measured.facts["roots"],
    }
    show(facts, measured.measurement, json=json)
    if not json:
        note(f"{measured.role} on Python {facts['python']}, {len(measured.listing)} files; for a TDX manifest as it is")
        note("SIMULATED evidence carries this number on the host's word; hardware measures for itself")


def diff(
    old: Annotated[Path, typer.Argument(help="a listing of 'enclave measure --listing'")],
    new: Annotated[Path, typer.Argument(help="another")],
    json: Json = False,
) -> None:
    """Say which files make two measurements differ."""
    from cloister.enclave import diff_listings, parse_listing
    from cloister.errors import InputError
    from cloister.wire import read_bounded

    def read(path: Path) -> dict[str, str]:
        try:
            return parse_listing(read_bounded(path, max_bytes=_MAX_LISTING_BYTES, what="listing").decode())
        except UnicodeDecodeError:
            raise InputError(2002, f"'{path}' is not a listing") from None

    facts = diff_listings(read(old), read(new))
    signs = {"removed": "-", "added": "+", "changed": "~"}
    lines = [f"{sign} {name}" for kind, sign in signs.items() for name in facts[kind]]
    show(dict(facts), "\n".join(lines) or "the listings are the same", json=json)


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="What runs inside an enclave: its measurement.", no_args_is_help=True)
    group.command()(measure)
    group.command()(diff)
    app.add_typer(group, name="enclave")
