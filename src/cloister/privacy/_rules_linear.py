"""Rules of products: matrices, convolutions, einsum, attention."""

from __future__ import annotations

from cloister.privacy._domain import PUBLIC, Kind, PerExample, Public, Refusal, Tensor
from cloister.privacy._graph import Size
from cloister.privacy._rules import Call, pointwise, rule

__all__ = ["attention", "convolution", "einsum", "multiplied"]

_SUMMED = "the product would sum over the batch"


@rule("linear")
def linear(call: Call) -> Kind:
    """The last axis of the input is summed over with a weight that all rows share."""
    call.require_public("weight", "bias")
    tensor, _ = call.tensor("input"), call.tensor("weight")
    kind = tensor.kind
    if not isinstance(kind, PerExample) or kind.axis == tensor.rank - 1:
        raise Refusal(8830, _SUMMED)
    return kind


@rule("matmul mm bmm mv")
def multiplied(call: Call) -> Kind:
    """A product of matrices, their leading axes broadcast."""
    second = call["other"] or call["mat2"] or call["vec"]
    return product(call.tensor("self"), second, len(call.shapes[0]))


@rule("addmm baddbmm")
def added(call: Call) -> Kind:
    """A product of matrices and a summand."""
    first, second = ("mat1", "mat2") if call["mat1"] is not None else ("batch1", "batch2")
    rank, shape = len(call.shapes[0]), call.shapes[0]
    made = product(call.tensor(first), call.tensor(second), rank)
    return pointwise([Tensor(made, shape, call.dtypes[0]), call.tensor("self")], rank)


def product(a: Tensor, b: Tensor, rank: int) -> Kind:
    """What is known of ``a @ b``: ``(…, N, K) × (…, K, M)``, either of them a vector ``(K,)``.

    Raises:
        Refusal: 8830 when ``K`` is the batch, or when examples of one meet other examples of the other.
    """
    leading = max(a.rank - 2, b.rank - 2, 0)
    kinds: list[Kind] = []
    for tensor, summed, own in ((a, a.rank - 1, leading), (b, max(b.rank - 2, 0), rank - 1)):
        kind = tensor.kind
        if not isinstance(kind, PerExample):
            kinds.append(kind)
        elif kind.axis == summed:
            raise Refusal(8830, _SUMMED)
        else:
            first = tensor.rank - 2
            kinds.append(kind.at(own if kind.axis >= first else kind.axis - first + leading))
    return _paired(kinds, (a, b), rank, leading)


def _paired(kinds: list[Kind], operands: tuple[Tensor, Tensor], rank: int, leading: int) -> Kind:
    known = [kind for kind in kinds if isinstance(kind, PerExample)]
    if len(known) == 2 and (known[0] != known[1] or known[0].axis >= leading):
        raise Refusal(8830, "each example would be multiplied with every other")
    for tensor in operands:  # a factor that all share must not have an axis beside the batch's
        place = known[0].axis - leading + tensor.rank - 2
        if known[0].axis < leading and isinstance(tensor.kind, Public) and place >= 0 and tensor.shape[place] != 1:
            raise Refusal(8830, "a factor without a batch would be laid along the batch")
    return known[0]


@rule("einsum")
def einsum(call: Call) -> Kind:
    """A sum of products by an equation: the batch's letter must be the same everywhere and stay."""
    operands: list[Tensor] = call["tensors"]
    terms, result = _letters(call["equation"], [tensor.rank for tensor in operands])
    letters: set[tuple[str, int, int]] = set()
    for term, tensor in zip(terms, operands, strict=True):
        if isinstance(tensor.kind, PerExample):
            letters.add((term[tensor.kind.axis], tensor.kind.outer, tensor.kind.inner))
    if len(letters) != 1:
        raise Refusal(8830, "each example would be multiplied with every other")
    letter, outer, inner = letters.pop()
    for term, tensor in zip(terms, operands, strict=True):
        _refuse_other_use(term, letter, tensor)
    if result.count(letter) != 1:
        raise Refusal(8830, _SUMMED, "keep the batch's letter in the result of einsum")
    return PerExample(result.index(letter), outer, inner)


def _refuse_other_use(term: str, letter: str, tensor: Tensor) -> None:
    own = tensor.kind.axis if isinstance(tensor.kind, PerExample) else -1
    for place, each in enumerate(term):
        if each == letter and place != own and tensor.shape[place] != 1:
            raise Refusal(8830, "an axis that is not the batch would be paired with it")


def _letters(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, an ellipsis written as digits from the right."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms: list[str] = []
    widest = 0
    for term, rank in zip(left.split(","), ranks, strict=True):
        free = rank - len(term.replace("...", ""))
        if free < 0 or free > 10 or ("..." not in term and free):
            raise ValueError("einsum: an operand has another rank than its term")
        widest = max(widest, free)
        terms.append(term.replace("...", "0123456789"[10 - free :]))
    if not arrow:
        once = sorted({letter for letter in "".join(terms) if letter.isalpha() and "".join(terms).count(letter) == 1})
        return terms, "0123456789"[10 - widest :] + "".join(once)
    return terms, right.replace("...", "0123456789"[10 - widest :])


@rule(
    "conv1d conv2d conv3d convolution conv1d.padding conv2d.padding conv3d.padding conv_transpose1d"
    " conv_transpose2d.input conv_transpose3d.input"
)
def convolution(call: Call) -> Kind:
    """Batch first; filters that all rows share slide over each example by itself."""
    call.require_public("weight", "bias")
    tensor, weight = call.tensor("input"), call.tensor("weight")
    if not isinstance(tensor.kind, PerExample) or tensor.kind.axis != 0 or tensor.rank != weight.rank:
        raise Refusal(8830, "it would sum over the batch as over channels or pixels")
    return tensor.kind


@rule("scaled_dot_product_attention", random=True)
def attention(call: Call) -> Kind:
    """Queries ``(…, L, E)``, keys ``(…, S, E)``, values ``(…, S, V)`` and a mask ``(…, L, S)``: batch in ``…`` only.

    Its dropout draws a mask an element, so each example has its own.
    """
    named = [(name, call[name]) for name in ("query", "key", "value", "attn_mask")]
    rank = len(call.shapes[0])
    leading: list[Tensor] = []
    for name, tensor in named:
        if tensor is None:
            continue
        if isinstance(tensor.kind, PerExample) and tensor.kind.axis >= tensor.rank - 2:
            raise Refusal(8830, f"attention would run over the batch: its {name} has it at axis {tensor.kind.axis}")
        heads = _heads(call, tensor, name)
        leading.append(Tensor(tensor.kind, heads, tensor.dtype))
    kind = pointwise(leading, rank - 2)
    if kind == PUBLIC and call["dropout_p"] > 0:
        raise Refusal(8841, "one dropout mask would serve all examples")
    return kind


def _heads(call: Call, tensor: Tensor, name: str) -> tuple[Size, ...]:
    """The leading axes; grouped queries let keys have fewer heads than queries, which no example notices."""
    shape = tensor.shape[:-2]
    if call["enable_gqa"] and name in ("key", "value") and shape:
        if isinstance(tensor.kind, PerExample) and tensor.kind.axis == len(shape) - 1:
            raise Refusal(8830, "heads would be shared between examples")
        return (*shape[:-1], 1)
    return shape


@rule("cdist outer ger inner tensordot kron cross linalg_cross")
def pairs(call: Call) -> Kind:
    """Products that pair everything with everything; ``cdist`` of ``(B, P, M)`` and ``(B, R, M)`` keeps the batch."""
    if call.op == "aten::cdist.default":
        a, b = call.tensor("x1"), call.tensor("x2")
        for tensor in (a, b):
            if isinstance(tensor.kind, PerExample) and tensor.kind.axis >= tensor.rank - 2:
                raise Refusal(8830, "each example would be compared with every other")
        rank = len(call.shapes[0])
        cutoff = [Tensor(tensor.kind, tensor.shape[:-2], tensor.dtype) for tensor in (a, b)]
        return pointwise(cutoff, rank - 2)
    if "cross" in call.op:
        raise Refusal(8831, "its axis depends on the shape", "write the product out")
    raise Refusal(8830, "each example would be multiplied with every other")
