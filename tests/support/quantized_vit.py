"""The table of what FP16_16, FP16_32 and TF32 round, written out for a plain ViT, apart from the package's own code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from vitfast import ops

Round = Callable[[Tensor], Tensor]


class RoundedViT:
    """Computes a ViT with timm's keys, ``head_type="linear"``, and keeps every module's output.

    What is not rounded, LayerNorm and attention, is vitfast's operator, so that results can be compared bit by bit.

    Args:
        state: weights.
        num_heads: attention heads.
        operand: rounds what linear layers and LayerNorms read.
        weight: rounds the weights of linear layers.
        result: rounds what linear layers and LayerNorms write.
        stored: rounds what additions and concatenations write.
        gamma: rounds the weights of LayerNorms.
    """

    def __init__(
        self,
        state: dict[str, Tensor],
        num_heads: int,
        *,
        operand: Round,
        weight: Round,
        result: Round,
        stored: Round,
        gamma: Round,
    ) -> None:
        self.state, self.num_heads = state, num_heads
        self.operand, self.weight, self.result, self.stored, self.gamma = operand, weight, result, stored, gamma
        self.outputs: dict[str, Tensor] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        state = self.state
        patch = state["patch_embed.proj.weight"].shape[-1]
        patches = F.unfold(images, patch, stride=patch).transpose(1, 2)  # [B, N, in_chans * P * P]
        x = self._linear("patch_embed.proj", patches)
        x = self.stored(torch.cat([state["cls_token"].expand(len(images), -1, -1), x], dim=1))
        x = self.stored(x + state["pos_embed"])
        depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
        for index in range(depth):
            x = self._block(f"blocks.{index}", x)
        return self._linear("head", self._norm("norm", x)[:, 0])

    def _block(self, name: str, x: Tensor) -> Tensor:
        qkv = self._linear(f"{name}.attn.qkv", self._norm(f"{name}.norm1", x))
        attended = ops.attention_packed(qkv.unflatten(-1, (3, self.num_heads, -1))).flatten(-2)
        x = self.stored(x + self._linear(f"{name}.attn.proj", attended))
        hidden = F.gelu(self._linear(f"{name}.mlp.fc1", self._norm(f"{name}.norm2", x)))
        x = self.stored(x + self._linear(f"{name}.mlp.fc2", hidden))
        self.outputs[name] = x
        return x

    def _linear(self, name: str, x: Tensor) -> Tensor:
        weight = self.state[f"{name}.weight"].flatten(1)
        out = self.result(F.linear(self.operand(x), self.weight(weight), self.state[f"{name}.bias"]))
        self.outputs[name] = out
        return out

    def _norm(self, name: str, x: Tensor) -> Tensor:
        gamma, beta = self.gamma(self.state[f"{name}.weight"]), self.state[f"{name}.bias"]
        out = self.result(ops.layer_norm(self.operand(x), gamma, beta, 1e-6))
        self.outputs[name] = out
        return out
