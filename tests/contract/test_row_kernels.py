"""What all row kernels must do: each example's gradient as autograd gives it alone, in float64; exact rounded sums."""

import itertools
import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.rowworld import (
    LAYOUTS,
    LIMIT,
    conv2d_oracle,
    convolutions,
    drawn,
    embedding_oracle,
    linear_oracle,
    sum_oracle,
)
from torch import Tensor
from torch.nn import functional as F

from cloister.errors import InputError
from cloister.privacy._kernels import Biases, NormGradients, RowKernels, conv2d_weight, row_kernels

BOUNDED = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
)
CPU = torch.device("cpu")
NEAR = 1e-6  # of a row's norm, or of what it would be were its terms independent: they may cancel
SQUARES = 2.0**-18  # of a squared norm


class Rows:
    """Rows in an arena of garbage, with garbage around them; and the squares, which begin at something.

    ``typical`` is each row's norm where terms are independent: the root of the sum of their squares.
    """

    def __init__(self, count: int, size: int, *, before: float = float("nan"), typical: Tensor | None = None) -> None:
        self.typical = torch.zeros(count, dtype=torch.float64) if typical is None else typical
        self.arena = torch.full((count, size + 7), float("nan"))
        self.rows = self.arena[:, 3 : 3 + size]
        self.rows.fill_(before)
        self.squares = torch.full((count,), 0.5, dtype=torch.float64)

    def check(self, oracle: Tensor, *, squares: bool = True) -> None:
        expected = oracle.flatten(1)
        wrong = (self.rows.double() - expected).norm(dim=1)
        scale = torch.maximum(expected.norm(dim=1), self.typical)
        assert (wrong <= NEAR * scale).all(), (wrong / scale).max()
        assert self.arena[:, :3].isnan().all()
        assert self.arena[:, 3 + expected.shape[1] :].isnan().all()
        exact = self.rows.double().square().sum(1)
        found = self.squares - 0.5
        assert not squares or ((found - exact).abs() <= SQUARES * exact + 1e-15).all()


GROUPED = [
    ((2, 8, 5, 7), 2),
    ((1, 6, 1, 1), 3),
    ((3, 16, 8, 8), 16),
    ((2, 24, 9, 3), 1),
    ((2, 20, 33), 5),
    ((3, 6), 3),
    ((0, 4, 3, 3), 2),
    ((2, 40, 33, 65), 8),
    ((1, 4, 2, 3, 5), 2),
]


def of_groups(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """``(B, groups)`` means, and reciprocals of deviations with an eps of 1e-5."""
    grouped = x.reshape(len(x), groups, math.prod(x.shape[1:]) // groups)
    mean = grouped.mean(2)
    return mean, ((grouped - mean.unsqueeze(2)).square().mean(2) + 1e-5).rsqrt()


def normal(x: Tensor, mean: Tensor, deviation: Tensor, *, axis: int) -> Tensor:
    """Normalised with these numbers, in float64: of groups of channels, or of positions."""
    if axis == -1:
        return (x.double() - mean.double().unsqueeze(-1)) * deviation.double().unsqueeze(-1)
    grouped = x.double().reshape(*mean.shape, math.prod(x.shape[1:]) // mean.shape[1])
    return ((grouped - mean.double().unsqueeze(2)) * deviation.double().unsqueeze(2)).reshape(x.shape)


class Gradients(NamedTuple):
    """A norm's in float64, these being mean and deviation of x, whatever they are."""

    weight: Tensor
    bias: Tensor
    input: Tensor
    scaled: Tensor  # what the input's is the difference of

    def check(self, made: NormGradients, *, away: float = 0.0) -> None:
        """Each example's are within a millionth of its length, the input's where no mean is many deviations large."""
        for one, other, size, near in (
            (made.weight, self.weight, self.weight, NEAR),
            (made.bias, self.bias, self.bias, NEAR),
            (made.input, self.input, self.scaled, NEAR * (1 + away)),
        ):
            assert one is not None
            assert one.shape == other.shape
            assert one.dtype == torch.float32
            wrong = (one.double() - other).flatten(1).norm(dim=1)
            assert (wrong <= near * size.flatten(1).norm(dim=1)).all(), wrong


def group_norm_oracle(x: Tensor, dy: Tensor, weight: Tensor | None, mean: Tensor, deviation: Tensor) -> Gradients:
    values, positions = normal(x, mean, deviation, axis=1), tuple(range(2, x.dim()))
    weights, biases = (each.sum(positions) if positions else each for each in (values * dy.double(), dy.double()))
    scaled = dy.double() if weight is None else dy.double() * weight.double().view(-1, *[1] * (x.dim() - 2))
    grouped, inside = (each.reshape(*mean.shape, math.prod(x.shape[1:]) // mean.shape[1]) for each in (scaled, values))
    left = grouped - grouped.mean(2, keepdim=True) - inside * (grouped * inside).mean(2, keepdim=True)
    left, grouped = (each * deviation.double().unsqueeze(2) for each in (left, grouped))
    return Gradients(weights, biases, left.reshape(x.shape), grouped)


def layer_norm_oracle(x: Tensor, dy: Tensor, weight: Tensor | None, mean: Tensor, deviation: Tensor) -> Gradients:
    values, scaled = normal(x, mean, deviation, axis=-1), dy.double() if weight is None else dy.double() * weight
    positions = tuple(range(1, x.dim() - 1))
    weights, biases = (each.sum(positions) if positions else each for each in (values * dy.double(), dy.double()))
    left = scaled - scaled.mean(-1, keepdim=True) - values * (scaled * values).mean(-1, keepdim=True)
    left, scaled = (each * deviation.double().unsqueeze(-1) for each in (left, scaled))
    return Gradients(weights, biases, left, scaled)


class _Contract:
    """One implementation."""

    name: str
    loses_digits = False  # of a norm's gradients, where a mean is many deviations large

    @pytest.fixture
    def kernels(self) -> RowKernels:
        return row_kernels(CPU, prefer=self.name)

    # ---- convolutions --------------------------------------------------------------------------------------

    @BOUNDED
    @given(of=convolutions(), layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 2), seed=st.integers(0, 1000))
    def test_convolutions(self, of: dict, layouts: tuple[str, str], seed: int) -> None:
        self.convolution(of, layouts, seed)

    @pytest.mark.parametrize("layouts", list(itertools.product(("first", "last"), repeat=2)))
    @pytest.mark.parametrize(
        ("inputs", "outputs", "size", "kernel", "stride", "padding"),
        [
            (16, 16, 32, 3, 1, 1),
            (16, 32, 32, 3, 2, 1),
            (3, 32, 32, 3, 1, 1),
            (64, 40, 8, 3, 1, 1),
            (16, 32, 8, 1, 2, 0),
            (24, 20, 7, 1, 1, 0),
            (3, 64, 40, 7, 2, 3),
            (17, 5, 1, 3, 1, 1),
            (9, 10, 6, 3, 1, 1),
        ],
    )
    def test_layers_of_networks(
        self, inputs: int, outputs: int, size: int, kernel: int, stride: int, padding: int, layouts: tuple
    ) -> None:
        of = {"shape": (2, inputs, size, size), "outputs": outputs, "kernel": (kernel, kernel)}
        of |= {"stride": (stride, stride), "padding": (padding, padding), "dilation": (1, 1), "groups": 1}
        self.convolution(of, layouts, 3)

    def test_a_row_of_positions_longer_than_a_block(self) -> None:
        of = {"shape": (2, 3, 2, 2500), "outputs": 5, "kernel": (1, 3), "stride": (1, 1), "padding": (0, 1)}
        self.convolution(of | {"dilation": (1, 1), "groups": 1}, ("first", "first"), 1)
        of = {"shape": (2, 6, 2, 700), "outputs": 6, "kernel": (2, 3), "stride": (1, 2), "padding": (1, 1)}
        self.convolution(of | {"dilation": (1, 1), "groups": 6}, ("last", "first"), 1)

    def convolution(self, of: dict, layouts: tuple[str, str], seed: int) -> None:
        kernels = row_kernels(CPU, prefer=self.name)
        geometry = {name: of[name] for name in ("stride", "padding", "dilation", "groups")}
        x = drawn(of["shape"], seed, layouts[0])
        weight = torch.zeros(of["outputs"], x.shape[1] // of["groups"], *of["kernel"])
        dy = drawn(tuple(F.conv2d(x, weight, **geometry).shape), seed + 1, layouts[1])
        oracle = conv2d_oracle(x, dy, kernel=of["kernel"], **geometry)
        typical = conv2d_oracle(x.square(), dy.square(), kernel=of["kernel"], **geometry).flatten(1).sum(1).sqrt()
        alike = dy.double().square().flatten(1).sum(1).sqrt()
        for order in ("weight", "kernel"):
            expected = oracle if order == "weight" else oracle.permute(0, 3, 4, 2, 1)
            rows = Rows(len(x), weight.numel(), typical=typical)
            kernels.conv2d_rows(x, dy, rows.rows, rows.squares, kernel=of["kernel"], **geometry, order=order)
            rows.check(expected.flatten(1))
            kernels.conv2d_rows(x, dy, rows.rows, None, kernel=of["kernel"], **geometry, order=order, add=True)
            rows.check(2 * expected.flatten(1), squares=False)
            rows.squares.fill_(0.5)
            kernels.conv2d_rows(x, dy, rows.rows, rows.squares, kernel=of["kernel"], **geometry, order=order, add=True)
            rows.check(3 * expected.flatten(1))
            rows, biases = Rows(len(x), weight.numel(), typical=typical), Rows(len(x), len(weight), typical=alike)
            places = Biases(biases.rows, biases.squares)
            kernels.conv2d_rows(
                x, dy, rows.rows, rows.squares, kernel=of["kernel"], **geometry, order=order, biases=places
            )
            rows.check(expected.flatten(1))
            biases.check(dy.double().sum((2, 3)))
            biases.squares.fill_(0.5)
            kernels.conv2d_rows(
                x, dy, rows.rows, None, kernel=of["kernel"], **geometry, order=order, biases=places, add=True
            )
            biases.check(2 * dy.double().sum((2, 3)))

    def test_biases_of_gradients_that_are_alike_keep_their_digits(self, kernels: RowKernels) -> None:
        x, dy = drawn((2, 3, 40, 40), 1), torch.full((2, 20, 40, 40), 0.1)
        rows, biases = Rows(2, 20 * 27), Rows(2, 20)
        places = Biases(biases.rows, biases.squares)
        kernels.conv2d_rows(x, dy, rows.rows, None, kernel=(3, 3), padding=(1, 1), biases=places)
        biases.check(dy.double().sum((2, 3)))

    def test_the_faster_order_is_a_view_of_the_weight(self, kernels: RowKernels) -> None:
        x, dy = drawn((2, 6, 5, 5), 1), drawn((2, 4, 5, 5), 2)
        rows = {order: torch.zeros(2, 4 * 3 * 9) for order in ("weight", "kernel")}
        for order, made in rows.items():
            kernels.conv2d_rows(x, dy, made, None, kernel=(3, 3), padding=(1, 1), groups=2, order=order)
        seen = conv2d_weight(rows["kernel"], inputs=3, kernel=(3, 3))
        assert seen.shape == (2, 4, 3, 3, 3)
        assert torch.allclose(seen.reshape(2, -1), rows["weight"], rtol=0, atol=1e-5)

    # ---- Linear --------------------------------------------------------------------------------------------

    @BOUNDED
    @given(
        count=st.sampled_from((0, 1, 3)),
        positions=st.sampled_from(((), (1,), (2,), (7,), (3, 5), (0,), (2000,))),
        inputs=st.sampled_from((1, 3, 16, 17, 31, 64, 70)),
        outputs=st.sampled_from((1, 2, 5, 8, 16, 33)),
        layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 2),
        seed=st.integers(0, 1000),
    )
    def test_linear(
        self, count: int, positions: tuple, inputs: int, outputs: int, layouts: tuple[str, str], seed: int
    ) -> None:
        kernels = row_kernels(CPU, prefer=self.name)
        x = drawn((count, *positions, inputs), seed, layouts[0])
        dy = drawn((count, *positions, outputs), seed + 1, layouts[1])
        oracle = linear_oracle(x, dy).flatten(1)
        typical = linear_oracle(x.square(), dy.square()).flatten(1).sum(1).sqrt()
        rows = Rows(count, inputs * outputs, typical=typical)
        kernels.linear_rows(x, dy, rows.rows, rows.squares)
        rows.check(oracle)
        rows.squares.fill_(0.5)
        kernels.linear_rows(x, dy, rows.rows, rows.squares, add=True)
        rows.check(2 * oracle)

    @pytest.mark.parametrize(
        ("count", "inputs", "outputs"), [(0, 4, 4), (1, 1, 1), (5, 70, 6), (64, 64, 9), (40, 3, 17)]
    )
    def test_outer_products_need_no_row(self, kernels: RowKernels, count: int, inputs: int, outputs: int) -> None:
        x, dy = drawn((count, 1, inputs), 5, "sliced")[:, 0], drawn((count, outputs), 6, "reversed")
        squares = torch.full((count,), 0.5, dtype=torch.float64)
        kernels.outer_squares(x, dy, squares)
        exact = linear_oracle(x, dy).flatten(1).square().sum(1)
        assert ((squares - 0.5 - exact).abs() <= SQUARES * exact).all()
        factors = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2.0**20
        total = torch.arange(inputs * outputs)
        kernels.outer_sum_rounded(x, dy, factors, total)
        scaled = (dy * factors.float()[:, None])[:, :, None] * x[:, None, :]
        expected = sum_oracle(scaled.flatten(1), torch.ones(count, dtype=torch.float64))
        assert torch.equal(total - torch.arange(inputs * outputs), expected)

    def test_outer_sums_leave_out_what_is_no_number_or_too_large(self, kernels: RowKernels) -> None:
        x = torch.tensor([[1.0, float("inf")], [2.0, float("nan")], [1.0, 3e38], [3.0, 5.0]])
        dy = torch.tensor([[1.0], [1.0], [1.0], [2.0]])
        total = torch.zeros(2, dtype=torch.int64)
        kernels.outer_sum_rounded(x, dy, torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64), total)
        assert total.tolist() == [0 + 0 + 1 + 6, 10]

    # ---- embeddings ----------------------------------------------------------------------------------------

    @pytest.mark.parametrize(("count", "length", "width"), [(0, 3, 4), (1, 1, 1), (3, 12, 5), (2, 0, 4), (4, 33, 40)])
    def test_embeddings(self, kernels: RowKernels, count: int, length: int, width: int) -> None:
        vocabulary = 9
        tokens = torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(3))
        dy = drawn((count, length, width), 4, "sliced")
        oracle = embedding_oracle(tokens, dy, vocabulary).flatten(1)
        rows = Rows(count, vocabulary * width)
        kernels.embedding_rows(tokens, dy, rows.rows, rows.squares)
        rows.check(oracle)
        squares = torch.full((count,), 0.5, dtype=torch.float64)
        kernels.embedding_squares(tokens, dy, squares)
        assert torch.allclose(squares, rows.squares, rtol=SQUARES, atol=1e-12)
        factors = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 1000
        total = torch.zeros(vocabulary * width, dtype=torch.int64)
        kernels.embedding_sum_rounded(tokens, dy, factors, total)
        assert torch.equal(total, sum_oracle(rows.rows, factors))
        kernels.embedding_rows(tokens, dy, rows.rows, None, add=True)
        rows.check(2 * oracle, squares=False)

    def test_a_token_that_comes_twice_is_rounded_once(self, kernels: RowKernels) -> None:
        tokens, dy = torch.tensor([[1, 0, 1, 1]]), torch.full((1, 4, 1), 0.4)
        total = torch.zeros(2, dtype=torch.int64)
        kernels.embedding_sum_rounded(tokens, dy, torch.ones(1, dtype=torch.float64), total)
        assert total.tolist() == [0, 1]  # 1.2, not three times 0.4
        squares = torch.zeros(1, dtype=torch.float64)
        kernels.embedding_squares(tokens, dy, squares)
        assert squares.item() == pytest.approx(1.2**2 + 0.4**2, rel=1e-6)

    # ---- biases and norms ----------------------------------------------------------------------------------

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("shape", [(2, 5), (0, 3, 4, 4), (1, 1, 1, 1), (3, 16, 8, 8), (2, 7, 33, 3), (2, 6, 40)])
    def test_biases(self, kernels: RowKernels, shape: tuple[int, ...], layout: str) -> None:
        dy = drawn(shape, 1, layout)
        oracle = dy.double().sum(tuple(range(2, dy.dim()))) if dy.dim() > 2 else dy.double()
        rows = Rows(*shape[:2])
        kernels.bias_rows(dy, rows.rows, rows.squares)
        rows.check(oracle)
        kernels.bias_rows(dy, rows.rows, None, add=True)
        rows.check(2 * oracle, squares=False)

    @pytest.mark.parametrize("layouts", list(itertools.product(("first", "last", "sliced"), repeat=2)))
    @pytest.mark.parametrize(("shape", "groups"), GROUPED)
    def test_gradients_of_group_norms(
        self, kernels: RowKernels, shape: tuple[int, ...], groups: int, layouts: tuple
    ) -> None:
        x, dy, weight = drawn(shape, 1, layouts[0]), drawn(shape, 2, layouts[1]), drawn(shape[1:2], 3)
        for offset, scale in ((0.0, weight), (0.0, None), (3000.0, weight)):
            mean, deviation = of_groups(x + offset, groups)
            made = kernels.group_norm_backward(x + offset, dy, scale, mean, deviation)
            away = offset * float(deviation.max()) if self.loses_digits and len(x) else 0.0
            group_norm_oracle(x + offset, dy, scale, mean, deviation).check(made, away=away)
            alone = kernels.group_norm_backward(x + offset, dy, scale, mean, deviation, input=False)
            assert alone.input is None
            assert torch.equal(alone.weight, made.weight)
            assert torch.equal(alone.bias, made.bias)

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize(("shape", "groups"), GROUPED)
    def test_group_norms(self, kernels: RowKernels, shape: tuple[int, ...], groups: int, layout: str) -> None:
        x, weight, bias = drawn(shape, 1, layout), drawn(shape[1:2], 2), drawn(shape[1:2], 3)
        for factors, summands in ((weight, bias), (None, None), (None, bias)):
            y, mean, deviation = kernels.group_norm(x, factors, summands, groups=groups, eps=1e-5)
            exact = of_groups(x.double(), groups)
            expected = normal(x, *exact, axis=1)
            for parameter, meet in ((factors, torch.mul), (summands, torch.add)):
                if parameter is not None:
                    expected = meet(expected, parameter.double().view(-1, *[1] * (x.dim() - 2)))
            for one, other in zip((y, mean, deviation), (expected, *exact), strict=True):
                assert one.shape == other.shape
                assert torch.allclose(one.double(), other, rtol=1e-5, atol=1e-5)
            if layout == "last" and len(shape) == 4 and y.numel():
                assert y.stride() == torch.empty(shape).contiguous(memory_format=torch.channels_last).stride()

    @pytest.mark.parametrize("layouts", list(itertools.product(("first", "last", "sliced"), repeat=2)))
    @pytest.mark.parametrize(("shape", "groups"), GROUPED)
    def test_a_sum_and_a_relu_behind_group_norms(
        self, kernels: RowKernels, shape: tuple[int, ...], groups: int, layouts: tuple
    ) -> None:
        x, dy, other = drawn(shape, 1, layouts[0]), drawn(shape, 2, layouts[1]), drawn(shape, 5, layouts[1])
        weight, bias = drawn(shape[1:2], 3), drawn(shape[1:2], 4)
        alone, mean, deviation = kernels.group_norm(x, weight, bias, groups=groups, eps=1e-5)
        for summand in (None, other):
            options = {"groups": groups, "eps": 1e-5, "rectified": True, "summand": summand}
            y, *statistics = kernels.group_norm(x, weight, bias, **options)
            assert torch.equal(y, (alone if summand is None else alone + summand).relu())
            assert y.stride() == alone.stride()
            for one, of in zip(statistics, (mean, deviation), strict=True):
                assert torch.equal(one, of)
            passed = torch.where(y > 0, dy, 0.0)
            oracle = group_norm_oracle(x, passed, weight, mean, deviation)
            wants = summand is not None
            for input in (True, False):
                made = kernels.group_norm_backward(
                    x, dy, weight, mean, deviation, input=input, rectified=y, summand=wants
                )
                assert (made.input is not None) == input
                assert (made.summand is not None) == wants
                assert made.summand is None or torch.equal(made.summand, passed)
                if input:
                    oracle.check(made)
                    whole = made
                assert torch.equal(made.weight, whole.weight)
                assert torch.equal(made.bias, whole.bias)

    def test_what_is_no_number_passes_a_relu(self, kernels: RowKernels) -> None:
        x = drawn((3, 8, 4, 4), 1, "last")
        x[1, 2, 1, 1] = float("nan")
        y, mean, deviation = kernels.group_norm(x, None, None, groups=2, eps=1e-5, rectified=True)
        made = kernels.group_norm_backward(x, torch.ones_like(x), None, mean, deviation, rectified=y)
        for each in (y, made.weight, made.input):
            assert each is not None
            assert each[1].isnan().any()
            assert not each[[0, 2]].isnan().any()

    @pytest.mark.parametrize("layouts", list(itertools.product(("first", "sliced", "reversed"), repeat=2)))
    @pytest.mark.parametrize("shape", [(2, 5, 8), (3, 1, 7), (4, 33), (2, 3, 4, 33), (0, 2, 3), (2, 70, 48), (1, 1, 1)])
    def test_gradients_of_layer_norms(self, kernels: RowKernels, shape: tuple[int, ...], layouts: tuple) -> None:
        x, dy, weight = drawn(shape, 1, layouts[0]), drawn(shape, 2, layouts[1]), drawn(shape[-1:], 3)
        for offset, scale in ((0.0, weight), (0.0, None), (3000.0, weight)):
            mean = (x + offset).mean(-1)
            deviation = ((x + offset - mean.unsqueeze(-1)).square().mean(-1) + 1e-5).rsqrt()
            made = kernels.layer_norm_backward(x + offset, dy, scale, mean, deviation)
            away = offset * float(deviation.max()) if self.loses_digits and len(x) else 0.0
            layer_norm_oracle(x + offset, dy, scale, mean, deviation).check(made, away=away)
            alone = kernels.layer_norm_backward(x + offset, dy, scale, mean, deviation, input=False)
            assert alone.input is None
            assert torch.equal(alone.weight, made.weight)

    @pytest.mark.parametrize("layout", ["first", "last"])
    def test_norms_of_an_example_depend_on_itself_alone(self, kernels: RowKernels, layout: str) -> None:
        x, dy, weight = drawn((5, 24, 9, 9), 1, layout), drawn((5, 24, 9, 9), 2, layout), drawn((24,), 3)
        mean, deviation = of_groups(x, 4)
        rows, others = x.flatten(2).mT, dy.flatten(2).mT

        def of(some: slice) -> list[Tensor]:
            given = x[some], dy[some], weight, mean[some], deviation[some]
            of_rows = rows[some], others[some], weight, rows[some].mean(2), rows[some].std(2).reciprocal()
            made = kernels.group_norm(x[some], weight, None, groups=4, eps=1e-5, rectified=True, summand=dy[some])
            found = [*kernels.group_norm_backward(*given, rectified=made[0], summand=True)]
            found += [*kernels.group_norm_backward(*given)[:3], *kernels.layer_norm_backward(*of_rows)[:3]]
            return [*found, *made, *kernels.group_norm(x[some], weight, None, groups=4, eps=1e-5)]

        x[1, 3, 2, 2] = float("nan")
        together = of(slice(None))
        before = torch.get_num_threads()
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                for one, other in zip(of(slice(3, 4)), together, strict=True):
                    assert one.isfinite().all()
                    assert self.same(one[0], other[3])
        finally:
            torch.set_num_threads(before)

    # ---- norms and sums ------------------------------------------------------------------------------------

    @pytest.mark.parametrize(("count", "size"), [(0, 5), (3, 0), (1, 1), (2, 31), (5, 1000)])
    def test_squares(self, kernels: RowKernels, count: int, size: int) -> None:
        rows = Rows(count, size)
        rows.rows.copy_(drawn((count, size), 1))
        kernels.square_rows(rows.rows, rows.squares)
        rows.check(rows.rows.double())

    @BOUNDED
    @given(
        count=st.sampled_from((0, 1, 2, 14, 15, 16, 31, 64)),
        size=st.sampled_from((0, 1, 15, 64, 128, 129, 300)),
        power=st.integers(-3, 26),
        seed=st.integers(0, 1000),
    )
    def test_rounded_sums_are_exact(self, count: int, size: int, power: int, seed: int) -> None:
        kernels = row_kernels(CPU, prefer=self.name)
        rows = drawn((count, size + 5), seed)[:, 2 : 2 + size]
        factors = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2.0**power
        total = torch.arange(size)
        kernels.sum_rounded(rows, factors, total)
        assert torch.equal(total - torch.arange(size), sum_oracle(rows, factors))

    def test_halves_go_to_even_numbers(self, kernels: RowKernels) -> None:
        rows = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997, 1.0]])
        total = torch.zeros(7, dtype=torch.int64)
        kernels.sum_rounded(rows, torch.ones(1, dtype=torch.float64), total)
        assert total.tolist() == [0, 2, 2, 0, -2, 0, 1]

    def test_each_row_is_rounded_before_any_is_added(self, kernels: RowKernels) -> None:
        total = torch.zeros(1, dtype=torch.int64)
        kernels.sum_rounded(torch.full((40, 1), 0.4), torch.ones(40, dtype=torch.float64), total)
        assert total.item() == 0

    @pytest.mark.parametrize("size", [3, 128, 200])
    def test_no_sum_of_the_largest_leaves_its_words(self, kernels: RowKernels, size: int) -> None:
        total = torch.zeros(size, dtype=torch.int64)
        rows = torch.full((100, size), float(LIMIT))
        rows[:, 1] *= -1
        kernels.sum_rounded(rows, torch.ones(100, dtype=torch.float64), total)
        assert total.tolist() == [-100 * LIMIT if column == 1 else 100 * LIMIT for column in range(size)]

    @pytest.mark.parametrize("size", [7, 135])
    def test_what_is_no_number_or_too_large_counts_as_nothing(self, kernels: RowKernels, size: int) -> None:
        rows = torch.ones(3, size)
        rows[0, :4] = torch.tensor([float("nan"), float("inf"), float("-inf"), 3e38])
        rows[2, :2] = torch.tensor([LIMIT + 16.0, -LIMIT - 16.0])  # the next float32
        total = torch.zeros(size, dtype=torch.int64)
        kernels.sum_rounded(rows, torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64), total)
        assert total.tolist() == [1, 1] + [2] * (size - 2)

    @pytest.mark.parametrize("size", [0, 1, 200, 40_000])
    def test_a_release_is_rounded_once_and_leaves_nothing(self, kernels: RowKernels, size: int) -> None:
        total = torch.randint(-(1 << 50), 1 << 50, (size,), generator=torch.Generator().manual_seed(size))
        expected, released = (total.double() * 1.1e-9).float(), torch.full((size + 2,), float("nan"))
        kernels.release(total, 1.1e-9, released[1:-1])
        assert torch.equal(released[1:-1], expected)
        assert released[[0, -1]].isnan().all()
        assert not total.any()

    def test_a_release_of_another_shape_is_refused(self, kernels: RowKernels) -> None:
        total = torch.zeros(5, dtype=torch.int64)
        for wrong in (torch.zeros(4), torch.zeros(5, dtype=torch.float64), torch.zeros(10)[::2]):
            with pytest.raises(InputError) as refused:
                kernels.release(total, 1.0, wrong)
            assert refused.value.code == 2821

    def test_a_row_that_is_not_finite_has_no_finite_norm(self, kernels: RowKernels) -> None:
        x, dy = drawn((3, 4, 6, 6), 1), drawn((3, 16, 6, 6), 2)
        x[1, 2, 3, 3], x[2, 0, 0, 0] = float("nan"), float("inf")
        rows = torch.zeros(3, 16 * 4 * 9)
        squares = torch.zeros(3, dtype=torch.float64)
        kernels.conv2d_rows(x, dy, rows, squares, kernel=(3, 3), padding=(1, 1))
        assert squares.isfinite().tolist() == [True, False, False]

    def test_an_example_depends_on_itself_alone_on_any_number_of_threads(self, kernels: RowKernels) -> None:
        x, dy = drawn((5, 16, 9, 9), 1), drawn((5, 24, 9, 9), 2)
        geometry = {"kernel": (3, 3), "padding": (1, 1)}
        rows, squares = torch.zeros(5, 24 * 16 * 9), torch.zeros(5, dtype=torch.float64)
        kernels.conv2d_rows(x, dy, rows, squares, **geometry)
        before = torch.get_num_threads()
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                again, others = torch.zeros_like(rows), torch.zeros_like(squares)
                kernels.conv2d_rows(x, dy, again, others, **geometry)
                assert self.same(again, rows)
                assert self.same(others, squares)
        finally:
            torch.set_num_threads(before)
        alone, square = torch.zeros(1, rows.shape[1]), torch.zeros(1, dtype=torch.float64)
        kernels.conv2d_rows(x[3:4], dy[3:4], alone, square, **geometry)
        assert self.same(alone[0], rows[3])

    def same(self, one: Tensor, other: Tensor) -> bool:
        return torch.equal(one, other)


class TestCpu(_Contract):
    """Compiled: the same bits in any company."""

    name = "cpu"

    def test_a_mean_of_many_deviations_costs_a_group_norm_no_digits(self, kernels: RowKernels) -> None:
        x = drawn((3, 24, 17, 9), 1, "last") + 3000
        y, mean, deviation = kernels.group_norm(x, None, None, groups=4, eps=1e-5)
        exact = of_groups(x.double(), 4)
        assert torch.allclose(mean.double(), exact[0], rtol=2.0**-24, atol=0)
        assert torch.allclose(deviation.double(), exact[1], rtol=1e-6, atol=0)
        assert torch.allclose(y.double(), normal(x, mean, deviation, axis=1), rtol=1e-6, atol=0)


class TestTorch(_Contract):
    """Plain torch, whose products may round otherwise with other threads."""

    name = "torch"
    loses_digits = True

    def same(self, one: Tensor, other: Tensor) -> bool:
        return torch.allclose(one, other, rtol=1e-5, atol=1e-4)
