"""Whether shared values reach a public bound, as shared bits.

A value t is opened under a mask, ``C = t + 2^top + r' + 2^s·(r_c + 2^k·r_high)``, of which r_c is shared bit by bit. So
``t̃ = ⌊(t + r' - …)/2^s⌋``, the public rounding of :mod:`cloister.linear._arithmetic`, is known up to r_c, and whether
``t̃ ≥ T`` follows from the highest bits of both and from a borrow: whether public digits are less than shared ones.

*The borrow.* With a secret sign s = ±1 the product of

    s + [c_i > r_i] - [c_i < r_i] + 3·#{higher digits that differ}      of each digit i, to base 4, and
    s + 1 + 3·#{digits that differ}

is zero exactly if ``s = 1`` and c < r, or ``s = -1`` and c ≥ r. It is opened times a uniform factor: what is seen is a
fair coin, whatever t is, and where it is not zero a uniform value (after I. Damgård, M. Geisler, M. Krøigaard, ACISP
2007, with one product where they open shuffled factors).

Products that do not follow from the value are made ahead, when the session begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.errors import IntegrityError
from cloister.linear import _field as field
from cloister.linear._demand import Comparisons
from cloister.linear._field import from_ints
from cloister.linear._multiply import multiply, multiply_all
from cloister.linear._party import Party
from cloister.linear._shared import Shared, concatenated
from cloister.linear._supply import Comparand, Supply

__all__ = ["Comparer", "Prepared", "prepare"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Prepared:
    """Comparands with what could be multiplied ahead.

    Attributes:
        comparand: Masks and bits, ``(count,)``.
        both: ``(count, digits)``: the product of a digit's two bits.
        signs: ``(count, sides)``: ±1.
        turned: ``(count, sides)``: the sign times the highest bit.
        factors: ``(count, sides)``, uniform.
    """

    comparand: Comparand
    both: Shared
    signs: Shared
    turned: Shared
    factors: Shared

    def part(self, start: int, stop: int) -> Prepared:
        """Some of them."""
        whole = self.comparand
        comparand = Comparand(whole.low[start:stop], whole.bits[start:stop], whole.high[start:stop])
        parts = (x[start:stop] for x in (self.both, self.signs, self.turned, self.factors))
        return Prepared(comparand, *parts)


def prepare(party: Party, supply: Supply, kind: str, comparisons: Comparisons) -> Prepared:
    """Makes the products of all comparisons of a kind that need no input, in one round."""
    count, sides, digits = comparisons.count, comparisons.sides, comparisons.digits
    comparand = supply.comparand(kind, count)
    bits = comparand.bits
    two, minus_one = from_ints(2), from_ints(-1)
    signs = party.plus(supply.signs(count * sides).scaled(two), minus_one).reshaped(count, sides)
    highest = Shared(np.repeat(bits.rows[:, :, -1:], sides, axis=2))
    lefts = concatenated([bits[:, 0:-1:2], highest])
    made = multiply(party, supply, lefts, concatenated([bits[:, 1::2], signs]))
    cut = count * digits
    both, turned = made[:cut].reshaped(count, digits), made[cut:].reshaped(count, sides)
    return Prepared(comparand, both, signs, turned, supply.factors(count * sides).reshaped(count, sides))


@dataclass(frozen=True, slots=True)
class Comparer:
    """Compares by prepared masks.

    Attributes:
        party: Who computes.
        supply: Of triples.
        comparisons: The kind.
        top: As :meth:`cloister.linear._demand.Demand.comparison_top` has it.
    """

    party: Party
    supply: Supply
    comparisons: Comparisons
    top: int

    def at_least(self, values: Shared, prepared: Prepared, bounds: tuple[int, ...]) -> Shared:
        """``[t̃ ≥ T]`` for each bound T, ``(sides, count)``.

        Raises:
            IntegrityError: 5911 when a masked value is outside its range.
        """
        bits = self.comparisons.bits
        masked = self._masked(values, prepared.comparand)
        above = (masked >> self.comparisons.below) & ((1 << bits) - 1)
        shifted = [(above - bound) & ((1 << bits) - 1) for bound in bounds]
        public: NDArray[np.object_] = np.stack(shifted, axis=1)  # (count, sides)
        low, high = public & ((1 << bits - 1) - 1), public >> (bits - 1)
        less = self._less(low, prepared)
        signs, turned, highest = prepared.signs, prepared.turned, prepared.comparand.bits[:, -1]
        made: list[Shared] = []
        for side in range(len(bounds)):
            made.append(_decided(self.party, less[:, side], high[:, side], signs[:, side], turned[:, side], highest))
        return Shared(np.stack([one.rows for one in made], axis=1))

    def _masked(self, values: Shared, comparand: Comparand) -> NDArray[np.object_]:
        kind, party = self.comparisons, self.party
        powers = from_ints([1 << (kind.below + k) for k in range(kind.bits)])
        whole = values + comparand.low + comparand.bits.weighted(powers)
        whole = whole + comparand.high.scaled(from_ints(1 << (kind.below + kind.bits)))
        offset = (1 << self.top) - ((party.count - 1) << (kind.below - 1))
        opened = field.to_ints(party.open(party.plus(whole, from_ints(offset))))
        require_range(opened, self.top)
        return opened

    def _less(self, low: NDArray[Any], prepared: Prepared) -> NDArray[np.bool_]:
        """Whether the tests are zero, ``(count, sides)``."""
        count, sides = low.shape
        digits = self.comparisons.digits
        place = np.array([2 * i for i in range(digits)], object)
        c = ((low[:, :, None] >> place) & 3).astype(np.int64)  # (count, sides, digits)
        first, second = prepared.comparand.bits[:, 0:-1:2], prepared.comparand.bits[:, 1::2]
        # of one digit r = b0 + 2·b1, with both = b0·b1: each is a sum of 1, b0, b1 and both by c alone
        ordered, differing = (self._combined(table[c], first, second, prepared.both) for table in (_ORDER, _DIFFER))
        higher = _above(differing)
        signs = Shared(prepared.signs.rows[:, :, :, None])
        three = from_ints(3)
        factors = ordered + signs + higher[:, :, :digits].scaled(three)
        last = self.party.plus(prepared.signs + higher[:, :, digits].scaled(three), from_ints(1))
        stacked = np.concatenate([factors.rows, last.rows[:, :, :, None], prepared.factors.rows[:, :, :, None]], axis=3)
        flat = Shared(np.ascontiguousarray(np.moveaxis(stacked, 3, 1))).reshaped(digits + 2, count * sides)
        opened = self.party.open(multiply_all(self.party, self.supply, flat))
        return ~opened.any(axis=-1).reshape(count, sides)

    def _combined(self, weights: NDArray[np.int64], first: Shared, second: Shared, both: Shared) -> Shared:
        """``w0 + w1·b0 + w2·b1 + w3·b0·b1``: weights ``(count, sides, digits, 4)``."""
        parts = [field.from_int64(weights[..., k]) for k in range(4)]
        total = Shared(first.rows[:, :, None]).scaled(parts[1]) + Shared(second.rows[:, :, None]).scaled(parts[2])
        total = total + Shared(both.rows[:, :, None]).scaled(parts[3])
        return self.party.plus(total, parts[0])


def require_range(opened: NDArray[np.object_], top: int) -> None:
    """Raises 5911 unless all are below ``2^(top + 1)``."""
    if any(int(value) >> (top + 1) for value in opened.ravel()):
        raise IntegrityError(5911)


def _above(differing: Shared) -> Shared:
    """Sums over the digits above each, and over all: ``(…, digits)`` to ``(…, digits + 1)``, the last of all."""
    rows = differing.rows
    out = np.zeros((*rows.shape[:-2], rows.shape[-2] + 1, rows.shape[-1]), np.uint64)
    for i in reversed(range(rows.shape[-2])):
        before = out[..., i + 1, :] if i + 1 < rows.shape[-2] else np.zeros_like(out[..., 0, :])
        top = rows[..., i + 1, :] if i + 1 < rows.shape[-2] else np.zeros_like(before)
        out[..., i, :] = field.add(before, top)
    out[..., -1, :] = field.add(out[..., 0, :], rows[..., 0, :])
    return Shared(out)


def _decided(
    party: Party,
    zero: NDArray[np.bool_],
    high: NDArray[Any],
    sign: Shared,
    turned: Shared,
    highest: Shared,
) -> Shared:
    """``1 ⊕ high ⊕ highest ⊕ u`` with ``u = (1 ± sign)/2``, by whether the test was zero."""
    # with e = 1 - 2·highest and f = 1 - 2u = ∓sign, the exclusive or of both is (1 - e·f)/2
    factor = np.where(zero, -1, 1) * np.where(high.astype(np.int64) == 1, 1, -1)
    # 1 ⊕ x = 1 - x; (1 - 2·result) = -(1 - 2·high)(1 - 2·highest)(1 - 2u)
    half = from_ints((1 + field.P) // 2)
    weights = field.from_int64(factor)
    product = (sign - turned.scaled(from_ints(2))).scaled(weights)  # (1 - 2·result)
    return party.plus(-product.scaled(half), half)


def _tables() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """By a public digit c: weights of 1, b0, b1 and b0·b1 in ``[c > r] - [c < r]`` and in ``[c ≠ r]``."""
    order, differ = np.zeros((4, 4), np.int64), np.zeros((4, 4), np.int64)
    for c in range(4):
        for weights, values in (
            (order, [(c > r) - (c < r) for r in range(4)]),
            (differ, [int(c != r) for r in range(4)]),
        ):
            weights[c] = values[0], values[1] - values[0], values[2] - values[0], sum(values[::3]) - sum(values[1:3])
    return order, differ


_ORDER, _DIFFER = _tables()
