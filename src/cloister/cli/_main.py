"""The root command and its settings."""

from __future__ import annotations

import sys
from functools import cache
from typing import Annotated, Any

import typer

from cloister._version import __version__
from cloister.cli._settings import close_switches, read_settings
from cloister.cli._voice import exiting
from cloister.errors import InputError

__all__ = ["command", "main"]

_UsageError: Any = typer.BadParameter.__base__  # typer carries its own copy of click, or none: it has no other name

app = typer.Typer(
    name="cloister",
    help="Train one model on joined data that nobody may see; serve it; prove it.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@cache
def command() -> Any:
    """The whole command line, built once a process; the rooms' modules import nothing heavy at the top."""
    from cloister.cli import (
        attest,
        audit,
        demo,
        doctor,
        enclave,
        explain,
        image,
        keys,
        linear,
        manifest,
        party,
        predict,
        privacy,
        run,
        worker,
    )

    for module in (
        party,
        image,
        manifest,
        keys,
        enclave,
        worker,
        run,
        predict,
        privacy,
        linear,
        audit,
        attest,
        demo,
        explain,
        doctor,
    ):
        module.register(app)
    built = typer.main.get_command(app)
    close_switches(built)
    return built


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
    json = "--json" in arguments
    with exiting(json=json):
        root = command()
        try:
            status = root.main(
                args=arguments,
                prog_name="cloister",
                standalone_mode=not json,  # typer would tell usage errors as prose, and leave stdout empty
                auto_envvar_prefix="CLOISTER",
                default_map=read_settings(root),
            )
        except _UsageError as error:
            raise InputError(2019, error.format_message()) from None
        except typer.Abort:
            sys.exit(1)
        sys.exit(status or 0)
