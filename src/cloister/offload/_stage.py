"""What a stage's launcher tells its script about offloading: one variable, which a notebook does not have."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import Field

from cloister.errors import InputError
from cloister.wire import Message, parse_message

__all__ = ["VARIABLE", "StageTerms", "stage_terms"]

VARIABLE = "CLOISTER_OFFLOAD"
_Handle = Annotated[int, Field(ge=3, lt=1 << 20)]


class StageTerms(Message):
    """What the manifest's stage says, and how its broker is reached.

    Attributes:
        format: Of this message; another is refused.
        session: Drawn for this attempt.
        mode: The stage's.
        workers: Their names in the manifest, in the mode's order.
        memory: Descriptor of the shared memory; None where nobody else multiplies.
        orders: Descriptor that commands are written to.
        answers: Descriptor that answers are read from.
    """

    format: Literal["cloister/offload-stage/v1"] = "cloister/offload-stage/v1"
    session: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    mode: Literal["enclave", "verify", "blind", "blind2", "shared3", "shared5"]
    workers: tuple[str, ...] = ()
    memory: _Handle | None = None
    orders: _Handle | None = None
    answers: _Handle | None = None


def stage_terms() -> StageTerms | None:
    """The terms of the stage that this process is the script of; None outside a stage, or where it has none.

    Raises:
        InputError: 2728 when the variable holds something else.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    try:
        return parse_message(StageTerms, text.encode(), what=VARIABLE)
    except InputError as error:
        raise InputError(2728, got=error.what) from None
