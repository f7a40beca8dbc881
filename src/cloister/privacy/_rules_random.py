"""Rules of random numbers. Each example draws its own; numbers that all examples share are refused (8841).

Shared ones would not break the bound on one example's influence, since they do not depend on data. But a certificate
then would have to say of what the sampler and the split into micro-batches may depend; it says something simpler: each
row's loss is a function of its example, of parameters, and of randomness that only this row has.
"""

from __future__ import annotations

from cloister.privacy._domain import PUBLIC, Kind, PerExample, Refusal
from cloister.privacy._graph import Times
from cloister.privacy._rules import Call, alike, rule

__all__ = ["drawn", "drawn_like", "dropped"]

_SHARED = "its random numbers would be shared by all examples"
_HINT = "draw them with the batch's axis, or apply dropout behind the batch"


@rule("dropout native_dropout alpha_dropout", random=True)
def dropped(call: Call) -> list[Kind]:
    """A mask an element."""
    tensor = call["input"] if call["input"] is not None else call.tensor("self")
    if tensor.kind == PUBLIC and call["p"] > 0 and call["train"] is not False:
        raise Refusal(8841, _SHARED, _HINT)
    return [tensor.kind] * len(call.shapes)


@rule("feature_dropout feature_alpha_dropout", random=True)
def dropped_channels(call: Call) -> Kind:
    """A mask a channel: drawn for the first two axes, shared by the others."""
    kind = call.tensor("input").kind
    if call["p"] > 0 and call["train"] and (not isinstance(kind, PerExample) or kind.axis > 1):
        raise Refusal(8841, _SHARED, _HINT)
    return kind


@rule("bernoulli rand_like randn_like randint_like randint_like.low_dtype", random=True)
def drawn_like(call: Call) -> Kind:
    """A number an element of a tensor."""
    if not isinstance(kind := call.tensor("self").kind, PerExample):
        raise Refusal(8841, _SHARED, _HINT)
    return kind


@rule("rand randn randint randint.low", sizes="size", random=True)
@rule("bernoulli.p uniform normal_functional exponential", random=True, fresh=True)
def drawn(call: Call) -> Kind:
    """A number an element, all alike, whatever stood there."""
    if not any(isinstance(size, Times) for size in call.shapes[0]):
        raise Refusal(8841, _SHARED, _HINT)
    return alike(call.shapes[0])


@rule(
    "randperm multinomial normal.float_float normal.Tensor_Tensor normal.Tensor_float normal.float_Tensor poisson",
    random=True,
)
def drawn_otherwise(call: Call) -> Kind:
    """An order, or numbers whose distribution a tensor gives."""
    raise Refusal(8841, _SHARED, _HINT)
