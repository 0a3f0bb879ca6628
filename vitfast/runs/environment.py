"""What a run ran on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

import vitfast

_PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "omegaconf",
    "safetensors",
    "torchmetrics",
    "tqdm",
    "matplotlib",
    "pillow",
)


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Returns versions, machine, threads, device and kernels, all of them JSON values.

    Args:
        device: where the run computes.
    """
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {"vitfast": vitfast.__version__} | {name: _version(name) for name in _PACKAGES},
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "build_info": vitfast.build_info(),
    }


def cpu_model() -> str:
    """The processor's name as the system tells it, or its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
