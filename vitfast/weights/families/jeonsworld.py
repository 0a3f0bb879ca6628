"""The PyTorch port of Google's models that fine-tunes them on CIFAR (github.com/jeonsworld/ViT-pytorch)."""

from __future__ import annotations

from vitfast.weights.family import Family
from vitfast.weights.key_map import Rule, affine, stacked_affine

_BLOCK = r"transformer\.encoder\.layer\.(\d+)\."

JEONSWORLD = Family(
    name="ViT-pytorch",
    signature=(r"transformer\.embeddings\.patch_embeddings\.weight", _BLOCK + r"attn\.query\.weight"),
    rules=(
        Rule(r"transformer\.embeddings\.cls_token", "cls_token"),
        Rule(r"transformer\.embeddings\.position_embeddings", "pos_embed"),
        *affine(r"transformer\.embeddings\.patch_embeddings", "patch_embed.proj"),
        *affine(_BLOCK + r"attention_norm", r"blocks.\1.norm1"),
        *stacked_affine([_BLOCK + rf"attn\.{part}" for part in ("query", "key", "value")], r"blocks.\1.attn.qkv"),
        *affine(_BLOCK + r"attn\.out", r"blocks.\1.attn.proj"),
        *affine(_BLOCK + r"ffn_norm", r"blocks.\1.norm2"),
        *affine(_BLOCK + r"ffn\.fc([12])", r"blocks.\1.mlp.fc\2"),
        *affine(r"transformer\.encoder\.encoder_norm", "norm"),
        *affine(r"head", "head"),
    ),
    # unlike Google's own code it computes the exact GELU
    fields={"layer_norm_eps": 1e-6, "gelu": "erf", "position_interpolation": "zoom_linear"},
    foreign=((r"transformer\.embeddings\.hybrid_model\..+", "a hybrid with a ResNet in front"),),
)
