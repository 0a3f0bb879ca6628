"""``vitfast.verify``: checks every CUDA kernel against float64 on this GPU, and times it against torch's operators.

The kernels run in a process of their own, which prints one line of JSON per kernel: a kernel that crashes or hangs ends
that process only, and the next one continues with the remaining kernels.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import vitfast
from vitfast.benchmarking.harness import Case, Timer, measure, repeated
from vitfast.benchmarking.operator_cases import OPERATORS, Operator
from vitfast.benchmarking.operator_table import operator_inputs, operator_runner, operator_tables
from vitfast.benchmarking.table import Table
from vitfast.errors import UserError, one_line
from vitfast.ops.gpu import describe_gpu, read_record, record_identity, write_record
from vitfast.ops.library import (
    CUDA_KERNELS,
    VERIFIABLE_KERNELS,
    forget_cuda_states,
    kernel_states,
    library_path,
    missing_kernel,
)
from vitfast.ops.tolerance import BACKWARD_FACTOR, FORWARD_FACTOR, inaccuracy

# A kernel is not slower than torch's operators, in inference or with gradients, if the geometric mean of its speedups
# is at least MIN_MEAN_SPEEDUP, which allows for noise, and none is below MIN_SPEEDUP.
MIN_MEAN_SPEEDUP = 0.98
MIN_SPEEDUP = 0.9
CALLS = 20  # of an operator per replay of its CUDA graph
KERNEL_LIMIT_S = 120.0  # a kernel that takes longer hangs
_TIMING_S = 0.15  # for both implementations of an operator in one shape

# model and batch; a single image has no gradients
_SHAPES = (("vit_base_patch16_224", 64), ("vit_tiny_patch16_224", 128), ("vit_small_patch16_224", 1))
_QUICK_SHAPES = (("vit_small_patch16_224", 64),)
_PRECISIONS = ("bf16", "fp16", "fp32")


def verify(
    *, quick: bool = False, repeat: bool = False, progress: Callable[[str, dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Verifies vitfast's CUDA kernels on the current GPU, and enables those that are correct and not slower.

    Each kernel is compared with float64 under the tolerance rule, then timed against torch's operators by replaying
    CUDA graphs of 20 calls over buffers larger than the L2 cache. The record is written to the user's cache folder
    after each kernel; a later call continues an interrupted one. It contains no paths and no names of users.

    Args:
        quick: fewer shapes, in under 20 seconds; otherwise up to two minutes.
        repeat: verify kernels again that the record contains.
        progress: called with the name and the outcome of each kernel.

    Returns:
        The record: the GPU, the versions, and ``kernels``: name -> ``verdict`` (``"proven"``, ``"proven for
        inference"``: slower with gradients, ``"slower"``, ``"wrong"``, ``"crashed"`` or ``"timed out"``), ``detail``,
        ``quick`` and ``checks``.

    Raises:
        UserError: torch sees no GPU, or vitfast has no CUDA library for it.
    """
    if not torch.cuda.is_available():
        raise UserError("verify needs a GPU, and torch sees none; the CPU kernels need no verification")
    missing, library = missing_kernel(VERIFIABLE_KERNELS[0], "cuda"), library_path("vitfast_cuda")
    if missing is not None or library is None:
        raise UserError(f"there are no CUDA kernels to verify: {missing}; docs/build.md says how they are built")
    index = torch.cuda.current_device()
    target = Target(record_identity(describe_gpu(index), library), [sys.executable, "-m", __name__, str(index)])
    try:
        return verify_target(target, quick=quick, repeat=repeat, progress=progress or (lambda kernel, outcome: None))
    finally:
        forget_cuda_states()


@dataclass(frozen=True)
class Target:
    """A GPU to verify the kernels on."""

    identity: dict[str, Any]  # of its record
    # program that verifies the kernels of its last argument, with "quick" or "full" before it
    program: Sequence[str]
    kernels: Sequence[str] = VERIFIABLE_KERNELS
    limit_s: float = KERNEL_LIMIT_S


def verify_target(
    target: Target, *, quick: bool, repeat: bool, progress: Callable[[str, dict[str, Any]], None]
) -> dict[str, Any]:
    """Verifies the kernels that the record of a GPU lacks, and returns the record; see ``verify``."""
    record = read_record(target.identity)
    known = {} if repeat else record["kernels"]
    left = [kernel for kernel in target.kernels if kernel not in known or (known[kernel].get("quick") and not quick)]
    while left:
        for kernel, outcome in _outcomes(target, left, quick):
            record["kernels"][kernel] = {**outcome, "quick": quick}
            write_record(record)
            progress(kernel, outcome)
            left = left[1:]
    return record


def _outcomes(target: Target, kernels: Sequence[str], quick: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Runs a process over kernels until one fails; yields at least one outcome."""
    command = [*target.program, "quick" if quick else "full", ",".join(kernels)]
    packages = str(Path(next(iter(vitfast.__path__))).parent)
    paths = [packages, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "VITFAST_CUDA_KERNELS": "none"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    reader.start()
    left = list(kernels)
    watchdog = _Watchdog(process, target.limit_s)
    try:
        for line in process.stdout or ():
            if line.startswith('{"kernel": '):  # libraries may print, too
                watchdog.restart()
                outcome = json.loads(line)["outcome"]
                yield left.pop(0), outcome
                if outcome["verdict"] == "crashed":
                    return  # the device is not usable after an error
        code = process.wait()
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
    if code == -signal.SIGINT and not watchdog.has_expired:
        raise KeyboardInterrupt
    if watchdog.has_expired:
        yield left[0], {"verdict": "timed out", "detail": f"no result after {target.limit_s:g} s", "checks": []}
    elif left:
        reader.join(1.0)
        yield left[0], {"verdict": "crashed", "detail": _describe_end(code, errors), "checks": []}


class _Watchdog:
    """Kills a process that has no result for ``limit_s`` seconds."""

    def __init__(self, process: subprocess.Popen[str], limit_s: float) -> None:
        self.has_expired = False
        self._process = process
        self._limit_s = limit_s
        self._start()

    def restart(self) -> None:
        self.cancel()
        self._start()

    def cancel(self) -> None:
        self._timer.cancel()

    def _start(self) -> None:
        self._timer = threading.Timer(self._limit_s, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def _expire(self) -> None:
        self.has_expired = True
        self._process.kill()


def _describe_end(code: int, errors: Sequence[str]) -> str:
    end = f"exit code {code}"
    if code < 0:
        with suppress(ValueError):
            end = signal.Signals(-code).name
    last = next((line for line in reversed(errors) if line.strip()), "")
    return without_paths(f"the process ended with {end}. {last}")


def without_paths(text: str) -> str:
    """Returns a message in one line of at most 300 characters, without the folders of files."""
    return re.sub(r"(?<!\w)(?:[A-Za-z]:)?(?:[/\\][\w.+~@-]+)+[/\\]", "", one_line(ValueError(text)))[:300]


# --- in the process that runs the kernels ---


def verify_kernel(kernel: str, device: torch.device, quick: bool, timer: Timer | None = None) -> dict[str, Any]:
    """Checks and times a kernel in all its shapes; the other kernels of the device are replaced by torch's operators.

    Returns:
        ``verdict``, ``detail`` and ``checks``, as in the record of ``verify``.
    """
    off = {(other, device.type): "torch: verification" for other in CUDA_KERNELS}
    checks: list[dict[str, Any]] = []
    forward: list[float] = []  # speedups
    with_gradients: list[float] = []
    timer = timer or Timer(device)
    with kernel_states(off):
        for table in _tables(kernel, device, quick):
            # in quick mode other precisions are only checked
            timed = not quick or table.precision == "bf16" or "bf16" not in _operator(table).precisions
            try:
                check = _check(table, device, timer if timed else None)
            except torch.OutOfMemoryError:
                continue
            checks.append({"operator": table.labels["operator"], "shape": table.title, **check})
            if check["wrong"]:
                return {"verdict": "wrong", "detail": f"{table.title}: {check['wrong']}", "checks": checks}
            if check["speedup"] is not None:
                (forward if table.labels["direction"] == "forward" else with_gradients).append(check["speedup"])
    return {**_verdict(forward, with_gradients), "checks": checks}


def _verdict(forward: Sequence[float], with_gradients: Sequence[float]) -> dict[str, str]:
    if not forward:
        return {"verdict": "crashed", "detail": "the device does not have enough memory for any shape"}
    detail = f"correct, {_describe_speedups(forward)} the speed of torch's operators"
    if with_gradients:
        detail += f", with gradients {_describe_speedups(with_gradients)}"
    if _is_slower(forward):
        return {"verdict": "slower", "detail": detail}
    return {"verdict": "proven for inference" if _is_slower(with_gradients) else "proven", "detail": detail}


def _is_slower(speedups: Sequence[float]) -> bool:
    return bool(speedups) and (_mean(speedups) < MIN_MEAN_SPEEDUP or min(speedups) < MIN_SPEEDUP)


def _mean(speedups: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, speedups)) / len(speedups))


def _describe_speedups(speedups: Sequence[float]) -> str:
    return f"{_mean(speedups):.2f}x ({min(speedups):.2f} to {max(speedups):.2f})"


def _operator(table: Table) -> Operator:
    return OPERATORS[table.labels["operator"]]


def _tables(kernel: str, device: torch.device, quick: bool) -> Iterator[Table]:
    """The operators of a kernel at all shapes, precisions and directions."""
    known = [name for name, one in OPERATORS.items() if one.kernel == kernel and not one.backward_alone]
    for model, batch in _QUICK_SHAPES if quick else _SHAPES:
        for precision in _PRECISIONS:
            for backward in (False, True) if batch > 1 else (False,):
                yield from operator_tables(model, batch, precision, device, names=known, backward=backward)


def _check(table: Table, device: torch.device, timer: Timer | None) -> dict[str, Any]:
    """Compares a kernel with float64 and with torch's operators; ``timer``: None if it is not timed."""
    operator, direction = _operator(table), table.labels["direction"]
    on = {(operator.kernel, device.type): "vitfast: verification"}
    inputs = operator_inputs(operator.inputs, table, device)
    with torch.no_grad():
        outputs = operator_runner(operator.by_torch, inputs)()
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(output.shape, generator=generator).to(output) for output in outputs]
    del outputs
    called = _CalledOperators()  # type: ignore[no-untyped-call]
    with kernel_states(on), called:
        results = operator_runner(operator.vitfast, inputs, direction, grads)()
    wrong = _compare(operator, inputs, direction, grads, results)
    del results
    speedup = None
    # what torch's operators compute is not timed
    if wrong is None and timer is not None and called.of_vitfast:
        copies = [inputs, *(_copied(inputs) for _ in range(_copies(inputs, device) - 1))]
        own, by_torch = (
            [operator_runner(function, copy, direction, grads) for copy in copies]
            for function in (operator.vitfast, operator.by_torch)
        )
        with kernel_states(on):
            case = Case("vitfast", repeated(own, device, CALLS))
            rival = Case("torch", repeated(by_torch, device, CALLS))
            timings = measure([case, rival], timer, _TIMING_S)
        speedup = float(f"{timings[0].speedup_over(timings[1]).median:.4g}")
    return {"speedup": speedup, "wrong": None if wrong is None else without_paths(wrong)}


class _CalledOperators(TorchDispatchMode):
    """Records whether a raw operator of vitfast is called while the context is active."""

    of_vitfast = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.of_vitfast |= func.namespace == "vitfast"
        return func(*args, **(kwargs or {}))


def _compare(
    operator: Operator, inputs: Sequence[Tensor], direction: str, grads: Sequence[Tensor], results: Sequence[Tensor]
) -> str | None:
    """Returns what is wrong with the results of a kernel, while its state is off; None if nothing is."""
    if operator.is_exact:
        expected = operator_runner(operator.vitfast, [x.cpu() for x in inputs], direction)()
        for result, one in zip(results, expected, strict=True):
            differs = int((result.cpu() != one).sum())
            if differs:
                return f"{differs} of {one.numel()} elements differ from those of the CPU"
        return None
    same = operator_runner(operator.vitfast, inputs, direction, grads)()
    wide = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    exact = operator_runner(operator.vitfast, wide, direction, [grad.double() for grad in grads])()
    is_forward = direction == "forward"
    for index, (result, torch_result, one) in enumerate(zip(results, same, exact, strict=True)):
        name = f"{'result' if is_forward else 'gradient'} {index}"
        factor = FORWARD_FACTOR if is_forward else BACKWARD_FACTOR
        message = inaccuracy(result, torch_result, one, factor=factor, name=name)
        if message is not None:
            return message
    return None


def _copied(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]


def _copies(inputs: Sequence[Tensor], device: torch.device) -> int:
    """How many copies of the inputs exceed the L2 cache twice; at most one per call."""
    cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    return min(CALLS, 1 + -(-2 * cache_bytes // max(1, sum(x.nbytes for x in inputs))))


def main(arguments: Sequence[str]) -> int:
    """Verifies kernels on ``cuda:INDEX`` and prints their outcomes: ``INDEX quick|full KERNEL,…``."""
    index, extent, kernels = arguments
    device = torch.device("cuda", int(index))
    torch.cuda.set_device(device)
    for kernel in kernels.split(","):
        start = time.monotonic()
        try:
            outcome = verify_kernel(kernel, device, extent == "quick")
            torch.cuda.synchronize()
        except Exception as error:
            first = str(error).splitlines()[0] if str(error) else ""
            outcome = {"verdict": "crashed", "detail": without_paths(f"{type(error).__name__}: {first}"), "checks": []}
        outcome["seconds"] = round(time.monotonic() - start, 1)
        print(json.dumps({"kernel": kernel, "outcome": outcome}), flush=True)
        if outcome["verdict"] == "crashed":
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
