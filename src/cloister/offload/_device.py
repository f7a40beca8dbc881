"""The device that a worker was told to use, if the machine has it."""

from __future__ import annotations

import torch

from cloister.errors import InputError

__all__ = ["device_named"]


def device_named(text: str) -> torch.device:
    """The device called ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        InputError: 2791 when that is none of the three, or this machine has no such GPU.
    """
    try:
        device = torch.device(text)
    except RuntimeError:
        raise InputError(2791, f"no such device: {text[:40]!r}", expected="cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(2791, f"this machine has no device '{device}'", expected="a GPU that torch sees", got=count)
    if device.type not in ("cpu", "cuda"):
        raise InputError(2791, f"workers do not run on '{device}'", expected="cpu, cuda or cuda:N")
    return device
