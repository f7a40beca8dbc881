"""Tensors by name as bytes: a safetensors file, read for tensors that are known before.

The bytes may be a stranger's: the whole size is compared with what is expected first, then the library parses them,
which executes nothing, and each name, element type and shape must be the expected one.

Source: https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cloister.errors import InputError, IntegrityError
from cloister.privacy._graph import Spec

__all__ = ["read_weights", "weights_limit", "write_weights"]

_HEAD_BYTES = 16 * 1024 * 1024  # most of a header, and its length


def write_weights(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as a safetensors file.

    Args:
        tensors: By name; dense.

    Raises:
        InputError: 2858 for an element type that the format does not have.
    """
    if any(tensor.is_complex() for tensor in tensors.values()):
        raise InputError(2858, "an element type that files of weights do not have", got="complex")
    # copies: what is a view of a larger tensor would be written with all of it, or not at all
    form = torch.contiguous_format
    return safetensors.torch.save(
        {name: tensor.detach().cpu().clone(memory_format=form) for name, tensor in tensors.items()}
    )


def weights_limit(expected: Mapping[str, Spec]) -> int:
    """The most bytes that a file of these tensors has.

    Raises:
        InputError: 2832 for a tensor with as many rows as the batch; 2858 for an element type that is not known.
    """
    return _HEAD_BYTES + sum(prod(_shape(name, spec)) * _dtype(spec).itemsize for name, spec in expected.items())


def read_weights(data: bytes, expected: Mapping[str, Spec]) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Args:
        data: A stranger's bytes.
        expected: What must be in it, all of it and nothing else.

    Returns:
        In the order of ``expected``.

    Raises:
        InputError: 2858 for what is no such file.
        IntegrityError: 5832 when names, element types or shapes are others.
    """
    if len(data) > weights_limit(expected):
        raise InputError(2858, expected=f"at most {weights_limit(expected)} bytes", got=f"{len(data)} bytes")
    try:
        found = safetensors.torch.load(bytes(data))
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(2858, got=str(error)[:80]) from error
    if found.keys() != expected.keys():
        odd = sorted(found.keys() ^ expected.keys())[0]
        raise IntegrityError(5832, f"{odd[:80]!r} is in the weights or the certificate, and not in the other")
    for name, spec in expected.items():
        wanted, got = (_dtype(spec), _shape(name, spec)), (found[name].dtype, list(found[name].shape))
        if got != wanted:
            raise IntegrityError(5832, f"{name} is not as certified", expected=str(wanted), got=str(got)[:80])
        if spec.dtype == "bool" and bool((found[name].view(torch.uint8) > 1).any()):
            raise InputError(2858, f"{name} has truth values other than 0 and 1")
    return {name: found[name] for name in expected}


def _dtype(spec: Spec) -> torch.dtype:
    dtype = getattr(torch, spec.dtype, None)
    if not isinstance(dtype, torch.dtype) or dtype.is_complex:
        raise InputError(2858, "an element type that files of weights do not have", got=spec.dtype[:80])
    return dtype


def _shape(name: str, spec: Spec) -> list[int]:
    shape = [size for size in spec.shape if isinstance(size, int)]
    if len(shape) != len(spec.shape):
        raise InputError(2832, f"{name[:80]!r} has the batch's size, and is none of the batch's")
    return shape
