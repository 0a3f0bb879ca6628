"""The engines that people run Vision Transformers with on a CPU today, each set up as its documentation says."""

from __future__ import annotations

import copy
import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.benchmarking.foreign_model import Unavailable

Run = Callable[[], Tensor]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def prepare_peer(name: str, model: nn.Module, images: Tensor, precision: str) -> Run:
    """Prepares an engine to run a model on a batch.

    Args:
        name: a key of ``PEERS``.
        model: in float32 and evaluation; it is copied, not changed.
        images: ``[B, C, H, W]``, float32.
        precision: ``"fp32"``, ``"bf16"``, ``"int8"`` or ``"fp16_32"``.

    Returns:
        What runs the batch once and returns the logits.

    Raises:
        Unavailable: the engine is not installed, cannot compute in this precision, or does not take the model.
    """
    try:
        run = PEERS[name](model, images, precision)
        run()  # what it does not take is often told only here
    except Unavailable:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise Unavailable(f"failed: {type(error).__name__}: {lines[0] if lines else ''}") from error
    return run


def _eager(model: nn.Module, images: Tensor, precision: str) -> Run:
    return _torch_run(_in_precision(model, precision, "PyTorch's eager mode"), images, precision)


def _compiled(model: nn.Module, images: Tensor, precision: str) -> Run:
    own = _in_precision(model, precision, "torch.compile")
    return _torch_run(torch.compile(own, dynamic=False), images, precision)  # type: ignore[arg-type]


def _zentorch(model: nn.Module, images: Tensor, precision: str) -> Run:
    _import("zentorch")
    own = _in_precision(model, precision, "zentorch without a prepared checkpoint")
    return _torch_run(torch.compile(own, backend="zentorch", dynamic=False), images, precision)  # type: ignore[arg-type]


def _torchao(model: nn.Module, images: Tensor, precision: str) -> Run:
    if precision != "int8":
        raise Unavailable("measured in int8 only: elsewhere it is torch.compile")
    quantization = _import("torchao.quantization", "torchao")
    own = copy.deepcopy(model)
    quantization.quantize_(own, quantization.Int8DynamicActivationInt8WeightConfig())
    return _torch_run(torch.compile(own, dynamic=False), images, "fp32")  # type: ignore[arg-type]


def _onnxruntime(model: nn.Module, images: Tensor, precision: str) -> Run:
    runtime = _import("onnxruntime")
    if precision not in ("fp32", "int8"):
        raise Unavailable(f"its CPU provider has no kernels for {precision}")
    _import("onnx")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(copy.deepcopy(model), (images,), str(path), input_names=["images"], dynamo=False)
        if precision == "int8":
            quantized = path.with_name("int8.onnx")
            _import("onnxruntime.quantization", "onnxruntime").quantize_dynamic(str(path), str(quantized))
            path = quantized
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = {"images": images.numpy()}
    return lambda: torch.from_numpy(session.run(None, given)[0])


def _openvino(model: nn.Module, images: Tensor, precision: str) -> Run:
    openvino = _import("openvino")
    if precision == "fp16_32":
        raise Unavailable("has no products of fp16 operands in fp32 on CPUs")
    converted = openvino.convert_model(copy.deepcopy(model), example_input=images)
    if precision == "int8":
        nncf = _import("nncf")
        data = nncf.Dataset([images.numpy()])
        converted = nncf.quantize(converted, data, model_type=nncf.ModelType.TRANSFORMER)
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(converted, "CPU", settings)
    request, given = compiled.create_infer_request(), images.numpy()
    return lambda: torch.from_numpy(request.infer([given])[0])


# name -> what prepares it
PEERS: dict[str, Callable[[nn.Module, Tensor, str], Run]] = {
    "eager": _eager,
    "compile": _compiled,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "torchao": _torchao,
    "zentorch": _zentorch,
}


def _import(module: str, package: str | None = None) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(f"not installed: pip install {package or module}") from error


def _in_precision(model: nn.Module, precision: str, engine: str) -> nn.Module:
    if precision not in _DTYPES:
        raise Unavailable(f"{engine} has no {precision}")
    return copy.deepcopy(model).to(_DTYPES[precision])


def _torch_run(model: nn.Module, images: Tensor, precision: str) -> Run:
    inputs = images.to(_DTYPES[precision])

    def run() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(inputs)
        return logits

    return run
