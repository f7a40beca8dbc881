"""Rules of operators that work element by element, and of losses, which are such until they are reduced."""

from __future__ import annotations

from cloister.privacy._domain import PUBLIC, Kind, PerExample, Position, Refusal, Tensor, Unread
from cloister.privacy._graph import Times
from cloister.privacy._rules import Call, alike, pointwise, rule

__all__ = ["copied", "elementwise", "loss"]

_UNARY = """
abs acos acosh alias angle asin asinh atan atanh bitwise_not ceil celu clamp clamp_max clamp_min conj_physical
contiguous cos cosh deg2rad digamma elu erf erfc erfinv exp exp2 expm1 floor frac gelu
hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan isneginf isposinf leaky_relu lgamma log log10 log1p
log2 log_sigmoid logical_not logit mish nan_to_num neg positive rad2deg reciprocal relu relu6 round round.decimals rsqrt
selu sgn sigmoid sign signbit silu sin sinc sinh softplus softshrink special_erf special_expit special_log1p sqrt
square tan tanh tanhshrink threshold trunc
"""
_BINARY = """
add.Tensor add.Scalar atan2 bitwise_and.Tensor bitwise_and.Scalar bitwise_or.Tensor bitwise_or.Scalar bitwise_xor.Tensor
bitwise_xor.Scalar clamp.Tensor clamp_max.Tensor clamp_min.Tensor copysign.Tensor copysign.Scalar div.Tensor
div.Scalar div.Tensor_mode div.Scalar_mode eq.Tensor eq.Scalar expand_as floor_divide floor_divide.Scalar fmax fmin
fmod.Tensor fmod.Scalar ge.Tensor ge.Scalar gt.Tensor gt.Scalar heaviside hypot le.Tensor le.Scalar lerp.Scalar
lerp.Tensor logaddexp logaddexp2 logical_and logical_or logical_xor lt.Tensor lt.Scalar maximum minimum mul.Tensor
mul.Scalar ne.Tensor ne.Scalar pow.Tensor_Tensor pow.Tensor_Scalar pow.Scalar prelu remainder.Tensor remainder.Scalar
rsub.Tensor rsub.Scalar sub.Tensor sub.Scalar where.self where.ScalarOther where.ScalarSelf where.Scalar xlogy.Tensor
addcdiv addcmul masked_fill.Scalar masked_fill.Tensor __and__.Tensor __or__.Tensor __xor__.Tensor __and__.Scalar
__or__.Scalar __lshift__.Scalar __rshift__.Scalar bitwise_left_shift.Tensor_Scalar bitwise_right_shift.Tensor_Scalar
"""


@rule(_UNARY + _BINARY)
def elementwise(call: Call) -> Kind:
    """Each element of the result comes of the elements at its own place."""
    if call.op == "aten::prelu.default":
        call.require_public("weight")  # its axis is the channels', not one broadcast from the right
        tensor = call.tensor("self")
        _refuse_axis(tensor.kind, 1, "prelu takes a weight a channel")
        return tensor.kind
    return pointwise(list(call.tensors()), len(call.shapes[0]))


@rule(
    "_to_copy clone detach lift_fresh lift_fresh_copy to.dtype to.device to.other to.dtype_layout type_as _conj"
    " view_as_real view_as_complex",
    positions=True,
)
def copied(call: Call) -> Kind:
    """The same elements, perhaps of another type."""
    kind = call.tensor("self").kind
    if isinstance(kind, Position) and call.dtypes[0] not in ("int64", "int32"):
        raise Refusal(8832, "a row's number would become a value, or wrap around")
    return kind


@rule("fill.Scalar fill.Tensor zero copy", fresh=True)
def overwritten(call: Call) -> Kind:
    """Every element of ``self`` is written anew, broadcast from the right."""
    tensor, source = call.tensor("self"), call["src"] if call["src"] is not None else call["value"]
    values = [source] if isinstance(source, Tensor) else []
    if not isinstance(tensor.kind, Unread):
        return pointwise([tensor, *values], tensor.rank)
    if not any(isinstance(size, Times) for size in tensor.shape):
        return pointwise(values, tensor.rank)
    blank = Tensor(alike(tensor.shape), tensor.shape, tensor.dtype)
    whole = [value for value in values if isinstance(value.kind, PerExample)]
    return pointwise(whole or [blank], tensor.rank)


@rule("bucketize.Tensor searchsorted.Tensor")
def sorted_search(call: Call) -> Kind:
    """Where each element belongs among boundaries that all share."""
    call.require_public("boundaries", "sorted_sequence", "sorter")
    boundaries = call["boundaries"] or call["sorted_sequence"]
    if boundaries.rank != 1:
        raise Refusal(8830, "rows of boundaries would be paired with rows of the batch")
    return call.tensor("self").kind


@rule("isin.Tensor_Tensor isin.Tensor_Scalar")
def membership(call: Call) -> Kind:
    """Whether each element is one of those that all share."""
    call.require_public("test_elements")
    return call.tensor("elements").kind


@rule(
    "mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits kl_div"
    " soft_margin_loss poisson_nll_loss hinge_embedding_loss margin_ranking_loss"
)
def loss(call: Call) -> Kind:
    """A loss an element."""
    refuse_reduced(call)
    return pointwise(list(call.tensors()), len(call.shapes[0]))


@rule("nll_loss_forward nll_loss2d_forward")
def class_loss(call: Call) -> list[Kind]:
    """A loss a row, ``(N, C, …)`` scores and ``(N, …)`` classes to ``(N, …)``; beside it the sum of all weights."""
    refuse_reduced(call)
    call.require_public("weight")
    scores, target = call.tensor("self"), call.tensor("target")
    kinds = {kind for tensor in (scores, target) if isinstance(kind := tensor.kind, PerExample)}
    if scores.rank < 2 or len(kinds) != 1 or (kind := kinds.pop()).axis != 0:
        raise Refusal(8830, "scores and targets would not be paired example by example")
    if any(tensor.kind == PUBLIC for tensor in (scores, target)):
        raise Refusal(8830, "scores or targets without a batch would be laid along the batch")
    return [kind, Unread()]


def refuse_reduced(call: Call) -> None:
    """Returns unless a loss is reduced over the batch.

    Raises:
        Refusal: 8830 when it is.
    """
    if call["reduction"] != 0:
        raise Refusal(8830, "it sums or averages over the batch", "pass reduction='none': one loss an example")


def _refuse_axis(kind: Kind, axis: int, why: str) -> None:
    if isinstance(kind, PerExample) and kind.axis == axis:
        raise Refusal(8830, why)
