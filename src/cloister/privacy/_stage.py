"""A stage's private training: a program, records and an order in; weights and a ledger out.

What the launcher runs in place of a script (``python -I -m cloister.privacy``). All code is this package's: the program
is data that is checked again, the order says what is to be spent, and nothing else is read. It is made of the parts of
:func:`cloister.privacy.make_private`, so that what holds there holds here.

Two files come out: ``weights.safetensors``, by the names of the model that was certified, and ``privacy.json``, the
ledger of what was done, which the launcher holds against the order. In a stage that also has ``offload`` terms its
workers multiply the program's layers; what they are asked, and how often, does not depend on who was drawn.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import DataLoader

from cloister.errors import RefusedError
from cloister.ledger import LEDGER_FILE, ORDER_VARIABLE, Account, Method, StageOrder, TrainingOrder, begin_ledger
from cloister.offload import load_checkpoint, offload, save_checkpoint
from cloister.privacy._groups import Groups
from cloister.privacy._private import make_private
from cloister.privacy._program import RECIPE_FILE, WEIGHTS_FILE, read_program, weights_of
from cloister.privacy._recipe import Recipe
from cloister.privacy._records import Records, read_records
from cloister.privacy._run_key import KEY_BYTES, RunKey
from cloister.privacy._weights import write_weights
from cloister.wire import Secret, parse_json, parse_message, read_bounded, write_atomic

if TYPE_CHECKING:
    from cloister.ledger import Ledger
    from cloister.privacy._certified import CertifiedLoss
    from cloister.privacy._loader import PrivateLoader
    from cloister.privacy._optimizer import PrivateOptimizer

__all__ = ["ordered", "train_stage"]

_MAX_BYTES = 64 * 1024
_SAVE_EVERY_S = 60.0
_TELL_EVERY_S = 10.0


def ordered() -> StageOrder:
    """The order that the launcher gave.

    Raises:
        InputError: 2002 to 2005 when it is none.
    """
    value = parse_json(os.environ.get(ORDER_VARIABLE, "").encode(), what="private stage", max_bytes=_MAX_BYTES)
    return parse_message(StageOrder, value, what="private stage")


def train_stage(order: StageOrder) -> Ledger:
    """Trains as ordered, and writes what comes of it.

    Returns:
        What was done.

    Raises:
        RefusedError: 3852 when the records have more units than was agreed.
        InputError: 2859 for records that are not the program's; others of :func:`make_private` and
            :func:`read_program`.
    """
    training, folder = order.training, Path(order.program)
    program = read_program(folder)
    program.stay_within()  # whether a stage failed is seen by whoever hosts it
    offload(program)  # as the stage's terms say; without any it stays as it is. How that went, the broker tells
    value = parse_json(
        read_bounded(folder / RECIPE_FILE, max_bytes=_MAX_BYTES, what="recipe"), what="recipe", max_bytes=_MAX_BYTES
    )
    recipe = parse_message(Recipe, value, what="recipe")
    by_patient = training.unit == "patient"
    records = read_records([Path(each) for each in order.inputs], program.graph, by_patient=by_patient)
    groups = _groups(records, training)
    optimizer = recipe.optimizer_of(parameter for parameter in program.parameters() if parameter.requires_grad)
    saved = load_checkpoint(None, program, optimizer=optimizer, missing_ok=True) if order.checkpoint else None
    secret = Secret.random(KEY_BYTES) if saved is None else Secret(bytes.fromhex(saved.extra["secret"]))
    _, private, loader = make_private(
        program,
        optimizer,
        DataLoader(records, batch_size=training.batch),
        clip=float(training.clip),
        noise_multiplier=training.noise_multiplier,
        delta=training.delta,
        unit=training.unit,
        relation=training.relation,
        groups=groups,
        expected_batch=training.batch,
        micro_batch=recipe.rows_at_a_time(training.most_rows),
        key=RunKey(secret),
    )
    if saved is not None:
        private.privacy.resume(saved.extra["privacy"])
    _train(order, recipe, program, private, loader, secret)
    ledger = begin_ledger(run=training.id, unit=training.unit, relation=training.relation)
    for event in private.privacy.events:
        ledger = ledger.append(event)
    write_atomic(Path(order.output) / WEIGHTS_FILE, write_weights(weights_of(program)))
    write_atomic(Path(order.output) / LEDGER_FILE, ledger.canonical())
    return ledger


def _groups(records: Records, training: TrainingOrder) -> Groups:
    """As many units as were agreed, those that the records lack without a row: nobody's draw is another's for them.

    A patient with more rows is cut, and fewer units are not told: whether a stage failed is seen by whoever hosts it.
    """
    whose = range(len(records)) if records.patients is None else records.patients.tolist()
    groups = Groups.of(whose, most_rows=training.most_rows, beyond="truncate")
    lacking = training.units - len(groups)
    if lacking < 0:
        raise RefusedError(3852, expected=f"at most {training.units} {training.unit}s")  # not how many there are
    rows = [len(groups.rows(number)) for number in range(len(groups))] + [0] * lacking
    return replace(groups, _starts=np.cumsum([0, *rows], dtype=np.int64))


def _train(
    order: StageOrder,
    recipe: Recipe,
    program: CertifiedLoss,
    optimizer: PrivateOptimizer,
    loader: PrivateLoader,
    secret: Secret,
) -> None:
    """Steps until as many are made as were ordered; tells, and saves, from time to time."""
    privacy, steps = optimizer.privacy, order.training.steps
    tell, save = _Every(_TELL_EVERY_S), _Every(_SAVE_EVERY_S)
    program.train()
    while privacy.steps < steps:
        for batch in loader:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate_at(privacy.steps, of=steps)
            program(batch).mean().backward()
            optimizer.step()
            if not loader.place.is_last:
                continue
            if tell.due or privacy.steps == steps:
                spent = Account(privacy.events, by=Method.RDP).epsilon(order.training.delta)
                sys.stderr.write(f"step {privacy.steps} of {steps}, ε = {spent.epsilon or 'unknown'}\n")
            if order.checkpoint and save.due:
                extra = {"privacy": privacy.state, "secret": secret.reveal().hex()}
                save_checkpoint(None, program, sequence=privacy.steps, optimizer=optimizer, extra=extra)
            if privacy.steps == steps:
                break


class _Every:
    """True once in so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    @property
    def due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True
