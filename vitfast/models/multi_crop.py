"""Crops of several sizes through one model, as in SwAV's training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.layers import resize_position_embedding
from vitfast.layers.position_embedding import PositionInterpolation
from vitfast.models.image_model import ImageModel
from vitfast.models.t2t_vit import T2TViT
from vitfast.models.vit import VisionTransformer

Module = TypeVar("Module", bound=nn.Module)


class Crops:
    """A batch of several crops of each image; it has the methods of a tensor that data loading and training use.

    Args:
        tensors: a batch ``[B, C, size, size]`` for each crop, crops of one size being consecutive.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tuple(tensors)

    def __len__(self) -> int:
        return len(self.tensors[0])

    def to(self, *args: Any, **kwargs: Any) -> Crops:
        """Converts all crops as ``Tensor.to`` does."""
        return Crops([tensor.to(*args, **kwargs) for tensor in self.tensors])

    def pin_memory(self) -> Crops:
        """Copies all crops to pinned memory."""
        return Crops([tensor.pin_memory() for tensor in self.tensors])

    def tensor_split(self, parts: int) -> list[Crops]:
        """Splits the batch as ``Tensor.tensor_split`` does."""
        split = [tensor.tensor_split(parts) for tensor in self.tensors]
        return [Crops(part) for part in zip(*split, strict=True)]


class MultiCrop(nn.Module):
    """Runs a model on crops of several sizes, then a head on all features at once, as vissl's base model does.

    Consecutive crops of one size share a forward pass. For other sizes than the model's, its position embeddings are
    resampled in each pass, with gradients.

    Args:
        model: as in ``crop_features``; headless (``num_classes=0``) if ``head`` is given.
        head: maps features ``[B, C]``, ``SwavHead`` for example; None: the model's head.
        single_pass_every_crop: one forward pass per crop, which needs less memory.
        position_interpolation: how positions are resampled, see ``resize_position_embedding``; vissl uses
            ``"bicubic"``, also for its ConViT.

    Raises:
        UserError: the model takes only one image size, or there are two heads.
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
        check_trunk(model)
        if head is not None and model.num_classes:
            raise UserError(f"head is given, and {model.model_name} has one; create the model with num_classes=0")
        self.model = cast(ImageModel, model)
        self.head = nn.Identity() if head is None else head
        self.single_pass_every_crop = single_pass_every_crop
        self.position_interpolation = position_interpolation

    def forward(self, crops: Sequence[Tensor] | Tensor) -> Tensor | list[Tensor]:
        """Computes the head's output for all crops, in the order of the list.

        Args:
            crops: a list of crops, each ``[B, in_chans, size, size]`` with its size, or one tensor.

        Returns:
            The head's output for the features ``[number of crops * B, C]``: all images of the first crop, then all of
            the second, and so on.

        Raises:
            UserError: there are no crops, or the model does not support a crop's size.
            TypeError: as the model's ``forward``.
            ValueError: as the model's ``forward``.
        """
        crops = [crops] if isinstance(crops, Tensor) else list(crops)
        return self.head(
            crop_features(
                self.model,
                crops,
                single_pass_every_crop=self.single_pass_every_crop,
                position_interpolation=self.position_interpolation,
            )
        )


def check_trunk(model: nn.Module) -> None:
    """Raises UserError unless ``crop_features`` can run a model."""
    if not isinstance(model, (VisionTransformer, T2TViT)) and not getattr(model, "takes_any_size", False):
        raise UserError(
            "crops of several sizes need a ViT, DeiT, ConViT, T2T-ViT or a network for any image size; "
            f"got a {type(model).__name__}"
        )


def crop_features(
    model: nn.Module,
    crops: Sequence[Tensor],
    *,
    single_pass_every_crop: bool = False,
    position_interpolation: PositionInterpolation = "bicubic",
) -> Tensor:
    """Runs a model on crops of several sizes; consecutive crops of one size share a forward pass.

    Args:
        model: a ViT, DeiT, ConViT or T2T-ViT, or a network of timm or torchvision that takes images of any size.
        crops: each ``[B, in_chans, size, size]`` with its size.
        single_pass_every_crop: see ``MultiCrop``.
        position_interpolation: see ``MultiCrop``.

    Returns:
        The outputs ``[number of crops * B, C]``: all images of the first crop, then all of the second, and so on.

    Raises:
        UserError: there are no crops, or the model does not support a crop's size.
    """
    if not crops:
        raise UserError("crops is empty; give at least one tensor [B, in_chans, size, size]")
    passes = list(crops)
    if not single_pass_every_crop:
        passes = [torch.cat(tuple(group)) for _, group in groupby(crops, key=lambda crop: crop.shape[1:])]
    outputs = []
    for images in passes:
        view = model
        if isinstance(model, (VisionTransformer, T2TViT)):
            view = view_at_size(model, images.shape[-1], position_interpolation)
        outputs.append(view(images))
    return torch.cat(outputs)


def view_at_size(
    model: VisionTransformer | T2TViT, img_size: int, position_interpolation: PositionInterpolation = "bicubic"
) -> VisionTransformer | T2TViT:
    """Returns a model for another image size that shares every weight and layer with ``model``.

    Its position embeddings are resampled from the model's, with gradients. They do not follow later changes of the
    model's, so a view is valid for one forward pass.

    Args:
        model: stays unchanged.
        img_size: height and width of the images in pixels.
        position_interpolation: see ``resize_position_embedding``.

    Raises:
        UserError: the model does not support this image size.
    """
    if img_size == model.img_size:
        return model
    view = _shallow_copy(model)
    view.fields = replace(model.fields, img_size=img_size)
    if isinstance(model, VisionTransformer):
        patch_embed = _shallow_copy(model.patch_embed)
        patch_embed.img_size = img_size
        view._modules["patch_embed"] = patch_embed
    if model.pos_embed is not None:
        prefix = model.position_keys()["pos_embed"]
        del view._parameters["pos_embed"]
        view.__dict__["pos_embed"] = resize_position_embedding(
            model.pos_embed, view.fields.grid_size, num_prefix_tokens=prefix, interpolation=position_interpolation
        )
    return view


def _shallow_copy(module: Module) -> Module:
    """Copies a module; both share parameters, buffers and children."""
    copy = module.__class__.__new__(module.__class__)
    copy.__dict__.update(module.__dict__)
    for name in ("_parameters", "_modules"):
        copy.__dict__[name] = dict(module.__dict__[name])
    return copy
