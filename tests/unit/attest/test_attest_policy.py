"""Policies: the grammar is strict, evaluation is typed and fail-closed, and a refusal says why."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister import attest
from cloister.errors import InputError


def _policy(*conditions: dict[str, Any], kind: str = "allOf") -> dict[str, Any]:
    return {"version": "1.0.0", "anyOf": [{"authority": "cloister", kind: list(conditions)}]}


def _holds(condition: dict[str, Any], **claims: Any) -> bool:
    named = {name.replace("_", "."): value for name, value in claims.items()}
    return attest.parse_policy(_policy(condition)).evaluate(named).holds


def _refused(value: object) -> int:
    with pytest.raises(InputError) as caught:
        attest.parse_policy(value if isinstance(value, dict) else json.dumps(value).encode())
    return caught.value.code


@pytest.mark.parametrize(
    ("operator", "literal", "good", "bad"),
    [
        ("equals", "x", ["x"], ["y", "X", True, 1, None, ["x"]]),
        ("equals", False, [False], [True, 0, "false", None]),
        ("equals", 1, [1], [2, True, "1"]),
        ("notEquals", "x", ["y"], ["x", 1, False, None, ["y"]]),
        ("notEquals", False, [True], [False, 0, 1, "true", None]),
        ("less", 5, [4], [5, 6, True, "4", None]),
        ("lessOrEquals", 5, [4, 5], [6, "4"]),
        ("greater", 5, [6], [5, 4, "6", True]),
        ("greaterOrEquals", 5, [5, 6], [4, "6"]),
        ("exists", True, ["", 0, False, []], [None]),
        ("exists", False, [], ["", 0, False, None]),
        ("in", ["a", "b"], ["a", "b"], ["c", ["a"], 1, None]),
        ("in", [1, 2], [1], [3, True, "1"]),
        ("subsetOf", ["a", "b"], [["a"], [], ("a", "b")], [["a", "c"], "a", None, [1]]),
        ("subsetOf", [], [[]], [["a"]]),
        ("disjointFrom", ["a", "b"], [["c"], []], [["a", "c"], "c", None]),
        ("before", "2026-01-02T00:00:00Z", ["2026-01-01T23:59:59Z"], ["2026-01-02T00:00:00Z", "soon", 5, None]),
        ("after", "2026-01-02T00:00:00Z", ["2026-01-02T00:00:01Z"], ["2026-01-02T00:00:00Z", "2026-02-30T00:00:00Z"]),
    ],
)
def test_operators_are_typed_and_fail_closed(operator: str, literal: Any, good: list[Any], bad: list[Any]) -> None:
    condition = {"claim": "c", operator: literal}
    assert [value for value in good if not _holds(condition, c=value)] == []
    assert [value for value in bad if _holds(condition, c=value)] == []
    assert not _holds(condition), "a missing claim makes every operator false"


def test_any_of_needs_one_and_all_of_needs_all() -> None:
    one, two = {"claim": "a", "equals": 1}, {"claim": "b", "equals": 2}
    assert _holds({"anyOf": [one, two]}, a=1, b=9)
    assert not _holds({"anyOf": [one, two]}, a=9, b=9)
    assert _holds({"allOf": [one, two]}, a=1, b=2)
    assert not _holds({"allOf": [one, two]}, a=1, b=9)
    assert attest.parse_policy(_policy(one, two, kind="anyOf")).evaluate({"b": 2}).holds


def test_one_authority_that_holds_is_enough() -> None:
    blocks = [{"authority": name, "allOf": [{"claim": "a", "equals": name}]} for name in ("x", "y")]
    policy = attest.parse_policy({"version": "1.0.0", "anyOf": blocks})
    assert policy.evaluate({"a": "y"}).holds
    assert not policy.evaluate({"a": "z"}).holds


def test_a_policy_in_azures_own_words_parses() -> None:
    policy = attest.parse_policy(
        {
            "version": "1.0.0",
            "anyOf": [
                {
                    "authority": "https://sharedeus.eus.attest.azure.net",
                    "allOf": [
                        {"claim": "x-ms-isolation-tee.x-ms-compliance-status", "equals": "azure-compliant-cvm"},
                        {"anyOf": [{"claim": "x-ms-attestation-type", "equals": "sevsnpvm"}]},
                    ],
                }
            ],
        }
    )
    assert policy.claims() == {"x-ms-isolation-tee.x-ms-compliance-status", "x-ms-attestation-type"}
    assert policy.as_json()["version"] == "1.0.0"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ([], 2101),
        ({}, 2101),
        ({"version": "2.0.0", "anyOf": []}, 2101),
        ({"version": "1.0.0", "anyOf": []}, 2101),
        ({"version": "1.0.0", "anyOf": {}}, 2101),
        ({"version": "1.0.0", "anyOf": [5]}, 2101),
        ({"version": "1.0.0", "anyOf": [{"allOf": [{"claim": "a", "equals": 1}]}]}, 2101),
        ({"version": "1.0.0", "anyOf": [{"authority": 5, "allOf": [{"claim": "a", "equals": 1}]}]}, 2101),
        ({"version": "1.0.0", "anyOf": [], "note": ""}, 2101),
        (_policy(), 2101),
        (_policy({"claim": "a"}), 2101),
        (_policy({"equals": 1}), 2101),
        (_policy({"claim": 5, "equals": 1}), 2101),
        (_policy({"claim": "a", "equals": 1, "less": 2}), 2101),
        (_policy({"claim": "a", "anyOf": []}), 2101),
        (_policy({"anyOf": [{"claim": "a", "equals": 1}], "allOf": [{"claim": "a", "equals": 1}]}), 2101),
        (_policy({"claim": "a", "matches": "x"}), 2102),
        (_policy({"claim": "a", "equals": 1, "extra": 2}), 2102),
        (_policy({"claim": "a", "equals": None}), 2104),
        (_policy({"claim": "a", "equals": ["x"]}), 2104),
        (_policy({"claim": "a", "less": "5"}), 2104),
        (_policy({"claim": "a", "less": True}), 2104),
        (_policy({"claim": "a", "exists": "true"}), 2104),
        (_policy({"claim": "a", "in": "x"}), 2104),
        (_policy({"claim": "a", "in": []}), 2104),
        (_policy({"claim": "a", "in": ["x", 1]}), 2104),
        (_policy({"claim": "a", "subsetOf": [1]}), 2104),
        (_policy({"claim": "a", "before": "yesterday"}), 2104),
        (_policy(*[{"claim": "a", "equals": 1}] * 513), 2103),
    ],
)
def test_what_is_not_in_the_grammar_is_refused_at_install(value: Any, code: int) -> None:
    assert _refused(value) == code


def test_a_policy_nested_too_deep_is_refused() -> None:
    condition: dict[str, Any] = {"claim": "a", "equals": 1}
    for _ in range(6):
        condition = {"allOf": [condition]}
    attest.parse_policy(_policy(condition))
    assert _refused(_policy({"allOf": [condition]})) == 2103


def test_duplicate_keys_and_sizes_are_refused_before_anything_is_read() -> None:
    for text, code in (
        (b'{"version": "1.0.0", "version": "1.0.0"}', 2002),
        (b" " * (attest.MAX_POLICY_BYTES + 1), 2003),
    ):
        with pytest.raises(InputError) as caught:
            attest.parse_policy(text)
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (_policy({"claim": "a", "equal": 1}), "did you mean 'equals'?"),
        (_policy({"claim": "a", "subsetof": ["x"]}), "did you mean 'subsetOf'?"),
        ({"version": "1.0.0", "anyof": []}, "did you mean 'anyOf'?"),
    ],
)
def test_a_slip_of_the_pen_is_answered_with_the_word_that_was_meant(value: dict[str, Any], hint: str) -> None:
    with pytest.raises(InputError) as caught:
        attest.parse_policy(value)
    assert hint in caught.value.what


def test_the_trace_says_which_condition_failed_with_expected_and_got() -> None:
    policy = attest.parse_policy(_policy({"claim": "tee.debug", "equals": False}, {"claim": "tee.svn", "less": 5}))
    trace = policy.evaluate({"tee.debug": True, "tee.svn": 3})
    (failure,) = trace.failures()
    assert (failure.claim, failure.what, failure.expected, failure.got) == ("tee.debug", "equals", False, True)
    facts = json.loads(json.dumps(trace.as_json()))
    assert facts["holds"] is False
    assert [part["holds"] for part in facts["parts"][0]["parts"]] == [False, True]


def test_the_trace_of_a_misspelt_claim_names_the_one_that_exists() -> None:
    trace = attest.parse_policy(_policy({"claim": "tee.debugg", "equals": False})).evaluate({"tee.debug": False})
    assert trace.failures()[0].reason == "no such claim; did you mean 'tee.debug'?"


def test_of_alternatives_the_nearest_miss_explains_the_refusal() -> None:
    far = {"allOf": [{"claim": "a", "equals": 1}, {"claim": "b", "equals": 1}]}
    near = {"allOf": [{"claim": "c", "equals": 1}]}
    trace = attest.parse_policy(_policy({"anyOf": [far, near]})).evaluate({"a": 2, "b": 2, "c": 2})
    assert [failure.claim for failure in trace.failures()] == ["c"]


def test_a_policy_is_what_it_was_when_it_was_checked() -> None:
    given = _policy({"claim": "a", "equals": 1})
    policy = attest.parse_policy(given)
    given["anyOf"][0]["allOf"][0]["equals"] = 2
    policy.as_json()["anyOf"].clear()
    assert policy.as_json() == _policy({"claim": "a", "equals": 1})


def test_claims_may_come_from_elsewhere_than_a_tee() -> None:
    policy = attest.parse_policy(
        _policy({"claim": "request.count", "less": 3}, {"claim": "time", "before": "2027-01-01T00:00:00Z"})
    )
    assert policy.evaluate({"request.count": 2, "time": "2026-11-20T00:00:00Z"}).holds
    assert not policy.evaluate({"request.count": 3, "time": "2026-11-20T00:00:00Z"}).holds


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["version", "anyOf", "allOf", "authority", "claim", "equals", "in", "less", "x"]), inner
        )
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(_JSON)
def test_any_json_value_parses_or_is_refused_with_our_errors(value: Any) -> None:
    with contextlib.suppress(InputError):  # any other error fails the test
        attest.parse_policy(json.dumps(value).encode()).evaluate({})


@settings(max_examples=200, deadline=None)
@given(claims=st.dictionaries(st.sampled_from("abc"), _JSON, max_size=3), condition=st.data())
def test_evaluation_never_raises_and_never_accepts_a_missing_claim(claims: dict[str, Any], condition: Any) -> None:
    name, literal = condition.draw(
        st.sampled_from(
            [("equals", "x"), ("notEquals", 1), ("less", 1), ("in", ["x"]), ("subsetOf", ["x"]), ("exists", False)]
        )
    )
    trace = attest.parse_policy(_policy({"claim": "a", name: literal})).evaluate(claims)
    if claims.get("a") is None:
        assert not trace.holds
