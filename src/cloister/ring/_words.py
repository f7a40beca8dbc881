"""Tensors that are plain, masked or shared: different types, so that none is taken for another.

============  ================================================  ====================================
type          what it holds                                     who may see it
============  ================================================  ====================================
`Quantised`   ``int8`` integers and a power-of-two scale        the enclave
`Mask`        fresh uniform words, under an id                  the enclave; a dealer expands its own
`Masked`      ``q + point · mask`` modulo 2^32                  the one worker it is addressed to
`Share`       one of two words that add up to ``q``             the one worker it is addressed to
============  ================================================  ====================================

Rules:

* There is no conversion and no arithmetic between them: what a type holds is read by name, so that every such place
  can be found by searching for it.
* The secret ones (`Quantised`, `Mask`, and `MaskKey` of the keystream) show no value in ``repr`` and refuse ``==``,
  hashing, pickling and copying. Nobody saves a mask: it is drawn anew.
* What is addressed to one worker is handed out to that worker only (9701).

>>> import torch
>>> Quantised(torch.tensor([1, -2], dtype=torch.int8), exponent=-6, bits=8)
<Quantised (2,) of 8 bits>
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from cloister.errors import InputError, InternalError

__all__ = ["Guarded", "Mask", "MaskId", "Masked", "Quantised", "Share"]


class Guarded:
    """What must not leave by accident: no comparison, no hash, no pickle, no copy."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        raise TypeError(f"a {type(self).__name__} is not compared")

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is neither pickled nor copied")

    def __getstate__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} has no state to be saved")


class MaskId(NamedTuple):
    """Which mask: public, since without its role's key it says nothing.

    Attributes:
        role: Whose key expands it.
        counter: 64 bits; a role uses each value once.
    """

    role: str
    counter: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Quantised(Guarded):
    """Integers and the scale that they stand for: ``value = integer · 2^exponent``. Secret.

    Attributes:
        values: ``int8``, each in ``[-2^(bits-1), 2^(bits-1) - 1]``, contiguous.
        exponent: One for the tensor, or one for each place along ``axis``.
        bits: 2 to 8. Public.
        axis: The axis of the exponents, counted from the end; None for one exponent.
        clipped: How many values lay outside what ``bits`` hold.

    Raises:
        InputError: 2702 when dtype, bits, axis and exponents do not fit each other.
    """

    values: Tensor
    exponent: int | tuple[int, ...]
    bits: int
    axis: int | None = None
    clipped: int = 0

    def __post_init__(self) -> None:
        if self.axis is None:
            fits = isinstance(self.exponent, int)
        else:
            within = -self.values.ndim <= self.axis < 0
            fits = within and isinstance(self.exponent, tuple) and len(self.exponent) == self.values.shape[self.axis]
        if not fits or self.values.dtype != torch.int8 or not 2 <= self.bits <= 8:
            raise InputError(
                2702,
                expected="int8 integers of 2 to 8 bits, and one exponent or one for each place along an axis",
                got=f"{self.values.dtype} {tuple(self.values.shape)}, {self.bits} bits, axis {self.axis}",
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor. Public."""
        return tuple(self.values.shape)

    def __repr__(self) -> str:
        return f"<Quantised {self.shape} of {self.bits} bits>"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Mask(Guarded):
    """Uniform words for one tensor. Secret; made by a :class:`~cloister.ring._keystream.MaskSource` only.

    Attributes:
        id: Role and counter.
        words: ``int32``, independent and uniform over Z_2^32, in the tensor's shape.
    """

    id: MaskId
    words: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor. Public."""
        return tuple(self.words.shape)

    def __repr__(self) -> str:
        return f"<Mask {self.id.role}:{self.id.counter} {self.shape}>"


class _Addressed(Guarded):
    __slots__ = ()

    worker: str
    words: Tensor

    def words_for(self, worker: str) -> Tensor:
        """The ``int32`` words, to be sent to ``worker``.

        Raises:
            InternalError: 9701 when they are another worker's: two points of one mask cancel it.
        """
        if worker != self.worker:
            raise InternalError(9701, "words for one worker were about to be sent to another")
        return self.words


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Masked(_Addressed):
    """``q + point · mask`` modulo 2^32: uniform and independent of ``q`` for whoever does not know the mask.

    Attributes:
        words: ``int32``; send what :meth:`words_for` gives.
        worker: Who may see them.
        mask: Id of the mask. Public.
        point: Odd, so that multiplying by it permutes the words. Public.
    """

    words: Tensor
    worker: str
    mask: MaskId
    point: int

    def __repr__(self) -> str:
        return f"<Masked {tuple(self.words.shape)} by {self.mask.role}:{self.mask.counter} for {self.worker}>"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Share(_Addressed):
    """One of two additive shares: the mask alone, or ``q`` minus the mask. Each is uniform; together they are ``q``.

    Attributes:
        words: ``int32``; send what :meth:`words_for` gives.
        worker: Who may see them.
        mask: Id of the mask. Public.
        index: 0 for the mask alone, 1 for the rest. Public.
    """

    words: Tensor
    worker: str
    mask: MaskId
    index: int

    def __repr__(self) -> str:
        mask = f"{self.mask.role}:{self.mask.counter}"
        return f"<Share {self.index} {tuple(self.words.shape)} of {mask} for {self.worker}>"
