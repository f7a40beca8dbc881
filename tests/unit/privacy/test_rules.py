"""What each operator does with the batch's axis: accepted forms with their result, refused ones with their code."""

from typing import Any

import pytest

from cloister.errors import all_codes
from cloister.privacy._domain import PUBLIC, Kind, PerExample, Position, Refusal, Tensor, Unread, consistent, reshaped
from cloister.privacy._graph import Size, Times
from cloister.privacy._independence import _judged
from cloister.privacy._rules import Call, rules

B = Times(1)


def x(*shape: Size, outer: int = 1, dtype: str = "float32") -> Tensor:
    """A tensor with the batch on its one symbolic axis; none: public."""
    where = [axis for axis, size in enumerate(shape) if isinstance(size, Times)]
    if not where:
        return Tensor(PUBLIC, shape, dtype)
    size = shape[where[0]]
    assert isinstance(size, Times)
    return Tensor(PerExample(where[0], outer, size.count // outer), shape, dtype)


def ids(*shape: Size) -> Tensor:
    return x(*shape, dtype="int64")


def mask(*shape: Size) -> Tensor:
    return x(*shape, dtype="bool")


def rows(*shape: Size) -> Tensor:
    return Tensor(Position(next(at for at, size in enumerate(shape) if size == B)), shape, "int64")


NOBODY = Tensor(Unread(), (B, 4), "float32")


def judge(op: str, args: dict[str, Any], *shapes: tuple[Size, ...], dtype: str = "float32") -> list[Kind]:
    """What the rules say of a call, with shapes held against it."""
    call = Call(f"aten::{op}" if "." in op else f"aten::{op}.default", args, shapes, [dtype] * len(shapes))
    found = list(_judged(rules()[call.op], call))
    for kind, shape in zip(found, shapes, strict=True):
        if not consistent(kind, shape):
            raise Refusal(8830, f"{shape} is no {kind}")
    return found


def at(axis: int, outer: int = 1, inner: int = 1) -> PerExample:
    return PerExample(axis, outer, inner)


ACCEPTED = [
    ("relu", {"self": x(B, 4)}, (B, 4), at(0)),
    ("add.Tensor", {"self": x(B, 4), "other": x(4)}, (B, 4), at(0)),
    ("add.Tensor", {"self": x(4, 1, 1), "other": x(B, 3)}, (4, B, 3), at(1)),
    ("mul.Tensor", {"self": x(Times(6), 4), "other": x(Times(6), 1)}, (Times(6), 4), at(0, 1, 6)),
    ("where.self", {"condition": mask(B, 1), "self": x(B, 4), "other": x()}, (B, 4), at(0)),
    ("prelu", {"self": x(B, 4, 5), "weight": x(4)}, (B, 4, 5), at(0)),
    ("copy", {"self": x(B, 4), "src": x(4)}, (B, 4), at(0)),
    ("copy", {"self": NOBODY, "src": x(4)}, (B, 4), at(0)),
    ("fill.Scalar", {"self": NOBODY, "value": 1.0}, (B, 4), at(0)),
    ("_to_copy", {"self": rows(B)}, (B,), Position(0)),
    ("bucketize.Tensor", {"self": x(B, 4), "boundaries": x(9)}, (B, 4), at(0)),
    ("isin.Tensor_Tensor", {"elements": ids(B, 4), "test_elements": ids(3)}, (B, 4), at(0)),
    ("mse_loss", {"self": x(B, 4), "target": x(B, 4), "reduction": 0}, (B, 4), at(0)),
    ("view", {"self": x(B, 4, 6), "size": [-1, 6]}, (Times(4), 6), at(0, 1, 4)),
    ("view", {"self": x(Times(4), 6), "size": [B, 24]}, (B, 24), at(0)),
    ("view", {"self": x(3, B, 4), "size": []}, (Times(12),), at(0, 3, 4)),
    ("view", {"self": x(Times(12), outer=3), "size": []}, (3, B, 4), at(1)),
    ("view", {"self": x(Times(12), outer=3), "size": []}, (3, Times(2), 2), at(1, 1, 2)),
    ("unsqueeze", {"self": rows(B), "dim": 1}, (B, 1), Position(0)),
    ("squeeze.dim", {"self": x(B, 1, 3), "dim": 1}, (B, 3), at(0)),
    ("permute", {"self": x(B, 4, 6), "dims": [2, 0, 1]}, (6, B, 4), at(1)),
    ("transpose.int", {"self": x(B, 4, 6), "dim0": 0, "dim1": -1}, (6, 4, B), at(2)),
    ("movedim.int", {"self": x(B, 4, 6), "source": 0, "destination": 2}, (4, 6, B), at(2)),
    ("t", {"self": x(B, 4)}, (4, B), at(1)),
    ("mT", {"self": x(3, B, 4)}, (3, 4, B), at(2)),
    ("expand", {"self": x(1, 4), "size": [B, 4]}, (B, 4), at(0)),
    ("expand", {"self": x(B, 1), "size": [3, B, 5]}, (3, B, 5), at(1)),
    ("repeat", {"self": x(B, 4), "repeats": [2, 1]}, (Times(2), 4), at(0, 2, 1)),
    ("repeat", {"self": x(4), "repeats": [B, 1]}, (B, 4), at(0)),
    ("repeat", {"self": x(4), "repeats": [B]}, (Times(4),), at(0, 1, 4)),
    ("repeat_interleave.self_int", {"self": x(B, 4), "repeats": 2, "dim": 0}, (Times(2), 4), at(0, 1, 2)),
    ("cat", {"tensors": [x(B, 4), x(B, 2)], "dim": 1}, (B, 6), at(0)),
    ("cat", {"tensors": [x(B, 4), x(Times(2), 4, outer=2)], "dim": 0}, (Times(3), 4), at(0, 3, 1)),
    ("stack", {"tensors": [x(B, 4), x(B, 4)], "dim": 0}, (2, B, 4), at(1)),
    ("slice.Tensor", {"self": x(B, 4), "dim": 1, "start": 1, "end": 3, "step": 1}, (B, 2), at(0)),
    ("slice.Tensor", {"self": x(B, 4), "dim": 0, "start": 0, "end": 2**63 - 1, "step": 1}, (B, 4), at(0)),
    (
        "slice.Tensor",
        {"self": x(Times(2), 4, outer=2), "dim": 0, "start": B, "end": 2**63 - 1, "step": 1},
        (B, 4),
        at(0),
    ),
    ("select.int", {"self": x(3, B, 4), "dim": 0, "index": 1}, (B, 4), at(0)),
    ("select_scatter", {"self": x(B, 4), "src": x(B), "dim": 1, "index": 0}, (B, 4), at(0)),
    ("slice_scatter", {"self": x(B, 4), "src": x(B, 2), "dim": 1, "start": 0, "end": 2, "step": 1}, (B, 4), at(0)),
    ("slice_scatter", {"self": x(B, 4), "src": x(B, 4), "dim": 0, "start": 0, "end": 2**62, "step": 1}, (B, 4), at(0)),
    ("flip", {"self": x(B, 4), "dims": [1]}, (B, 4), at(0)),
    ("tril", {"self": x(B, 4, 4)}, (B, 4, 4), at(0)),
    ("diagonal", {"self": x(4, B, 4), "dim1": 0, "dim2": 2}, (B, 4), at(0)),
    ("unfold", {"self": x(B, 8), "dimension": 1, "size": 2, "step": 2}, (B, 4, 2), at(0)),
    ("zeros", {"size": [B, 4]}, (B, 4), at(0)),
    ("ones_like", {"self": x(B, 4)}, (B, 4), at(0)),
    ("sum.dim_IntList", {"self": x(B, 4, 6), "dim": [1, 2], "keepdim": False}, (B,), at(0)),
    ("mean.dim", {"self": x(4, B), "dim": [0], "keepdim": True}, (1, B), at(1)),
    ("argmax", {"self": x(4, B), "dim": 0, "keepdim": False}, (B,), at(0)),
    ("cosine_similarity", {"x1": x(B, 4), "x2": x(4), "dim": 1}, (B,), at(0)),
    ("softmax.int", {"self": x(B, 4), "dim": -1}, (B, 4), at(0)),
    ("cumsum", {"self": x(B, 4), "dim": 1}, (B, 4), at(0)),
    ("layer_norm", {"input": x(B, 4, 6), "normalized_shape": [6], "weight": x(6)}, (B, 4, 6), at(0)),
    ("linear", {"input": x(4, B, 6), "weight": x(2, 6)}, (4, B, 2), at(1)),
    ("mm", {"self": x(B, 4), "mat2": x(4, 3)}, (B, 3), at(0)),
    ("mm", {"self": x(3, 4), "mat2": x(4, B)}, (3, B), at(1)),
    ("matmul", {"self": x(B, 1, 3, 4), "other": x(5, 4, 6)}, (B, 5, 3, 6), at(0)),
    ("matmul", {"self": x(3, 4), "other": x(B, 4, 6)}, (B, 3, 6), at(0)),
    ("matmul", {"self": x(B, 3, 4), "other": x(B, 4, 6)}, (B, 3, 6), at(0)),
    ("mv", {"self": x(B, 4), "vec": x(4)}, (B,), at(0)),
    ("addmm", {"self": x(3), "mat1": x(B, 4), "mat2": x(4, 3)}, (B, 3), at(0)),
    ("bmm", {"self": x(Times(2), 3, 4), "mat2": x(Times(2), 4, 5)}, (Times(2), 3, 5), at(0, 1, 2)),
    ("einsum", {"equation": "bij,bjk->kbi", "tensors": [x(B, 2, 3), x(B, 3, 4)]}, (4, B, 2), at(1)),
    ("einsum", {"equation": "...i,ji", "tensors": [x(B, 5, 3), x(4, 3)]}, (B, 5, 4), at(0)),
    ("conv2d", {"input": x(B, 3, 8, 8), "weight": x(4, 3, 3, 3), "groups": 1}, (B, 4, 6, 6), at(0)),
    ("cdist", {"x1": x(B, 3, 4), "x2": x(B, 5, 4)}, (B, 3, 5), at(0)),
    (
        "_native_batch_norm_legit_no_training",
        {"input": x(B, 4), "running_mean": x(4), "running_var": x(4)},
        (B, 4),
        at(0),
    ),
    ("group_norm", {"input": x(B, 4, 5)}, (B, 4, 5), at(0)),
    ("instance_norm", {"input": x(B, 4, 5), "use_input_stats": True}, (B, 4, 5), at(0)),
    ("max_pool2d", {"self": x(B, 4, 8, 8)}, (B, 4, 4, 4), at(0)),
    ("im2col", {"self": x(B, 4, 8, 8)}, (B, 36, 36), at(0)),
    ("constant_pad_nd", {"self": x(B, 4), "pad": [1, 1, 0, 0]}, (B, 6), at(0)),
    ("pad", {"self": x(B, 4), "pad": [1, 1]}, (B, 6), at(0)),
    ("grid_sampler", {"input": x(B, 1, 4, 4), "grid": x(B, 2, 2, 2)}, (B, 1, 2, 2), at(0)),
    ("embedding", {"weight": x(9, 4), "indices": ids(B, 3)}, (B, 3, 4), at(0)),
    ("one_hot", {"self": ids(B), "num_classes": 4}, (B, 4), at(0)),
    ("gather", {"self": x(B, 4), "dim": 1, "index": ids(B, 2)}, (B, 2), at(0)),
    ("scatter.value", {"self": x(B, 4), "dim": 1, "index": ids(B, 2), "value": 1.0}, (B, 4), at(0)),
    ("index_select", {"self": x(9, 4), "dim": 0, "index": ids(B)}, (B, 4), at(0)),
    ("index_select", {"self": x(B, 4), "dim": 1, "index": ids(2)}, (B, 2), at(0)),
    ("index.Tensor", {"self": x(9, 4), "indices": [ids(B, 3)]}, (B, 3, 4), at(0)),
    ("index.Tensor", {"self": x(5, 9, 4), "indices": [None, ids(B, 3)]}, (5, B, 3, 4), at(1)),
    ("index.Tensor", {"self": x(B, 4, 5), "indices": [None, ids(2)]}, (B, 2, 5), at(0)),
    ("index.Tensor", {"self": x(4, B, 5), "indices": [ids(2), None, ids(2)]}, (2, B), at(1)),
    ("index.Tensor", {"self": x(4, 5, B), "indices": [ids(2, 3), ids(2, 3)]}, (2, 3, B), at(2)),
    ("index.Tensor", {"self": x(B, 9, 4), "indices": [rows(B), ids(B)]}, (B, 4), at(0)),
    ("index.Tensor", {"self": x(B, 9), "indices": [rows(B, 1), ids(5)]}, (B, 5), at(0)),
    ("index_put", {"self": x(B, 4), "indices": [rows(B), ids(B)], "values": x(B)}, (B, 4), at(0)),
    ("index_put", {"self": x(B, 4), "indices": [None, ids(2)], "values": x(B, 2)}, (B, 4), at(0)),
    ("index_put", {"self": x(B, 4), "indices": [mask(B, 4)], "values": x()}, (B, 4), at(0)),
    ("dropout", {"input": x(B, 4), "p": 0.5, "train": True}, (B, 4), at(0)),
    ("dropout", {"input": x(4), "p": 0.5, "train": False}, (4,), PUBLIC),
    ("feature_dropout", {"input": x(B, 4, 5), "p": 0.5, "train": True}, (B, 4, 5), at(0)),
    ("bernoulli.p", {"self": NOBODY, "p": 0.5}, (B, 4), at(0)),
    ("rand", {"size": [B, 1]}, (B, 1), at(0)),
    ("arange", {"end": B}, (B,), Position(0)),
]

REFUSED = [
    ("add.Tensor", {"self": x(B, 1), "other": x(1, B)}, (B, B), 8830),
    ("add.Tensor", {"self": x(Times(2), 4), "other": x(Times(2), 4, outer=2)}, (Times(2), 4), 8830),
    ("add.Tensor", {"self": x(B, 4), "other": x(7, 4)}, (B, 4), 8830),
    ("add.Tensor", {"self": x(B, 4), "other": rows(B, 1)}, (B, 4), 8832),
    ("add.Tensor", {"self": x(B, 4), "other": NOBODY}, (B, 4), 8830),
    ("mul.Tensor", {"self": x(B, 4), "other": B}, (B, 4), 8832),
    ("prelu", {"self": x(4, B, 5), "weight": x(1)}, (4, B, 5), 8830),
    ("prelu", {"self": x(B, 4), "weight": x(B)}, (B, 4), 8830),
    ("_to_copy", {"self": rows(B)}, (B,), 8832),
    ("bucketize.Tensor", {"self": x(B, 4), "boundaries": x(B)}, (B, 4), 8830),
    ("searchsorted.Tensor", {"self": x(B, 4), "sorted_sequence": x(7, 9)}, (B, 4), 8830),
    ("isin.Tensor_Tensor", {"elements": ids(B), "test_elements": ids(B)}, (B,), 8830),
    ("mse_loss", {"self": x(B, 4), "target": x(B, 4), "reduction": 1}, (), 8830),
    ("nll_loss_forward", {"self": x(B, 4), "target": ids(B), "reduction": 2}, (), 8830),
    ("nll_loss_forward", {"self": x(4, B), "target": ids(4), "reduction": 0}, (4,), 8830),
    ("nll_loss_forward", {"self": x(B), "target": ids(B), "reduction": 0}, (B,), 8830),
    ("nll_loss_forward", {"self": x(7, 4), "target": ids(B), "reduction": 0}, (B,), 8830),
    ("nll_loss_forward", {"self": x(B, 4), "target": ids(B), "weight": x(B), "reduction": 0}, (B,), 8830),
    ("view", {"self": x(4, B), "size": [B, 4]}, (B, 4), 8830),
    ("view", {"self": x(Times(2), 4, outer=2), "size": [B, 8]}, (B, 8), 8830),
    ("view", {"self": x(B, 4), "size": []}, (2, Times(2)), 8830),
    ("view", {"self": x(12), "size": [B]}, (B,), 8830),
    ("expand", {"self": x(B, 1), "size": [B, B]}, (B, B), 8830),
    ("expand", {"self": x(7, 4), "size": [B, 4]}, (B, 4), 8830),
    ("repeat", {"self": x(B), "repeats": [B]}, (Times(1),), 8830),
    ("cat", {"tensors": [x(B, 4), x(7, 4)], "dim": 0}, (B, 4), 8830),
    ("cat", {"tensors": [x(7, 4), x(B, 4)], "dim": 0}, (B, 4), 8830),
    ("cat", {"tensors": [x(Times(2), 4), x(Times(2), 4, outer=2)], "dim": 0}, (Times(4), 4), 8830),
    ("cat", {"tensors": [x(Times(2), 4), x(Times(2), 4, outer=2)], "dim": 1}, (Times(2), 8), 8830),
    ("stack", {"tensors": [x(Times(2), 4), x(Times(2), 4, outer=2)], "dim": 1}, (Times(2), 2, 4), 8830),
    ("slice.Tensor", {"self": x(B, 4), "dim": 0, "start": 1, "end": 2**63 - 1, "step": 1}, (B, 4), 8830),
    ("slice.Tensor", {"self": x(B, 4), "dim": 0, "start": 0, "end": 2**63 - 1, "step": 2}, (B, 4), 8830),
    ("slice.Tensor", {"self": x(B, 4), "dim": 0, "start": 0, "end": 5, "step": 1}, (5, 4), 8830),
    ("slice.Tensor", {"self": x(Times(4), outer=2), "dim": 0, "start": 0, "end": B, "step": 1}, (B,), 8830),
    ("slice.Tensor", {"self": x(B, 4), "dim": 1, "start": 0, "end": B, "step": 1}, (B, 4), 8832),
    ("slice.Tensor", {"self": x(64, 4), "dim": 0, "start": 0, "end": B, "step": 1}, (B, 4), 8832),
    ("select.int", {"self": x(B, 4), "dim": 0, "index": 0}, (4,), 8830),
    ("unbind.int", {"self": x(B, 4), "dim": 0}, (4,), 8830),
    ("split.Tensor", {"self": x(Times(2), 4), "split_size": 4, "dim": 0}, (B, 4), 8830),
    ("select_scatter", {"self": x(7, 4), "src": x(B), "dim": 1, "index": 0}, (7, 4), 8830),
    ("slice_scatter", {"self": x(B, 4), "src": x(B, 4), "dim": 0, "start": 1, "end": 2**62, "step": 2}, (B, 4), 8830),
    ("slice_scatter", {"self": x(B, 4), "src": x(3, 4), "dim": 0, "start": 0, "end": 3, "step": 1}, (B, 4), 8830),
    ("flip", {"self": x(B, 4), "dims": [0]}, (B, 4), 8830),
    ("roll", {"self": x(B, 4), "shifts": [1], "dims": []}, (B, 4), 8830),
    ("tril", {"self": x(B, 4)}, (B, 4), 8832),
    ("diagonal", {"self": x(B, 4), "dim1": 0, "dim2": 1}, (4,), 8832),
    ("unfold", {"self": x(B), "dimension": 0, "size": 1, "step": 1}, (B, 1), 8830),
    ("full", {"size": [4], "fill_value": B}, (4,), 8832),
    ("arange", {"end": B}, (B,), 8832),
    (
        "select_scatter",
        {"self": x(Times(2), 4), "src": x(Times(2), outer=2), "dim": 1, "index": 0},
        (Times(2), 4),
        8830,
    ),
    ("arange.start", {"start": 1, "end": B}, (B,), 8832),
    ("arange", {"end": Times(2)}, (Times(2),), 8832),
    ("eye", {"n": B}, (B, B), 8832),
    ("as_strided", {"self": x(B, 4), "size": [4], "stride": [1]}, (4,), 8831),
    ("sum", {"self": x(B, 4)}, (), 8830),
    ("masked_scatter", {"self": x(B, 4), "mask": mask(B, 4), "source": x(B, 4)}, (B, 4), 8830),
    ("sum.dim_IntList", {"self": x(B, 4), "dim": [], "keepdim": False}, (), 8830),
    ("mean.dim", {"self": x(B, 4), "dim": [-2], "keepdim": True}, (1, 4), 8830),
    ("cosine_similarity", {"x1": x(B, 4), "x2": x(B, 4), "dim": 0}, (4,), 8830),
    ("softmax.int", {"self": x(4, B), "dim": -1}, (4, B), 8830),
    ("sort", {"self": x(4, B), "dim": -1}, (4, B), 8830),
    ("layer_norm", {"input": x(4, B), "normalized_shape": [B]}, (4, B), 8830),
    ("layer_norm", {"input": x(B, 4), "normalized_shape": [4], "weight": x(B)}, (B, 4), 8830),
    ("linear", {"input": x(4, B), "weight": x(2, 7)}, (4, 2), 8830),
    ("linear", {"input": x(3, 4), "weight": x(B, 4)}, (3, B), 8830),
    ("mm", {"self": x(4, B), "mat2": x(B, 4)}, (4, 4), 8830),
    ("mm", {"self": x(B, 4), "mat2": x(4, B)}, (B, B), 8830),
    ("bmm", {"self": x(B, 3, 4), "mat2": x(7, 4, 5)}, (B, 3, 5), 8830),
    ("matmul", {"self": x(B, 1, 3, 4), "other": x(B, 4, 6)}, (B, B, 3, 6), 8830),
    ("mv", {"self": x(4, B), "vec": x(B)}, (4,), 8830),
    ("einsum", {"equation": "bi,bi->i", "tensors": [x(B, 3), x(B, 3)]}, (3,), 8830),
    ("einsum", {"equation": "bi,ci->bc", "tensors": [x(B, 3), x(B, 3)]}, (B, B), 8830),
    ("einsum", {"equation": "bi,bi->bi", "tensors": [x(B, 3), x(7, 3)]}, (B, 3), 8830),
    ("conv1d", {"input": x(1, 4, B), "weight": x(4, 4, 3), "groups": 1}, (1, 4, B), 8830),
    ("conv1d", {"input": x(B, 4), "weight": x(4, 4, 3), "groups": 1}, (B, 4), 8830),
    ("conv2d", {"input": x(B, 3, 8, 8), "weight": x(B, 3, 3, 3), "groups": 1}, (B, 4, 6, 6), 8830),
    ("cdist", {"x1": x(B, 4), "x2": x(B, 4)}, (B, B), 8830),
    ("outer", {"self": x(B), "vec2": x(B)}, (B, B), 8830),
    ("batch_norm", {"input": x(B, 4), "running_mean": x(4), "running_var": x(4), "training": True}, (B, 4), 8830),
    ("batch_norm", {"input": x(B, 4), "training": False}, (B, 4), 8830),
    ("batch_norm", {"input": x(B, 4), "running_mean": x(B), "running_var": x(4), "training": False}, (B, 4), 8830),
    ("group_norm", {"input": x(1, B, 5)}, (1, B, 5), 8830),
    ("instance_norm", {"input": x(B, 4, 5), "use_input_stats": True, "running_mean": x(4)}, (B, 4, 5), 8833),
    ("avg_pool2d", {"self": x(4, B, 8)}, (4, B, 4), 8830),
    ("max_pool1d", {"self": x(4, B)}, (4, B), 8830),
    ("im2col", {"self": x(4, B, 8)}, (36, B), 8830),
    ("pixel_shuffle", {"self": x(B, 4, 4)}, (B, 4, 4), 8830),
    ("constant_pad_nd", {"self": x(B, 4), "pad": [0, 0, 1, -1]}, (B, 4), 8830),
    ("grid_sampler", {"input": x(1, 1, B, 4), "grid": x(1, B, 4, 2)}, (1, 1, B, 4), 8830),
    ("grid_sampler", {"input": x(7, 1, 4, 4), "grid": x(B, 4, 4, 2)}, (B, 1, 4, 4), 8830),
    ("embedding", {"weight": x(B, 4), "indices": ids(B)}, (B, 4), 8830),
    ("embedding", {"weight": x(9, 4), "indices": rows(B)}, (B, 4), 8832),
    ("one_hot", {"self": ids(B), "num_classes": -1}, (B, 4), 8830),
    ("gather", {"self": x(B, 4), "dim": 0, "index": ids(B, 4)}, (B, 4), 8830),
    ("gather", {"self": x(9, 4), "dim": 0, "index": ids(B, 4)}, (B, 4), 8830),
    ("scatter_add", {"self": x(B, 4), "dim": 0, "index": ids(B, 4), "src": x(B, 4)}, (B, 4), 8830),
    ("scatter_add", {"self": x(9, 4), "dim": 0, "index": ids(B, 4), "src": x(B, 4)}, (9, 4), 8830),
    (
        "scatter.src",
        {"self": x(Times(2), 4), "dim": 1, "index": ids(Times(2), 4), "src": x(Times(2), 4, outer=2)},
        (Times(2), 4),
        8830,
    ),
    ("index_select", {"self": x(B, 4), "dim": 0, "index": ids(B)}, (B, 4), 8830),
    ("index_select", {"self": x(9, 4), "dim": 0, "index": rows(B)}, (B, 4), 8832),
    ("index.Tensor", {"self": x(B, 4), "indices": [ids(B)]}, (B, 4), 8830),
    ("index.Tensor", {"self": x(B, 4), "indices": [ids(5)]}, (5, 4), 8830),
    ("index.Tensor", {"self": x(B, 4), "indices": [None, ids(B)]}, (B, B), 8830),
    ("index.Tensor", {"self": x(B, 4), "indices": [rows(B, 1), ids(1, B)]}, (B, B), 8830),
    ("index.Tensor", {"self": x(B, 4), "indices": [mask(B)]}, (B, 4), 8830),
    ("index.Tensor", {"self": x(9, 4), "indices": [rows(B)]}, (B, 4), 8832),
    ("index.Tensor", {"self": x(9, 4), "indices": [rows(B), ids(B)]}, (B,), 8832),
    ("index.Tensor", {"self": x(Times(2), 4), "indices": [rows(B), ids(B)]}, (B,), 8830),
    ("index_put", {"self": x(9, 4), "indices": [ids(B)], "values": x(B, 4)}, (9, 4), 8830),
    ("index_put", {"self": x(B, 4), "indices": [ids(B)], "values": x(B, 4)}, (B, 4), 8830),
    ("index_put", {"self": x(B, 4), "indices": [None, ids(B)], "values": x(4)}, (B, 4), 8830),
    ("index_put", {"self": x(B, 4), "indices": [rows(B), ids(B)], "values": x(7)}, (B, 4), 8830),
    ("index_put", {"self": x(B, 4), "indices": [mask(B, 4)], "values": x(B)}, (B, 4), 8830),
    ("index_put", {"self": x(4, B), "indices": [mask(4, 7)], "values": x()}, (4, B), 8830),
    ("dropout", {"input": x(4), "p": 0.5, "train": True}, (4,), 8841),
    ("feature_dropout", {"input": x(4, 5, B), "p": 0.5, "train": True}, (4, 5, B), 8841),
    ("bernoulli.p", {"self": x(4), "p": 0.5}, (4,), 8841),
    ("randn", {"size": [4]}, (4,), 8841),
    ("randperm", {"n": 4}, (4,), 8841),
]

ATTENTION = {"dropout_p": 0.0, "is_causal": False, "enable_gqa": False}


@pytest.mark.parametrize(("op", "args", "shape", "expected"), ACCEPTED)
def test_a_form_that_keeps_examples_apart_is_accepted(
    op: str, args: dict[str, Any], shape: Any, expected: Kind
) -> None:
    dtype = "int64" if isinstance(expected, Position) else "float32"
    assert judge(op, args, shape, dtype=dtype) == [expected]


@pytest.mark.parametrize(("op", "args", "shape", "code"), REFUSED)
def test_a_form_that_mixes_examples_is_refused(op: str, args: dict[str, Any], shape: Any, code: int) -> None:
    with pytest.raises(Refusal) as caught:
        judge(op, args, shape)
    assert caught.value.code == code, caught.value.why


def test_attention_runs_within_examples_only() -> None:
    three = {name: x(B, 2, 5, 4) for name in ("query", "key", "value")}
    name = "scaled_dot_product_attention"
    assert judge(name, {**three, **ATTENTION}, (B, 2, 5, 4)) == [at(0)]
    assert judge(name, {**three, **ATTENTION, "attn_mask": mask(B, 1, 1, 5)}, (B, 2, 5, 4)) == [at(0)]
    assert judge(name, {**three, **ATTENTION, "query": x(1, 2, 5, 4), "dropout_p": 0.5}, (B, 2, 5, 4)) == [at(0)]
    for wrong in (
        {"query": x(2, B, 4), "key": x(2, B, 4), "value": x(2, B, 4)},
        {**three, "attn_mask": mask(B, 5)},
        {**three, "attn_mask": mask(B, 1, 1)},
        {**three, "key": x(7, 2, 5, 4)},
        {"query": x(4, B, 5, 4), "key": x(4, B, 5, 4), "value": x(4, B, 5, 4), "enable_gqa": True},
    ):
        with pytest.raises(Refusal) as caught:
            judge(name, {**ATTENTION, **wrong}, (B, 2, 5, 4))
        assert caught.value.code == 8830
    shared = {each: x(2, 5, 4) for each in three}
    with pytest.raises(Refusal) as caught:
        judge(name, {**shared, **ATTENTION, "dropout_p": 0.5}, (2, 5, 4))
    assert caught.value.code == 8841


def test_recurrence_runs_along_time_only() -> None:
    def lstm(tensor: Tensor, state: Tensor, first: bool, *shapes: tuple[Size, ...], **more: Any) -> list[Kind]:
        args = {"input": tensor, "hx": [state, state], "params": [x(4, 4)], "batch_first": first, **more}
        return judge("lstm.input", {"dropout": 0.5, "train": True, **args}, *shapes)

    state = x(1, B, 4)
    assert lstm(x(B, 7, 3), state, True, (B, 7, 4), (1, B, 4), (1, B, 4)) == [at(0), at(1), at(1)]
    assert lstm(x(7, B, 3), state, False, (7, B, 4), (1, B, 4), (1, B, 4)) == [at(1), at(1), at(1)]
    for tensor, states, first in (
        (x(B, 7, 3), state, False),
        (x(7, B, 3), state, True),
        (x(B, 7, 3), x(1, 7, 4), True),
    ):
        with pytest.raises(Refusal) as caught:
            lstm(tensor, states, first, (B, 7, 4), (1, B, 4), (1, B, 4))
        assert caught.value.code == 8830
    with pytest.raises(Refusal) as caught:
        lstm(x(7, 3), x(1, 4), True, (7, 4), (1, 4), (1, 4))
    assert caught.value.code == 8841


def test_what_stands_beside_a_loss_or_a_norm_is_for_nobody() -> None:
    assert judge("nll_loss_forward", {"self": x(B, 4), "target": ids(B), "reduction": 0}, (B,), ()) == [at(0), Unread()]
    with pytest.raises(Refusal) as caught:
        judge("add.Tensor", {"self": x(B), "other": Tensor(Unread(), (), "float32")}, (B,))
    assert caught.value.code == 8830


def test_memory_that_nobody_wrote_is_for_nobody_even_where_all_is_public() -> None:
    assert judge("empty.memory_format", {"size": [4]}, (4,)) == [Unread()]
    with pytest.raises(Refusal):
        judge("relu", {"self": Tensor(Unread(), (4,), "float32")}, (4,))


def test_what_is_public_stays_so_whatever_is_done_with_it() -> None:
    assert judge("sum", {"self": x(3, 4)}, ()) == [PUBLIC]
    assert judge("linalg_qr", {"A": x(4, 4)}, (4, 4), (4, 4)) == [PUBLIC, PUBLIC]


@pytest.mark.parametrize(("shape", "outer"), [((2, Times(6), 4), 3), ((Times(4),), 2), ((B, 2, 2), 1), ((3, 2, B), 1)])
def test_a_reshape_that_is_accepted_leaves_each_position_to_its_example(shape: tuple[Size, ...], outer: int) -> None:
    """Against numbers: every element knows its example, and the rule must say where it went."""
    import itertools

    import numpy as np

    count, before = 5, x(*shape, outer=outer)
    kind = before.kind
    assert isinstance(kind, PerExample)
    sizes = [size.count * count if isinstance(size, Times) else size for size in shape]
    owner = np.arange(sizes[kind.axis]) // kind.inner % count
    owners = np.broadcast_to(owner.reshape([-1 if at == kind.axis else 1 for at in range(len(sizes))]), sizes)
    total = owners.size // count
    factors = [n for n in range(1, total + 1) if total % n == 0]
    accepted = 0
    for left, times, right in itertools.product(factors, repeat=3):
        if left * times * right != total:
            continue
        after = (left, Times(times), right)
        moved = owners.reshape(left, times * count, right)
        try:
            said = reshaped(kind, shape, after)
        except Refusal:
            continue
        accepted += 1
        expected = np.arange(times * count) // said.inner % count
        assert (moved == expected[None, :, None]).all()
    assert accepted > 0


def test_no_operator_has_two_rules_and_every_code_is_known() -> None:
    assert len(rules()) > 300
    assert {code for *_, code in REFUSED} <= set(all_codes())
