"""Calls of raw operators with one argument changed, in a process of their own: ``python -m support.mutated_calls``.

A call may succeed or raise an exception; it may not end the process, and may not take seconds.
"""

from __future__ import annotations

import random
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from support.accelerable import accelerable, sample_images
from support.accuracy import run
from support.operators import OPERATORS
from support.sample import Make
from vitfast.inference.accelerate import accelerate
from vitfast.models import build_model

SECONDS = 20
# between them, these models call every packed operator
MODELS = (
    *("vitfast: convit", "vitfast: t2t", "vitfast: dvt over deit", "timm: Swin V2", "timm: SAM", "timm: DINOv3"),
    *("timm: SwiGLU", "timm: EVA-02, norms inside"),
)
WITHOUT_TENSORS = ("vitfast::cpu_capability", "vitfast::packed_layout")
INTEGERS = (0, 1, -1, 2, 7, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -(2**63))
STRINGS = ("", "fp32", "bf16", "fp16_32", "int8", "gelu", "none", "nothing", "x" * 1000)

Call = tuple[Any, list[Any], dict[str, Any]]


class Recorder(TorchDispatchMode):
    """Keeps the first calls of each of vitfast's raw operators, with copies of small tensors."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.calls: dict[str, list[Call]] = {}
        self.limit = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "vitfast":
            kept = self.calls.setdefault(func.name(), [])
            if len(kept) < self.limit:
                kept.append((func, [_copied(one) for one in args], {key: _copied(one) for key, one in kwargs.items()}))
        return func(*args, **kwargs)


def record(limit: int = 24) -> list[Call]:
    """Returns valid calls of all operators that run on the CPU."""
    with Recorder(limit) as recorder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for operator in OPERATORS:
            for sample in operator.samples(Make(torch.float32)):
                if sample.numel < 4_000:
                    run(operator.public, sample)
        for kind in MODELS:
            if kind.startswith("timm") and find_spec("timm") is None:
                continue
            model = accelerable(kind)
            for precision in ("fp32", "int8"):
                with torch.no_grad():
                    accelerate(model, precision)(sample_images(model, 2))
        with torch.no_grad():
            accelerate(build_model("vit_mini_patch4_32").eval(), merge_tokens=3)(torch.randn(2, 3, 32, 32))
        packed = torch.ops.vitfast.pack_weight(torch.randn(5, 7), "int8")
        torch.ops.vitfast.unpack_weight(packed, 5, 7, "int8")
        torch.ops.vitfast.merge_tokens(torch.randn(2, 9, 4), torch.randn(2, 9, 2, 3), torch.ones(2, 9), 3, 1)
        torch.ops.vitfast.fma_peak("fp32", 100)
        rounding = recorder.calls["vitfast::quantize_float"][0][1][1]
        torch.ops.vitfast.quantize_float_(torch.randn(9), rounding, None)
    return [call for name, calls in recorder.calls.items() if name not in WITHOUT_TENSORS for call in calls]


def mutate(call: Call, draw: random.Random) -> Call:
    """Changes one argument of a call."""
    func, args, kwargs = call
    args, kwargs = [_copied(one) for one in args], dict(kwargs)
    keys: list[Any] = [*range(len(args)), *kwargs]
    if not keys:
        return func, args, kwargs
    key = draw.choice(keys)
    target: Any = args if isinstance(key, int) else kwargs
    target[key] = _changed(target[key], draw)
    return func, args, kwargs


def _changed(value: Any, draw: random.Random) -> Any:
    if isinstance(value, Tensor):
        return draw.choice(TENSOR_CHANGES)(value, draw)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice(INTEGERS)
    if isinstance(value, float):
        return draw.choice((0.0, -1.0, float("nan"), float("inf"), 1e300))
    if isinstance(value, str):
        return draw.choice(STRINGS)
    if isinstance(value, (list, tuple)):
        changed = list(value)
        if changed and draw.random() < 0.7:
            changed[draw.randrange(len(changed))] = draw.choice(INTEGERS)
            return changed
        return draw.choice(([], changed[:-1], [*changed, 1], changed * 50))
    return draw.choice((torch.zeros(3), torch.zeros(0), torch.zeros(2, 3, 4), None))  # an absent tensor


def _freed(x: Tensor, draw: random.Random) -> Tensor:
    x = x.clone()
    x.untyped_storage().resize_(draw.choice((0, x.untyped_storage().nbytes() // 2)))
    return x


def _of_other_size(x: Tensor, draw: random.Random) -> Tensor:
    if x.dim() == 0:
        return x.expand(3)
    dim = draw.randrange(x.dim())
    size = draw.choice((0, 1, max(x.shape[dim] - 1, 0), x.shape[dim] + 1, 2 * x.shape[dim]))
    index = torch.arange(size) % max(x.shape[dim], 1)
    return x.index_select(dim, index) if x.shape[dim] else x


TENSOR_CHANGES: tuple[Callable[[Tensor, random.Random], Any], ...] = (
    _freed,
    _of_other_size,
    lambda x, draw: x.to("meta"),
    lambda x, draw: x.to_sparse() if x.is_floating_point() and x.dim() else x,
    lambda x, draw: x.to(draw.choice((torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.complex64))),
    lambda x, draw: x.transpose(0, -1) if x.dim() > 1 else x.expand(2, *x.shape)[0],
    lambda x, draw: x[..., :1].expand(x.shape) if x.dim() and x.shape[-1] else x,
    lambda x, draw: x[None],
    lambda x, draw: x.flatten(),
    lambda x, draw: (
        torch.full_like(x, draw.choice((2**62, -(2**62), -1, 10**6))) if x.dtype == torch.int64 else x * 1e38
    ),
    lambda x, draw: None,
)


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def main(seed: str, count: int) -> None:
    """Runs ``count`` mutated calls; prints the number of each before, and what it was if it was too slow."""
    torch.set_num_threads(1)
    calls = record()
    limit = 4 << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit + _address_space(), resource.RLIM_INFINITY))
    for number in range(count):
        draw = random.Random(f"{seed}-{number}")
        func, args, kwargs = mutate(draw.choice(calls), draw)
        print(number, func.name(), describe(args, kwargs), flush=True)
        signal.alarm(SECONDS)
        try:
            func(*args, **kwargs)
        except Exception:
            pass
        signal.alarm(0)
    print("end", flush=True)


def describe(args: list[Any], kwargs: dict[str, Any]) -> str:
    """The arguments, tensors by dtype and shape."""
    values = [*args, *(f"{key}={value}" for key, value in kwargs.items() if not isinstance(value, Tensor))]
    return ", ".join(
        f"{one.dtype}{list(one.shape)}" if isinstance(one, Tensor) else str(one)[:60] for one in values
    ).replace("\n", " ")


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
