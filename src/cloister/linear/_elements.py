"""Elements of the field F_p in compiled functions, p = (2^120 - 51)·2^64 + 1.

An element is a tuple of three ``uint64``, the lowest first: an integer in ``[0, p)``, not in Montgomery's form. For

    2^184 = 51·2^64 - 1  (mod p),

so what lies above 184 bits is brought back by one small product a word, which costs what Montgomery's reduction costs
for this p, and integers need no conversion: shares are opened, shifted and encoded as they are.

Rules:

* Every result is the one representative in ``[0, p)``, except the *loose* ones of a transform, which are below 2p.
* No comparison decides anything: whether p must be taken off is a bit of a sum, and that bit is multiplied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils

from cloister.linear._words import Natural, instruction

__all__ = [
    "WORDS",
    "P",
    "accumulate",
    "add",
    "butterfly",
    "centred",
    "excess",
    "inverse_butterfly",
    "multiply",
    "reduced",
    "reduced_sum",
    "subtract",
]

P = (2**120 - 51) * 2**64 + 1
WORDS = 3

_BITS = 184
_FOLD = 51
_LOOSE = 2 * P - 1
_ANY = 2 ** (64 * WORDS) - 1
_SUM_WORDS = 7
_SUM = 2**400 - 1  # of 2^32 products

_ELEMENT = types.UniTuple(types.uint64, WORDS)
_TOTAL = types.UniTuple(types.uint64, _SUM_WORDS)
_PAIR = types.UniTuple(_ELEMENT, 2)


def _folded(x: Natural) -> Natural:
    """The same modulo p, and 114 bits shorter, down to 184 bits and little more."""
    high = x >> _BITS
    return x.low(_BITS) + _times_fold(high)


def _times_fold(x: Natural) -> Natural:
    """``x · (51·2^64 - 1)``."""
    return ((x * _FOLD) << 64) - x


def _loose(x: Natural) -> Natural:
    while x.most > _LOOSE:
        x = _folded(x)
    return x


def _canonical(x: Natural) -> Natural:
    """The representative in ``[0, p)``: ``x + 2^184 - p`` reaches 2^184 exactly where x reaches p."""
    while x.most >= 2 * P:
        x = _folded(x)
    quotient = (x + (2**_BITS - P)) >> _BITS
    return (x + _times_fold(quotient)).low(_BITS)


# ---- what compiled functions call ------------------------------------------------------------------------


def _made(function: Callable[..., Any], *most: int) -> Callable[..., Any]:
    """The generator of a function of integers, given what each is at most; a tuple of integers makes nested tuples."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def packed(kind: Any, made: Any) -> Any:
            if isinstance(made, tuple):
                return context.make_tuple(builder, kind, [packed(part, x) for part, x in zip(kind, made, strict=True)])
            words = made.words(getattr(kind, "count", 1))
            return context.make_tuple(builder, kind, words) if isinstance(kind, types.UniTuple) else words[0]

        integers = [
            Natural.of(builder, cgutils.unpack_tuple(builder, arg), greatest)
            for arg, greatest in zip(args, most, strict=True)
        ]
        return packed(signature.return_type, function(*integers))

    return generate


@instruction
def add(typing: Any, a: Any, b: Any) -> Any:
    """``a + b``."""
    return _ELEMENT(_ELEMENT, _ELEMENT), _made(lambda a, b: _canonical(a + b), P - 1, P - 1)


@instruction
def subtract(typing: Any, a: Any, b: Any) -> Any:
    """``a - b``."""
    return _ELEMENT(_ELEMENT, _ELEMENT), _made(lambda a, b: _canonical(a + P - b), P - 1, P - 1)


@instruction
def multiply(typing: Any, a: Any, b: Any) -> Any:
    """``a · b``."""
    return _ELEMENT(_ELEMENT, _ELEMENT), _made(lambda a, b: _canonical(a * b), P - 1, P - 1)


@instruction
def reduced(typing: Any, a: Any) -> Any:
    """The element that any three words stand for modulo p."""
    return _ELEMENT(_ELEMENT), _made(_canonical, _ANY)


@instruction
def centred(typing: Any, a: Any) -> Any:
    """The representative in ``[-(p-1)/2, (p-1)/2]``, as three words in two's complement."""

    def made(a: Natural) -> Natural:
        upper = (a + (2**_BITS - 1 - P // 2)) >> _BITS  # 1 above (p-1)/2
        return (a + 2**192 - upper * P).low(192)

    return _ELEMENT(_ELEMENT), _made(made, P - 1)


@instruction
def excess(typing: Any, a: Any) -> Any:
    """1 where a value below 2^184 is p or more, else 0."""
    return types.uint64(_ELEMENT), _made(lambda a: (a + (2**_BITS - P)) >> _BITS, 2**_BITS - 1)


@instruction
def accumulate(typing: Any, total: Any, a: Any, b: Any) -> Any:
    """``total + a · b`` without reduction: seven words hold 2^32 products."""
    return _TOTAL(_TOTAL, _ELEMENT, _ELEMENT), _made(lambda total, a, b: total + a * b, _SUM, P - 1, P - 1)


@instruction
def reduced_sum(typing: Any, total: Any) -> Any:
    """The element that an accumulated total is."""
    return _ELEMENT(_TOTAL), _made(_canonical, _SUM)


@instruction
def butterfly(typing: Any, u: Any, v: Any, w: Any) -> Any:
    """``(u + v·w, u - v·w)``, loose, of loose u and v."""

    def made(u: Natural, v: Natural, w: Natural) -> tuple[Natural, Natural]:
        turned = _loose(v * w)
        return _loose(u + turned), _loose(u + 2 * P - turned)

    return _PAIR(_ELEMENT, _ELEMENT, _ELEMENT), _made(made, _LOOSE, _LOOSE, P - 1)


@instruction
def inverse_butterfly(typing: Any, u: Any, v: Any, w: Any) -> Any:
    """``(u + v, (u - v)·w)``, loose, of loose u and v."""

    def made(u: Natural, v: Natural, w: Natural) -> tuple[Natural, Natural]:
        return _loose(u + v), _loose((u + 2 * P - v) * w)

    return _PAIR(_ELEMENT, _ELEMENT, _ELEMENT), _made(made, _LOOSE, _LOOSE, P - 1)
