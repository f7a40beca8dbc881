"""Exact products modulo 2^32 against torch's own layers in fp32, on the same device, in the same run.

    python benchmarks/ring_kernels.py --quick                  small layers, to see that it runs
    python benchmarks/ring_kernels.py --json F                 layers of real networks; also writes the numbers
    python benchmarks/ring_kernels.py --roles all --only conv  the gradients too, of some layers only

For each layer and each of our kernels: masked words times masked words (ten products of limbs), words times public int8
(four), int8 times int8 (one). An operation is a multiplication or an addition of ring elements, so a layer has as many
as in fp32, whatever the units below do for one. Baselines: the layer in fp32 without TF32, and in int8 by oneDNN or
cuBLAS where torch has it (convolutions on a CPU requantise their result to 8 bits, which ours may not). All kernels'
results are compared bit for bit.

Rounds go through all contenders in turn, so that a machine that drifts drifts for all. Needs torch and numba, and
Triton for its kernels; where cryptography or pydantic is missing, the modules of the kernels are imported alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

from _machine import processor

SOURCE = Path(__file__).resolve().parents[1] / "src"
if importlib.util.find_spec("cloister") is None:
    sys.path.insert(0, str(SOURCE))
if None in (importlib.util.find_spec("cryptography"), importlib.util.find_spec("pydantic")):
    room = ModuleType("cloister.ring")  # its __init__ brings the masks, and they bring cryptography
    room.__path__ = [str(SOURCE / "cloister" / "ring")]
    sys.modules["cloister.ring"] = room

from cloister.errors import CloisterError  # noqa: E402
from cloister.ring._kernels import RingKernels, kernels_for  # noqa: E402
from cloister.ring._operators import Conv2d, MatMul, Operator, Product, Role, Shape  # noqa: E402

Call = Callable[[], Tensor]

KERNELS = {"cpu": ("cpu", "fp64"), "cuda": ("triton", "cuda", "fp64")}
KINDS = {
    "word × word": (torch.int32, torch.int32),
    "word × int8": (torch.int32, torch.int8),
    "int8 × int8": (torch.int8, torch.int8),
}
ROLES: tuple[Role, ...] = ("forward", "input_gradient", "weight_gradient")
THREE = Conv2d(padding=(1, 1))


def layers(size: int) -> dict[str, tuple[Operator, Shape, Shape]]:
    """Layers of VGG-16, MobileNet and ViT-B for ``size`` images, and square matrices."""
    return {
        "VGG conv 64, 224²": (THREE, (size, 64, 224, 224), (64, 64, 3, 3)),
        "VGG conv 256, 56²": (THREE, (size, 256, 56, 56), (256, 256, 3, 3)),
        "VGG conv 512, 14²": (THREE, (4 * size, 512, 14, 14), (512, 512, 3, 3)),
        "conv 1×1 512, 14²": (Conv2d(), (4 * size, 512, 14, 14), (512, 512, 1, 1)),
        "depthwise 512, 14²": (Conv2d(padding=(1, 1), groups=512), (16 * size, 512, 14, 14), (512, 1, 3, 3)),
        "linear 4096²": (MatMul(), (64 * size, 4096), (4096, 4096)),
        "attention QKᵀ": (MatMul(), (size, 12, 197, 64), (size, 12, 197, 64)),
        "attention PV": (MatMul(), (size, 12, 197, 197), (size, 12, 64, 197)),
    }


QUICK: dict[str, tuple[Operator, Shape, Shape]] = {
    "conv 64, 28²": (THREE, (2, 64, 28, 28), (64, 64, 3, 3)),
    "depthwise 128, 28²": (Conv2d(padding=(1, 1), groups=128), (4, 128, 28, 28), (128, 1, 3, 3)),
    "linear 1024²": (MatMul(), (128, 1024), (1024, 1024)),
    "attention QKᵀ": (MatMul(), (1, 12, 197, 64), (1, 12, 197, 64)),
}


def main() -> int:
    options = arguments()
    device = torch.device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True  # the baseline's fastest
    kernels, absent = available(device, options.kernels)
    shapes = QUICK if options.quick else layers(options.images or (64 if device.type == "cuda" else 2))
    rows: list[dict[str, object]] = []
    for name, (operator, x, w) in shapes.items():
        for role in ROLES if options.roles == "all" else ROLES[:1]:
            if options.only in name:
                found = layer(name, Product(operator, role, x=x, w=w), kernels, device, options.rounds)
                print(text(found), flush=True)
                rows += found
    report = {"machine": machine(device), "rounds": options.rounds, "absent": absent, "rows": rows}
    print(f"\n{json.dumps(report['machine'], ensure_ascii=False)}")
    for kernel, why in absent.items():
        print(f"without {kernel}: {why}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return 0 if all(row.get("exact", True) for row in rows) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small layers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=sorted(KERNELS))
    parser.add_argument("--kernels", nargs="*", metavar="NAME", help="only these")
    parser.add_argument("--roles", choices=("forward", "all"), default="forward")
    parser.add_argument("--only", default="", metavar="TEXT", help="only layers with this in their names")
    parser.add_argument(
        "--images", type=int, metavar="N", help="images a layer, in place of 2 on a CPU and 64 on a GPU"
    )
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def available(device: torch.device, wanted: list[str] | None) -> tuple[dict[str, RingKernels], dict[str, str]]:
    """The kernels that run on the device, and why others do not."""
    found: dict[str, RingKernels] = {}
    absent: dict[str, str] = {}
    for name in wanted or KERNELS[device.type]:
        try:
            found[name] = kernels_for(device, prefer=name)
        except CloisterError as error:
            absent[name] = str(error)
    return found, absent


def layer(
    name: str, product: Product, kernels: dict[str, RingKernels], device: torch.device, rounds: int
) -> list[dict[str, object]]:
    """One product by everybody: first the baselines' row, then one for each kernel and kind of operands."""
    generator = torch.Generator().manual_seed(0)

    def drawn(shape: Shape, dtype: torch.dtype) -> Tensor:
        ends = torch.iinfo(dtype)
        return torch.randint(ends.min, ends.max + 1, shape, dtype=dtype, generator=generator).to(device)

    words, small = ([drawn(side, dtype) for side in (product.left, product.right)] for dtype in KINDS["word × int8"])
    operands = {torch.int32: words, torch.int8: small}
    contenders: dict[tuple[str, str], Call] = {("torch", "fp32"): fp32(product, *(side.float() for side in small))}
    eight = int8(product, *small)
    if eight is not None:
        contenders["torch", "int8"] = eight
    exact: dict[tuple[str, str], bool] = {}
    for kind, (left, right) in KINDS.items():
        sides = operands[left][0], operands[right][1]
        expected: Tensor | None = None
        for kernel, multiplier in kernels.items():
            contenders[kernel, kind] = lambda multiplier=multiplier, sides=sides: multiplier.product(product, *sides)
            result = contenders[kernel, kind]()  # warms up, too
            expected = result if expected is None else expected
            exact[kernel, kind] = torch.equal(result, expected)
    seconds = times(contenders, device, rounds)
    baseline = seconds["torch", "fp32"]
    rows: list[dict[str, object]] = []
    for (who, kind), taken in seconds.items():
        row = {
            "layer": name,
            "role": product.role,
            "kernels": who,
            "operands": kind,
            "ms": taken * 1e3,
            "tera_operations_s": 2 * product.multiplications / taken / 1e12,
            "time_of_fp32": taken / baseline,
        }
        rows.append(row | ({"exact": exact[who, kind]} if (who, kind) in exact else {}))
    return rows


def times(contenders: dict[tuple[str, str], Call], device: torch.device, rounds: int) -> dict[tuple[str, str], float]:
    """Median seconds of a call: in every round each contender once more, for about 50 ms."""
    calls: dict[tuple[str, str], int] = {}
    for who, call in contenders.items():
        call()
        calls[who] = max(1, min(1000, round(0.05 / elapsed(call, 1, device))))
    taken: dict[tuple[str, str], list[float]] = {who: [] for who in contenders}
    for _ in range(rounds):
        for who, call in contenders.items():
            taken[who].append(elapsed(call, calls[who], device) / calls[who])
    return {who: statistics.median(found) for who, found in taken.items()}


def elapsed(call: Call, times: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


# ---- baselines -------------------------------------------------------------------------------------------


def fp32(product: Product, left: Tensor, right: Tensor) -> Call:
    """The layer or its gradient as torch computes it."""
    operator = product.operator
    if isinstance(operator, MatMul):
        return {
            "forward": lambda: left @ right.mT,
            "input_gradient": lambda: left @ right,
            "weight_gradient": lambda: right.mT @ left,
        }[product.role]
    geometry = operator.stride, operator.padding, operator.dilation, operator.groups
    return {
        "forward": lambda: functional.conv2d(left, right, None, *geometry),
        "input_gradient": lambda: torch.nn.grad.conv2d_input(product.x, right, left, *geometry),
        "weight_gradient": lambda: torch.nn.grad.conv2d_weight(left, product.w, right, *geometry),
    }[product.role]


def int8(product: Product, left: Tensor, right: Tensor) -> Call | None:
    """The same in int8 where torch has it: matrices of two axes; forward convolutions on a CPU."""
    if product.role != "forward":
        return None
    try:
        call = _int8_matmul(left, right) if isinstance(product.operator, MatMul) else _int8_conv(product, left, right)
        call()
    except (RuntimeError, AttributeError, NotImplementedError):  # torch's builds differ in what they have
        return None
    return call


def _int8_matmul(left: Tensor, right: Tensor) -> Call:
    if left.dim() > 2:
        raise NotImplementedError
    return lambda: torch._int_mm(left, right.t())


def _int8_conv(product: Product, left: Tensor, right: Tensor) -> Call:
    operator = product.operator
    if left.device.type != "cpu" or not isinstance(operator, Conv2d):
        raise NotImplementedError
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # eager quantisation is deprecated; nothing else reaches oneDNN's int8
        torch.backends.quantized.engine = "onednn"
        image = torch.quantize_per_tensor(left.float(), 1.0, 128, torch.quint8)
        image = image.contiguous(memory_format=torch.channels_last)
        filters = torch.quantize_per_tensor(right.float(), 1.0, 0, torch.qint8)
        packed = torch.ops.quantized.conv2d_prepack(
            filters, None, operator.stride, operator.padding, operator.dilation, operator.groups
        )
    return lambda: torch.ops.quantized.conv2d(image, packed, 4096.0, 128)


# ---- what is told ----------------------------------------------------------------------------------------


def machine(device: torch.device) -> dict[str, object]:
    facts: dict[str, object] = {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }
    if device.type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return facts


def text(rows: list[dict[str, object]]) -> str:
    lines: list[str] = []
    for row in rows:
        if row["operands"] == "fp32":
            lines.append(f"\n{row['layer']}, {row['role']}")
            lines.append(f"{'kernels':<10}{'operands':<14}{'ms':>10}{'Tops/s':>10}{'fp32 times':>12}")
        speed = f"{row['ms']:>10.3f}{row['tera_operations_s']:>10.4f}{row['time_of_fp32']:>11.2f}x"
        wrong = "" if row.get("exact", True) else "  OTHER BITS"
        lines.append(f"{row['kernels']:<10}{row['operands']:<14}{speed}{wrong}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
