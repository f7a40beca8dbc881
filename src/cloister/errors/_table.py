"""The table of codes, read from ``codes.toml`` on first use."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

__all__ = ["CodePage", "all_codes", "explain"]


@dataclass(frozen=True, slots=True)
class CodePage:
    """What ``cloister explain`` prints for one code.

    Attributes:
        code: Four digits, 2000 to 9999.
        title: One line, lower case.
        cause: How this comes about, in a sentence or two.
        remedy: What to do next.
    """

    code: int
    title: str
    cause: str
    remedy: str


@cache
def all_codes() -> dict[int, CodePage]:
    """Every registered code with its page, in ascending order."""
    text = resources.files("cloister.errors").joinpath("codes.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    return {int(code): CodePage(int(code), **page) for code, page in sorted(table.items())}


def explain(code: int) -> CodePage | None:
    """The page of ``code``, or None when no such code is registered."""
    return all_codes().get(code)
