"""One pass that unmasks, checks and scales: by plain integers, and the same bits as torch's many passes."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from cloister.errors import InputError
from cloister.ring import _multipass
from cloister.ring._field import P, limbs, uniform
from cloister.ring._freivalds import draw
from cloister.ring._operators import Conv2d, MatMul, Product, Shape
from cloister.ring._recover import Recovered, dequantise, recover

SHAPES = st.lists(st.sampled_from((1, 2, 3, 5, 63, 64, 65)), max_size=3).map(tuple) | st.sampled_from(
    ((2049,), (3, 4100), (4100, 3), (300, 1), (2, 3, 700), (700, 1, 9), (3, 5, 2, 7), (1, 1, 257), (513, 4, 2, 2))
)
EDGES = (0, 1, -1, 2**31 - 1, -(2**31), 2**30, -(2**30))
slowly_drawn = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])  # each draws whole tensors


def words(shape: Shape, seed: int) -> Tensor:
    """Words of the whole range with its ends among them."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-(2**31), 2**31, shape, generator=generator, dtype=torch.int32)
    edges = torch.tensor(EDGES, dtype=torch.int32)[torch.randint(0, len(EDGES), shape, generator=generator)]
    return torch.where(torch.rand(shape, generator=generator) < 0.2, edges, values)


@dataclass(frozen=True)
class Rows:
    """A functional of ``rows`` rows; its limbs are at their greatest where asked."""

    row_factors: NDArray[np.uint64]
    inner: NDArray[np.uint64]

    @classmethod
    def drawn(cls, rows: int, inner: int, *, greatest: bool = False) -> "Rows":
        if greatest:
            return cls(np.full(rows, P - 1, np.uint64), np.full(inner, 2**42 - 1, np.uint64))
        return cls(uniform(rows), uniform(inner))

    @property
    def inner_limbs(self) -> NDArray[np.int64]:
        return limbs(self.inner)

    def of(self, integers: Tensor) -> int:
        """Its value in plain integers."""
        plain = integers.numpy().astype(object).reshape(self.row_factors.size, self.inner.size)
        return int(self.row_factors.astype(object) @ plain @ self.inner.astype(object)) % P


@st.composite
def options(draw: st.DrawFn, shape: Shape) -> dict[str, Any]:
    """Everything that `recover` may be asked for an answer of this shape."""
    count = math.prod(shape)
    seed = draw(st.integers(0, 99))

    def terms(low: int, high: int, start: int) -> list[tuple[int, Tensor]]:
        factors = draw(st.lists(st.sampled_from((1, -1, 2, -2, 7)), min_size=low, max_size=high))
        return [(factor, words(shape, seed + start + i)) for i, factor in enumerate(factors)]

    def along(axis: int, dtype: torch.dtype) -> Tensor:
        lengths = [size if i == axis else 1 for i, size in enumerate(shape)]
        generator = torch.Generator().manual_seed(seed)
        if dtype == torch.float32:
            return torch.randn(lengths, generator=generator) * 1e5
        return torch.randint(-40, 5, lengths, generator=generator, dtype=dtype)

    chosen: dict[str, Any] = {
        "answers": terms(1, 3, 0),
        "pads": terms(0, 3, 10),
        "halve": draw(st.booleans()),
        "bound": draw(st.sampled_from((0, 1, 2**30, 2**31 - 1))),
    }
    if draw(st.booleans()):
        place = draw(st.integers(0, len(shape)))
        inner = math.prod(shape[place:])
        chosen["functional"] = Rows.drawn(count // inner, inner, greatest=draw(st.booleans()))
    if draw(st.integers(0, 3)):
        axes = draw(st.lists(st.integers(0, max(0, len(shape) - 1)), max_size=2)) if shape else []
        chosen["exponents"] = [draw(st.integers(-200, 100)), *(along(axis, torch.int32) for axis in axes)]
        if shape and draw(st.booleans()):
            chosen["bias"] = along(draw(st.integers(0, len(shape) - 1)), torch.float32)
    return chosen


def same(found: Recovered, expected: Recovered) -> bool:
    bits = torch.int32  # of floats too, so that no zero has the other sign
    values = found.values.dtype == expected.values.dtype and found.values.shape == expected.values.shape
    equal = values and torch.equal(found.values.view(bits), expected.values.view(bits))
    counts = (found.odd, found.beyond, found.functional) == (expected.odd, expected.beyond, expected.functional)
    return equal and counts


@slowly_drawn
@given(st.data())
def test_one_pass_gives_the_bits_of_many(data: Any) -> None:
    chosen = data.draw(options(data.draw(SHAPES)))
    assert same(recover(**chosen), _multipass.recover(**chosen))


def wrapped(integers: NDArray[Any]) -> NDArray[Any]:
    return (integers + 2**31) % 2**32 - 2**31


@slowly_drawn
@given(st.data())
def test_the_integers_are_those_of_the_ring(data: Any) -> None:
    shape = data.draw(SHAPES)
    chosen = data.draw(options(shape)) | {"exponents": None, "bias": None}
    terms = [*chosen["answers"], *chosen["pads"]]
    plain = wrapped(np.array(sum(factor * tensor.numpy().astype(object) for factor, tensor in terms)))
    odd = int((plain % 2).sum()) if chosen["halve"] else 0
    plain = plain // 2 if chosen["halve"] else plain
    found = recover(**chosen)
    assert found.values.dtype == torch.int32
    assert (found.values.numpy().astype(object) == plain).all()
    assert found.odd == odd
    assert found.beyond == int((abs(plain) > chosen["bound"]).sum())
    functional = chosen.get("functional")
    assert found.functional == (None if functional is None else functional.of(found.values))


@pytest.mark.parametrize("word", [-(2**31), 2**31 - 1])
@pytest.mark.parametrize("shape", [(2, 5000), (5000, 3), (9000, 1), (1, 256), (1, 257), (2049, 63)])
def test_the_longest_runs_of_the_greatest_limbs_do_not_wrap(word: int, shape: Shape) -> None:
    for functional in (
        Rows.drawn(*shape, greatest=True),
        Rows(np.full(shape[0], 2**42 - 1, np.uint64), uniform(shape[1])),
    ):
        answer = torch.full(shape, word, dtype=torch.int32)
        assert recover([(1, answer)], bound=2**31 - 1, functional=functional).functional == functional.of(answer)


ROLES = ("forward", "input_gradient", "weight_gradient")
PRODUCTS = [
    Product(operator, role, x=x, w=w)
    for operator, x, w in (
        (MatMul(), (70, 5), (66, 5)),
        (MatMul(), (2, 3, 4, 5), (2, 3, 6, 5)),
        (Conv2d(padding=(1, 1)), (3, 2, 9, 8), (4, 2, 3, 3)),
        (Conv2d((2, 1), (1, 1), groups=2), (2, 4, 9, 8), (6, 2, 3, 2)),
    )
    for role in ROLES
]


@pytest.mark.parametrize("product", PRODUCTS, ids=str)
def test_the_functional_is_the_one_that_the_challenge_computes(product: Product) -> None:
    challenge = draw(product)
    answer = words(product.result, 3)
    found = recover([(1, answer)], bound=0, functional=challenge, exponents=[-3])
    assert found.functional == challenge.value(answer)


def test_values_are_rounded_once_and_have_no_negative_zero() -> None:
    exact = torch.tensor([2**24 + 1, -(2**24) - 3, 0, 5], dtype=torch.int32)
    assert recover([(1, exact)], bound=2**31 - 1, exponents=[0]).values.tolist() == [2**24, -(2**24) - 4, 0, 5]
    tiny = recover([(-1, torch.tensor([1, 0], dtype=torch.int32))], bound=1, exponents=[-100, -100]).values
    assert tiny.tolist() == [0, 0]
    assert not tiny.signbit().any()


def test_scales_and_bias_apply_where_they_lie() -> None:
    answer = torch.ones(2, 3, 4, dtype=torch.int32)
    by_row = torch.tensor([0, 1], dtype=torch.int32).reshape(2, 1, 1)
    by_column = torch.tensor([0, 1, 2, 3], dtype=torch.int32)
    channel = torch.tensor([10.0, 20.0, 30.0]).reshape(3, 1)
    values = recover([(1, answer)], bound=1, exponents=[by_row, by_column], bias=channel).values
    assert values[1, 2].tolist() == [32, 34, 38, 46]
    assert values[0, 0].tolist() == [11, 12, 14, 18]


def test_a_bias_that_is_a_parameter_stays_out_of_the_graph() -> None:
    bias = torch.nn.Parameter(torch.ones(3))
    found = recover([(1, torch.ones(2, 3, dtype=torch.int32))], bound=1, exponents=[0], bias=bias).values
    assert found.tolist() == [[2.0] * 3] * 2
    assert not found.requires_grad


def test_counts_of_odd_and_too_large_sums() -> None:
    answer = torch.tensor([3, 8, -9, 20, -22], dtype=torch.int32)
    found = recover([(1, answer)], bound=4, halve=True)
    assert found.values.tolist() == [1, 4, -5, 10, -11]
    assert (found.odd, found.beyond) == (2, 3)
    assert recover([(1, answer)], bound=4).odd == 0


def test_sums_of_parts_are_scaled_as_one_answer_is() -> None:
    answer = words((5, 70), 1)
    exponents, bias = [-7, torch.arange(70, dtype=torch.int32)], torch.randn(70)
    one = recover([(1, answer)], bound=2**31 - 1, exponents=exponents, bias=bias).values
    assert torch.equal(one, dequantise(answer.to(torch.int64), exponents, bias))


def test_the_output_may_be_given_and_torch_counts_the_write() -> None:
    out = torch.empty(2, 3)
    version = out._version
    assert recover([(1, words((2, 3), 1))], bound=1, exponents=[0], out=out).values is out
    assert out._version == version + 1
    both = torch.arange(6, dtype=torch.int32).reshape(2, 3)  # a scale that varies along rows and columns
    assert recover([(1, words((2, 3), 1))], bound=1, exponents=[both], out=out).values is out
    assert torch.equal(out, dequantise(words((2, 3), 1), [both]))
    with torch.inference_mode():
        assert not recover([(1, words((2, 3), 1))], bound=1).values.is_inference()


def test_answers_of_any_strides_are_read_in_order() -> None:
    answer = words((5, 7), 1)
    assert torch.equal(recover([(1, answer.T)], bound=0).values, answer.T)
    assert torch.equal(recover([(1, answer), (1, answer.T.contiguous().T)], bound=0).values, 2 * answer)


ANSWER = words((4, 6), 1)
WRONG: list[tuple[int, list[Tensor], dict[str, Any]]] = [
    (2705, [], {}),
    (2705, [ANSWER] * 4, {}),
    (2705, [ANSWER], {"pads": [(1, ANSWER)] * 4}),
    (2705, [ANSWER], {"bound": 2**31}),
    (2705, [ANSWER], {"bound": -1}),
    (2702, [ANSWER, ANSWER[:2]], {}),
    (2702, [ANSWER.to(torch.int64)], {}),
    (2702, [ANSWER.to("meta")], {}),
    (2702, [ANSWER[:0]], {}),
    (2702, [ANSWER], {"pads": [(1, ANSWER.T)]}),
    (2702, [ANSWER], {"functional": Rows.drawn(5, 6)}),
    (2702, [ANSWER], {"functional": Rows.drawn(3, 6)}),
    (2702, [ANSWER], {"functional": Rows.drawn(4000, 8)}),
    (2702, [ANSWER], {"functional": Rows.drawn(5, 6), "exponents": [0]}),
    (2702, [ANSWER], {"out": torch.empty(6, 4, dtype=torch.int32)}),
    (2702, [ANSWER], {"exponents": [0], "out": torch.empty(6, 4).T}),
]


@pytest.mark.parametrize(("code", "answers", "more"), WRONG)
def test_what_does_not_fit_is_refused(code: int, answers: list[Tensor], more: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        recover([(1, answer) for answer in answers], **({"bound": 1} | more))
    assert caught.value.code == code
