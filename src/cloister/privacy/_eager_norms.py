"""Private forms of norms as Python code calls them, whose arguments come in another order than their operator's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloister.privacy._norm_forms import instance_norm

if TYPE_CHECKING:
    from torch import Tensor

    from cloister.privacy._watch import Watch

__all__ = ["eager_instance_norm"]


def eager_instance_norm(
    watch: Watch,
    func: Any,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Each channel of ``(B, C, …)`` of an example is normalised by itself; without statistics of other batches."""
    return instance_norm(watch, func, input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps)
