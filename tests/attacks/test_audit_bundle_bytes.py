"""The bundle as bytes: truncated, too large, too deep, too much in it; and any bit of it flipped."""

import base64
import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.audits import Finished, finished_run

from cloister.audit import AuditReport
from cloister.errors import CloisterError
from cloister.receipt import MAX_BUNDLE_BYTES, parse_bundle

__all__ = ["finished_run"]

LABELS = {"made_at", "code"}
"""What nobody signs and no check reads: the host's word for when the bundle was made, and why an attempt failed."""


def code_of_bytes(data: bytes) -> int:
    with pytest.raises(CloisterError) as raised:
        parse_bundle(data)
    return raised.value.code


def changed(finished: Finished, **fields: Any) -> bytes:
    return json.dumps({**finished.bundle.as_json(), **fields}).encode()


def test_truncated(finished_run: Finished) -> None:
    data = finished_run.bundle.canonical()
    assert {code_of_bytes(data[: len(data) * part // 7]) for part in range(7)} == {2002}


def test_oversized() -> None:
    assert code_of_bytes(b" " * (MAX_BUNDLE_BYTES + 1)) == 2003


def test_deeply_nested(finished_run: Finished) -> None:
    assert code_of_bytes(b"[" * 100_000) == 2002
    nested: Any = []
    for _ in range(40):
        nested = [nested]
    assert code_of_bytes(changed(finished_run, inference=nested)) == 2002


def test_unknown_field(finished_run: Finished) -> None:
    assert code_of_bytes(changed(finished_run, accepted=True)) == 2005


def test_unknown_field_inside(finished_run: Finished) -> None:
    value = copy.deepcopy(finished_run.bundle.as_json())
    value["attempts"][0]["trusted"] = True
    assert code_of_bytes(json.dumps(value).encode()) == 2005


def test_duplicate_field(finished_run: Finished) -> None:
    data = finished_run.bundle.canonical()
    assert code_of_bytes(data.replace(b'{"attempts"', b'{"run":{},"attempts"', 1)) == 2002


def test_another_format(finished_run: Finished) -> None:
    for other in ("cloister/bundle/v1", "cloister/bundle/v3"):
        assert code_of_bytes(changed(finished_run, format=other)) == 2004


def test_not_an_object() -> None:
    assert {code_of_bytes(data) for data in (b"[]", b"7", b"null", b'"x"')} == {2005}


def test_too_many_attempts(finished_run: Finished) -> None:
    first = finished_run.bundle.as_json()["attempts"][0]
    bare = {name: first[name] for name in ("consumer", "attempt", "grant")}
    assert code_of_bytes(changed(finished_run, attempts=[bare] * 4097)) == 2005


# ---- any bit -------------------------------------------------------------------------------------------------------


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every string and number in a bundle, labels left out."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            if name not in LABELS:
                yield from leaves(item, (*path, name))
    elif isinstance(value, str | int):
        yield path


def flip(value: Any, at: int) -> Any:
    """The value with one bit of it flipped: of the bytes where it is base64, else of its characters."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value ^ (1 << at % 8)
    if not value:
        return "x"
    try:
        raw = bytearray(base64.b64decode(value, validate=True))
    except ValueError:
        raw = bytearray()
    if len(raw) >= 48:
        raw[at // 8 % len(raw)] ^= 1 << at % 8
        return base64.b64encode(bytes(raw)).decode()
    place = at // 7 % len(value)
    return value[:place] + chr(ord(value[place]) ^ (1 << at % 7)) + value[place + 1 :]


def outcome(finished: Finished, value: Any) -> str:
    """``asserted`` only when the edited bundle would still be accepted."""
    try:
        report: AuditReport = finished.audit(parse_bundle(json.dumps(value).encode()))
    except CloisterError as error:
        return f"refused with {error.code}"
    return report.outcome


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_ends_acceptance(finished_run: Finished, data: st.DataObject) -> None:
    value = copy.deepcopy(finished_run.bundle.as_json())
    path = data.draw(st.sampled_from(list(leaves(value))))
    at = data.draw(st.integers(min_value=0, max_value=1 << 20))
    target = value
    for name in path[:-1]:
        target = target[name]
    target[path[-1]] = flip(target[path[-1]], at)
    assert outcome(finished_run, value) != "asserted", path


def test_every_leaf_is_read(finished_run: Finished) -> None:
    """One bit in each of all strings and numbers, not only in those that were drawn."""
    whole = finished_run.bundle.as_json()
    accepted = []
    for path in leaves(whole):
        value = copy.deepcopy(whole)
        target = value
        for name in path[:-1]:
            target = target[name]
        target[path[-1]] = flip(target[path[-1]], 1001)
        if outcome(finished_run, value) == "asserted":
            accepted.append(path)
    assert accepted == []


def test_labels_are_labels(finished_run: Finished) -> None:
    value = copy.deepcopy(finished_run.bundle.as_json())
    value["made_at"] = "2001-01-01T00:00:00Z"
    value["attempts"][0]["code"] = 5501
    assert outcome(finished_run, value) == "asserted"


@pytest.mark.parametrize(
    "part", ["run", "attempts", "key_managers", "collaterals", "signed", "made_at", "format", "inference"]
)
def test_part_left_out(finished_run: Finished, part: str) -> None:
    value = finished_run.bundle.as_json()
    del value[part]
    if part == "inference":  # nobody can show that somebody asked: receipts are what clients choose to hand in
        assert outcome(finished_run, value) == "asserted"
    else:
        assert outcome(finished_run, value) == "refused with 2005" or part == "format"
