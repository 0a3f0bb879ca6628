"""Crops of several sizes through one model: VISSL's order and passes, against the model built for each size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitfast
from vitfast.errors import UserError
from vitfast.layers import SwavHead
from vitfast.models import ImageModel, MultiCrop
from vitfast.models.multi_crop import view_at_size

SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 3, "img_size": 32, "patch_size": 8}
CONVIT = {"depth": 3, "local_up_to_layer": 2, "embed_dim": 36, "num_heads": 4, "img_size": 32, "patch_size": 8}
HYBRID = {**SMALL, "depth": 1, "patch_size": 1, "resnet_layers": (1, 1), "resnet_width": 32}
T2T = {"depth": 2, "embed_dim": 24, "num_heads": 3, "img_size": 32, "token_dim": 8}
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("vit_mini_patch4_32", SMALL),
    ("vit_mini_patch4_32", {**SMALL, "pooling": "mean", "patch_order": "channels_last"}),
    ("deit_tiny_distilled_patch16_224", SMALL),
    ("vit_small_patch16_dinov3", {**SMALL, "num_heads": 2}),
    ("eva02_tiny_patch14_224", {**SMALL, "num_heads": 2}),
    ("convit_tiny", CONVIT),
    ("t2t_vit_7", T2T),
    ("R50-ViT-B_16", HYBRID),
]


def small(name: str, fields: dict[str, Any], **more: Any) -> ImageModel:
    model = vitfast.create_model(name, **{**fields, **more})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def at_size(model: ImageModel, img_size: int, way: str) -> ImageModel:
    """Another model, built for this size and loaded with resized positions."""
    other = vitfast.create_model(model.model_name, **{**model.model_fields, "img_size": img_size})
    state = dict(model.state_dict())
    other.resize_state(state, way)
    other.load_state_dict(state)
    return other.eval()


@torch.inference_mode()
@pytest.mark.parametrize("way", ["bicubic", "bicubic_aligned"])
@pytest.mark.parametrize(("name", "fields"), MODELS)
def test_every_crop_is_computed_as_a_model_of_its_size_does(name: str, fields: dict[str, Any], way: str) -> None:
    model = small(name, fields, num_classes=5)
    crops = [torch.randn(2, 3, size, size) for size in (32, 32, 16, 48, 16)]
    out = MultiCrop(model, position_interpolation=way)(crops)
    expected = torch.cat([at_size(model, crop.shape[-1], way)(crop) for crop in crops])
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert model.img_size == 32
    assert model.state_dict().keys() == at_size(model, 32, way).state_dict().keys()


@pytest.mark.parametrize(("single", "passes"), [(False, [4, 6, 2]), (True, [2] * 6)])
def test_consecutive_crops_of_one_size_share_a_pass(single: bool, passes: list[int]) -> None:
    """Two large crops, three small ones, and a large one again: three passes, and one of the head."""
    model, seen, heads = small("vit_mini_patch4_32", SMALL, num_classes=0), [], []
    model.blocks.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    head = SwavHead([24, 16, 8], [7], use_bn=False)
    head.register_forward_pre_hook(lambda _, inputs: heads.append(tuple(inputs[0].shape)))
    crops = [torch.randn(2, 3, size, size) for size in (32, 32, 16, 16, 16, 32)]
    embeddings, scores = MultiCrop(model, head, single_pass_every_crop=single)(crops)
    assert (seen, heads) == (passes, [(12, 24)])
    assert (embeddings.shape, scores.shape) == ((12, 8), (12, 7))
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(12))


@pytest.mark.parametrize(("name", "fields"), [MODELS[0], MODELS[5]])
def test_gradients_reach_the_positions_through_the_resampling(name: str, fields: dict[str, Any]) -> None:
    model = small(name, fields, num_classes=0).double().train()
    crop = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    weights: Tensor = torch.randn(2, model.fields.embed_dim, dtype=torch.float64)

    def loss() -> Tensor:
        return (MultiCrop(model)([crop]) * weights).sum()

    loss().backward()
    gradient = model.pos_embed.grad
    assert gradient is not None
    direction = torch.randn_like(model.pos_embed)
    step = 1e-6
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            model.pos_embed += sign * step * direction
            ends.append(loss())
            model.pos_embed -= sign * step * direction
    torch.testing.assert_close((gradient * direction).sum(), (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-8)
    assert all(parameter.grad is not None for parameter in model.blocks.parameters())


def test_a_single_tensor_and_the_own_size() -> None:
    model = small("vit_mini_patch4_32", SMALL)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(MultiCrop(model)(images), model(images))
    assert view_at_size(model, 32) is model
    view = view_at_size(model, 16)
    assert view.blocks is model.blocks
    assert view.img_size == 16
    assert [name for name, _ in view.named_parameters()] == [
        name for name, _ in model.named_parameters() if name != "pos_embed"
    ]


def test_wrong_arguments() -> None:
    model = small("vit_mini_patch4_32", SMALL)
    with pytest.raises(UserError, match="or a network for any image size; got a D"):
        MultiCrop(vitfast.create_model("dvt_nano_16"))
    with pytest.raises(UserError, match=r"head is given, and vit_mini_patch4_32 has one; .* num_classes=0"):
        MultiCrop(model, nn.Linear(24, 3))
    with pytest.raises(UserError, match="crops is empty"):
        MultiCrop(model)([])
    with pytest.raises(UserError, match="img_size=20 is not a multiple of patch_size=8"):
        MultiCrop(model)([torch.randn(1, 3, 20, 20)])
    with pytest.raises(ValueError, match=r"images must have shape \[B, 3, 16, 16\], got \[1, 3, 24, 16\]"):
        MultiCrop(model)([torch.randn(1, 3, 24, 16)])
