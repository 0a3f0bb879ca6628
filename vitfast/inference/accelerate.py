"""The one verb of fast inference."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.inference.accelerated_model import AcceleratedCascade, AcceleratedModel
from vitfast.inference.acceleration_report import AccelerationReport, LayerPath
from vitfast.inference.agreement import check_agreement
from vitfast.inference.graphs.buckets import is_bucket
from vitfast.inference.graphs.cuda_recorder import CudaRecorder
from vitfast.inference.graphs.graph_cache import GraphCache
from vitfast.inference.input_adapters import input_adapter
from vitfast.inference.ir import PRECISIONS, CascadeSpec, Precision
from vitfast.inference.lowering import Lowered, lower
from vitfast.inference.lowering.quantized import quantized_precisions
from vitfast.inference.packed.cast_packer import CastPacker
from vitfast.inference.packed.normalization import Normalization
from vitfast.inference.packed.own_block import BlockInPlace, OwnBlock
from vitfast.inference.packed.packed_block import PackedBlock, PackedLastBlock
from vitfast.inference.packed.packed_cascade import PackedCascade, PackedExit
from vitfast.inference.packed.packed_readout import PackedReadout
from vitfast.inference.packed.packed_reuse_block import PackedReuseBlock
from vitfast.inference.packed.packed_transformer import PackedTransformer
from vitfast.inference.packed.packer import Packer
from vitfast.ops.library import build_info, has_kernel
from vitfast.ops.packed import has_packed


def accelerate(
    model: nn.Module,
    precision: str | None = None,
    device: str | torch.device | None = None,
    *,
    check: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    graph_batch: int = 256,
) -> AcceleratedModel:
    """Makes a Vision Transformer run as fast as it can on this CPU, or on a GPU.

    Recognised are models of vitfast (ViT, DeiT, ConViT, T2T-ViT, DVT, quantized ones), timm's ``VisionTransformer`` and
    distilled DeiT, torchvision's ``VisionTransformer``, and Hugging Face's ViT, DeiT and DINOv2: by class and by
    configuration. What is not (a hook, a replaced method, a wrapped layer) keeps its own forward; ``report()`` says
    which parts and why, and a warning says that there are some.

    Args:
        model: is left alone; its weights are copied, as they are now, and its evaluation is what runs.
        precision: ``"fp32"``; ``"bf16"``: operands of products in bfloat16; ``"fp16_32"``: as ``FP16_32Config()``;
            ``"int8"`` (CPU): as ``Int8Config()``, no calibration is needed. On a GPU ``"bf16"`` and ``"fp16"`` hold for
            everything that is stored, as in ``model.bfloat16()``. None: the model's own, if it is quantized, else
            ``"fp32"``.
        device: where to run, ``"cpu"`` or ``"cuda"``. None: the model's device.
        check: images as the model takes them. Both models run on them, and ``report().agreement`` says how well they
            agree.
        mean: of each channel; with ``std``, the model takes images as they are read (uint8 from 0 to 255, or floating
            point from 0 to 1) and computes ``(image - mean) / std`` itself, within its first product.
        std: of each channel.
        graph_batch: on a GPU, the largest batch that a CUDA graph is captured for, a power of two. Batches are filled
            up to the next power of two, and larger ones run in parts; each size is captured when it first comes, and
            takes memory for its images and results. 0: no graphs, for changing sizes or little memory.

    Returns:
        A new module, called as ``model``, for inference.

    Raises:
        UserError: the precision is unknown, another than a quantized model's, or not possible on the device; parameters
            are not float32; ``mean`` and ``std`` do not fit the images, or the model was not recognised as a whole;
            ``graph_batch`` is no power of two; torch sees no GPU.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper holds the original under this name
    if not isinstance(model, nn.Module):
        raise UserError(f"accelerate takes a model (torch.nn.Module), got {type(model).__name__}")
    if graph_batch and not is_bucket(graph_batch):
        raise UserError(f"graph_batch={graph_batch} must be a power of two, or 0 for no CUDA graphs; for example 256")
    target = _device(model, device)
    chosen = _precision(model, precision, target)
    _check_float32(model)
    normalization = Normalization.of(mean, std)
    # a quantized model says of each layer what it computes in; what it leaves out stays in float32
    packed_in = "fp32" if quantized_precisions(model) else chosen
    if target.type == "cpu":
        return assemble(model, Packer(model, packed_in, target, normalization), chosen, check=check)
    graphs = GraphCache(partial(CudaRecorder, target), graph_batch) if graph_batch else None
    return assemble(model, CastPacker(model, packed_in, target, normalization), chosen, graphs, check=check)


def assemble(
    model: nn.Module,
    packer: Packer,
    precision: Precision,
    graphs: GraphCache | None = None,
    *,
    check: Tensor | None = None,
) -> AcceleratedModel:
    """Makes the accelerated model of packed parts.

    Args:
        model: the source.
        packer: packs, and says where.
        precision: for the report.
        graphs: runs what is recognised as a whole by recordings; None: operator by operator.
        check: as in ``accelerate``.
    """
    lowered = lower(model)
    _check_normalization(packer.normalization, lowered)
    body = _body(model, lowered, packer)
    layers = tuple(_layers(model, body, lowered))
    if lowered.description is None or any(isinstance(module, OwnBlock) for module in body.modules()):
        graphs = None  # foreign code may do on each call what a recording would do once
    report = AccelerationReport(type(model).__name__, precision, _kernels(packer, body, graphs), layers)
    state = packer.kept_state(model)
    if isinstance(body, PackedCascade):
        accelerated: AcceleratedModel = AcceleratedCascade(body, input_adapter(model), state, report, graphs, model)
    else:
        front = None if lowered.description is None else input_adapter(model)
        accelerated = AcceleratedModel(body, front, state, report, graphs)
    _warn(report)
    if check is not None:
        accelerated.add_agreement(check_agreement(model, accelerated, check, packer.normalization))
    return accelerated


def _kernels(packer: Packer, body: nn.Module, graphs: GraphCache | None) -> str:
    """Says whose kernels run the blocks."""
    if packer.device.type == "cpu":
        packed = has_packed("packed_linear")
        return build_info()["cpu"]["instruction_set"] if packed else "torch's, vitfast's are not built"
    own = own_kernels(body, packer.device.type)
    whose = f"vitfast's {', '.join(own)}, torch's for the rest" if own else "torch's"
    return whose if graphs is None else f"{whose}; CUDA graphs of up to {graphs.largest} images"


def own_kernels(body: nn.Module, device_type: str) -> list[str]:
    """Names the kernels of vitfast that what was made of a model calls on a GPU."""
    called = {operator for module in body.modules() for operator in getattr(module, "operators", ())}
    return sorted(operator for operator in called if has_kernel(operator, device_type))


def _body(model: nn.Module, lowered: Lowered, packer: Packer) -> nn.Module:
    """Builds what runs: the whole description, or the model's own modules with packed blocks in their places."""
    if isinstance(lowered.description, CascadeSpec):
        return PackedCascade(lowered.description, packer)
    if lowered.description is not None:
        return PackedTransformer(lowered.description, packer)
    blocks: dict[int, object] = {
        id(model.get_submodule(name)): BlockInPlace(described, packer) for name, described in lowered.blocks.items()
    }
    twin = copy.deepcopy(model, blocks).to(packer.device).eval().requires_grad_(False)
    for name, module in model.named_modules():
        is_inside = any(name == block or name.startswith(f"{block}.") for block in lowered.blocks)
        if not is_inside:
            packer.adopt_own(module, twin.get_submodule(name))
    return twin


def _layers(model: nn.Module, body: nn.Module, lowered: Lowered) -> Iterator[LayerPath]:
    """Says what runs each part."""
    if lowered.why is not None:
        why = lowered.why
        yield LayerPath("(model)", "own forward", f"{why.name} {why.why}" if why.name else why.why)
    for name, module in body.named_modules():
        if isinstance(module, OwnBlock):
            yield LayerPath(module.name, module.path, module.why)
        elif isinstance(module, (PackedTransformer, PackedExit)):
            stage = name.removeprefix("body.")
            yield LayerPath(f"{stage}.embedding" if stage else "embedding", module.embedding.path)
        elif isinstance(module, (PackedBlock, PackedLastBlock, PackedReuseBlock)):
            yield LayerPath(module.name, module.path)
        elif isinstance(module, PackedReadout):
            yield LayerPath("head" if name.startswith("readout") else name, module.path)


def _warn(report: AccelerationReport) -> None:
    own = report.fell_back
    if own:
        first = "; ".join(f"{layer.name}: {layer.why_not}" for layer in own[:3])
        more = f"; and {len(own) - 3} more" if len(own) > 3 else ""
        warnings.warn(
            f"accelerate: {len(own)} of {len(report.layers)} parts of {report.source} keep their own forward: "
            f"{first}{more} (see .report())",
            UserWarning,
            stacklevel=4,
        )


def _device(model: nn.Module, device: str | torch.device | None) -> torch.device:
    own = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    target = own if device is None else torch.device(device)
    if target.type not in PRECISIONS:
        raise UserError(f"device={target}: accelerate runs on {' and '.join(PRECISIONS)}; give one of them")
    if target.type == "cpu":
        return target
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (target.index or 0) >= gpus:
        raise UserError(f"device={target}: torch sees {gpus or 'no'} CUDA GPUs here; give device='cpu'")
    return target if target.index is not None else torch.device("cuda", torch.cuda.current_device())


def _precision(model: nn.Module, precision: str | None, device: torch.device) -> Precision:
    allowed = PRECISIONS[device.type]
    if precision is not None and precision not in allowed:
        raise UserError(f"precision={precision!r} is not possible on {device}; allowed: {', '.join(allowed)}")
    own = quantized_precisions(model)
    impossible = sorted(own - {"other"} - set(allowed))
    if impossible:
        raise UserError(
            f"the model is quantized to {', '.join(impossible)}, which is not possible on {device}; accelerate it with "
            "device='cpu', or run the model itself"
        )
    fast = sorted(own & set(allowed))
    if not own:
        return precision or "fp32"
    if precision is not None and own != {precision}:
        raise UserError(
            f"precision={precision!r}, but the model is quantized already, to {', '.join(sorted(own))}; leave "
            "precision out to run it as it is, or accelerate the unquantized model"
        )
    return fast[0] if len(fast) == 1 else "fp32"  # type: ignore[return-value]


def _check_normalization(normalization: Normalization | None, lowered: Lowered) -> None:
    if normalization is None:
        return
    if lowered.description is None:
        raise UserError(f"mean= and std= go with models that are recognised as a whole only; {lowered.why}")
    described = lowered.description
    first = described.exits[0].transformer if isinstance(described, CascadeSpec) else described
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
            "(precision='bf16' rounds them again without loss)"
        )
