"""Errors: one tree, one table of codes, one voice.

Every refusal that Cloister makes has a four-digit code. Its first digit is the branch of the tree *and* the
exit status of the command; its second digit is the room that found it::

    2xxx  InputError        what you gave us          x0xx  wire, party, command line, platform
    3xxx  RefusedError      policy or consent         x1xx  attest      x5xx  enclave, run
    4xxx  AttestationError  evidence                  x2xx  seal        x6xx  serve
    5xxx  IntegrityError    bytes or arithmetic       x3xx  manifest, receipt, audit
    6xxx  PeerError         peer or network           x4xx  keys        x7xx  ring, offload
    7xxx  BudgetError       privacy budget                              x8xx  privacy, ledger
    8xxx  UnsupportedError  unsupported model                           x9xx  linear
    9xxx  InternalError     our bug

Rules:

* The table (``codes.toml``) is the only place where a code is defined; raising an unknown code is a bug (9001).
* ``what`` says what happened here; ``expected`` and ``got`` are values, never secrets; ``hint`` is the next step.
* Messages are in lower case and carry no final period.

>>> from cloister.errors import InputError
>>> try:
...     raise InputError(2001, "no such folder: 'xray'", hint="check the path")
... except InputError as error:
...     print(error.exit_status, error)
2 error[CLOISTER-2001]: no such folder: 'xray'
"""

from cloister.errors._table import CodePage, all_codes, explain
from cloister.errors._tree import (
    AttestationError,
    BudgetError,
    CloisterError,
    InputError,
    IntegrityError,
    InternalError,
    PeerError,
    RefusedError,
    UnsupportedError,
    error_for,
)

__all__ = [
    "AttestationError",
    "BudgetError",
    "CloisterError",
    "CodePage",
    "InputError",
    "IntegrityError",
    "InternalError",
    "PeerError",
    "RefusedError",
    "UnsupportedError",
    "all_codes",
    "error_for",
    "explain",
]
