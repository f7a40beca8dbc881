"""The root command, its settings, and the one place where errors become exit statuses."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cloister._version import __version__
from cloister.cli._voice import show_error
from cloister.errors import CloisterError, InputError, InternalError

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


def _say_flags_each_time(command: Any) -> None:
    """Values may come from the environment, consent may not: a flag counts only where it is typed.

    The variables' names follow one rule (docs/configuration.md), so that help need not repeat it at each option.
    """
    for child in getattr(command, "commands", {}).values():
        _say_flags_each_time(child)
    for parameter in command.params:
        if getattr(parameter, "is_flag", False) and parameter.envvar is None:
            parameter.allow_from_autoenv = False
        if hasattr(parameter, "show_envvar"):
            parameter.show_envvar = False


def _settings() -> dict[str, Any]:
    """The defaults of ``cloister.toml`` in this folder, else of the user's configuration folder."""
    import os
    import tomllib

    named = os.environ.get("CLOISTER_CONFIG")
    for path in [Path(named)] if named else [Path("cloister.toml"), _user_config() / "cloister.toml"]:
        if path.is_file():
            try:
                return tomllib.loads(path.read_text(encoding="utf-8"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise InputError(2015, f"'{path}' is not TOML: {error}") from error
        if named:
            raise InputError(2001, f"cannot read the configuration: '{path}'")
    return {}


def _user_config() -> Path:
    import platformdirs

    return Path(platformdirs.user_config_dir("cloister"))


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits: 0, or the first digit of the error's code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    json = "--json" in arguments
    try:
        _register()
        command = typer.main.get_command(app)
        _say_flags_each_time(command)
        status = command.main(
            args=arguments,
            prog_name="cloister",
            standalone_mode=True,
            auto_envvar_prefix="CLOISTER",
            default_map=_settings(),
        )
        sys.exit(status or 0)
    except CloisterError as error:
        show_error(error, json=json)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        logging.getLogger("cloister").debug("internal error", exc_info=True)
        show_error(InternalError(9001, f"{type(error).__name__}: {error}"), json=json)
        sys.exit(9)
