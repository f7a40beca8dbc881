"""Windows: each tap reads where the definition says, zeros outside the image, and phases cover every pixel once."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.ringworld import convolutions, tensor

from cloister.ring import Conv2d, Product
from cloister.ring._windows import Axis, forward_axes, framed, phases, windows

AXES = st.builds(
    Axis,
    start=st.integers(-6, 6),
    step=st.integers(1, 4),
    spread=st.integers(1, 4),
    taps=st.integers(1, 4),
    count=st.integers(1, 5),
)
SIZES = st.tuples(st.integers(0, 2), st.sampled_from((2, 4, 6)), st.integers(1, 7), st.integers(1, 7))


def places(axis: Axis) -> list[list[int]]:
    """Where each window's taps read, by the definition."""
    return [
        [axis.start + window * axis.step + tap * axis.spread for tap in range(axis.taps)]
        for window in range(axis.count)
    ]


@given(SIZES, AXES, AXES, st.sampled_from((1, 2)), st.booleans())
def test_windows_read_the_image_and_zeros_around_it(
    shape: tuple, rows: Axis, columns: Axis, groups: int, channels_last: bool
) -> None:
    images = tensor(shape, torch.int8, 1).where(tensor(shape, torch.int8, 1) != 0, 1)  # so that zeros are the border's
    frame = framed(images, rows, columns, channels_last=channels_last)
    assert frame.is_contiguous()
    batch, channels, height, width = shape
    expected = (rows.reach, columns.reach)
    assert tuple(frame.shape) == ((batch, *expected, channels) if channels_last else (batch, channels, *expected))
    stacked = torch.stack((frame, -frame))  # two limbs
    read = windows(stacked.permute(0, 1, 4, 2, 3) if channels_last else stacked, rows, columns, groups)
    each = channels // groups
    assert tuple(read.shape) == (groups, batch, rows.count, columns.count, 2, rows.taps, columns.taps, each)
    for i, across in enumerate(places(rows)):
        for j, down in enumerate(places(columns)):
            for t, row in enumerate(across):
                for u, column in enumerate(down):
                    inside = 0 <= row < height and 0 <= column < width
                    wanted = images[:, :, row, column] if inside else torch.zeros(batch, channels, dtype=torch.int8)
                    wanted = wanted.view(batch, groups, each).transpose(0, 1)
                    assert torch.equal(read[:, :, i, j, 0, t, u], wanted)
                    assert torch.equal(read[:, :, i, j, 1, t, u], -wanted)


@given(AXES, st.data())
def test_some_windows_read_what_they_read_among_all(axis: Axis, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, axis.count - 1))
    count = data.draw(st.integers(1, axis.count - first))
    assert places(axis.narrow(first, count)) == places(axis)[first : first + count]


@given(AXES)
def test_the_reach_is_from_the_first_tap_to_the_last(axis: Axis) -> None:
    assert axis.reach == places(axis)[-1][-1] - places(axis)[0][0] + 1


@given(convolutions())
def test_an_output_reads_by_stride_padding_and_dilation(product: Product) -> None:
    operator = product.operator
    assert isinstance(operator, Conv2d)
    for which, axis in enumerate(forward_axes(operator, product.x, product.w)):
        stride, padding, dilation = operator.stride[which], operator.padding[which], operator.dilation[which]
        assert places(axis) == [
            [output * stride - padding + tap * dilation for tap in range(product.w[2 + which])]
            for output in range(product.y[2 + which])
        ]


@given(st.integers(1, 5), st.integers(0, 5), st.integers(1, 5), st.integers(1, 20), st.integers(1, 5))
def test_phases_read_every_output_that_a_pixel_went_into(
    stride: int, padding: int, dilation: int, size: int, taps: int
) -> None:
    operator = Conv2d((stride, 1), (padding, 0), (dilation, 1))
    read: dict[int, list[tuple[int, int]]] = {pixel: [] for pixel in range(size)}
    for phase in phases(operator, 0, size, taps):
        assert len(phase.taps) == phase.axis.taps
        for window, outputs in enumerate(places(phase.axis)):
            pixel = phase.first + window * stride
            assert not read[pixel]  # in one phase only
            read[pixel] = list(zip(outputs, phase.taps, strict=True))
    for pixel, found in read.items():
        wanted = [(pixel + padding - tap * dilation, tap) for tap in range(taps)]
        assert sorted(found) == sorted((place // stride, tap) for place, tap in wanted if place % stride == 0)
