from __future__ import annotations

import sys

import pytest
import torch

from vitfast import create_model
from vitfast.benchmarking.model_cases import TrainingStep
from vitfast.benchmarking.peers import (
    Unavailable,
    parameters_by_name,
    timm_model,
    torchvision_model,
)
from vitfast.benchmarking.table import relative_l2

BUILDERS = {"torchvision": torchvision_model, "timm": timm_model}


@pytest.fixture(params=["torchvision", "timm"])
def library(request):
    if request.param == "timm":
        pytest.importorskip("timm")
    return request.param


def perturbed(name, **fields):
    """A model none of whose parameters has its neutral initial value, so that a forgotten one shows."""
    model = create_model(name, num_classes=7, **fields)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("name", ["vit_nano_patch2_8", "vit_mini_patch4_32"])
def test_the_same_weights_give_the_same_logits(library, name):
    model = perturbed(name).eval()
    foreign = BUILDERS[library](model)
    images = torch.randn(2, model.in_chans, model.img_size, model.img_size)
    with torch.no_grad():
        logits = model(images)
        assert not foreign.training
        assert relative_l2(foreign(images), logits) < 1e-5
        for parameter in foreign.parameters():
            parameter.mul_(1.5)
        assert torch.equal(model(images), logits), "the weights have to be copies"


def test_the_same_weights_give_the_same_gradients(library):
    model = perturbed("vit_nano_patch2_8").train()
    foreign = BUILDERS[library](model)
    assert foreign.training
    images = torch.randn(2, 1, 8, 8)
    assert relative_l2(*(TrainingStep(module, images, "fp32").gradient() for module in (foreign, model))) < 1e-4


def test_a_distilled_model_is_timms_alone():
    pytest.importorskip("timm")
    model = perturbed("deit_tiny_distilled_patch16_224", embed_dim=32, depth=2, num_heads=2, img_size=32)
    with pytest.raises(Unavailable, match="distillation_token"):
        torchvision_model(model)
    foreign = timm_model(model)
    images = torch.randn(2, 3, 32, 32)
    for ours, theirs in zip(model(images), foreign(images), strict=True):
        assert relative_l2(theirs, ours) < 1e-5
    with torch.no_grad():
        assert relative_l2(foreign.eval()(images), model.eval()(images)) < 1e-5


@pytest.mark.parametrize(
    "field", [{"patch_order": "channels_last"}, {"gelu": "tanh"}, {"pooling": "mean"}, {"head_hidden_dim": 8}]
)
def test_variants_that_neither_has_are_reported(library, field):
    with pytest.raises(Unavailable, match=library):
        BUILDERS[library](create_model("vit_nano_patch2_8", **field))


def test_other_families_are_reported(library):
    with pytest.raises(Unavailable, match=f"{library} has another form of convit_tiny"):
        BUILDERS[library](create_model("convit_tiny", img_size=32, depth=2, local_up_to_layer=1))


def test_a_missing_timm_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.models.deit", None)
    with pytest.raises(Unavailable, match="pip install timm"):
        timm_model(create_model("vit_nano_patch2_8"))


def test_parameters_of_torchvision_have_vitfasts_names():
    model = create_model("vit_nano_patch2_8")
    foreign = torchvision_model(model)
    parameters = parameters_by_name(foreign)
    assert list(parameters_by_name(model)) == [name for name, _ in model.named_parameters()]
    assert parameters["blocks.1.mlp.fc2.bias"] is foreign.encoder.layers.encoder_layer_1.mlp[3].bias
    assert parameters["norm.weight"] is foreign.encoder.ln.weight
