"""The command of a stage with privacy terms: ``python -I -m cloister.privacy``."""

from __future__ import annotations

import sys

from cloister.errors import CloisterError
from cloister.privacy._stage import ordered, train_stage

if __name__ == "__main__":
    try:
        train_stage(ordered())
    except CloisterError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_status)
