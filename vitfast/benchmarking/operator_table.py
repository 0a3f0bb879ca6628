"""Times each of ``OPERATORS`` at the shapes of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitfast.benchmarking.harness import Case
from vitfast.benchmarking.machine import DTYPES
from vitfast.benchmarking.operator_cases import OPERATORS, Function, Operator
from vitfast.benchmarking.table import Table, count_gflop, gigabytes, joined
from vitfast.errors import UserError
from vitfast.layers import GridUpsample
from vitfast.models.registry import resolve_name
from vitfast.models.vit import VIT_ARCHITECTURES

# torch's implementations of attention on a GPU, measured in addition to its default
_ATTENTION_BACKENDS = {
    "torch cuDNN": SDPBackend.CUDNN_ATTENTION,
    "torch flash": SDPBackend.FLASH_ATTENTION,
    "torch efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def operator_sizes(name: str, batch: int, heads: int | None = None, *, patches_only: bool = False) -> dict[str, int]:
    """Returns the sizes that a ViT or DeiT gives its operators; ``heads`` replaces its number of heads."""
    fields = VIT_ARCHITECTURES.get(resolve_name(name))
    if fields is None:
        raise UserError(f"model={name} is not a plain ViT or DeiT, whose sizes the operators are measured at")
    heads = fields.num_heads if heads is None else heads
    if fields.embed_dim % heads:
        raise UserError(f"heads={heads} does not divide the {fields.embed_dim} channels of model={name}")
    tokens = fields.grid_size**2 + (0 if patches_only else fields.num_prefix_positions)
    return {"batch": batch, "tokens": tokens, "channels": fields.embed_dim, "heads": heads, "hidden": fields.mlp_dim}


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
    """
    for name in names or ():
        if name not in OPERATORS:
            raise UserError(f"operator={name} is unknown; allowed: all, {', '.join(OPERATORS)}")
    tables = []
    for name, operator in OPERATORS.items():
        is_chosen = (names is None or name in names) and (operator.has_backward or not backward)
        if not is_chosen or precision not in operator.precisions or not operator.is_available(device):
            continue
        sizes = operator_sizes(model_name, batch, heads, patches_only=operator.patches_only)
        direction = "forward and backward" if backward else "alone" if operator.backward_alone else "forward"
        shape = f"B={batch} N={sizes['tokens']} C={sizes['channels']} H={sizes['heads']}"
        labels = {"operator": name, "direction": direction, "model": model_name, **sizes}
        build = partial(_cases, operator, device)
        tables.append(Table("operators", f"{name} {direction}, {shape}, {precision}", labels, precision, build))
    return tables


def operator_inputs(shapes: str, table: Table, device: torch.device) -> list[Tensor]:
    """Returns the same random tensors in every run; ``shapes`` are those of ``Operator.inputs``."""
    generator = torch.Generator().manual_seed(0)
    labels = table.labels
    grid = math.isqrt(labels["tokens"] - 1)
    upsample = GridUpsample(max(grid * 5 // 7, 1), grid).matrix
    lengths = {"B": labels["batch"], "N": labels["tokens"], "n": upsample.shape[1], "C": labels["channels"]}
    lengths |= {"H": labels["heads"], "D": labels["channels"] // labels["heads"], "F": labels["hidden"], "3": 3}
    inputs = []
    for letters in shapes.split():
        if letters == "P":
            inputs.append(upsample.to(device))
            continue
        x = torch.randn([lengths[letter] for letter in letters], generator=generator)
        if x.ndim == 2:  # a weight, which preserves the scale of its input
            x *= x.shape[1] ** -0.5
        inputs.append(x.to(device, DTYPES[table.precision]).requires_grad_(labels["direction"] != "forward"))
    return inputs


def _cases(operator: Operator, device: torch.device, table: Table) -> list[Case]:
    is_cuda, direction = device.type == "cuda", table.labels["direction"]
    inputs = operator_inputs(operator.inputs, table, device)
    required = {"vitfast": operator.vitfast, "torch": operator.by_torch}
    runs = {name: operator_runner(function, inputs, direction) for name, function in required.items()}
    others = dict(operator.others)
    if operator.is_attention and is_cuda:
        backends = _ATTENTION_BACKENDS.items()
        others |= {name: partial(_with_backend, backend, operator.by_torch) for name, backend in backends}
    for name, function in others.items():
        run = operator_runner(function, inputs, direction)
        try:
            run()
        except RuntimeError as error:  # the type or shape is not supported
            table.left_out[name] = str(error).splitlines()[0]
        else:
            runs[name] = run
    cases = [Case(name, run, output=lambda run=run: joined(run())) for name, run in runs.items()]  # type: ignore[misc]
    wide = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    table.reference, table.reference_name = (
        joined(operator_runner(operator.by_torch, wide, direction)()),
        "torch in fp64",
    )
    table.gflop = count_gflop(runs["vitfast"])
    if direction != "forward and backward":
        cases += [Case(name, operator_runner(limit, inputs), is_limit=True) for name, limit in operator.limits.items()]
        if operator.is_memory_bound or is_cuda:  # on a GPU attention is memory-bound, too
            table.gigabyte = gigabytes([*inputs, *runs["vitfast"]()])
    return cases


def operator_runner(
    function: Function, inputs: Sequence[Tensor], direction: str = "forward", grads: Sequence[Tensor] | None = None
) -> Callable[[], tuple[Tensor, ...]]:
    """Returns a function that runs an operator, or its backward pass: ``"alone"`` or after the forward pass.

    ``grads`` are the gradients of the outputs; None: ones.
    """

    def gradients(outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        return [torch.ones_like(output) for output in outputs] if grads is None else grads

    sources = [x for x in inputs if x.requires_grad]

    def forward() -> tuple[Tensor, ...]:
        with torch.inference_mode(direction == "forward"):
            outputs = function(*inputs)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    def forward_and_backward() -> tuple[Tensor, ...]:
        outputs = forward()
        return torch.autograd.grad(outputs, sources, gradients(outputs))

    if direction == "alone":
        outputs = forward()
        given = gradients(outputs)
        return lambda: torch.autograd.grad(outputs, sources, given, retain_graph=True)
    return forward if direction == "forward" else forward_and_backward


def _with_backend(backend: SDPBackend, attention: Function, *inputs: Tensor) -> Any:
    with sdpa_kernel(backend):
        return attention(*inputs)
