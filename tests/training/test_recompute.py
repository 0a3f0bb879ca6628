"""Gradient checkpointing."""

from __future__ import annotations

import copy

import pytest
import torch

import vitfast
from support.run_content import content, differences
from support.tiny_run import RICH
from vitfast.errors import UserError
from vitfast.training.recompute import recompute_blocks


def gradients(model, images):
    """Returns the logits, the gradients, and how many bytes are stored for the backward pass."""
    stored: dict[int, int] = {}

    def pack(tensor):
        stored[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(images)
    outputs = outputs if isinstance(outputs, torch.Tensor) else torch.cat(list(outputs))
    outputs.square().sum().backward()
    return outputs, {name: parameter.grad for name, parameter in model.named_parameters()}, sum(stored.values())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 3}),
        ("deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 3}),
        ("convit_tiny", {"img_size": 64, "depth": 3, "local_up_to_layer": 2}),
        ("t2t_vit_7", {"img_size": 64, "depth": 3}),
        ("dvt_t2t_vit_12", {"img_size": 64, "depth": 3}),
        ("timm/test_vit", {}),
    ],
)
def test_the_same_gradients_with_less_memory(name, options):
    rates = {"drop_path": 0.3} if name.startswith("dvt") else {"drop_path": 0.3, "drop_rate": 0.1}
    model = vitfast.create_model(name, num_classes=3, **options, **rates).train()
    images = torch.randn(8, 3, model.img_size, model.img_size)
    plain = copy.deepcopy(model)
    recompute_blocks(model)
    copied = copy.deepcopy(model)
    logits, expected, stored = gradients(plain, images)
    for one in (model, copied):
        same, found, less = gradients(one, images)
        assert torch.equal(same, logits)
        assert expected.keys() == found.keys()
        assert all(found[key] is expected[key] or torch.equal(found[key], expected[key]) for key in found)
        assert less < 0.7 * stored
    assert copied.state_dict().keys() == plain.state_dict().keys()


def test_a_copy_uses_its_own_weights():
    model = vitfast.create_model("vit_nano_patch2_8", depth=1)
    recompute_blocks(model)
    copied = copy.deepcopy(model)
    for parameter in copied.blocks.parameters():
        parameter.data.zero_()
    images = torch.randn(2, 1, 8, 8)
    assert not torch.equal(model(images), copied(images))


def test_a_run_has_the_same_result(tmp_path, train_tiny):
    assert train_tiny(tmp_path / "plain", *RICH) == 0
    assert train_tiny(tmp_path / "less", *RICH, "train.recompute=true") == 0
    assert differences(content(tmp_path / "plain"), content(tmp_path / "less")) == []


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/test_byobnet"])
def test_models_without_it(name, monkeypatch):
    model = vitfast.create_model(name, num_classes=3)
    if name.startswith("timm"):

        def refuse(enable=True):
            assert not enable, "gradient checkpointing not supported"

        monkeypatch.setattr(model.network, "set_grad_checkpointing", refuse)
    with pytest.raises(UserError, match=f"train.recompute=true does not support {name}; use train.accumulate"):
        recompute_blocks(model)
