"""Optimizers and weight decay."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

import vitfast
from vitfast.config.schema import OptimConfig
from vitfast.tasks import ClassificationTask
from vitfast.training.optimizer import create_optimizer, parameter_groups


def task() -> ClassificationTask:
    return ClassificationTask(vitfast.create_model("vit_nano_patch2_8", num_classes=3, depth=1))


def test_matrices_are_decayed_and_nothing_else():
    learner = task()
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    decayed, plain = parameter_groups(learner, 0.3)
    assert decayed["weight_decay"] == 0.3
    assert plain["weight_decay"] == 0.0
    decayed_names = {names[id(parameter)] for parameter in decayed["params"]}
    plain_names = {names[id(parameter)] for parameter in plain["params"]}
    assert decayed_names | plain_names == set(names.values())
    assert not decayed_names & plain_names
    assert "model.blocks.0.attn.qkv.weight" in decayed_names
    exempt = {"model.pos_embed", "model.cls_token", "model.blocks.0.norm1.weight", "model.blocks.0.mlp.fc1.bias"}
    assert exempt <= plain_names
    assert not any(name.endswith("bias") for name in decayed_names)


def test_frozen_parameters_are_left_out():
    learner = task()
    learner.model.head.weight.requires_grad_(False)
    parameters = [parameter for group in parameter_groups(learner, 0.1) for parameter in group["params"]]
    assert all(parameter is not learner.model.head.weight for parameter in parameters)


def test_a_module_without_matrices_has_one_group():
    assert len(parameter_groups(nn.LayerNorm(4), 0.1)) == 1


def test_all_parameters_are_decayed_with_decay_all():
    (group,) = create_optimizer(task(), OptimConfig(weight_decay=0.3, decay_all=True)).param_groups
    assert group["weight_decay"] == 0.3
    assert len(group["params"]) == len(list(task().parameters()))


@pytest.mark.parametrize("clip", [False, True])
def test_larc_is_its_formula(clip):
    """The local learning rate of apex's LARC with weight decay inside, then SGD with momentum."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).double()
    nn.init.zeros_(model[0].bias)  # its norm is 0 in the first step
    expected = [parameter.detach().clone() for parameter in model.parameters()]
    momenta: list[torch.Tensor | None] = [None] * len(expected)
    lr, trust, decay, momentum = 0.5, 0.1, 0.2, 0.9
    config = OptimConfig(
        name="sgd", lr=lr, larc=trust, larc_clip=clip, weight_decay=decay, decay_all=True, momentum=momentum
    )
    optimizer = create_optimizer(model, config)
    for step in range(4):
        model[1].bias.grad = None
        for index, parameter in enumerate(model.parameters()):
            parameter.grad = torch.randn_like(parameter) * (index != 3 or step > 1)  # the last has no gradient at first
            gradient, norm = parameter.grad.clone(), expected[index].norm()
            if norm > 0 and gradient.norm() > 0:
                rate = trust * norm / (gradient.norm() + decay * norm + 1e-8)
                rate = min(rate / lr, 1.0) if clip else rate
                gradient = (gradient + decay * expected[index]) * rate
            previous = momenta[index]
            momenta[index] = gradient if previous is None else momentum * previous + gradient
            expected[index] = expected[index] - lr * momenta[index]
        optimizer.step()
    for parameter, value in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-12, atol=1e-14)
    assert optimizer.param_groups[0]["weight_decay"] == decay


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({"name": "adamw", "betas": [0.8, 0.95], "eps": 1e-6}, partial(AdamW, betas=(0.8, 0.95), eps=1e-6)),
        ({"name": "adam", "betas": [0.8, 0.95], "eps": 1e-6}, partial(Adam, betas=(0.8, 0.95), eps=1e-6)),
        ({"name": "sgd", "momentum": 0.7}, partial(SGD, momentum=0.7)),
        ({"name": "sgd", "momentum": 0.7, "nesterov": True}, partial(SGD, momentum=0.7, nesterov=True)),
    ],
)
def test_the_step_is_torchs(options, reference):
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 4, bias=False), nn.Linear(5, 4, bias=False)
    theirs.load_state_dict(ours.state_dict())
    mine = create_optimizer(ours, OptimConfig(lr=0.01, weight_decay=0.2, **options))
    plain = reference(theirs.parameters(), lr=0.01, weight_decay=0.2, foreach=False, fused=False)
    for step in range(5):
        images = torch.randn(3, 5, generator=torch.Generator().manual_seed(step))
        for model, optimizer in ((ours, mine), (theirs, plain)):
            optimizer.zero_grad()
            model(images).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-7)


def test_lower_layers_learn_more_slowly():
    learner = ClassificationTask(vitfast.create_model("vit_nano_patch2_8", num_classes=3, depth=2))
    optimizer = create_optimizer(learner, OptimConfig(lr=0.1, layer_decay=0.5))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    expected = {
        "model.head.weight": 0.1,
        "model.norm.bias": 0.1,
        "model.blocks.1.mlp.fc1.weight": 0.05,
        "model.blocks.0.norm1.weight": 0.025,
        "model.patch_embed.proj.weight": 0.0125,
        "model.cls_token": 0.0125,
        "model.pos_embed": 0.0125,
    }
    parameters = dict(learner.named_parameters())
    assert {name: rates[id(parameters[name])] for name in expected} == pytest.approx(expected)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert len(rates) == len(parameters)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_layers_of_timms_models(name):
    from timm.optim import param_groups_layer_decay

    learner = ClassificationTask(vitfast.create_model(f"timm/{name}", num_classes=3))
    ours = parameter_groups(learner, 0.1, 2.0, 0.5)
    theirs = param_groups_layer_decay(learner.model.network, layer_decay=0.5)
    rates = {id(parameter): group["lr"] for group in ours for parameter in group["params"]}
    expected = {id(p): 2.0 * group["lr_scale"] for group in theirs for p in group["params"]}
    assert rates == pytest.approx(expected)
    assert len(set(rates.values())) > 3


def test_layers_of_torchvisions_transformer():
    learner = vitfast.create_model("torchvision/vit_b_32", img_size=32, num_classes=3)
    groups = parameter_groups(learner, 0.1, 1.0, 0.5)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    names = {name: rates[id(parameter)] for name, parameter in learner.named_parameters()}
    assert names["network.heads.head.weight"] == names["network.encoder.ln.weight"] == 1.0
    assert names["network.encoder.layers.encoder_layer_11.ln_1.weight"] == 0.5
    assert names["network.conv_proj.weight"] == names["network.class_token"] == 0.5**13


def test_layers_of_a_distilled_model():
    learner = vitfast.create_model("deit_tiny_distilled_patch16_224", num_classes=3, depth=1)
    groups = parameter_groups(learner, 0.1, 1.0, 0.5)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    names = dict(learner.named_parameters())
    assert rates[id(names["head_dist.weight"])] == 1.0
    assert rates[id(names["dist_token"])] == 0.25


@pytest.mark.parametrize(("lr_batch", "expected"), [(None, 0.3), (512, 0.6), (2048, 0.15)])
def test_the_learning_rate_may_follow_the_batch(lr_batch, expected):
    config = OptimConfig(lr=0.3, lr_batch=lr_batch, layer_decay=0.5)
    optimizer = create_optimizer(task(), config, batch_size=1024)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
    assert optimizer.param_groups[-1]["lr"] == pytest.approx(expected / 4)
