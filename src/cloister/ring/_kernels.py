"""The seam to whatever multiplies: exact products of ring words, the same bits from every implementation.

==========  ==============================================================================================
name        multiplies with
==========  ==============================================================================================
``cpu``     int8 dot products (VNNI) by oneDNN, or fp64 where there are none (``_cpu``)
``cuda``    int8 tensor cores by cuBLAS; also on a CPU's tensors (``_cuda``)
``fp64``    fp64, for GPUs that are strong in it; any device (``_cuda``)
``triton``  int8 tensor cores, the ten products of limbs in one kernel (``_triton``)
==========  ==============================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch

from cloister.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from cloister.ring._operators import Product

__all__ = ["RingKernels", "check_operands", "kernels_for"]


class RingKernels(Protocol):
    """Exact products over Z_2^32.

    Every implementation gives bit for bit what arithmetic over the integers, reduced modulo 2^32 at the end, gives:
    none relies on wraparound inside a unit that saturates, nor on a float sum that could round.
    """

    name: str

    def product(self, product: Product, left: Tensor, right: Tensor) -> Tensor:
        """Multiplies two operands.

        Args:
            product: Geometry and role; ``left`` and ``right`` have its ``left`` and ``right`` shapes.
            left: ``int32`` ring words, or ``int8`` integers, read as their signed values. Any strides.
            right: The same, on the same device.

        Returns:
            Contiguous ``int32`` words of shape ``product.result``: the sum of products, modulo 2^32.

        Raises:
            InputError: 2702 when a dtype, a shape or a device is another.
        """
        ...


def check_operands(product: Product, left: Tensor, right: Tensor) -> None:
    """Raises :class:`InputError` 2702 unless both operands are what ``product`` multiplies."""
    for side, shape, tensor in (("left", product.left, left), ("right", product.right, right)):
        if tensor.dtype not in (torch.int32, torch.int8) or tensor.shape != shape:
            raise InputError(
                2702,
                f"the {side} operand does not fit the product",
                expected=f"int32 or int8 of shape {shape}",
                got=f"{tensor.dtype} of shape {tuple(tensor.shape)}",
            )
    if left.device != right.device:
        raise InputError(2702, expected="both operands on one device", got=f"{left.device} and {right.device}")


def kernels_for(device: torch.device, *, prefer: str | None = None) -> RingKernels:
    """The kernels for a device.

    Args:
        device: Where the operands will lie.
        prefer: A name of the table above. By default ``cpu`` on a CPU; on a GPU ``triton`` where it is installed, else
            ``cuda``. All give the same bits, so the choice is one of speed alone.

    Raises:
        InputError: 2791 for a name or a device that there are no kernels for, or kernels that cannot run there; 2790
            when ``triton`` is asked for and not installed; 2792 when the device does not multiply exactly.
    """
    if prefer is not None and prefer not in _NAMED:
        raise InputError(2791, f"there are no kernels called '{prefer}'", expected=", ".join(_NAMED), got=prefer)
    if device.type not in ("cpu", "cuda"):
        raise InputError(2791, expected="a CPU or CUDA device", got=device)
    if prefer is not None:
        return _NAMED[prefer](device)
    if device.type == "cpu":
        return _cpu(device)
    try:
        return _triton(device)
    except InputError as error:
        if error.code != _NO_TRITON:
            raise
        return _cuda(device)


_NO_TRITON = 2790


def _cpu(device: torch.device) -> RingKernels:
    from cloister.ring._cpu import CpuKernels

    if device.type != "cpu":
        raise InputError(2791, "the kernels 'cpu' run on CPUs only", got=device)
    return CpuKernels()


def _cuda(device: torch.device) -> RingKernels:
    from cloister.ring._cuda import CudaKernels

    return CudaKernels(device)


def _fp64(device: torch.device) -> RingKernels:
    from cloister.ring._cuda import Fp64Kernels

    return Fp64Kernels(device)


def _triton(device: torch.device) -> RingKernels:
    try:
        import triton  # noqa: F401  only asks whether it is there: our module would hide which import failed
    except ImportError:
        raise InputError(_NO_TRITON) from None
    from cloister.ring._triton import TritonKernels

    return TritonKernels(device)


_NAMED: dict[str, Callable[[torch.device], RingKernels]] = {
    "cpu": _cpu,
    "cuda": _cuda,
    "fp64": _fp64,
    "triton": _triton,
}
