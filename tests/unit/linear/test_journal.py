"""A party's journal: each consent is for one session that may have said something."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from cloister.errors import CloisterError, InputError, PeerError, RefusedError
from cloister.linear._frames import PHASES
from cloister.linear._journal import MOST_AGAIN, Journal

ID, AT = "ab" * 32, "2026-01-02T03:04:05Z"


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path, ID, "bank-a")


def failing(journal: Journal, code: int, phase: str) -> None:
    with journal.session(at=AT) as serial:
        journal.failed(serial, code=code, phase=phase, at=AT)


def refused(journal: Journal) -> None:
    with pytest.raises(RefusedError) as caught, journal.session(at=AT):
        pytest.fail("a session began")
    assert caught.value.code == 3901


def test_a_new_agreement_runs(journal: Journal) -> None:
    with journal.session(at=AT) as serial:
        assert len(serial) == 16
        assert journal.counts().begun == 1
        journal.released(serial, at=AT)
    assert (journal.counts().released, journal.counts().failed) == (1, 0)


@pytest.mark.parametrize("phase", PHASES)
def test_a_failure_is_counted_and_one_that_may_have_said_something_needs_consent(journal: Journal, phase: str) -> None:
    failing(journal, 6902, phase)
    assert journal.counts().failed == 1
    if phase not in ("online", "release"):
        failing(journal, 6902, phase)
        return
    before = journal.path.read_bytes()
    refused(journal)
    assert journal.path.read_bytes() == before
    journal.consent(at=AT)
    failing(journal, 3902, phase)
    refused(journal)


def test_a_phase_that_is_unknown_may_have_said_something(journal: Journal) -> None:
    failing(journal, 6902, "elsewhere")
    refused(journal)


def test_a_model_is_released_once_a_consent(journal: Journal) -> None:
    with journal.session(at=AT) as serial:
        journal.released(serial, at=AT)
    refused(journal)
    journal.consent(at=AT)
    failing(journal, 6901, "session")
    with journal.session(at=AT) as serial:
        journal.released(serial, at=AT)
    refused(journal)


def test_a_session_whose_end_nobody_saw_needs_consent(journal: Journal) -> None:
    with journal.session(at=AT):
        pass  # killed here
    assert journal.counts().telling == 1
    refused(journal)
    journal.consent(at=AT)
    failing(journal, 6901, "session")
    failing(journal, 6901, "session")


def test_a_proof_may_leave_its_box_twice(journal: Journal) -> None:
    for _ in range(MOST_AGAIN + 1):
        failing(journal, 6906, "groups")
    refused(journal)
    journal.consent(at=AT)
    failing(journal, 6906, "groups")


def test_journals_are_of_one_agreement_and_one_party(tmp_path: Path, journal: Journal) -> None:
    failing(journal, 6902, "online")
    for other in (Journal(tmp_path, "cd" * 32, "bank-a"), Journal(tmp_path, ID, "bank-b")):
        assert other.counts().begun == 0
        other.path.parent.mkdir(exist_ok=True)
        other.path.write_bytes(journal.path.read_bytes())
        with pytest.raises(InputError):
            other.counts()


def test_a_damaged_journal_is_not_an_empty_one(journal: Journal) -> None:
    failing(journal, 6902, "online")
    value = json.loads(journal.path.read_bytes())
    for broken in (b"", b"{}", json.dumps(value | {"events": [{"kind": "forgotten"}]}).encode()):
        journal.path.write_bytes(broken)
        with pytest.raises(CloisterError):
            journal.counts()
        with pytest.raises(CloisterError), journal.session(at=AT):
            pytest.fail("a session began")
    journal.path.write_text(json.dumps(value | {"format": "cloister/linear-journal/v2"}))
    with pytest.raises(InputError) as caught:
        journal.counts()
    assert caught.value.code == 2004


@pytest.mark.skipif(os.name != "posix", reason="file modes and locks are POSIX's")
def test_one_process_at_a_time_and_for_its_owner_alone(tmp_path: Path, journal: Journal) -> None:
    with journal.session(at=AT) as serial:
        assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
        with pytest.raises(InputError) as caught, Journal(tmp_path, ID, "bank-a").session(at=AT):
            pytest.fail("two sessions at a time")
        assert caught.value.code == 2555
        journal.failed(serial, code=6901, phase="session", at=AT)
    failing(journal, 6901, "session")


def test_what_is_inside_may_fail(journal: Journal) -> None:
    def run() -> None:
        with journal.session(at=AT) as serial:
            journal.failed(serial, code=6902, phase="online", at=AT)
            raise PeerError(6902)

    with pytest.raises(PeerError):
        run()
    refused(journal)
