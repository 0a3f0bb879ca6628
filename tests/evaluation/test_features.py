"""Features of frozen models."""

from __future__ import annotations

import pytest
import torch

import vitfast
from vitfast.errors import UserError
from vitfast.evaluation.features import CONCAT_CLS4, LAST_CLS, extract_features, feature_layers

SMALL = {"embed_dim": 16, "num_heads": 2, "img_size": 8, "in_chans": 1, "num_classes": 3}
CPU = torch.device("cpu")


def model_of(name: str = "vit_nano_patch2_8", **fields):
    model = vitfast.create_model(name, **{**SMALL, "depth": 5, **fields}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def batches(model):
    """Three batches, of which the second has no readable image."""
    sizes = (model.in_chans, model.img_size, model.img_size)
    return [(torch.randn(count, *sizes), torch.arange(count)) for count in (3, 0, 2)]


@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_both_layers_of_a_vit(pooling):
    model = model_of(pooling=pooling)
    given = batches(model)
    features, targets = extract_features(model, given, feature_layers(model), device=CPU)
    images = torch.cat([images for images, _ in given])
    with torch.no_grad():
        assert torch.allclose(model.head(features[LAST_CLS]), model(images), atol=1e-5)
        tokens, expected = model.embed(images), []
        for block in model.blocks:
            tokens = block(tokens)
            expected.append(model.norm(tokens)[:, 0])
    assert torch.allclose(features[CONCAT_CLS4], torch.cat(expected[-4:], dim=1), atol=1e-5)
    assert targets.tolist() == [0, 1, 2, 0, 1]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_hidden_layer_of_a_head_is_part_of_the_head():
    model = model_of(head_hidden_dim=5)
    features, _ = extract_features(model, batches(model), [LAST_CLS], device=CPU)
    assert features[LAST_CLS].shape == (5, 16)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("vit_nano_patch2_8", {"depth": 3}),
        ("convit_tiny", {"patch_size": 4, "num_heads": 4, "local_up_to_layer": 3}),
        ("dvt_nano_16", {"img_size": 16}),
    ],
)
def test_models_without_four_class_tokens(name, fields):
    model = model_of(name, **fields)
    assert feature_layers(model) == [LAST_CLS]
    features, _ = extract_features(model, batches(model), [LAST_CLS], device=CPU)
    assert features[LAST_CLS].shape == (5, 16)


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_resnet"])
def test_models_of_timm(name):
    pytest.importorskip("timm")
    model = vitfast.create_model(name, num_classes=3, img_size=160).eval()
    images, labels = torch.randn(2, 3, 160, 160), torch.arange(2)
    features, _ = extract_features(model, [(images, labels)], feature_layers(model), device=CPU)
    with torch.no_grad():
        expected = model.network.forward_head(model.network.forward_features(images), pre_logits=True)
        assert torch.allclose(features[LAST_CLS], expected, atol=1e-5)
        if name == "timm/test_vit":
            states = model.network.forward_intermediates(
                images, indices=4, norm=True, return_prefix_tokens=True, intermediates_only=True
            )
            class_tokens = torch.cat([prefix[:, 0] for _, prefix in states], dim=1)
            assert torch.allclose(features[CONCAT_CLS4], class_tokens, atol=1e-5)


def test_features_that_are_not_finite_are_an_error():
    model = model_of()
    model.norm.bias.data[0] = torch.nan
    with pytest.raises(UserError, match="features lastCLS are NaN or infinite"):
        extract_features(model, batches(model), [LAST_CLS], device=CPU)
