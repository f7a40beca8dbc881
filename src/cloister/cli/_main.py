"""The root command and its settings."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cloister._version import __version__
from cloister.cli._settings import close_switches, read_settings
from cloister.cli._voice import exiting

__all__ = ["app", "main"]

app = typer.Typer(
    name="cloister",
    help="Train one model on joined data that nobody may see; serve it; prove it.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _register() -> None:
    """Adds each room's commands; the modules import nothing heavy at the top."""
    from cloister.cli import attest, audit, demo, doctor, enclave, explain, image, keys, manifest, party, predict, run

    for module in (party, image, manifest, keys, enclave, run, predict, audit, attest, demo, explain, doctor):
        module.register(app)


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="print the version and exit", allow_from_autoenv=False)
    ] = False,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error")] = "warning",
    log_json: Annotated[bool, typer.Option(help="log lines as JSON objects")] = False,
) -> None:
    from cloister.cli._logging import configure

    if version:
        typer.echo(f"cloister {__version__}")
        raise typer.Exit
    configure(log_level, json=log_json)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits: 0, or the first digit of the error's code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with exiting(json="--json" in arguments):
        _register()
        command = typer.main.get_command(app)
        close_switches(command)
        status = command.main(
            args=arguments,
            prog_name="cloister",
            standalone_mode=True,
            auto_envvar_prefix="CLOISTER",
            default_map=read_settings(command),
        )
        sys.exit(status or 0)
