"""Other libraries and engines that run the same model with the same weights, each as its documentation says."""

from __future__ import annotations

import copy
import functools
import importlib
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.models import ImageModel, ViTFields
from vitfast.weights.key_tables.key_table import map_keys
from vitfast.weights.key_tables.torchvision import TORCHVISION

Run = Callable[[], Tensor]


class Unavailable(Exception):
    """A library or engine is not installed or does not support the model or precision; the message says which."""


def torchvision_model(model: ImageModel) -> nn.Module:
    """Builds torchvision's Vision Transformer with the architecture and a copy of the weights of ``model``."""
    from torchvision.models.vision_transformer import VisionTransformer as TorchvisionModel

    fields = _plain_fields(model, "torchvision", distillation_token=("none",), qkv_bias=(True,))
    other = TorchvisionModel(
        image_size=fields.img_size,
        patch_size=fields.patch_size,
        num_layers=fields.depth,
        num_heads=fields.num_heads,
        hidden_dim=fields.embed_dim,
        mlp_dim=fields.mlp_dim,
        num_classes=fields.num_classes,
        norm_layer=functools.partial(nn.LayerNorm, eps=fields.layer_norm_eps),
    )
    if fields.in_chans != 3:  # torchvision's class supports three channels only, but no other layer depends on them
        other.conv_proj = nn.Conv2d(fields.in_chans, fields.embed_dim, fields.patch_size, fields.patch_size)
    return _with_weights(other, model)


def timm_model(model: ImageModel) -> nn.Module:
    """Builds timm's Vision Transformer or distilled DeiT with the architecture and a copy of ``model``'s weights."""
    try:
        from timm.models.deit import VisionTransformerDistilled
        from timm.models.vision_transformer import VisionTransformer as TimmModel
    except ImportError as error:
        raise Unavailable("not installed: pip install timm") from error

    fields = _plain_fields(model, "timm", distillation_token=("none", "after_class"))
    names = "img_size patch_size in_chans num_classes embed_dim depth num_heads mlp_ratio qkv_bias".split()
    other: nn.Module = (TimmModel if fields.distillation_token == "none" else VisionTransformerDistilled)(
        norm_layer=functools.partial(nn.LayerNorm, eps=fields.layer_norm_eps),
        **{name: getattr(fields, name) for name in names},
    )
    if isinstance(other, VisionTransformerDistilled):
        other.set_distilled_training(True)  # returns both heads' logits in training, as vitfast does
    return _with_weights(other, model)


def parameters_by_name(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of vitfast's, timm's or torchvision's model, also compiled, under vitfast's names."""
    parameters: dict[str, Tensor] = {name.removeprefix("_orig_mod."): one for name, one in module.named_parameters()}
    if "conv_proj.weight" not in parameters:
        return parameters
    mapped, unmatched = map_keys(parameters, TORCHVISION.rules, "torchvision")
    assert not unmatched, unmatched
    return mapped


def _plain_fields(model: ImageModel, library: str, **allowed: Collection[Any]) -> ViTFields:
    """Returns the fields of a variant that the library supports; ``allowed``: field -> values."""
    if type(model.fields) is not ViTFields:
        raise Unavailable(f"{library} has another form of {model.model_name}, which is not compared")
    fields: ViTFields = model.fields
    allowed |= {"patch_order": ["channels_first"], "pooling": ["token"], "gelu": ["erf"]}
    allowed |= {"head_type": ["linear"], "head_hidden_dim": [0, None]}
    for name, values in allowed.items():
        if (value := getattr(fields, name)) not in values:
            raise Unavailable(f"{library} has no ViT with {name}={value}")
    return fields


def _with_weights(other: nn.Module, model: ImageModel) -> nn.Module:
    """Copies all weights, and brings the module to the model's device, type and mode."""
    targets, weights = parameters_by_name(other), dict(model.named_parameters())
    assert targets.keys() == weights.keys(), targets.keys() ^ weights.keys()
    parameter = next(model.parameters())
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(weights[name])
    return other.to(parameter.device, parameter.dtype).train(model.training)


def compiled(model: nn.Module, **options: Any) -> nn.Module:
    """Returns a model compiled for fixed shapes."""
    result: Any = torch.compile(model, dynamic=False, **options)
    return result  # type: ignore[no-any-return]


def failure(error: Exception) -> str:
    """Why a library or engine is left out, in one line."""
    if isinstance(error, Unavailable):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"failed: {type(error).__name__}: {lines[0] if lines else ''}"


def _torch(
    model: nn.Module, images: Tensor, precision: str, convert: Callable[[nn.Module], nn.Module] = lambda model: model
) -> Run:
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if precision not in dtypes:
        raise Unavailable(f"runs no {precision}")
    converted, inputs = convert(copy.deepcopy(model).to(dtypes[precision])), images.to(dtypes[precision])

    def run() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = converted(inputs)
        return logits

    return run


def _zentorch(model: nn.Module, images: Tensor, precision: str) -> Run:
    _import("zentorch")
    return _torch(model, images, precision, functools.partial(compiled, backend="zentorch"))


def _torchao(model: nn.Module, images: Tensor, precision: str) -> Run:
    if precision != "int8":
        raise Unavailable("measured in int8 only: elsewhere it is torch.compile")
    quantization = _import("torchao.quantization", "torchao")
    quantized = copy.deepcopy(model)
    quantization.quantize_(quantized, quantization.Int8DynamicActivationInt8WeightConfig())
    return _torch(quantized, images, "fp32", compiled)


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
    inputs = {"images": images.numpy()}
    return lambda: torch.from_numpy(session.run(None, inputs)[0])


def _openvino(model: nn.Module, images: Tensor, precision: str) -> Run:
    openvino = _import("openvino")
    if precision == "fp16_32":
        raise Unavailable("has no GEMM of fp16 operands with fp32 accumulation on CPUs")
    converted = openvino.convert_model(copy.deepcopy(model), example_input=images)
    if precision == "int8":
        nncf = _import("nncf")
        converted = nncf.quantize(converted, nncf.Dataset([images.numpy()]), model_type=nncf.ModelType.TRANSFORMER)
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Unavailable("would run in fp32: this CPU has no instructions for bf16")
    request = core.compile_model(converted, "CPU", settings).create_infer_request()
    inputs = [images.numpy()]
    return lambda: torch.from_numpy(request.infer(inputs)[0])


# Each takes a model in float32 and evaluation mode, which is copied, a batch [B, C, H, W] in float32 and a precision:
# fp32, bf16, int8 or fp16_32. It returns a function that runs the batch once on the CPU and returns the logits.
PEERS: dict[str, Callable[[nn.Module, Tensor, str], Run]] = {
    "eager": _torch,
    "compile": functools.partial(_torch, convert=compiled),
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
