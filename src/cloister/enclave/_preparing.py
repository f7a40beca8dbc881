"""Compiling ahead of the first stage what stages import: for a large library that takes longer than a short stage.

The launcher itself compiles, in a sandbox, from measured source, and keeps the result under a key that it alone is
given (:mod:`cloister.enclave._bytecode`). The host names modules and learns a size. Nothing is opened for that, and a
stage whose modules nobody named compiles for itself.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from cloister.enclave._boundary import boundary_command
from cloister.enclave._bytecode import BYTECODE_KEY_LABEL, MAX_PACKAGES, compiled, is_kept
from cloister.enclave._entry import LAUNCHER, closed_environment, start_command
from cloister.enclave._installed import installed_attester, measure_installed
from cloister.enclave._job import MAX_JOB_BYTES, Job, StageFailure
from cloister.enclave._training import TRAINING
from cloister.errors import CloisterError, InputError, PeerError
from cloister.wire import Message, parse_json, parse_message

__all__ = ["Preparation", "PreparationOutcome", "Prepared", "parse_task", "prepare", "prepare_here"]

_MEMORY_BYTES = 4 << 30  # of private memory, at most; a large library's compiled code is 100 MiB
_MAX_ANSWER_BYTES = 64 << 10

ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$", max_length=200)]


class Preparation(Message):
    """What the host asks a launcher to compile.

    Attributes:
        format: Of this message; another is refused.
        modules: As scripts import them; those that are not installed are ignored.
        offload: Also what stages need whose layers leave.
        privacy: Also what stages with privacy terms need.
        tee: The platform.
        site: Folder of the simulated site; None on hardware.
    """

    format: Literal["cloister/preparation/v1"] = "cloister/preparation/v1"
    modules: tuple[ModuleName, ...] = Field(default=(), max_length=MAX_PACKAGES)
    offload: bool = False
    privacy: bool = False
    tee: Literal["tdx", "sgx"] = "tdx"
    site: Annotated[str, StringConstraints(min_length=1, max_length=4096)] | None = None


class Prepared(Message):
    """What is kept now.

    Attributes:
        measurement: Of the launcher that it is kept for; another one compiles anew.
        files: Compiled files.
        size_bytes: Of all of them.
        took_ms: Milliseconds that it took.
    """

    measurement: str
    files: int = Field(ge=0)
    size_bytes: int = Field(ge=0)
    took_ms: int = Field(ge=0)


class PreparationOutcome(Message):
    """Exactly one of the two."""

    format: Literal["cloister/preparation-outcome/v1"] = "cloister/preparation-outcome/v1"
    prepared: Prepared | None = None
    failure: StageFailure | None = None


def parse_task(data: bytes) -> Job | Preparation:
    """What a launcher is asked for, from its bytes.

    Raises:
        InputError: 2002, 2003 when it is not small strict JSON; 2005 when a field is missing, unknown or malformed.
    """
    what = "launcher's task"
    said = parse_json(data, what=what, max_bytes=MAX_JOB_BYTES)
    named = said.get("format") if isinstance(said, dict) else None
    if named == Preparation.model_fields["format"].default:
        return parse_message(Preparation, said, what="preparation")
    return parse_message(Job, said, what="stage job")


def prepare(preparation: Preparation) -> Prepared:
    """Starts a launcher that compiles, and waits for it.

    Raises:
        InputError: 2506 when nothing could be kept; 2008 on another system than Linux.
        RefusedError: 3501 without bubblewrap.
        PeerError: 6501, 6502 when the launcher says nothing, or nothing that can be read.
    """
    command = boundary_command(start_command(LAUNCHER), memory_bytes=_MEMORY_BYTES)
    environment = closed_environment(os.environ)
    # start_new_session is not set: an interrupt at the terminal ends the launcher too, and it leaves nothing half-made
    done = subprocess.run(command, input=preparation.canonical(), stdout=subprocess.PIPE, env=environment, check=False)
    if not done.stdout:
        raise PeerError(6501, got=f"exit status {done.returncode}")
    what = "preparation's outcome"
    try:
        outcome = parse_message(PreparationOutcome, done.stdout, what=what, max_bytes=_MAX_ANSWER_BYTES)
    except CloisterError as error:
        raise PeerError(6502, got=error.what) from None
    if outcome.failure is not None:
        raise outcome.failure.error()
    if outcome.prepared is None:
        raise PeerError(6502, got="neither what is prepared nor a failure")
    return outcome.prepared


def prepare_here(preparation: Preparation, *, private: Path, multiplying: Sequence[str]) -> Prepared:
    """Compiles, in this process's sandbox.

    Args:
        preparation: From the host; nothing in it is trusted.
        private: A folder in private memory.
        multiplying: The modules of a broker, as :func:`cloister.enclave._bytecode.compiled` has them.

    Raises:
        InputError: 2506 when nothing could be kept.
    """
    began = time.monotonic()
    measured = measure_installed("launcher", remember=preparation.site is not None)
    key = installed_attester(measured, tee=preparation.tee, site=preparation.site).sealing_key(BYTECODE_KEY_LABEL)
    if key is None:
        raise InputError(2506, got="a TEE that gives this code no key")
    names = {*preparation.modules, *(multiplying if preparation.offload else ())}
    names |= {*(TRAINING if preparation.privacy else ())}
    made = compiled(names, state=measured.files, key=key, private=private / "compiled")
    if made is None or not is_kept(names, state=measured.files, key=key):
        raise InputError(2506, got="a sandbox or a folder that could not be used; the launcher's log says which")
    files = [path.stat().st_size for path in made.rglob("*") if path.is_file()]
    return Prepared(
        measurement=measured.for_tee(preparation.tee),
        files=len(files),
        size_bytes=sum(files),
        took_ms=round((time.monotonic() - began) * 1000),
    )
