"""The correlated randomness of a session, made by the parties themselves before any of them speaks of its data.

1. *Groups.* Every party encrypts its global key, a factor of each batch of triples and its shares of the matrices, and
   proves that what it said is small.
2. *Answers.* Everybody's own random values get tags; products of a's with b's and of matrices with masks are shared,
   and get tags as well.
3. *Checks.* Constant keys, the same values toward all, triples, products, then bits and the ranges of masks. A cheat
   that passes does so with a probability that :mod:`cloister.linear._budget` counts.

Secrets of the ciphertexts are overwritten when the checks are done.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from cloister.linear import _field as field
from cloister.linear._answers import flood_of
from cloister.linear._bits import random_bits
from cloister.linear._budget import Budget
from cloister.linear._demand import Comparisons, Demand
from cloister.linear._elements import WORDS
from cloister.linear._field import Elements, from_ints
from cloister.linear._groups import Publics, publics
from cloister.linear._keyring import Keyring, exchange_groups
from cloister.linear._masks import pool_for_masks, prove_masks
from cloister.linear._party import Party
from cloister.linear._plan import RELAXATION_BITS, SHIFT_BITS
from cloister.linear._primes import DEGREE
from cloister.linear._products import multiply_vectors, require_products
from cloister.linear._shape import require_constant_keys
from cloister.linear._shared import Shared, concatenated
from cloister.linear._streams import SecretStream, box, elements
from cloister.linear._supply import Comparand, Mask, Pool, Stock, Triples
from cloister.linear._tiles import Packing, pack_left
from cloister.linear._triples import Batch, make_batch, require_triples
from cloister.linear._values import Tagger, require_consistent

__all__ = ["make_pool", "preprocess"]


def preprocess(party: Party, needs: Demand, budget: Budget, *, pool: int, degree: int = DEGREE) -> tuple[Stock, Pool]:
    """What a session uses up.

    Args:
        party: Who makes it, with all others.
        needs: What is used up online.
        budget: The session's: packing and floods.
        pool: Uniform values of each party that are left, for its inputs and their proofs.
        degree: N, less than 32768 in tests alone.

    Raises:
        IntegrityError: 5901 to 5906, 5908 to 5910.
        PeerError: As of the links; 6906 when a proof must be begun again.
    """
    with ExitStack() as forgotten:
        return _Maker(party, needs, budget, degree, forgotten).make(pool)


def make_pool(party: Party, budget: Budget, pool: int, *, degree: int = DEGREE) -> Pool:
    """Only uniform values of each party, for sessions that open sums of inputs and compute nothing.

    Raises:
        IntegrityError: 5901 to 5903, 5909, 5910.
        PeerError: As for :func:`preprocess`.
    """
    if not party.malicious:
        return Pool([])
    shared = publics(party.session, 1, degree=degree)
    party.begin("groups")
    with ExitStack() as forgotten:
        keyring = exchange_groups(party, shared, [_constant(party.key, degree)], flood_of(budget.scalars.flood))
        forgotten.callback(keyring.wipe)
        party.begin("answers")
        tagger = Tagger(party, shared, keyring.target(0))
        stream = SecretStream("preprocessing")
        shape, values = tagger.tag(elements(stream, degree)), tagger.tag(elements(stream, pool + 1))
        party.begin("checks")
        require_constant_keys(party, shape)
        require_consistent(party, [values[1:]], values[:1])
        return _pool_of(party, values[1:])


def _constant(key: Elements, degree: int) -> Elements:
    message = np.zeros((1, degree, WORDS), np.uint64)
    message[0, 0] = key
    return message


def _pool_of(party: Party, values: Shared) -> Pool:
    return Pool([values.held(party.number, owner) for owner in range(party.count)] if party.malicious else [])


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Own:
    """One party's own values, by name, in the order in which they get tags."""

    values: Mapping[str, Elements]

    def tagged(self, party: Party, whole: Shared) -> dict[str, Shared]:
        """Their rows, cut out of one long one."""
        out: dict[str, Shared] = {}
        start = 0
        for name, value in self.values.items():
            count = value.size // WORDS
            out[name] = whole[start : start + count].reshaped(*value.shape[:-1])
            start += count
        return out

    def flat(self) -> Elements:
        return np.concatenate([value.reshape(-1, WORDS) for value in self.values.values()])

    def wipe(self) -> None:
        for value in self.values.values():
            value[...] = 0


class _Maker:
    """What it wipes when all is made, or when that fails, stands in ``forgotten``."""

    def __init__(self, party: Party, needs: Demand, budget: Budget, degree: int, forgotten: ExitStack) -> None:
        self.party, self.needs, self.budget, self.forgotten = party, needs, budget, forgotten
        tiles = budget.tiles
        self.packing = Packing(needs.columns, tiles.tiles, tiles.vectors, degree)
        self.publics: Publics = publics(party.session, tiles.tiles, degree=degree)
        self.stream = SecretStream("preprocessing")

    def make(self, pool: int) -> tuple[Stock, Pool]:
        party = self.party
        own = self._own(pool + pool_for_masks(self.needs) if party.malicious else 0)
        self.forgotten.callback(own.wipe)
        squares = self._squares(own.values["matrices"])
        factors = [elements(self.stream, self.publics.degree) for _ in range(self._batches())]
        party.begin("groups")
        keyring, matrices = self._groups(factors, squares)
        party.begin("answers")
        tagger = Tagger(party, self.publics, keyring.target(0))
        shape = tagger.tag(elements(self.stream, self.publics.degree)) if party.malicious else None
        values = own.tagged(party, tagger.tag(own.flat()))
        batches = [
            make_batch(party, self.publics, tagger, factor, keyring.target(1 + place))
            for place, factor in enumerate(factors)
        ]
        products = self._products(own.values, squares, matrices)
        tagged = tagger.tag(products.reshape(-1, WORDS)).reshaped(*products.shape[:-1])
        party.begin("checks")
        if shape is not None:
            require_constant_keys(party, shape)
        every = [*values.values(), *(value for batch in batches for value in batch.values), tagged]
        require_consistent(party, every, values["mask"])
        require_triples(party, batches)
        self._require_products(values, tagged)
        left = _pool_of(party, values["pool"])
        prove_masks(party, left, self.needs, values)
        return self._stock(values, tagged, _joined(batches)), left

    # ---- 1: groups ---------------------------------------------------------------------------------------

    def _batches(self) -> int:
        return -(-(self.needs.triples + self.needs.bits) // self.publics.degree)

    def _groups(self, factors: list[Elements], squares: Elements) -> tuple[Keyring, Keyring]:
        scalars = [_constant(self.party.key, self.publics.degree), *(factor[None] for factor in factors)]
        lefts = [pack_left(square, self.packing) for square in squares]
        made: list[Keyring] = []
        for messages, lattice in ((scalars, self.budget.scalars), (lefts, self.budget.matrix)):
            made.append(exchange_groups(self.party, self.publics, messages, flood_of(lattice.flood)))
            self.forgotten.callback(made[-1].wipe)
        return made[0], made[1]

    # ---- 2: answers --------------------------------------------------------------------------------------

    def _own(self, pool: int) -> _Own:
        needs, width = self.needs, self.needs.columns
        fits, steps, rounds = needs.fits, needs.fits * needs.steps, needs.fits * needs.rounds
        values: dict[str, Elements] = {
            "matrices": self._uniform(fits, width * (width + 1) // 2),
            "step low": self._below(SHIFT_BITS, steps, width),
            "step high": self._centred(needs.hiding_bits, steps, width),
            "certificates": self._centred(needs.hiding_bits, fits, width),
            "extra": self._uniform(fits, width),
            "relaxation high": self._centred(needs.hiding_bits, rounds, width),
            "relaxation bits": self._below(1, rounds, width, RELAXATION_BITS),
            "residual low": self._below(SHIFT_BITS, fits, width),
            "residual high": self._centred(needs.hiding_bits, fits, width),
            "uniform": self._uniform(needs.bits),
            "factors": self._uniform(needs.tests),
            "mask": self._uniform(1),
            "pool": self._uniform(pool),
        }
        for name, kind in self._kinds().items():
            values[f"{name} bits"] = self._below(1, kind.count, kind.below)
            values[f"{name} high"] = self._centred(needs.high_bits, kind.count)
        return _Own(values)

    def _kinds(self) -> dict[str, Comparisons]:
        return dict(zip(("coarse", "fine", "wide"), self.needs.comparisons, strict=True))

    def _uniform(self, *shape: int) -> Elements:
        return elements(self.stream, *shape)

    def _below(self, bits: int, *shape: int) -> Elements:
        """Uniform in ``[0, 2^bits)``."""
        drawn = box(self.stream, int(np.prod(shape)), 0, (1 << bits) - 1)
        out = np.zeros((len(drawn), WORDS), np.uint64)
        out[:, : drawn.shape[1]] = drawn[:, :WORDS]
        return out.reshape(*shape, WORDS)

    def _centred(self, bits: int, *shape: int) -> Elements:
        """Uniform in ``[-2^(bits-1), 2^(bits-1))``."""
        return field.subtract(self._below(bits, *shape), from_ints(1 << (bits - 1)))

    def _squares(self, triangles: Elements) -> Elements:
        width = self.needs.columns
        rows, places = np.tril_indices(width)
        out = np.empty((len(triangles), width, width, WORDS), np.uint64)
        out[:, rows, places] = out[:, places, rows] = triangles
        return out

    def _vectors(self, values: Mapping[str, Elements], fit: int) -> Elements:
        """Of one fit: its steps' masks, the certificate's, and the one that checks them."""
        steps = self.needs.steps
        step = values["step high"][fit * steps : (fit + 1) * steps]
        return np.concatenate([step, values["certificates"][fit : fit + 1], values["extra"][fit : fit + 1]])

    def _products(self, values: Mapping[str, Elements], squares: Elements, matrices: Keyring) -> Elements:
        """``(fits, steps + 2, D, 3)``: the own shares."""
        made = [
            multiply_vectors(
                self.party,
                self.publics,
                self.packing,
                square,
                self._vectors(values, fit),
                matrices.target(fit),
            )
            for fit, square in enumerate(squares)
        ]
        return np.stack(made)

    # ---- 3: checks, and what they leave ------------------------------------------------------------------

    def _matrix(self, values: Mapping[str, Shared], fit: int) -> Shared:
        rows = values["matrices"].rows[:, fit]
        return Shared(np.stack([self._squares(row[None])[0] for row in rows]))

    def _require_products(self, values: Mapping[str, Shared], products: Shared) -> None:
        rows = {name: values[name].rows for name in ("step high", "certificates", "extra")}
        for fit in range(self.needs.fits):
            vectors = Shared(
                np.stack(
                    [
                        self._vectors(dict(zip(rows, each, strict=True)), fit)
                        for each in zip(*rows.values(), strict=True)
                    ]
                )
            )
            require_products(self.party, self._matrix(values, fit), vectors, products[fit])

    def _stock(self, values: Mapping[str, Shared], products: Shared, triples: Triples) -> Stock:
        needs = self.needs
        for_bits = Triples(*(part[needs.triples : needs.triples + needs.bits] for part in _parts(triples)))
        bits = random_bits(self.party, for_bits, values["uniform"])
        comparands: dict[str, Comparand] = {}
        start = 0
        for name, kind in self._kinds().items():
            many = kind.count * kind.bits
            low = _numbers(values[f"{name} bits"])
            shared = bits[start : start + many].reshaped(kind.count, kind.bits)
            comparands[name] = Comparand(low, shared, values[f"{name} high"])
            start += many
        matrices = np.stack([self._matrix(values, fit).rows for fit in range(needs.fits)], axis=1)
        width = needs.columns
        return Stock(
            matrices=Shared(matrices),
            steps=Mask(values["step low"], values["step high"]),
            certificates=values["certificates"],
            products=(products[:, : needs.steps].reshaped(-1, width), products[:, needs.steps]),
            relaxations=Mask(_numbers(values["relaxation bits"]), values["relaxation high"]),
            residuals=Mask(values["residual low"], values["residual high"]),
            signs=bits[start:],
            factors=values["factors"],
            triples=Triples(*(part[: needs.triples] for part in _parts(triples))),
            **comparands,
        )


def _joined(batches: list[Batch]) -> Triples:
    return Triples(*(concatenated(parts) for parts in zip(*(_parts(batch.triples) for batch in batches), strict=True)))


def _parts(triples: Triples) -> tuple[Shared, Shared, Shared]:
    return triples.a, triples.b, triples.c


def _numbers(bits: Shared) -> Shared:
    """``Σ 2^k·bit_k`` over the last axis."""
    return bits.weighted(from_ints([1 << k for k in range(bits.shape[-1])]))
