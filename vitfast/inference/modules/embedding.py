"""From images to the tokens of an accelerated model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.inference.ir import ConvSpec, ConvStemSpec, EmbeddingSpec, PatchesSpec
from vitfast.inference.modules.linear import InferenceLinear, describe_gemms
from vitfast.inference.modules.tokens_to_token import TokensToToken
from vitfast.inference.normalization import Normalization


class Patches(nn.Module):
    """Projects non-overlapping patches.

    Args:
        spec: sizes and padding.
        linear: the projection.
        norm: applied after the projection, or an identity.
        reads_pixels: whether ``linear`` includes the normalization of the images.
    """

    def __init__(self, spec: PatchesSpec, linear: InferenceLinear, norm: nn.Module, *, reads_pixels: bool) -> None:
        super().__init__()
        self.image_size = spec.image_size
        self.patch_size = spec.patch_size
        self.in_chans = spec.in_chans
        self.padding = spec.padding
        self.linear = linear
        self.norm = norm
        self.reads_pixels = reads_pixels

    @property
    def num_patches(self) -> int:
        """Patches of an image of ``image_size``."""
        left, right, above, below = self.padding
        (height, width), (rows, columns) = self.image_size, self.patch_size
        return ((height + above + below) // rows) * ((width + left + right) // columns)

    @property
    def path(self) -> str:
        """What runs the projection, for the report."""
        return describe_gemms(self.linear)

    def padded(self, images: Tensor) -> Tensor:
        """Pads or crops ``images`` ``[B, in_chans, H, W]`` to whole patches."""
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


class ConvStem(nn.Module):
    """Convolutions on torch operators, with BatchNorm folded into the weights.

    Args:
        spec: the convolutions.
        device: where they run.
        dtype: dtype of weights and images.
    """

    reads_pixels = False

    def __init__(self, spec: ConvStemSpec, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.image_size = spec.image_size
        self.in_chans = spec.in_chans
        self.path = f"torch convolutions, {str(dtype).removeprefix('torch.')}, BatchNorm folded"
        self.steps = [(conv.stride, conv.padding, conv.relu) for conv in spec.convolutions]
        for index, conv in enumerate(spec.convolutions):
            weight, bias = _fold_batch_norm(conv)
            self.register_buffer(f"weight{index}", weight.to(device, dtype))
            self.register_buffer(f"bias{index}", None if bias is None else bias.to(device, dtype))

    @property
    def num_patches(self) -> int:
        """Tokens of an image of ``image_size``."""
        rows, columns = self.image_size
        for index, (stride, padding, _) in enumerate(self.steps):
            height, width = self.get_buffer(f"weight{index}").shape[2:]
            rows, columns = (rows + 2 * padding - height) // stride + 1, (columns + 2 * padding - width) // stride + 1
        return rows * columns

    def forward(self, images: Tensor) -> Tensor:
        """Turns ``images`` ``[B, in_chans, H, W]`` into tokens ``[B, N, C]``."""
        x = images
        for index, (stride, padding, relu) in enumerate(self.steps):
            x = F.conv2d(x, getattr(self, f"weight{index}"), getattr(self, f"bias{index}"), stride, padding)
            x = F.relu(x) if relu else x
        return x.flatten(2).transpose(1, 2)


class InferenceEmbedding(nn.Module):
    """Normalizes images, embeds patches, adds positions and prepends the other tokens.

    Args:
        spec: prefix and resizing.
        patches: embeds the patches.
        positions: ``[1, T' + N, C]`` on the target device, or None.
        pre_norm: applied to all tokens, or an identity.
        normalization: of the images, or None.
        device: where it runs.
        dtype: dtype of the tokens.

    Attributes:
        image_dtype: dtype of images that are not uint8.
    """

    prefix: Tensor  # [T, C], positions added
    positions: Tensor | None  # [N, C]
    pixel_scale: Tensor | None  # where the projection of the patches does not normalize
    pixel_shift: Tensor | None

    def __init__(
        self,
        spec: EmbeddingSpec,
        patches: Patches | TokensToToken | ConvStem,
        positions: Tensor | None,
        pre_norm: nn.Module,
        normalization: Normalization | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.patches = patches
        self.pre_norm = pre_norm
        self.resize = spec.resize
        self.normalization = normalization
        self.image_dtype = dtype if normalization is None else torch.float32
        pixel_scale = pixel_shift = None
        if normalization is not None and not patches.reads_pixels:
            pixel_scale, pixel_shift = (value.view(-1, 1, 1).to(device) for value in normalization.coefficients())
        self.register_buffer("pixel_scale", pixel_scale)
        self.register_buffer("pixel_shift", pixel_shift)
        channels = patches.linear.out_features if isinstance(patches, Patches) else spec.prefix[0].shape[2]
        prefix = torch.cat([torch.empty(1, 0, channels), *(token.detach().cpu() for token in spec.prefix)], dim=1)
        if positions is not None:
            positioned = positions.shape[1] - patches.num_patches
            prefix[:, :positioned] += positions[:, :positioned].cpu()
            positions = positions[0, positioned:]
        self.register_buffer("prefix", prefix[0].to(device, dtype))
        self.register_buffer("positions", positions)

    @property
    def path(self) -> str:
        """What runs the embedding, for the report."""
        return str(self.patches.path)

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
            raise ValueError(f"images must have shape {expected}, got {list(images.shape)}; resize them")
        if self.resize == "bicubic_antialias" and isinstance(patches, Patches):
            if any(size % patch for size, patch in zip(images.shape[2:], patches.patch_size, strict=True)):
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
        out: Tensor = self.pre_norm(self.tokens(images, positions))
        return out

    def tokens(self, images: Tensor, positions: Tensor | None) -> Tensor:
        """Embeds the patches, adds ``positions`` ``[N, C]`` and prepends the prefix."""
        tokens = self.patches(images.to(self.prefix.dtype))
        if positions is not None:
            tokens = tokens + positions.to(tokens.dtype)
        return torch.cat([self.prefix.expand(tokens.shape[0], -1, -1), tokens], dim=1)

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


def _fold_batch_norm(conv: ConvSpec) -> tuple[Tensor, Tensor | None]:
    """Returns weight and bias of the convolution that includes its BatchNorm; computed in float64."""
    weight = conv.weight.detach().clone()
    bias = None if conv.bias is None else conv.bias.detach().clone()
    if conv.batch_norm is None:
        return weight, bias
    gamma, beta, mean, variance, eps = conv.batch_norm
    scale = gamma.detach().double() / (variance.double() + eps).sqrt()
    shift = beta.detach().double() - mean.double() * scale
    if bias is not None:
        shift = shift + bias.double() * scale
    return (weight.double() * scale[:, None, None, None]).float(), shift.float()
