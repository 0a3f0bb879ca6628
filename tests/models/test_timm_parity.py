"""timm is the oracle for names, keys, shapes, logits and gradients."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.slow import slow
from vitfast import create_model
from vitfast.models import HybridFields, build_model, list_models
from vitfast.models.registry import ARCHITECTURES
from vitfast.weights.key_tables.eva import timm_keys

timm = pytest.importorskip("timm")

# hybrids compute what timm's do with other fields only: test_hybrid.py
OWN = {name for name in list_models() if not isinstance(ARCHITECTURES[name], HybridFields)}
SHARED = sorted(OWN & set(timm.list_models()))
TOWERS = [name for name in SHARED if re.search("dino|clip|siglip|eva02", name)]
# those that differ in more than the image size
DISTINCT_TOWERS = list({replace(ARCHITECTURES[name], img_size=224): name for name in TOWERS}.values())
QUICK = [
    name for name in SHARED if re.search("tiny|small", name) and not re.search("384|patch8|xsmall|dino|eva02", name)
]
LONG = [name for name in SHARED if name not in QUICK + TOWERS]
# one tower for each set of layers: those of the same layers differ in sizes
_SIZES: dict[str, Any] = {
    "embed_dim": 384,
    "depth": 1,
    "num_heads": 6,
    "patch_size": 16,
    "img_size": 224,
    "mlp_ratio": 4.0,
}
KINDS = list({replace(ARCHITECTURES[name], **_SIZES): name for name in DISTINCT_TOWERS}.values())


def build_pair(name: str, ours: dict[str, Any] | None = None, theirs: dict[str, Any] | None = None, **both: Any):
    """Builds a model here and in timm around the same random parameters, without initializing either."""
    both = {"num_classes": 1000, **both}  # timm's default is that of some checkpoint, 0 or 21841 for a few
    with torch.device("meta"):
        model = build_model(name, **{**both, **(ours or {})})
        timm_model = timm.create_model(name, **{**both, **(theirs or {})})
    state = random_state(model)
    model.load_state_dict(state, assign=True)
    timm_model.load_state_dict(timm_keys(state, model.fields), assign=True)
    for module in timm_model.modules():  # tables of rotary embeddings, which are not saved
        if module._non_persistent_buffers_set:
            for key in module._non_persistent_buffers_set:
                module._buffers[key] = torch.empty_like(module._buffers[key], device="cpu")
            module.init_non_persistent_buffers()
    return model.eval(), timm_model.eval()


def random_state(model: nn.Module) -> dict[str, Tensor]:
    """Random parameters; nothing is zero or one, so that a forgotten bias or LayerNorm weight shows."""
    return {
        key: torch.randn(value.shape) * 0.02 + (1.0 if "norm" in key and key.endswith("weight") else 0.0)
        for key, value in model.state_dict().items()
    }


def random_images(model: nn.Module, batch: int = 1) -> Tensor:
    return torch.randn(batch, model.in_chans, model.img_size, model.img_size)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Relative L2 distance."""
    assert actual.shape == expected.shape
    error = (actual - expected).norm() / expected.norm()
    assert error <= tolerance, f"relative L2 distance {error:.2e} > {tolerance:.0e}"


def test_shared_names_are_many() -> None:
    """Guards the parametrization below against shrinking unseen."""
    assert len(SHARED) == 118
    assert {name for name in list_models() if name.startswith("deit_")} <= set(SHARED)


@pytest.mark.parametrize("name", [*QUICK, *slow(sorted({*SHARED} - {*QUICK}))])
def test_parameters_have_timms_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        model, timm_model = build_model(name), timm.create_model(name, num_classes=1000)
    ours = timm_keys(model.state_dict(), model.fields)
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in timm_model.state_dict().items()
    }
    assert dict(model.named_parameters()).keys() == model.state_dict().keys()
    assert dict(timm_model.named_parameters()).keys() == timm_model.state_dict().keys()
    assert (model.num_classes, model.in_chans) == (timm_model.num_classes, timm_model.in_chans)
    assert (model.img_size, model.img_size) == timm_model.patch_embed.img_size


@pytest.mark.parametrize("name", QUICK)
def test_logits_equal_timms(name: str) -> None:
    model, timm_model = build_pair(name)
    images = random_images(model)
    with torch.inference_mode():
        assert_close(model(images), timm_model(images))


@pytest.mark.parametrize("name", [*LONG[::3], *slow(name for name in LONG if name not in LONG[::3])])
def test_logits_of_two_blocks_equal_timms(name: str) -> None:
    local = {"local_up_to_layer": 1} if name.startswith("convit") else {}
    model, timm_model = build_pair(name, depth=2, **local)
    images = random_images(model)
    with torch.inference_mode():
        assert_close(model(images), timm_model(images))


@pytest.mark.parametrize("name", [*KINDS, *slow(name for name in DISTINCT_TOWERS if name not in KINDS)])
def test_logits_of_towers_with_two_blocks_equal_timms(name: str) -> None:
    """Names with the same fields but for the image size compute the same."""
    model, timm_model = build_pair(name, depth=2, img_size=3 * ARCHITECTURES[name].patch_size)
    images = random_images(model, batch=2)
    with torch.inference_mode():
        assert_close(model(images), timm_model(images), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *(*LONG, "vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224"),
        *("vit_small_plus_patch16_dinov3_qkvb", "eva02_base_patch16_clip_224"),
    ],
)
def test_logits_of_full_depth_equal_timms(name: str) -> None:
    model, timm_model = build_pair(name)
    images = random_images(model)
    with torch.inference_mode():
        assert_close(model(images), timm_model(images))


def test_features_equal_timms() -> None:
    model, timm_model = build_pair("vit_tiny_patch16_224", depth=2)
    images = random_images(model, batch=2)
    with torch.inference_mode():
        assert_close(model.forward_features(images), timm_model.forward_features(images))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"layer_norm_eps": 1e-2}, {"norm_layer": partial(nn.LayerNorm, eps=1e-2)}),
        ({"qkv_bias": False}, {"qkv_bias": False}),
        ({"gelu": "tanh"}, {"act_layer": "gelu_tanh"}),
        ({"mlp_ratio": 2.0}, {"mlp_ratio": 2.0}),
        ({"num_classes": 7, "in_chans": 1, "img_size": 64}, {"num_classes": 7, "in_chans": 1, "img_size": 64}),
        ({"num_classes": 0}, {"num_classes": 0}),
    ],
)
def test_fields_that_timm_has(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    model, timm_model = build_pair("vit_tiny_patch16_224", ours, theirs, depth=2)
    images = random_images(model)
    with torch.inference_mode():
        expected = timm_model(images)
        assert_close(model(images), expected, 1e-5)
        # the field changes the result by more than the tolerance, so that ignoring it would show
        if "layer_norm_eps" in ours or "gelu" in ours:
            default = build_model("vit_tiny_patch16_224", depth=2).eval()
            default.load_state_dict(model.state_dict())
            assert (default(images) - expected).norm() / expected.norm() > 2e-5


def test_distilled_training_returns_both_heads() -> None:
    model, timm_model = build_pair("deit_tiny_distilled_patch16_224", depth=2)
    timm_model.set_distilled_training(True)
    images = random_images(model, batch=2)
    ours, theirs = model.train()(images), timm_model.train()(images)
    assert isinstance(ours, tuple)
    for logits, expected in zip(ours, theirs, strict=True):
        assert_close(logits, expected)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_gradients_equal_timms(name: str) -> None:
    model, timm_model = build_pair(name, depth=2, img_size=64)
    images, labels = random_images(model, batch=4), torch.tensor([3, 1, 4, 1])
    gradients = []
    for each in (model, timm_model):
        parameters = dict(each.named_parameters())
        # in evaluation, because timm averages the distilled heads there, as we do
        loss = F.cross_entropy(each(images), labels)
        gradients.append(dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True)))
    ours, theirs = gradients
    for key, expected in theirs.items():
        assert_close(ours[key], expected, 2e-4)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "convit_tiny"])
def test_weight_decay_spares_the_same_parameters(name: str) -> None:
    with torch.device("meta"):
        model, timm_model = build_model(name), timm.create_model(name)
    assert model.no_weight_decay() == timm_model.no_weight_decay() & dict(timm_model.named_parameters()).keys()


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "convit_tiny"])
def test_initialization_follows_timm(name: str) -> None:
    """Standard deviations of every parameter, within what chance allows."""
    model, timm_model = build_model(name), timm.create_model(name)
    theirs = dict(timm_model.named_parameters())
    for key, parameter in model.named_parameters():
        ours, expected = parameter.std().item(), theirs[key].std().item()
        # the deviation of n draws is known to about 1 / sqrt(2 n)
        assert ours == pytest.approx(expected, rel=6 / (2 * parameter.numel()) ** 0.5, abs=1e-9), key
        assert parameter.mean().item() == pytest.approx(theirs[key].mean().item(), abs=0.01), key


@pytest.mark.parametrize("options", [{"global_pool": "avg"}, {"global_pool": "avg", "reg_tokens": 2}, {}], ids=str)
def test_the_pooling_of_timms_weights_is_read_from_their_keys(tmp_path: Path, options: dict[str, Any]) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5, **options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    fields = {"depth": 2, "img_size": 32}
    if "reg_tokens" in options:
        fields |= {"register_tokens": 2}
    ours = create_model("vit_tiny_patch16_224", checkpoint=tmp_path / "timm.pth", **fields).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert_close(ours(images), model(images), 1e-5)
