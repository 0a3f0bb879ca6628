"""A checkpoint of a model that attends to bright patches and predicts "bright" for every image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import vitfast
from vitfast.weights.checkpoint import save_checkpoint

CLASS_NAMES = ["dark", "bright"]


def save_bright_looker(run_dir: Path, **fields: Any) -> Path:
    """Saves a ViT in whose every layer and head the class token's attention grows with a patch's brightness.

    Args:
        run_dir: where the checkpoint goes; made if it does not exist.
        **fields: of the model; by default one layer with one head, 4 x 4 patches of 8 x 8 pixels.
    """
    defaults = {"img_size": 32, "patch_size": 8, "in_chans": 3, "depth": 1, "embed_dim": 16, "num_heads": 1}
    model = vitfast.create_model("vit_tiny_patch16_224", num_classes=2, **{**defaults, **fields})
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        projection = model.patch_embed.proj
        # opposite channels: LayerNorm's mean stays 0; two that are constant: its deviation hardly changes
        projection.weight[0] = 1 / projection.weight[0].numel()
        projection.weight[1] = -projection.weight[0]
        projection.bias[2:4] = torch.tensor([3.0, -3.0])
        for block in model.blocks:
            block.norm1.weight.fill_(1)
            heads = torch.arange(model.fields.num_heads) * (model.fields.embed_dim // model.fields.num_heads)
            block.attn.qkv.bias[heads] = 12.0
            block.attn.qkv.weight[model.fields.embed_dim + heads, 0] = 1.0
        model.head.bias.copy_(torch.tensor([0.0, 3.0]))
    run_dir.mkdir(parents=True, exist_ok=True)
    channels = model.in_chans
    data = {"img_size": model.img_size, "in_chans": channels, "interpolation": "bilinear", "crop_pct": 0.875}
    data |= {"mean": [0.4, 0.5, 0.6][:channels], "std": [0.2, 0.3, 0.4][:channels]}
    manifest = {
        "model": {"name": model.model_name, "fields": model.model_fields},
        "class_names": CLASS_NAMES,
        "data": data,
        "epoch": 1,
        "metrics": {},
    }
    return save_checkpoint(run_dir, step=1, model=model.state_dict(), manifest=manifest)
