"""The command line: a thin shell over the rooms.

Rules:

* Data goes to stdout, prose and progress to stderr; ``--json`` gives the same facts on stdout.
* No logic here, and nothing heavy at import: each command imports its room when it runs, so that
  ``cloister --help`` answers at once.
* Settings come from the flag, else ``CLOISTER_<COMMAND>_<OPTION>``, else ``cloister.toml``; none of them can
  weaken a manifest, because what a manifest fixes is no setting.
"""

from __future__ import annotations

from typing import Any

__all__ = ["command", "main"]


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits: 0, or the first digit of the error's code."""
    from cloister.cli._main import main  # a launcher's program lies in this room too, and takes no options

    main(arguments)


def command() -> Any:
    """The whole command line, for whoever lists or documents it."""
    from cloister.cli._main import command

    return command()
