"""ONNX files of source models."""

from __future__ import annotations

import contextlib
import importlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitfast.errors import UserError, import_optional
from vitfast.inference.pt2_file import exported_program
from vitfast.ops.library import torch_operators

OPSET = 20
_import = partial(import_optional, what="an ONNX file", extra="export")


def write_onnx(model: nn.Module, path: Path, images: Tensor, *, int8: bool) -> None:
    """Writes a source model; arguments and errors as in ``vitfast.export``."""
    onnx: Any = _import("onnx")
    _import("onnxscript")
    with torch_operators(), _quiet():
        # given a module instead of a program, torch.onnx.export may write a fixed batch without a word
        program = exported_program(model, images)
        count = len(program.graph_signature.user_outputs)
        names = ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
        converted: Any = torch.onnx.export(
            program,
            (images[:2],),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=names,
            custom_translation_table=custom_translation_table(),
        )
    proto = converted.model_proto
    branches = [node.name for node in proto.graph.node if node.op_type == "If"]
    if branches:
        raise UserError(f"the graph has control flow (If: {branches[0]}), which TensorRT and others do not run")
    onnx.save(proto, str(path))
    if int8:
        _quantize(path, images)


def custom_translation_table() -> dict[Any, Callable[..., Any]]:
    """Returns what ``torch.onnx.export(…, custom_translation_table=…)`` needs to write graphs without ``If`` nodes.

    ``torch.tile``, with which DINOv2 of some libraries repeats its tokens, otherwise becomes an ``If`` node, which
    TensorRT refuses or computes wrongly. ``torch.frexp``, with which small floats are rounded, has no translation, and
    attention of three dimensions, as in timm's SAM, is refused.

    Raises:
        UserError: onnxscript is not installed.
    """
    op: Any = _import("onnxscript").opset18
    onnx: Any = _import("onnx")

    def tile(x: Any, dims: Any) -> Any:
        rank, repeats = len(x.shape), list(dims)
        if len(repeats) > rank:
            x = op.Unsqueeze(x, op.Constant(value_ints=list(range(len(repeats) - rank))))
        repeats = [1] * (rank - len(repeats)) + repeats
        ones = op.Constant(value_ints=[1])
        parts = [
            op.Constant(value_ints=[one]) if isinstance(one, int) else op.Reshape(op.Cast(one, to=7), ones)
            for one in repeats
        ]
        return op.Tile(x, op.Concat(*parts, axis=0))

    def constant(value: Any, like: Any) -> Any:
        return op.CastLike(op.Constant(value=onnx.numpy_helper.from_array(np.array(value, np.float64))), like)

    def frexp(x: Any) -> Any:
        one, two = constant(1.0, x), constant(2.0, x)
        powers = constant(2.0 ** np.arange(-149, 129), x)  # of float32
        magnitude = op.Where(op.Greater(op.Abs(x), constant(0.0, x)), op.Abs(x), one)  # zero and NaN as one
        exponent = op.Floor(op.Div(op.Log(magnitude), op.Log(two)))
        index = op.Cast(op.Min(op.Max(exponent, constant(-149, x)), constant(126, x)), to=7)
        index = op.Add(index, op.Constant(value_int=149))
        # the logarithm is rounded: beside a power of two the exponent may be off by one
        is_above = op.GreaterOrEqual(magnitude, op.Gather(powers, op.Add(index, op.Constant(value_int=1))))
        is_below = op.Less(magnitude, op.Gather(powers, index))
        index = op.Sub(op.Add(index, op.Cast(is_above, to=7)), op.Cast(is_below, to=7))
        mantissa = op.Div(op.Div(x, op.Gather(powers, index)), two)
        return mantissa, op.Cast(op.Sub(index, op.Constant(value_int=148)), to=6)

    attention = importlib.import_module("onnxscript.function_libs.torch_lib.ops.nn").aten_scaled_dot_product_attention

    def attention_of_any_rank(q: Any, k: Any, v: Any, attn_mask: Any = None, *arguments: Any, **options: Any) -> Any:
        if len(q.shape) == 4 or arguments or options.keys() - {"scale"}:
            return attention(q, k, v, attn_mask, *arguments, **options)
        scale = options.get("scale") or q.shape[-1] ** -0.5
        scores = op.MatMul(op.Mul(q, constant(scale, q)), op.Transpose(k, perm=[0, 2, 1]))
        return op.MatMul(op.Softmax(scores if attn_mask is None else op.Add(scores, attn_mask), axis=-1), v)

    return {
        torch.ops.aten.tile.default: tile,
        torch.ops.prims.frexp.default: frexp,
        torch.ops.aten.scaled_dot_product_attention.default: attention_of_any_rank,
    }


def onnx_engines(path: Path) -> dict[str, Callable[[Tensor], Any]]:
    """Returns what runs an ONNX file, by name: ONNX Runtime, and OpenVINO if it is installed."""
    runtime = _import("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Any:
        return [torch.from_numpy(one) for one in session.run(None, {name: images.numpy()})]

    engines: dict[str, Callable[[Tensor], Any]] = {"ONNX Runtime": run}
    try:
        openvino: Any = importlib.import_module("openvino")
    except ImportError:
        return engines
    # by default OpenVINO computes in bf16 where the CPU has it
    compiled = openvino.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run_openvino(images: Tensor) -> Any:
        return [torch.from_numpy(np.array(one)) for one in compiled(images.numpy()).values()]

    return {**engines, "OpenVINO": run_openvino}


def _quantize(path: Path, images: Tensor) -> None:
    """Quantizes the linear layers of a file in place: weights by channel, activations by their ranges on images."""
    quantization: Any = _import("onnxruntime.quantization")
    preprocess: Any = importlib.import_module("onnxruntime.quantization.shape_inference").quant_pre_process
    options = {
        "quant_format": quantization.QuantFormat.QDQ,
        "per_channel": True,
        "activation_type": quantization.QuantType.QUInt8,
        "weight_type": quantization.QuantType.QInt8,
        # 7-bit weights: CPUs without VNNI add pairs of products in saturating 16 bits
        "reduce_range": True,
        "op_types_to_quantize": ["MatMul", "Gemm", "Conv"],
        # products of two activations, as in attention, stay in float32
        "extra_options": {"MatMulConstBOnly": True},
    }
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        preprocess(str(path), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(str(prepared), str(path), calibration_reader(images), **options)


def calibration_reader(images: Tensor, batch_size: int = 8) -> Any:
    """A reader of calibration images for ONNX Runtime's static quantization, one batch after the other."""
    base: Any = _import("onnxruntime.quantization").CalibrationDataReader

    class _Reader(base):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(images.split(batch_size))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    return _Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses what the exporters log about each step."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
