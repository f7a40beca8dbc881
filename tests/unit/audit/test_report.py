from datetime import UTC, datetime

import pytest
from tests.keyworld import code_of

from cloister.audit import AuditReport, Check
from cloister.errors import CloisterError, IntegrityError

AT = datetime(2026, 11, 20, tzinfo=UTC)


def report() -> AuditReport:
    return AuditReport("0" * 64, "1" * 32, AT)


def test_nothing_checked_is_not_accepted() -> None:
    assert report().outcome == "unknown"
    assert code_of(report().require) == 5360


def test_facts_that_acceptance_does_not_need_are_not_enough() -> None:
    made = report()
    made.asserted("log", "keys", "complete", required=False)
    assert made.outcome == "unknown"
    assert code_of(made.require) == 5360


def test_unknown_is_never_acceptance() -> None:
    made = report()
    made.asserted("a", "b", "c")
    made.unknown("hardware", "every enclave", "side channels", "outside")
    assert made.outcome == "asserted"
    made.require()
    made.unknown("stage", "train", "ended", "no receipt", required=True)
    assert made.outcome == "unknown"
    assert code_of(made.require) == 4350


def test_a_refutation_outweighs_everything_and_keeps_what_was_compared() -> None:
    made = report()
    made.unknown("stage", "train", "ended", "no receipt", required=True)
    with made.checking("log", "keys", "agrees"):
        raise IntegrityError(5367, expected="aa", got="bb")
    with made.checking("log", "keys", "agrees again"):
        raise IntegrityError(5363, "no such entry")
    assert made.outcome == "refuted"
    with pytest.raises(CloisterError) as raised:
        made.require()
    assert (raised.value.code, raised.value.expected, raised.value.got) == (5367, "aa", "bb")
    assert "None" not in str(raised.value)
    first, second = made.checks[1:]
    assert first.as_json() | {"reason": ""} == {
        "group": "log", "subject": "keys", "what": "agrees", "status": "refuted", "required": True,
        "code": 5367, "expected": "aa", "got": "bb", "reason": "",
    }  # fmt: skip
    assert "got" not in second.as_json()


def test_a_check_that_holds_says_what_it_rests_on() -> None:
    made = report()
    with made.checking("log", "keys", "whole") as notes:
        notes += ["7 entries", "of 9"]
    assert made.checks == [Check("log", "keys", "whole", "asserted", "7 entries; of 9")]


def test_errors_that_are_bugs_are_not_findings() -> None:
    with pytest.raises(ZeroDivisionError), report().checking("a", "b", "c"):
        raise ZeroDivisionError


def test_json_counts() -> None:
    made = report()
    made.asserted("a", "b", "c")
    made.unknown("a", "b", "d", "why")
    assert made.as_json() == {
        "manifest": "0" * 64,
        "run": "1" * 32,
        "at": "2026-11-20T00:00:00Z",
        "outcome": "asserted",
        "assurance": "hardware",
        "unsandboxed": [],
        "count": {"asserted": 1, "refuted": 0, "unknown": 1},
        "checks": [check.as_json() for check in made.checks],
        "ran": [],
        "released": [],
    }
