"""Arrays over the field F_p, p = (2^120 - 51)·2^64 + 1: 184 bits, and 2^64 divides p - 1.

An array of elements is ``(…, 3)`` uint64: the words of an integer in ``[0, p)``, the lowest first. A negative integer x
is ``p - |x|``; "centred" is the representative in ``[-(p-1)/2, (p-1)/2]``. On the wire an element has 23 bytes,
little-endian, and p or more is no element.

Rules:

* Whatever makes an array gives canonical elements, and whatever takes one relies on that: values from elsewhere come
  in by :func:`from_bytes` only, which refuses others.
* Shapes and dtypes are checked before compiled code sees an address.
* No branch and no address follows from a value. Python's integers are for what is public: their arithmetic is not
  constant in time.

>>> x = from_ints([3, -1])
>>> to_ints(multiply(x, x)).tolist()
[9, 1]
>>> to_centred(add(x, from_int64(np.array([-5, 0])))).tolist()
[-2, -1]
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloister.errors import InputError
from cloister.linear import _field_kernels as kernels
from cloister.linear._elements import WORDS, P
from cloister.linear._field_kernels import Elements

__all__ = [
    "ELEMENT_BYTES",
    "Elements",
    "P",
    "add",
    "dot",
    "equal",
    "from_bytes",
    "from_int64",
    "from_ints",
    "inverse",
    "matvec",
    "multiply",
    "negate",
    "require_elements",
    "subtract",
    "to_bytes",
    "to_centred",
    "to_ints",
    "unpacked",
]

ELEMENT_BYTES = 23
_WORD_BYTES = 8 * WORDS
_MOST_TERMS = 1 << 32  # of a sum that is reduced once
_Word, _Signed = np.uint64, np.int64

# ---- in and out ------------------------------------------------------------------------------------------


def from_ints(values: Any) -> Elements:
    """Any integers modulo p, of a number, an array of objects or nested sequences. Not constant in time."""
    array = np.asarray(values, dtype=object)
    words = b"".join((int(value) % P).to_bytes(_WORD_BYTES, "little") for value in array.ravel())
    return np.frombuffer(words, "<u8").astype(_Word).reshape(*array.shape, WORDS)


def to_ints(x: Elements) -> NDArray[np.object_]:
    """Integers in ``[0, p)``, in the shape without the last axis. For public values."""
    require_elements(x)
    words = np.ascontiguousarray(x, "<u8").tobytes()
    starts = range(0, len(words), _WORD_BYTES)
    values = [int.from_bytes(words[start : start + _WORD_BYTES], "little") for start in starts]
    return np.array(values, object).reshape(x.shape[:-1])


def to_centred(x: Elements) -> NDArray[np.object_]:
    """Integers in ``[-(p-1)/2, (p-1)/2]``. For public values."""
    values = to_ints(x)
    return np.where(values > P // 2, values - P, values)


def from_int64(values: ArrayLike) -> Elements:
    """Signed integers of 64 bits or fewer as elements, in constant time: ``(…)`` to ``(…, 3)``.

    Raises:
        InputError: 2911 when they are of another kind.
    """
    array = np.asarray(values)
    if array.dtype.kind != "i":
        raise InputError(2911, "not signed integers", expected="int8 to int64", got=str(array.dtype))
    out = np.empty((*array.shape, WORDS), _Word)
    kernels.embedded(np.ascontiguousarray(array, _Signed).reshape(-1), out.reshape(-1, WORDS))
    return out


def from_bytes(data: bytes, shape: tuple[int, ...]) -> Elements:
    """Elements of 23 bytes each, as a peer sent them.

    Raises:
        InputError: 2910 when there are more or fewer bytes than ``shape`` needs, or a value is p or more.
    """
    count = math.prod(shape)
    if min(shape, default=0) < 0 or len(data) != ELEMENT_BYTES * count:
        raise InputError(2910, expected=f"{max(0, ELEMENT_BYTES * count)} bytes", got=f"{len(data)} bytes")
    words = unpacked(np.frombuffer(data, np.uint8), count)
    if kernels.beyond(words):
        raise InputError(2910, "a value is not below p", expected="values below the field's prime")
    return words.reshape(*shape, WORDS)


def unpacked(data: NDArray[np.uint8], count: int) -> Elements:
    """The words of ``count`` values of 23 bytes, which may be p or more: no elements yet."""
    padded = np.zeros((count, _WORD_BYTES), np.uint8)
    padded[:, :ELEMENT_BYTES] = data.reshape(count, ELEMENT_BYTES)
    return padded.view("<u8").astype(_Word, copy=False)


def to_bytes(x: Elements) -> bytes:
    """23 bytes an element, little-endian, in the order of the array."""
    flat = np.ascontiguousarray(_flat(x), "<u8")
    return flat.view(np.uint8)[:, :ELEMENT_BYTES].tobytes()


# ---- entry by entry --------------------------------------------------------------------------------------


def add(a: Elements, b: Elements) -> Elements:
    """``a + b``; leading axes are broadcast. Raises 2911 where they cannot be."""
    return _entrywise(kernels.added, a, b)


def subtract(a: Elements, b: Elements) -> Elements:
    """``a - b``; leading axes are broadcast. Raises 2911 where they cannot be."""
    return _entrywise(kernels.subtracted, a, b)


def negate(a: Elements) -> Elements:
    """``-a``."""
    return subtract(np.zeros(WORDS, _Word), a)


def multiply(a: Elements, b: Elements) -> Elements:
    """``a · b``; leading axes are broadcast. Raises 2911 where they cannot be."""
    return _entrywise(kernels.multiplied, a, b)


def inverse(a: Elements) -> Elements:
    """``1 / a``, and 0 of 0: one Fermat inverse for all, and three products an element."""
    out = np.empty(a.shape, _Word)
    table = np.empty((kernels.POWERS, WORDS), _Word)
    kernels.inverted(_flat(a), kernels.INVERSION, table, out.reshape(-1, WORDS))
    return out


def equal(a: Elements, b: Elements) -> bool:
    """Whether all are equal, in a time that depends on the shapes alone. Raises 2911 where those differ."""
    require_elements(a)
    require_elements(b)
    if a.shape != b.shape:
        raise InputError(2911, "shapes differ", expected=a.shape, got=b.shape)
    return hmac.compare_digest(a.tobytes(), b.tobytes())


# ---- sums ------------------------------------------------------------------------------------------------


def dot(a: Elements, b: Elements) -> Elements:
    """``Σ_k a[…, k] · b[…, k]``, reduced once: ``(…, K, 3)`` twice, leading axes broadcast, to ``(…, 3)``.

    Raises:
        InputError: 2911 when shapes do not fit.
    """
    left, right = _together(a, b, 2)
    out = np.empty((*left.shape[:-2], WORDS), _Word)
    rows = out.size // WORDS
    kernels.dots(_rows(left, rows), _rows(right, rows), out.reshape(rows, WORDS))
    return out


def matvec(matrix: Elements, vector: Elements) -> Elements:
    """``Σ_k matrix[i, k] · vector[k]``: ``(R, K, 3)`` and ``(K, 3)`` to ``(R, 3)``.

    Raises:
        InputError: 2911 when shapes do not fit.
    """
    require_elements(matrix)
    require_elements(vector)
    if matrix.ndim != 3 or vector.shape != matrix.shape[1:]:
        raise InputError(
            2911, "not a matrix and its vector", expected="(R, K, 3) and (K, 3)", got=(matrix.shape, vector.shape)
        )
    _require_terms(matrix)
    out = np.empty((matrix.shape[0], WORDS), _Word)
    kernels.dots(np.ascontiguousarray(matrix), np.ascontiguousarray(vector[None]), out)
    return out


# ---- checks ----------------------------------------------------------------------------------------------


def require_elements(x: Elements) -> None:
    """Returns for an array of elements.

    Raises:
        InputError: 2911 for another dtype or last axis.
    """
    if x.dtype != _Word or x.ndim < 1 or x.shape[-1] != WORDS:
        raise InputError(2911, "not an array of field elements", expected="(…, 3) uint64", got=f"{x.shape} {x.dtype}")


def _flat(x: Elements) -> Elements:
    require_elements(x)
    return np.ascontiguousarray(x).reshape(-1, WORDS)


def _together(a: Elements, b: Elements, axes: int) -> tuple[Elements, Elements]:
    """Both with the same leading axes; the last ``axes`` are equal already."""
    require_elements(a)
    require_elements(b)
    if min(a.ndim, b.ndim) >= axes and a.shape[-axes:] == b.shape[-axes:]:
        with suppress(ValueError):
            shape = np.broadcast_shapes(a.shape, b.shape)
            return np.broadcast_to(a, shape), np.broadcast_to(b, shape)
    raise InputError(2911, "arrays do not fit each other", expected=a.shape, got=b.shape)


def _rows(x: Elements, rows: int) -> Elements:
    _require_terms(x)
    return np.ascontiguousarray(x).reshape(rows, *x.shape[-2:])


def _require_terms(x: Elements) -> None:
    if x.shape[-2] > _MOST_TERMS:
        raise InputError(2911, "too long a sum", expected=f"at most {_MOST_TERMS} terms", got=x.shape[-2])


def _entrywise(kernel: Callable[..., Any], a: Elements, b: Elements) -> Elements:
    left, right = _together(a, b, 1)
    out = np.empty(left.shape, _Word)
    kernel(_flat(left), _flat(right), out.reshape(-1, WORDS))
    return out
