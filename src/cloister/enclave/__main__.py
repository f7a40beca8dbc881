"""``python -m cloister.enclave``: one job on standard input, one outcome on standard output."""

from __future__ import annotations

import os
import sys
import tempfile

from cloister.enclave._boundary import close_process, private_folder
from cloister.enclave._entry import ensure_closed
from cloister.enclave._job import MAX_JOB_BYTES, StageFailure, StageOutcome, parse_job
from cloister.enclave._launcher import launch_sandboxed


def main() -> int:
    """Runs the launcher; the exit status is 0, or the first digit of the failure's code."""
    ensure_closed("cloister.enclave")
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints by accident does not reach the answer
    try:
        close_process()
        job = parse_job(sys.stdin.buffer.read(MAX_JOB_BYTES + 1))
        private = private_folder()
        tempfile.tempdir = str(private)  # nothing that a library puts aside for a moment goes to the host's disk
        outcome = launch_sandboxed(job, private=private)
    except Exception as error:
        outcome = StageOutcome(failure=StageFailure.of(error))
    answer.write(outcome.canonical())
    answer.flush()
    return 0 if outcome.failure is None else outcome.failure.code // 1000


if __name__ == "__main__":
    sys.exit(main())
