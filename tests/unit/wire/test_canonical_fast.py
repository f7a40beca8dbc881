"""The fast way to canonical bytes is the slow way's, byte for byte, on every value."""

import enum

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import CloisterError
from cloister.wire import canonical

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text(
    '\x00\x1f\x7f"\\/\b\f\n\r\t\u2028é😀\ufffe'
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)


@given(VALUES)
@settings(max_examples=400, deadline=None)
def test_same_bytes_as_the_reference(value: object) -> None:
    assert canonical(value) == rfc8785.dumps(value)


@pytest.mark.parametrize("code", range(0x0, 0x250))
def test_every_early_character_is_escaped_alike(code: int) -> None:
    value = {"k": chr(code), chr(code): 1}
    assert canonical(value) == rfc8785.dumps(value)


def test_keys_sort_by_utf16_units() -> None:
    value = {"\ufb33": 1, "\U0001f600": 2, "a": 3}
    assert canonical(value) == rfc8785.dumps(value)
    assert canonical(value).index("\U0001f600".encode()) < canonical(value).index("\ufb33".encode())


class Number(enum.IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    "value", [2**53, -(2**53), 1.0, float("nan"), {1: "a"}, {"a": {1}}, b"x", "\ud800", {"\ud800": 1}, [2**64]]
)
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(CloisterError) as raised:
        canonical(value)
    assert raised.value.code == 2002


def test_subclasses_go_the_long_way() -> None:
    assert canonical({"a": Number.ONE}) == rfc8785.dumps({"a": Number.ONE})


def test_depth_is_bounded_at_the_same_level_either_way() -> None:
    deep: object = "x"
    for _ in range(32):
        deep = [deep]
    assert canonical(deep)
    with pytest.raises(CloisterError):
        canonical([deep])
