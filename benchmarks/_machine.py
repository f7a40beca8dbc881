"""The machine that a benchmark ran on, in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["facts", "machine", "processor"]


def machine() -> str:
    """Processor, cores, Python."""
    return f"{processor()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"


def processor() -> str:
    """The processor's name as the kernel gives it, or what Python knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def facts(device: Any) -> dict[str, Any]:
    """Of a run of an offloading benchmark whose workers multiply on a device of torch's."""
    import torch

    on_gpu = device.type == "cuda"
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "device": torch.cuda.get_device_name(device) if on_gpu else "workers on the same cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
