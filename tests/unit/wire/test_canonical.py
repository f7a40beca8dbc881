"""Canonical JSON: one value, one encoding; a strict reader on the way back."""

import json
from contextlib import suppress

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import InputError
from cloister.wire import canonical, labelled_digest, parse_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_written_is_read_back(value: object) -> None:
    assert parse_json(canonical(value), what="value") == value


@given(VALUES)
def test_the_bytes_are_those_of_rfc_8785(value: object) -> None:
    assert canonical(value) == rfc8785.dumps(value)  # type: ignore[arg-type]


@given(VALUES)
def test_the_encoding_is_a_function_of_the_value_alone(value: object) -> None:
    assert canonical(json.loads(json.dumps(value))) == canonical(value)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b'{"a":1,"a":2}', 2002),
        (b"1.5", 2002),
        (b"1e3", 2002),
        (b"NaN", 2002),
        (b"Infinity", 2002),
        (b"\xff", 2002),
        (b"", 2002),
        (b"{} {}", 2002),
        (b"[" * 40 + b"]" * 40, 2002),
        (b'{"":' * 40 + b"1" + b"}" * 40, 2002),
        (b" " * 301, 2003),
    ],
)
def test_hostile_bytes_are_refused_by_name(data: bytes, code: int) -> None:
    with pytest.raises(InputError) as caught:
        parse_json(data, what="message", max_bytes=300)
    assert caught.value.code == code


def test_brackets_inside_strings_do_not_count_as_depth() -> None:
    assert parse_json(canonical(["[" * 90]), what="value") == ["[" * 90]


@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_else(data: bytes) -> None:
    with suppress(InputError):
        parse_json(data, what="noise")


@pytest.mark.parametrize("value", [1.0, {"a": [0.5]}, 2**60, {"a": b"bytes"}, {1: 2}])
def test_values_without_a_canonical_form_are_refused(value: object) -> None:
    with pytest.raises(InputError) as caught:
        canonical(value)
    assert caught.value.code == 2002


def test_labels_separate_digests() -> None:
    assert labelled_digest("a", {"x": 1}) != labelled_digest("b", {"x": 1})
