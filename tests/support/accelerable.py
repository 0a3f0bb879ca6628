"""Small models of every source and variant that ``vitfast.accelerate`` supports."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from vitfast.models import build_model

_OWN = {"img_size": 32, "embed_dim": 32, "num_heads": 2, "num_classes": 7, "depth": 2}
_T2T = {**_OWN, "token_dim": 8}
_DVT = {**_OWN, "reuse_dim": 6, "reuse_hidden_dim": 12}
_DEIT_EXITS = {"patch_sizes": (16, 11, 8), "patch_strides": (16, 11, 8), "patch_paddings": (0, 1, 0)}

OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", _OWN),
    "myrtle": (
        "vit_tiny_patch16_224",
        {**_OWN, "patch_order": "channels_last", "head_type": "norm_linear", "qkv_bias": False},
    ),
    "mean, tanh": ("vit_tiny_patch16_224", {**_OWN, "pooling": "mean", "gelu": "tanh"}),
    "hidden head": ("vit_tiny_patch16_224", {**_OWN, "head_hidden_dim": 20}),
    "no head": ("vit_tiny_patch16_224", {**_OWN, "num_classes": 0}),
    "DINOv2, registers": ("vit_small_patch14_reg4_dinov2", {**_OWN, "img_size": 56, "layer_scale": 0.5}),
    "DINOv2, SwiGLU": ("vit_giant_patch14_dinov2", {**_OWN, "img_size": 56, "mlp_ratio": 3.0}),
    "CLIP": ("vit_base_patch16_clip_quickgelu_224", _OWN),
    "SigLIP": ("vit_base_patch16_siglip_224", _OWN),
    "DINOv3": ("vit_small_patch16_dinov3_qkvb", {**_OWN, "layer_scale": 0.5}),
    "DINOv3, SwiGLU": ("vit_small_plus_patch16_dinov3", {**_OWN, "layer_scale": 0.5, "mlp_ratio": 3.0}),
    "EVA-02": ("eva02_base_patch14_224", {**_OWN, "img_size": 56, "mlp_ratio": 3.0}),
    "EVA-02, norms inside": ("eva02_base_patch16_clip_224", {**_OWN, "mlp_ratio": 3.0}),
    "dropout": ("vit_tiny_patch16_224", {**_OWN, "drop_rate": 0.5, "attention_drop_rate": 0.5, "drop_path": 0.5}),
    "distilled": ("deit_tiny_distilled_patch16_224", _OWN),
    "distilled, norm in head": ("deit_tiny_distilled_patch16_224", {**_OWN, "head_type": "norm_linear"}),
    "distilled, last": ("deit_tiny_distilled_patch16_224", {**_OWN, "distillation_token": "last"}),
    "convit": ("convit_tiny", {**_OWN, "num_heads": 4, "depth": 3, "local_up_to_layer": 2, "patch_size": 8}),
    "convit, vissl": (
        "convit_tiny",
        {**_OWN, "num_heads": 4, "local_up_to_layer": 1, "patch_size": 8, "locality_dim": 10, "pooling": "mean"},
    ),
    "t2t": ("t2t_vit_7", _T2T),
    "t2t, transformer": ("t2t_vit_t_14", _T2T),
    "dvt over deit": ("dvt_deit_small", {**_DVT, **_DEIT_EXITS}),
    "dvt over t2t": ("dvt_t2t_vit_12", {**_DVT, "token_dim": 8, "img_size": 64}),
    "dvt, convolutions": ("dvt_mini_32", {**_DVT, "backbone": "conv_vit", "num_heads": 2}),
    "dvt without reuse": ("dvt_nano_16", {**_DVT, "img_size": 16, "feature_reuse": False, "relation_reuse": False}),
}

_TIMM = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "num_heads": 2, "depth": 2, "num_classes": 7}
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "LayerScale, registers": ("vit_small_patch14_reg4_dinov2", {}),
    "registers apart from positions": ("vit_medium_patch16_reg4_gap_256", {}),
    "map pooling": ("vit_base_patch16_siglip_224", {}),
    "pre-norm, quick GELU": ("vit_base_patch16_clip_quickgelu_224", {}),
    "no class token, fc_norm": ("vit_medium_patch16_gap_240", {}),
    "deit3": ("deit3_small_patch16_224", {}),
    "QK-norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "any size": ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
    "all tokens": ("vit_tiny_patch16_224", {"global_pool": ""}),
    "no head": ("vit_tiny_patch16_224", {"num_classes": 0}),
    "wide heads": ("vit_tiny_patch16_224", {"num_heads": 4}),
    "no blocks": ("vit_tiny_patch16_224", {"depth": 0}),
    "three blocks": ("vit_tiny_patch16_224", {"depth": 3}),
    "RoPE, three blocks": ("vit_small_patch16_dinov3", {"depth": 3}),
    "SwiGLU, three blocks": ("vit_giant_patch14_dinov2", {"mlp_ratio": 3.0, "depth": 3}),
    "no bias": ("vit_tiny_patch16_224", {"qkv_bias": False, "proj_bias": False}),
    "SwiGLU": ("vit_giant_patch14_dinov2", {"mlp_ratio": 3.0}),
    "EVA-02": ("eva02_tiny_patch14_224", {}),
    "EVA-02, norms inside": ("eva02_base_patch16_clip_224", {}),
    "DINOv3": ("vit_small_patch16_dinov3", {}),
    "DINOv3, SwiGLU": ("vit_small_plus_patch16_dinov3", {}),
    "DINOv3, class token": ("vit_small_patch16_dinov3", {"global_pool": "token"}),
    "Perception Encoder": ("vit_pe_core_base_patch16_224", {}),
    "RoPE, axial": ("vit_small_patch16_rope_224", {}),
    "RoPE, mixed": ("vit_small_patch16_rope_mixed_ape_224", {}),
    "RoPE, QK-norm": ("vit_small_patch16_rope_224", {"qk_norm": True}),
    "EVA-02, post-norm": ("eva02_enormous_patch14_clip_224", {}),
    "BEiT": ("beit_base_patch16_224", {}),
    "BEiT, shared bias": ("beit_base_patch16_224", {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}),
    "BEiT-3": ("beit3_base_patch16_224", {}),
    "relative positions": ("vit_relpos_small_patch16_224", {}),
    "relative positions, shared, class token": (
        "vit_srelpos_small_patch16_224",
        {"class_token": True, "global_pool": "token"},
    ),
    "relative positions, table, post-norm": ("vit_relpos_base_patch32_plus_rpn_256", {}),
    "Swin": ("swin_tiny_patch4_window7_224", {}),
    "Swin, any size": ("swin_tiny_patch4_window7_224", {"strict_img_size": False}),
    "Swin V2": ("swinv2_tiny_window8_256", {"window_size": 4}),
    "Swin V2, padded windows": ("swinv2_tiny_window8_256", {}),
    "AIMv2: RMSNorm": ("aimv2_large_patch14_224", {"patch_size": 16}),
    "parallel blocks": ("vit_small_patch16_18x2_224", {"init_values": 0.5}),
    "SAM": ("samvit_base_patch16_224", {"patch_size": 4, "window_size": 3, "global_attn_indexes": (1,)}),
    "SAM, neck": ("samvit_base_patch16", {"patch_size": 4, "window_size": 3, "neck_chans": 8, "num_classes": 0}),
}
# grids of 8 and 4 tokens, which windows of 3 do not divide
_SWIN = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": 3,
    "num_classes": 7,
}

_HUGGINGFACE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
    "num_labels": 7,
}
_TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 50}
HUGGINGFACE = {
    "ViTForImageClassification": ("ViTConfig", {"intermediate_size": 48}),
    "ViTModel": ("ViTConfig", {"intermediate_size": 48, "hidden_act": "quick_gelu"}),
    "DeiTForImageClassification": ("DeiTConfig", {"intermediate_size": 48}),
    "DeiTForImageClassificationWithTeacher": ("DeiTConfig", {"intermediate_size": 48}),
    "DeiTModel": ("DeiTConfig", {"intermediate_size": 48, "qkv_bias": False}),
    "Dinov2ForImageClassification": ("Dinov2Config", {"layerscale_value": 0.7}),
    "Dinov2Model": ("Dinov2Config", {"layerscale_value": 0.7}),
    "Dinov2WithRegistersForImageClassification": ("Dinov2WithRegistersConfig", {"num_register_tokens": 3}),
    "CLIPVisionModel": ("CLIPVisionConfig", {"intermediate_size": 48}),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", {"intermediate_size": 48, "projection_dim": 20}),
    "CLIPForImageClassification": ("CLIPConfig", {"num_labels": 7}),
    "Dinov2Model, SwiGLU": ("Dinov2Config", {"layerscale_value": 0.7, "use_swiglu_ffn": True}),
    "Dinov2Backbone": ("Dinov2Config", {"layerscale_value": 0.7, "out_indices": [0, 2]}),
    "Dinov2WithRegistersBackbone": (
        "Dinov2WithRegistersConfig",
        {"num_register_tokens": 3, "apply_layernorm": False, "reshape_hidden_states": False},
    ),
    "ViTMSNModel": ("ViTMSNConfig", {"intermediate_size": 48}),
    "ViTMSNForImageClassification": ("ViTMSNConfig", {"intermediate_size": 48}),
    "IJepaModel": ("IJepaConfig", {"intermediate_size": 48}),
    "IJepaForImageClassification": ("IJepaConfig", {"intermediate_size": 48}),
    "DINOv3ViTBackbone": (
        "DINOv3ViTConfig",
        {"intermediate_size": 48, "out_indices": [1, 2], "return_class_token": True, "use_gated_mlp": True},
    ),
    "DINOv3ViTModel": ("DINOv3ViTConfig", {"intermediate_size": 48, "layerscale_value": 0.7, "num_register_tokens": 3}),
    "InternVLVisionModel": (
        "InternVLVisionConfig",
        {"intermediate_size": 48, "use_qk_norm": True, "image_size": [32, 32], "patch_size": [16, 16]},
    ),
    "InternVLVisionModel, RMSNorm": (
        "InternVLVisionConfig",
        {"intermediate_size": 48, "norm_type": "rms_norm", "image_size": [32, 32], "patch_size": [16, 16]},
    ),
    "SiglipVisionModel": ("SiglipVisionConfig", {"intermediate_size": 48}),
    "SiglipForImageClassification": ("SiglipConfig", {"num_labels": 7}),
    "BeitModel": ("BeitConfig", {"intermediate_size": 48, "use_relative_position_bias": True}),
    "BeitForImageClassification": (
        "BeitConfig",
        {"intermediate_size": 48, "use_shared_relative_position_bias": True, "use_mean_pooling": False},
    ),
    "BeitBackbone": (
        "BeitConfig",
        {"intermediate_size": 48, "use_relative_position_bias": True, "out_indices": [0, 2]},
    ),
    "Data2VecVisionModel": (
        "Data2VecVisionConfig",
        {"intermediate_size": 48, "use_absolute_position_embeddings": True, "use_shared_relative_position_bias": True},
    ),
    "Data2VecVisionForImageClassification": (
        "Data2VecVisionConfig",
        {"intermediate_size": 48, "use_relative_position_bias": True},
    ),
    **{
        f"{prefix}{suffix}": (f"{prefix}Config", {"out_indices": [1, 2]} if suffix == "Backbone" else {})
        for prefix in ("Swin", "Swinv2")
        for suffix in ("Model", "ForImageClassification", "Backbone")
    },
}
_HUGGINGFACE_SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 3,
    "num_labels": 7,
}


def _own(name: str, fields: dict[str, Any]) -> nn.Module:
    return build_model(name, **fields)


def _timm(name: str, fields: dict[str, Any]) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, **{**(_SWIN if name.startswith("swin") else _TIMM), **fields})
    return model


def _open_clip(fields: dict[str, Any], vision: dict[str, Any]) -> nn.Module:
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed: pip install open_clip_torch")
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    tower = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2, **vision}
    cls = open_clip.CustomTextCLIP if fields.pop("custom_text", False) else open_clip.CLIP
    model: nn.Module = cls(embed_dim=20, vision_cfg=tower, text_cfg=text, **fields)
    return model


def _torchvision(representation_size: int | None) -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 16, 2, 2, 32, 48, num_classes=7, representation_size=representation_size)


def _huggingface(name: str, config: str, fields: dict[str, Any]) -> nn.Module:
    import transformers

    options = {**(_HUGGINGFACE_SWIN if config.startswith("Swin") else _HUGGINGFACE), **fields}
    if config in ("CLIPConfig", "SiglipConfig"):
        options = {"vision_config": {**_HUGGINGFACE, "intermediate_size": 48}, "text_config": _TEXT, **fields}
    model: nn.Module = getattr(transformers, name.partition(",")[0])(getattr(transformers, config)(**options))
    return model


# image towers of open_clip
OPEN_CLIP: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "class token": ({}, {}),
    "quick GELU": ({"quick_gelu": True}, {"ls_init_value": 0.5, "patch_dropout": 0.5}),
    "mean, tokens": ({}, {"pool_type": "avg", "final_ln_after_pool": True, "output_tokens": True}),
    "all tokens": ({}, {"pool_type": "none", "no_ln_pre": True}),
}

# models of transformers of which only the image tower is accelerated
WITH_TEXT = {"CLIPModel": ("CLIPConfig", {"projection_dim": 20}), "SiglipModel": ("SiglipConfig", {})}

# name -> what builds it
BUILDERS: dict[str, Callable[[], nn.Module]] = {
    **{f"vitfast: {kind}": lambda parts=parts: _own(*parts) for kind, parts in OWN.items()},
    **{f"timm: {kind}": lambda parts=parts: _timm(*parts) for kind, parts in TIMM.items()},
    "torchvision": lambda: _torchvision(None),
    "torchvision: hidden head": lambda: _torchvision(20),
    **{f"open_clip: {kind}": lambda parts=parts: _open_clip(*parts).visual for kind, parts in OPEN_CLIP.items()},
    **{
        f"transformers: {name}": lambda name=name, parts=parts: _huggingface(name, *parts)
        for name, parts in HUGGINGFACE.items()
    },
}


# what an older version of the library lacks, and the version that has it
_SINCE = {
    "timm: RoPE, mixed": "1.0.30",  # before, not in float64
    "timm: RoPE, QK-norm": "1.0.30",
    "timm: Swin V2, padded windows": "1.0.31",
    "transformers: DINOv3ViTBackbone": "5",
}


def requires(library: str, version: str) -> None:
    """Skips a test with an older version of a library."""
    if Version(metadata.version(library)) < Version(version):
        pytest.skip(f"needs {library} {version}")


def accelerable(kind: str) -> nn.Module:
    """Builds one of ``BUILDERS`` in evaluation mode, with no parameter at its initial value."""
    library, _, name = kind.partition(": ")
    if kind in _SINCE:
        requires(library, _SINCE[kind])
    if library == "transformers" and name in WITH_TEXT:
        return shake(lambda: _huggingface(name, *WITH_TEXT[name]))
    if kind == "open_clip: CLIP":
        return shake(lambda: _open_clip({}, {}))
    if kind == "open_clip: CustomTextCLIP":
        return shake(
            lambda: _open_clip({"custom_text": True}, {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token"})
        )
    return shake(BUILDERS[kind])


def shake(build: Callable[[], nn.Module]) -> nn.Module:
    """Builds a model in evaluation mode, with no parameter at its initial value."""
    torch.manual_seed(0)
    model = build().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_small = parameter.dim() < 2 or "token" in name or "latent" in name or "pos" in name
            parameter += noise * (0.2 if is_small else 0.05)
    return model


def sample_images(model: nn.Module, batch: int = 3, seed: int = 0) -> Tensor:
    """Images that fit one of the models."""
    size = getattr(model, "img_size", 32)
    channels = getattr(model, "in_chans", 3)
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors in what a model returns."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def distance(results: Any, references: Any) -> float:
    """The largest relative L2 distance of a tensor of ``results`` to its reference, in float64 on the CPU."""
    pairs = zip(tensors_of(results), tensors_of(references), strict=True)
    return max(float((one.cpu().double() - other).norm() / other.norm()) for one, other in pairs)
