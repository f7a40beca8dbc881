"""Oracles and generators for exact products: slow, obvious, and made only of the definition.

Where there is no GPU, Triton's kernels run in its interpreter, which ``conftest.py`` switches on.
"""

import math
from collections.abc import Iterator

import torch
from hypothesis import strategies as st
from torch import Tensor

from cloister.ring._operators import Conv2d, MatMul, Product, Shape

GPU = torch.cuda.is_available()

DTYPES = (torch.int32, torch.int8)
LIMITS = {
    torch.int32: (-(2**31), 2**31 - 1, 0x7F7F7F80, 0x7F7F7F7F, 0x80808080 - 2**32, -1),
    torch.int8: (-128, 127, -1),
}
"""The ends of the range, and -1; words whose limbs of 8 bits are all -128, or all 127, or whose bytes are all 0x80."""
LOWEST = {torch.int32: 0x7F7F7F80, torch.int8: -128}
"""All limbs of 8 bits at the end that is further from zero."""


def oracle(product: Product, left: Tensor, right: Tensor) -> Tensor:
    """The product by its definition: each place of the trilinear form adds a small matrix product, in wrapping int64.

    Sums modulo 2^64 are right modulo 2^32.
    """
    tensors = {
        product.operands[0]: left.to(torch.int64).numpy(),
        product.operands[1]: right.to(torch.int64).numpy(),
    }
    missing = ({"x", "w", "y"} - set(product.operands)).pop()
    tensors[missing] = torch.zeros(product.result, dtype=torch.int64).numpy()
    x, w, y = tensors["x"], tensors["w"], tensors["y"]
    for x_at, w_at, y_at in _places(product):
        if missing == "y":
            y[y_at] += x[x_at] @ w[w_at].swapaxes(-1, -2)
        elif missing == "x":
            x[x_at] += y[y_at] @ w[w_at]
        else:
            w[w_at] += y[y_at].swapaxes(-1, -2) @ x[x_at]
    return torch.from_numpy(tensors[missing]).to(torch.int32)


def _places(product: Product) -> Iterator[tuple]:
    """Where in x, w and y one matrix product ``y += x · wᵀ`` of the form lies."""
    operator = product.operator
    if isinstance(operator, MatMul):
        yield (...,), (...,), (...,)
        return
    inputs, outputs = product.w[1], product.w[0] // operator.groups
    for group in range(operator.groups):
        some, others = slice(group * inputs, (group + 1) * inputs), slice(group * outputs, (group + 1) * outputs)
        for i in range(product.y[2]):
            for j in range(product.y[3]):
                for t in range(product.w[2]):
                    for u in range(product.w[3]):
                        row = i * operator.stride[0] - operator.padding[0] + t * operator.dilation[0]
                        column = j * operator.stride[1] - operator.padding[1] + u * operator.dilation[1]
                        if 0 <= row < product.x[2] and 0 <= column < product.x[3]:
                            at_x, at_w = (slice(None), some, row, column), (others, slice(None), t, u)
                            yield at_x, at_w, (slice(None), others, i, j)


def tensor(shape: Shape, dtype: torch.dtype, seed: int, *, layout: str = "contiguous") -> Tensor:
    """Random integers over the dtype's whole range with its ends among them; laid out as asked."""
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max

    def fresh(shape: Shape) -> Tensor:
        values = torch.randint(low, high + 1, shape, dtype=dtype, generator=generator)
        ends = torch.tensor(LIMITS[dtype], dtype=dtype)[
            torch.randint(0, len(LIMITS[dtype]), shape, generator=generator)
        ]
        return torch.where(torch.rand(shape, generator=generator) < 0.2, ends, values)

    if layout == "reversed":  # strides in the opposite order
        return fresh(tuple(reversed(shape))).permute(*reversed(range(len(shape))))
    if layout == "sliced":  # every other element of a larger one, off its start
        return fresh(tuple(2 * size + 1 for size in shape))[tuple(slice(1, None, 2) for _ in shape)]
    if layout == "expanded":  # one slice again and again
        return fresh((1, *shape[1:])).expand(shape)
    return fresh(shape)


LAYOUTS = st.sampled_from(("contiguous", "reversed", "sliced", "expanded"))


@st.composite
def matmuls(draw: st.DrawFn) -> Product:
    """Matrix products with up to two leading axes; any size may be 0 where torch allows it."""
    leading = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    batch, inputs, outputs = (draw(st.integers(0, 40)) for _ in range(3))
    role = draw(st.sampled_from(("forward", "input_gradient", "weight_gradient")))
    return Product(MatMul(), role, x=(*leading, batch, inputs), w=(*leading, outputs, inputs))


@st.composite
def convolutions(draw: st.DrawFn) -> Product:
    """Convolutions of every geometry: strides and padding beyond the kernel, groups narrow and wide, empty batches."""
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    inputs, outputs = draw(st.sampled_from((1, 2, 3, 5, 9, 16, 32))), draw(st.sampled_from((1, 2, 7, 10)))
    if draw(st.integers(0, 4)) == 0:  # depthwise
        groups, inputs, outputs = draw(st.integers(1, 6)), 1, draw(st.sampled_from((1, 2)))
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = (draw(pairs) for _ in range(3))
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    least = tuple(max(1, dilation[axis] * (kernel[axis] - 1) + 1 - 2 * padding[axis]) for axis in (0, 1))
    size = tuple(least[axis] + draw(st.integers(0, 5)) for axis in (0, 1))
    operator = Conv2d(stride, padding, dilation, groups)
    role = draw(st.sampled_from(("forward", "input_gradient", "weight_gradient")))
    batch = draw(st.integers(0, 3))
    return Product(operator, role, x=(batch, groups * inputs, *size), w=(groups * outputs, inputs, *kernel))


def largest_sum(a: Tensor, b: Tensor) -> int:
    """The largest magnitude that any partial sum of ``a · bᵀ`` can reach, in any order: the sum of all magnitudes."""
    if not math.prod(a.shape) or not math.prod(b.shape):
        return 0
    found, other = (side.to(torch.int64).abs().numpy() for side in (a, b))
    return int((found @ other.swapaxes(-1, -2)).max())
