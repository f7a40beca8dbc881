"""The table of private forms: the same result, and a backward that leaves gradients an example.

Each is a node of autograd, in a module of its family beside this one. Its backward gives the gradient of the data, as
torch's own does, and none of the parameters: those it contributes, an example each
(:mod:`cloister.privacy._contributions`). Its first argument is an anchor, a tensor that wants a gradient, so that there
is a backward even where the data wants none.

A function of torch's that Python code calls, and the operator of ATen that stands for it in a certified graph, have one
form; where their arguments come in another order, the family has an entry for each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from cloister.offload._attention import multi_head_attention_body
from cloister.privacy import _shortcuts
from cloister.privacy._convolution_forms import convolution, convolution_whole
from cloister.privacy._eager_norms import eager_instance_norm
from cloister.privacy._elementwise_forms import alike, attention, elementwise, filled, joined, prelu
from cloister.privacy._embedding_forms import embedding, embedding_table
from cloister.privacy._matrix_forms import addmm, linear, matmul
from cloister.privacy._norm_forms import (
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    native_batch_norm,
    native_layer_norm,
    rectified_group_norm,
    rms_norm,
)

if TYPE_CHECKING:
    from cloister.privacy._watch import Form, Watch

__all__ = ["FORMS", "NAMED"]


def _multi_head(watch: Watch, func: Any, *args: Any, **kwargs: Any) -> Any:
    return watch.again(multi_head_attention_body(), *args, **kwargs)


_ELEMENTWISE = """
    add __add__ __radd__ sub subtract __sub__ __rsub__ rsub mul multiply __mul__ __rmul__ div divide true_divide
    __truediv__ __rtruediv__ __iadd__ __isub__ __imul__ __itruediv__ add_ sub_ mul_ div_ where addcmul addcdiv lerp
    maximum minimum pow __pow__
"""

_ATEN = torch.ops.aten

FORMS: dict[Any, Form] = {
    F.linear: linear,
    torch.conv1d: convolution,
    torch.conv2d: convolution,
    torch.convolution: convolution_whole,
    F.embedding: embedding,
    torch.embedding: embedding_table,
    F.layer_norm: layer_norm,
    F.group_norm: group_norm,
    F.instance_norm: eager_instance_norm,
    torch.instance_norm: instance_norm,
    F.rms_norm: rms_norm,
    F.multi_head_attention_forward: _multi_head,
    F.scaled_dot_product_attention: attention,
    torch.prelu: prelu,
    _shortcuts.rectified_group_norm: rectified_group_norm,
    _ATEN.linear.default: linear,
    _ATEN.conv1d.default: convolution,
    _ATEN.conv1d.padding: convolution,
    _ATEN.conv2d.default: convolution,
    _ATEN.conv2d.padding: convolution,
    _ATEN.convolution.default: convolution_whole,
    _ATEN.embedding.default: embedding_table,
    _ATEN.layer_norm.default: layer_norm,
    _ATEN.native_layer_norm.default: native_layer_norm,
    _ATEN.group_norm.default: group_norm,
    _ATEN.instance_norm.default: instance_norm,
    _ATEN.rms_norm.default: rms_norm,
    _ATEN.batch_norm.default: batch_norm,
    _ATEN._native_batch_norm_legit_no_training.default: native_batch_norm,
    _ATEN.scaled_dot_product_attention.default: attention,
    _ATEN.prelu.default: prelu,
}

NAMED: dict[str, Form] = {
    "matmul": matmul,
    "__matmul__": matmul,
    "mm": matmul,
    "bmm": matmul,
    "addmm": addmm,
    "masked_fill": filled,
    **dict.fromkeys(("cat", "concat", "concatenate"), joined),
    **dict.fromkeys(("expand_as", "view_as", "reshape_as", "type_as"), alike),
    **dict.fromkeys(_ELEMENTWISE.split(), elementwise),
}
"""By name: what has many identities, an operator's overloads among them."""
