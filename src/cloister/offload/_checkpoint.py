"""A training run's state, sealed: model, optimizer, scheduler, random numbers; never a mask's key.

A run that goes on from a checkpoint makes the steps that it would have made, bit for bit. It draws new mask keys, as
every start does: nothing that lies in a file, be it copied, forked or put back from yesterday, can bring a mask back.

The file: ``magic ‖ sequence ‖ salt``, then sealed pieces (:class:`cloister.wire.Pieces`). It is authenticated whole
before a byte of it is interpreted, and read by torch's restricted reader, which makes tensors and containers only.

A file that was put back from yesterday is authentic. Whoever keeps the last sequence number where the storage's owner
cannot change it finds out (``at_least``); without one, nobody can.

In a pipeline's stage whose manifest has ``checkpoint`` terms, ``path`` is left out: the file then lies in the enclave's
private memory, the launcher seals it for the next attempt, and the key managers' records tell an older one (docs/
offload.md). So one script does both::

    save_checkpoint(path, model, key=key, sequence=epoch, optimizer=optimizer)   # both None in a stage
"""

from __future__ import annotations

import io
import os
import pickle
import random
import secrets
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch

from cloister.errors import InputError, IntegrityError
from cloister.offload._offload import offloading
from cloister.ring import RoundingState
from cloister.wire import Pieces, PieceWriter, Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]

_MAGIC = b"cloister checkpoint\x01"
_SALT_BYTES = 32
_HEAD = struct.Struct(f">{len(_MAGIC)}sQ{_SALT_BYTES}s")
_LABEL = b"cloister/offload-checkpoint/v1"
KEY_BYTES = 32
_STAGE_FOLDER = "CLOISTER_CHECKPOINT"  # what a launcher tells the script of a stage that may save checkpoints
_STAGE_KEY = Secret(bytes(KEY_BYTES))  # no secret: such a file never leaves private memory but sealed by the launcher


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was read beside the state itself.

    Attributes:
        sequence: The number it was saved under.
        fresh: True when it was compared with the last number that is known, by the caller or, in a stage, by the
            launcher; None when there was none to compare with, and an older checkpoint in its place would not have
            been noticed.
        extra: What was saved with it.
    """

    sequence: int
    fresh: bool | None
    extra: dict[str, Any]


def save_checkpoint(
    path: Path | str | None,
    model: nn.Module,
    *,
    key: Secret | None = None,
    sequence: int,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Seals the state of a run; the file appears whole or not at all.

    Args:
        path: Where to. A file there is replaced. None in a pipeline's stage.
        model: Offloaded or not.
        key: 32 bytes; None in a pipeline's stage alone.
        sequence: Larger than any before, in ``[0, 2^64)``: the epoch, the step.
        optimizer: Its state goes with it.
        scheduler: The same.
        extra: Numbers, strings, tensors and containers of them: what the loop needs to go on.

    Raises:
        InputError: 2716 for no key, one of another length or a number outside its range; 2718 without a path where the
            launcher keeps no checkpoint.
        IntegrityError: 5701 when a check failed: such a state is not kept.
    """
    target, key, _ = _place(path, key)
    head = _HEAD.pack(_MAGIC, _require(key, sequence), secrets.token_bytes(_SALT_BYTES))
    state: dict[str, Any] = {
        "model": model.state_dict(),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "scheduler": None if scheduler is None else scheduler.state_dict(),
        "random": _random_state(),
        "rounding": None,
        "scales": None,
        "extra": dict(extra or {}),
    }
    engine = _engine(model)
    if engine is not None:
        engine.products.settle()
        state["rounding"] = tuple(engine.products.rounding)
        state["scales"] = None if engine.calibration is None else engine.calibration.state
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(head)
            writer: Any = PieceWriter(file.write, _pieces(key, head))  # torch writes to anything that has write()
            torch.save(state, writer)
            writer.finish()
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@overload
def load_checkpoint(
    path: Path | str | None,
    model: nn.Module,
    *,
    key: Secret | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
    at_least: int | None = None,
    missing_ok: Literal[False] = False,
) -> Checkpoint: ...


@overload
def load_checkpoint(
    path: Path | str | None,
    model: nn.Module,
    *,
    key: Secret | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
    at_least: int | None = None,
    missing_ok: bool,
) -> Checkpoint | None: ...


def load_checkpoint(
    path: Path | str | None,
    model: nn.Module,
    *,
    key: Secret | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
    at_least: int | None = None,
    missing_ok: bool = False,
) -> Checkpoint | None:
    """Puts a run back to where it was saved.

    Args:
        path: A checkpoint. None in a pipeline's stage.
        model: Of the same architecture, offloaded or not.
        key: The one it was sealed with; None in a pipeline's stage alone.
        optimizer: Gets its state back; must have had one.
        scheduler: The same.
        at_least: The last number that is known, from a place that the storage's owner cannot change.
        missing_ok: Where there is no checkpoint yet the answer is None, and nothing is changed.

    Raises:
        InputError: 2001 when the file cannot be read; 2716 for no key or one of another length; 2717 when the state
            does not fit the model, the optimizer or the scheduler, and the model is not changed then; 2718 without a
            path where the launcher keeps no checkpoint.
        IntegrityError: 5703 when it is no checkpoint of this key, was changed or cut off; 5704 when it is older than
            ``at_least``.
    """
    target, key, in_stage = _place(path, key)
    _require(key, 0)
    if missing_ok and at_least is None and not target.exists():
        return None
    head, opened = _open(target, key)
    _, sequence, _ = _HEAD.unpack(head)
    if at_least is not None and sequence < at_least:
        raise IntegrityError(5704, expected=f"number {at_least} or later", got=sequence)
    try:
        state = torch.load(opened, weights_only=True, map_location="cpu")
        for name, part in (("optimizer", optimizer), ("scheduler", scheduler)):
            if part is not None and state[name] is None:
                raise InputError(2717, f"the checkpoint was saved without an {name}", got="none")
        _require_same(model.state_dict(), state["model"])
        model.load_state_dict(state["model"])
        if optimizer is not None:
            optimizer.load_state_dict(state["optimizer"])
        if scheduler is not None:
            scheduler.load_state_dict(state["scheduler"])
    except (RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise InputError(2717, got=str(error).splitlines()[0][:200]) from error
    engine = _engine(model)
    if engine is not None:
        engine.forget_weights()
        if state["rounding"] is not None:
            engine.products.rounding = RoundingState(*state["rounding"])
        if engine.calibration is not None:
            engine.calibration.restore(state["scales"] or {})
    _restore_random(state["random"])
    return Checkpoint(sequence, True if in_stage or at_least is not None else None, state["extra"])


def _require_same(have: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Torch copies what fits before it says what does not."""
    ours, theirs = (
        {name: tuple(value.shape) for name, value in state.items() if isinstance(value, torch.Tensor)}
        for state in (have, saved)
    )
    if ours != theirs:
        names = sorted(name for name, _ in ours.items() ^ theirs.items())
        raise InputError(2717, "the checkpoint is of another model", got=", ".join(dict.fromkeys(names[:4])))


def _engine(model: nn.Module) -> Any:
    try:
        return offloading(model).engine
    except InputError:
        return None


def _require(key: Secret, sequence: int) -> int:
    if len(key) != KEY_BYTES or not 0 <= sequence < 1 << 64:
        raise InputError(2716, expected=f"a key of {KEY_BYTES} bytes, a number of 64 bits", got=f"{len(key)} bytes")
    return sequence


def _pieces(key: Secret, head: bytes) -> Pieces:
    return Pieces(key, salt=head[-_SALT_BYTES:], label=_LABEL, head=head)


def _place(path: Path | str | None, key: Secret | None) -> tuple[Path, Secret, bool]:
    """The file, its key, and whether the launcher keeps it."""
    if path is not None:
        if key is None:
            raise InputError(2716, "a checkpoint that the launcher does not keep needs a key", got="none")
        return Path(path), key, False
    folder = os.environ.get(_STAGE_FOLDER)
    if not folder:
        raise InputError(2718)
    return Path(folder, "state"), _STAGE_KEY if key is None else key, True


def _open(path: Path, key: Secret) -> tuple[bytes, io.BytesIO]:
    opened = io.BytesIO()
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD.size)
            if len(head) != _HEAD.size or not head.startswith(_MAGIC):
                raise IntegrityError(5703, expected="a checkpoint", got="other bytes")
            size = os.fstat(file.fileno()).st_size
            _pieces(key, head).open(file.read, opened.write, size_bytes=size - _HEAD.size)
    except OSError as error:
        raise InputError(2001, f"cannot read the checkpoint: {error.strerror}: '{path}'") from error
    except ValueError:
        raise IntegrityError(5703) from None
    opened.seek(0)
    return head, opened


def _random_state() -> dict[str, Any]:
    name, words, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.array(words).astype(np.int64)), position, has_gauss, gauss),
    }


def _restore_random(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    name, words, *rest = state["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), *rest))
