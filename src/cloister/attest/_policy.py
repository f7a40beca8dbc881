"""Policies: Azure's secure-key-release grammar, typed, fail-closed, and it says why."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, cast

from cloister.errors import InputError
from cloister.wire import parse_json

__all__ = ["DANGEROUS_DEVELOPMENT_POLICY", "DEFAULT_POLICY", "Policy", "PolicyTrace", "parse_policy"]

MAX_POLICY_BYTES = 64 * 1024
MAX_DEPTH = 8  # deeper nesting says nothing that a person would still review
MAX_CONDITIONS = 512
MAX_ITEMS = 512
MAX_TEXT = 4096

Literal_ = str | int | bool | tuple[str, ...] | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PolicyTrace:
    """Which part of a policy held, with what was expected and what came.

    Attributes:
        holds: This part held.
        what: ``anyOf``, ``allOf`` or the operator of a condition.
        claim: The claim that a condition tests, None on ``anyOf`` and ``allOf``.
        expected: The literal of a condition.
        got: The claim's value; None when there is no such claim.
        reason: Why a condition did not hold.
        authority: The label of an authority block.
        parts: The parts of ``anyOf`` and ``allOf``, every one evaluated.
    """

    holds: bool
    what: str
    claim: str | None = None
    expected: object = None
    got: object = None
    reason: str = ""
    authority: str | None = None
    parts: tuple[PolicyTrace, ...] = ()

    def failures(self) -> tuple[PolicyTrace, ...]:
        """The conditions that explain a refusal: all that failed, or of alternatives those of the nearest miss."""
        if self.holds:
            return ()
        if not self.parts:
            return (self,)
        if self.what == "anyOf":
            return min((part.failures() for part in self.parts), key=len)
        return tuple(failure for part in self.parts for failure in part.failures())

    def as_json(self) -> dict[str, Any]:
        """The trace as a JSON object, for logs and refusals."""
        facts: dict[str, Any] = {"holds": self.holds, "what": self.what}
        if self.authority is not None:
            facts["authority"] = self.authority
        if self.claim is None:
            facts["parts"] = [part.as_json() for part in self.parts]
            return facts
        facts.update(claim=self.claim, expected=_listed(self.expected), got=_listed(self.got))
        if self.reason:
            facts["reason"] = self.reason
        return facts


@dataclass(frozen=True, slots=True)
class _Condition:
    claim: str
    operator: str
    literal: Literal_

    def evaluate(self, claims: Mapping[str, object]) -> PolicyTrace:
        value = claims.get(self.claim)
        if value is None:
            near = difflib.get_close_matches(self.claim, claims, n=1)
            holds, reason = False, "no such claim" + (f"; did you mean {near[0]!r}?" if near else "")
        else:
            # fail-closed: an operator answers None when the types do not fit, and None is no acceptance
            answer = _OPERATORS[self.operator].test(value, self.literal)
            holds = answer is True
            reason = "" if holds else ("does not hold" if answer is False else f"not comparable with {_kind(value)}")
        return PolicyTrace(holds, self.operator, self.claim, self.literal, value, reason)


@dataclass(frozen=True, slots=True)
class _Group:
    kind: Literal["anyOf", "allOf"]
    parts: tuple[_Condition | _Group, ...]
    authority: str | None = None

    def evaluate(self, claims: Mapping[str, object]) -> PolicyTrace:
        parts = tuple(part.evaluate(claims) for part in self.parts)
        held = [part.holds for part in parts]
        holds = any(held) if self.kind == "anyOf" else all(held)
        return PolicyTrace(holds, self.kind, authority=self.authority, parts=parts)


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy that parsed; make one with :func:`parse_policy`."""

    root: _Group
    source: Mapping[str, Any]

    def evaluate(self, claims: Mapping[str, object]) -> PolicyTrace:
        """Which conditions hold over ``claims``.

        Fail-closed: a claim that is missing (or None) makes *every* operator false, ``notEquals`` and
        ``exists: false`` included, so ``exists: false`` never holds. Types must agree: the text ``"false"`` is not
        the boolean ``false``, ``1`` is not ``true``.

        Args:
            claims: Any mapping from claim name to value: a verdict's ``facts()``, and what else the caller knows
                (``pipeline.manifest``, ``request.count``, ``time``).
        """
        return self.root.evaluate(claims)

    def claims(self) -> frozenset[str]:
        """The names of all claims that the policy tests."""
        return frozenset(condition.claim for condition in _conditions(self.root))

    def as_json(self) -> dict[str, Any]:
        """The policy as it was given."""
        return copy.deepcopy(dict(self.source))


def parse_policy(data: bytes | Mapping[str, Any]) -> Policy:
    """A policy from JSON bytes or from a JSON value that is already parsed.

    The grammar::

        policy    = {"version": "1.0.0", "anyOf": [authority, ...]}
        authority = {"authority": text, "anyOf" | "allOf": [condition, ...]}
        condition = {"claim": name, operator: literal} | {"anyOf" | "allOf": [condition, ...]}

    Operators: ``equals notEquals`` (text, integer, boolean) · ``less lessOrEquals greater greaterOrEquals``
    (integer) · ``exists`` (boolean) · ``in`` (list, the claim is one of it) · ``subsetOf disjointFrom`` (list of
    text, against a claim that is a list of text) · ``before after`` (UTC time, ``2026-11-20T00:00:00Z``).

    The ``authority`` is a label that is recorded in traces: claims always come from this verifier, so a URL there
    grants nothing.

    Raises:
        InputError: 2003 too large; 2002 not strict JSON, duplicate keys included; 2101 a field is unknown, missing
            or of the wrong type; 2102 unknown operator; 2103 nested too deep or too many conditions; 2104 a literal
            of a type that its operator does not take.

    Source: learn.microsoft.com, "Azure Key Vault secure key release policy grammar"; ``in``, ``subsetOf``,
    ``disjointFrom``, ``before``, ``after`` are additions.
    """
    value = parse_json(data, what="policy", max_bytes=MAX_POLICY_BYTES) if isinstance(data, bytes) else dict(data)
    source = _object(value, "policy", {"version", "anyOf"})
    if source["version"] != "1.0.0":
        raise InputError(2101, "policy: version", expected="1.0.0", got=_brief(source["version"]))
    blocks = [_authority(item, f"policy.anyOf[{i}]") for i, item in enumerate(_list(source["anyOf"], "policy.anyOf"))]
    root = _Group("anyOf", tuple(blocks))
    if sum(1 for _ in _conditions(root)) > MAX_CONDITIONS:
        raise InputError(2103, "policy: too many conditions", expected=f"at most {MAX_CONDITIONS}")
    return Policy(root, copy.deepcopy(source))  # what was checked is what will be shown, whatever the caller does


# ---- reading ---------------------------------------------------------------------------------------------------


def _authority(value: Any, where: str) -> _Group:
    kind = "allOf" if isinstance(value, dict) and "allOf" in value else "anyOf"
    block = _object(value, where, {"authority", kind})
    authority = block["authority"]
    if not isinstance(authority, str) or not 0 < len(authority) <= MAX_TEXT:
        raise InputError(2101, f"{where}.authority is not a name", got=_brief(authority))
    return _Group(kind, _parts(block[kind], f"{where}.{kind}", 2), authority)


def _parts(value: Any, where: str, depth: int) -> tuple[_Condition | _Group, ...]:
    if depth > MAX_DEPTH:
        raise InputError(2103, f"{where}: nested deeper than {MAX_DEPTH} levels")
    return tuple(_part(item, f"{where}[{i}]", depth) for i, item in enumerate(_list(value, where)))


def _part(value: Any, where: str, depth: int) -> _Condition | _Group:
    if not isinstance(value, dict):
        raise InputError(2101, f"{where} is not an object", got=_brief(value))
    fields = cast("dict[str, Any]", value)
    for kind in ("anyOf", "allOf"):
        if kind in fields:
            _object(fields, where, {kind})
            return _Group(kind, _parts(fields[kind], f"{where}.{kind}", depth + 1))
    if "claim" not in fields:
        raise InputError(
            2101, f"{where} has neither 'claim' nor 'anyOf' nor 'allOf'", got=_brief(sorted(map(str, fields)))
        )
    name, operators = fields["claim"], [str(key) for key in fields if key != "claim"]
    if not isinstance(name, str) or not 0 < len(name) <= 256:
        raise InputError(2101, f"{where}.claim is not a name", got=_brief(name))
    for operator in operators:
        if operator not in _OPERATORS:
            raise InputError(2102, f"{where}: {operator!r}{_did_you_mean(operator, _OPERATORS)}", got=operator[:80])
    if len(operators) != 1:
        raise InputError(2101, f"{where}: a condition has exactly one operator", got=", ".join(operators) or "none")
    operator = operators[0]
    literal = _OPERATORS[operator].read(fields[operator])
    if literal is None:
        expected = _OPERATORS[operator].takes
        raise InputError(2104, f"{where}.{operator}", expected=expected, got=_brief(fields[operator]))
    return _Condition(name, operator, literal)


def _object(value: Any, where: str, fields: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(2101, f"{where} is not an object", got=_brief(value))
    found = cast("dict[str, Any]", value)
    for key in found:
        if key not in fields:
            raise InputError(2101, f"{where}: unknown field {str(key)[:80]!r}{_did_you_mean(str(key), fields)}")
    for key in sorted(fields):
        if key not in found:
            raise InputError(2101, f"{where}: missing field {key!r}")
    return found


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise InputError(2101, f"{where} is not a list with something in it", got=_brief(cast("object", value)))
    items = cast("list[Any]", list(value))  # pyright: ignore[reportUnknownArgumentType]
    if len(items) > MAX_CONDITIONS:
        raise InputError(2103, f"{where}: too many conditions", expected=f"at most {MAX_CONDITIONS}")
    return items


def _did_you_mean(word: str, known: Mapping[str, Any] | set[str]) -> str:
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; one of {', '.join(sorted(known))}"


def _brief(value: object) -> str:
    return repr(value)[:80]


def _conditions(part: _Condition | _Group) -> Iterator[_Condition]:
    if isinstance(part, _Condition):
        yield part
    else:
        for inner in part.parts:
            yield from _conditions(inner)


# ---- operators -------------------------------------------------------------------------------------------------
#
# `read` turns a JSON literal into ours, or None when the operator does not take it. `test` answers True, False, or
# None when the claim's type does not fit.


@dataclass(frozen=True, slots=True)
class _Operator:
    takes: str
    read: Callable[[Any], Literal_ | None]
    test: Callable[[Any, Any], bool | None]


def _kind(value: object) -> str:
    for kind, name in ((bool, "a boolean"), (int, "an integer"), (str, "text"), (list, "a list"), (tuple, "a list")):
        if isinstance(value, kind):
            return name
    return "a value of another kind"


def _scalar(value: Any) -> str | int | bool | None:
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else None
    return value if isinstance(value, bool | int) else None


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _texts(value: Any) -> tuple[str, ...] | None:
    if not isinstance(value, list | tuple) or len(cast("list[Any]", value)) > MAX_ITEMS:
        return None
    items = cast("list[Any]", value)
    return tuple(items) if all(isinstance(item, str) and len(item) <= MAX_TEXT for item in items) else None


def _members(value: Any) -> tuple[str, ...] | tuple[int, ...] | None:
    texts = _texts(value)
    if texts is not None:
        return texts or None
    if not isinstance(value, list | tuple) or len(cast("list[Any]", value)) > MAX_ITEMS:
        return None
    numbers = [_integer(item) for item in cast("list[Any]", value)]
    return tuple(number for number in numbers if number is not None) if None not in numbers else None


def _moment(value: Any) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        return datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None


def _same(value: Any, literal: Any) -> bool | None:
    # `type` rather than isinstance: in Python True is an int, here it is not 1
    return value == literal if type(value) is type(literal) else None


def _ordered(compare: Callable[[int, int], bool]) -> Callable[[Any, Any], bool | None]:
    def test(value: Any, literal: int) -> bool | None:
        number = _integer(value)
        return None if number is None else compare(number, literal)

    return test


def _timed(compare: Callable[[datetime, datetime], bool]) -> Callable[[Any, Any], bool | None]:
    def test(value: Any, literal: str) -> bool | None:
        moment, limit = _moment(value), _moment(literal)
        return None if moment is None or limit is None else compare(moment, limit)

    return test


def _sets(compare: Callable[[set[str], set[str]], bool]) -> Callable[[Any, Any], bool | None]:
    def test(value: Any, literal: tuple[str, ...]) -> bool | None:
        items = _texts(value)
        return None if items is None else compare(set(items), set(literal))

    return test


def _not(test: Callable[[Any, Any], bool | None]) -> Callable[[Any, Any], bool | None]:
    def negated(value: Any, literal: Any) -> bool | None:
        answer = test(value, literal)
        return None if answer is None else not answer

    return negated


def _is_in(value: Any, literal: tuple[Any, ...]) -> bool | None:
    answers = [_same(value, item) for item in literal]
    return True if True in answers else (None if None in answers else False)


_INTEGER, _TIME = "an integer", "a UTC time such as 2026-11-20T00:00:00Z"
_OPERATORS: Final[dict[str, _Operator]] = {
    "equals": _Operator("text, an integer or a boolean", _scalar, _same),
    "notEquals": _Operator("text, an integer or a boolean", _scalar, _not(_same)),
    "less": _Operator(_INTEGER, _integer, _ordered(lambda a, b: a < b)),
    "lessOrEquals": _Operator(_INTEGER, _integer, _ordered(lambda a, b: a <= b)),
    "greater": _Operator(_INTEGER, _integer, _ordered(lambda a, b: a > b)),
    "greaterOrEquals": _Operator(_INTEGER, _integer, _ordered(lambda a, b: a >= b)),
    "exists": _Operator("true or false", lambda v: v if isinstance(v, bool) else None, lambda _value, wanted: wanted),
    "in": _Operator("a list of text or of integers, not empty", _members, _is_in),
    "subsetOf": _Operator("a list of text", _texts, _sets(lambda a, b: a <= b)),
    "disjointFrom": _Operator("a list of text", _texts, _sets(lambda a, b: a.isdisjoint(b))),
    "before": _Operator(_TIME, lambda v: v if _moment(v) else None, _timed(lambda a, b: a < b)),
    "after": _Operator(_TIME, lambda v: v if _moment(v) else None, _timed(lambda a, b: a > b)),
}


def _listed(value: object) -> object:
    return list(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value


_COMMON: Final[list[dict[str, Any]]] = [
    {"claim": "tee.debug", "equals": False},
    {"claim": "tee.service_td", "equals": False},
    {"claim": "tee.tcb.status", "equals": "UpToDate"},
]

DEFAULT_POLICY: Final = parse_policy(
    {
        "version": "1.0.0",
        "anyOf": [{"authority": "cloister", "allOf": [{"claim": "tee.simulated", "equals": False}, *_COMMON]}],
    }
)
"""Vendor roots, no debug, no service TD, TCB ``UpToDate``."""

DANGEROUS_DEVELOPMENT_POLICY: Final = parse_policy(
    {"version": "1.0.0", "anyOf": [{"authority": "cloister", "allOf": _COMMON}]}
)
"""As :data:`DEFAULT_POLICY`, but simulated evidence passes where the roots accept it."""
