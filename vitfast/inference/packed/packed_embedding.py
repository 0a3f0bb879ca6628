"""From images to the tokens of an accelerated model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.inference.ir import (
    EmbeddingSpec,
    PatchesSpec,
    TokensToTokenSpec,
)
from vitfast.inference.packed.packed_conv_stem import PackedConvStem
from vitfast.inference.packed.packed_patches import PackedPatches
from vitfast.inference.packed.packed_tokens_to_token import PackedTokensToToken
from vitfast.inference.packed.packer import Packer


class PackedEmbedding(nn.Module):
    """Puts tokens before the patches and adds the positions.

    Args:
        described: the embedding.
        packer: packs.
    """

    prefix: Tensor
    positions: Tensor | None
    pixel_scale: Tensor | None
    pixel_shift: Tensor | None

    def __init__(self, described: EmbeddingSpec, packer: Packer) -> None:
        super().__init__()
        norm_after_patches = False
        if isinstance(described.patches, PatchesSpec):
            norm_after_patches = described.patches.norm is not None
            self.patches: Any = PackedPatches(described.patches, packer)
        elif isinstance(described.patches, TokensToTokenSpec):
            self.patches = PackedTokensToToken(described.patches, packer)
        else:
            self.patches = PackedConvStem(described.patches, packer)
        is_plain = isinstance(self.patches, PackedPatches)
        self.resize = described.resize
        self.normalization = packer.normalization
        pixel_scale = pixel_shift = None
        if packer.normalization is not None:
            coefficients = packer.normalization.coefficients()
            pixel_scale, pixel_shift = (values.view(-1, 1, 1).to(packer.device) for values in coefficients)
        self.register_buffer("pixel_scale", pixel_scale)
        self.register_buffer("pixel_shift", pixel_shift)
        positions = packer.keep(described.positions)
        channels = self.patches.linear.out_features if is_plain else described.prefix[0].shape[2]
        prefix = torch.cat([torch.empty(1, 0, channels), *(token.detach().cpu() for token in described.prefix)], dim=1)
        self.positioned = 0 if positions is None else positions.shape[1] - self.patches.num_patches
        if positions is not None:
            prefix[:, : self.positioned] += positions[:, : self.positioned].cpu()
        self.register_buffer("prefix", prefix[0].to(packer.device, packer.stream_dtype))  # [T, C], positions added
        self.register_buffer("positions", None if positions is None else positions[0, self.positioned :])  # [N, C]
        self.pre_norm = packer.optional_norm(described.pre_norm)
        self.is_fused = (
            is_plain
            and not norm_after_patches
            and self.patches.linear.precision != "int8"
            and packer.has("packed_patch_embed")
        )

    @property
    def path(self) -> str:
        """What runs it."""
        return f"one packed operator, {self.patches.linear.precision}" if self.is_fused else str(self.patches.path)

    @property
    def image_dtype(self) -> torch.dtype:
        """Type of the images that it takes, where they are not uint8."""
        return self.prefix.dtype if self.normalization is None else torch.float32

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
        """Embeds ``images`` ``[B, in_chans, H, W]``, of ``image_dtype`` or, with a normalisation, uint8.

        Returns:
            ``[B, T + N, C]``.
        """
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
            tokens = self.patches(images.to(self.prefix.dtype))
            if positions is not None:
                tokens = tokens + positions.to(tokens.dtype)
            tokens = torch.cat([self.prefix.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        out: Tensor = self.pre_norm(tokens)
        return out

    def _prepared(self, images: Tensor) -> Tensor:
        """Normalizes pixels where the projection does not read them as they are."""
        if not getattr(self.patches, "reads_pixels", False):
            assert self.pixel_scale is not None
            assert self.pixel_shift is not None
            return images.to(torch.float32) * self.pixel_scale + self.pixel_shift
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
