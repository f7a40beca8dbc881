"""``cloister demo``: watch the whole pipeline, then watch a check fail."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloister.cli._voice import Json, note, show, show_error

__all__ = ["register"]


def demo(
    folder: Annotated[
        Path | None,
        typer.Option("--dir", help="where everything goes; cloister-demo or cloister-demo-private by default"),
    ] = None,
    private: Annotated[
        bool,
        typer.Option(
            "--private/--plain",
            help="train with differential privacy, by a term of the manifest: what is told of any patient is bounded",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="replace an earlier demo in that folder")] = False,
    tamper: Annotated[
        str | None,
        typer.Option(
            help="quote, image, manifest, key, log or worker (of a private one also ledger or budget): "
            "tamper with a finished demo"
        ),
    ] = None,
    prepare: Annotated[
        bool, typer.Option("--prepare/--run", help="only compile what the demo's enclaves import, for all later demos")
    ] = False,
    json: Json = False,
) -> None:
    """Run the whole confidential pipeline on real biopsies: two hospitals, key manager, host, enclaves, doctor."""
    folder = folder or Path("cloister-demo-private" if private else "cloister-demo")
    if tamper is not None:
        _tamper(folder, tamper, json=json)
        return
    if prepare:
        from cloister.demo import machine_folder, prepare_machine

        seconds = prepare_machine(private=private)
        text = f"this machine's enclaves are prepared ({seconds:.0f} s)"
        show({"seconds": seconds, "site": str(machine_folder())}, text, json=json)
        return
    from cloister.demo import tell

    facts = tell(folder, note if json else typer.echo, force=force, private=private)
    others = "quote, image, manifest, key, log" + (", ledger, budget" if private else "")
    text = (
        f"Done in {facts['seconds']:.0f} s. Open the report: {folder / 'audit.html'}   "
        f"the commands: {folder / 'commands.txt'}\n"
        f"Next: cloister demo --dir {folder} --tamper worker   (or {others}: watch a check fail)"
    )
    if not private:
        text += "\n      cloister demo --private   (what the model tells of any patient is bounded; what that costs)"
    show(facts, text, json=json)


def _tamper(folder: Path, kind: str, *, json: bool) -> None:
    from cloister.demo import tamper

    caught = tamper(folder, kind)
    note(f"{caught.story}:")
    show_error(caught.error, json=json)
    raise typer.Exit(caught.error.exit_status)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(demo)
