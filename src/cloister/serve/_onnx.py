"""The ONNX runner: the program that parses a stranger's model, in a sandbox, far from every key.

It is run by its path and imports no part of Cloister. Its arguments are three descriptors: questions, answers, the
model's file. It first says what the model takes, then answers questions until there are no more. A frame is::

    header bytes: 4 | data bytes: 8, both big-endian | header: JSON | data: the tensors, one after the other

A header holds ``tensors``, each with name, datatype and shape (data is C-ordered, little-endian), or a ``code``: what
was wrong, and no word about it, since a runtime's message can quote the model or the input.

Security: whoever started it checks all that it says (``_model``). From the moment that a model is loaded, this process
may be the model author's.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterable, Sequence
from typing import IO, Any

import numpy as np

__all__ = ["HEAD", "TYPES", "head"]

HEAD = struct.Struct(">IQ")
TYPES: dict[str, str] = {
    "FP32": "<f4",
    "FP64": "<f8",
    "INT64": "<i8",
    "INT32": "<i4",
    "UINT8": "|u1",
    "BOOL": "|b1",
}
"""Open Inference Protocol v2 names, and numpy's."""

_NAMES: dict[Any, str] = {np.dtype(code): name for name, code in TYPES.items()}
_ONNX = {
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(int64)": "INT64",
    "tensor(int32)": "INT32",
    "tensor(uint8)": "UINT8",
    "tensor(bool)": "BOOL",
}
_BAD_INPUT, _NO_MODEL, _WEIGHTS_ELSEWHERE = 2604, 8601, 8602
_Triple = tuple[str, str, Sequence[int]]


def head(tensors: Iterable[_Triple], data_bytes: int) -> bytes:
    """A frame up to its data, for tensors of name, datatype and shape."""
    listed = [{"name": name, "datatype": datatype, "shape": list(shape)} for name, datatype, shape in tensors]
    return _head({"tensors": listed}, data_bytes)


def _head(header: dict[str, Any], data_bytes: int = 0) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    return HEAD.pack(len(text), data_bytes) + text


class _Unservable(Exception):
    """Why, as a code."""


def _load(model: bytes) -> Any:
    """A session of the runtime."""
    import onnx
    import onnxruntime

    try:
        parsed = onnx.load_model_from_string(model)
    except Exception:  # protobuf's own family
        raise _Unservable(_NO_MODEL) from None
    if _points_outside(parsed):
        raise _Unservable(_WEIGHTS_ELSEWHERE)
    del parsed
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception:  # the runtime raises its own family, unrelated to any public base class
        raise _Unservable(_NO_MODEL) from None
    if any(put.type not in _ONNX for put in session.get_inputs()):
        raise _Unservable(_NO_MODEL)
    return session


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


def _inputs(session: Any) -> list[_Triple]:
    """What the model takes: -1 stands for a free dimension."""
    return [
        (put.name, _ONNX[put.type], [size if isinstance(size, int) else -1 for size in put.shape])
        for put in session.get_inputs()
    ]


def _answer(session: Any, header: dict[str, Any], data: bytes) -> list[bytes]:
    """The frame that answers a question, in parts."""
    feeds: dict[str, Any] = {}
    start = 0
    for tensor in header["tensors"]:
        dtype = np.dtype(TYPES[tensor["datatype"]])
        end = start + math.prod(tensor["shape"]) * dtype.itemsize
        feeds[tensor["name"]] = np.frombuffer(data[start:end], dtype).reshape(tensor["shape"])
        start = end
    names = [put.name for put in session.get_outputs()]
    try:
        values = session.run(names, feeds)
        pairs = [(name, value) for name, value in zip(names, values, strict=True) if isinstance(value, np.ndarray)]
        said = [(name, _NAMES[value.dtype], value.shape) for name, value in pairs]
    except Exception:  # as above, or a dtype that cannot be sent
        return [_head({"code": _BAD_INPUT})]
    parts = [np.ascontiguousarray(value).tobytes() for _, value in pairs]
    return [head(said, sum(map(len, parts))), *parts]


def _content(descriptor: str) -> bytes:
    with open(f"/proc/self/fd/{descriptor}", "rb") as file:  # from its start, whoever read it before
        return file.read()


def _serve(questions: IO[bytes], answers: IO[bytes], model: str) -> None:
    try:
        session = _load(_content(model))
        first = head(_inputs(session), 0)
    except _Unservable as error:
        answers.write(_head({"code": error.args[0]}))
        answers.flush()
        return
    answers.write(first)
    answers.flush()
    while start := questions.read(HEAD.size):
        header_bytes, data_bytes = HEAD.unpack(start)
        header: dict[str, Any] = json.loads(questions.read(header_bytes))
        for part in _answer(session, header, questions.read(data_bytes)):
            answers.write(part)
        answers.flush()


def main() -> None:
    """Serves the model in the third descriptor."""
    questions, answers, model = sys.argv[1:]
    with open(int(questions), "rb") as asked, open(int(answers), "wb") as said:
        _serve(asked, said, model)


if __name__ == "__main__":
    main()
