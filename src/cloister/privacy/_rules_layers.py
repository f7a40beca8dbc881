"""Rules of layers that are one operator: normalisation, pooling, padding, resizing, recurrence."""

from __future__ import annotations

from cloister.privacy._domain import PUBLIC, Kind, PerExample, Public, Refusal, Tensor, Unread
from cloister.privacy._rules import Call, rule

__all__ = ["BATCH_NORMS", "BATCH_NORM_HINT", "batch_norm", "group_norm", "pooled", "recurrent"]

BATCH_NORM_HINT = "use GroupNorm: batch normalisation reads all rows (cloister.privacy.fix swaps it)"
BATCH_NORMS = frozenset(
    f"aten::{name}"
    for name in [
        "native_batch_norm",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_functional",
        "cudnn_batch_norm",
        "_batch_norm_with_update",
        "_batch_norm_with_update_functional",
    ]
)
"""Operators that normalise with the statistics of the batch; refused wherever they stand, also beside the result."""


@rule("batch_norm _native_batch_norm_legit_no_training")
def batch_norm(call: Call) -> list[Kind]:
    """Allowed with stored statistics only, which all rows share."""
    if call["training"] or call["running_mean"] is None or call["running_var"] is None:
        raise Refusal(8830, "it normalises with the statistics of the batch", BATCH_NORM_HINT)
    call.require_public("weight", "bias", "running_mean", "running_var")
    kind = _first_axis(call.tensor("input"), "it would normalise over the batch")
    return [kind, *[Unread()] * (len(call.shapes) - 1)]


@rule("group_norm")
def group_norm(call: Call) -> Kind:
    """Channels ``(B, C, …)`` of one example are normalised together."""
    call.require_public("weight", "bias")
    return _first_axis(call.tensor("input"), "it would normalise over the batch")


@rule("instance_norm")
def instance_norm(call: Call) -> Kind:
    """Each channel of one example; with running statistics it would keep those of the batch."""
    if call["running_mean"] is not None or not call["use_input_stats"]:
        raise Refusal(8833, "it would keep statistics of the batch", "leave track_running_stats off")
    call.require_public("weight", "bias")
    return _first_axis(call.tensor("input"), "it would normalise over the batch")


@rule("pixel_shuffle pixel_unshuffle channel_shuffle")
def of_channels(call: Call) -> Kind:
    """Axes from the third last on are rearranged."""
    tensor = call.tensor("self")
    return _before(tensor, tensor.rank - 3)


def _first_axis(tensor: Tensor, why: str) -> Kind:
    if not isinstance(tensor.kind, PerExample) or tensor.kind.axis != 0:
        raise Refusal(8830, why)
    return tensor.kind


def _before(tensor: Tensor, end: int) -> Kind:
    """What is known where the axes from ``end`` on are mixed."""
    if not isinstance(tensor.kind, PerExample) or tensor.kind.axis >= end:
        raise Refusal(8830, "it would slide over the batch as over pixels")
    return tensor.kind


@rule(
    "max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d max_pool1d_with_indices upsample_linear1d"
    " upsample_nearest1d upsample_linear1d.vec upsample_nearest1d.vec lp_pool1d reflection_pad1d replication_pad1d"
)
def pooled_1d(call: Call) -> list[Kind]:
    """The last axis is pooled, padded or resized."""
    return _pooled(call, 1)


@rule(
    "max_pool2d avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d max_pool2d_with_indices"
    " upsample_bilinear2d upsample_nearest2d upsample_bicubic2d upsample_bilinear2d.vec upsample_nearest2d.vec"
    " upsample_bicubic2d.vec reflection_pad2d replication_pad2d im2col col2im _upsample_bilinear2d_aa"
    " _upsample_bicubic2d_aa _upsample_nearest_exact2d _upsample_nearest_exact2d.vec"
)
def pooled(call: Call) -> list[Kind]:
    """The last two axes are pooled, padded, resized or unfolded."""
    if "im" in call.op.partition("::")[2][:6]:
        return [_first_axis(call.tensor("self"), "it would slide over the batch as over pixels")]
    return _pooled(call, 2)


@rule(
    "max_pool3d avg_pool3d adaptive_avg_pool3d max_pool3d_with_indices upsample_trilinear3d upsample_nearest3d"
    " upsample_trilinear3d.vec upsample_nearest3d.vec reflection_pad3d replication_pad3d"
)
def pooled_3d(call: Call) -> list[Kind]:
    """The last three axes are pooled, padded or resized."""
    return _pooled(call, 3)


def _pooled(call: Call, axes: int) -> list[Kind]:
    tensor = call["self"] if call["self"] is not None else call.tensor("input")
    return [_before(tensor, tensor.rank - axes)] * len(call.shapes)


@rule("constant_pad_nd pad")
def padded(call: Call) -> Kind:
    """The last axes get margins: pairs of widths, the last axis first."""
    tensor, widths = call.tensor("self"), call["pad"]
    kind = tensor.kind
    if not isinstance(kind, PerExample):
        raise Refusal(8830, "a tensor without a batch would be laid along the batch")
    pair = 2 * (tensor.rank - 1 - kind.axis)
    if any(widths[pair : pair + 2]):
        raise Refusal(8830, "rows would be added to the batch, or taken from it")
    return kind


@rule("grid_sampler grid_sampler_2d grid_sampler_3d")
def sampled(call: Call) -> Kind:
    """Pixels of an example at places of the same example."""
    image, grid = call.tensor("input"), call.tensor("grid")
    if image.kind != grid.kind:
        raise Refusal(8830, "one example would be read at another's places")
    return _first_axis(image, "it would slide over the batch as over pixels")


@rule("affine_grid_generator", sizes="size")
def grid(call: Call) -> Kind:
    """Places to read at, by a transform an example."""
    return _first_axis(call.tensor("theta"), "one transform would be laid along the batch")


@rule("lstm.input gru.input rnn_tanh.input rnn_relu.input", random=True)
def recurrent(call: Call) -> list[Kind]:
    """Steps of each sequence by itself: input ``(B, T, C)`` or ``(T, B, C)``, states ``(layers, B, H)``."""
    call.require_public("params")
    tensor = call.tensor("input")
    own = 0 if call["batch_first"] else 1
    states: list[Tensor] = call["hx"] if isinstance(call["hx"], list) else [call["hx"]]
    if isinstance(tensor.kind, Public) and all(isinstance(state.kind, Public) for state in states):
        if call["dropout"] > 0 and call["train"]:
            raise Refusal(8841, "one dropout mask would serve all examples")
        return [PUBLIC] * len(call.shapes)
    if tensor.rank != 3 or tensor.kind != PerExample(own) or any(state.kind != PerExample(1) for state in states):
        raise Refusal(8830, "it would run along the batch as along time", "say batch_first as the input is")
    return [PerExample(own), *[PerExample(1)] * (len(call.shapes) - 1)]
