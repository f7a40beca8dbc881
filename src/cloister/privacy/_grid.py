"""The integers that gradients are rounded to: what one example can change in their sum, exactly.

The noise has σ = 2^24 steps, always; the step follows from it. With the sensitivity ``Δ = 2^24 / noise multiplier`` in
steps, a step is ``clip / Δ``. So one table of noise serves every clip, also one that is adapted while training, and
what is to be shown is one thing: each example's integer vector has a norm of at most Δ.

*Proof.* Let r be an example's gradient, P its size, and n the norm that was computed of it, with
``n² ≥ |r|² (1-2^-18)`` as the kernels guarantee; so ``n ≥ |r| (1-2^-18)``. The example's factor is at most ``R/n``,
within ``1 ± 2^-50`` for its own rounding. Scaling in float32, with the factor rounded to float32 too, changes each
entry by at most ``1 ± 2^-22``. So before it is rounded to integers the vector has a norm of at most

    R (1 + 2^-22) (1 + 2^-50) / (1 - 2^-18)  <  R / (1 - 2^-17).

Rounding to the nearest changes each entry by at most 1/2, the vector by at most ``√P/2``. Hence with

    R = (Δ - √P/2) (1 - 2^-17)

the integers' norm is at most Δ. For groups of parameters that are clipped one by one, the same holds for each with its
share of Δ and its own P, if the squares of the shares sum to 1 at most. □

The step's own rounding to a float is not in the proof: it changes what the released numbers mean, by 2^-53, never how
much an example counts.

A norm that is infinite or no number has the factor 0. An example with such a norm has entries that are no number, and
zero times these is no number either: who sums must turn a row with factor 0 into zeros, not multiply.

>>> grid = Grid(clip=1, dimension=1_000_000, noise_multiplier="1.1")
>>> grid.factors(torch.tensor([4.0, 0.25, 0.0, math.nan], dtype=torch.float64)).mul(float(grid.step)).tolist()
[0.4999797..., 1.0, 1.0, 0.0]
"""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import torch
from torch import Tensor

from cloister.errors import InputError

__all__ = ["GRID_SIGMA", "Grid", "Real"]

Real = int | float | str | Decimal | Fraction
"""A number that is taken exactly: of a float the value it has, of text the decimal or the fraction."""

GRID_SIGMA = Fraction(1 << 24)
"""The noise's σ, in steps."""

_SAFETY = 1 - Fraction(1, 1 << 17)
_LEAST_MULTIPLIER = Fraction(1, 8)  # then Δ is 2^27: beyond it kernels take an entry for what went wrong, and drop it
_GREATEST_LOSS = Fraction(1, 8)


class Grid:
    """Where the sum of clipped gradients lives. Public.

    Args:
        clip: The greatest norm that an example's gradient keeps, above 0.
        dimension: P, entries of a gradient.
        noise_multiplier: The noise's standard deviation over ``clip``, 1/8 or more.

    Attributes:
        sigma: Of the noise, in steps: 2^24.
        sensitivity: Δ, the greatest norm of an example's integers, in steps.
        step: What 1 is worth, in the gradient's unit.
        noise_multiplier: σ/Δ, exactly what was given.

    Raises:
        InputError: 2810 when a number is out of range, or rounding would cost more than an eighth of the clip: for so
            large a multiplier and dimension the grid is too coarse.
    """

    def __init__(self, *, clip: Real, dimension: int, noise_multiplier: Real) -> None:
        self.clip, self.noise_multiplier = _real(clip), _real(noise_multiplier)
        self.dimension, self.sigma = dimension, GRID_SIGMA
        if self.clip <= 0:
            raise InputError(2810, "no norm to clip to", expected="a clip above 0", got=clip)
        if self.noise_multiplier < _LEAST_MULTIPLIER:
            got = noise_multiplier
            raise InputError(2810, "next to no noise", expected="a noise multiplier of 1/8 or more", got=got)
        self.sensitivity = self.sigma / self.noise_multiplier
        self.step = self.clip / self.sensitivity
        self.radius()

    def radius(self, *, dimension: int | None = None, share: Fraction = Fraction(1)) -> float:
        """R: the norm, in steps, that a gradient is scaled down to before it is rounded; itself rounded down.

        Args:
            dimension: Entries of a group of parameters that is clipped by itself; all when left out.
            share: The group's clip over the whole, rounded down. The squares of all shares sum to 1 at most.

        Raises:
            InputError: 2810 as for the grid.
        """
        size = self.dimension if dimension is None else dimension
        if size < 1 or not 0 < share <= 1:
            raise InputError(2810, "no gradient", expected="a dimension of 1 or more and a share up to 1", got=size)
        own = self.sensitivity * share
        lost = Fraction(math.isqrt(size << 40) + 1, 1 << 21)  # above √P/2
        if lost > own * _GREATEST_LOSS:
            raise InputError(
                2810,
                "the grid is too coarse for this many parameters",
                expected=f"√P/2 below {float(own * _GREATEST_LOSS):.0f} steps",
                got=f"{float(lost):.0f}",
                hint="use less noise with a smaller sampling probability, or train fewer parameters",
            )
        return math.nextafter(float((own - lost) * _SAFETY), 0)

    def factors(self, squares: Tensor, *, dimension: int | None = None, share: Fraction = Fraction(1)) -> Tensor:
        """What each gradient is multiplied by, before it is rounded: ``min(1/step, R/norm)``.

        Args:
            squares: ``(B,)`` float64: squared norms, below the true ones by at most a relative 2^-18.
            dimension: As for :meth:`radius`.
            share: As for :meth:`radius`.

        Returns:
            ``(B,)`` float64. 0 where a norm is infinite or no number: such a row's entries are to be dropped.
        """
        if squares.dtype != torch.float64:
            raise InputError(2810, expected="squared norms in float64", got=squares.dtype)
        whole = torch.full_like(squares, float(1 / self.step))
        scaled = torch.minimum(self.radius(dimension=dimension, share=share) / squares.sqrt(), whole)
        return torch.where(torch.isfinite(squares), scaled, torch.zeros_like(scaled))


def _real(value: Real) -> Fraction:
    try:
        return Fraction(value)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        raise InputError(2810, "not a number", expected="a finite number", got=value) from None
