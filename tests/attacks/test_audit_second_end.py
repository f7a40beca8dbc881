"""A stage that ended twice: the bundle shows one end, a log another."""

from typing import Any

import pytest
from tests.audits import Finished, finished_run, refuted
from tests.runs import relog

from cloister.keys import RegistrationEntry

__all__ = ["finished_run"]


def checks(finished: Finished, name: str, change: Any) -> dict[tuple[str, str], int | None]:
    report = finished.audit(relog(finished.world, finished.bundle, name, change))
    return {(check.group, check.subject): check.code for check in refuted(report)}


@pytest.mark.parametrize("name", ["keys-a", "keys-b"])
def test_second_end_is_refused_for_the_stage_and_for_the_key_manager(finished_run: Finished, name: str) -> None:
    def change(entries: list[Any]) -> list[Any]:
        done = next(e for e in entries if isinstance(e, RegistrationEntry) and e.stage == "train")
        return [*entries, done.model_copy(update={"attempt": 2, "registration": "0" * 64})]

    assert checks(finished_run, name, change) == {("stage", "train"): 5359, ("terms", name): 5359}
