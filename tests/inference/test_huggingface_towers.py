"""Options of Hugging Face's models, and models with an image tower."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import vitfast
from support.accelerable import accelerable, requires, sample_images, tensors_of

RESIZING = ("ViTModel", "DeiTForImageClassification", "CLIPVisionModelWithProjection", "SiglipVisionModel")
BASES = (
    "ViTModel",
    "Dinov2Model",
    "DINOv3ViTModel",
    "CLIPVisionModel",
    "SiglipVisionModel",
    "SiglipForImageClassification",
    "BeitModel",
    "SwinModel",
    "SwinForImageClassification",
)
ALL_STATES_ONLY = (
    "Data2VecVisionForImageClassification",
    "InternVLVisionModel",
    "Swinv2Model",
)  # which take no indices of hidden states
WITH_TEXT = ("CLIPModel", "SiglipModel")


def assert_equal_outputs(result, expected) -> None:
    assert type(result) is type(expected)
    if isinstance(expected, Tensor):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    elif isinstance(expected, tuple):
        assert len(result) == len(expected)
        for one, other in zip(result, expected, strict=True):
            assert_equal_outputs(one, other)
    elif expected is not None:
        assert list(result) == list(expected)
        assert_equal_outputs(result.to_tuple(), expected.to_tuple())


@pytest.mark.parametrize("name", RESIZING)
@torch.no_grad()
def test_other_image_sizes_run_on_request(name):
    model = accelerable(f"transformers: {name}")
    fast = vitfast.accelerate(model)
    images = torch.randn(2, 3, 48, 40)
    with pytest.raises(ValueError, match=r"must have shape \[B, 3, 32, 32\].*interpolate_pos_encoding=True"):
        fast(images)
    assert_equal_outputs(fast(images, interpolate_pos_encoding=True), model(images, interpolate_pos_encoding=True))


@pytest.mark.parametrize(
    ("name", "requested"),
    [*itertools.product(BASES, [True, -1, [0, 2, 7]]), *itertools.product(ALL_STATES_ONLY, [True])],
)
@torch.no_grad()
def test_hidden_states_are_returned_on_request(name, requested):
    if requested is not True:
        requires("transformers", "5")
    model = accelerable(f"transformers: {name}")
    images = sample_images(model)
    fast = vitfast.accelerate(model)
    result = fast(images, output_hidden_states=requested)
    assert len(result.hidden_states) == 3
    assert_equal_outputs(result, model(images, output_hidden_states=requested))
    assert fast(images).hidden_states is None


@pytest.mark.parametrize(
    "name",
    [
        "Dinov2Backbone",
        "Dinov2WithRegistersBackbone",
        "DINOv3ViTBackbone",
        "BeitBackbone",
        "SwinBackbone",
        "Swinv2Backbone",
    ],
)
@torch.no_grad()
def test_backbones_return_feature_maps_of_any_image_size(name):
    model = accelerable(f"transformers: {name}")
    fast = vitfast.accelerate(model)
    for size, options in (
        ((32, 32), {}),
        ((48, 64), {"output_hidden_states": True}),
        ((64, 32), {"return_dict": False}),
    ):
        images = torch.randn(2, 3, *size)
        assert_equal_outputs(fast(images, **options), model(images, **options))
    with pytest.raises(vitfast.UserError, match="pools no tokens"):
        fast.embed(images)


@torch.no_grad()
def test_hooks_that_transformers_leaves_on_a_model_are_tolerated():
    requires("transformers", "5")
    model = accelerable("transformers: ViTModel")
    images = sample_images(model)
    model(images, output_hidden_states=True)
    assert any(module._forward_hooks for module in model.modules())
    assert vitfast.accelerate(model).report().whole
    model.layers[0].register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match=r"layers\.0.*has a forward hook"):
        vitfast.accelerate(model)


@torch.no_grad()
def test_hidden_states_are_returned_where_the_configuration_requests_them():
    model = accelerable("transformers: CLIPVisionModel")
    model.config.output_hidden_states = True
    images = sample_images(model)
    assert_equal_outputs(vitfast.accelerate(model)(images), model(images))


@pytest.mark.parametrize("name", WITH_TEXT)
@torch.no_grad()
def test_the_image_tower_beside_a_text_tower_is_accelerated(name):
    model = accelerable(f"transformers: {name}")
    with pytest.warns(UserWarning, match=f"is a {name}, of which only the image tower is accelerated"):
        fast = vitfast.accelerate(model, check=sample_images(model))
    assert fast.report().agreement.cosine > 0.9999
    names = [layer.name for layer in fast.report().layers]
    assert names[:2] == ["(model)", "vision_model.embedding"]
    assert "vision_model.encoder.layers.1" in names
    images, text = sample_images(model), torch.randint(1, 49, (2, 8))
    options = {"input_ids": text, "pixel_values": images}
    assert_equal_outputs(fast(**options), model(**options))
    assert_equal_outputs(fast.get_image_features(images), model.get_image_features(images))
    assert_equal_outputs(fast.get_text_features(text), model.get_text_features(text))
    assert list(fast.state_dict()) == list(model.state_dict())
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in fast.state_dict().items())
    with pytest.warns(UserWarning, match="image tower"):
        in_bf16 = vitfast.accelerate(model, "bf16").get_image_features(images)
    for one, other in zip(tensors_of(in_bf16), tensors_of(model.get_image_features(images)), strict=True):
        assert 1e-4 * other.norm() < (one - other).norm() < 3e-2 * other.norm()


@torch.no_grad()
def test_attributes_of_the_source_that_are_missing_are_named():
    with pytest.warns(UserWarning, match="image tower"):
        fast = vitfast.accelerate(accelerable("transformers: CLIPModel"))
    with pytest.raises(AttributeError, match="get_audio_features"):
        fast.get_audio_features(None)
