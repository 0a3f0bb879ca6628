"""torchvision's ``VisionTransformer``."""

from __future__ import annotations

from vitfast.weights.key_tables.key_table import KeyTable, Rule, affine

_BLOCK = r"encoder\.layers\.encoder_layer_(\d+)\."

TORCHVISION = KeyTable(
    name="torchvision",
    signature=(r"conv_proj\.weight", _BLOCK + r".+"),
    rules=(
        Rule(r"class_token", "cls_token"),
        Rule(r"encoder\.pos_embedding", "pos_embed"),
        *affine(r"conv_proj", "patch_embed.proj"),
        *affine(_BLOCK + r"ln_([12])", r"blocks.\1.norm\2"),
        Rule(_BLOCK + r"self_attention\.in_proj_(weight|bias)", r"blocks.\1.attn.qkv.\2"),
        *affine(_BLOCK + r"self_attention\.out_proj", r"blocks.\1.attn.proj"),
        *affine(_BLOCK + r"mlp\.(?:0|linear_1)", r"blocks.\1.mlp.fc1"),  # linear_1, linear_2 until torchvision 0.13
        *affine(_BLOCK + r"mlp\.(?:3|linear_2)", r"blocks.\1.mlp.fc2"),
        *affine(r"encoder\.ln", "norm"),
        *affine(r"heads\.pre_logits", "pre_logits.fc"),
        *affine(r"heads\.head", "head"),
    ),
    fields={"layer_norm_eps": 1e-6, "gelu": "erf", "position_interpolation": "bicubic_aligned"},
    unsupported=((r"conv_proj\.conv_bn_relu_.+", "a model with a convolutional stem"),),
)

TABLES: tuple[KeyTable, ...] = (TORCHVISION,)
