"""The visible GPUs: compute capability, and the record of ``vitfast.verify`` in the user's cache folder.

A record is a JSON file per GPU model, driver, torch, vitfast and compiled library. It contains no paths and no names of
users, so that it can be sent to others.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import vitfast
from vitfast.files import atomic_file, read_text, sha256_of_file

RECORD_VERSION = 1

_ARCHITECTURE = re.compile(r"(\d+)\.(\d)([af]?)(\+PTX)?")  # an entry of TORCH_CUDA_ARCH_LIST
_DRIVER = Path("/proc/driver/nvidia/version")
_PROPERTIES: dict[tuple[int, str], int] = {}


@dataclass(frozen=True)
class Gpu:
    """A GPU model."""

    name: str
    capability: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability[0]}.{self.capability[1]})"


def describe_gpu(index: int) -> Gpu:
    """Returns the model of ``cuda:index``; initializes CUDA."""
    properties = torch.cuda.get_device_properties(index)
    return Gpu(properties.name, (properties.major, properties.minor))


def visible_gpus() -> list[Gpu]:
    """Returns the different models that torch sees, none without a driver; initializes CUDA."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return list(dict.fromkeys(describe_gpu(index) for index in range(count)))


def unsupported_gpu(gpus: Sequence[Gpu], architectures: Sequence[str]) -> str | None:
    """Returns why a library built for ``architectures`` does not run on all GPUs; None if it does."""
    if not gpus:
        return "torch sees no GPU"
    for gpu in gpus:
        if not any(_runs_on(architecture, gpu.capability) for architecture in architectures):
            return f"built for {', '.join(architectures) or 'no architecture'}, not for the {gpu}"
    return None


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Machine code runs on newer GPUs of its major version, PTX on all newer ones, and ``9.0a`` on 9.0 only."""
    match = _ARCHITECTURE.fullmatch(architecture)
    if match is None:
        return False
    built = (int(match[1]), int(match[2]))
    if match[3] == "a":
        return built == capability
    is_portable = match[4] is not None and match[3] == ""
    return built <= capability and (is_portable or built[0] == capability[0])


def device_property(index: int, name: str) -> int:
    """Returns a number of ``torch.cuda.get_device_properties(index)``; the query is cached."""
    if (index, name) not in _PROPERTIES:
        _PROPERTIES[index, name] = getattr(torch.cuda.get_device_properties(index), name)
    return _PROPERTIES[index, name]


# torch.compile calls it instead of tracing it, as torch.compiler.assume_constant_result, which imports torch._dynamo
device_property._dynamo_marked_constant = True  # type: ignore[attr-defined]


# --- records ---


def record_identity(gpu: Gpu, library: Path) -> dict[str, Any]:
    """Returns what a record is valid for; ``library`` is the compiled CUDA library."""
    return {
        "format_version": RECORD_VERSION,
        "gpu": gpu.name,
        "compute_capability": f"{gpu.capability[0]}.{gpu.capability[1]}",
        "driver": _driver_version(),
        "torch": torch.__version__,
        "vitfast": vitfast.__version__,
        "library": sha256_of_file(library)[:16],
    }


def _driver_version() -> str:
    try:
        found = re.search(r"Kernel Module.*?(\d+\.\d[\d.]*)", read_text(_DRIVER))
    except OSError:
        found = None
    return found[1] if found else "unknown"


def record_path(identity: Mapping[str, Any]) -> Path:
    """Returns the file of a record in the user's cache folder."""
    text = "_".join(str(identity[key]) for key in ("gpu", "driver", "torch", "vitfast", "library"))
    return _cache_folder() / "vitfast" / "verified" / f"{re.sub(r'[^a-z0-9._]+', '-', text.lower())}.json"


def _cache_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def read_record(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the record of ``identity``; an empty one if there is none, or if the file is damaged."""
    empty: dict[str, Any] = {**identity, "kernels": {}}
    try:
        record = json.loads(read_text(record_path(identity)))
        kernels = {name: dict(outcome) for name, outcome in record["kernels"].items()}
        is_valid = all(isinstance(one["verdict"], str) and isinstance(one["detail"], str) for one in kernels.values())
        if not is_valid or any(record[key] != value for key, value in identity.items()):
            return empty
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError):  # RuntimeError: no home folder
        return empty
    return {**identity, "kernels": kernels}


def write_record(record: Mapping[str, Any]) -> None:
    """Writes a record, atomically."""
    path = record_path(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
