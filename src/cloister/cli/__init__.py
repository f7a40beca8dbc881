"""The command line: a thin shell over the rooms.

Rules:

* Data goes to stdout, prose and progress to stderr; ``--json`` gives the same facts on stdout.
* No logic here, and nothing heavy at import: each command imports its room when it runs, so that
  ``cloister --help`` answers at once.
* Settings come from the flag, else ``CLOISTER_<COMMAND>_<OPTION>``, else ``cloister.toml``; none of them can
  weaken a manifest, because what a manifest fixes is no setting.
"""

from cloister.cli._main import command, main

__all__ = ["command", "main"]
