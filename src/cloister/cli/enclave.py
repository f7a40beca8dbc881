"""``cloister enclave measure|diff|prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cloister.cli._voice import Json, note, show

if TYPE_CHECKING:
    from cloister.enclave import Measured

__all__ = ["register"]

_MAX_LISTING_BYTES = 64 << 20  # a listing has about 120 bytes a file; the largest installations have 100,000 files


def measure(
    role: Annotated[
        list[str] | None, typer.Option(help="launcher (the default), key-manager or service; may be repeated")
    ] = None,
    inline: Annotated[
        bool, typer.Option("--inline", help="the launcher of the executor 'inline', which has no sandbox")
    ] = False,
    listing: Annotated[Path | None, typer.Option(help="also write the hash of every file there")] = None,
    json: Json = False,
) -> None:
    """Print the measurement that a manifest pins for this installation.

    With several roles, every line, and every key of the JSON, is a role.
    """
    from cloister.enclave import measure_installed
    from cloister.errors import InputError

    roles = role or ["launcher"]
    if inline and roles != ["launcher"]:
        raise InputError(2501, "only a launcher can be inline", got=", ".join(roles))
    sandbox: Literal["UNSANDBOXED", "bubblewrap"] = "UNSANDBOXED" if inline else "bubblewrap"
    first = measure_installed(roles[0], sandbox=sandbox)
    if listing is not None:
        listing.write_text(first.listing_text(), encoding="utf-8")
    found = {name: measure_installed(name, sandbox=sandbox, listing=first.listing) for name in roles}
    facts = {name: _facts(measured) for name, measured in found.items()}
    if len(roles) == 1:
        show(facts[roles[0]], first.measurement, json=json)
    else:
        show(facts, "\n".join(f"{name:<12} {measured.measurement}" for name, measured in found.items()), json=json)
    if not json:
        python = first.facts["python"]
        note(f"{', '.join(found)} on Python {python}, {len(first.listing)} files; for a TDX manifest as it is")
        note("SIMULATED evidence carries this number on the host's word; hardware measures for itself")


def _facts(measured: Measured) -> dict[str, Any]:
    return {
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


def prepare(
    modules: Annotated[
        list[str] | None, typer.Option("--import", help="a module that stages' scripts import; may be repeated")
    ] = None,
    scripts: Annotated[
        Path | None, typer.Option(help="a folder with such scripts: whatever its Python files import")
    ] = None,
    site: Annotated[Path | None, typer.Option(help="folder of the SIMULATED site; without one, this machine")] = None,
    tee: Annotated[str, typer.Option(help="tdx or sgx")] = "tdx",
    offload: Annotated[bool, typer.Option("--offload/--no-offload", help="also what offloaded stages need")] = False,
    privacy: Annotated[bool, typer.Option("--privacy/--no-privacy", help="also what private stages need")] = False,
    json: Json = False,
) -> None:
    """Compile, before the first stage, what stages import; else the first stage does, while others wait for it.

    The launcher compiles measured source in a sandbox and keeps the result under its own key. Another version of any
    package, or of Cloister, is prepared anew.
    """
    from cloister.enclave import Preparation, imported_packages, prepare
    from cloister.wire import parse_message

    named = {*(modules or ()), *(() if scripts is None else imported_packages(scripts))}
    wanted = {"modules": sorted(named), "offload": offload, "privacy": privacy}
    asked = {**wanted, "tee": tee, "site": None if site is None else str(site)}
    done = prepare(parse_message(Preparation, asked, what="what to prepare"))
    text = f"{done.files} compiled files, {done.size_bytes >> 20} MiB, kept for {done.measurement[:12]}…"
    show(done.as_json(), text, json=json)


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="What runs inside an enclave: its measurement.", no_args_is_help=True)
    group.command()(measure)
    group.command()(diff)
    group.command()(prepare)
    app.add_typer(group, name="enclave")
