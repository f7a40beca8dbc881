"""Files of tree heads and consistency proofs, as ``cloister keys head --out`` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloister.wire import Envelope

__all__ = ["read_heads"]

_MAX_BYTES = 1 << 20


def read_heads(path: Path) -> list[Envelope]:
    """The envelopes in a file: one, or a list of them. Whose they are is for their signatures to say.

    Raises:
        InputError: 2001, 2003 when it cannot be read; 2002, 2005 when it holds something else.
    """
    from cloister.wire import Envelope, parse_json, parse_message, read_bounded

    value: Any = parse_json(read_bounded(path, max_bytes=_MAX_BYTES, what="tree head"), what="tree head")
    return [parse_message(Envelope, item, what="tree head") for item in (value if isinstance(value, list) else [value])]
