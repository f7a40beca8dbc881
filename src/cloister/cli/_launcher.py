"""The process of a launcher: one job or preparation on standard input, one outcome on standard output.

It lies in this room because the launcher's own room knows nothing of what multiplies: here both come together. What
multiplies is imported for a stage that offloads layers, and for no other.
"""

from __future__ import annotations

import os
import sys
import tempfile

from cloister.cli._offloader import MULTIPLYING, offloader
from cloister.enclave import (
    MAX_JOB_BYTES,
    Preparation,
    PreparationOutcome,
    StageFailure,
    StageOutcome,
    close_process,
    ensure_closed,
    launch_sandboxed,
    parse_task,
    prepare_here,
    private_folder,
)

__all__ = ["PROGRAM", "main"]

PROGRAM = "cloister.cli._launcher"


def main() -> int:
    """Runs the launcher; the exit status is 0, or the first digit of the failure's code."""
    ensure_closed(PROGRAM)
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints by accident does not reach the answer
    said: type[PreparationOutcome] | type[StageOutcome] = StageOutcome
    try:
        close_process()
        task = parse_task(sys.stdin.buffer.read(MAX_JOB_BYTES + 1))
        private = private_folder()
        tempfile.tempdir = str(private)  # nothing that a library puts aside for a moment goes to the host's disk
        if isinstance(task, Preparation):
            said = PreparationOutcome
            outcome = said(prepared=prepare_here(task, private=private, multiplying=MULTIPLYING))
        else:
            outcome = launch_sandboxed(task, private=private, offloader=offloader, multiplying=MULTIPLYING)
    except Exception as error:
        outcome = said(failure=StageFailure.of(error))
    answer.write(outcome.canonical())
    answer.flush()
    return 0 if outcome.failure is None else outcome.failure.code // 1000


if __name__ == "__main__":
    sys.exit(main())
