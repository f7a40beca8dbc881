"""The ONNX runner: model bytes in, a function from tensors to tensors out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cloister.errors import InputError, UnsupportedError
from cloister.serve._messages import Datatype, Tensor, TensorSpec

__all__ = ["OnnxModel", "from_tensor", "to_tensor"]

_TYPES: dict[Datatype, str] = {
    "FP32": "<f4",
    "FP64": "<f8",
    "INT64": "<i8",
    "INT32": "<i4",
    "UINT8": "|u1",
    "BOOL": "|b1",
}
_NAMES: dict[Any, Datatype] = {np.dtype(code): name for name, code in _TYPES.items()}
_ONNX: dict[str, Datatype] = {
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(int64)": "INT64",
    "tensor(int32)": "INT32",
    "tensor(uint8)": "UINT8",
    "tensor(bool)": "BOOL",
}
MAX_ROWS = 1 << 16  # what one request may ask for at once; memory is the enclave's, the request is a stranger's


def to_tensor(name: str, array: np.ndarray[Any, Any]) -> Tensor:
    """An array as a wire tensor.

    Raises:
        InputError: 2604 when its dtype has no Open Inference Protocol name here.
    """
    array = np.ascontiguousarray(array)
    dtype = array.dtype.newbyteorder("<") if array.dtype.itemsize > 1 else array.dtype
    if dtype not in _NAMES:
        raise InputError(2604, f"tensor {name!r} has a dtype that cannot be sent", expected=list(_TYPES), got=dtype)
    return Tensor(name=name, datatype=_NAMES[dtype], shape=array.shape, data=array.astype(dtype).tobytes())


def from_tensor(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A wire tensor as an array of its shape.

    Raises:
        InputError: 2604 when the bytes are not as many as shape and datatype say.
    """
    dtype = np.dtype(_TYPES[tensor.datatype])
    expected = math.prod(tensor.shape) * dtype.itemsize
    if len(tensor.data) != expected:
        raise InputError(
            2604, f"tensor {tensor.name!r} is not as large as its shape says", expected=expected, got=len(tensor.data)
        )
    return np.frombuffer(tensor.data, dtype).reshape(tensor.shape)


def _points_outside(message: Any) -> bool:
    """Whether any tensor anywhere in a model, subgraphs, attributes and functions included, has its data elsewhere."""
    for field, value in message.ListFields():
        if field.name == "external_data" or (field.name == "data_location" and value != 0):
            return True
        if field.message_type is not None:
            parts: Any = value if hasattr(value, "add") or isinstance(value, list | tuple) else [value]
            if any(_points_outside(part) for part in parts):
                return True
    return False


class OnnxModel:
    """A loaded model. Every input is checked against the graph before the runtime sees it.

    Args:
        model: The ONNX file's bytes, with every weight inside: the runtime would look for external data in the
            process's working folder, which is the host's.

    Raises:
        UnsupportedError: 8601 when the runtime cannot load it, or an input is not a dense tensor of a known type; 8602
            when a weight lies outside the file.
    """

    def __init__(self, model: bytes) -> None:
        try:
            import onnx
            import onnxruntime
        except ImportError:
            raise InputError(2006, "serving a model needs ONNX Runtime", hint='pip install "cloister[serve]"') from None
        try:
            parsed = onnx.load_model_from_string(model)
        except Exception as error:  # protobuf's own family
            raise UnsupportedError(8601, f"the model does not load: {type(error).__name__}") from None
        if _points_outside(parsed):
            raise UnsupportedError(8602)
        del parsed
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime raises its own family, unrelated to any public base class
            raise UnsupportedError(8601, f"the model does not load: {str(error)[:200]}") from None
        for put in self._session.get_inputs():
            if put.type not in _ONNX:
                raise UnsupportedError(8601, f"model input {put.name!r} has type {put.type}", expected=list(_ONNX))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, datatype and shape of each input."""
        return tuple(
            TensorSpec(
                name=put.name,
                datatype=_ONNX[put.type],
                shape=tuple(size if isinstance(size, int) else -1 for size in put.shape),
            )
            for put in self._session.get_inputs()
        )

    def predict(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Runs the model.

        Raises:
            InputError: 2604 when an input is missing, unknown, of another type, or of a shape the graph does not take.
        """
        given = {tensor.name: tensor for tensor in inputs}
        wanted = self.inputs
        if len(given) != len(inputs) or set(given) != {spec.name for spec in wanted}:
            names = [spec.name for spec in wanted]
            raise InputError(2604, "inputs are not the model's", expected=names, got=list(given))
        feeds: dict[str, Any] = {}
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
            feeds[tensor.name] = from_tensor(tensor)
        names = [out.name for out in self._session.get_outputs()]
        try:
            values = self._session.run(names, feeds)
        except Exception as error:  # as above; the message can quote the private input, so it is not passed on
            raise InputError(2604, f"the model failed on this input ({type(error).__name__})") from None
        arrays = [(name, value) for name, value in zip(names, values, strict=True) if isinstance(value, np.ndarray)]
        return tuple(to_tensor(name, value) for name, value in arrays)
