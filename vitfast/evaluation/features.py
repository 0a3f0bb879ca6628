"""Features of a frozen model: the input of its head, and the class tokens of its last blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.device import autocast
from vitfast.errors import UserError
from vitfast.models import ImageModel
from vitfast.models.convit import ConViT
from vitfast.models.foreign_model import ForeignModel
from vitfast.models.t2t_vit import T2TViT
from vitfast.models.vit import VisionTransformer

# VISSL's names (``get_intermediate_features`` of its ViT)
LAST_CLS, CONCAT_CLS4 = "lastCLS", "concatCLS4"
_BLOCKS = 4
_TIMM_CLASSES = ("VisionTransformer", "VisionTransformerDistilled", "Eva", "Beit")  # whose blocks see the class token


def feature_layers(model: ImageModel) -> list[str]:
    """Lists the layers that ``extract_features`` can read from a model.

    ``lastCLS`` is the input of the (last) head: a ViT's class token after the last norm, or what the model pools
    instead. ``concatCLS4`` are the class tokens after the last four blocks, each normalized by the last norm; models
    without a class token in these blocks do not have it.
    """
    if isinstance(model, ForeignModel):
        trunk: Any = model.network
        has_class_token = type(trunk).__name__ in _TIMM_CLASSES and getattr(trunk, "cls_token", None) is not None
    else:
        trunk = model
        is_vit = isinstance(model, (VisionTransformer, T2TViT)) and not isinstance(model, ConViT)
        has_class_token = is_vit and getattr(model, "cls_token", None) is not None
    return [LAST_CLS, CONCAT_CLS4] if has_class_token and len(trunk.blocks) >= _BLOCKS else [LAST_CLS]


def extract_features(
    model: ImageModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    layers: Sequence[str],
    *,
    device: torch.device,
    precision: str = "fp32",
) -> tuple[dict[str, Tensor], Tensor]:
    """Runs a model once over all batches.

    Args:
        model: in evaluation mode, on ``device``.
        batches: of images ``[B, in_chans, img_size, img_size]`` and labels ``[B]``.
        layers: of ``feature_layers(model)``.
        device: of the model.
        precision: ``fp32`` or ``bf16`` (autocast).

    Returns:
        The features of each layer, ``[N, C]`` in float32 on the CPU, and the labels ``[N]``.

    Raises:
        UserError: features are not finite.
    """
    found: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    labels: list[Tensor] = []
    with ExitStack() as stack, torch.inference_mode(), autocast(device, precision):
        readers = {layer: feature_reader(model, layer, stack) for layer in layers}
        for images, labels_B in batches:
            if len(labels_B) == 0:
                continue
            model(images.to(device, non_blocking=True))
            labels.append(labels_B)
            for layer, read in readers.items():
                # a copy: the features may be a view that keeps the tokens of all patches
                found[layer].append(read().float().cpu().clone())
    features = {layer: torch.cat(found.pop(layer)) for layer in layers}
    for layer, features_NC in features.items():
        if not features_NC.isfinite().all():
            raise UserError(f"{model.model_name}: features {layer} are NaN or infinite; the weights are damaged")
    return features, torch.cat(labels)


def feature_reader(model: ImageModel, layer: str, stack: ExitStack) -> Callable[[], Tensor]:
    """Records a layer in forward passes while ``stack`` is open; returns what gives the features of the last pass."""
    recorded: list[Tensor] = []

    def record_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        recorded.append(inputs[0])

    def record_class_token(_: nn.Module, __: Any, tokens_BNC: Tensor) -> None:
        recorded.append(tokens_BNC[:, :1])

    def pooled() -> Tensor:
        (features,) = recorded
        recorded.clear()
        return features if features.dim() == 2 else features.flatten(2).mean(dim=2)  # a head of 1 x 1 convolution

    def concatenated() -> Tensor:
        features_BC = torch.cat([trunk.norm(token_B1C)[:, 0] for token_B1C in recorded], dim=1)
        recorded.clear()
        return features_BC

    trunk: Any = model.network if isinstance(model, ForeignModel) else model
    if layer == CONCAT_CLS4:
        for block in trunk.blocks[-_BLOCKS:]:
            stack.enter_context(block.register_forward_hook(record_class_token))
        return concatenated
    head: Any = getattr(model, "pre_logits", None)  # the hidden layer of a head is part of the head
    if head is None:
        head = model.get_submodule(model.head_prefixes[0].removesuffix("."))
    stack.enter_context(head.register_forward_pre_hook(record_input))
    return pooled
