"""Entry point for accelerated inference."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.device import has_fast_bf16
from vitfast.errors import UserError
from vitfast.inference.accelerated_model import AcceleratedCascade, AcceleratedModel
from vitfast.inference.acceleration_report import AccelerationReport, LayerPath
from vitfast.inference.agreement import check_agreement
from vitfast.inference.backend import Backend
from vitfast.inference.cpu.cpu_backend import CpuBackend
from vitfast.inference.cuda.cuda_backend import CudaBackend
from vitfast.inference.cuda.graph_cache import CudaRecorder, GraphCache, is_bucket
from vitfast.inference.image_tower import ImageTower
from vitfast.inference.input_adapters import input_adapter, source_attributes
from vitfast.inference.ir import PRECISIONS, BlockSpec, CascadeSpec, ModelSpec, Precision, SequenceSpec
from vitfast.inference.ir_records import SpecRecord, record_spec
from vitfast.inference.lowering import Lowered, lower, with_merging
from vitfast.inference.lowering.module_checks import quantized_precisions
from vitfast.inference.modules.block import InferenceBlock, PatchMerging
from vitfast.inference.modules.cascade import InferenceCascade
from vitfast.inference.modules.embedding import InferenceEmbedding
from vitfast.inference.modules.fallback_block import FallbackBlock, ForeignModelBlock
from vitfast.inference.modules.patches import ConvNeck
from vitfast.inference.modules.readout import InferenceReadout
from vitfast.inference.modules.sequences import InferenceSequences, SequenceEmbedding
from vitfast.inference.modules.transformer import InferenceTransformer, LastBlock
from vitfast.inference.normalization import Normalization
from vitfast.inference.sequence_tower import SequenceTower, sequence_adapter
from vitfast.ops.library import has_kernel

logger = logging.getLogger(__name__)


def accelerate(
    model: nn.Module,
    precision: str | None = None,
    device: str | torch.device | None = None,
    *,
    check: Tensor | Iterable[Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    graph_batch: int = 256,
    merge_tokens: int = 0,
) -> AcceleratedModel:
    """Makes a fast inference copy of a Vision Transformer for this CPU or a GPU.

    Supported are models of vitfast (ViT, DeiT, ConViT, T2T-ViT, DVT, also quantized), timm's ``VisionTransformer``,
    distilled DeiT, ``Eva`` (EVA-02, DINOv3, Perception Encoder, RoPE ViT), ``Beit``, ``VisionTransformerRelPos``,
    ``VisionTransformerSAM``, ``NaFlexVit`` and Swin Transformers, torchvision's and open_clip's ``VisionTransformer``,
    and Hugging Face's ViT, DeiT, ViT-MSN, I-JEPA, DINOv2, DINOv3, CLIP, SigLIP and SigLIP 2, BEiT, Data2Vec-Vision and
    Swin Transformers. They are recognised by class and configuration; of models with a text tower (``CLIPModel``,
    ``SiglipModel``, open_clip's ``CLIP``) the image tower is accelerated. Modified parts (a hook, a replaced method, a
    wrapped layer) fall back to the source's forward; a warning and ``report()`` say which parts and why.

    Args:
        model: not modified; its current weights are copied, and the copy computes its evaluation mode.
        precision: ``"fp32"``; ``"bf16"``: GEMM operands in bfloat16; ``"fp16_32"``: as ``FP16_32Config()``; ``"int8"``:
            as ``Int8Config()``, without calibration. On a GPU also ``"fp16_16"``: fp16 where ``FP16_16Config()``
            rounds, and in attention; and ``"fp8"`` (e4m3), with one scale for each token and output channel, as in
            int8. There ``"bf16"`` and ``"fp16"`` apply to all stored tensors, as in ``model.bfloat16()``; with
            ``"int8"`` and ``"fp8"`` these are in bf16. None: the precision of a quantized model, else ``"fp32"``.
        device: ``"cpu"`` or ``"cuda"``. None: the model's device.
        check: images as the model takes them, or a loader of batches: images, or tuples or dictionaries of which the
            first entry is images. Both models run on all of them, and ``report().agreement`` is the result.
        mean: mean of each channel. With ``mean`` and ``std`` the model takes unnormalized images (uint8 from 0 to 255,
            or floating point from 0 to 1) and computes ``(image - mean) / std`` within its first GEMM.
        std: standard deviation of each channel.
        graph_batch: on a GPU, the largest batch for which a CUDA graph is captured, a power of two. Batches are padded
            to the next power of two, and larger ones run in parts. Each size is captured on first use and takes memory
            for its images and results. 0: no graphs, for frequently changing image sizes or little memory.
        merge_tokens: how many tokens each block merges with the most similar other ones, at most half of them (token
            merging: Bolya et al., 2023), for models without rotary embeddings, relative positions and windows. All
            blocks after it compute fewer tokens, at some cost of accuracy, which ``check`` shows. Outputs with a vector
            for each token have those of the original tokens: merged tokens share one. Of a model with exits it is the
            number for the last exit; the others merge the same share of their tokens.

    Returns:
        A new module for inference, called as ``model``.

    Raises:
        UserError: the model is accelerated already; the precision is unknown, differs from a quantized model's, or is
            not supported on the device; the parameters are not float32; ``mean`` and ``std`` do not match the images,
            or the model was not recognised as a whole; ``graph_batch`` is not a power of two; torch sees no GPU;
            ``merge_tokens`` is negative, or the model's tokens cannot be merged.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper holds the original under this name
    if not isinstance(model, nn.Module):
        raise UserError(f"accelerate takes a model (torch.nn.Module), got {type(model).__name__}")
    if isinstance(model, AcceleratedModel):
        report = model.report()
        raise UserError(
            f"the model is accelerated already: {report.source}, {report.precision}, on {model.device}; use it as it "
            "is, or accelerate its source model with other arguments"
        )
    if graph_batch and not is_bucket(graph_batch):
        raise UserError(f"graph_batch={graph_batch} must be a power of two, or 0 for no CUDA graphs; for example 256")
    target = _device(model, device)
    chosen = _precision(model, precision, target)
    _check_float32(model)
    normalization = Normalization.of(mean, std)
    return accelerate_spec(
        model,
        with_merging(lower(model), merge_tokens),
        chosen,
        target,
        normalization,
        is_quantized=bool(quantized_precisions(model)),
        graph_batch=graph_batch,
        check=check,
    )


def accelerate_spec(
    model: nn.Module,
    lowered: Lowered,
    precision: str,
    device: str | torch.device,
    normalization: Normalization | None,
    *,
    is_quantized: bool,
    graph_batch: int = 256,
    check: Tensor | Iterable[Any] | None = None,
) -> AcceleratedModel:
    """As ``accelerate``, for a lowered model.

    Args:
        model: the source model, or what stands for it: its state dict and attributes.
        lowered: of the model.
        precision: as in ``accelerate``.
        device: as in ``accelerate``.
        normalization: applied to the images first, or None.
        is_quantized: whether layers of the model have their own precision; those that are left out stay in float32.
        graph_batch: as in ``accelerate``.
        check: as in ``accelerate``.
    """
    target = _device(model, device)
    chosen = _supported(precision, target)
    default: Precision = "fp32" if is_quantized else chosen
    if default == "bf16" and not has_fast_bf16(target):
        _say_that_bf16_is_not_faster(target.type)
    backend: Backend
    graphs = None
    if target.type == "cuda":
        graphs = GraphCache(partial(CudaRecorder, target), graph_batch) if graph_batch else None
        backend = CudaBackend(model, default, target, normalization)
    else:
        backend = (CpuBackend if has_kernel("packed", "cpu") else Backend)(model, default, target, normalization)
    return assemble(model, lowered, backend, chosen, graphs, check=check, is_quantized=is_quantized)


def assemble(
    model: nn.Module,
    lowered: Lowered,
    backend: Backend,
    precision: Precision,
    graphs: GraphCache | None = None,
    *,
    check: Tensor | Iterable[Any] | None = None,
    is_quantized: bool = False,
) -> AcceleratedModel:
    """Builds a lowered model with a backend and wraps it.

    Args:
        model: the source model.
        lowered: of the model.
        backend: builds the modules.
        precision: for the report.
        graphs: runs a model that is recognised as a whole by recordings; None: operator by operator.
        check: as in ``accelerate``.
        is_quantized: as in ``accelerate_spec``.
    """
    _check_normalization(backend.normalization, lowered)
    record = SpecRecord(why_not=str(lowered.why))
    if lowered.spec is not None:
        record = record_spec(lowered.spec, model.state_dict(keep_vars=True))
    body = _body(model, lowered, backend, graphs)
    source = str(getattr(model, "source_name", type(model).__name__))
    kernels = backend.describe_kernels(body, backend.device.type)
    report = AccelerationReport(source, precision, kernels, tuple(_layers(body, lowered)))
    attributes = source_attributes(model, normalizes=backend.normalization is not None)
    arguments = (body, backend.tensors.state(), report, backend.describe_kernels, attributes, record)
    is_cascade = isinstance(lowered.spec, CascadeSpec)
    accelerated = AcceleratedCascade(*arguments, source=model) if is_cascade else AcceleratedModel(*arguments)
    accelerated.normalization, accelerated.is_quantized = backend.normalization, is_quantized
    _warn(report)
    if check is not None:
        accelerated.add_agreement(check_agreement(model, accelerated, check, backend.normalization))
    return accelerated


def _body(model: nn.Module, lowered: Lowered, backend: Backend, graphs: GraphCache | None) -> nn.Module:
    """Builds the whole model, or copies one that runs its own forward, with accelerated parts where recognised."""
    parts = {name: model.get_submodule(name) for name in lowered.parts}
    built = {name: _built(name, parts[name], spec, backend, graphs) for name, spec in lowered.parts.items()}
    if "" in built:
        return built[""]
    replaced: dict[int, object] = {id(parts[name]): module for name, module in built.items()}
    copied = copy.deepcopy(model, replaced).to(backend.device).eval().requires_grad_(False)
    for name, module in model.named_modules():
        is_inside = any(name == part or name.startswith(f"{part}.") for part in parts)
        if not is_inside:
            backend.tensors.adopt(module, copied.get_submodule(name), recurse=False)
    return copied


def _built(
    name: str, module: nn.Module, spec: ModelSpec | BlockSpec, backend: Backend, graphs: GraphCache | None
) -> nn.Module:
    """Builds what replaces a recognised module of the source."""
    if isinstance(spec, BlockSpec):
        return ForeignModelBlock(backend.block(spec))
    if isinstance(spec, SequenceSpec):
        return SequenceTower(name, InferenceSequences(spec, backend), sequence_adapter(module, spec))
    if isinstance(spec, CascadeSpec):
        model: nn.Module = InferenceCascade(spec, backend)
    else:
        model = InferenceTransformer(spec, backend)
    if any(isinstance(one, FallbackBlock) for one in model.modules()):
        graphs = None  # a graph would not repeat what foreign code does outside of CUDA
    return ImageTower(name, model, input_adapter(module, spec), graphs)


def _layers(body: nn.Module, lowered: Lowered) -> Iterator[LayerPath]:
    """Lists for the report what runs each part."""
    if lowered.why is not None:
        why = lowered.why
        yield LayerPath("(model)", "source's forward", f"{why.name} {why.why}" if why.name else why.why)
    for module in body.modules():
        if isinstance(module, ForeignModelBlock):
            yield LayerPath(module.block.name, module.block.path)
        elif isinstance(module, ImageTower):
            yield from _tower_layers(module)


def _tower_layers(tower: ImageTower) -> Iterator[LayerPath]:
    prefix = f"{tower.name}." if tower.name else ""
    for name, module in tower.model.named_modules():
        if isinstance(module, (FallbackBlock, InferenceBlock, LastBlock, PatchMerging)):
            yield LayerPath(module.name, module.path, getattr(module, "why", ""))
        elif isinstance(module, (SequenceEmbedding, ConvNeck)):
            yield LayerPath(prefix + name, module.path)
        elif isinstance(module, InferenceEmbedding):
            yield LayerPath(prefix + name, module.patches.path)
        elif isinstance(module, InferenceReadout):
            yield LayerPath(prefix + ("head" if name.startswith("readout") else name), module.path)


def _warn(report: AccelerationReport) -> None:
    fell_back = report.fell_back
    if fell_back:
        first = "; ".join(f"{layer.name}: {layer.why_not}" for layer in fell_back[:3])
        more = f"; and {len(fell_back) - 3} more" if len(fell_back) > 3 else ""
        warnings.warn(
            f"accelerate: {len(fell_back)} of {len(report.layers)} parts of {report.source} fall back to the source's "
            f"forward: {first}{more} (see .report())",
            UserWarning,
            stacklevel=5,
        )


@cache
def _say_that_bf16_is_not_faster(device_type: str) -> None:
    """Logs it once in a process: not an error, because the results are those of other machines."""
    logger.warning(
        "precision='bf16': this %s has no fast bf16 instructions: it is not faster than fp32, and less accurate",
        "CPU" if device_type == "cpu" else "GPU",
    )


def _device(model: nn.Module, device: str | torch.device | None) -> torch.device:
    current = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    target = current if device is None else torch.device(device)
    if target.type not in PRECISIONS:
        raise UserError(f"device={target}: accelerate runs on {' and '.join(PRECISIONS)}; give one of them")
    if target.type == "cpu":
        return target
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (target.index or 0) >= gpus:
        raise UserError(f"device={target}: torch sees {gpus or 'no'} CUDA GPUs here; give device='cpu'")
    return target if target.index is not None else torch.device("cuda", torch.cuda.current_device())


def _supported(precision: str, device: torch.device) -> Precision:
    allowed = PRECISIONS[device.type]
    if precision not in allowed:
        raise UserError(f"precision={precision!r} is not supported on {device}; allowed: {', '.join(allowed)}")
    if precision == "fp8" and (capability := torch.cuda.get_device_capability(device)) < (8, 9):
        found = ".".join(map(str, capability))
        raise UserError(
            f"precision='fp8' needs compute capability 8.9 or newer, {device} has {found}; use 'int8' or 'bf16'"
        )
    return precision


def _precision(model: nn.Module, precision: str | None, device: torch.device) -> Precision:
    allowed = PRECISIONS[device.type]
    chosen = None if precision is None else _supported(precision, device)
    quantized = quantized_precisions(model)
    unsupported = sorted(quantized - {"other"} - set(allowed))
    if unsupported:
        raise UserError(
            f"the model is quantized to {', '.join(unsupported)}, which is not supported on {device}; accelerate it "
            "with device='cpu', or run the model itself"
        )
    if not quantized:
        return chosen or "fp32"
    if precision is not None and quantized != {precision}:
        raise UserError(
            f"precision={precision!r}, but the model is quantized already, to {', '.join(sorted(quantized))}; leave "
            "precision out to keep that, or accelerate the unquantized model"
        )
    fast = sorted(quantized & set(allowed))
    return fast[0] if len(fast) == 1 else "fp32"  # type: ignore[return-value]


def _check_normalization(normalization: Normalization | None, lowered: Lowered) -> None:
    if normalization is None:
        return
    spec = lowered.spec
    if spec is None:
        raise UserError(f"mean= and std= require a model that is recognised as a whole; {lowered.why}")
    if isinstance(spec, SequenceSpec):
        raise UserError("mean= and std= require a model of images, and this one takes patches; normalize them before")
    first = spec.exits[0] if isinstance(spec, CascadeSpec) else spec
    channels = first.embedding.patches.in_chans
    if len(normalization.mean) != channels:
        raise UserError(
            f"mean={normalization.mean} has {len(normalization.mean)} numbers, images have {channels} channels"
        )


def _check_float32(model: nn.Module) -> None:
    wrong = sorted({str(p.dtype) for p in model.parameters() if p.is_floating_point() and p.dtype != torch.float32})
    if wrong:
        raise UserError(
            f"the model's parameters are {', '.join(wrong)}, and accelerate packs float32; call model.float() first "
            "(with precision='bf16', bfloat16 weights do not change)"
        )
