"""A vector register as a value in compiled functions: ``WIDTH`` floats that are added and multiplied lane by lane.

numba makes vectors of loops that treat every element by itself, but not of sums, which it may not reorder. Here the
lanes are sums beside each other, in the order that is written down; so a result depends on the width, on nothing else.

Addresses are integers and are not checked; they need no alignment. ``some`` is None for all lanes, or how many of the
first ones there are: the others are read as zeros and not written. Which of the two is a matter of types, so that a
function that is given None has no masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from cloister.privacy._vectors import WIDTH

__all__ = [
    "Register",
    "accumulate",
    "add",
    "kept",
    "load",
    "multiply",
    "multiply_add",
    "only",
    "splat",
    "store",
    "subtract",
    "total",
]

_F32, _F64, _I1, _I32, _I64 = ir.FloatType(), ir.DoubleType(), ir.IntType(1), ir.IntType(32), ir.IntType(64)
_FLOATS, _DOUBLES = ir.VectorType(_F32, WIDTH), ir.VectorType(_F64, WIDTH)
_MASK, _LANES = ir.VectorType(_I1, WIDTH), ir.VectorType(_I32, WIDTH)


class Register(types.Type):
    """numba's type of it."""

    def __init__(self) -> None:
        super().__init__(name=f"Register({WIDTH})")


@register_model(Register)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)


_REGISTER = Register()


def _instruction(function: Callable[..., Any]) -> Callable[..., Any]:
    """For compiled functions; its first argument is numba's."""
    return intrinsic(function)


@_instruction
def splat(typing: Any, value: Any) -> Any:
    """A float32 in all lanes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, args[0], _FLOATS)

    return _REGISTER(types.float32), generate


@_instruction
def load(typing: Any, address: Any, some: Any) -> Any:
    """Adjacent floats."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], _FLOATS.as_pointer())
        if some == types.none:
            return builder.load(place, align=4)
        kind = ir.FunctionType(_FLOATS, [place.type, _I32, _MASK, _FLOATS])
        read = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{WIDTH}f32.p0")
        return builder.call(read, [place, _I32(4), _first(builder, args[1]), ir.Constant(_FLOATS, None)])

    return _REGISTER(types.int64, some), generate


@_instruction
def store(typing: Any, value: Any, address: Any, some: Any) -> Any:
    """Writes adjacent floats."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[1], _FLOATS.as_pointer())
        if some == types.none:
            builder.store(args[0], place, align=4)
        else:
            kind = ir.FunctionType(ir.VoidType(), [_FLOATS, place.type, _I32, _MASK])
            write = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.store.v{WIDTH}f32.p0")
            builder.call(write, [args[0], place, _I32(4), _first(builder, args[2])])
        return context.get_dummy_value()

    return types.void(_REGISTER, types.int64, some), generate


@_instruction
def only(typing: Any, value: Any, some: Any) -> Any:
    """The lanes that there are; zeros in the others."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if some == types.none:
            return args[0]
        return builder.select(_first(builder, args[1]), args[0], ir.Constant(_FLOATS, None))

    return _REGISTER(_REGISTER, some), generate


@_instruction
def add(typing: Any, a: Any, b: Any) -> Any:
    """``a + b``."""
    return _REGISTER(_REGISTER, _REGISTER), lambda context, builder, signature, args: builder.fadd(*args)


@_instruction
def subtract(typing: Any, a: Any, b: Any) -> Any:
    """``a - b``."""
    return _REGISTER(_REGISTER, _REGISTER), lambda context, builder, signature, args: builder.fsub(*args)


@_instruction
def multiply(typing: Any, a: Any, b: Any) -> Any:
    """``a · b``."""
    return _REGISTER(_REGISTER, _REGISTER), lambda context, builder, signature, args: builder.fmul(*args)


@_instruction
def kept(typing: Any, value: Any, by: Any) -> Any:
    """The lanes where ``by`` is above zero, or no number; zeros in the others: as a ReLU passes a gradient."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zeros = ir.Constant(_FLOATS, None)
        return builder.select(builder.fcmp_unordered(">", args[1], zeros), args[0], zeros)

    return _REGISTER(_REGISTER, _REGISTER), generate


@_instruction
def multiply_add(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """``a · b + c``, fused where the processor does so."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        fused = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{WIDTH}f32")
        return builder.call(fused, args)

    return _REGISTER(*[_REGISTER] * 3), generate


@_instruction
def total(typing: Any, value: Any) -> Any:
    """The sum of all lanes, in float64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        found = builder.fpext(args[0], _DOUBLES)
        lanes = WIDTH
        while lanes > 1:
            lanes //= 2
            halves = [
                builder.shuffle_vector(
                    found,
                    ir.Constant(found.type, ir.Undefined),
                    ir.Constant(ir.VectorType(_I32, lanes), [start + lane for lane in range(lanes)]),
                )
                for start in (0, lanes)
            ]
            found = builder.fadd(*halves)
        return builder.extract_element(found, _I32(0))

    return types.float64(_REGISTER), generate


@_instruction
def accumulate(typing: Any, value: Any, address: Any) -> Any:
    """Adds the lanes to as many float64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[1], _DOUBLES.as_pointer())
        found = builder.fadd(builder.load(place, align=8), builder.fpext(args[0], _DOUBLES))
        builder.store(found, place, align=8)
        return context.get_dummy_value()

    return types.void(_REGISTER, types.int64), generate


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, _I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_LANES, None))


def _first(builder: Any, count: Any) -> Any:
    """The mask of the first lanes."""
    lanes = ir.Constant(_LANES, list(range(WIDTH)))
    return builder.icmp_signed("<", lanes, _splat(builder, builder.trunc(count, _I32), _LANES))
