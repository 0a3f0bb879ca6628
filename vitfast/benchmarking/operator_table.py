"""Times each of ``OPERATORS`` at the shapes of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitfast.benchmarking.harness import Case
from vitfast.benchmarking.machine import DTYPES
from vitfast.benchmarking.operator_cases import OPERATORS, Calls, Function, Operator, Sizes
from vitfast.benchmarking.table import Table, count_gflop, gigabytes, joined
from vitfast.errors import UserError

# torch's implementations of attention on a GPU, measured in addition to its default
_ATTENTION_BACKENDS = {
    "torch cuDNN": SDPBackend.CUDNN_ATTENTION,
    "torch flash": SDPBackend.FLASH_ATTENTION,
    "torch efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def operator_tables(
    model_name: str,
    batch: int,
    precision: str,
    device: torch.device,
    *,
    names: Collection[str] | None = None,
    backward: bool = False,
    heads: int | None = None,
) -> list[Table]:
    """Returns a table for each operator at the shapes of a model.

    Operators that do not support ``precision`` or, with ``backward``, have no gradient are skipped. ``backward``
    measures forward and backward together and checks the gradients; ``heads`` replaces the model's number of heads.

    Raises:
        UserError: an operator is unknown, or ``heads`` does not divide the channels.
    """
    for name in names or ():
        if name not in OPERATORS:
            raise UserError(f"operator={name} is unknown; allowed: all, {', '.join(OPERATORS)}")
    sizes = Sizes.of_model(model_name, batch, heads)
    return [
        _table(name, operator, model_name, sizes, precision, device, backward)
        for name, operator in OPERATORS.items()
        if (names is None or name in names)
        and precision in operator.precisions
        and (operator.has_backward or not backward)
        and operator.is_available(device, precision)
    ]


def _table(
    name: str, operator: Operator, model: str, sizes: Sizes, precision: str, device: torch.device, backward: bool
) -> Table:
    if operator.patches_only:
        sizes = replace(sizes, tokens=math.isqrt(sizes.tokens) ** 2)

    def build(table: Table) -> list[Case]:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            tensor = torch.randn(shape, generator=generator).to(device, DTYPES[precision])
            return tensor.requires_grad_(backward)

        return _cases(operator, operator.make(sizes, random), table, backward)

    direction = "forward and backward" if backward else operator.direction
    return Table(
        mode="operators",
        title=f"{name} {direction}, B={sizes.batch} N={sizes.tokens} C={sizes.channels} H={sizes.heads}, {precision}",
        labels={"operator": name, "direction": direction, "model": model, **asdict(sizes)},
        precision=precision,
        build=build,
    )


def _cases(operator: Operator, calls: Calls, table: Table, backward: bool) -> list[Case]:
    def runner(function: Function, inputs: Sequence[Tensor] = calls.inputs) -> Callable[[], tuple[Tensor, ...]]:
        def run() -> tuple[Tensor, ...]:
            with torch.inference_mode(not backward):
                outputs = function(*inputs)
            outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
            if not backward:
                return outputs
            return torch.autograd.grad(outputs, inputs, [torch.ones_like(output) for output in outputs])

        return run

    def with_backend(backend: SDPBackend) -> Function:
        def attention(*inputs: Tensor) -> Any:
            with sdpa_kernel(backend):
                return calls.torch(*inputs)

        return attention

    is_cuda = calls.inputs[0].is_cuda
    functions = {"vitfast": calls.vitfast, "torch": calls.torch, **calls.other}
    if operator.is_attention and is_cuda:
        functions |= {name: with_backend(backend) for name, backend in _ATTENTION_BACKENDS.items()}
    cases = []
    for name, function in functions.items():
        run = runner(function)
        if name not in ("vitfast", "torch"):
            try:
                run()
            except RuntimeError as error:  # the type or shape is not supported
                table.left_out[name] = str(error).splitlines()[0]
                continue
        cases.append(Case(name, run, output=lambda run=run: joined(run())))  # type: ignore[misc]
    wide = [tensor.detach().double().requires_grad_(backward) for tensor in calls.inputs]
    table.reference = joined(runner(calls.torch, wide)())
    table.reference_name = "torch in fp64"
    table.gflop = count_gflop(cases[0].run)
    if not backward:
        cases += [Case(name, runner(function), is_limit=True) for name, function in calls.limits.items()]
        if operator.is_memory_bound or is_cuda:  # on a GPU attention is memory-bound, too
            table.gigabyte = gigabytes([*calls.inputs, *runner(calls.vitfast)()])
    return cases
