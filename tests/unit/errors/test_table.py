"""The table of codes: complete, in order, and the tree follows its first digit."""

import pickle
import re
import tomllib
from pathlib import Path

import pytest

import cloister.errors as errors
from cloister.errors import CloisterError, InputError, InternalError, all_codes, error_for, explain

SOURCE = Path(errors.__file__).parents[1]
RAISED = re.compile(r"(?:Input|Refused|Attestation|Integrity|Peer|Budget|Unsupported|Internal)Error\(\s*(\d{4})\b")


def test_codes_stand_in_ascending_order_and_each_entry_is_whole() -> None:
    text = (SOURCE / "errors" / "codes.toml").read_text()
    written = [int(code) for code in re.findall(r"^\[(\d+)\]$", text, re.MULTILINE)]
    assert written == sorted(set(written))
    for page in tomllib.loads(text).values():
        assert set(page) == {"title", "cause", "remedy"}
        assert page["title"][0].islower() or page["title"][:2].isupper() or not page["title"][0].isalpha()
        assert not page["title"].endswith(".")


def test_every_code_raised_in_the_source_is_registered() -> None:
    raised = {int(code) for path in SOURCE.rglob("*.py") for code in RAISED.findall(path.read_text())}
    assert raised - set(all_codes()) == set()


@pytest.mark.parametrize("code", all_codes())
def test_the_first_digit_is_the_branch_and_the_exit_status(code: int) -> None:
    error = error_for(code)
    assert error.exit_status == type(error).branch == code // 1000
    assert explain(code) is not None


def test_a_code_of_another_branch_or_an_unknown_one_is_our_bug() -> None:
    assert InputError(5001).code == 9001
    assert isinstance(error_for(2999), CloisterError)
    assert error_for(2999).code == 9001
    assert isinstance(error_for(1), InternalError)


def test_an_error_survives_a_process_boundary() -> None:
    error = InputError(2001, "what", expected="e", got="g", hint="h")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  our own bytes
    assert (type(copy), copy.as_json()) == (InputError, error.as_json())
