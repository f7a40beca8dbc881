"""What an example adds to a sum that workers make: integers, its own alone, and no longer than the sensitivity."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.private_offloading import ROWS, always, engines, network, norm, summed
from torch import Tensor, nn

from cloister.offload import Apart
from cloister.privacy import _outsourced
from cloister.privacy._clipping import Automatic, Clipping, Flat, Normalise, PerLayer
from cloister.privacy._contributions import Contributions
from cloister.privacy._engine import Engine
from cloister.privacy._outsourced import Entries, Outsourced, pays, unit_of

FEW = 12
WILD = [0.0, 1e-30, 1e-3, 1.0, 300.0, 1e20, 3e38, math.nan, math.inf, -math.inf]
"""What examples are multiplied with: nothing, next to nothing, as they are, outliers, and what is no number."""


@pytest.fixture(autouse=True)
def sums(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)


def engine_of(name: str, clipping: Clipping, **other: object) -> tuple[Engine, Tensor]:
    model, x = network(name)
    there, _ = engines(model, clipping, FEW, mode="enclave", **other)
    return there, x[:FEW]


def sensitivity(engine: Engine) -> float:
    return float(engine.grid.sensitivity)


@pytest.mark.parametrize("name", ["linear", "convolutions", "swapped", "transformer"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("clipping", [Flat(0.5), PerLayer(0.5), Automatic(0.5)], ids=["flat", "layer", "automatic"])
def test_the_sum_is_of_what_each_example_adds_by_itself(name: str, rounding: str, clipping: Clipping) -> None:
    """To the last bit, whoever else is in the micro-batch: so no scale, norm or factor of one is another's."""
    engine, x = engine_of(name, clipping, rounding=rounding)
    x = x * torch.tensor([1e-4, 1.0, 300.0]).repeat(4).reshape(-1, *[1] * (x.dim() - 1))
    together = summed(engine, x)
    alone = torch.zeros_like(together)
    for row in range(FEW):
        others = torch.full_like(x, (0.0, 1e20, -7.0)[row % 3])
        others[row] = x[row]
        made = summed(engine, others, torch.where(torch.arange(FEW) == row, row, -1))
        assert norm(made) <= sensitivity(engine)
        alone += made
    assert bool(together.any())
    assert torch.equal(together, alone)


@pytest.mark.parametrize("clipping", [Flat(0.5), Flat(1e-6), Flat(1e6), PerLayer(0.01), Normalise(0.5)], ids=repr)
@given(rows=st.lists(st.sampled_from(WILD), min_size=FEW, max_size=FEW), seed=st.integers(0, 1 << 30))
@settings(max_examples=12, deadline=None)
def test_no_example_moves_the_sum_by_more_than_the_sensitivity(
    clipping: Clipping, rows: list[float], seed: int
) -> None:
    engine, tame = engine_of("linear", clipping)
    summed(engine, tame)  # where examples are is found on ordinary ones
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(FEW, 24, generator=generator) * torch.tensor(rows).unsqueeze(1)
    if seed % 3 == 0:
        x[:] = x[0]  # all alike
    whole = summed(engine, x)
    for left_out in (0, FEW // 2):
        other = summed(engine, x, torch.where(torch.arange(FEW) == left_out, -1, torch.arange(FEW)))
        assert norm(whole - other) <= sensitivity(engine)
        if not math.isfinite(rows[0 if seed % 3 == 0 else left_out]):
            assert torch.equal(whole, other)


@pytest.mark.parametrize("positions", ["against", "alike", "one"])
def test_positions_that_cancel_or_add_up_are_bounded(positions: str) -> None:
    """The norm of a sum over positions, where dy is far longer than the row that it makes."""
    torch.manual_seed(0)
    model = nn.Linear(16, 8, bias=False)
    engine, _ = engines(model, Normalise(0.5), FEW, mode="enclave")
    x = torch.randn(FEW, 1, 16).expand(FEW, 4, 16).clone()
    sign = torch.tensor({"against": [1.0, -1.0, 1.0, -0.99], "alike": [1.0] * 4, "one": [1.0, 0, 0, 0]}[positions])

    def loss(outputs: Tensor) -> Tensor:
        return (outputs.sum(2) * sign * torch.arange(1, FEW + 1).unsqueeze(1)).sum(1)

    for row in range(FEW):
        made = summed(engine, x, torch.where(torch.arange(FEW) == row, 0, -1), loss=loss)
        assert 0 < norm(made) <= sensitivity(engine)
        if positions != "against":
            assert norm(made) > 0.97 * sensitivity(engine)


def test_examples_that_are_shortened_reach_the_bound_and_do_not_pass_it() -> None:
    engine, x = engine_of("linear", Flat(1e-3), rounding="nearest")
    for row in range(FEW):
        made = norm(summed(engine, x, torch.where(torch.arange(FEW) == row, row, -1)))
        assert 0.98 * sensitivity(engine) < made <= sensitivity(engine)


def test_the_second_rounding_catches_what_the_first_made_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit so coarse that rounding alone makes vectors longer than the radius."""
    monkeypatch.setattr(_outsourced, "unit_of", lambda *_, **__: 1 << 12)
    engine, x = engine_of("linear", Flat(1e-3))
    found: list[Tensor] = []
    real = Contributions._shortened

    def noted(self: Contributions, *given: Tensor) -> tuple[Tensor, Tensor]:
        made = real(self, *given)
        found.append(made[1][0] > self.radii[0] ** 2)
        return made

    monkeypatch.setattr(Contributions, "_shortened", noted)
    lengths = [norm(summed(engine, x, torch.where(torch.arange(FEW) == row, row, -1))) for row in range(FEW)]
    first, second = torch.stack(found[::2]), torch.stack(found[1::2])
    assert int(first.sum()) >= FEW // 2
    assert not second.any()
    assert max(lengths) <= sensitivity(engine)
    assert min(lengths) > 0.8 * sensitivity(engine)


def test_whoever_is_beyond_the_radius_after_both_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose norm stays too large whatever is tried: nothing of it is summed, in the enclave or by workers."""
    engine, x = engine_of("linear", Flat(0.5))
    others = summed(engine, x, torch.where(torch.arange(FEW) == 3, -1, torch.arange(FEW)))
    real = Contributions._shortened

    def stubborn(
        self: Contributions, factors: Tensor, inside: Tensor, radii: Tensor, found: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if found is not None:
            found[:, 3] = 0.0  # is not shortened
        factors, found = real(self, factors, inside, radii, found)
        found[:, 3] = math.inf
        return factors, found

    monkeypatch.setattr(Contributions, "_shortened", stubborn)
    assert torch.equal(summed(engine, x), others)


def test_padding_goes_out_as_zeros_and_looks_like_any_row(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, x = engine_of("linear", Flat(0.5))
    sent: list[Tensor] = []
    real = Apart.toward_weight

    def noted(self: Apart, gradients: Tensor) -> object:
        sent.append(gradients.clone())
        return real(self, gradients)

    monkeypatch.setattr(Apart, "toward_weight", noted)
    summed(engine, x)
    everyone, sent[:] = list(sent), []
    summed(engine, x, torch.where(torch.arange(FEW) < 5, torch.arange(FEW), -1))
    assert [each.shape for each in sent] == [each.shape for each in everyone]
    for some, all_ in zip(sent, everyone, strict=True):
        assert torch.equal(some[:5], all_[:5])
        assert not some[5:].any()


def test_an_example_that_does_not_fit_is_shortened_and_keeps_its_direction() -> None:
    """An input of one number among thousands: its gradient is so long that D would be cut off where it is longest."""
    torch.manual_seed(0)
    engine, _ = engines(nn.Linear(16384, 4, bias=False), Flat(0.5), FEW, mode="enclave", rounding="nearest")
    x = torch.zeros(FEW, 16384)
    x[torch.arange(FEW), torch.arange(FEW)] = 1.0
    weights = torch.tensor([1.0, 0.5, -0.25, 0.1])
    made = summed(engine, x, loss=lambda outputs: 1e6 * (outputs * weights).sum(1)).view(4, 16384)[:, :FEW].double()
    assert float(made[0].min()) > 0
    assert bool(((made / made[0]).T - weights).abs().max() < 1e-3)


def test_what_the_enclave_sums_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of each gradient is a bias's, whose rows are not among what is rounded again."""
    torch.manual_seed(0)
    monkeypatch.setattr(_outsourced, "unit_of", lambda *_, **__: 1 << 17)
    engine, _ = engines(nn.Linear(8, 64), Flat(1e-3), FEW, mode="enclave", rounding="nearest")
    x = torch.randn(FEW, 8) / 2
    for row in range(FEW):
        assert norm(summed(engine, x, torch.where(torch.arange(FEW) == row, row, -1))) <= sensitivity(engine)


def test_a_row_of_zeros_does_not_shorten_its_example() -> None:
    """Whatever gradient meets an input of zeros, it adds nothing: it must not use up what the example may add."""
    torch.manual_seed(0)
    engine, _ = engines(nn.Linear(16, 8, bias=False), Flat(0.5), FEW, mode="enclave")
    x = torch.randn(FEW, 2, 16)

    def loss(outputs: Tensor) -> Tensor:
        return outputs[:, 0].square().sum(1) + 1e12 * outputs[:, 1].sum(1)

    x[:, 1] = 0
    assert norm(summed(engine, x, torch.where(torch.arange(FEW) == 0, 0, -1), loss=loss)) > 0.97 * sensitivity(engine)


# ---- its parts ---------------------------------------------------------------------------------------------------


class _Kept:
    """As much of a product as the sum asks for."""

    bits, rounding, weight_shape = 8, None, (5, 7)

    def __init__(self, rows: int) -> None:
        from cloister.offload._apart import integers_of

        self.x = torch.randn(rows, 7)
        self.integers = integers_of(self.x, over=(-1,), bits=8, rounding=None)


def test_norms_are_those_of_the_integers() -> None:
    torch.manual_seed(0)
    kept, dy = _Kept(6), torch.randn(6, 5)
    places = torch.tensor([[4, 1], [0, 5], [2, 3]])  # examples of two rows, in any order
    entries = Entries(places, shape=torch.Size((5, 7)), inputs=_row, outputs=_row, back=lambda total: total)
    made = Outsourced(kept, dy, entries, 2.0**24)  # type: ignore[arg-type]
    factors = torch.tensor([2.0**20, 2.0**21, 0.0], dtype=torch.float64)
    squares = made.round(factors)
    for example, rows in enumerate(places):
        d = (dy[rows] * kept.integers.units[rows] * factors[example].float() / made._unit).add(0.5).floor()
        vector = (kept.integers.values[rows].double().T @ d.double()) * made._unit
        assert float(squares[example]) == pytest.approx(float(vector.square().sum()), rel=1e-12)
        assert float(squares[example]) >= float(vector.square().sum())
        exact = kept.integers.values[rows].double() * kept.integers.units[rows]
        assert float(made.squares()[example]) == pytest.approx(
            float((exact.T @ dy[rows].double()).square().sum()), rel=1e-5
        )


def _row(values: Tensor) -> Tensor:
    return values.unsqueeze(1)


@pytest.mark.parametrize("bits", range(2, 9))
@given(radius=st.floats(2.0**10, 2.0**27), positions=st.integers(1, 1024), inputs=st.integers(1, 5000))
def test_the_unit_is_a_whole_power_of_two_and_lets_the_radius_fit(
    bits: int, radius: float, positions: int, inputs: int
) -> None:
    unit = unit_of(radius, bits=bits, positions=positions, inputs=inputs)
    assert unit >= 1
    assert unit & (unit - 1) == 0
    base = 1 << (bits - 1)
    assert unit * base * (base - 1) * max(base / 2, math.sqrt(positions * inputs) * base / 64) >= radius * 0.999


def test_two_halves_of_the_offloadings_bits_make_a_d() -> None:
    for bits in range(2, 9):
        base = 1 << (bits - 1)
        d = torch.arange(-_outsourced._greatest(bits), _outsourced._greatest(bits) + 1).double()
        high = ((d + base // 2) / base).floor()
        low = d - base * high
        for half in (high, low):
            assert float(half.min()) >= -base
            assert float(half.max()) <= base - 1


def test_every_sum_of_a_product_is_exact_in_float32() -> None:
    assert _outsourced.MOST_TERMS * 128 * 128 <= 1 << 24


@pytest.mark.parametrize(
    ("shapes", "answer"),
    [
        ({"examples": 256, "positions": 1, "inputs": 1024, "outputs": 1024, "thin": True}, True),
        ({"examples": 16, "positions": 1, "inputs": 1024, "outputs": 1024, "thin": True}, False),
        ({"examples": 256, "positions": 1, "inputs": 16, "outputs": 16, "thin": True}, False),
        ({"examples": 64, "positions": 4, "inputs": 4608, "outputs": 512, "thin": False}, True),
        ({"examples": 64, "positions": 16, "inputs": 2304, "outputs": 256, "thin": False}, True),
        ({"examples": 64, "positions": 1024, "inputs": 27, "outputs": 64, "thin": False}, False),
        ({"examples": 64, "positions": 1025, "inputs": 10**6, "outputs": 10**6, "thin": False}, False),
    ],
)
def test_the_cost_rule(shapes: dict[str, int], answer: bool) -> None:
    assert pays(**shapes) == answer  # type: ignore[arg-type]


def test_rows_of_this_many_examples_have_a_network_for_each_kind() -> None:
    assert ROWS >= FEW
