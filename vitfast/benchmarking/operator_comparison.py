"""Single operators at the shapes that a model gives them: vitfast against torch's own."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from vitfast.benchmarking.agreement import joined
from vitfast.benchmarking.comparison import Comparison, Contest
from vitfast.benchmarking.model_comparison import DTYPES
from vitfast.benchmarking.operator_cases import MLP_BACKWARD, OPERATORS, OperatorCase, Sizes, has_case, sizes_of_case
from vitfast.benchmarking.subject import Subject
from vitfast.benchmarking.work import count_gflop, gigabytes
from vitfast.errors import UserError

WEIGHT = 1.0


@dataclass(frozen=True)
class _Runner:
    """An operator with its inputs, forward or forward and backward."""

    function: Callable[..., tuple[Tensor, ...]]
    inputs: tuple[Tensor, ...]
    backward: bool

    def __call__(self) -> tuple[Tensor, ...]:
        if not self.backward:
            with torch.inference_mode():
                return self.function(*self.inputs)
        outputs = self.function(*self.inputs)
        return torch.autograd.grad(outputs, self.inputs, [torch.ones_like(output) for output in outputs])

    def output(self) -> Tensor:
        return joined(self())


def operator_comparisons(
    model_name: str,
    batch: int,
    precision: str,
    device: torch.device,
    *,
    names: Collection[str] | None = None,
    backward: bool = False,
    heads: int | None = None,
) -> list[Comparison]:
    """One question for each operator: how fast is it at the shapes of a model.

    Args:
        model_name: one of ``vitfast.list_models()``.
        batch: images in a run.
        precision: type of the inputs, a key of ``DTYPES``.
        device: where it runs.
        names: keys of ``OPERATORS``; None: all of them.
        backward: measure forward and backward together; the check is then on the gradients.
        heads: that share the model's channels; None: as many as the model has.

    Returns:
        Only the operators that have the precision and, if asked for, a gradient to compare.

    Raises:
        UserError: an operator is unknown, or the heads do not share the channels evenly.
    """
    for name in names or ():
        if name not in OPERATORS:
            raise UserError(f"operator={name} is unknown; allowed: all, {', '.join(OPERATORS)}")
    sizes = Sizes.of_model(model_name, batch, heads)
    return [
        _comparison(name, make, model_name, sizes_of_case(name, sizes), precision, device, backward)
        for name, make in OPERATORS.items()
        if (names is None or name in names) and has_case(name, precision, device, backward=backward)
    ]


def _comparison(
    name: str,
    make: Callable[[Sizes, Callable[..., Tensor]], OperatorCase],
    model_name: str,
    sizes: Sizes,
    precision: str,
    device: torch.device,
    backward: bool,
) -> Comparison:
    def build() -> Contest:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            tensor = torch.randn(shape, generator=generator).to(device, DTYPES[precision])
            return tensor.requires_grad_(backward)

        return _contest(make(sizes, random), backward)

    direction = "alone" if name == MLP_BACKWARD else "forward and backward" if backward else "forward"
    return Comparison(
        mode="operators",
        title=f"{name} {direction}, {sizes.describe()}, {precision}",
        labels={"operator": name, "direction": direction, "model": model_name, "batch": sizes.batch, **sizes.labels()},
        precision=precision,
        weight=WEIGHT,
        build=build,
    )


def _contest(case: OperatorCase, backward: bool) -> Contest:
    runners = {name: _Runner(function, case.inputs, backward) for name, function in case.rivals.items()}
    # one of several implementations in torch may not know the type or the shape
    others = {name: runner for name, runner in runners.items() if name not in ("vitfast", "torch")}
    left_out = {name: why for name, runner in others.items() if (why := _obstacle(runner))}
    runners = {name: runner for name, runner in runners.items() if name not in left_out}
    subjects = [Subject(name, run=runner, output=runner.output) for name, runner in runners.items()]
    if not backward:
        subjects += [
            Subject(name, run=_Runner(function, case.inputs, backward=False), is_limit=True)
            for name, function in case.limits.items()
        ]
    wide = tuple(tensor.detach().double().requires_grad_(backward) for tensor in case.inputs)
    # on a GPU attention is bound by memory, too
    has_traffic = not backward and (case.is_memory_bound or case.inputs[0].device.type == "cuda")
    return Contest(
        subjects=subjects,
        reference=_Runner(case.rivals["torch"], wide, backward).output,
        reference_name="torch in fp64",
        left_out=left_out,
        gflop=count_gflop(runners["vitfast"]),
        gigabyte=gigabytes([*case.inputs, *runners["vitfast"]()]) if has_traffic else None,
    )


def _obstacle(runner: _Runner) -> str:
    """Says why a function cannot take part, or nothing."""
    try:
        runner()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""
