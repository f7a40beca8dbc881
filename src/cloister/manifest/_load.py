"""From a file that a person wrote to a manifest: unknown keys refused, units read, every message with its place."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin

from pydantic import ValidationError

from cloister.errors import InputError
from cloister.manifest._model import CheckpointTerms, Limits, Manifest, Output
from cloister.manifest._text import fault_of_name
from cloister.manifest._units import DURATIONS, SIZES, duration_s, size_bytes
from cloister.manifest._yaml import MAX_YAML_BYTES, Place, Tree, parse_yaml
from cloister.wire import Message, canonical, read_bounded

__all__ = ["SHORTHANDS", "Draft", "load_draft", "load_manifest"]

SHORTHANDS: dict[type[Message], dict[str, str]] = {
    Output: {"max_size": "max_bytes"},
    CheckpointTerms: {"max_size": "max_bytes"},
    Limits: {"memory": "memory_bytes", "time": "time_s"},
}
"""Keys that a person may write with a unit, and the field that each fills."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A manifest and the file it was written in, so that later findings can say where."""

    manifest: Manifest
    tree: Tree

    def at(self, place: Place) -> str:
        """``file:line:column`` of a part of the manifest."""
        return self.tree.at(place)


def load_manifest(source: bytes | str | Path, *, what: str | None = None) -> Manifest:
    """The manifest written in YAML 1.2 (or JSON), its parts not yet checked against each other (``require_sound``).

    Args:
        source: The bytes, or the path of a file.
        what: The name for messages; the path by default.

    Raises:
        InputError: 2001 unreadable; 2003 too large; 2004 another version; 23xx with line and column.
    """
    return load_draft(source, what=what).manifest


def load_draft(source: bytes | str | Path, *, what: str | None = None) -> Draft:
    """As :func:`load_manifest`, with the places."""
    if isinstance(source, bytes):
        data, name = source, what or "manifest"
    else:
        data, name = read_bounded(source, max_bytes=MAX_YAML_BYTES, what="manifest"), what or Path(source).name
    tree = parse_yaml(data, what=name)
    value = tree.value
    if not isinstance(value, dict):
        raise InputError(2329, f"{tree.at(())}: a manifest is a mapping of keys to values")
    version = cast("dict[str, Any]", value).get("cloister")
    if version is not None and version != 1:
        raise InputError(
            2004, f"{tree.at(('cloister',))}: unknown version of the manifest format", expected=1, got=version
        )
    value = _Normaliser(tree).message(Manifest, cast("Any", value), ())
    try:
        return Draft(Manifest.model_validate_json(canonical(value)), tree)
    except ValidationError as error:
        raise _located(tree, error) from None


@dataclass(frozen=True, slots=True)
class _Normaliser:
    """Walks the value beside the model's types: refuses unknown keys, turns units into numbers."""

    tree: Tree

    def message(self, cls: type[Message], value: Any, place: Place) -> Any:
        if not isinstance(value, dict):
            return value
        shorthands, result = SHORTHANDS.get(cls, {}), dict[str, Any]()
        for key, item in cast("dict[str, Any]", value).items():
            here = (*place, key)
            name = shorthands.get(key, key)
            if name not in cls.model_fields:
                self.refuse_unknown(cls, key, here)
            if name in result:
                raise InputError(2305, f"{self.tree.at(here)}: {key!r} says again what was said above", expected=name)
            result[name] = self.child(cls.model_fields[name].annotation, self.amount(name, item, here), here)
        return result

    def child(self, annotation: Any, value: Any, place: Place) -> Any:
        choices = _literals_in(annotation)
        if choices and isinstance(value, int) and type(value) not in map(type, choices):
            # Python holds True and 1 for equal, and pydantic follows it.
            dotted = ".".join(str(part) for part in place)
            raise InputError(
                2329, f"{self.tree.at(place)}: {dotted}: not one of the values", expected=choices, got=value
            )
        cls, kind = _message_in(annotation)
        if cls is None:
            return value
        if kind is dict and isinstance(value, dict):
            entries = cast("dict[str, Any]", value).items()
            return {name: self.message(cls, item, (*place, name)) for name, item in entries}
        if kind is tuple and isinstance(value, list):
            items = enumerate(cast("list[Any]", value))
            return [self.message(cls, item, (*place, index)) for index, item in items]
        return self.message(cls, value, place) if kind is None else value

    def amount(self, name: str, value: Any, place: Place) -> Any:
        """``value``, or the number it stands for when it is text in a field with a unit."""
        if not isinstance(value, str) or not name.endswith(("_bytes", "_s")):
            return value
        read, units = (size_bytes, SIZES) if name.endswith("_bytes") else (duration_s, DURATIONS)
        number = read(value)
        if number is None:
            expected = f"a whole number and one of {', '.join(units)}, as in '10 {list(units)[1]}'"
            raise InputError(2328, f"{self.tree.at(place)}: cannot read {value[:40]!r}", expected=expected)
        return number

    def refuse_unknown(self, cls: type[Message], key: str, place: Place) -> None:
        known = [*cls.model_fields, *SHORTHANDS.get(cls, {})]
        close = [
            *get_close_matches(key, known, n=1, cutoff=0.55),
            *(name for name in known if key.startswith(name + "_")),
        ]
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise InputError(2308, f"{self.tree.at(place)}: unknown key {key!r}{hint}", expected=", ".join(known))


def _message_in(annotation: Any) -> tuple[type[Message] | None, type | None]:
    """The message class that a field holds, and whether in a dict, a tuple or by itself (None)."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is dict:
        return _message_in(arguments[1])[0], dict
    if origin is tuple:
        return _message_in(arguments[0])[0], tuple
    if origin in (Union, UnionType):
        return next((found for found in map(_message_in, arguments) if found[0]), (None, None))
    if isinstance(annotation, type) and issubclass(annotation, Message):
        return annotation, None
    return None, None


def _literals_in(annotation: Any) -> tuple[object, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        return tuple(choice for part in get_args(annotation) for choice in _literals_in(part))
    return ()


def _located(tree: Tree, error: ValidationError) -> InputError:
    """The complaint of pydantic that comes first in the file, in our words and with its place.

    A list is also called empty when each of its items is refused: the innermost complaint is the cause.
    """
    complaints = error.errors(include_url=False)
    around = {one["loc"][:length] for one in complaints for length in range(len(one["loc"]))}
    innermost = [one for one in complaints if one["loc"] not in around]
    first = min(innermost, key=lambda one: tree.mark(_place(one["loc"])))
    place = _place(first["loc"])
    where, name = tree.at(place), ".".join(str(part) for part in place)
    got: object = first.get("input")
    if first["type"] == "missing":
        return InputError(2329, f"{where}: '{name}' is missing")
    if first["type"] == "string_pattern_mismatch" and isinstance(got, str):
        letter = fault_of_name(got)
        if letter is not None:
            return InputError(2324, f"{where}: {name}: {letter}", got=ascii(got)[:80])
    message = first["msg"].removeprefix("Value error, ").lower()
    return InputError(2329, f"{where}: {name}: {message}", got=ascii(got)[:80])


def _place(loc: tuple[int | str, ...]) -> Place:
    """Pydantic marks a complaint about a key, and not its value, with a last step that is no place."""
    return loc[:-1] if loc and loc[-1] == "[key]" else loc
