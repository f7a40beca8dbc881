"""Private forms of torch's functions: the same result, and a backward that leaves gradients an example.

Each is a node of autograd. Its backward gives the gradient of the data, as torch's own does, and none of the
parameters: those it contributes, an example each (:mod:`cloister.privacy._contributions`). Its first argument is an
anchor, a tensor that wants a gradient, so that there is a backward even where the data wants none.

The file is long because each form stands beside its node, and the table of them is what a reviewer looks for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cloister.errors import UnsupportedError
from cloister.offload._attention import multi_head_attention_body

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cloister.privacy._contributions import Make
    from cloister.privacy._slots import Source
    from cloister.privacy._uses import Use
    from cloister.privacy._watch import Form, Watch

__all__ = ["FORMS", "NAMED"]

_MOST_SQUARE = 1 << 28  # elements of the gradients an example of a tensor that has every example's copy


# ---- matrices ----------------------------------------------------------------------------------------------------


class _Linear(torch.autograd.Function):
    """``x @ w.T + b``; with ``swapped``, ``x @ w + b``."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, x: Tensor, w: Tensor, b: Tensor | None, use: Use, of: _Of, swapped: bool
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.use, ctx.of, ctx.swapped = use, of, swapped
        return F.linear(x, w.mT if swapped else w, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        use: Use = ctx.use
        if use.returned(dy):
            some_x, some_dy = (use.by_example(each).flatten(1, -2) for each in (x, dy))
            left, right = (some_dy, some_x) if ctx.swapped else (some_x, some_dy)
            if ctx.of.weight is not None and not _outer(use, ctx.of.weight, left, right):
                make: Make = lambda rows, squares, add, some: use.kernels.linear_rows(  # noqa: E731
                    left[some], right[some], rows, squares, add=add
                )
                use.give(ctx.of.weight, make)
            if ctx.of.bias is not None:
                use.give(ctx.of.bias, _bias(use, some_dy.movedim(-1, 1)))
        dx = F.linear(dy, w if ctx.swapped else w.mT) if ctx.needs_input_grad[1] else None
        return None, dx, None, None, None, None, None


def _outer(use: Use, source: Source, x: Tensor, dy: Tensor) -> bool:
    """Contributes without rows, where an example has one position."""
    if x.shape[1] != 1:
        return False
    x, dy, kernels = x[:, 0], dy[:, 0], use.kernels
    return use.give_thin(
        source,
        lambda squares: kernels.outer_squares(x, dy, squares),
        lambda factors, total: kernels.outer_sum_rounded(x, dy, factors, total),
    )


def _bias(use: Use, dy: Tensor) -> Make:
    """Sums of ``(examples, channels, …)`` over positions."""
    return lambda rows, squares, add, some: use.kernels.bias_rows(dy[some], rows, squares, add=add)


class _Of:
    """Which of a function's tensors are sources."""

    __slots__ = ("bias", "weight")

    def __init__(self, watch: Watch, weight: Tensor | None, bias: Tensor | None) -> None:
        self.weight, self.bias = watch.source(weight), watch.source(bias)

    @property
    def all(self) -> tuple[Source, ...]:
        return tuple(source for source in (self.weight, self.bias) if source is not None)


def _linear(watch: Watch, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    _require_data(watch, func, input)
    of = _Of(watch, weight, bias)
    use = watch.uses.begin("linear", of.all, input)
    return _Linear.apply(watch.anchor, input, *_bare(weight, bias), use, of, False)  # type: ignore[return-value]


def _matmul(watch: Watch, func: Any, input: Tensor, other: Tensor) -> Tensor:
    if other.dim() != 2 or watch.source(other) is None or input.dim() < 2:
        raise UnsupportedError(8855, got=f"{func.__name__} with a parameter on the left or of more than two axes")
    return _swapped(watch, func, input, other, None)


def _addmm(watch: Watch, func: Any, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Any:
    if beta != 1 or alpha != 1 or input.dim() != 1:
        raise UnsupportedError(8855, got=f"{func.__name__} with factors, or with a bias of more than one axis")
    return _swapped(watch, func, mat1, mat2, input)


def _swapped(watch: Watch, func: Any, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    _require_data(watch, func, x)
    of = _Of(watch, w, b)
    use = watch.uses.begin("matmul", of.all, x)
    return _Linear.apply(watch.anchor, x, *_bare(w, b), use, of, True)  # type: ignore[return-value]


# ---- convolutions ------------------------------------------------------------------------------------------------


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, x: Tensor, w: Tensor, b: Tensor | None, use: Use, of: _Of, shape: _Shape
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.use, ctx.of, ctx.shape = use, of, shape
        return torch.convolution(x, w, b, *shape[:3], False, [0] * len(shape[0]), shape[3])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        use: Use = ctx.use
        if use.returned(dy):
            if ctx.of.weight is not None:
                use.give(ctx.of.weight, _convolution_rows(use, x, dy, tuple(w.shape[2:]), ctx.shape))
            if ctx.of.bias is not None:
                use.give(ctx.of.bias, _bias(use, use.by_example(dy).transpose(1, 2)))
        dx = None
        if ctx.needs_input_grad[1]:
            stride, padding, dilation, groups = ctx.shape
            dx, _, _ = torch.ops.aten.convolution_backward(
                dy, x, w, None, stride, padding, dilation, False, [0] * len(stride), groups, [True, False, False]
            )
        return None, dx, None, None, None, None, None


_Shape = tuple[list[int], list[int], list[int], int]
"""Stride, padding, dilation, groups."""


def _convolution_rows(use: Use, x: Tensor, dy: Tensor, kernel: tuple[int, ...], shape: _Shape) -> Make:
    stride, padding, dilation, groups = shape
    if len(kernel) == 1:  # a picture one row high
        x, dy = x.unsqueeze(2), dy.unsqueeze(2)
        kernel, stride, padding, dilation = (1, *kernel), [1, *stride], [0, *padding], [1, *dilation]
    options = {"kernel": kernel, "stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}

    kernels = use.kernels
    return _of_pictures(
        use,
        lambda rows, squares, add, some: kernels.conv2d_rows(
            x[some], dy[some], rows, squares, **options, groups=groups, add=add
        ),
    )


def _of_pictures(use: Use, make: Make) -> Make:
    """Rows of examples, from what makes a row of each entry along the first axis: an example may have several."""
    each = use.each
    if each == 1:
        return make

    def summed(rows: Tensor, squares: Tensor | None, add: bool, some: slice) -> None:
        parts = rows.new_empty(len(rows) * each, rows.shape[1])
        make(parts, None, False, slice(some.start * each, some.stop * each))
        _put(use, parts.view(-1, each, rows.shape[1]).sum(1), rows, squares, add)

    return summed


def _convolution(
    watch: Watch,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    _require_data(watch, func, input)
    spatial = weight.dim() - 2
    if input.dim() != weight.dim():
        raise UnsupportedError(8858, got=f"{func.__name__} of one example without an axis for it")
    strides, dilations = _each(stride, spatial), _each(dilation, spatial)
    if padding == "same":
        spans = [step * (size - 1) for step, size in zip(dilations, weight.shape[2:], strict=True)]
        if any(span % 2 for span in spans):
            edges = [edge for span in reversed(spans) for edge in (span // 2, span - span // 2)]
            input, spans = F.pad(input, edges), [0] * spatial
        paddings = [span // 2 for span in spans]
    else:
        paddings = [0] * spatial if padding == "valid" else _each(padding, spatial)  # type: ignore[arg-type]
    of = _Of(watch, weight, bias)
    use = watch.uses.begin(func.__name__, of.all, input)
    shape = strides, paddings, dilations, groups
    return _Convolution.apply(watch.anchor, input, *_bare(weight, bias), use, of, shape)  # type: ignore[return-value]


def _each(value: int | Sequence[int], count: int) -> list[int]:
    found = [value] * count if isinstance(value, int) else list(value)
    return found * count if len(found) == 1 else found


# ---- embeddings --------------------------------------------------------------------------------------------------


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, tokens: Tensor, w: Tensor, padding: int | None, use: Use, source: Source
    ) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.use, ctx.source, ctx.padding = use, source, padding
        return F.embedding(tokens, w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[None, ...]:
        (tokens,) = ctx.saved_tensors
        use: Use = ctx.use
        if use.returned(dy):
            some, gradient = use.by_example(tokens).flatten(1), use.by_example(dy).flatten(1, -2)
            if ctx.padding is not None:
                gradient = gradient.masked_fill((some == ctx.padding).unsqueeze(-1), 0.0)
            kernels = use.kernels
            if not use.give_thin(
                ctx.source,
                lambda squares: kernels.embedding_squares(some, gradient, squares),
                lambda factors, total: kernels.embedding_sum_rounded(some, gradient, factors, total),
            ):
                make: Make = lambda rows, squares, add, part: kernels.embedding_rows(  # noqa: E731
                    some[part], gradient[part], rows, squares, add=add
                )
                use.give(ctx.source, make)
        return None, None, None, None, None, None


def _embedding(
    watch: Watch,
    func: Any,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    _require_data(watch, func, input)
    if max_norm is not None or scale_grad_by_freq or sparse:
        raise UnsupportedError(8855, got="embedding with max_norm, scale_grad_by_freq or sparse")
    source = watch.source(weight)
    if source is None:
        raise UnsupportedError(8855, got="embedding of a parameter that is no weight")
    if padding_idx is not None:
        padding_idx %= weight.shape[0]
    use = watch.uses.begin("embedding", (source,), input)
    return _Embedding.apply(watch.anchor, input, weight.detach(), padding_idx, use, source)  # type: ignore[return-value]


# ---- norms -------------------------------------------------------------------------------------------------------


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        x: Tensor,
        w: Tensor | None,
        b: Tensor | None,
        shape: list[int],
        eps: float,
        use: Use,
        of: _Of,
    ) -> Tensor:
        y, mean, deviation = torch.native_layer_norm(x, shape, w, b, eps)
        ctx.save_for_backward(x, w, mean, deviation)
        ctx.shape, ctx.use, ctx.of = shape, use, of
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w, mean, deviation = ctx.saved_tensors
        use: Use = ctx.use
        if use.returned(dy):
            axes = len(ctx.shape)
            inputs, gradient = (use.by_example(each).flatten(-axes).flatten(1, -2).transpose(1, 2) for each in (x, dy))
            if ctx.of.weight is not None:
                means, deviations = (use.by_example(each).flatten(1) for each in (mean, deviation))
                make: Make = lambda rows, squares, add, some: use.kernels.affine_rows(  # noqa: E731
                    inputs[some], gradient[some], rows, squares,
                    mean=means[some], deviation=deviations[some], per="position", add=add,
                )  # fmt: skip
                use.give(ctx.of.weight, make)
            if ctx.of.bias is not None:
                use.give(ctx.of.bias, _bias(use, gradient))
        dx = None
        if ctx.needs_input_grad[1]:
            dx, _, _ = torch.ops.aten.native_layer_norm_backward(
                dy, x, ctx.shape, mean, deviation, w, None, [True, False, False]
            )
        return None, dx, None, None, None, None, None, None


def _layer_norm(
    watch: Watch,
    func: Any,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    _require_data(watch, func, input)
    of = _Of(watch, weight, bias)
    use = watch.uses.begin("layer_norm", of.all, input)
    shape = list(normalized_shape)
    return _LayerNorm.apply(watch.anchor, input, *_bare(weight, bias), shape, eps, use, of)  # type: ignore


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        x: Tensor,
        w: Tensor | None,
        b: Tensor | None,
        groups: int,
        eps: float,
        use: Use,
        of: _Of,
    ) -> Tensor:
        count, channels = x.shape[:2]
        size = math.prod(x.shape[2:])
        y, mean, deviation = torch.native_group_norm(x, w, b, count, channels, size, groups, eps)
        ctx.save_for_backward(x, w, mean, deviation)
        ctx.sizes, ctx.use, ctx.of = (count, channels, size, groups), use, of
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w, mean, deviation = ctx.saved_tensors
        use: Use = ctx.use
        dy = dy.contiguous(memory_format=_format(x))
        if use.returned(dy):
            if ctx.of.weight is not None:
                count, _, _, groups = ctx.sizes
                means, deviations = mean.view(count, groups), deviation.view(count, groups)
                make: Make = lambda rows, squares, add, some: use.kernels.affine_rows(  # noqa: E731
                    x[some], dy[some], rows, squares,
                    mean=means[some], deviation=deviations[some], per="group", add=add,
                )  # fmt: skip
                use.give(ctx.of.weight, _of_pictures(use, make))
            if ctx.of.bias is not None:
                use.give(ctx.of.bias, _bias(use, use.by_example(dy).transpose(1, 2)))
        dx = None
        if ctx.needs_input_grad[1]:
            dx, _, _ = torch.ops.aten.native_group_norm_backward(
                dy, x, mean, deviation, w, *ctx.sizes, [True, False, False]
            )
        return None, dx, None, None, None, None, None, None


def _format(x: Tensor) -> torch.memory_format:
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _group_norm(
    watch: Watch,
    func: Any,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    _require_data(watch, func, input)
    of = _Of(watch, weight, bias)
    use = watch.uses.begin("group_norm", of.all, input)
    x = input.contiguous(memory_format=_format(input))
    return _GroupNorm.apply(watch.anchor, x, *_bare(weight, bias), num_groups, eps, use, of)  # type: ignore


# ---- element by element ------------------------------------------------------------------------------------------


class _Spread(torch.autograd.Function):
    """A parameter with an axis of examples: each has a copy, and the gradient of its own copy."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, parameter: Tensor, use: Use, source: Source, padded: tuple[int, ...]
    ) -> Tensor:
        ctx.use, ctx.source, ctx.padded = use, source, padded
        return use.spread(parameter.reshape(padded))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[None, ...]:
        use: Use = ctx.use
        if use.returned(dy):
            use.give(ctx.source, _copies(use, use.by_example(dy), math.prod(ctx.padded)))
        return None, None, None, None, None


def _copies(use: Use, gradient: Tensor, size: int) -> Make:
    """Rows from the gradient of every example's copy; of a tensor that had the copies itself, zero for all others'."""
    flat = gradient.reshape(use.examples, -1)
    if flat.shape[1] == size:
        return _values(use, flat)
    if flat.numel() == size:  # all copies are one tensor
        if size * use.examples > _MOST_SQUARE:
            raise UnsupportedError(8855, got="a parameter that is expanded to every example, and large")
        return _values(use, torch.diag_embed(flat.T).permute(1, 2, 0).reshape(use.examples, size))
    return _values(use, gradient.sum(1).reshape(use.examples, -1))


def _broadcast(watch: Watch, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Any function that treats every element by itself, and joins that only lay tensors side by side."""
    flat: list[Any] = []
    for value in args:
        flat.extend(value if isinstance(value, (tuple, list)) else (value,))
    tensors = [value for value in flat if isinstance(value, Tensor)]
    data = max((each for each in tensors if watch.is_data(each)), key=lambda each: each.dim())
    sources = [source for each in tensors if (source := watch.source(each)) is not None]
    if any(isinstance(value, Tensor) for value in kwargs.values()) or any(
        source.tensor.dim() > data.dim() for source in sources
    ):
        raise UnsupportedError(8855, got=f"{func.__name__} with a parameter of more axes than the data has")

    def spread(value: Any) -> Any:
        source = watch.source(value)
        if source is None:
            return value
        use = watch.uses.begin(func.__name__, (source,), data)
        padded = (1,) * (data.dim() - value.dim()) + tuple(value.shape)
        return _Spread.apply(watch.anchor, value.detach(), use, source, padded)

    return func(
        *(
            type(value)(spread(each) for each in value) if isinstance(value, (tuple, list)) else spread(value)
            for value in args
        ),
        **kwargs,
    )


def _prelu(watch: Watch, func: Any, input: Tensor, weight: Tensor) -> Tensor:
    slope = watch.again(Tensor.reshape, weight, (-1,) + (1,) * (input.dim() - 2) if input.dim() > 1 else (-1,))
    return torch.where(input > 0, input, _broadcast(watch, torch.mul, input, slope))


# ---- common ------------------------------------------------------------------------------------------------------


def _bare(*parameters: Tensor | None) -> tuple[Tensor | None, ...]:
    """Parameters without their graph, which this backward must not walk: it would be used up."""
    return tuple(None if parameter is None else parameter.detach() for parameter in parameters)


def _require_data(watch: Watch, func: Any, tensor: Tensor) -> None:
    if not watch.is_data(tensor):
        raise UnsupportedError(8855, got=f"{func.__name__} of no data with a weight that is data")


def _values(use: Use, values: Tensor) -> Make:
    """Rows that are there already."""

    def make(rows: Tensor, squares: Tensor | None, add: bool, some: slice) -> None:
        _put(use, values[some].reshape(len(rows), -1), rows, squares, add)

    return make


def _put(use: Use, values: Tensor, rows: Tensor, squares: Tensor | None, add: bool) -> None:
    if add:
        rows += values
    else:
        rows.copy_(values)
    if squares is not None:
        use.kernels.square_rows(rows, squares)


def _multi_head(watch: Watch, func: Any, *args: Any, **kwargs: Any) -> Any:
    return watch.again(multi_head_attention_body(), *args, **kwargs)


_ELEMENTWISE = """
    add __add__ __radd__ sub subtract __sub__ __rsub__ rsub mul multiply __mul__ __rmul__ div divide true_divide
    __truediv__ __rtruediv__ __iadd__ __isub__ __imul__ __itruediv__ add_ sub_ mul_ div_ where addcmul addcdiv lerp
    maximum minimum pow __pow__ cat concat concatenate
"""

FORMS: dict[Any, Form] = {
    F.linear: _linear,
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    F.embedding: _embedding,
    torch.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.multi_head_attention_forward: _multi_head,
    torch.prelu: _prelu,
}

NAMED: dict[str, Form] = {
    "matmul": _matmul,
    "__matmul__": _matmul,
    "mm": _matmul,
    "addmm": _addmm,
    **dict.fromkeys(_ELEMENTWISE.split(), _broadcast),
}
"""By name: what has many identities."""
