"""A private training: the engine's order, where its process finds things, and its account of what it did.

The engine is measured code like the launcher, and the program that it runs is data, so its ledger is believed as the
launcher's own word is. It is held to the order all the same: what a receipt says was spent is what was agreed, or less.
"""

from __future__ import annotations

from pathlib import Path

from cloister.errors import CloisterError, IntegrityError
from cloister.ledger import (
    LEDGER_FILE,
    MAX_LEDGER_BYTES,
    ORDER_VARIABLE,
    Ledger,
    StageOrder,
    TrainingOrder,
    read_ledger,
    require_within,
)
from cloister.manifest import Stage
from cloister.wire import read_bounded

__all__ = ["TRAINING", "read_account", "training_environment"]

TRAINING = ("torch", "cloister.privacy._stage", "cloister.privacy._warm:compile_kernels")
"""What a private training's process imports, and what compiles its kernels."""


def training_environment(
    order: TrainingOrder, stage: Stage, *, program: str, inputs: str, outputs: str
) -> dict[str, str]:
    """The variable that tells the engine what to do.

    Args:
        order: What was agreed.
        stage: With privacy terms.
        program: The code image's folder.
        inputs: The pattern of an input's folder, with ``{}`` for its name.
        outputs: The same of an output's.
    """
    told = StageOrder(
        training=order,
        program=program,
        inputs=tuple(inputs.format(name) for name in stage.inputs),
        output=outputs.format(*stage.outputs),
        checkpoint=stage.checkpoint is not None,
    )
    return {ORDER_VARIABLE: told.canonical().decode()}


def read_account(output: Path, order: TrainingOrder) -> Ledger:
    """What the engine says it did, once that is shown to be what was ordered.

    Raises:
        IntegrityError: 5509 when there is no account, or it is of something else.
        BudgetError: 7804 when more was done than was ordered.
    """
    try:
        data = read_bounded(output / LEDGER_FILE, max_bytes=MAX_LEDGER_BYTES, what="privacy ledger")
        ledger = read_ledger(data, head=None)
    except CloisterError as error:
        raise IntegrityError(5509, got=error.what) from None
    if (ledger.run, ledger.unit, ledger.relation) != (order.id, order.unit, order.relation) or not ledger.events:
        raise IntegrityError(5509, expected=f"{order.id[:16]} per {order.unit}", got=f"{ledger.run[:16]}")
    require_within(ledger.events, [order.event])
    return ledger
