"""A Vision Transformer of patch sequences run by accelerated modules, with the call signature of its source."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.inference.image_tower import ImageTower
from vitfast.inference.input_adapters import HuggingFaceAdapter, ImageAdapter
from vitfast.inference.ir import SequenceSpec


class PatchSequences(NamedTuple):
    """Arguments of ``InferenceSequences``."""

    patches: Tensor  # [B, M, K]
    valid: Tensor  # [B, M], bool
    grids: list[tuple[int, int]]


class SequenceTower(ImageTower):
    """As ``ImageTower``, for models that take patches: SigLIP 2 of transformers and timm's ``NaFlexVit``."""

    adapter: Any

    def forward(self, *arguments: Any, **options: Any) -> Any:
        sequences = self._checked(self.adapter.sequences_of(arguments, options))
        hidden_states: list[Tensor] | None = [] if self.adapter.hidden_states_of(options) else None
        with self.autocast_off():
            results = tuple(one.to(torch.float32) for one in self.model(*sequences, hidden_states))
        if hidden_states is not None:
            hidden_states[:] = [state.to(torch.float32) for state in hidden_states]
        return self.adapter.result_of(results, options, hidden_states)

    def embed(self, *arguments: Any, **options: Any) -> Tensor:
        """Computes the pooled features ``[B, C]``; arguments as in ``forward``.

        Raises:
            UserError: the model pools no tokens.
        """
        sequences = self._checked(self.adapter.sequences_of(arguments, options))
        with self.autocast_off():
            embedding: Tensor | None = self.model.embed(*sequences)
        if embedding is None:
            raise UserError("the model pools no tokens, so it has no embedding")
        return embedding.to(torch.float32)

    def _checked(self, sequences: PatchSequences) -> PatchSequences:
        patches, valid, grids = sequences
        inputs = self.model.embedding.linear.in_features
        if patches.dim() != 3 or patches.shape[-1] != inputs or len(patches) == 0:
            raise ValueError(
                f"patches must have shape [B, N, {inputs}] for at least one image, got {list(patches.shape)}"
            )
        if not patches.is_floating_point():
            raise TypeError(f"patches must be floating point, got {patches.dtype}; convert and normalize them first")
        if patches.device != self.device:
            raise ValueError(
                f"patches are on {patches.device}, but the accelerated model is on {self.device}; move them"
            )
        if valid.shape != patches.shape[:2] or len(grids) != len(patches):
            raise ValueError(
                f"the mask of the patches must have shape {list(patches.shape[:2])}, and there must be one size of the "
                f"grid for each image; got {list(valid.shape)} and {len(grids)}"
            )
        for index, (one, (rows, columns)) in enumerate(zip(valid, grids, strict=True)):
            marked = one.nonzero()
            if len(marked) == 0 or int(marked[-1]) >= rows * columns:
                raise ValueError(
                    f"the mask of image {index} must mark patches among the first {rows} x {columns}, those of its "
                    f"grid, and at least one; it marks {len(marked)}"
                )
        return PatchSequences(patches.detach(), valid.to(self.device), grids)


class _Siglip2Adapter(HuggingFaceAdapter):
    """For ``Siglip2VisionModel`` and ``Siglip2ForImageClassification``."""

    takes_images = False

    def sequences_of(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> PatchSequences:
        names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
        given = {**dict(zip(names, arguments, strict=False)), **{n: options[n] for n in names if n in options}}
        rest = {name: value for name, value in options.items() if name not in names}
        self.images_of((given.get("pixel_values"), *arguments[3:]), rest)
        missing = [name for name in names if not isinstance(given.get(name), Tensor)]
        if missing:
            raise UserError(f"the model needs {', '.join(missing)} as the processor of SigLIP 2 returns them")
        grids = [(int(rows), int(columns)) for rows, columns in given["spatial_shapes"].tolist()]
        return PatchSequences(given["pixel_values"], given["pixel_attention_mask"].bool(), grids)


class _NaFlexAdapter(ImageAdapter):
    """For timm's ``NaFlexVit``: patches with their coordinates, the dictionary of its loader, or images of one size."""

    def __init__(self, spec: SequenceSpec) -> None:
        self.patch_size = spec.patch_size
        self.is_channels_last = spec.is_channels_last

    def sequences_of(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> PatchSequences:
        names = ("x", "patch_coord", "patch_valid", "attn_mask")
        given: dict[str, Any] = {**dict(zip(names, arguments, strict=False)), **options}
        if isinstance(given.get("x"), dict):
            loaded = given.pop("x")
            given = {**given, **loaded, "x": loaded.get("patches")}
            given.pop("patches", None)
        x = given.pop("x", None)
        coordinates, valid = given.pop("patch_coord", None), given.pop("patch_valid", None)
        x = self.images_of((x,), given)
        if not isinstance(x, Tensor) or x.dim() not in (3, 4):
            raise UserError("x must be images [B, C, H, W], or patches [B, N, K] with patch_coord and patch_valid")
        if x.dim() == 4:
            return self._split(x)
        if coordinates is None or valid is None:
            raise UserError("patches need patch_coord [B, N, 2] and patch_valid [B, N]")
        limits = torch.where(valid.bool()[..., None], coordinates, 0).amax(dim=1) + 1
        return PatchSequences(x, valid.bool(), [(int(rows), int(columns)) for rows, columns in limits.tolist()])

    def _split(self, images: Tensor) -> PatchSequences:
        height, width = self.patch_size
        rows, columns = images.shape[2] // height, images.shape[3] // width
        if (rows * height, columns * width) != tuple(images.shape[2:]) or rows * columns == 0:
            raise ValueError(
                f"images must have sides that are multiples of {self.patch_size}, got {list(images.shape)}"
            )
        patches = images.unflatten(3, (columns, width)).unflatten(2, (rows, height))  # [B, C, rows, h, columns, w]
        patches = patches.permute(0, 2, 4, *((3, 5, 1) if self.is_channels_last else (1, 3, 5)))
        patches = patches.flatten(3).flatten(1, 2)
        valid = torch.ones(patches.shape[:2], dtype=torch.bool, device=images.device)
        return PatchSequences(patches, valid, [(rows, columns)] * len(images))


def sequence_adapter(model: nn.Module, spec: SequenceSpec) -> ImageAdapter:
    """Returns the adapter of a recognised source model."""
    if spec.output is None:
        return _NaFlexAdapter(spec)
    return _Siglip2Adapter(spec.output, model.config, (0, 0))
