"""A model as it is for another image size, sharing all its weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from torch import nn

from vitfast.layers import resize_position_embedding
from vitfast.layers.position_embedding import PositionInterpolation
from vitfast.models.t2t_vit import T2TViT
from vitfast.models.vit import VisionTransformer

Module = TypeVar("Module", bound=nn.Module)


def view_at_size(
    model: VisionTransformer | T2TViT, img_size: int, position_interpolation: PositionInterpolation = "bicubic"
) -> VisionTransformer | T2TViT:
    """Returns a model for another image size whose positions are resampled from those of ``model``.

    It shares every weight and layer with ``model``: gradients reach them, those of the positions through the
    resampling. It is made anew for each use, since the resampled positions do not follow the model's.

    Args:
        model: what is viewed; it stays as it is.
        img_size: height and width of the images in pixels.
        position_interpolation: see ``resize_position_embedding``.

    Raises:
        UserError: the model cannot have this image size.
    """
    if img_size == model.img_size:
        return model
    view = _shallow_copy(model)
    view.fields = replace(model.fields, img_size=img_size)
    if isinstance(model, VisionTransformer):
        patch_embed = _shallow_copy(model.patch_embed)
        patch_embed.img_size = img_size
        view._modules["patch_embed"] = patch_embed
    prefix = 1 if isinstance(model, T2TViT) else model.fields.num_prefix_positions
    del view._parameters["pos_embed"]
    view.__dict__["pos_embed"] = resize_position_embedding(
        model.pos_embed, view.fields.grid_size, num_prefix_tokens=prefix, interpolation=position_interpolation
    )
    return view


def _shallow_copy(module: Module) -> Module:
    """Copies a module without its parameters, buffers and children, which both have then."""
    copy = module.__class__.__new__(module.__class__)
    copy.__dict__.update(module.__dict__)
    for name in ("_parameters", "_modules"):
        copy.__dict__[name] = dict(module.__dict__[name])
    return copy
