"""What is in the messages of a worker's link, and how a tensor lies in them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from cloister.errors import InputError
from cloister.offload._commands import Command, Put, Stream
from cloister.ring import MaskKey
from cloister.wire import B64, Message, Secret

__all__ = [
    "DTYPES",
    "ENDING",
    "FAILED",
    "REFUSALS",
    "Answer",
    "Begin",
    "Order",
    "Ready",
    "begin",
    "dealt",
    "fits",
    "octets",
    "put_bytes",
]

ENDING = (5711, 6707, 6710, 6711)
"""The refusals with which a worker ends the session; every other one is of a single command."""

FAILED = 6709
"""The refusal of a command that a worker's kernel or device failed at."""

REFUSALS = frozenset({2700, 2702, 2704, 2710, 2711, 2712, 5711, 6701, 6707, FAILED, 6710, 6711})
"""Every code that an answer may carry."""

DTYPES = {"int8": torch.int8, "int32": torch.int32}


def _refusal(code: int) -> int:
    if code not in REFUSALS:
        raise ValueError("not a worker's code")
    return code


class Dealt(Message):
    """The key of one keystream; which cipher makes it follows from the device that the worker names."""

    key: B64 = Field(min_length=32, max_length=32, repr=False)


class Begin(Message):
    """The enclave's first message: what this worker may expand."""

    keys: dict[Stream, Dealt]


class Ready(Message):
    """The worker's first message. Its own words: if the device is another, what it expands is not the mask."""

    kernels: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]
    device: Annotated[str, Field(pattern=r"^[a-z0-9:]{1,32}$")]
    memory_bytes: Annotated[int, Field(ge=0, lt=1 << 53)]


class Order(Message):
    """One command; a tensor follows a ``put``."""

    command: Command


class Answer(Message):
    """How one command ended, in the order of the commands: ``compute``'s tensor follows, or nothing, or why not.

    A reason is a code alone. A worker's words would be an untrusted program's in the enclave's log.
    """

    refused: Annotated[int, AfterValidator(_refusal)] | None = None


def begin(keys: Mapping[Stream, MaskKey]) -> Begin:
    """The message that deals these keys."""
    return Begin(keys={name: Dealt(key=key.reveal().reveal()) for name, key in keys.items()})


def dealt(message: Begin) -> dict[Stream, MaskKey]:
    """The keys that a message deals."""
    return {name: MaskKey(name, Secret(item.key)) for name, item in message.keys.items()}


def octets(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, in place where it is contiguous and on the CPU, else of a copy.

    Raises:
        InputError: 2008 on a big-endian machine: words travel as they lie.
    """
    if sys.byteorder != "little":
        raise InputError(2008, "links to workers need a little-endian machine")
    array: Any = tensor.detach().cpu().contiguous().numpy()
    return memoryview(array).cast("B")


def put_bytes(command: Put) -> int:
    """The size of the tensor that follows a ``put``."""
    size = DTYPES[command.dtype].itemsize
    for length in command.shape:
        size *= length
    return size


def fits(command: Put, tensor: Tensor | None) -> bool:
    """Whether the tensor is the one that the command announces."""
    return tensor is not None and (tensor.dtype, tuple(tensor.shape)) == (DTYPES[command.dtype], command.shape)
