"""A second look, below torch's Python functions: arithmetic that no caught function accounts for.

A C++ extension or a scripted function multiplies without asking a function mode. What reaches torch's kernels on its
behalf is seen here, and recorded by module, kernel and source line; so is every operator of a library of somebody's
own, because nobody sees into it. Looking costs some microseconds a kernel, so a converted model is watched on the first
forward of each kind (:func:`kind_of`), not on all.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cloister.offload._passes import Pass

__all__ = ["KERNELS", "Watch", "kind_of"]

_NAMES = """
    _addmm_activation _cdist_forward _conv_depthwise2d _convolution _grouped_mm _int_mm _native_multi_head_attention
    _scaled_dot_product_attention_math _scaled_dot_product_efficient_attention _scaled_dot_product_flash_attention
    _scaled_dot_product_flash_attention_for_cpu _scaled_grouped_mm _scaled_mm _slow_conv2d_forward _sparse_mm
    _thnn_fused_gru_cell _thnn_fused_lstm_cell _transformer_encoder_layer_fwd _trilinear _weight_int4pack_mm
    _weight_int8pack_mm addbmm addmm addmv addr baddbmm bmm conv_tbc convolution convolution_overrideable dot hspmm
    linear mkldnn_convolution mkldnn_linear mkldnn_rnn_layer mm mv slow_conv3d_forward slow_conv_dilated2d
    slow_conv_dilated3d slow_conv_transpose2d slow_conv_transpose3d sspaddmm thnn_conv2d vdot
"""

KERNELS = frozenset(_NAMES.split())
"""Kernels that multiply and sum, by name, of whatever library."""

_OWN = ("aten", "prim", "prims")
"""Libraries whose kernels are known one by one. Another's are opaque: any of them may multiply."""


class Watch(TorchDispatchMode):
    """Sees every kernel that runs in a pass.

    Args:
        pass_: Is told of those in :data:`KERNELS`, and of those that are not torch's.
    """

    supports_higher_order_operators = True

    def __init__(self, pass_: Pass) -> None:
        super().__init__()
        self._pass = pass_

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():  # a kernel that is called from here is nobody's function call
            result = func(*args, **kwargs)
        packet = getattr(func, "_overloadpacket", None)
        name = getattr(packet, "__name__", "").removesuffix("_")
        if (name in KERNELS or getattr(func, "namespace", None) not in _OWN) and self._pass.innermost:
            formula: Callable[..., int] | None = flop_registry.get(packet)
            flops = None if formula is None else formula(*args, **kwargs, out_val=result)
            self._pass.saw(str(packet or func), None if flops is None else flops // 2, sys._getframe(1))
        return result


def kind_of(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """What may decide which way a forward goes, sizes and values left out: so there are few kinds, not one a batch."""
    return (
        type(module),
        module.training,
        torch.is_grad_enabled(),
        tuple(_form(value) for value in args),
        tuple((name, _form(value)) for name, value in sorted(kwargs.items())),
    )


def _form(value: object) -> object:
    if isinstance(value, Tensor):
        return (value.dtype, value.dim())
    return value if isinstance(value, bool) else type(value)
