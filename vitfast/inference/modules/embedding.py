"""From images to the tokens of an accelerated model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.inference.backend import Backend
from vitfast.inference.ir import ConvStemSpec, EmbeddingSpec, PatchesSpec, TokensToTokenSpec
from vitfast.inference.modules.patches import ConvStem, PatchEmbedding, Patches
from vitfast.inference.modules.tokens_to_token import TokensToToken


class InferenceEmbedding(nn.Module):
    """Normalizes images, embeds patches, adds positions and prepends the other tokens.

    Attributes:
        num_patches: number of patches N of an image of the model's size.
        grid: their rows and columns.
        image_dtype: dtype of images that are not uint8.
    """

    prefix: Tensor  # [T, C], positions added
    positions: Tensor | None  # [N, C]
    pixel_scale: Tensor | None  # where the patch embedding does not normalize
    pixel_shift: Tensor | None

    def __init__(self, spec: EmbeddingSpec, backend: Backend) -> None:
        super().__init__()
        self.patches = _patch_embedding(spec.patches, backend)
        sizes = (1, self.patches.in_chans, *self.patches.image_size)  # the patches of one image are counted
        with torch.no_grad():
            image = torch.zeros(sizes, device=backend.device, dtype=backend.dtype)
            embedded = self.patches(image)
        self.num_patches, channels = embedded.shape[1:]
        self.grid = self.patches.grid(image, self.num_patches)
        self.pre_norm = backend.norm_or_identity(spec.pre_norm)
        self.resize = spec.resize
        self.normalization = backend.normalization
        self.image_dtype = backend.dtype if self.normalization is None else torch.float32
        pixel_scale = pixel_shift = None
        if self.normalization is not None and not self.patches.reads_pixels:
            coefficients = self.normalization.coefficients()
            pixel_scale, pixel_shift = (value.view(-1, 1, 1).to(backend.device) for value in coefficients)
        self.register_buffer("pixel_scale", pixel_scale)
        self.register_buffer("pixel_shift", pixel_shift)
        prefix = torch.cat([torch.empty(1, 0, channels), *(token.detach().cpu() for token in spec.prefix)], dim=1)
        positions = backend.copy(spec.positions)
        if positions is not None:
            positioned = positions.shape[1] - self.num_patches
            prefix[:, :positioned] += positions[:, :positioned].cpu()
            positions = positions[0, positioned:]
        self.register_buffer("prefix", prefix[0].to(backend.device, backend.dtype))
        self.register_buffer("positions", positions)

    def check(self, images: Tensor) -> None:
        """Checks the shape of images.

        Raises:
            ValueError: the shape is not the model's ``[B, in_chans, H, W]``.
        """
        patches = self.patches
        sizes = (patches.in_chans, *patches.image_size)
        expected = f"[B, {sizes[0]}, {sizes[1]}, {sizes[2]}]" if self.resize == "no" else f"[B, {sizes[0]}, H, W]"
        fits = images.dim() == 4 and images.shape[1] == sizes[0]
        if not fits or (self.resize == "no" and tuple(images.shape[2:]) != sizes[1:]):
            advice = _advice(images, sizes[0])
            raise ValueError(f"images must have shape {expected}, got {list(images.shape)}; {advice}")
        if not isinstance(patches, Patches):
            return
        sides = list(zip(images.shape[2:], patches.patch_size, strict=True))
        if any(size < patch for size, patch in sides):
            raise ValueError(
                f"images must be at least as large as a patch, {patches.patch_size}, got {list(images.shape)}"
            )
        if self.resize == "bicubic_antialias" and any(size % patch for size, patch in sides):
            raise ValueError(
                f"images must have sides that are multiples of {patches.patch_size}, got {list(images.shape)}"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Embeds ``images`` ``[B, in_chans, H, W]`` of ``image_dtype`` or, with a normalization, uint8.

        Returns:
            ``[B, T + N, C]``.
        """
        positions = self._positions(images)
        if self.pixel_scale is not None and self.pixel_shift is not None:
            images = images.to(torch.float32) * self.pixel_scale + self.pixel_shift
        return self.pre_norm(self.patches.tokens(images, self.prefix, positions))

    def _positions(self, images: Tensor) -> Tensor | None:
        """Returns the positions ``[N, C]`` of the patches, resized to the images' grid."""
        patches = self.patches
        if self.positions is None or tuple(images.shape[2:]) == patches.image_size:
            return self.positions
        assert isinstance(patches, Patches)
        grid, source_grid = (
            tuple(size // patch for size, patch in zip(sizes, patches.patch_size, strict=True))
            for sizes in (images.shape[2:], patches.image_size)
        )
        as_image = self.positions.unflatten(0, source_grid).permute(2, 0, 1).unsqueeze(0)
        antialias = self.resize == "bicubic_antialias"
        resized = F.interpolate(as_image, size=grid, mode="bicubic", align_corners=False, antialias=antialias)
        return resized[0].flatten(1).t().contiguous()


def _patch_embedding(spec: PatchesSpec | TokensToTokenSpec | ConvStemSpec, backend: Backend) -> PatchEmbedding:
    if isinstance(spec, PatchesSpec):
        return backend.patches(spec)
    if isinstance(spec, ConvStemSpec):
        return ConvStem(spec, backend.device, backend.dtype)
    return TokensToToken(spec, backend)


def _advice(images: Tensor, channels: int) -> str:
    """Tells how images of a wrong shape become right."""
    if images.dim() == 3 and images.shape[0] == channels:
        return "one image needs a batch dimension, images[None]"
    if images.dim() == 4 and images.shape[3] == channels != images.shape[1]:
        return "they are [B, H, W, channels]: give images.permute(0, 3, 1, 2)"
    if images.dim() != 4 or images.shape[1] != channels:
        return f"the model takes {channels} channel{'s' if channels > 1 else ''}"
    return "resize them"
