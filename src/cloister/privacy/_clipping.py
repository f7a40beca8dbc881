"""How far one example may move the sum: what its row is multiplied by.

Every way gives each example a factor for each clipping group, so that its scaled row has at most the group's bound.
The groups' bounds together are the sensitivity: the square root of the sum of their squares.

* :class:`Flat`: one group. Rows longer than the bound are shortened to it (Abadi et al. 2016).
* :class:`PerLayer`, :class:`PerBlock`: a group for every parameter's module, or for the modules under a path; each has
  the bound divided by the root of the number of groups (McMahan et al. 2018). Cheaper to bound, coarser.
* :class:`Normalise`: every row gets the bound's length, however short it was (Myelin). A gradient that is nearly
  nothing is made as long as any other, so training does not come to rest.
* :class:`Automatic`: the same with ``γ`` added to the length, which lets short rows stay short (Bu et al. 2022).
* :class:`Quantile`: flat, with a bound that follows a quantile of the lengths. How many rows were shorter is released
  with noise of its own, which is charged (Andrew et al. 2021).

>>> import torch
>>> Flat(1.0).factors(torch.tensor([[0.25, 4.0]], dtype=torch.float64), radii=[100.0], whole=100.0).tolist()
[[100.0, 50.0]]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

import torch

from cloister.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cloister.privacy._grid import Real

__all__ = ["Automatic", "Clipping", "Flat", "Normalise", "PerBlock", "PerLayer", "Quantile"]


class Clipping(Protocol):
    """A way of bounding rows.

    Attributes:
        norm: The sensitivity: what one example adds to the sum has at most this Euclidean norm.
    """

    @property
    def norm(self) -> float: ...

    def groups(self, names: Sequence[str]) -> Sequence[int]:
        """The group of each parameter, numbered from zero, by its path."""
        ...

    def factors(self, squares: Tensor, *, radii: Sequence[float], whole: float) -> Tensor:
        """What each row is multiplied by.

        Args:
            squares: ``(groups, examples)`` float64: squared norms of the rows, above 0.
            radii: Of each group, in steps of the grid: a scaled row's norm is at most this.
            whole: Steps of the grid that make 1.

        Returns:
            ``(groups, examples)`` float64, steps for each unit of the row.
        """
        ...


@dataclass(frozen=True, slots=True)
class Flat:
    """One group; rows are shortened to ``norm``, never lengthened."""

    norm: float

    def __post_init__(self) -> None:
        _require(self.norm)

    def groups(self, names: Sequence[str]) -> Sequence[int]:
        """All in one."""
        return [0] * len(names)

    def factors(self, squares: Tensor, *, radii: Sequence[float], whole: float) -> Tensor:
        """See :class:`Clipping`."""
        return _shortened(squares, radii, whole)


@dataclass(frozen=True, slots=True)
class PerLayer:
    """A group for every module that has parameters of its own."""

    norm: float

    def __post_init__(self) -> None:
        _require(self.norm)

    def groups(self, names: Sequence[str]) -> Sequence[int]:
        """By the path of the module."""
        return _numbered([name.rpartition(".")[0] for name in names])

    def factors(self, squares: Tensor, *, radii: Sequence[float], whole: float) -> Tensor:
        """See :class:`Clipping`."""
        return _shortened(squares, radii, whole)


@dataclass(frozen=True, slots=True)
class PerBlock:
    """A group for each of these paths, with all below it, and one for what is under none of them."""

    norm: float
    blocks: tuple[str, ...]

    def __post_init__(self) -> None:
        _require(self.norm)

    def groups(self, names: Sequence[str]) -> Sequence[int]:
        """By the longest path that a parameter lies under.

        Raises:
            InputError: 2851 when a path has no parameter under it.
        """
        found = [
            max((block for block in self.blocks if f"{name}.".startswith(f"{block}.")), key=len, default="")
            for name in names
        ]
        missing = sorted(set(self.blocks) - set(found))
        if missing:
            raise InputError(2851, expected="paths with trained parameters under them", got=", ".join(missing))
        return _numbered(found)

    def factors(self, squares: Tensor, *, radii: Sequence[float], whole: float) -> Tensor:
        """See :class:`Clipping`."""
        return _shortened(squares, radii, whole)


@dataclass(frozen=True, slots=True)
class Automatic:
    """One group; a row of length ``n`` becomes ``norm · n / (n + γ)`` long."""

    norm: float
    gamma: float = 0.01

    def __post_init__(self) -> None:
        _require(self.norm)
        if not 0 < self.gamma < math.inf:
            raise InputError(2850, expected="a gamma above 0", got=repr(self.gamma))

    def groups(self, names: Sequence[str]) -> Sequence[int]:
        """All in one."""
        return [0] * len(names)

    def factors(self, squares: Tensor, *, radii: Sequence[float], whole: float) -> Tensor:
        """See :class:`Clipping`."""
        return _column(radii, squares) / (squares.sqrt() + self.gamma)


@dataclass(frozen=True, slots=True)
class Normalise:
    """One group; every row becomes ``norm`` long, but one of next to nothing stays shorter."""

    norm: float = 1.0

    def __post_init__(self) -> None:
        _require(self.norm)

    def groups(self, names: Sequence[str]) -> Sequence[int]:
        """All in one."""
        return [0] * len(names)

    def factors(self, squares: Tensor, *, radii: Sequence[float], whole: float) -> Tensor:
        """See :class:`Clipping`."""
        return _column(radii, squares) / squares.sqrt()


class Quantile:
    """Flat, with a bound that follows the rows.

    Args:
        norm: To begin with.
        quantile: Of the rows that are to be shorter than the bound.
        rate: How fast the bound follows: it is multiplied by ``exp(-rate · (share − quantile))`` a step.
        noise: Standard deviation of the noise on the count of shorter rows, in rows. The noise on the gradient is made
            larger for it: of two mechanisms with ``z`` and ``2·noise`` (a count that is centred changes by a half), so
            that both together cost what ``noise_multiplier`` says.
    """

    __slots__ = ("noise", "norm", "quantile", "rate")

    def __init__(self, norm: float, *, quantile: float = 0.5, rate: float = 0.2, noise: float) -> None:
        _require(norm)
        if not (0 < quantile < 1 and 0 < rate < math.inf and 0 < noise < math.inf):
            raise InputError(2850, expected="a quantile within 0 and 1, a rate and noise above 0")
        self.norm, self.quantile, self.rate, self.noise = norm, quantile, rate, noise

    def groups(self, names: Sequence[str]) -> Sequence[int]:
        """All in one."""
        return [0] * len(names)

    def factors(self, squares: Tensor, *, radii: Sequence[float], whole: float) -> Tensor:
        """See :class:`Clipping`."""
        return _shortened(squares, radii, whole)

    def gradient_noise(self, noise_multiplier: Real) -> float:
        """The multiplier of the gradient's own noise, so that both releases together have this one; rounded up.

        Raises:
            InputError: 2852 when the count's noise is so small that it alone costs more.
        """
        wanted = Fraction(noise_multiplier)
        left = wanted**-2 - (2 * Fraction(self.noise)) ** -2
        if left <= 0:
            raise InputError(2852, expected=f"noise above {float(wanted) / 2:g} on the count", got=f"{self.noise:g}")
        found = float(left) ** -0.5
        while Fraction(found) ** 2 * left < 1:
            found = math.nextafter(found, math.inf)
        return found

    def follow(self, shorter: float, expected_batch: float) -> None:
        """Moves the bound.

        Args:
            shorter: Noisy count of rows that were shorter than the bound, less half the rows: ``Σ (b − ½)``.
            expected_batch: Rows that were expected.
        """
        share = shorter / expected_batch + 0.5
        self.norm *= math.exp(-self.rate * (min(1.0, max(0.0, share)) - self.quantile))


def _shortened(squares: Tensor, radii: Sequence[float], whole: float) -> Tensor:
    return torch.minimum(_column(radii, squares) / squares.sqrt(), torch.full_like(squares, whole))


def _column(radii: Sequence[float], squares: Tensor) -> Tensor:
    return torch.tensor(radii, dtype=torch.float64, device=squares.device).unsqueeze(1)


def _numbered(paths: Sequence[str]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(path, len(numbers)) for path in paths]


def _require(norm: float) -> None:
    if not 0 < norm < math.inf:
        raise InputError(2850, expected="a norm above 0", got=repr(norm))
