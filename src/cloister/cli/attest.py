"""``cloister attest verify``: what a piece of evidence shows, as of a stated time."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli._voice import Json, note, show
from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.attest import ClaimValue, Evidence, EvidenceType, Verdict

__all__ = ["register"]

_log = logging.getLogger("cloister.cli")

_TYPES = ("sgx", "tdx")


def verify(
    file: Annotated[Path, typer.Argument(help="the quote: raw bytes or hexadecimal text")],
    tee: Annotated[str, typer.Option("--type", help="whose evidence it is: sgx or tdx")],
    at: Annotated[str, typer.Option("--at", help="the moment the verdict is about, such as 2026-11-20T00:00:00Z")],
    collateral: Annotated[
        Path | None, typer.Option("--collateral", help="QuoteCollateralV3 JSON to check it with")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy",
            help="policy JSON (Azure secure-key-release grammar); without one: vendor roots, TCB UpToDate, no debug, "
            "no service TD",
        ),
    ] = None,
    dangerous_development_root: Annotated[
        str | None,
        typer.Option(
            "--dangerous-development-root",
            allow_from_autoenv=False,  # said on the command line, or not at all
            help="also accept the SIMULATED site whose root key has this SHA-256; it proves nothing about hardware",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check a quote offline; exit 0 only when it is accepted, 4 otherwise."""
    from cloister import attest
    from cloister.attest import Evidence
    from cloister.wire import read_bounded

    roots, accepted = attest.VENDOR_ROOTS, attest.DEFAULT_POLICY
    if dangerous_development_root is not None:
        roots = roots.with_development(dangerous_development_root)
        accepted = attest.DANGEROUS_DEVELOPMENT_POLICY
        note("SIMULATED evidence is accepted in this verdict: a development root was named")
    if policy is not None:
        accepted = attest.parse_policy(read_bounded(policy, max_bytes=attest.MAX_POLICY_BYTES, what="policy"))
    given = None
    if collateral is not None:
        data = read_bounded(collateral, max_bytes=attest.MAX_COLLATERAL_BYTES, what="collateral")
        given = attest.parse_collateral(data)
    evidence = Evidence(type=_type(tee), quote=_read_quote(file))
    verdict = attest.appraise(evidence, given, accepted, attest.parse_time(at), roots=roots)
    _log.info("%s evidence %s: %s, %s", tee, verdict.evidence_digest, verdict.outcome, verdict.assurance)
    show(verdict.as_json(), _text(verdict, evidence), json=json)
    if verdict.outcome != "asserted":
        raise typer.Exit(4)


def _type(text: str) -> EvidenceType:
    for known in ("sgx", "tdx"):
        if text == known:
            return known
    raise InputError(2105, f"no such type of evidence: {text[:40]!r}", expected=" or ".join(_TYPES))


def _read_quote(path: Path) -> bytes:
    """The quote of a file that holds its bytes, or them as hexadecimal text."""
    from cloister.attest import MAX_QUOTE_BYTES
    from cloister.wire import read_bounded

    data = read_bounded(path, max_bytes=4 * MAX_QUOTE_BYTES, what="quote")
    text = data.strip().removeprefix(b"0x")
    if text[:2] in (b"03", b"04", b"05"):  # a raw quote starts with its version and a zero byte, never with digits
        try:
            data = bytes.fromhex("".join(text.decode("ascii").split()))
        except ValueError:
            raise InputError(2105, f"'{path}' is neither a quote nor hexadecimal text") from None
    return data


def _text(verdict: Verdict, evidence: Evidence) -> str:
    lines = [f"{evidence.type} evidence {verdict.evidence_digest}", f"as of {verdict.as_json()['at']}", ""]
    width = max(len(claim.name) for claim in verdict.claims)
    for claim in verdict.claims:
        shown = _shown(claim.value)
        reason = f"  [{claim.code}: {claim.reason}]" if claim.reason else ""
        lines.append(f"{claim.status:<8}  {claim.name:<{width}}  {shown}{reason}")
    lines += ["", "assurance: SIMULATED, no hardware" if verdict.simulated else "assurance: hardware"]
    words = {"asserted": "ACCEPTED", "refuted": "REFUSED", "unknown": "REFUSED: cannot be shown"}
    lines.append(words[verdict.outcome])
    return "\n".join(lines)


def site(
    folder: Annotated[Path, typer.Argument(help="where the site's keys go; it must not hold one yet")],
    reuse: Annotated[bool, typer.Option("--reuse/--new", help="if it holds a site already, that one it is")] = False,
    json: Json = False,
) -> None:
    """Make a SIMULATED site: a development root and quoting keys of its own, for trying Cloister without a TEE.

    Its evidence has the real TDX format and proves nothing about hardware. A manifest and every owner must consent
    to it by the root that is printed here, and all that rests on it says SIMULATED.
    """
    from cloister.attest import SimulatedSite

    try:
        made = SimulatedSite.create(folder)
    except InputError as error:
        if not reuse or error.code != 2007:
            raise
        made = SimulatedSite.open(folder)
    note("SIMULATED: evidence of this site gives no protection against the host")
    facts = {"site": str(folder), "root_spki": made.root_spki, "platform": made.platform}
    show(facts, json=json)


def _shown(value: ClaimValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ", ".join(value) or "(none)"
    return "-" if value is None else str(value)


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Check what a confidential machine says about itself.", no_args_is_help=True)
    group.command()(verify)
    group.command()(site)
    group.callback()(lambda: None)
    app.add_typer(group, name="attest")
