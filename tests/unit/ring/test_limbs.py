"""Limbs: every word is the sum of its digits, no sum is ever full, and a unit that is not exact is found out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.ringworld import LIMITS, largest_sum, tensor
from torch import Tensor

from cloister.errors import InputError
from cloister.ring import _cpu, _cuda
from cloister.ring._cpu import CpuArithmetic, CpuKernels
from cloister.ring._cuda import CudaArithmetic, CudaKernels, Fp64Kernels
from cloister.ring._kernels import kernels_for
from cloister.ring._limbs import Arithmetic, Fp64Arithmetic, Int8Arithmetic, is_exact

CPU = torch.device("cpu")
BITS = {4: 8, 2: 16}
SPLITTING = [(Int8Arithmetic(), 4), (CpuArithmetic(), 4), (CudaArithmetic(), 4), (Fp64Arithmetic(), 2)]
EXACT = [Int8Arithmetic(), CpuArithmetic(), CudaArithmetic(), Fp64Arithmetic()]
KINDS = [(a, b) for a in (torch.int32, torch.int8) for b in (torch.int32, torch.int8)]
EDGES = [
    byte_3 << 24 | byte_2 << 16 | byte_1 << 8 | byte_0
    for byte_3 in (0x00, 0x7F, 0x80, 0xFF)
    for byte_2 in (0x00, 0x7F, 0x80, 0xFF)
    for byte_1 in (0x00, 0x7F, 0x80, 0xFF)
    for byte_0 in (0x00, 0x7F, 0x80, 0xFF)
]


def words(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64).to(torch.int32)


def split(arithmetic: Arithmetic, values: Tensor, other: torch.dtype, *, descending: bool = False) -> Tensor:
    count = arithmetic.limbs(values.dtype, other)
    return arithmetic.split(values.contiguous(), count, axis=values.dim() - 1, descending=descending)


def wrapped(a: Tensor, b: Tensor) -> Tensor:
    """``a · bᵀ`` modulo 2^32, by Python's integers."""
    rows = [[sum(x * y for x, y in zip(row, column, strict=True)) for column in b.tolist()] for row in a.tolist()]
    return words([[(value + 2**31) % 2**32 - 2**31 for value in row] for row in rows])


def multiply(arithmetic: Arithmetic, a: Tensor, b: Tensor) -> Tensor:
    left, right = split(arithmetic, a, b.dtype), split(arithmetic, b, a.dtype, descending=True)
    return arithmetic.multiply(left[None], right[None])[0]


@pytest.mark.parametrize(("arithmetic", "count"), SPLITTING)
@pytest.mark.parametrize("descending", [False, True])
def test_a_word_is_the_sum_of_its_limbs(arithmetic: Arithmetic, count: int, descending: bool) -> None:
    bits, order = BITS[count], range(count - 1, -1, -1) if descending else range(count)

    @given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
    def holds(drawn: list[int]) -> None:
        values = drawn + EDGES
        limbs = arithmetic.split(words([values]), count, axis=1, descending=descending)[0]
        assert int(limbs.min()) >= -(1 << bits - 1)
        assert int(limbs.max()) < 1 << bits - 1
        for word, digits in zip(values, limbs.T.tolist(), strict=True):
            assert sum(int(digit) << bits * place for place, digit in zip(order, digits, strict=True)) % 2**32 == word

    holds()


@pytest.mark.parametrize(("arithmetic", "count"), SPLITTING)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_limbs_lie_along_the_axis_that_was_asked_for(arithmetic: Arithmetic, count: int, axis: int) -> None:
    values = tensor((2, 3, 5), torch.int32, axis)
    found = arithmetic.split(values, count, axis=axis)
    assert found.is_contiguous()
    assert torch.equal(found.movedim(axis, 0), Int8Arithmetic.split(arithmetic, values, count, axis=0))


@pytest.mark.parametrize("arithmetic", EXACT)
def test_bytes_are_one_limb_as_they_are(arithmetic: Arithmetic) -> None:
    values = tensor((3, 4), torch.int8, 1)
    found = split(arithmetic, values, torch.int8)
    assert torch.equal(found[:, 0].to(torch.int8), values)
    assert found.shape == (3, 1, 4)


@pytest.mark.parametrize("arithmetic", EXACT)
@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("terms", [1, 2, 7, 33])
def test_products_are_those_of_pythons_integers(arithmetic: Arithmetic, kinds: tuple, terms: int) -> None:
    a, b = tensor((5, terms), kinds[0], terms), tensor((18, terms), kinds[1], terms + 1)
    assert torch.equal(multiply(arithmetic, a, b), wrapped(a, b))


class _Watched:
    """Notes the largest partial sum, in any order, that a unit could have met."""

    worst = 0

    def gemm(self, a: Tensor, b: Tensor) -> Tensor:
        type(self).worst = max(self.worst, largest_sum(a, b))
        return super().gemm(a, b)


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize(("exact", "room"), [(Int8Arithmetic, 2**30), (CudaArithmetic, 2**30), (Fp64Arithmetic, 2**52)])
def test_no_sum_is_ever_full(exact: type[Arithmetic], room: int, kinds: tuple) -> None:
    """2^30 in the int8 units' int32: their sum doubles where an operand is shifted to ``[0, 255]`` first."""
    watched = type("Watched", (_Watched, exact), {})
    arithmetic, reached = watched(), 0
    longest = arithmetic.most(arithmetic.limbs(*kinds), arithmetic.limbs(*reversed(kinds)))
    for terms in {min(longest, 70_000), 70_000}:
        for ends in zip(LIMITS[kinds[0]][::2], LIMITS[kinds[1]][::2], strict=False):
            a, b = (torch.full((1, terms), end, dtype=kind) for end, kind in zip(ends, kinds, strict=True))
            assert torch.equal(multiply(arithmetic, a, b), words([[ends[0] * ends[1] * terms % 2**32]]))
            reached = max(reached, watched.worst)
    assert reached <= room


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize(("arithmetic", "room"), [(Int8Arithmetic(), 2**30), (Fp64Arithmetic(), 2**52)])
def test_the_longest_sum_has_room_for_the_largest_limbs(arithmetic: Arithmetic, room: int, kinds: tuple) -> None:
    counts = arithmetic.limbs(*kinds), arithmetic.limbs(*reversed(kinds))
    largest = [
        int(split(arithmetic, torch.tensor([LIMITS[kind]], dtype=kind), other).to(torch.int64).abs().max())
        for kind, other in zip(kinds, reversed(kinds), strict=True)
    ]
    assert min(counts) * arithmetic.most(*counts) * largest[0] * largest[1] <= room


# ---- the trial that a device has to pass ------------------------------------------------------------------


class _Saturating(Int8Arithmetic):
    """A CPU's dot product without VNNI: one operand shifted to bytes of 0 to 255, pairs of products added in int16."""

    def gemm(self, a: Tensor, b: Tensor) -> Tensor:
        shifted, other = (side.to(torch.int32) for side in (a, b))
        if a.shape[2] % 2:
            shifted, other = (torch.nn.functional.pad(side, (0, 1)) for side in (shifted, other))
        products = (shifted + 128)[:, :, None] * other[:, None]
        pairs = products.unflatten(3, (-1, 2)).sum(4).clamp(-(2**15), 2**15 - 1)
        return (pairs.sum(3) - 128 * other.sum(2)[:, None]).to(torch.int32)


class _Single(Fp64Arithmetic):
    """An fp64 that a library replaced by fp32."""

    def gemm(self, a: Tensor, b: Tensor) -> Tensor:
        return (a.float() @ b.float().mT).to(torch.int64).to(torch.int32)


class _Sloppy(Int8Arithmetic):
    """Saturates where wrapping is wanted: at the end of a sum of limbs."""

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        weights = [[1 << 8 * (i + j) for j in range(b.shape[2] - 1, -1, -1)] for i in range(a.shape[2])]
        total = torch.zeros(a.shape[0], a.shape[1], b.shape[1], dtype=torch.float64)
        for i in range(a.shape[2]):
            for j in range(b.shape[2]):
                total += weights[i][j] * (a[:, :, i].double() @ b[:, :, j].double().mT)
        return total.clamp(-(2**31), 2**31 - 1).to(torch.int32)


class _Dropping(Int8Arithmetic):
    """Forgets one product of two limbs."""

    def __init__(self, i: int, j: int) -> None:
        self.i, self.j = i, j

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        found = super().multiply(a, b)
        if a.shape[2] == b.shape[2] == 4:
            lost = self.gemm(a[:, :, self.i], b[:, :, 3 - self.j])
            found = found.sub_(lost, alpha=1 << 8 * (self.i + self.j))
        return found


@pytest.mark.parametrize("arithmetic", EXACT)
def test_exact_units_pass_the_trial(arithmetic: Arithmetic) -> None:
    assert is_exact(arithmetic, CPU)


@pytest.mark.parametrize("arithmetic", [_Saturating(), _Single(), _Sloppy()])
def test_units_that_saturate_or_round_fail_the_trial(arithmetic: Arithmetic) -> None:
    assert not is_exact(arithmetic, CPU)


@pytest.mark.parametrize("pair", [(i, j) for i in range(4) for j in range(4) if i + j < 4])
def test_the_trial_notices_when_any_of_the_ten_products_is_dropped(pair: tuple[int, int]) -> None:
    assert not is_exact(_Dropping(*pair), CPU)


def test_small_operands_would_not_find_a_unit_that_saturates() -> None:
    a, b = (tensor((9, 40), torch.int8, seed) // 4 for seed in (1, 2))
    assert torch.equal(multiply(_Saturating(), a, b), wrapped(a, b))
    a, b = tensor((9, 40), torch.int8, 1), tensor((9, 40), torch.int8, 2)
    assert not torch.equal(multiply(_Saturating(), a, b), wrapped(a, b))


@pytest.fixture
def untried() -> object:
    """Forgets what devices were tried, before and after: a trial is made once a process."""
    _cuda._tried.cache_clear()
    _cpu._arithmetic.cache_clear()
    yield
    _cuda._tried.cache_clear()
    _cpu._arithmetic.cache_clear()


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize(
    ("name", "place", "broken"),
    [("cuda", "CudaArithmetic", _Saturating), ("fp64", "Fp64Arithmetic", _Single)],
)
def test_a_device_that_fails_its_trial_gets_no_kernels(
    name: str, place: str, broken: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda, place, broken)
    with pytest.raises(InputError) as error:
        kernels_for(CPU, prefer=name)
    assert error.value.code == 2792


@pytest.mark.usefixtures("untried")
def test_a_cpu_whose_dot_products_saturate_gets_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpu, "CpuArithmetic", _Saturating)
    assert isinstance(CpuKernels().arithmetic, Fp64Arithmetic)


@pytest.mark.usefixtures("untried")
def test_a_cpu_without_such_dot_products_gets_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert isinstance(CpuKernels().arithmetic, Fp64Arithmetic)


@pytest.mark.usefixtures("untried")
def test_a_cpu_that_multiplies_nothing_exactly_gets_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpu, "CpuArithmetic", _Saturating)
    monkeypatch.setattr(_cpu, "Fp64Arithmetic", _Single)
    with pytest.raises(InputError) as error:
        kernels_for(CPU)
    assert error.value.code == 2792


def test_kernels_are_tried_on_the_device_that_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(_cuda, "_tried", lambda kind, device: seen.append((kind.__name__, device)) or True)
    assert CudaKernels(CPU).name == "cuda"
    assert Fp64Kernels(CPU).name == "fp64"
    assert seen == [("CudaArithmetic", "cpu"), ("Fp64Arithmetic", "cpu")]
