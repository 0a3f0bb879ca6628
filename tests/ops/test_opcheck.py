"""torch.library.opcheck on every raw operator: schema, fake kernel, autograd registration, dynamic compilation.

The calls are recorded from the public functions' own forward and backward passes: no raw signature is repeated here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from support.accuracy import assert_same_bits, run
from support.operators import OPERATORS, Operator
from support.sample import Make, structure
from support.samples import FORMATS
from support.slow import slow
from vitfast import ops
from vitfast.ops.library import has_kernel

COMPILED = has_kernel("attention", "cpu")
if not COMPILED:
    pytest.skip("pure PyTorch: there are no raw operators to check", allow_module_level=True)

# raw operators that are no public function's forward or backward; each has a test below or in test_packed*.py
NOT_RECORDED = {
    "vitfast::cpu_capability",
    "vitfast::matmul_fp16_accumulation",  # on CUDA only: tests/ops/test_cuda_rounded.py
    "vitfast::quantize_fixed_",
    "vitfast::quantize_float_",
    # no public functions: vitfast.accelerate calls them
    "vitfast::fma_peak",
    "vitfast::merge_tokens",
    "vitfast::pack_weight",
    "vitfast::packed_attention",
    "vitfast::packed_blocks",
    "vitfast::packed_block_idle_share",
    "vitfast::packed_layout",
    "vitfast::packed_linear",
    "vitfast::packed_merging_blocks",
    "vitfast::packed_mlp",
    "vitfast::packed_patch_embed",
    "vitfast::packed_related_attention",
    "vitfast::packed_performer",
    "vitfast::packed_split_linear",
    "vitfast::unpack_weight",
}
LARGEST_NUMEL = 40_000
MIN_CALLS = 8
CHECKS = ("test_schema", "test_faketensor", "test_autograd_registration")

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


class _Recorder(TorchDispatchMode):
    """Keeps the calls of vitfast's raw operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "vitfast":
            detach = lambda value: value.detach().clone() if isinstance(value, Tensor) else value  # noqa: E731
            self.calls.append((func, tree_map(detach, args), tree_map(detach, kwargs)))
        return func(*args, **kwargs)


def _record(operator: Operator, dtype: torch.dtype, *, with_grad: bool) -> list[Call]:
    with _Recorder() as recorder:
        for sample in operator.samples(Make(dtype)):
            if sample.numel > LARGEST_NUMEL:
                continue
            if with_grad:
                run(operator.public, sample)
            else:
                operator.public(**sample.arguments)
    return recorder.calls


def _requiring_grad(call: Call) -> Call:
    func, args, kwargs = call
    if "backward" in func.name():  # has no derivative: test_gradcheck.py checks the error
        return call

    def require(value: Any) -> Any:
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        return value.clone().requires_grad_() if is_float else value

    return func, tree_map(require, args), tree_map(require, kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_opcheck(operator: Operator, with_grad: bool, dtype: torch.dtype) -> None:
    calls = _record(operator, dtype, with_grad=with_grad)
    assert len(calls) >= MIN_CALLS, f"{operator} needs {MIN_CALLS} samples of at most {LARGEST_NUMEL} elements"
    structures = set()
    for call in calls:
        func, args, kwargs = _requiring_grad(call) if with_grad else call
        of_call = (func.name(), structure((args, kwargs)))
        is_new = of_call not in structures and with_grad and dtype == torch.float32
        structures.add(of_call)
        # sizes and the type matter to the schema and to the fake kernel only
        torch.library.opcheck(func, args, kwargs, test_utils=CHECKS if is_new else CHECKS[:2])


@pytest.mark.parametrize("structures", ["largest", *slow(["every"])])
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_compiled_gradients(operator: Operator, structures: str) -> None:
    """Compiles each raw operator with the most tensors that it takes; this takes a hundred times as long as a call."""
    calls: dict[object, Call] = {}
    for call in sorted(_record(operator, torch.float32, with_grad=True), key=_count_tensors):
        func, args, kwargs = call
        calls[func.name(), structure((args, kwargs)) if structures == "every" else None] = call
    for call in calls.values():
        func, args, kwargs = _requiring_grad(call)
        torch.library.opcheck(func, args, kwargs, test_utils="test_aot_dispatch_dynamic")


def _count_tensors(call: Call) -> int:
    return sum(isinstance(value, Tensor) for value in tree_leaves(call[1:]))


def test_every_raw_operator_is_recorded() -> None:
    recorded = {
        func.name()
        for operator in OPERATORS
        for with_grad in (False, True)
        for func, _, _ in _record(operator, torch.float32, with_grad=with_grad)
    }
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("vitfast::")}
    assert registered - recorded == NOT_RECORDED


@pytest.mark.parametrize("format", ["fp16", "fp8_e4m3fn", "qtorch(5,10)"])
def test_the_in_place_rounding_equals_the_public_one(format: str) -> None:
    float_format = FORMATS[format]
    x = Make().normal(65, scale=1e4)
    with _Recorder() as recorder:
        expected = ops.quantize_float(x, float_format)
    ((_, args, kwargs),) = recorder.calls
    torch.library.opcheck(torch.ops.vitfast.quantize_float_.default, args, kwargs)
    in_place = x.clone()
    torch.ops.vitfast.quantize_float_(in_place, *args[1:], **kwargs)
    assert_same_bits(in_place, expected)


def test_raw_operators_check_their_arguments() -> None:
    x = torch.randn(2, 3, 4, 8)
    with pytest.raises(RuntimeError, match="k"):
        torch.ops.vitfast.attention_forward(x, x[:1], x, None, 1.0, False)
    with pytest.raises(RuntimeError, match="weight"):
        torch.ops.vitfast.layer_norm_forward(x, torch.ones(7), None, 1e-5)


@pytest.mark.parametrize("operator", ["layer_norm", "pack_weight", "upsample_relations"])
def test_a_tensor_beyond_the_memory_is_one_line(operator: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The error of torch's allocator has pages of C++ frames."""
    one, operators = torch.empty(1), torch.ops.vitfast
    calls: dict[str, Any] = {
        "layer_norm": lambda: operators.layer_norm_forward(one.expand(2**33, 2**10), None, None, 1e-5, None, None),
        "pack_weight": lambda: operators.pack_weight(one.expand(2**30, 2**10), "fp32"),
        "upsample_relations": lambda: operators.upsample_relations(one.expand(1, 4, 5, 5), one.expand(2**20, 5)),
    }
    with pytest.raises(RuntimeError, match="GiB does not fit this machine's memory") as error:
        calls[operator]()
    assert "\n" not in str(error.value)
    assert "frame #" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["quantize_float", "quantize_fixed"])
def test_autograd_notices_an_in_place_rounding(name: str) -> None:
    x, weight = Make().normal(65), Make().normal(65).requires_grad_()
    arguments = {"format": FORMATS["fp16"]} if name == "quantize_float" else {"word_length": 8, "fraction_length": 4}
    with _Recorder() as recorder:
        getattr(ops, name)(x, **arguments)
    ((_, (_, rounding, *_), _),) = recorder.calls
    product = (x * weight).sum()
    getattr(torch.ops.vitfast, f"{name}_")(x, rounding, None)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
