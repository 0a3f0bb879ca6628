"""Crops of several sizes through one model, as SwAV's training has them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.layers.position_embedding import PositionInterpolation
from vitfast.models.size_view import view_at_size
from vitfast.models.t2t_vit import T2TViT
from vitfast.models.vit import VisionTransformer


class MultiCrop(nn.Module):
    """Runs a model on crops of several sizes, then a head on all features at once, as vissl's base model does.

    Consecutive crops of one size share a pass through the model. For sizes other than the model's own, its positions
    are resampled for each pass; they learn through the resampling.

    Args:
        model: a ViT, DeiT, ConViT or T2T-ViT; without a head of its own (``num_classes=0``) where ``head`` is given.
        head: maps features ``[B, C]``, ``SwavHead`` for example; None for the model's own head.
        single_pass_every_crop: whether every crop gets a pass of its own, which needs less memory.
        position_interpolation: how positions are resampled, see ``resize_position_embedding``; vissl's is
            ``"bicubic"``, for its ConViT, too.

    Raises:
        UserError: the model has no position embeddings that could be resampled, or a head too many.
    """

    def __init__(
        self,
        model: nn.Module,
        head: nn.Module | None = None,
        *,
        single_pass_every_crop: bool = False,
        position_interpolation: PositionInterpolation = "bicubic",
    ) -> None:
        super().__init__()
        if not isinstance(model, (VisionTransformer, T2TViT)):
            raise UserError(f"MultiCrop runs a ViT, DeiT, ConViT or T2T-ViT; got a {type(model).__name__}")
        if head is not None and model.num_classes:
            raise UserError(f"head is given, and {model.model_name} has one; create the model with num_classes=0")
        self.model = model
        self.head = nn.Identity() if head is None else head
        self.single_pass_every_crop = single_pass_every_crop
        self.position_interpolation = position_interpolation

    def forward(self, crops: Sequence[Tensor] | Tensor) -> Tensor | list[Tensor]:
        """Computes what the head gives for all crops, in the order of the list.

        Args:
            crops: a list of crops, each ``[B, in_chans, size, size]`` with a size of its own, or one tensor.

        Returns:
            The head's result for the features ``[number of crops * B, C]``: all images of the first crop, then all of
            the second, and so on.

        Raises:
            UserError: there are no crops, or the model cannot have a crop's size.
            TypeError: as the model's ``forward``.
            ValueError: as the model's ``forward``.
        """
        crops = [crops] if isinstance(crops, Tensor) else list(crops)
        if not crops:
            raise UserError("crops is empty; give at least one tensor [B, in_chans, size, size]")
        if self.single_pass_every_crop:
            passes = crops
        else:
            passes = [torch.cat(tuple(group)) for _, group in groupby(crops, key=lambda crop: crop.shape[1:])]
        features = torch.cat([self._features(images) for images in passes])
        out: Tensor | list[Tensor] = self.head(features)
        return out

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = view_at_size(self.model, images.shape[-1], self.position_interpolation)(images)
        return features
