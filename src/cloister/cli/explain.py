"""``cloister explain CODE``."""

from __future__ import annotations

from typing import Annotated

import typer

from cloister.cli._voice import Json, show
from cloister.errors import InputError, all_codes
from cloister.errors import explain as page_of

__all__ = ["register"]


def explain(
    code: Annotated[str | None, typer.Argument(help="a code, with or without CLOISTER-; none lists them all")] = None,
    json: Json = False,
) -> None:
    """Say what an error code means and what to do."""
    if code is None:
        pages = all_codes()
        titles = {str(number): page.title for number, page in pages.items()}
        show(titles, json=json)
        return
    digits = code.upper().removeprefix("CLOISTER-")
    page = page_of(int(digits)) if digits.isdecimal() else None
    if page is None:
        raise InputError(2010, f"no such code: {code}")
    facts = {"code": page.code, "title": page.title, "cause": page.cause, "remedy": page.remedy}
    text = f"CLOISTER-{page.code}  {page.title}\n\n{page.cause}\n\nwhat to do: {page.remedy}"
    show(facts, text, json=json)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(explain)
