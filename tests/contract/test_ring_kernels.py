"""What all kernels must do: the integers' product modulo 2^32, bit for bit, for every geometry and every operand."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.ringworld import DTYPES, GPU, LAYOUTS, LIMITS, LOWEST, convolutions, matmuls, oracle, tensor
from torch import Tensor

from cloister.errors import InputError
from cloister.ring._kernels import kernels_for
from cloister.ring._matrices import MatrixKernels
from cloister.ring._operators import Conv2d, MatMul, Product

NAMES = ("cpu", "cuda", "fp64", "triton")
BOUNDED = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
FEW = settings(BOUNDED, max_examples=15)
ROLES = ("forward", "input_gradient", "weight_gradient")
KINDS = [(left, right) for left in DTYPES for right in DTYPES]
PIECES = (1, 1000, 1 << 22)
PRODUCTS = matmuls() | convolutions()
OPERANDS = st.tuples(st.sampled_from(KINDS), st.integers(0, 1000), st.tuples(LAYOUTS, LAYOUTS), st.sampled_from(PIECES))
_made: dict[str, MatrixKernels] = {}


def make(name: str) -> MatrixKernels:
    if name not in _made:
        kernels = kernels_for(_device(name), prefer=name)
        assert isinstance(kernels, MatrixKernels)
        _made[name] = kernels
    return _made[name]


def _device(name: str) -> torch.device:
    return torch.device("cuda" if GPU and name != "cpu" else "cpu")


def multiply(name: str, product: Product, left: Tensor, right: Tensor, *, pieces: int = 1 << 22) -> Tensor:
    kernels, device = make(name), _device(name)
    kernels.scratch_bytes = pieces
    found = kernels.product(product, left.to(device), right.to(device))
    assert found.dtype == torch.int32
    assert found.is_contiguous()
    return found.cpu()


def operands(product: Product, kinds: tuple[torch.dtype, torch.dtype], seed: int, layouts: tuple[str, str]) -> tuple:
    return (
        tensor(product.left, kinds[0], seed, layout=layouts[0]),
        tensor(product.right, kinds[1], seed + 1, layout=layouts[1]),
    )


def same(name: str, product: Product, left: Tensor, right: Tensor, *, pieces: int = 1 << 22) -> None:
    assert torch.equal(multiply(name, product, left, right, pieces=pieces), oracle(product, left, right)), product


class _Contract:
    """One implementation: the same bits as the definition."""

    name: str
    long: tuple[int, ...] = (16_385, 32_767, 32_768, 65_535, 131_072)
    small = tuple(itertools.product(KINDS, ("reversed", "sliced", "expanded")))

    def random(self, product: Product, kinds: tuple, seed: int, layouts: tuple, pieces: int) -> None:
        same(self.name, product, *operands(product, kinds, seed, layouts), pieces=pieces)

    @pytest.mark.parametrize("role", ROLES)
    @pytest.mark.parametrize(
        ("operator", "x", "w"),
        [
            (MatMul(), (2, 1, 5, 40), (2, 1, 7, 40)),
            (Conv2d(padding=(1, 1)), (2, 16, 6, 5), (7, 16, 3, 3)),
            (Conv2d(stride=(2, 2), padding=(1, 1)), (2, 3, 9, 9), (4, 3, 3, 3)),
            (Conv2d(stride=(2, 3), padding=(3, 0), dilation=(2, 3)), (1, 5, 8, 12), (4, 5, 3, 2)),
            (Conv2d(stride=(3, 3)), (2, 4, 7, 7), (3, 4, 1, 1)),
            (Conv2d(stride=(2, 1), padding=(1, 1), groups=2), (2, 32, 5, 4), (18, 16, 3, 3)),
            (Conv2d(padding=(1, 1), groups=6), (2, 6, 5, 5), (12, 1, 3, 3)),
        ],
    )
    def test_each_operator_and_role(self, operator: MatMul | Conv2d, x: tuple, w: tuple, role: str) -> None:
        product = Product(operator, role, x=x, w=w)
        for kinds in KINDS:
            self.random(product, kinds, 7, ("contiguous", "contiguous"), 1 << 22)
        self.random(product, KINDS[0], 8, ("contiguous", "contiguous"), 1)  # the smallest pieces

    @pytest.mark.parametrize("role", ROLES)
    def test_axes_of_one_element(self, role: str) -> None:
        """Their strides say nothing, and torch keeps odd ones: a transposed column is 'contiguous' too."""
        sizes = list(itertools.product((1, 2), repeat=4))
        products = [Product(MatMul(), role, x=(n, b, i), w=(n, o, i)) for n, b, i, o in sizes]
        products += [Product(Conv2d(), role, x=(b, c, 2, 1), w=(o, c, k, 1)) for b, c, o, k in sizes]
        for product, (kinds, layout) in itertools.product(products, self.small):
            self.random(product, kinds, 3, (layout, "reversed"), 1 << 22)

    @pytest.mark.parametrize("kinds", KINDS)
    @pytest.mark.parametrize("role", ROLES)
    def test_the_largest_operands(self, role: str, kinds: tuple) -> None:
        """Each with each, everywhere and in turn; ends of the range and words whose limbs are all at theirs."""
        product = Product(MatMul(), role, x=(32, 33), w=(34, 33))
        everywhere = [[(value, value) for value in LIMITS[kind]] for kind in kinds]
        in_turn = [[(value, -1 - value) for value in LIMITS[kind]] for kind in kinds]
        for lefts, rights in ((everywhere[0], everywhere[1]), (in_turn[0], everywhere[1]), (in_turn[0], in_turn[1])):
            for left in lefts:
                a = torch.full(product.left, left[0], dtype=kinds[0])
                a.view(-1)[::2] = left[1]
                b = torch.full(product.right, rights[0][0], dtype=kinds[1])
                for row, right in enumerate(rights):
                    b[row :: len(rights)] = right[0]
                    b[row :: len(rights), ::2] = right[1]
                same(self.name, product, a, b)

    @pytest.mark.parametrize("kinds", KINDS)
    def test_the_largest_operands_in_long_sums(self, kinds: tuple) -> None:
        """Longer than what one accumulator may hold, of any arithmetic: a row for each end, alone and in turn."""
        for terms in self.long:
            sides = []
            for kind in kinds:
                rows = torch.tensor(LIMITS[kind], dtype=kind).repeat(2)[:, None].repeat(1, terms)
                rows[len(LIMITS[kind]) :, ::2] = -1 - rows[len(LIMITS[kind]) :, ::2]
                sides.append(rows)
            product = Product(MatMul(), "forward", x=tuple(sides[0].shape), w=tuple(sides[1].shape))
            same(self.name, product, *sides)

    @pytest.mark.parametrize("role", ROLES)
    def test_the_largest_operands_in_a_convolution(self, role: str) -> None:
        """Among them a weight gradient over more pixels than one accumulator may hold, and 36,864 terms of windows."""
        x, w = ((1, 1, 130, 260), (1, 1, 1, 2)) if role == "weight_gradient" else ((1, 4096, 3, 3), (2, 4096, 3, 3))
        if role == "input_gradient":
            x, w = (1, 2, 3, 3), (4096, 2, 3, 3)
        product = Product(Conv2d(padding=(1, 1)), role, x=x, w=w)
        for kinds in (KINDS[0], KINDS[2]):
            left = torch.full(product.left, LOWEST[kinds[0]], dtype=kinds[0])
            right = torch.full(product.right, LOWEST[kinds[1]], dtype=kinds[1])
            same(self.name, product, left, right)

    def test_nothing_to_multiply_is_zero(self) -> None:
        for product in (
            Product(MatMul(), "forward", x=(3, 0), w=(4, 0)),
            Product(MatMul(), "weight_gradient", x=(0, 3), w=(4, 3)),
            Product(MatMul(), "forward", x=(0, 3), w=(4, 3)),
            Product(Conv2d(), "weight_gradient", x=(0, 3, 5, 5), w=(4, 3, 3, 3)),
            Product(Conv2d(), "input_gradient", x=(2, 0, 5, 5), w=(4, 0, 3, 3)),
            Product(Conv2d(stride=(4, 4)), "input_gradient", x=(1, 1, 8, 8), w=(1, 1, 1, 1)),
        ):
            left, right = operands(product, (torch.int32, torch.int8), 1, ("contiguous", "contiguous"))
            same(self.name, product, left, right)

    @pytest.mark.parametrize(
        ("left", "right"),
        [
            (torch.zeros(2, 3), torch.zeros(4, 3, dtype=torch.int8)),
            (torch.zeros(2, 3, dtype=torch.int8), torch.zeros(4, 3, dtype=torch.int64)),
            (torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(4, 3, dtype=torch.int8)),
            (torch.zeros(3, 2, dtype=torch.int8), torch.zeros(4, 3, dtype=torch.int8)),
            (torch.zeros(2, 3, dtype=torch.int8), torch.zeros(4, 3, 1, dtype=torch.int8)),
            (torch.zeros(2, 3, dtype=torch.int8), torch.zeros(4, 3, dtype=torch.int8, device="meta")),
        ],
    )
    def test_other_operands_are_refused(self, left: Tensor, right: Tensor) -> None:
        with pytest.raises(InputError) as error:
            make(self.name).product(Product(MatMul(), "forward", x=(2, 3), w=(4, 3)), left, right)
        assert error.value.code == 2702


class TestCpu(_Contract):
    name = "cpu"

    @BOUNDED
    @given(PRODUCTS, OPERANDS)
    def test_any_geometry(self, product: Product, drawn: tuple) -> None:
        self.random(product, *drawn)


class TestCuda(_Contract):
    name = "cuda"

    @BOUNDED
    @given(PRODUCTS, OPERANDS)
    def test_any_geometry(self, product: Product, drawn: tuple) -> None:
        self.random(product, *drawn)


class TestFp64(_Contract):
    name = "fp64"

    @BOUNDED
    @given(PRODUCTS, OPERANDS)
    def test_any_geometry(self, product: Product, drawn: tuple) -> None:
        self.random(product, *drawn)


class TestTriton(_Contract):
    name = "triton"
    # every launch and every block of terms costs the interpreter milliseconds
    long = _Contract.long if GPU else (32_768,)
    small = _Contract.small if GPU else ((KINDS[0], "reversed"),)

    @pytest.mark.slow
    @pytest.mark.parametrize("kinds", KINDS)
    def test_the_largest_operands_in_long_sums(self, kinds: tuple) -> None:
        super().test_the_largest_operands_in_long_sums(kinds)

    @pytest.mark.slow
    @pytest.mark.parametrize("role", ROLES)
    def test_the_largest_operands_in_a_convolution(self, role: str) -> None:
        super().test_the_largest_operands_in_a_convolution(role)

    @FEW
    @given(PRODUCTS, OPERANDS)
    def test_any_geometry(self, product: Product, drawn: tuple) -> None:
        self.random(product, *drawn)


@pytest.mark.parametrize("role", ROLES)
def test_all_implementations_agree_on_a_layer_of_a_network(role: str) -> None:
    """Larger than the definition's loops can follow; several pieces, tiles and kinds of padding."""
    for product in (
        Product(Conv2d(padding=(1, 1)), role, x=(3, 32, 7, 7), w=(40, 32, 3, 3)),
        Product(MatMul(), role, x=(70, 200), w=(40, 200)),
    ):
        left, right = operands(product, (torch.int32, torch.int32), 3, ("contiguous", "contiguous"))
        found = [multiply(name, product, left, right, pieces=50_000) for name in NAMES]
        assert all(torch.equal(found[0], other) for other in found[1:])
