"""Rules of reading and writing at places that tensors name: an example's places are within that example."""

from __future__ import annotations

from collections.abc import Sequence

from cloister.privacy._domain import PUBLIC, Kind, PerExample, Position, Public, Refusal, Tensor
from cloister.privacy._rules import Call, axis, pointwise, rule, unfolded

__all__ = ["gathered", "indexed", "scattered"]

_FREQUENCY = "leave scale_grad_by_freq off"
_OTHERS = "an example would read other examples"


@rule("embedding")
def embedding(call: Call) -> Kind:
    """Rows of a table that all examples share.

    Its forward pass keeps examples apart whatever its options; ``scale_grad_by_freq`` counts the whole batch backward.
    """
    call.require_public("weight")
    if call["scale_grad_by_freq"]:
        raise Refusal(8830, "its gradient is divided by how often the whole batch names a row", _FREQUENCY)
    return call.tensor("indices").kind


@rule("one_hot")
def one_hot(call: Call) -> Kind:
    """A new last axis; the number of classes must be given, or it is the largest of the batch."""
    if call["num_classes"] < 1:
        raise Refusal(8830, "the number of classes would depend on the whole batch", "give num_classes")
    return call.tensor("self").kind


@rule("gather")
def gathered(call: Call) -> Kind:
    """Elements along an axis at places that a tensor of the same shape names."""
    tensor, index = call.tensor("self"), call.tensor("index")
    return _beside(axis(call["dim"], tensor.rank), tensor, index)


@rule("scatter.src scatter.value scatter.reduce scatter.value_reduce scatter_add scatter_reduce.two")
def scattered(call: Call) -> Kind:
    """Elements written along an axis to places that a tensor of the same shape names."""
    tensors = [call.tensor("self"), call.tensor("index")]
    if isinstance(call["src"], Tensor):
        tensors.append(call["src"])
    return _beside(axis(call["dim"], tensors[0].rank), *tensors)


def _beside(along: int, *tensors: Tensor) -> Kind:
    kind = tensors[0].kind
    if not isinstance(kind, PerExample) or any(tensor.kind != kind for tensor in tensors):
        raise Refusal(8830, "places and elements would not be of the same example")
    if kind.axis == along:
        raise Refusal(8830, _OTHERS, "gather along an example's own axis")
    return kind


@rule("index_select", positions=True)
def selected(call: Call) -> Kind:
    """Positions of an axis, in the order that a vector says."""
    tensor, index = call.tensor("self"), call.tensor("index")
    along = axis(call["dim"], tensor.rank)
    kind = tensor.kind
    if isinstance(kind, Position) or isinstance(index.kind, Position):
        raise Refusal(8832, "a row's number would enter a value")
    if isinstance(kind, Public) and isinstance(index.kind, PerExample):
        return index.kind.at(along)
    if isinstance(kind, PerExample) and kind.axis != along and isinstance(index.kind, Public):
        return kind
    raise Refusal(8830, _OTHERS)


@rule("index.Tensor _unsafe_index.Tensor", positions=True)
def indexed(call: Call) -> Kind:
    """Elements at places: ``table[ids]``, ``x[:, ids]``, ``x[arange(B), last]``."""
    tensor = call.tensor("self")
    places, first, rank = _places(tensor, call["indices"])
    if isinstance(tensor.kind, Position):
        raise Refusal(8832, "a row's number would enter a value")
    kind = tensor.kind
    if not isinstance(kind, PerExample):
        return _at(pointwise(list(places.values()), rank), first)
    if kind.axis not in places:
        if any(not isinstance(place.kind, Public) for place in places.values()):
            raise Refusal(8830, "each example would be read at every other's places")
        return kind.at(_shifted(kind.axis, places, first, rank))
    return _at(_diagonal(tensor, places, rank), first)


@rule("index_put _unsafe_index_put", positions=True)
def written(call: Call) -> Kind:
    """Elements written at places: ``x[:, ids] = y``, ``x[arange(B), last] = y``, ``x[mask] = 0``."""
    tensor, values = call.tensor("self"), call.tensor("values")
    kind = tensor.kind
    if not isinstance(kind, PerExample) or isinstance(values.kind, Position):
        raise Refusal(8830, "what depends on examples would be written where all rows read")
    masks = [place for place in call["indices"] if place is not None]
    if len(masks) == 1 and masks[0].dtype == "bool" and call["indices"][0] is not None:
        return _masked(tensor, masks[0], values)
    places, first, rank = _places(tensor, call["indices"])
    if kind.axis in places:
        made = _at(_diagonal(tensor, places, rank), first)
    else:
        if any(not isinstance(place.kind, Public) for place in places.values()):
            raise Refusal(8830, "each example would be written at every other's places")
        made = kind.at(_shifted(kind.axis, places, first, rank))
    room = tensor.rank - len(places) + rank
    source = values.kind
    if isinstance(source, PerExample) and source.at(source.axis + room - values.rank) != made:
        raise Refusal(8830, "one example would be written into another")
    place = made.axis - room + values.rank
    if isinstance(source, Public) and place >= 0 and values.shape[place] != 1:
        raise Refusal(8830, "a tensor without a batch would be laid along the batch")
    return kind


def _masked(tensor: Tensor, mask: Tensor, values: Tensor) -> Kind:
    """One number written where a mask of the same examples is true."""
    if values.rank > 0 or values.kind != PUBLIC:
        raise Refusal(8830, "values would be dealt out over the batch in the mask's order", "use torch.where")
    kind = tensor.kind
    along = isinstance(kind, PerExample) and kind.axis < mask.rank
    if mask.kind not in (PUBLIC, kind) or (mask.kind == PUBLIC and along):
        raise Refusal(8830, "one example would be written by another's mask")
    return kind


def _places(tensor: Tensor, indices: Sequence[Tensor | None]) -> tuple[dict[int, Tensor], int, int]:
    """Tensors by the axis that they index; where their broadcast axes come to stand; how many these are."""
    places = {at: place for at, place in enumerate(indices) if place is not None}
    if any(place.dtype in ("bool", "uint8") for place in places.values()):
        raise Refusal(8830, "how many elements a mask selects depends on the whole batch", "use torch.where")
    if not places or len(indices) > tensor.rank:
        raise IndexError("index: no places, or more than there are axes")
    numbers = sorted(places)
    adjacent = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return places, numbers[0] if adjacent else 0, max(place.rank for place in places.values())


def _at(kind: Kind, first: int) -> PerExample:
    if not isinstance(kind, PerExample):
        raise Refusal(8832, "a row's number would pick from what all examples share")
    return kind.at(kind.axis + first)


def _shifted(axis: int, places: dict[int, Tensor], first: int, rank: int) -> int:
    """Where an axis that is not indexed comes to stand."""
    rest = [at for at in range(axis) if at not in places]
    return len(rest) + (0 if axis < first else rank)


def _diagonal(tensor: Tensor, places: dict[int, Tensor], rank: int) -> PerExample:
    """The batch's own axis may be read only at the row's own number."""
    own = unfolded(tensor)
    rows = places[own.axis]
    if not isinstance(rows.kind, Position):
        raise Refusal(8830, _OTHERS)
    number = Tensor(PerExample(rows.kind.axis), rows.shape, rows.dtype)
    others = [place for at, place in places.items() if at != own.axis]
    kind = pointwise([number, *others], rank)  # every other place must be of the row that the number names
    if not isinstance(kind, PerExample):
        raise Refusal(8830, _OTHERS)
    return kind
