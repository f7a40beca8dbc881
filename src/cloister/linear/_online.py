"""The program on shared values: what :class:`cloister.linear._arithmetic.Arithmetic` asks for, between the parties.

*Truncation.* ``C = y + 2^top + Σr' - (n-1)·2^(f-1) + 2^f·r''`` is opened: its low bits are the public coin of the
rounding, and what lies above them is the result under r'', up to a distance that the demand accounts. *A product
behind a rounding* takes no opening of its own: ``x = public - r''``, so ``G x = G·public - E·r'' - U r''``, where
``E = G - U`` was opened once and ``U r''`` is in stock.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cloister.linear import _field as field
from cloister.linear._arithmetic import Public
from cloister.linear._comparison import Comparer, Prepared, prepare, require_range
from cloister.linear._demand import Comparisons, Demand
from cloister.linear._field import Elements, from_ints
from cloister.linear._multiply import multiply
from cloister.linear._party import Party
from cloister.linear._plan import ITERATE_BITS, RELAXATION_BITS, SHIFT_BITS
from cloister.linear._shared import Shared
from cloister.linear._supply import Mask, Supply

__all__ = ["Online"]


class Online:
    """One party's side of the program.

    Args:
        party: Who computes.
        demand: What all fits of the session use up.
        supply: That randomness.
    """

    def __init__(self, party: Party, demand: Demand, supply: Supply) -> None:
        self._party, self._demand, self._supply = party, demand, supply
        self._prepared = {
            name: prepare(party, supply, name, kind)
            for name, kind in zip(("coarse", "fine", "wide"), demand.comparisons, strict=True)
            if kind.count
        }
        self._used = dict.fromkeys(self._prepared, 0)
        self._matrix = self._opened = np.zeros((0, 0, 3), np.uint64)

    def take(self, statistics: Shared) -> Shared:
        """Statistics: S, ``(D+1, D+1)``. Opens ``E = G - U``, a triangle."""
        columns = self._demand.columns
        matrix = statistics[:columns, :columns]
        rows, places = np.tril_indices(columns)
        opened = self._party.open((matrix - self._supply.matrix())[rows, places])
        self._opened = np.empty((columns, columns, 3), np.uint64)
        self._opened[rows, places] = self._opened[places, rows] = opened
        self._matrix = np.ascontiguousarray(matrix.rows)
        return statistics[:columns, columns]

    def product(self, public: Sequence[int]) -> Shared:
        """No round."""
        return self._product(from_ints(public))

    def zero(self) -> Shared:
        """D zeros."""
        return self._party.nothing(self._demand.columns)

    def combine(self, *terms: tuple[Public, Shared]) -> Shared:
        """The sum of public multiples."""
        (factor, value), *others = terms
        total = value.scaled(from_ints(factor))
        for factor, value in others:
            total = total + value.scaled(from_ints(factor))
        return total

    def truncate(self, value: Shared, bits: int) -> Shared:
        """One round."""
        masks = {RELAXATION_BITS: self._supply.relaxation, SHIFT_BITS: self._supply.residual}
        mask = masks[bits]()
        return self._plus_public(-mask.high, self._kept(value, mask, bits))

    def mask_multiply(self, value: Shared, bits: int) -> tuple[Shared, Shared]:
        """One round."""
        if bits:
            mask, product = self._supply.step()
            public = self._kept(value, mask, bits)
        else:
            high, product = self._supply.certificate()
            mask = Mask(self._party.nothing(len(high)), high)
            public = self._kept(value, mask, 0)
        return self._plus_public(-mask.high, public), self._product(public) - mask.high.mapped(self._opened) - product

    def threshold(self, value: Shared, at: int, resolution: int) -> Shared:
        """Three rounds, and as many as a product of all digits takes."""
        kind = "coarse" if ITERATE_BITS - resolution == self._demand.coarse.below else "fine"
        rest, limit = value[1:], at >> (ITERATE_BITS - resolution)
        reached = self._compare(kind, rest, (limit, -limit))
        minus, one = from_ints(-1), from_ints(1)
        above, below = reached[0], self._plus_public(reached[1].scaled(minus), one)
        ends = [self._plus_public(rest, from_ints(-at)), self._plus_public(rest, from_ints(at))]
        lefts, rights = (_stacked(*pair) for pair in ((above, below), ends))
        made = multiply(self._party, self._supply, lefts, rights)
        return Shared(np.concatenate([value[:1].rows, (made[0] + made[1]).rows], axis=1))

    def square_sum(self, value: Shared) -> Shared:
        """One round."""
        return multiply(self._party, self._supply, value, value).total().reshaped(1)

    def at_most(self, total: Shared, most: int, bits: int) -> Shared:
        """``t̃ ≤ T``: not ``t̃ ≥ T + 1``."""
        beyond = self._compare("wide", total, ((most >> bits) + 1,))
        return self._plus_public(-beyond[0], from_ints(1))

    def open(self, value: Shared) -> list[int]:
        """Centred integers."""
        return [int(entry) for entry in field.to_centred(self._party.open(value))]

    # ---- what they are made of ---------------------------------------------------------------------------

    def _plus_public(self, value: Shared, public: Elements) -> Shared:
        return self._party.plus(value, public)

    def _kept(self, value: Shared, mask: Mask, bits: int) -> Elements:
        """``C >> bits`` less its offset: the truncated value plus the high mask."""
        top = self._demand.top(bits)
        masked = value + mask.low + mask.high.scaled(from_ints(1 << bits))
        offset = (1 << top) - (((self._party.count - 1) << bits - 1) if bits else 0)
        opened = field.to_ints(self._party.open(self._plus_public(masked, from_ints(offset))))
        require_range(opened, top)
        return from_ints((opened >> bits) - (1 << (top - bits)))

    def _product(self, public: Elements) -> Shared:
        """G times a public vector."""
        columns = self._demand.columns
        flat = field.matvec(self._matrix.reshape(-1, columns, 3), public)
        return Shared(flat.reshape(-1, columns, 3))

    def _compare(self, name: str, values: Shared, bounds: tuple[int, ...]) -> Shared:
        kind: Comparisons = getattr(self._demand, name)
        start = self._used[name]
        self._used[name] = start + len(values)
        prepared: Prepared = self._prepared[name].part(start, start + len(values))
        comparer = Comparer(self._party, self._supply, kind, self._demand.comparison_top(kind))
        return comparer.at_least(values, prepared, bounds)


def _stacked(*values: Shared) -> Shared:
    return Shared(np.stack([value.rows for value in values], axis=1))
