"""What an enclave says to a worker: four verbs over numbered tensors, and nothing about models.

A worker is a coprocessor for ring arithmetic. It keeps tensors under handles, expands keystreams, multiplies, forgets.
Layers, names, scales, roles in training, losses: none of it is in a command, because a worker has no use for it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cloister.ring import Conv2d, MatMul, Product
from cloister.wire import Message

__all__ = ["MAX_ELEMENTS", "Command", "Compute", "Cut", "Drop", "Expand", "Form", "Put", "Stream", "Term", "form_of"]

MAX_ELEMENTS = 1 << 31  # 8 GiB of words: a tensor that no step of training sends, refused before memory is asked for
_MAX_TERMS = 4
_MAX_DROPPED = 4096

Stream = Literal["x", "w", "y", "share", "pad"]
"""Which of an enclave's keys a keystream comes from: one for each tensor of the form, one for shares, one for pads."""

Handle = Annotated[int, Field(ge=0, lt=1 << 53)]
Counter = Annotated[int, Field(ge=0, lt=1 << 53)]
Size = Annotated[int, Field(ge=1, le=MAX_ELEMENTS)]
Dimensions = Annotated[tuple[Size, ...], Field(min_length=2, max_length=8)]
Small = Annotated[int, Field(ge=0, le=1 << 20)]
Step = Annotated[int, Field(ge=1, le=1 << 20)]
Pair = tuple[Small, Small]
Steps = tuple[Step, Step]


class Form(Message):
    """A product, as it travels: geometry, role and the shapes of the layer's input and weight."""

    operator: Literal["matmul", "conv2d"]
    role: Literal["forward", "input_gradient", "weight_gradient"]
    x: Dimensions
    w: Dimensions
    stride: Steps = (1, 1)
    padding: Pair = (0, 0)
    dilation: Steps = (1, 1)
    groups: Annotated[int, Field(ge=1, le=1 << 20)] = 1

    def product(self) -> Product:
        """The product itself. Raises :class:`InputError` 2700 when shapes do not fit."""
        if self.operator == "matmul":
            return Product(MatMul(), self.role, x=self.x, w=self.w)
        geometry = Conv2d(self.stride, self.padding, self.dilation, self.groups)
        return Product(geometry, self.role, x=self.x, w=self.w)


def form_of(product: Product) -> Form:
    """How a product travels."""
    operator = product.operator
    if isinstance(operator, MatMul):
        return Form(operator="matmul", role=product.role, x=product.x, w=product.w)
    return Form(
        operator="conv2d",
        role=product.role,
        x=product.x,
        w=product.w,
        stride=operator.stride,
        padding=operator.padding,
        dilation=operator.dilation,
        groups=operator.groups,
    )


class Put(Message):
    """Keep the tensor that follows."""

    verb: Literal["put"] = "put"
    handle: Handle
    dtype: Literal["int8", "int32"]
    shape: Dimensions


class Expand(Message):
    """Keep a tensor of keystream words: mask number ``counter`` of a stream whose key the worker was given."""

    verb: Literal["expand"] = "expand"
    handle: Handle
    stream: Stream
    counter: Counter
    shape: Dimensions


class Term(Message):
    """One summand: the product of two kept tensors, added or subtracted."""

    sign: Literal[1, -1]
    left: Handle
    right: Handle


class Cut(Message):
    """A slice of an operand along one axis, counted from the end: ``(axis, start, stop)``."""

    axis: Annotated[int, Field(ge=-8, le=-1)]
    start: Annotated[int, Field(ge=0)]
    stop: Annotated[int, Field(ge=1)]


class Compute(Message):
    """Answer the sum of the terms, plus a pad where one is named: ``int32`` words of the form's result shape."""

    verb: Literal["compute"] = "compute"
    form: Form
    terms: Annotated[tuple[Term, ...], Field(min_length=1, max_length=_MAX_TERMS)]
    left: Cut | None = None
    right: Cut | None = None
    pad: Counter | None = None


class Drop(Message):
    """Forget tensors."""

    verb: Literal["drop"] = "drop"
    handles: Annotated[tuple[Handle, ...], Field(min_length=1, max_length=_MAX_DROPPED)]


Command = Annotated[Put | Expand | Compute | Drop, Field(discriminator="verb")]
