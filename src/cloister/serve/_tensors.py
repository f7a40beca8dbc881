"""Tensors on the wire and as arrays, and whether they are what a model takes."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from cloister.errors import InputError
from cloister.serve._messages import Datatype, Tensor, TensorSpec
from cloister.serve._onnx import TYPES

__all__ = ["check_inputs", "from_tensor", "size_bytes", "to_tensor"]

_NAMES: dict[Any, Datatype] = {np.dtype(code): cast("Datatype", name) for name, code in TYPES.items()}
MAX_ROWS = 1 << 16  # what one request may ask for at once; memory is the enclave's, the request is a stranger's


def to_tensor(name: str, array: np.ndarray[Any, Any]) -> Tensor:
    """An array as a wire tensor.

    Raises:
        InputError: 2604 when its dtype has no Open Inference Protocol name here.
    """
    array = np.ascontiguousarray(array)
    dtype = array.dtype.newbyteorder("<") if array.dtype.itemsize > 1 else array.dtype
    if dtype not in _NAMES:
        raise InputError(2604, f"tensor {name!r} has a dtype that cannot be sent", expected=list(TYPES), got=dtype)
    return Tensor(name=name, datatype=_NAMES[dtype], shape=array.shape, data=array.astype(dtype).tobytes())


def from_tensor(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A wire tensor as an array of its shape.

    Raises:
        InputError: 2604 when the bytes are not as many as shape and datatype say.
    """
    expected = size_bytes(tensor)
    if len(tensor.data) != expected:
        raise InputError(
            2604, f"tensor {tensor.name!r} is not as large as its shape says", expected=expected, got=len(tensor.data)
        )
    return np.frombuffer(tensor.data, TYPES[tensor.datatype]).reshape(tensor.shape)


def size_bytes(tensor: Tensor | TensorSpec) -> int:
    """How many bytes a tensor of this shape and datatype has."""
    return math.prod(tensor.shape) * np.dtype(TYPES[tensor.datatype]).itemsize


def check_inputs(inputs: tuple[Tensor, ...], wanted: tuple[TensorSpec, ...]) -> None:
    """Returns when ``inputs`` are what a model takes: no runtime has seen them yet.

    Raises:
        InputError: 2604 when one is missing, unknown, of another type, of a shape the graph does not take, or not as
            large as its shape says.
    """
    given = {tensor.name: tensor for tensor in inputs}
    if len(given) != len(inputs) or set(given) != {spec.name for spec in wanted}:
        names = [spec.name for spec in wanted]
        raise InputError(2604, "inputs are not the model's", expected=names, got=list(given))
    for spec in wanted:
        tensor = given[spec.name]
        fits = len(tensor.shape) == len(spec.shape) and all(
            want in (-1, got) for want, got in zip(spec.shape, tensor.shape, strict=True)
        )
        if tensor.datatype != spec.datatype or not fits or math.prod(tensor.shape[:1]) > MAX_ROWS:
            raise InputError(
                2604,
                f"input {tensor.name!r} does not fit the model",
                expected=f"{spec.datatype} {list(spec.shape)}, at most {MAX_ROWS} rows",
                got=f"{tensor.datatype} {list(tensor.shape)}",
            )
        from_tensor(tensor)
