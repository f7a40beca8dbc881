"""What all kernels must do: the integers' product modulo 2^32, bit for bit, for every geometry and every operand.

Where there is no GPU, Triton's kernels run in its interpreter, which must be on before Triton is first imported.
"""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.ringworld import DTYPES, LAYOUTS, LIMITS, convolutions, matmuls, oracle, tensor
from torch import Tensor

from cloister.errors import InputError
from cloister.ring._kernels import kernels_for
from cloister.ring._matrices import MatrixKernels
from cloister.ring._operators import Conv2d, MatMul, Product

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"

CPU = torch.device("cpu")
NAMES = ("cpu", "cuda", "fp64", "triton")
BOUNDED = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
FEW = settings(BOUNDED, max_examples=15)
ROLES = ("forward", "input_gradient", "weight_gradient")
KINDS = st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES))
PIECES = st.sampled_from((1, 1000, 1 << 22))
SEEDS = st.integers(0, 1000)

# the interpreter takes milliseconds for what a GPU does in a microsecond
INTERPRETED = pytest.param("triton", marks=() if GPU else pytest.mark.slow)
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

    def random(self, product: Product, kinds: tuple, seed: int, layouts: tuple, pieces: int) -> None:
        same(self.name, product, *operands(product, kinds, seed, layouts), pieces=pieces)

    @pytest.mark.parametrize("role", ROLES)
    @pytest.mark.parametrize(
        ("operator", "x", "w"),
        [
            (MatMul(), (2, 3, 5, 40), (2, 3, 33, 40)),
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
        for kinds in ((a, b) for a in DTYPES for b in DTYPES):
            for pieces in (1, 1 << 22):
                self.random(product, kinds, 7, ("contiguous", "contiguous"), pieces)

    @pytest.mark.parametrize("terms", [32_767, 32_768, 65_535, 131_072])
    def test_the_largest_operands_in_long_sums(self, terms: int) -> None:
        product = Product(MatMul(), "forward", x=(2, terms), w=(3, terms))
        for kinds in ((a, b) for a in DTYPES for b in DTYPES):
            for left in LIMITS[kinds[0]]:
                a, b = torch.full(product.left, left, dtype=kinds[0]), torch.full(product.right, left % 128, dtype=kinds[1])
                a[1, ::2] = -1 - left  # alternating
                b[1], b[2, ::3] = LIMITS[kinds[1]][0], LIMITS[kinds[1]][1]
                same(self.name, product, a, b)

    @pytest.mark.parametrize("role", ROLES)
    def test_the_largest_operands_in_a_convolution(self, role: str) -> None:
        """Among them a weight gradient's sum over more pixels than one accumulator may hold, and 36,864 terms of windows."""
        x, w = ((2, 1, 130, 260), (1, 1, 2, 2)) if role == "weight_gradient" else ((1, 4096, 3, 3), (2, 4096, 3, 3))
        if role == "input_gradient":
            x, w = (1, 2, 3, 3), (4096, 2, 3, 3)
        product = Product(Conv2d(padding=(1, 1)), role, x=x, w=w)
        for kinds in ((torch.int32, torch.int32), (torch.int8, torch.int32)):
            left = torch.full(product.left, LIMITS[kinds[0]][-2], dtype=kinds[0])
            right = torch.full(product.right, LIMITS[kinds[1]][-2], dtype=kinds[1])
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
    @given(product=matmuls() | convolutions(), kinds=KINDS, seed=SEEDS, layouts=st.tuples(LAYOUTS, LAYOUTS), pieces=PIECES)
    def test_any_geometry(self, product: Product, kinds: tuple, seed: int, layouts: tuple, pieces: int) -> None:
        self.random(product, kinds, seed, layouts, pieces)


class TestCuda(_Contract):
    name = "cuda"

    @BOUNDED
    @given(product=matmuls() | convolutions(), kinds=KINDS, seed=SEEDS, layouts=st.tuples(LAYOUTS, LAYOUTS), pieces=PIECES)
    def test_any_geometry(self, product: Product, kinds: tuple, seed: int, layouts: tuple, pieces: int) -> None:
        self.random(product, kinds, seed, layouts, pieces)


class TestFp64(_Contract):
    name = "fp64"

    @BOUNDED
    @given(product=matmuls() | convolutions(), kinds=KINDS, seed=SEEDS, layouts=st.tuples(LAYOUTS, LAYOUTS), pieces=PIECES)
    def test_any_geometry(self, product: Product, kinds: tuple, seed: int, layouts: tuple, pieces: int) -> None:
        self.random(product, kinds, seed, layouts, pieces)


class TestTriton(_Contract):
    name = "triton"

    @FEW
    @given(product=matmuls() | convolutions(), kinds=KINDS, seed=SEEDS, layouts=st.tuples(LAYOUTS, LAYOUTS), pieces=PIECES)
    def test_any_geometry(self, product: Product, kinds: tuple, seed: int, layouts: tuple, pieces: int) -> None:
        self.random(product, kinds, seed, layouts, pieces)


@pytest.mark.parametrize("role", ROLES)
def test_all_implementations_agree_on_a_layer_of_a_network(role: str) -> None:
    """Larger than the definition's loops can follow; several pieces, tiles and kinds of padding."""
    for product in (
        Product(Conv2d(padding=(1, 1)), role, x=(3, 32, 14, 14), w=(48, 32, 3, 3)),
        Product(MatMul(), role, x=(150, 200), w=(70, 200)),
    ):
        left, right = operands(product, (torch.int32, torch.int32), 3, ("contiguous", "contiguous"))
        found = [multiply(name, product, left, right, pieces=200_000) for name in NAMES]
        assert all(torch.equal(found[0], other) for other in found[1:])
