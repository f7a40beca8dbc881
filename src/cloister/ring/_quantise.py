"""From fp32 to hidden integers: a power-of-two scale, a rounding, a mask, in one pass over memory.

An integer of b bits is ``clip(floor(value / 2^exponent + u))``. The exponent is

* *dynamic*, as in Goten: with ``θ = floor(log2 max|value|)`` it is ``θ - (b - 2)``, so that the greatest magnitude
  takes all b bits. One number a tensor, or one a place along an axis; costs a read of the tensor unless the maximum is
  given;
* *static*, as in Slalom: chosen once for a layer, the same for all inputs. Costs nothing; what does not fit is clipped
  and counted.

and u is a half (to the nearest) or uniform (stochastic, unbiased). A zero tensor gets exponent 0. Exponents below -100
are raised to it: what is smaller than 2^-101 rounds like any other small value. Infinite values and values that are no
number have no integer, and are refused.

A tensor is hidden as soon as it is rounded: :func:`hide` reads the values once and hands out nothing that the ledger
has not bound to the integers.

>>> import torch
>>> exponent_for(1.0, 8), exponent_for(0.99, 8)
(-6, -7)
>>> quantise(torch.tensor([1.0, -0.5, 0.004])).values
tensor([ 64, -32,   0], dtype=torch.int8)

*Source*: L. K. L. Ng et al., "Goten: GPU-Outsourcing Trusted Execution of Neural Network Training", AAAI 2021, dynamic
quantisation; F. Tramèr and D. Boneh, "Slalom", ICLR 2019, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from cloister.errors import InputError
from cloister.ring._fused import EXPONENTS, mask_words, maximum, quantise_words
from cloister.ring._keystream import RoundingStream
from cloister.ring._ledger import THE_MASK, MaskLedger
from cloister.ring._words import Guarded, Mask, Masked, Quantised

__all__ = ["Hidden", "exponent_for", "hide", "quantise", "remask"]

Masks = Sequence[tuple[Mask, Mapping[str, int]]]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Hidden(Guarded):
    """A tensor, and what may be sent of it. The tensor is secret.

    Attributes:
        quantised: The integers; keep them for as long as messages of them are made.
        masked: One for each worker that is sent words, in the order of masks and workers.
    """

    quantised: Quantised
    masked: tuple[Masked, ...]

    def __repr__(self) -> str:
        return f"<Hidden {self.quantised.shape} for {', '.join(masked.worker for masked in self.masked)}>"


def exponent_for(most: float, bits: int) -> int:
    """The exponent by which the magnitude ``most`` takes all of ``bits``: ``most / 2^exponent < 2^(bits-1)``.

    Args:
        most: Greatest magnitude, 0 or more. Secret, and so is what follows from it.
        bits: 2 to 8, the sign among them.

    Returns:
        ``floor(log2 most) - (bits - 2)``, but at least -100; 0 for 0.

    Raises:
        InputError: 2703 when the magnitude is infinite or no number; 2705 for another number of bits.
    """
    if not 2 <= bits <= 8:
        raise InputError(2705, expected="2 to 8 bits", got=bits)
    if not 0 <= most < math.inf:
        raise InputError(2703)
    if most == 0:
        return 0
    return max(math.frexp(most)[1] - 1 - (bits - 2), EXPONENTS[0])


def quantise(
    values: Tensor,
    *,
    bits: int = 8,
    axis: int | None = None,
    exponent: int | Sequence[int] | None = None,
    most: Tensor | float | None = None,
    rounding: RoundingStream | None = None,
) -> Quantised:
    """Rounds a tensor to integers that stay in the enclave.

    Args:
        values: float32, any shape and strides.
        bits: 2 to 8.
        axis: For an exponent a place along this axis; None for one.
        exponent: A static scale: one number, or with an axis one a place. Left out, it follows from the values.
        most: Their greatest magnitude, or with an axis one a place, where it is known already: saves a read. What
            exceeds it is clipped.
        rounding: Stochastic by these bytes; to the nearest, a half upwards, if left out.

    Raises:
        InputError: 2702 when a dtype, shape or axis does not fit; 2703 when a value is infinite or no number; 2705 when
            a number is outside its range.
    """
    return _pass(values, (), bits, axis, exponent, most, rounding)[0]


def hide(
    values: Tensor,
    *,
    ledger: MaskLedger,
    masks: Masks,
    bits: int = 8,
    axis: int | None = None,
    exponent: int | Sequence[int] | None = None,
    most: Tensor | float | None = None,
    rounding: RoundingStream | None = None,
) -> Hidden:
    """Rounds a tensor and masks it, in one pass; binds the masks to it.

    Args:
        values: float32, any shape and strides.
        ledger: Of this start.
        masks: Fresh masks of the tensor's shape, each with the workers, by name, and the odd point that each is sent,
            or :data:`THE_MASK` for one that gets the mask alone. At most two masks and points that differ: ``shared3``
            is one mask at 1 and -1, ``shared5`` two at -1.
        bits: 2 to 8.
        axis: As for :func:`quantise`.
        exponent: As for :func:`quantise`.
        most: As for :func:`quantise`.
        rounding: As for :func:`quantise`.

    Raises:
        InputError: As :func:`quantise`; 2705 for a third mask or point.
        InternalError: 9701 when the ledger refuses; nothing is handed out then.
    """
    sent = _sent(masks)
    quantised, words = _pass(values, sent, bits, axis, exponent, most, rounding)
    for mask, points in masks:  # after the pass: the integers are written, their version is final
        ledger.bind(mask, quantised.values, points)
    return Hidden(quantised, _addressed(masks, sent, words))


def remask(quantised: Quantised, *, ledger: MaskLedger, masks: Masks) -> Hidden:
    """Masks integers that are there already, under other masks, or for other workers.

    Args:
        quantised: The integers.
        ledger: Of this start.
        masks: As for :func:`hide`.

    Raises:
        InputError: 2702 when a mask has another shape; 2705 for a third mask or point.
        InternalError: 9701 when the ledger refuses, before a word is made.
    """
    sent = _sent(masks)
    for mask, points in masks:
        ledger.bind(mask, quantised.values, points)
    words = mask_words(quantised.values, [(mask.words, point) for mask, point in sent])
    return Hidden(quantised, _addressed(masks, sent, words))


def _sent(masks: Masks) -> list[tuple[Mask, int]]:
    """The masked tensors that are to be made: workers at one point of one mask are sent the same."""
    sent = {(mask.id, point): mask for mask, points in masks for point in points.values() if point != THE_MASK}
    return [(mask, point) for (_, point), mask in sent.items()]


def _addressed(masks: Masks, sent: list[tuple[Mask, int]], words: Sequence[Tensor]) -> tuple[Masked, ...]:
    made = {(mask.id, point): tensor for (mask, point), tensor in zip(sent, words, strict=True)}
    return tuple(
        Masked(made[mask.id, point], worker, mask.id, point)
        for mask, points in masks
        for worker, point in points.items()
        if point != THE_MASK
    )


def _pass(
    values: Tensor,
    sent: list[tuple[Mask, int]] | tuple[()],
    bits: int,
    axis: int | None,
    exponent: int | Sequence[int] | None,
    most: Tensor | float | None,
    rounding: RoundingStream | None,
) -> tuple[Quantised, tuple[Tensor, ...]]:
    if axis is not None:
        if not -values.ndim <= axis < values.ndim:
            raise InputError(2702, expected=f"an axis of {tuple(values.shape)}", got=axis)
        axis = axis % values.ndim - values.ndim
    if exponent is None:
        scale = _dynamic(values, bits, axis, maximum(values, axis) if most is None else most)
    else:
        scale = exponent if isinstance(exponent, int) else tuple(exponent)
    noise = None if rounding is None else rounding.next(values.numel())
    made = quantise_words(
        values,
        scale,
        bits=bits,
        axis=axis,
        noise=noise,
        masks=[(mask.words, point) for mask, point in sent],
    )
    if made.unbounded:
        raise InputError(2703)
    return Quantised(made.values, scale, bits, axis, made.clipped), made.masked


def _dynamic(values: Tensor, bits: int, axis: int | None, most: Tensor | float) -> int | tuple[int, ...]:
    found = most.tolist() if isinstance(most, Tensor) else most
    wanted = None if axis is None else values.shape[axis]
    if wanted != (len(found) if isinstance(found, list) else None):
        raise InputError(2702, expected="one greatest magnitude, or one a place along the axis", got=f"axis {axis}")
    if isinstance(found, list):
        return tuple(exponent_for(one, bits) for one in found)
    return exponent_for(found, bits)
