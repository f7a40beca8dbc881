"""Canonical JSON (RFC 8785), its strict reader, and digests."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, NoReturn

import rfc8785

from cloister.errors import InputError

__all__ = ["canonical", "digest", "labelled_digest", "parse_json"]

MAX_DEPTH = 32  # our deepest message nests nine levels; a parser's stack must not be the attacker's choice
MAX_JSON_BYTES = 4 * 1024 * 1024
_MAX_INTEGER = 2**53 - 1
_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), check_circular=False).encode
_BRACKET_OR_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)


def canonical(value: Any) -> bytes:
    """The RFC 8785 bytes of a JSON value without floats.

    Raises:
        InputError: 2002 when the value holds a float, an integer beyond 2^53 - 1, or something JSON has no word for.
    """
    plain = _is_plain(value, 0)
    try:
        return _encode(value).encode() if plain else rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeError, RecursionError) as error:
        raise InputError(2002, f"value has no canonical form: {error}") from error


def digest(data: bytes) -> str:
    """SHA-256 of ``data`` as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def labelled_digest(label: str, value: Any) -> str:
    """SHA-256 over ``label ‖ 0x00 ‖ canonical(value)``, in hexadecimal: no id passes for another kind's."""
    return digest(label.encode() + b"\0" + canonical(value))


def parse_json(data: bytes, *, what: str, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """One JSON value, read strictly.

    Args:
        data: The bytes; nothing about them is trusted.
        what: What this is, for messages: "quote collateral", "release request".
        max_bytes: Checked before parsing.

    Raises:
        InputError: 2003 when larger than ``max_bytes``; 2002 when not UTF-8 JSON, nested deeper than 32, with a
            duplicate key, a float or a non-finite number.
    """
    if len(data) > max_bytes:
        raise InputError(2003, f"{what} is too large", expected=f"at most {max_bytes} bytes", got=f"{len(data)} bytes")
    _refuse_depth(data, what)
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=lambda pairs: _object(pairs, what),
            parse_float=lambda text: _refuse(what, f"number with a fraction or exponent: {text}"),
            parse_constant=lambda text: _refuse(what, f"{text} is not JSON"),
        )
    except (ValueError, RecursionError) as error:
        raise InputError(2002, f"{what} is not valid JSON: {error}") from error


def _refuse(what: str, why: str) -> NoReturn:
    raise InputError(2002, f"{what}: {why}")


def _object(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            _refuse(what, f"duplicate key {key!r}")
        result[key] = value
    return result


def _refuse_depth(data: bytes, what: str) -> None:
    """Counts brackets outside strings, so that a deep document is refused before the parser recurses."""
    depth = 0
    for token in _BRACKET_OR_STRING.finditer(data):
        first = token.group()[:1]
        if first in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                _refuse(what, f"nested deeper than {MAX_DEPTH} levels")
        elif first in b"]}":
            depth -= 1


def _is_plain(value: Any, depth: int) -> bool:
    """Whether the standard library's encoder writes the RFC 8785 bytes of ``value``, several times as fast.

    It differs only in the order of keys beyond ASCII (the RFC sorts UTF-16 units), in numbers, and in how it takes
    values that are not exactly of a JSON type; those go the long way.

    Raises:
        InputError: 2002 when the value holds a float, or is too deep.
    """
    kind: type[Any] = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind is str or kind is bool or value is None:
        return True
    if kind is int:
        return -_MAX_INTEGER <= value <= _MAX_INTEGER
    if isinstance(value, float):
        raise InputError(2002, "a float has no place in signed JSON", got=value, hint="write it as a decimal string")
    if depth >= MAX_DEPTH and isinstance(value, dict | list | tuple):
        raise InputError(2002, f"value is nested deeper than {MAX_DEPTH} levels")
    plain = kind is dict or kind is list or kind is tuple
    if isinstance(value, dict):
        for key, item in value.items():  # pyright: ignore[reportUnknownVariableType]
            plain &= type(key) is str and key.isascii()  # pyright: ignore[reportUnknownArgumentType]
            plain &= _is_plain(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            plain &= _is_plain(item, depth + 1)
    return plain
