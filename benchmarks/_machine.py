"""The machine that a benchmark ran on, in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["machine", "processor"]


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
