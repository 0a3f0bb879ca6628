"""From images to the tokens of an accelerated model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast import ops
from vitfast.inference.description import Embedding, Patches, TokenMixer, TokensToToken
from vitfast.inference.packed.packed_block import PackedMlp, PackedNormLinear, path_of
from vitfast.inference.packed.packer import Packer
from vitfast.layers.performer_attention import performer_attention
from vitfast.layers.soft_split import SoftSplit
from vitfast.ops.packed import has_packed


class PackedPatches(nn.Module):
    """Projects patches that do not overlap.

    Args:
        described: the patches.
        packer: packs.
    """

    def __init__(self, described: Patches, packer: Packer) -> None:
        super().__init__()
        self.image_size = described.image_size
        self.patch_size = described.patch_size
        self.in_chans = described.in_chans
        self.padding = described.padding
        order = None
        if described.order == "channels_last":
            sizes = (*described.patch_size, described.in_chans)
            order = torch.arange(described.linear.in_features).view(sizes).permute(2, 0, 1).flatten()
        normalization = packer.normalization
        precision = described.linear.precision or packer.precision
        # zeros around an image are zeros after the normalisation; FP16_32 rounds normalized images
        self.reads_pixels = (
            normalization is not None and order is None and max(self.padding) <= 0 and precision != "fp16_32"
        )
        if normalization is not None and self.reads_pixels:
            pixels = described.patch_size[0] * described.patch_size[1]
            scale, shift = (values.repeat_interleave(pixels) for values in normalization.coefficients())
            self.linear = packer.linear_of_pixels(described.linear, scale, shift)
        else:
            self.linear = packer.linear(described.linear, column_order=order)
        self.norm = packer.optional_norm(described.norm)

    @property
    def num_patches(self) -> int:
        """Patches of an image of the usual size."""
        left, right, above, below = self.padding
        (height, width), (rows, columns) = self.image_size, self.patch_size
        return ((height + above + below) // rows) * ((width + left + right) // columns)

    @property
    def path(self) -> str:
        """What runs it."""
        return path_of(self.linear)

    def padded(self, images: Tensor) -> Tensor:
        """Pads or cuts ``images`` ``[B, in_chans, H, W]`` so that patches cover them."""
        if tuple(images.shape[-2:]) == self.image_size:
            return F.pad(images, self.padding) if any(self.padding) else images
        rows, columns = (size // patch * patch for size, patch in zip(images.shape[-2:], self.patch_size, strict=True))
        return images[..., :rows, :columns]

    def forward(self, images: Tensor) -> Tensor:
        """Embeds ``images`` ``[B, in_chans, H, W]``; returns ``[B, N, C]``."""
        rows, columns = self.patch_size
        patches = self.padded(images).unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [B, N, in_chans * rows * columns]
        out: Tensor = self.norm(self.linear(patches))
        return out


class PackedTokenMixer(nn.Module):
    """An attention layer of the tokens-to-token module.

    Args:
        described: the layer.
        packer: packs.
    """

    projection: Tensor | None

    def __init__(self, described: TokenMixer, packer: Packer) -> None:
        super().__init__()
        self.linear = PackedNormLinear(packer.norm(described.norm1), packer.linear(described.linear))
        self.scale = described.scale
        self.register_buffer("projection", packer.keep(described.projection))
        self.proj = packer.linear(described.proj)
        self.mlp = PackedMlp(described.norm2, described.mlp, packer)

    def forward(self, x: Tensor) -> Tensor:
        """Transforms tokens ``x`` ``[B, N, C]`` to ``[B, N, D]``."""
        mixed = self.linear(x)
        v = mixed.chunk(3, dim=-1)[2].contiguous()
        if self.projection is not None:
            k, q, _ = mixed.chunk(3, dim=-1)
            attended = performer_attention(q, k, v, self.projection)
        else:
            attended = ops.attention_packed(mixed.unflatten(-1, (3, 1, -1)), scale=self.scale).squeeze(2)
        x = self.proj(attended, residual=v)
        out: Tensor = self.mlp(x, x)
        return out


class PackedTokensToToken(nn.Module):
    """Overlapping patches in three steps.

    Args:
        described: the module.
        packer: packs.
    """

    def __init__(self, described: TokensToToken, packer: Packer) -> None:
        super().__init__()
        self.image_size = described.image_size
        self.in_chans = described.in_chans
        self.splits: Any = nn.ModuleList(SoftSplit(one.patch_size, one.stride, one.padding) for one in described.splits)
        self.mixers = nn.ModuleList(PackedTokenMixer(one, packer) for one in described.mixers)
        self.project = packer.linear(described.project)

    @property
    def num_patches(self) -> int:
        """Tokens of an image of the usual size."""
        grid = self.image_size[0]
        for split in self.splits:
            grid = split.grid_size(grid)
        return grid**2

    @property
    def path(self) -> str:
        """What runs it."""
        return f"{path_of(self.project)}, tokens to tokens"

    def forward(self, images: Tensor) -> Tensor:
        """Turns ``images`` ``[B, in_chans, size, size]`` into tokens ``[B, N, C]``."""
        x, grid = images, images.shape[-1]
        for split, mixer in zip(self.splits, [*self.mixers, self.project], strict=True):
            tokens = mixer(split(x))
            grid = split.grid_size(grid)
            x = tokens.transpose(1, 2).unflatten(2, (grid, grid))
        return tokens


class PackedEmbedding(nn.Module):
    """Puts tokens before the patches and adds the positions.

    Args:
        described: the embedding.
        packer: packs.
    """

    prefix: Tensor
    positions: Tensor | None

    def __init__(self, described: Embedding, packer: Packer) -> None:
        super().__init__()
        norm_after_patches = False
        if isinstance(described.patches, Patches):
            norm_after_patches = described.patches.norm is not None
            self.patches: Any = PackedPatches(described.patches, packer)
        else:
            self.patches = PackedTokensToToken(described.patches, packer)
        is_plain = isinstance(self.patches, PackedPatches)
        self.resize = described.resize
        self.normalization = packer.normalization
        channels = self.patches.linear.out_features if is_plain else self.patches.project.out_features
        prefix = torch.cat([torch.empty(1, 0, channels), *(token.detach().cpu() for token in described.prefix)], dim=1)
        positions = packer.keep(described.positions)
        self.positioned = 0 if positions is None else positions.shape[1] - self.patches.num_patches
        if positions is not None:
            prefix[:, : self.positioned] += positions[:, : self.positioned].cpu()
        self.register_buffer("prefix", prefix[0].to(packer.device))  # [T, C], positions added
        self.register_buffer("positions", None if positions is None else positions[0, self.positioned :])  # [N, C]
        self.pre_norm = packer.optional_norm(described.pre_norm)
        self.is_fused = is_plain and not norm_after_patches and has_packed("packed_patch_embed", packer.device.type)

    @property
    def path(self) -> str:
        """What runs it."""
        return f"one packed operator, {self.patches.linear.precision}" if self.is_fused else str(self.patches.path)

    def check(self, images: Tensor) -> None:
        """Checks the shape of images.

        Raises:
            ValueError: it is another than ``[B, in_chans, H, W]`` of this model.
        """
        sizes = (self.patches.in_chans, *self.patches.image_size)
        wanted = f"[B, {sizes[0]}, {sizes[1]}, {sizes[2]}]" if self.resize == "no" else f"[B, {sizes[0]}, H, W]"
        fits = images.dim() == 4 and images.shape[1] == sizes[0]
        if not fits or (self.resize == "no" and tuple(images.shape[2:]) != sizes[1:]):
            raise ValueError(f"images must have shape {wanted}, got {list(images.shape)}; resize them")
        if self.resize == "bicubic_antialias" and any(
            size % patch for size, patch in zip(images.shape[2:], self.patches.patch_size, strict=True)
        ):
            raise ValueError(
                f"images must have sides that are multiples of {self.patches.patch_size}, got {list(images.shape)}"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Embeds ``images`` ``[B, in_chans, H, W]``, float32 or, with a normalisation, uint8: ``[B, T + N, C]``."""
        positions = self._positions(images)
        if self.normalization is not None:
            images = self._prepared(images)
        if self.is_fused:
            patches = self.patches
            tokens = torch.ops.vitfast.packed_patch_embed.default(
                patches.padded(images).contiguous(),
                patches.linear.packed,
                patches.linear.bias,
                patches.linear.out_features,
                *patches.patch_size,
                None,
                self.prefix,
                positions,
                patches.linear.precision,
            )
        else:
            tokens = self.patches(images)
            if positions is not None:
                tokens = tokens + positions
            tokens = torch.cat([self.prefix.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        out: Tensor = self.pre_norm(tokens)
        return out

    def _prepared(self, images: Tensor) -> Tensor:
        """Normalizes pixels where the projection does not read them as they are."""
        assert self.normalization is not None
        if not getattr(self.patches, "reads_pixels", False):
            return self.normalization.apply(images)
        return images if self.is_fused else images.to(torch.float32)

    def _positions(self, images: Tensor) -> Tensor | None:
        """The positions ``[N, C]`` of the patches of images of this size."""
        patches = self.patches
        if self.positions is None or tuple(images.shape[2:]) == patches.image_size:
            return self.positions
        grid, usual = (
            tuple(size // patch for size, patch in zip(sizes, patches.patch_size, strict=True))
            for sizes in (images.shape[2:], patches.image_size)
        )
        as_image = self.positions.unflatten(0, usual).permute(2, 0, 1).unsqueeze(0)
        antialias = self.resize == "bicubic_antialias"
        resized = F.interpolate(as_image, size=grid, mode="bicubic", align_corners=False, antialias=antialias)
        return resized[0].flatten(1).t().contiguous()
