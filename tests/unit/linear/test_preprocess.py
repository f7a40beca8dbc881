"""The parties' own correlated randomness: that it is what it should be, that a fit runs on it, and nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.linear_dealer import Dealer
from tests.linear_mesh import together
from tests.unit.linear.test_online import plan, statistics

from cloister.errors import CloisterError, InternalError
from cloister.linear import _field as field
from cloister.linear._budget import Budget, Tiles, budget_of, require_sound
from cloister.linear._demand import Demand, demand
from cloister.linear._emulator import CoinTable, Emulator
from cloister.linear._field import Elements, to_centred, to_ints
from cloister.linear._online import Online
from cloister.linear._party import Party
from cloister.linear._plan import Plan
from cloister.linear._preprocess import preprocess
from cloister.linear._program import fit
from cloister.linear._shared import Shared
from cloister.linear._supply import Stock, Supply

DEGREE = 1024
LASSO = plan("lasso", rounds=12, half=6)
RIDGE = plan("ridge", steps=40, parties=2)


def toy(case: Plan, *, malicious: bool = True, fits: int = 1) -> tuple[Demand, Budget]:
    needs = demand(case, level=require_sound(case).level, malicious=malicious, fits=fits)
    tiles = Tiles(tiles=2, vectors=90, answers=0)
    return needs, replace(budget_of(case, malicious=malicious, fits=fits), tiles=tiles)


def stocks(case: Plan, *, malicious: bool = True, fits: int = 1) -> tuple[Demand, list[Stock], list[Any]]:
    needs, budget = toy(case, malicious=malicious, fits=fits)
    made = together(
        case.parties,
        lambda party: preprocess(party, needs, budget, pool=7, degree=DEGREE),
        malicious=malicious,
    )
    return needs, [stock for stock, _ in made], [pool for _, pool in made]


def total(parts: list[Stock], get: Callable[[Stock], Shared]) -> Elements:
    out = get(parts[0]).share
    for part in parts[1:]:
        out = field.add(out, get(part).share)
    return out


@pytest.mark.parametrize("malicious", [True, False])
@pytest.mark.parametrize("fits", [1, 2])
def test_a_stock_holds_what_it_says(malicious: bool, fits: int) -> None:
    needs, parts, _ = stocks(LASSO, malicious=malicious, fits=fits)
    a, b, c = (total(parts, lambda stock, k=k: getattr(stock.triples, k)) for k in "abc")
    assert len(a) == needs.triples
    assert field.equal(field.multiply(a, b), c)
    matrices = total(parts, lambda stock: stock.matrices)
    assert matrices.shape == (fits, needs.columns, needs.columns, 3)
    assert field.equal(matrices, np.ascontiguousarray(np.swapaxes(matrices, 1, 2)))
    steps, finals = (total(parts, lambda stock, k=k: stock.products[k]) for k in (0, 1))
    highs, certificates = (total(parts, get) for get in (lambda s: s.steps.high, lambda s: s.certificates))
    for fit_ in range(fits):
        for i in range(fit_ * needs.steps, (fit_ + 1) * needs.steps):
            assert field.equal(field.matvec(matrices[fit_], highs[i]), steps[i])
        assert field.equal(field.matvec(matrices[fit_], certificates[fit_]), finals[fit_])
    bits = to_ints(total(parts, lambda stock: stock.signs))
    assert len(bits) == needs.tests
    assert set(bits.tolist()) == {0, 1}
    for name in ("coarse", "fine", "wide"):
        kind = getattr(needs, name)
        assert total(parts, lambda s, name=name: getattr(s, name).bits).shape == (kind.count, kind.bits, 3)
        low = to_ints(total(parts, lambda s, name=name: getattr(s, name).low))
        assert 0 <= low.min() <= low.max() <= needs.parties * ((1 << kind.below) - 1)
        assert low.max() >> (kind.below - 3)


def test_masks_are_as_wide_as_they_must_be() -> None:
    needs, parts, _ = stocks(LASSO)
    for get, bits in (
        (lambda s: s.steps.high, needs.hiding_bits),
        (lambda s: s.relaxations.high, needs.hiding_bits),
        (lambda s: s.coarse.high, needs.high_bits),
    ):
        values = np.abs(to_centred(get(parts[0]).share)).max()
        assert (1 << (bits - 3)) < values <= (1 << (bits - 1))
    lows = to_ints(parts[0].steps.low.share)
    assert (1 << 48) < lows.max() < (1 << 52)


def test_a_fit_on_it_is_the_emulators() -> None:
    needs, budget = toy(LASSO)
    dealer = Dealer(LASSO.parties)
    summed = statistics(LASSO.features, 1, LASSO.curvature)
    lows: list[dict[str, Any]] = [{}] * LASSO.parties

    def act(party: Party) -> Any:
        stock, _ = preprocess(party, needs, budget, pool=0, degree=DEGREE)
        given = {name: getattr(stock, name).low.share for name in ("steps", "relaxations", "residuals")}
        given |= {name: getattr(stock, name).low.share for name in ("coarse", "fine", "wide")}
        lows[party.number] = {name: to_ints(value) for name, value in given.items()}
        return fit(Online(party, needs, Supply(stock)), LASSO, dealer.shared(party, summed))

    models = together(LASSO.parties, act)
    summed_lows = {name: np.sum([part[name] for part in lows], axis=0) for name in lows[0]}

    def entries() -> Any:
        steps, relaxed = iter(summed_lows["steps"]), iter(summed_lows["relaxations"])
        coarse = iter(summed_lows["coarse"].reshape(-1, needs.columns - 1))
        for _ in range(needs.rounds):
            yield from (next(steps) for _ in range(needs.steps // needs.rounds))
            yield next(relaxed)
            yield next(coarse)
        yield summed_lows["residuals"][0]
        yield summed_lows["fine"]
        yield summed_lows["wide"]

    expected = fit(Emulator(LASSO, CoinTable(entries())), LASSO, summed.astype(object))
    assert models == [expected] * LASSO.parties


def test_pools_hold_each_partys_values_with_tags() -> None:
    case = RIDGE
    needs, budget = toy(case)

    def act(party: Party) -> Any:
        _, pool = preprocess(party, needs, budget, pool=7, degree=DEGREE)
        return party.key, pool.take(5), pool

    (key0, held0, pool0), (key1, held1, _) = together(2, act)
    for owner, key, mine, theirs in ((0, key1, held0, held1), (1, key0, held1, held0)):
        expected = field.add(theirs[owner].keys, field.multiply(key, mine[owner].value))
        assert field.equal(mine[owner].tags(0), expected)
    assert pool0.left == 2
    with pytest.raises(InternalError) as caught:
        pool0.take(3)
    assert caught.value.code == 9901


def test_a_stock_is_given_out_once() -> None:
    needs, parts, _ = stocks(RIDGE)
    supply = Supply(parts[0])
    supply.triples(needs.triples)
    for take in (lambda: supply.triples(1), lambda: [supply.matrix(), supply.matrix()]):
        with pytest.raises(CloisterError) as caught:
            take()
        assert caught.value.code == 9901
    supply.wipe()
    assert not parts[0].triples.a.rows.any()
    assert not parts[0].matrices.rows.any()
