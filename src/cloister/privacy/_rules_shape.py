"""Rules of views, joins and cuts, and of tensors made from nothing."""

from __future__ import annotations

from cloister.privacy._domain import PUBLIC, Kind, PerExample, Position, Refusal, Tensor, Unread, reshaped
from cloister.privacy._graph import Size, Times
from cloister.privacy._rules import Call, alike, axes, axis, pointwise, rule

__all__ = ["cut", "expanded", "factory", "joined", "moved", "viewed"]

_END = 2**62  # "to the end", as slices are written
_ORDER = "the order of the batch would change"


@rule(
    "view reshape _unsafe_view flatten.using_ints unflatten.int view_as reshape_as",
    sizes="size shape sizes",
    positions=True,
)
@rule("squeeze squeeze.dim squeeze.dims unsqueeze", positions=True)
def viewed(call: Call) -> Kind:
    """The same elements in the same order under another shape."""
    tensor = call.tensor("self")
    if isinstance(tensor.kind, Position):
        return Position(next(at for at, size in enumerate(call.shapes[0]) if isinstance(size, Times)))
    if not isinstance(tensor.kind, PerExample):
        raise Refusal(8830, "a tensor without a batch would be laid along the batch")
    return reshaped(tensor.kind, tensor.shape, call.shapes[0])


@rule("permute transpose.int t swapaxes swapdims movedim.int movedim.intlist numpy_T mT matrix_H adjoint")
def moved(call: Call) -> Kind:
    """The axes in another order."""
    tensor = call.tensor("self")
    kind = tensor.kind
    if not isinstance(kind, PerExample):
        return kind
    return kind.at(_order(call, tensor.rank).index(kind.axis))


def _order(call: Call, rank: int) -> list[int]:
    """For each axis of the result the one that it was."""
    order = list(range(rank))
    name = call.op.partition("::")[2].partition(".")[0]
    if name == "permute":
        return [axis(dim, rank) for dim in call["dims"]]
    if name == "movedim":
        pairs = [_listed(call[side]) for side in ("source", "destination")]
        source, target = ([axis(dim, rank) for dim in side] for side in pairs)
        rest = iter(at for at in order if at not in source)
        return [source[target.index(at)] if at in target else next(rest) for at in order]
    if name == "numpy_T":
        return order[::-1]
    if name in ("t", "mT", "matrix_H", "adjoint"):
        first, second = (0, rank - 1) if name == "t" else (rank - 2, rank - 1)
    else:
        names = ("dim0", "dim1") if name in ("transpose", "swapdims") else ("axis0", "axis1")
        first, second = (axis(call[each], rank) for each in names)
    if rank > 1:
        order[first], order[second] = order[second], order[first]
    return order


def _listed(value: int | list[int]) -> list[int]:
    return [value] if isinstance(value, int) else value


@rule("expand broadcast_to", sizes="size")
def expanded(call: Call) -> Kind:
    """Axes of size 1 repeated without a copy; a tensor without a batch becomes the same for every example."""
    tensor, shape = call.tensor("self"), call.shapes[0]
    if isinstance(tensor.kind, PerExample):
        return tensor.kind.at(tensor.kind.axis + len(shape) - tensor.rank)
    kind = alike(shape)
    before = kind.axis - len(shape) + tensor.rank
    if before >= 0 and tensor.shape[before] != 1:
        raise Refusal(8830, "a tensor without a batch would be laid along the batch")
    return kind


@rule("broadcast_tensors")
def aligned(call: Call) -> list[Kind]:
    """Tensors brought to one shape."""
    return [pointwise(call["tensors"], len(call.shapes[0]))] * len(call.shapes)


@rule("repeat tile", sizes="repeats dims")
def repeated(call: Call) -> Kind:
    """The whole tensor again and again along each axis."""
    tensor, shape = call.tensor("self"), call.shapes[0]
    times: list[Size] = call["repeats"] if call["repeats"] is not None else call["dims"]
    times = [1] * (len(shape) - len(times)) + times
    if isinstance(tensor.kind, PerExample):
        kind = tensor.kind.at(tensor.kind.axis + len(shape) - tensor.rank)
        count = times[kind.axis]
        if any(isinstance(each, Times) for each in times) or isinstance(count, Times):
            raise Refusal(8830, "each example would stand beside every other")
        return PerExample(kind.axis, kind.outer * count, kind.inner)
    return alike(shape)


@rule("repeat_interleave.self_int", sizes="output_size")
def interleaved(call: Call) -> Kind:
    """Each position again and again, beside itself."""
    tensor = call.tensor("self")
    if call["dim"] is None or isinstance(call["repeats"], Times) or not isinstance(tensor.kind, PerExample):
        raise Refusal(8830, "the batch would be spread over all elements")
    kind = tensor.kind
    again = call["repeats"] if kind.axis == axis(call["dim"], tensor.rank) else 1
    return PerExample(kind.axis, kind.outer, kind.inner * again)


@rule("cat concat concatenate", sizes="")
def joined(call: Call) -> Kind:
    """Tensors one behind the other."""
    parts: list[Tensor] = [part for part in call["tensors"] if part.shape != (0,)]
    at = axis(call["dim"] or 0, parts[0].rank)
    kinds = [part.kind for part in parts]
    first = kinds[0]
    if not isinstance(first, PerExample):
        raise Refusal(8830, "tensors with and without a batch would be joined along it")
    if at != first.axis:
        if any(kind != first for kind in kinds):
            raise Refusal(8830, "examples would stand beside others")
        return first
    outer = 0
    for kind in kinds:
        if not isinstance(kind, PerExample) or (kind.axis, kind.inner) != (first.axis, first.inner):
            raise Refusal(8830, "tensors with and without a batch would be joined along it")
        outer += kind.outer
    return PerExample(first.axis, outer, first.inner)


@rule("stack hstack vstack")
def stacked(call: Call) -> Kind:
    """Tensors along a new axis."""
    if call.op != "aten::stack.default":
        raise Refusal(8831, "it joins along an axis that depends on the rank", "use cat or stack")
    parts: list[Tensor] = call["tensors"]
    kind = parts[0].kind
    if not isinstance(kind, PerExample) or any(part.kind != kind for part in parts):
        raise Refusal(8830, "examples would stand beside others, or beside none")
    return kind.at(kind.axis + (axis(call["dim"] or 0, parts[0].rank + 1) <= kind.axis))


@rule("slice.Tensor", sizes="start end", positions=True)
def cut(call: Call) -> Kind:
    """A range along an axis."""
    tensor = call.tensor("self")
    at, start, end = axis(call["dim"] or 0, tensor.rank), call["start"] or 0, call["end"]
    kind = tensor.kind
    if not isinstance(kind, PerExample | Position):
        raise Refusal(8832, "a tensor without a batch would be cut by the batch's size")
    if at != kind.axis:
        if isinstance(start, Times) or isinstance(end, Times):
            raise Refusal(8832, "an axis would be cut by the batch's size")
        return kind
    whole = tensor.shape[at]
    if call["step"] not in (None, 1):
        raise Refusal(8830, "only some examples would be taken")
    first = 0 if start == 0 else start
    last = whole if end is None or (isinstance(end, int) and end >= _END) else end
    bounds = [each.count if isinstance(each, Times) else each for each in (first, last)]
    exact = all(isinstance(each, Times) or each == 0 for each in (first, last))
    inner = kind.inner if isinstance(kind, PerExample) else 1
    if not exact or any(each < 0 or each % inner for each in bounds) or bounds[0] >= bounds[1]:
        raise Refusal(8830, "only some examples would be taken")
    if isinstance(kind, Position):
        return kind
    return PerExample(at, (bounds[1] - bounds[0]) // inner, inner)


@rule("select.int")
def selected(call: Call) -> Kind:
    """One position of an axis, which vanishes."""
    tensor = call.tensor("self")
    return _without(tensor, axis(call["dim"], tensor.rank), "one row of the batch would be picked out")


@rule("unbind.int split.Tensor split.sizes split_with_sizes chunk tensor_split.sections narrow", sizes="length")
def parted(call: Call) -> list[Kind]:
    """An axis in parts."""
    tensor = call.tensor("self")
    at = axis(call["dim"] or 0, tensor.rank)
    if call.op == "aten::unbind.int":
        return [_without(tensor, at, "the batch would be taken apart")] * len(call.shapes)
    if not isinstance(tensor.kind, PerExample) or tensor.kind.axis == at:
        raise Refusal(8830, "the batch would be taken apart")
    return [tensor.kind] * len(call.shapes)


def _without(tensor: Tensor, at: int, why: str) -> Kind:
    kind = tensor.kind
    if not isinstance(kind, PerExample) or kind.axis == at:
        raise Refusal(8830, why)
    return kind.at(kind.axis - (at < kind.axis))


@rule("select_scatter slice_scatter", sizes="start end")
def written(call: Call) -> Kind:
    """A tensor with a part of it replaced."""
    tensor, source = call.tensor("self"), call.tensor("src")
    at = axis(call["dim"] or 0, tensor.rank)
    kind = tensor.kind
    if not isinstance(kind, PerExample):
        raise Refusal(8830, "what depends on examples would be written where all rows read")
    if kind.axis == at:
        everything = source.shape == tensor.shape and call["step"] in (None, 1) and "slice" in call.op
        if not everything or source.kind != kind:
            raise Refusal(8830, "only some examples would be written")
        return kind
    gone = "select" in call.op and at < kind.axis
    if source.kind not in (PUBLIC, kind.at(kind.axis - gone)):
        raise Refusal(8830, "one example would be written into another")
    if any(isinstance(call[name], Times) for name in ("start", "end")):
        raise Refusal(8832, "an axis would be cut by the batch's size")
    return pointwise([Tensor(kind, tensor.shape, tensor.dtype)], tensor.rank)


@rule("flip roll rot90")
def turned(call: Call) -> Kind:
    """Elements moved along axes."""
    tensor = call.tensor("self")
    kind = tensor.kind
    if not isinstance(kind, PerExample) or kind.axis in axes(call["dims"], tensor.rank):
        raise Refusal(8830, _ORDER)
    return kind


@rule("tril triu")
def triangle(call: Call) -> Kind:
    """Zeros beside the diagonal of the last two axes."""
    tensor = call.tensor("self")
    kind = tensor.kind
    if not isinstance(kind, PerExample) or kind.axis >= tensor.rank - 2:
        raise Refusal(8832, "what is kept would depend on where an example stands in the batch")
    return kind


@rule("diagonal")
def diagonal(call: Call) -> Kind:
    """The diagonal of two axes, as the last axis."""
    tensor = call.tensor("self")
    two = {axis(call[name], tensor.rank) for name in ("dim1", "dim2")}
    kind = tensor.kind
    if not isinstance(kind, PerExample) or kind.axis in two:
        raise Refusal(8832, "what is kept would depend on where an example stands in the batch")
    return kind.at(kind.axis - sum(each < kind.axis for each in two))


@rule("unfold")
def windows(call: Call) -> Kind:
    """Sliding windows along an axis, as the last axis."""
    tensor = call.tensor("self")
    kind = tensor.kind
    if not isinstance(kind, PerExample) or kind.axis == axis(call["dimension"], tensor.rank):
        raise Refusal(8830, "windows would reach over examples")
    return kind


@rule("zeros_like ones_like full_like")
@rule("zeros ones full new_zeros new_ones new_full", sizes="size")
def factory(call: Call) -> Kind:
    """One number everywhere: the same for every example."""
    filled = call["fill_value"]
    if isinstance(filled, Times):
        raise Refusal(8832, "the batch's size would enter a value")
    if call.op.endswith("_like.default"):
        return call.tensor("self").kind
    return alike(call.shapes[0])


@rule("empty.memory_format empty_like new_empty empty_strided new_empty_strided", sizes="size stride", random=True)
def unwritten(call: Call) -> Kind:
    """Memory that nobody wrote: it may hold anything of anybody."""
    return Unread()


@rule("arange arange.start arange.start_step", sizes="start end step", positions=True)
def positions(call: Call) -> Kind:
    """The rows' numbers, if it runs from 0 to the batch's size."""
    if (call["start"] or 0) != 0 or call["step"] not in (None, 1) or call["end"] != Times(1):
        raise Refusal(8832, "numbers made of the batch's size would enter a value")
    if call.dtypes[0] not in ("int64", "int32"):
        raise Refusal(8832, "a row's number would become a value, or wrap around")
    return Position(0)


@rule(
    "linspace logspace eye eye.m tril_indices triu_indices scalar_tensor complex polar view.dtype as_strided"
    " linalg_inv linalg_cholesky_ex linalg_svd _linalg_svd linalg_qr linalg_matrix_norm _weight_norm"
    " diag_embed block_diag"
)
def shared_only(call: Call) -> Kind:
    """Tables and arithmetic on parameters: with an example, or made of the batch's size, nothing is known of it."""
    raise Refusal(8831, "no rule says what it does with the batch")
