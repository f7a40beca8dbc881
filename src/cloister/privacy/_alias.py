"""A distribution over a few thousand sizes as a table, from which each draw costs the same: Walker's aliases, exact.

A table has ``2^bits`` cells of equal probability. A cell is split between its own number and one other, its alias, at a
threshold. A draw takes a cell, a fraction and reads one entry; there is nothing to repeat and nothing to reject.

* Cell and fraction together are 84 uniform bits, whatever the number of cells. So each size's probability is a multiple
  of 2^-84, and the table has exactly those probabilities: it is made by integers alone.
* What the rounding to 2^-84 and the cut of the tail cost is the total variation distance to the true distribution. It
  is summed up over all sizes, not estimated, and is charged to δ by whoever draws.

>>> table = alias_table([1, 5, 2] + [0] * 13)
>>> [str(size) for size in table.probabilities()[:4]]
['1/8', '5/8', '1/4', '0']

*Source*: A. J. Walker, "An efficient method for generating discrete random variables with general distributions", ACM
TOMS 3(3), 1977; M. D. Vose, "A linear algorithm for generating random numbers with a given distribution", IEEE TSE
17(9), 1991.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

__all__ = ["FIELD_BITS", "RESOLUTION_BITS", "WORD_BITS", "AliasTable", "alias_table"]

WORD_BITS = 64
"""Of a threshold in one word of the stream."""

FIELD_BITS = 21
"""What a level takes of the word that all three share: the cell, the rest of the fraction, and a sign."""

RESOLUTION_BITS = WORD_BITS + FIELD_BITS - 1
"""Cell and fraction: 84."""


@dataclass(frozen=True, slots=True, eq=False)
class AliasTable:
    """Its cells, as the compiled sampler reads them.

    Attributes:
        bits: Of a cell's number, 4 to 16.
        high: ``(2^bits,)`` uint64: the threshold's first 64 bits.
        packed: ``(2^bits,)`` uint32: the alias, and from bit 16 on the threshold's last ``20 - bits`` bits.
    """

    bits: int
    high: NDArray[np.uint64]
    packed: NDArray[np.uint32]

    def probabilities(self) -> list[Fraction]:
        """Of each size, exactly: what the sampler does, told in fractions."""
        rest = FIELD_BITS - 1 - self.bits
        capacity = 1 << (WORD_BITS + rest)
        weights = [0] * (1 << self.bits)
        for cell, (high, packed) in enumerate(zip(self.high.tolist(), self.packed.tolist(), strict=True)):
            threshold = high << rest | packed >> 16
            weights[cell] += threshold
            weights[packed & 0xFFFF] += capacity - threshold
        return [Fraction(weight, capacity << self.bits) for weight in weights]


def alias_table(weights: Sequence[int]) -> AliasTable:
    """The table with exactly these probabilities.

    Args:
        weights: A power of two of them, 2^4 to 2^16, none negative; their sum a power of two, at most 2^84.

    Raises:
        ValueError: They are not; or a cell that is not full would be full but for its last bits (of all tables one
            in 2^50), which the sampler cannot tell from full.
    """
    bits = max(0, len(weights).bit_length() - 1)
    rest = FIELD_BITS - 1 - bits
    capacity = 1 << (WORD_BITS + rest)
    scale, left = divmod(capacity << bits, sum(weights))
    if len(weights) != 1 << bits or not 4 <= bits <= 16 or left or min(weights) < 0:
        raise ValueError("not the weights of a table")
    heights = [weight * scale for weight in weights]
    alias = list(range(len(heights)))
    threshold = [capacity] * len(heights)
    below = [cell for cell, height in enumerate(heights) if height < capacity]
    above = [cell for cell, height in enumerate(heights) if height > capacity]
    while below:  # the sum is that of full cells, so while one is below, one is above
        low, high = below.pop(), above[-1]
        threshold[low], alias[low] = heights[low], high
        heights[high] -= capacity - heights[low]
        if heights[high] <= capacity:
            above.pop()
            if heights[high] < capacity:
                below.append(high)
    if any(capacity > each >= capacity - (1 << rest) for each in threshold):
        raise ValueError("a threshold that the sampler's comparison would wrap at")
    # a full cell is its own alias, so any threshold serves
    threshold = [min(each, capacity - 1) for each in threshold]
    lows = (1 << rest) - 1
    return AliasTable(
        bits,
        np.array([each >> rest for each in threshold], np.uint64),
        np.array([(each & lows) << 16 | other for each, other in zip(threshold, alias, strict=True)], np.uint32),
    )
