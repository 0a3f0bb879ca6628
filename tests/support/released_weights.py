"""Checkpoints of models with exits, of T2T-ViT and of VISSL's ConViT, under the original parameter names.

The names are copied from the original code; nothing is taken from vitfast's models.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

T2T_DIM, T2T_DEPTH, T2T_MLP, T2T_CLASSES = 24, 2, 48, 5
DVT_GRIDS = (2, 3, 4)
RELATION = 2 * 3  # layers times heads


def _draw(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        ones = key.rsplit(".", 2)[-2].startswith("norm") and key.endswith("weight") if key.count(".") else False
        state[key] = torch.randn(shape, generator=generator) * 0.1 + ones
    return state


def _linear(name: str, inputs: int, outputs: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _performer(name: str, inputs: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.w": (width // 2, width),
        **_linear(f"{name}.kqv", inputs, 3 * width),
        **_linear(f"{name}.proj", width, width),
        **_norm(f"{name}.norm1", inputs),
        **_norm(f"{name}.norm2", width),
        **_linear(f"{name}.mlp.0", width, width),
        **_linear(f"{name}.mlp.2", width, width),
    }


def _tokens_to_token(name: str, patch: int, dim: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        **_performer(f"{name}.attention1", 3 * patch * patch, width),
        **_performer(f"{name}.attention2", 9 * width, width),
        **_linear(f"{name}.project", 9 * width, dim),
    }


def _block(name: str, dim: int, mlp: int, *, qkv_bias: bool, reuse: int = 0) -> dict[str, tuple[int, ...]]:
    return {
        **_norm(f"{name}.norm1", dim),
        **_linear(f"{name}.attn.qkv", dim, 3 * dim, qkv_bias),
        **_linear(f"{name}.attn.proj", dim, dim),
        **_norm(f"{name}.norm2", dim + reuse),
        **_linear(f"{name}.mlp.fc1", dim + reuse, mlp),
        **_linear(f"{name}.mlp.fc2", mlp, dim),
    }


def t2t_state(*, patch: int = 7, grid: int = 2) -> dict[str, Tensor]:
    """A T2T-ViT of width 24, depth 2, MLP ratio 2, tokens of width 8."""
    shapes = {
        "cls_token": (1, 1, T2T_DIM),
        "pos_embed": (1, grid * grid + 1, T2T_DIM),
        **_tokens_to_token("tokens_to_token", patch, T2T_DIM, 8),
    }
    for index in range(T2T_DEPTH):
        shapes |= _block(f"blocks.{index}", T2T_DIM, T2T_MLP, qkv_bias=False)
    return _draw(shapes | _norm("norm", T2T_DIM) | _linear("head", T2T_DIM, T2T_CLASSES))


def dvt_state(backbone: str, *, classes: int = 5) -> dict[str, Tensor]:
    """A DVT of width 24, depth 2, 3 heads, MLP ratio 2, with exits at 2 x 2, 3 x 3 and 4 x 4 tokens."""
    over_deit = backbone == "vit"
    shapes: dict[str, Any] = {}
    for index, name in enumerate(("less_less_token", "less_token", "normal_token")):
        shapes[f"{name}.cls_token"] = (1, 1, T2T_DIM)
        shapes[f"{name}.pos_embed"] = (1, DVT_GRIDS[index] ** 2 + 1, T2T_DIM)
        if over_deit:
            patch = (16, 11, 8)[index]
            shapes |= {f"{name}.patch_embed.proj.weight": (T2T_DIM, 3, patch, patch)}
            shapes |= {f"{name}.patch_embed.proj.bias": (T2T_DIM,)}
        else:
            shapes |= _tokens_to_token(f"{name}.tokens_to_token", (14, 11, 7)[index], T2T_DIM, 8)
        if index:
            relation = f"{name}.relation_reuse_conv"
            shapes |= {f"{relation}.0.weight": (3 * RELATION, RELATION, 1, 1), f"{relation}.0.bias": (3 * RELATION,)}
            shapes |= {f"{relation}.2.weight": (RELATION, 3 * RELATION, 1, 1), f"{relation}.2.bias": (RELATION,)}
        for block in range(2):
            root = f"{name}.blocks.{block}"
            reuse = 4 if index else 0
            shapes |= _block(root, T2T_DIM, T2T_MLP, qkv_bias=over_deit, reuse=reuse)
            if index:
                mlp = f"{root}.feature_resuse_mlp"
                shapes |= _norm(f"{mlp}.0", T2T_DIM)
                shapes |= _linear(f"{mlp}.1.fc1", T2T_DIM, 6) | _linear(f"{mlp}.1.fc2", 6, reuse)
        shapes |= _norm(f"{name}.norm", T2T_DIM) | _linear(f"{name}.head", T2T_DIM, classes)
    return _draw(shapes)


def vissl_convit_trunk(state: dict[str, Tensor], repeats: int) -> dict[str, Tensor]:
    """The trunk in VISSL's names and layouts of a ConViT in timm's, whose positional features are not repeated.

    The weights of the repetitions differ; their mean is the one weight.
    """
    trunk = {}
    for key, value in state.items():
        if key.startswith("head."):
            continue
        key = key.replace("mlp.fc", "mlp.linear_").replace("gating_param", "alpha")
        key = {"cls_token": "class_token", "pos_embed": "pos_embedding"}.get(key, key)
        if key.endswith("alpha"):
            value = value.reshape(1, -1, 1, 1)
        if key.endswith("pos_proj.weight"):
            noise = torch.randn(len(value), 3, repeats)
            repeated = value[:, :, None] + noise - noise.mean(dim=2, keepdim=True)
            value = repeated.flatten(1)
        trunk[key] = value
    return trunk
