"""The tokens-to-token module: from an image to tokens by three splits into overlapping patches."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from vitfast import ops
from vitfast.layers.layer_norm import LayerNorm
from vitfast.layers.mlp import Mlp
from vitfast.layers.stored_result import ResidualAdd
from vitfast.layers.token_performer import TokenPerformer
from vitfast.ops.autocast import keep_float32

TokensType = Literal["performer", "transformer"]


class SoftSplit(nn.Unfold):
    """Cuts an image, or a grid of tokens, into overlapping P x P patches (Yuan et al., 2021, section 3.1).

    Args:
        patch_size: height and width P of a patch.
        stride: distance between neighbouring patches.
        padding: zeros added on each side.
    """

    def __init__(self, patch_size: int, stride: int, padding: int) -> None:
        super().__init__(patch_size, padding=padding, stride=stride)

    def forward(self, images: Tensor) -> Tensor:
        """Flattens the patches of ``images`` ``[B, C, size, size]`` to ``[B, N, C * P * P]``, row by row."""
        return super().forward(images).transpose(1, 2)


class TokenAttention(nn.Module):
    """Self-attention with one head that narrows the tokens.

    Args:
        dim: channels C of the input. The logits are divided by its square root, as in the original code, though q and k
            have ``token_dim`` channels.
        token_dim: channels D of the output.
    """

    def __init__(self, dim: int, token_dim: int) -> None:
        super().__init__()
        self.scale = dim**-0.5
        self.qkv = nn.Linear(dim, 3 * token_dim, bias=False)
        self.proj = nn.Linear(token_dim, token_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Attends over the tokens of ``x`` ``[B, N, C]``; returns both terms ``[B, N, D]`` before the addition."""
        qkv = self.qkv(x).unflatten(-1, (3, 1, -1))  # [B, N, 3, 1, D]
        with keep_float32(qkv):
            out = ops.attention_packed(qkv, scale=self.scale)  # [B, N, 1, D]
        return self.proj(out.squeeze(2)), qkv[:, :, 2, 0]


class TokenTransformer(nn.Module):
    """Mixes and narrows tokens: softmax attention with one head, then an MLP (Yuan et al., 2021, section 3.1).

    Parameter names are those of the original code; arguments as in ``TokenPerformer``.
    """

    def __init__(self, dim: int, token_dim: int, *, layer_norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, layer_norm_eps)
        self.attn = TokenAttention(dim, token_dim)
        self.norm2 = LayerNorm(token_dim, layer_norm_eps)
        self.mlp = Mlp(token_dim, token_dim)
        self.add = ResidualAdd()

    def forward(self, x: Tensor) -> Tensor:
        """Transforms tokens ``x`` ``[B, N, C]`` to ``[B, N, D]``."""
        attended, v = self.attn(self.norm1(x))
        x, normalized = self.add.add_and_normalize(v, attended, self.norm2)
        return self.add.add_mlp(x, normalized, self.mlp)


class TokensToToken(nn.Module):
    """The tokens-to-token module (Yuan et al., 2021, section 3.1), with the original code's parameter names.

    Soft split, attention, soft split, attention, soft split, projection. The second and third split have 3 x 3 patches
    with stride 2 and halve the grid.

    Args:
        patch_size, patch_stride, patch_padding: of the first split, in pixels.
        in_chans: channels of an image.
        dim: channels C of a token.
        token_dim: channels of the intermediate tokens.
        tokens_type: kind of the two attention layers.
        layer_norm_eps: epsilon of every LayerNorm.
        drop_rate: dropout of the performers; the transformers have none.
    """

    def __init__(
        self,
        patch_size: int,
        patch_stride: int,
        patch_padding: int,
        in_chans: int,
        dim: int,
        *,
        token_dim: int = 64,
        tokens_type: TokensType = "performer",
        layer_norm_eps: float = 1e-5,
        drop_rate: float = 0.1,
    ) -> None:
        super().__init__()

        def attention(in_dim: int) -> TokenPerformer | TokenTransformer:
            if tokens_type == "transformer":
                return TokenTransformer(in_dim, token_dim, layer_norm_eps=layer_norm_eps)
            return TokenPerformer(in_dim, token_dim, layer_norm_eps=layer_norm_eps, drop_rate=drop_rate)

        self.soft_split0 = SoftSplit(patch_size, patch_stride, patch_padding)
        self.attention1 = attention(in_chans * patch_size**2)
        self.soft_split1 = SoftSplit(3, 2, 1)
        self.attention2 = attention(token_dim * 9)
        self.soft_split2 = SoftSplit(3, 2, 1)
        self.project = nn.Linear(token_dim * 9, dim)

    def forward(self, images: Tensor) -> Tensor:
        """Turns ``images`` ``[B, in_chans, size, size]`` into tokens ``[B, N, C]``, the grid row by row."""
        is_fixed = not torch.compiler.is_compiling()  # a program for any number of images has no loop over them
        if is_fixed and images.device.type == "cpu" and not torch.is_grad_enabled() and images.shape[0] > 1:
            # The patches repeat each pixel many times. Those of a whole batch exceed the CPU's cache and are allocated
            # from the system each time, so images are processed one by one.
            tokens = torch.cat([self._mixed_tokens(image) for image in images.split(1)])
        else:
            tokens = self._mixed_tokens(images)
        return self.project(self.soft_split2(_as_image(tokens)))

    def _mixed_tokens(self, images: Tensor) -> Tensor:
        """Splits and attends twice; returns ``[B, G * G, token_dim]``."""
        tokens = self.attention1(self.soft_split0(images))
        return self.attention2(self.soft_split1(_as_image(tokens)))


def tokens_to_token_grid_size(img_size: int, patch_size: int, patch_stride: int, patch_padding: int) -> int:
    """Returns the tokens along a side that ``TokensToToken`` makes of an image; below 1 if the image is too small."""
    grid = (img_size + 2 * patch_padding - patch_size) // patch_stride + 1
    return max(-(-grid // 4), 0)  # halved twice, rounded up


def _as_image(tokens: Tensor) -> Tensor:
    """Arranges tokens ``[B, G * G, C]`` as ``[B, C, G, G]``."""
    grid_size = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (grid_size, grid_size))
