"""What is decayed, and by which optimizer."""

from __future__ import annotations

import torch
from torch import nn

import vitfast
from vitfast.config.schema import OptimConfig
from vitfast.engine.optimizer import create_optimizer, parameter_groups
from vitfast.tasks import ClassificationTask


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


def test_the_step_is_adamw():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 4, bias=False), nn.Linear(5, 4, bias=False)
    theirs.load_state_dict(ours.state_dict())
    config = OptimConfig(lr=0.01, weight_decay=0.2, betas=[0.8, 0.95], eps=1e-6)
    mine = create_optimizer(ours, config)
    reference = torch.optim.AdamW(
        theirs.parameters(), lr=0.01, weight_decay=0.2, betas=(0.8, 0.95), eps=1e-6, foreach=False, fused=False
    )
    for step in range(5):
        images = torch.randn(3, 5, generator=torch.Generator().manual_seed(step))
        for model, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            model(images).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-7)
