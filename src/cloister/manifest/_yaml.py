"""A small, strict part of YAML 1.2, with the place of everything.

What is left out is what makes YAML unfit to sign: anchors and aliases (a document of a kilobyte that means a gigabyte),
merge keys (rules from elsewhere), tags, directives, several documents, and plain values whose meaning depends on the
reader's version. The events of ruamel's pure parser are read one by one, so that depth is refused before it is parsed.
Source: YAML 1.2.2, chapter 10.3 (core schema).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

from cloister.errors import InputError
from cloister.manifest._text import fault_of_text

__all__ = ["MAX_YAML_BYTES", "Place", "Tree", "parse_yaml"]

MAX_YAML_BYTES = 512 * 1024  # a thousand images and four thousand releases fit
MAX_DEPTH = 16  # a manifest nests six levels
MAX_NODES = 100_000
MAX_SAFE_INTEGER = (1 << 53) - 1

_NULL = re.compile(r"null|Null|NULL|~|")
_TRUE, _FALSE = re.compile(r"true|True|TRUE"), re.compile(r"false|False|FALSE")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_ODD_INTEGER = re.compile(r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+|0b[01]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

Place = tuple[str | int, ...]
"""The way to a value from the root: keys and positions in lists."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A document's JSON value, and where each part of it was written."""

    what: str
    value: Any
    marks: dict[Place, tuple[int, int]]

    def at(self, place: Place) -> str:
        """``file:line:column`` of ``place``, or of the nearest part around it that was written."""
        line, column = self.mark(place)
        return f"{self.what}:{line}:{column}"

    def mark(self, place: Place) -> tuple[int, int]:
        """Line and column of ``place``, or of the nearest part around it that was written."""
        while place and place not in self.marks:
            place = place[:-1]
        return self.marks.get(place, (1, 1))


def parse_yaml(data: bytes, *, what: str) -> Tree:
    """The value and the marks of one document. JSON is YAML too.

    Args:
        data: The bytes; nothing about them is trusted.
        what: The file's name, for messages.

    Raises:
        InputError: 2003 too large; 2301 not YAML; 2302 anchor, alias or merge key; 2303 tag or directive; 2304 not
            one document; 2305 duplicate key; 2306 float; 2307 too deep; 2309 no value; 2323 text that hides
            something; 2330 number beyond 2^53 - 1 or in another notation.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    if len(data) > MAX_YAML_BYTES:
        raise InputError(
            2003, f"{what} is too large", expected=f"at most {MAX_YAML_BYTES} bytes", got=f"{len(data)} bytes"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(2301, f"{what} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    reader = _Reader(what)
    try:
        events = YAML(typ="safe", pure=True).parse(text)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return reader.document(cast("Iterator[Any]", iter(events)))
    except MarkedYAMLError as error:
        mark = cast("Any", error.problem_mark or error.context_mark)  # pyright: ignore[reportUnknownMemberType]
        where = f"{what}:{mark.line + 1}:{mark.column + 1}" if mark else what
        problem = str(error.problem or error.context)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        raise InputError(2301, f"{where}: {problem.lower()}") from None
    except (YAMLError, ValueError, OverflowError, IndexError, AttributeError, AssertionError, RecursionError) as error:
        # The parser is not ours: whatever it trips over is the document's fault, not a crash.
        raise InputError(2301, f"{what} is not YAML: {type(error).__name__}: {str(error)[:200]!r}") from None


@dataclass(slots=True)
class _Reader:
    """Turns events into a value. Each refusal names line and column."""

    what: str
    marks: dict[Place, tuple[int, int]] = field(default_factory=dict[Place, tuple[int, int]])
    nodes: int = 0

    def document(self, events: Iterator[Any]) -> Tree:
        """The only document of the stream."""
        next(events)
        first = next(events)
        if _kind(first) != "DocumentStart":
            raise InputError(2304, f"{self.what} is empty")
        if first.version not in (None, (1, 2)) or first.tags:
            self.refuse(2303, first, "directives are not used here, except %YAML 1.2")
        value = self.node(next(events), events, ())
        next(events)
        extra = next(events)
        if _kind(extra) != "StreamEnd":
            self.refuse(2304, extra, "a second document starts")
        return Tree(self.what, value, self.marks)

    def node(self, event: Any, events: Iterator[Any], place: Place) -> Any:
        """The value that starts with ``event``."""
        self.nodes += 1
        self.marks.setdefault(place, (event.start_mark.line + 1, event.start_mark.column + 1))
        if _kind(event) == "Alias" or event.anchor is not None:
            self.refuse(2302, event, "anchors and aliases are not used here: write the value out")
        if len(place) > MAX_DEPTH or self.nodes > MAX_NODES:
            self.refuse(2307, event, f"nested deeper than {MAX_DEPTH} levels, or more than {MAX_NODES} values")
        if event.tag is not None:
            self.refuse(2303, event, f"tags are not used here: {str(event.tag)[:40]}")
        if _kind(event) == "MappingStart":
            return self.mapping(events, place)
        if _kind(event) == "SequenceStart":
            return self.sequence(events, place)
        return self.scalar(event, place)

    def mapping(self, events: Iterator[Any], place: Place) -> dict[str, Any]:
        """A mapping, each key once."""
        result: dict[str, Any] = {}
        for event in events:
            if _kind(event) == "MappingEnd":
                break
            key = self.key(event)
            if key in result:
                self.refuse(2305, event, f"duplicate key {key!r}")
            self.marks[(*place, key)] = (event.start_mark.line + 1, event.start_mark.column + 1)
            result[key] = self.node(next(events), events, (*place, key))
        return result

    def key(self, event: Any) -> str:
        """A key: always text."""
        if _kind(event) == "Alias" or (_kind(event) == "Scalar" and event.value == "<<" and event.style is None):
            self.refuse(2302, event, "aliases and merge keys are not used here: write the keys out")
        if _kind(event) != "Scalar":
            self.refuse(2301, event, "a key must be text")
        if event.anchor is not None:
            self.refuse(2302, event, "anchors are not used here")
        if event.tag is not None:
            self.refuse(2303, event, "tags are not used here")
        return self.text(event)

    def sequence(self, events: Iterator[Any], place: Place) -> list[Any]:
        """A list."""
        result: list[Any] = []
        for event in events:
            if _kind(event) == "SequenceEnd":
                break
            result.append(self.node(event, events, (*place, len(result))))
        return result

    def scalar(self, event: Any, place: Place) -> str | int | bool:
        """Text, a whole number or a truth value; plain values that other readers read otherwise are refused."""
        text: str = event.value
        if event.style is not None:
            return self.text(event)
        if _NULL.fullmatch(text):
            where = Tree(self.what, None, self.marks).at(place)  # the key's: an absent value stands nowhere
            raise InputError(2309, f"{where}: there is no value: write one, or leave the line out")
        if _TRUE.fullmatch(text):
            return True
        if _FALSE.fullmatch(text):
            return False
        if _INTEGER.fullmatch(text):
            if len(text) > 17 or abs(int(text)) > MAX_SAFE_INTEGER:
                self.refuse(2330, event, f"number beyond 2^53 - 1: {text[:40]}")
            return int(text)
        if _ODD_INTEGER.fullmatch(text):
            self.refuse(2330, event, f"write numbers in plain decimal, or in quotes as text: {text[:40]}")
        if _FLOAT.fullmatch(text):
            self.refuse(2306, event, f"a float has no exact form to sign: write {text[:40]!r} in quotes")
        return self.text(event)

    def text(self, event: Any) -> str:
        """Text, as JSON would hold it: escaped surrogate pairs are one character."""
        text: str = event.value
        try:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self.refuse(2323, event, "text holds half of a surrogate pair")
        fault = fault_of_text(text)
        if fault is not None:
            self.refuse(2323, event, fault)
        return text

    def refuse(self, code: int, event: Any, why: str) -> NoReturn:
        """Raises, with the place."""
        mark = event.start_mark
        raise InputError(code, f"{self.what}:{mark.line + 1}:{mark.column + 1}: {why}")


def _kind(event: Any) -> str:
    return type(event).__name__.removesuffix("Event")
