"""How tensors lie before a pass: every view is the tensor's own order, and its vectors say what the exponents say."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import InputError
from cloister.ring._layout import channels, flat, scaling
from cloister.ring._operators import Shape

SHAPES = st.lists(st.sampled_from((1, 2, 3, 64, 65)), min_size=1, max_size=4).map(tuple)


@given(SHAPES, st.data())
def test_each_word_finds_the_place_along_its_axis(shape: Shape, data: Any) -> None:
    axis = data.draw(st.none() | st.integers(-len(shape), len(shape) - 1))
    view = channels(shape, axis)
    assert view.rows * view.inner == math.prod(shape)
    places = np.arange(1) if axis is None else np.arange(shape[axis])
    laid = places.reshape([-1 if axis is not None and i == axis % len(shape) else 1 for i in range(len(shape))])
    expected = np.broadcast_to(laid, shape).reshape(view.rows, view.inner)
    if view.repeats:
        found = np.broadcast_to(np.repeat(places, view.repeats), (view.rows, view.inner))
    else:
        found = np.broadcast_to((np.arange(view.rows) % view.period)[:, None], (view.rows, view.inner))
    assert (found == expected).all()


def test_short_channels_are_columns_and_long_ones_rows() -> None:
    assert channels((2, 3, 64), 1) == (6, 64, 3, 0)
    assert channels((2, 3, 63), 1) == (2, 189, 1, 63)
    assert channels((2, 3), -1) == (2, 3, 1, 1)
    assert channels((2, 3), None) == (1, 6, 1, 0)
    assert channels((), None) == (1, 1, 1, 0)


@given(SHAPES, st.data())
def test_the_vectors_are_the_exponents_and_the_bias(shape: Shape, data: Any) -> None:
    def along(axis: int, values: torch.Tensor) -> torch.Tensor:
        return values.reshape([-1 if i == axis else 1 for i in range(len(shape))])

    axes = st.integers(0, len(shape) - 1)
    first, second, third = (data.draw(axes) for _ in range(3))
    exponents = [
        data.draw(st.integers(-5, 5)),
        along(first, torch.arange(shape[first], dtype=torch.int32) - 3),
        along(second, torch.arange(shape[second], dtype=torch.int32)),
    ]
    bias = data.draw(st.none() | st.just(along(third, torch.arange(shape[third], dtype=torch.float32))))
    inner = data.draw(st.none() | st.just(math.prod(shape[1:])))
    plan = scaling(shape, inner, exponents, bias)
    if plan is None:
        given_ = [*exponents[1:], *([] if bias is None else [bias])]
        assert len([tensor for tensor in given_ if tensor.numel() > 1]) > 1 or inner is not None
        return
    assert inner is None or plan.inner == inner
    assert plan.rows * plan.inner == math.prod(shape)
    power = np.broadcast_to(sum(torch.as_tensor(e) for e in exponents).numpy(), shape).reshape(plan.rows, plan.inner)
    assert (np.broadcast_to(plan.row_scales[:, None] * plan.column_scales, power.shape) == 2.0**power).all()
    added = np.zeros(shape) if bias is None else np.broadcast_to(bias.numpy(), shape)
    found = np.broadcast_to(plan.row_bias[:, None] + plan.column_bias, power.shape)
    assert (found == added.reshape(power.shape)).all()


def test_a_scale_along_rows_and_columns_at_once_has_no_plan() -> None:
    both = torch.zeros(2, 3, dtype=torch.int32)
    assert scaling((2, 3), 3, [both], None) is None
    assert scaling((2, 3), None, [both], None) is not None  # as six rows of one


def test_words_of_any_strides_lie_in_order() -> None:
    tensor = torch.arange(12, dtype=torch.int32).reshape(3, 4)
    assert flat(tensor.T, torch.int32, (4, 3)).tolist() == tensor.T.reshape(-1).tolist()
    for wrong in (tensor.to(torch.int64), tensor[:2], tensor.to("meta")):
        with pytest.raises(InputError) as caught:
            flat(wrong, torch.int32, (3, 4))
        assert caught.value.code == 2702
    with pytest.raises(InputError) as caught:
        flat(tensor.T, torch.int32, (4, 3), written=True)
    assert caught.value.code == 2702
