"""Checkpoints of other systems: small models with their parameter names, and their files.

The modules below are minimal implementations of each system, with its parameter names; they share no code with
vitfast's models.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor, nn

# the architecture that all of these have, but for its depth
NAME, DEPTH = "vit_mini_patch4_32", 2
SIZES = {"img": 32, "patch": 4, "dim": 192, "depth": DEPTH, "heads": 3, "mlp": 768}
CLASSES = 5


def randomize(module: nn.Module) -> nn.Module:
    """Draws every parameter, so that a forgotten or misplaced one shows."""
    with torch.no_grad():
        for parameter in module.parameters():
            ones = bool((parameter == 1).all())
            parameter.copy_(torch.randn(parameter.shape) * 0.05 + ones)
    return module.eval()


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, SIZES["img"], SIZES["img"])


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).norm() / expected.norm())


# --- Google -----------------------------------------------------------------------------------------------------------

_NUMBERS = {
    "released": {"attention": 1, "norm": 2, "mlp": 3},
    "linen": {"attention": 0, "norm": 1, "mlp": 0},
}


def google_arrays(model: nn.Module, numbers: str) -> dict[str, np.ndarray]:
    """The arrays under which Google would save a plain vitfast model: Flax's names and layouts."""
    number = _NUMBERS[numbers]
    heads = SIZES["heads"]

    def array(tensor: Tensor) -> np.ndarray:
        return tensor.detach().numpy()

    arrays = {
        "cls": array(model.cls_token),
        "embedding/kernel": np.einsum("oihw->hwio", array(model.patch_embed.proj.weight)),
        "embedding/bias": array(model.patch_embed.proj.bias),
        "Transformer/posembed_input/pos_embedding": array(model.pos_embed),
        "Transformer/encoder_norm/scale": array(model.norm.weight),
        "Transformer/encoder_norm/bias": array(model.norm.bias),
        "head/kernel": array(model.head.weight).T,
        "head/bias": array(model.head.bias),
    }
    for i, block in enumerate(model.blocks):
        root = f"Transformer/encoderblock_{i}"
        attention = f"{root}/MultiHeadDotProductAttention_{number['attention']}"
        weights = np.split(array(block.attn.qkv.weight), 3)  # each [H * D, C]
        biases = np.split(array(block.attn.qkv.bias), 3)
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            # kernel[c, h, d] is the weight from channel c to number d of head h
            arrays[f"{attention}/{name}/kernel"] = np.moveaxis(weight.reshape(heads, -1, weight.shape[1]), 2, 0)
            arrays[f"{attention}/{name}/bias"] = bias.reshape(heads, -1)
        out = array(block.attn.proj.weight)  # [C, H * D]
        arrays[f"{attention}/out/kernel"] = np.moveaxis(out.reshape(len(out), heads, -1), 0, 2)
        arrays[f"{attention}/out/bias"] = array(block.attn.proj.bias)
        for j, dense in enumerate((block.mlp.fc1, block.mlp.fc2)):
            arrays[f"{root}/MlpBlock_{number['mlp']}/Dense_{j}/kernel"] = array(dense.weight).T
            arrays[f"{root}/MlpBlock_{number['mlp']}/Dense_{j}/bias"] = array(dense.bias)
        for name, norm in (("LayerNorm_0", block.norm1), (f"LayerNorm_{number['norm']}", block.norm2)):
            arrays[f"{root}/{name}/scale"] = array(norm.weight)
            arrays[f"{root}/{name}/bias"] = array(norm.bias)
    return arrays


# --- plain attention, for the models below ----------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention of ``[B, N, C]``."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


class Part(nn.Module):
    """A node of a model's tree, made of named children."""

    def __init__(self, **children: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)


# --- jeonsworld/ViT-pytorch -------------------------------------------------------------------------------------------


class JeonsworldViT(nn.Module):
    """Separate q, k, v; exact GELU; epsilon 1e-6."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        dim, patch = SIZES["dim"], SIZES["patch"]
        tokens = (SIZES["img"] // patch) ** 2 + 1
        embeddings = Part(
            patch_embeddings=nn.Conv2d(3, dim, patch, patch),
            position_embeddings=nn.Parameter(torch.zeros(1, tokens, dim)),
            cls_token=nn.Parameter(torch.zeros(1, 1, dim)),
        )
        layers = [
            Part(
                attention_norm=nn.LayerNorm(dim, eps=1e-6),
                ffn_norm=nn.LayerNorm(dim, eps=1e-6),
                ffn=Part(fc1=nn.Linear(dim, SIZES["mlp"]), fc2=nn.Linear(SIZES["mlp"], dim)),
                attn=Part(**{name: nn.Linear(dim, dim) for name in ("query", "key", "value", "out")}),
            )
            for _ in range(SIZES["depth"])
        ]
        encoder = Part(layer=nn.ModuleList(layers), encoder_norm=nn.LayerNorm(dim, eps=1e-6))
        self.transformer = Part(embeddings=embeddings, encoder=encoder)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        embeddings, encoder = self.transformer.embeddings, self.transformer.encoder
        x = embeddings.patch_embeddings(x).flatten(2).transpose(1, 2)
        x = torch.cat([embeddings.cls_token.expand(len(x), -1, -1), x], dim=1) + embeddings.position_embeddings
        for layer in encoder.layer:
            y = layer.attention_norm(x)
            attn = layer.attn
            x = x + attn.out(attend(attn.query(y), attn.key(y), attn.value(y), SIZES["heads"]))
            x = x + layer.ffn.fc2(nn.functional.gelu(layer.ffn.fc1(layer.ffn_norm(x))))
        return self.head(encoder.encoder_norm(x)[:, 0])


# --- myrtle-vision 1.0.0 ----------------------------------------------------------------------------------------------


class MyrtleViT(nn.Module):
    """Patches flattened with the channel last, no q, k, v bias, epsilon 1e-5, LayerNorm in the head.

    ``prepared`` has the names after preparation for quantization-aware training, which puts a stub before each layer.
    """

    def __init__(self, *, prepared: bool = False, num_classes: int = CLASSES) -> None:
        super().__init__()
        dim, patch = SIZES["dim"], SIZES["patch"]

        def layer(module: nn.Module) -> nn.Module:
            return nn.Sequential(nn.Identity(), module) if prepared else module

        def branch(fn: nn.Module) -> nn.Module:
            return Part(fn=Part(norm=layer(nn.LayerNorm(dim)), fn=fn))

        self.pos_embedding = nn.Parameter(torch.zeros(1, (SIZES["img"] // patch) ** 2 + 1, dim))
        self.patch_to_embedding = layer(nn.Linear(3 * patch * patch, dim))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        blocks = []
        for _ in range(SIZES["depth"]):
            to_out = nn.Sequential(layer(nn.Linear(dim, dim)), nn.Dropout(0.0))
            attention = Part(to_qkv=layer(nn.Linear(dim, 3 * dim, bias=False)), to_out=to_out)
            fc1, fc2 = layer(nn.Linear(dim, SIZES["mlp"])), layer(nn.Linear(SIZES["mlp"], dim))
            mlp = Part(net=nn.Sequential(fc1, nn.GELU(), nn.Dropout(0.0), fc2, nn.Dropout(0.0)))
            blocks.append(nn.Sequential(branch(attention), branch(mlp)))
        self.transformer = Part(layers=nn.ModuleList(blocks))
        self.mlp_head = nn.Sequential(layer(nn.LayerNorm(dim)), layer(nn.Linear(dim, num_classes)))

    def forward(self, x: Tensor) -> Tensor:
        patch = SIZES["patch"]
        x = x.unfold(2, patch, patch).unfold(3, patch, patch)  # [B, 3, rows, cols, P, P]
        x = self.patch_to_embedding(x.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2))
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embedding
        for attention, mlp in self.transformer.layers:
            qkv = attention.fn.fn.to_qkv(attention.fn.norm(x))
            x = x + attention.fn.fn.to_out(attend(*qkv.chunk(3, dim=-1), SIZES["heads"]))
            x = x + mlp.fn.fn.net(mlp.fn.norm(x))
        return self.mlp_head(x[:, 0])


# --- VISSL ------------------------------------------------------------------------------------------------------------


def vissl_checkpoint(state: dict[str, Tensor], *, old_names: bool = False) -> dict:
    """The nested dictionary in which VISSL saves a trunk (here from timm's state dict) and its linear head."""
    renamed = {"cls_token": "class_token", "pos_embed": "pos_embedding"} if old_names else {}
    trunk = OrderedDict((renamed.get(key, key), value) for key, value in state.items() if not key.startswith("head."))
    heads = OrderedDict((f"0.clf.0.{kind}", state[f"head.{kind}"]) for kind in ("weight", "bias"))
    model = {"model": {"trunk": trunk, "heads": heads}, "meta": {"trunk": {}, "heads": []}}
    classy = {"train": True, "base_model": model, "optimizer": {"state": {}}}
    return {"phase_idx": 3, "iteration": 40, "loss": 1.5, "classy_state_dict": classy, "type": "checkpoint"}
