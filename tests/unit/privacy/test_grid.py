"""The grid: exact integer norms of the worst rows there are stay within the sensitivity."""

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import InputError
from cloister.privacy._grid import GRID_SIGMA, Grid


def code(act: Any) -> int:
    with pytest.raises(InputError) as caught:
        act()
    return caught.value.code


def rounded(rows: torch.Tensor, factors: torch.Tensor, *, single: bool) -> list[list[int]]:
    """What kernels do: scale in float64, or in float32 with the factor in float32, then round to the nearest."""
    scaled = rows * factors.float()[:, None] if single else rows.double() * factors[:, None]
    return torch.round(scaled.double()).to(torch.int64).tolist()


def squares(rows: torch.Tensor, error: float = 0.0) -> torch.Tensor:
    return rows.double().square().sum(dim=1) * (1 + error)


def norm_squared(integers: list[int]) -> int:
    return sum(value * value for value in integers)


def holds(grid: Grid, rows: torch.Tensor, error: float = 0.0) -> None:
    for single in (False, True):
        for integers in rounded(rows, grid.factors(squares(rows, error)), single=single):
            assert norm_squared(integers) <= grid.sensitivity**2  # integers and fractions: nothing is rounded here


LOWER = -(2.0**-18)  # what a kernel's squares may be too small by


@pytest.mark.parametrize("multiplier", ["0.125", "0.5", "1", "3.7"])
@pytest.mark.parametrize("dimension", [1, 3, 1000, 5_003])
def test_no_row_exceeds_the_sensitivity(multiplier: str, dimension: int) -> None:
    grid = Grid(clip="1.5", dimension=dimension, noise_multiplier=multiplier)
    generator = torch.Generator().manual_seed(dimension)
    shapes = [
        torch.randn(dimension, generator=generator),
        torch.ones(dimension),
        torch.zeros(dimension).index_fill_(0, torch.tensor([0]), 1.0),
        torch.rand(dimension, generator=generator).pow(20),
    ]
    for size in (1e-6, 0.9, 1.0, 1.4999, 1.5, 1.50001, 77.0, 1e12):
        rows = torch.stack([size * shape / shape.norm() for shape in shapes])
        holds(grid, rows)
        holds(grid, rows, LOWER)


@given(st.integers(0, 1 << 30), st.sampled_from([2, 17, 999]))
@settings(max_examples=60)
def test_rows_that_all_round_up_stay_within(seed: int, dimension: int) -> None:
    """The worst case of the proof: every entry is a little above a half, and the norm is told as low as it may be."""
    grid = Grid(clip=1, dimension=dimension, noise_multiplier=2)
    generator = torch.Generator().manual_seed(seed)
    halves = torch.randint(0, 3000, (4, dimension), generator=generator).double() + 0.5 + 2.0**-9
    rows = (halves / grid.radius() * 8).float()
    factors = grid.factors(squares(rows, LOWER))
    fitted = (torch.round(rows.double() * factors[:, None] - 0.5) + 0.5 + 1e-3) / factors[:, None]
    holds(grid, fitted.float(), LOWER)


def test_half_a_step_an_entry_is_accounted_for() -> None:
    """A million equal entries, each of which rounds up by nearly a half: together 500 steps, 2^-14 of the clip."""
    dimension = 1_000_000
    grids = (Grid(clip=1, dimension=dimension, noise_multiplier=Fraction(2000 + i, 1000)) for i in range(2000))
    grid = next(grid for grid in grids if 0.5 < grid.radius() / 1000 % 1 < 0.503)
    rows = torch.full((1, dimension), 1.0)
    factors = grid.factors(squares(rows))
    (value,) = set(rounded(rows, factors, single=False)[0])
    assert value - float(factors[0]) > 0.49  # it does round up
    assert float(grid.sensitivity) - 100 < value * 1000 <= float(grid.sensitivity)
    holds(grid, rows)


def test_the_bound_is_nearly_reached() -> None:
    """Nothing is given away: half a step an entry, and 2^-17 of the clip."""
    grid = Grid(clip=1, dimension=100, noise_multiplier=1)
    (integers,) = rounded(torch.full((1, 100), 5.0), grid.factors(squares(torch.full((1, 100), 5.0))), single=False)
    assert math.sqrt(norm_squared(integers)) > (1 - 2.0**-16) * float(grid.sensitivity)


def test_small_rows_are_not_scaled_down() -> None:
    grid = Grid(clip=1, dimension=4, noise_multiplier=1)
    rows = torch.tensor([[0.25, -0.5, 0.0, 0.125], [0.0, 0.0, 0.0, 0.0]])
    assert rounded(rows, grid.factors(squares(rows)), single=False) == [[1 << 22, -(1 << 23), 0, 1 << 21], [0] * 4]


def test_values_come_back() -> None:
    grid = Grid(clip="0.7", dimension=500, noise_multiplier="1.3")
    rows = torch.randn(3, 500, generator=torch.Generator().manual_seed(1))
    integers = torch.tensor(rounded(rows, grid.factors(squares(rows)), single=False))
    clipped = rows.double() * (0.7 / rows.double().norm(dim=1, keepdim=True)).clamp(max=1)
    assert torch.allclose(integers.double() * float(grid.step), clipped, rtol=2e-5, atol=2 * float(grid.step))


@pytest.mark.parametrize("square", [math.nan, math.inf, 1e308])
def test_a_norm_that_is_none_counts_for_nothing(square: float) -> None:
    grid = Grid(clip=1, dimension=10, noise_multiplier=1)
    factor = grid.factors(torch.tensor([square, 1.0], dtype=torch.float64))
    assert factor[1] > 0
    assert (factor[0] == 0) == (not math.isfinite(square))
    assert factor[0] == 0 or factor[0] * math.sqrt(square) <= grid.radius() * (1 + 2.0**-50)


@pytest.mark.parametrize("clip", [1, "0.1", Decimal("3.25"), Fraction(1, 3), 0.1])
@pytest.mark.parametrize("multiplier", [Fraction(1, 8), "0.7", 1, 5, "64"])
def test_noise_over_sensitivity_is_the_multiplier_exactly(clip: Any, multiplier: Any) -> None:
    grid = Grid(clip=clip, dimension=10_000, noise_multiplier=multiplier)
    assert grid.sigma == GRID_SIGMA == 2**24
    assert grid.sigma / grid.sensitivity == Fraction(multiplier)
    assert grid.step * grid.sensitivity == Fraction(clip)
    assert Fraction(grid.radius()) < grid.sensitivity <= 2**27


def test_groups_that_are_clipped_one_by_one_make_one_bound() -> None:
    sizes, parts = [50, 3000, 7], 3
    share = Fraction(math.isqrt(10**18 // parts), 10**9)
    assert parts * share**2 <= 1
    grid = Grid(clip=2, dimension=sum(sizes), noise_multiplier="0.9")
    generator = torch.Generator().manual_seed(4)
    integers: list[list[int]] = [[], []]
    for size in sizes:
        rows = torch.stack([100 * torch.randn(size, generator=generator), torch.full((size,), 9.0)])
        factors = grid.factors(squares(rows, LOWER), dimension=size, share=share)
        for whole, part in zip(integers, rounded(rows, factors, single=True), strict=True):
            whole += part
    assert all(norm_squared(row) <= grid.sensitivity**2 for row in integers)
    assert norm_squared(integers[1]) > Fraction(999, 1000) * grid.sensitivity**2


def test_radius_is_below_what_fractions_say() -> None:
    for dimension in (1, 2, 99, 10**6, 10**9):
        grid = Grid(clip=1, dimension=dimension, noise_multiplier="0.5")
        exact = float(np.longdouble(float(grid.sensitivity)) - np.sqrt(np.longdouble(dimension)) / 2)
        assert exact * (1 - 2.0**-16.9) < grid.radius() < exact * (1 - 2.0**-17.1)


@pytest.mark.parametrize(
    "given",
    [
        {"clip": 0},
        {"clip": -1},
        {"clip": math.nan},
        {"clip": math.inf},
        {"clip": "much"},
        {"clip": None},
        {"noise_multiplier": 0},
        {"noise_multiplier": "-1"},
        {"noise_multiplier": "0.1249"},
        {"noise_multiplier": "1/0"},
        {"dimension": 0},
        {"dimension": -3},
        {"noise_multiplier": 200, "dimension": 10**9},
        {"noise_multiplier": 10**9},
    ],
    ids=str,
)
def test_what_the_proof_does_not_cover_is_refused(given: dict[str, Any]) -> None:
    fitting: dict[str, Any] = {"clip": 1, "dimension": 100, "noise_multiplier": 1}
    Grid(**fitting)
    assert code(lambda: Grid(**(fitting | given))) == 2810


@pytest.mark.parametrize("share", [Fraction(0), Fraction(-1), Fraction(11, 10), Fraction(1, 10**7)])
def test_a_share_is_a_part(share: Fraction) -> None:
    assert code(lambda: Grid(clip=1, dimension=100, noise_multiplier=1).radius(dimension=50, share=share)) == 2810


def test_squares_come_in_float64() -> None:
    assert code(lambda: Grid(clip=1, dimension=100, noise_multiplier=1).factors(torch.ones(3))) == 2810
