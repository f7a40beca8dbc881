"""One voice: how results and errors are printed, and the one place where errors become exit statuses."""

from __future__ import annotations

import json as jsonlib
import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from cloister.errors import CloisterError, InternalError

__all__ = ["Json", "exiting", "note", "show", "show_error"]

Json = Annotated[bool, typer.Option("--json", help="print the result as JSON on stdout")]


def show(facts: dict[str, Any], text: str | None = None, *, json: bool) -> None:
    """Prints a command's result on stdout: ``facts`` as JSON, else ``text`` (else one ``key  value`` line a fact)."""
    if json:
        typer.echo(jsonlib.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False))
    elif text is not None:
        typer.echo(text)
    else:
        width = max((len(key) for key in facts), default=0)
        for key, value in facts.items():
            typer.echo(f"{key:<{width}}  {value}")


def note(text: str) -> None:
    """Prose for the person, on stderr."""
    typer.echo(text, err=True)


def show_error(error: CloisterError, *, json: bool) -> None:
    """Prints ``error``: code and what, expected, got, hint on stderr; with ``--json`` the same facts on stdout."""
    if json:
        typer.echo(jsonlib.dumps({"error": error.as_json()}, indent=2, sort_keys=True))
        return
    lines = [str(error)]
    if error.expected is not None:
        lines.append(f"expected: {error.expected}")
    if error.got is not None:
        lines.append(f"got:      {error.got}")
    lines.append(f"hint:     {error.hint}")
    lines.append(f"more:     cloister explain {error.code}")
    sys.stdout.flush()
    typer.echo("\n".join(lines), err=True)


@contextmanager
def exiting(*, json: bool) -> Generator[None]:
    """Prints the error that ends what is inside, and exits with its status: the first digit of its code."""
    try:
        yield
    except CloisterError as error:
        show_error(error, json=json)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        logging.getLogger("cloister").debug("internal error", exc_info=True)
        show_error(InternalError(9001, f"{type(error).__name__}: {error}"), json=json)
        sys.exit(9)
