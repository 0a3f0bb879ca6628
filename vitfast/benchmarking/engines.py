"""Inference engines beside `accelerate` on the CPU, each in the configurations that its documentation recommends."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.benchmarking.machine import DTYPES, instruction_sets
from vitfast.benchmarking.peers import Unavailable, compiled, import_peer
from vitfast.inference.onnx_export import calibration_reader

Run = Callable[[], Tensor]
# Takes a model in float32 and evaluation mode, which it may change, a batch [B, C, H, W] in float32, a precision (fp32,
# bf16, int8 or fp16_32) and a folder for files that configurations of an engine share. Returns a function that runs the
# batch once on the CPU and returns the logits. Settings of the whole process may change, since it has its own.
Engine = Callable[[nn.Module, Tensor, str, Path], Run]


@dataclass(frozen=True)
class Configuration:
    """One way to run an engine."""

    engine: Engine
    precisions: tuple[str, ...]
    package: str = "torch"

    def check(self, precision: str) -> None:
        """Raises Unavailable if the package is not installed or the engine has no such precision."""
        if precision not in self.precisions:
            raise Unavailable(f"runs no {precision}")
        if find_spec(self.package) is None:
            import_peer(self.package)  # raises


_FLOATS = ("fp32", "bf16")
# requests that OpenVINO runs at a time under its throughput hint
_STREAMS = 2
_MIN_THROUGHPUT_BATCH = 8


def _torch(
    model: nn.Module,
    images: Tensor,
    precision: str,
    folder: Path,
    convert: Callable[[nn.Module], nn.Module] = lambda model: model,
    freezing: bool = False,
) -> Run:
    inductor: Any = importlib.import_module("torch._inductor.config")
    inductor.freezing = freezing  # weights become constants, which oneDNN's and MKL's kernels read packed
    return accelerated(convert(model.to(DTYPES[precision])), images.to(DTYPES[precision]), precision, folder)


def accelerated(model: nn.Module, images: Tensor, precision: str, folder: Path) -> Run:
    """Runs a model as it is: what ``accelerate`` returned."""

    def run() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(images)
        return logits

    return run


def _zentorch(model: nn.Module, images: Tensor, precision: str, folder: Path, freezing: bool) -> Run:
    importlib.import_module("zentorch")
    if "avx512f" not in instruction_sets():
        raise Unavailable("optimizes only on CPUs with AVX-512")
    return _torch(model, images, precision, folder, partial(compiled, backend="zentorch"), freezing)


def _torchao_dynamic(model: nn.Module, images: Tensor, precision: str, folder: Path) -> Run:
    quantization: Any = importlib.import_module("torchao.quantization")
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    return _torch(model, images, "fp32", folder, compiled, freezing=True)


def _torchao_exported(model: nn.Module, images: Tensor, precision: str, folder: Path, is_dynamic: bool) -> Run:
    """Quantizes the exported graph, with scales from these images if they are static."""
    pt2e: Any = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    x86: Any = importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    quantizer = x86.X86InductorQuantizer().set_global(
        x86.get_default_x86_inductor_quantization_config(is_dynamic=is_dynamic, reduce_range=not _has_vnni())
    )
    with torch.no_grad():
        prepared = pt2e.prepare_pt2e(torch.export.export(model, (images,)).module(), quantizer)
        prepared(images)
        converted = pt2e.convert_pt2e(prepared)
    return _torch(converted, images, "fp32", folder, compiled, freezing=True)


def _onnxruntime(
    model: nn.Module, images: Tensor, precision: str, folder: Path, fused: bool, static: bool | None = None
) -> Run:
    """``fused``: with the transformer optimizer; ``static``: whether scales of int8 activations are."""
    runtime: Any = importlib.import_module("onnxruntime")
    path = _onnx_model(model, images, folder, fused)
    if static is not None:
        path = _onnx_int8(path, images, static)
    options = runtime.SessionOptions()  # graph optimization: all, by default
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {"images": images.numpy()}
    return lambda: torch.from_numpy(session.run(None, inputs)[0])


def _onnx_model(model: nn.Module, images: Tensor, folder: Path, fused: bool) -> Path:
    path = folder / "model.onnx"
    if not path.exists():
        import_peer("onnx")
        torch.onnx.export(model, (images,), str(path), input_names=["images"], dynamo=False)
    if not fused:
        return path
    if not (fused_path := path.with_name("fused.onnx")).exists():
        optimizer: Any = importlib.import_module("onnxruntime.transformers.optimizer")
        optimizer.optimize_model(str(path), model_type="vit").save_model_to_file(str(fused_path))
    return fused_path


def _onnx_int8(path: Path, images: Tensor, static: bool) -> Path:
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    target = path.with_name(f"{path.stem}_{'static' if static else 'dynamic'}.onnx")
    # 7-bit weights where int8 products saturate, as the documentation recommends
    options = {"per_channel": True, "reduce_range": not _has_vnni()}
    if not static:
        kinds = ["MatMul", "Gemm", "Attention"]
        # the type of weights that shape inference does not find behind fused operators
        extra = {"DefaultTensorType": import_peer("onnx").TensorProto.FLOAT}
        quantization.quantize_dynamic(
            str(path), str(target), op_types_to_quantize=kinds, extra_options=extra, **options
        )
        return target
    quantization.quantize_static(
        str(path),
        str(target),
        calibration_reader(images, len(images)),  # the file has a fixed batch
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm"],
        **options,
    )
    return target


def _openvino(model: nn.Module, images: Tensor, precision: str, folder: Path, hint: str, *, is_mixed: bool) -> Run:
    """Under the throughput hint the batch is divided among requests that run at the same time.

    ``is_mixed``: bf16 beside int8 layers where the CPU has it, which is OpenVINO's default; else float32.
    """
    openvino: Any = importlib.import_module("openvino")
    streams = _STREAMS if hint == "THROUGHPUT" else 1
    if streams > 1 and (len(images) < _MIN_THROUGHPUT_BATCH or torch.get_num_threads() < streams):
        raise Unavailable(f"needs {_MIN_THROUGHPUT_BATCH} images and {streams} threads")
    core = openvino.Core()
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and not has_bf16:
        raise Unavailable("would run in fp32: this CPU has no instructions for bf16")
    if not is_mixed and not has_bf16:
        raise Unavailable("is the other configuration: this CPU has no instructions for bf16")
    converted = _openvino_model(openvino, core, model, images, precision, folder)
    batches = [part.numpy() for part in images.chunk(streams)]
    converted.reshape([len(batches[0]), *images.shape[1:]])
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if has_bf16 and is_mixed and precision != "fp32" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": hint,
        **({"NUM_STREAMS": streams} if streams > 1 else {}),
    }
    network = core.compile_model(converted, "CPU", settings)
    requests = [network.create_infer_request() for _ in batches]

    def run() -> Tensor:
        for request, batch in zip(requests, batches, strict=True):
            request.start_async([batch])
        for request in requests:
            request.wait()
        return torch.cat([torch.from_numpy(request.get_output_tensor().data) for request in requests])

    return run


def _openvino_model(openvino: Any, core: Any, model: nn.Module, images: Tensor, precision: str, folder: Path) -> Any:
    path = folder / f"openvino-{precision}.xml"
    if not path.exists():
        converted = openvino.convert_model(model, example_input=images)
        if precision == "int8":
            nncf = import_peer("nncf")
            converted = nncf.quantize(converted, nncf.Dataset([images.numpy()]), model_type=nncf.ModelType.TRANSFORMER)
        openvino.save_model(converted, str(path), compress_to_fp16=False)
    return core.read_model(str(path))


def _onnxruntime_configurations() -> dict[str, Configuration]:
    make = partial(Configuration, package="onnxruntime")
    return {
        "plain": make(partial(_onnxruntime, fused=False), ("fp32",)),
        "transformer optimizer": make(partial(_onnxruntime, fused=True), ("fp32",)),
        "dynamic": make(partial(_onnxruntime, fused=False, static=False), ("int8",)),
        "dynamic, transformer optimizer": make(partial(_onnxruntime, fused=True, static=False), ("int8",)),
        "static": make(partial(_onnxruntime, fused=False, static=True), ("int8",)),
    }


# name of an engine -> its configurations; an engine without a choice has one, without a name
ENGINES: dict[str, dict[str, Configuration]] = {
    "eager": {"": Configuration(_torch, _FLOATS)},
    "compile": {
        "default": Configuration(partial(_torch, convert=compiled), _FLOATS),
        "freezing": Configuration(partial(_torch, convert=compiled, freezing=True), _FLOATS),
        "max-autotune": Configuration(
            partial(_torch, convert=partial(compiled, mode="max-autotune"), freezing=True), _FLOATS
        ),
    },
    "onnxruntime": _onnxruntime_configurations(),
    "openvino": {
        f"{hint.lower()}{suffix}": Configuration(
            partial(_openvino, hint=hint, is_mixed=not suffix), precisions, "openvino"
        )
        for suffix, precisions in (("", (*_FLOATS, "int8")), (", fp32", ("int8",)))
        for hint in ("LATENCY", "THROUGHPUT")
    },
    "torchao": {
        "dynamic": Configuration(_torchao_dynamic, ("int8",), "torchao"),
        "exported, dynamic": Configuration(partial(_torchao_exported, is_dynamic=True), ("int8",), "torchao"),
        "exported, static": Configuration(partial(_torchao_exported, is_dynamic=False), ("int8",), "torchao"),
    },
    "zentorch": {
        "default": Configuration(partial(_zentorch, freezing=False), _FLOATS, "zentorch"),
        "freezing": Configuration(partial(_zentorch, freezing=True), _FLOATS, "zentorch"),
    },
}


def _has_vnni() -> bool:
    return bool({"avx512_vnni", "avx_vnni"} & set(instruction_sets()))
