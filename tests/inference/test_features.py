"""Embeddings and intermediate features of accelerated models, beside those of timm and transformers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vitfast
from support.accelerable import accelerable, sample_images

TIMM = (
    *("vit", "distilled", "LayerScale, registers", "map pooling", "no class token, fc_norm", "any size", "no head"),
    *("DINOv3, class token", "RoPE, mixed", "BEiT", "Swin", "Swin, any size", "Swin V2", "SAM", "SAM, neck"),
)


def assert_close(result, expected) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", TIMM)
@torch.no_grad()
def test_embeddings_are_those_before_timms_head(kind):
    model = accelerable(f"timm: {kind}")
    images = sample_images(model)
    expected = model.forward_head(model.forward_features(images), pre_logits=True)
    if isinstance(expected, tuple):
        expected = torch.stack(expected).mean(0)
    fast = vitfast.accelerate(model)
    assert_close(fast.embed(images), expected)
    assert_close(fast.embed(images, normalize=True), F.normalize(expected, dim=-1))


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("Dinov2Model", "pooler_output"),
        ("CLIPVisionModel", "pooler_output"),
        ("CLIPVisionModelWithProjection", "image_embeds"),
        ("SiglipVisionModel", "pooler_output"),
        ("BeitModel", "pooler_output"),
        ("SwinModel", "pooler_output"),
    ],
)
@torch.no_grad()
def test_embeddings_are_transformers_pooled_output(name, field):
    model = accelerable(f"transformers: {name}")
    images = sample_images(model)
    assert_close(vitfast.accelerate(model).embed(images), model(images)[field])


@pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel"])
@torch.no_grad()
def test_embeddings_of_a_model_with_a_text_tower_are_its_image_features(name):
    model = accelerable(f"transformers: {name}")
    images = sample_images(model)
    with pytest.warns(UserWarning, match="image tower"):
        fast = vitfast.accelerate(model)
    assert not fast.report().whole
    features = model.get_image_features(images)  # a tensor in transformers 4
    assert_close(fast.embed(images), getattr(features, "pooler_output", features))


@torch.no_grad()
def test_a_model_that_pools_nothing_has_no_embedding():
    model = accelerable("timm: all tokens")
    fast = vitfast.accelerate(model)
    assert fast.report().whole
    with pytest.raises(vitfast.UserError, match=r"pools no tokens.*forward_features"):
        fast.embed(sample_images(model))


@pytest.mark.parametrize("kind", TIMM)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"indices": 1, "norm": True, "output_fmt": "NLC"},
        {"indices": [0, -1], "return_prefix_tokens": True, "intermediates_only": True},
    ],
    ids=["default", "last", "prefix"],
)
@torch.no_grad()
def test_intermediate_features_are_timms(kind, options):
    model = accelerable(f"timm: {kind}")
    images = torch.randn(2, 3, 48, 32) if "any size" in kind else sample_images(model)
    if kind.startswith(("Swin", "SAM")):  # without other formats and prefix tokens
        options = {name: value for name, value in options.items() if name in ("indices", "norm", "intermediates_only")}
    result = vitfast.accelerate(model).forward_intermediates(images, **options)
    assert_close(result, model.forward_intermediates(images, **options))


@torch.no_grad()
def test_intermediate_layers_are_dinov2s():
    model = accelerable("transformers: Dinov2Model")
    images = torch.randn(2, 3, 48, 64)
    fast = vitfast.accelerate(model)
    states = model(images, output_hidden_states=True).hidden_states
    ((patches, cls),) = fast.get_intermediate_layers(images, reshape=True, return_class_token=True)
    expected = model.layernorm(states[-1])
    assert_close(cls, expected[:, 0])
    assert_close(patches, expected[:, 1:].transpose(1, 2).reshape(2, -1, 3, 4))
    first, last = fast.get_intermediate_layers(images, [0, -1], norm=False)
    assert_close(first, states[1][:, 1:])
    assert_close(last, states[2][:, 1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"indices": 3}, "indices=3 is out of range: the model has 2 blocks"),
        ({"indices": [0, 2]}, "2 is out of range; the model has 2 blocks"),
        ({"output_fmt": "NHWC"}, "output_fmt='NHWC' is not known; allowed: NCHW, NLC"),
    ],
)
def test_wrong_options_are_named(options, message):
    model = accelerable("timm: vit")
    with pytest.raises(vitfast.UserError, match=message):
        vitfast.accelerate(model).forward_intermediates(sample_images(model), **options)


def test_a_missing_class_token_is_named():
    model = accelerable("timm: map pooling")
    with pytest.raises(vitfast.UserError, match="return_class_token=True, but the model has no class token"):
        vitfast.accelerate(model).get_intermediate_layers(sample_images(model), return_class_token=True)


def test_a_model_with_exits_has_no_tokens():
    model = accelerable("vitfast: dvt over deit")
    with pytest.raises(vitfast.UserError, match="cannot return its tokens"):
        vitfast.accelerate(model).embed(sample_images(model))


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [
        ("three blocks", [2, 1]),
        ("RoPE, three blocks", [3]),
        ("SwiGLU, three blocks", [2, 1]),
        ("RoPE, mixed", [1, 1]),
        ("BEiT", [2]),
        ("Swin V2, padded windows", [2, 1, 2]),
    ],
)
@torch.no_grad()
def test_blocks_computed_in_one_call_change_no_bit(kind, lengths):
    model = accelerable(f"timm: {kind}")
    images = sample_images(model)
    fast = vitfast.accelerate(model)
    transformer = fast.body.model
    assert [len(run) for run in transformer.runs] == lengths
    states: list[torch.Tensor] = []
    one_by_one = transformer.forward_features(images, hidden_states=states)
    assert len(states) == 1 + len(transformer.blocks)
    assert torch.equal(transformer.forward_features(images), one_by_one)
