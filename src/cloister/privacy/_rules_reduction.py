"""Rules of operators along axes: sums, norms, softmax, sorting. Along the batch's axis each of them mixes examples."""

from __future__ import annotations

from cloister.privacy._domain import Kind, PerExample, Refusal, Tensor
from cloister.privacy._rules import Call, axes, axis, pointwise, rule

__all__ = ["reduced", "scanned", "whole"]

_HINT = "reduce over an example's own axes only: x.flatten(1).mean(1)"


@rule(
    "sum mean prod max min any all std var norm.Scalar median nanmedian nansum numel count_nonzero trace dist dot vdot"
    " masked_select nonzero unique_consecutive _unique2 unique_dim histc bincount take cov corrcoef"
    " pdist equal item _local_scalar_dense nonzero_numpy masked_scatter put nonzero_static"
)
def whole(call: Call) -> Kind:
    """It reads every element of a tensor at once, or counts them: no result belongs to one example."""
    raise Refusal(8830, "it reads the whole tensor, all examples of it", _HINT)


@rule(
    "sum.dim_IntList mean.dim amax amin any.dim any.dims all.dim all.dims prod.dim_int argmax argmin var.dim"
    " var.correction std.dim std.correction std_mean.correction var_mean.correction logsumexp norm.ScalarOpt_dim"
    " norm.ScalarOpt_dim_dtype linalg_vector_norm nansum.dim_IntList count_nonzero.dim_IntList max.dim min.dim"
    " median.dim nanmedian.dim mode kthvalue cosine_similarity aminmax"
)
def reduced(call: Call) -> list[Kind]:
    """Axes fall together; ``cosine_similarity`` pairs its two tensors first."""
    tensor, dims, keep = _operand(call), call["dim"], call["keepdim"] or False
    kind = tensor.kind
    gone = axes(dims, tensor.rank)
    if not isinstance(kind, PerExample) or kind.axis in gone:
        raise Refusal(8830, "it would reduce over the batch", _HINT)
    after = kind if keep else kind.at(kind.axis - sum(each < kind.axis for each in gone))
    return [after] * len(call.shapes)


def _operand(call: Call) -> Tensor:
    """What is reduced: the argument, or two that meet element by element first."""
    if (second := call["x2"]) is None:
        return call.tensor("self")
    first = call.tensor("x1")
    rank = max(first.rank, second.rank)
    kind = pointwise([first, second], rank)
    return Tensor(kind, (1,) * rank, first.dtype)


@rule(
    "softmax.int log_softmax.int _softmax _log_softmax special_softmax.int special_log_softmax.int cumsum cumprod"
    " cummax cummin logcumsumexp sort sort.stable argsort argsort.stable topk glu"
)
def scanned(call: Call) -> list[Kind]:
    """Every element along an axis is read for each; the axis stays."""
    tensor = call.tensor("self")
    kind, dim = tensor.kind, call["dim"]
    if not isinstance(kind, PerExample) or kind.axis == axis(-1 if dim is None else dim, tensor.rank):
        raise Refusal(8830, "it would run along the batch", "run it along an example's own axis")
    return [kind] * len(call.shapes)


@rule("layer_norm rms_norm native_layer_norm", sizes="normalized_shape")
def normalised(call: Call) -> list[Kind]:
    """The last axes are normalised, each position of the others by itself."""
    tensor = call.tensor("input")
    call.require_public("weight", "bias")
    kind = tensor.kind
    if not isinstance(kind, PerExample) or kind.axis >= tensor.rank - len(call["normalized_shape"]):
        raise Refusal(8830, "it would normalise over the batch", "normalise over an example's own axes")
    return [kind] * len(call.shapes)
