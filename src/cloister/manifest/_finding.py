"""A broken rule of a manifest: where, what, and which."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.errors import CloisterError, error_for
from cloister.manifest._yaml import Place

__all__ = ["Finding"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken rule.

    Attributes:
        code: A registered code.
        place: The way to the part that breaks it.
        what: What is wrong there.
    """

    code: int
    place: Place
    what: str

    def error(self, *, where: str | None = None) -> CloisterError:
        """The finding as an error; ``where`` names the place better than we can (a line of a file)."""
        dotted = ".".join(str(part) for part in self.place)
        return error_for(
            self.code, f"{where}: {self.what}" if where else f"{dotted}: {self.what}" if dotted else self.what
        )
