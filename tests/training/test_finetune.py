"""Fine-tuning: frozen trunk, preprocessing of the initial weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

import vitfast
from support.run_content import content, differences
from support.slow import slow
from support.tiny_run import RICH
from vitfast.config import load_config
from vitfast.errors import UserError
from vitfast.training import finetune
from vitfast.training.finetune import FrozenTrunk, adopt_preprocessing
from vitfast.weights.checkpoint import load_state, load_weights_file, read_manifest

EPOCH = 6  # steps


@pytest.fixture(scope="module")
def source(tmp_path_factory, train_tiny):
    """A run whose weights are fine-tuned."""
    run_dir = tmp_path_factory.mktemp("runs") / "source"
    assert train_tiny(run_dir, "schedule.epochs=1", "schedule.warmup_epochs=0") == 0
    return run_dir


def changed(before: dict, after: dict) -> set[str]:
    return {key for key in before if not torch.equal(before[key], after[key])}


def test_a_linear_probe_changes_the_head_only(tmp_path, train_tiny, source):
    options = ["model.drop_path=0.5", "optim.ema_decay=0.9", "finetune.freeze_epochs=null"]
    assert train_tiny(tmp_path / "run", f"model.checkpoint={source}", *options) == 0
    before, after = map(load_weights_file, (source / "checkpoint_000006", tmp_path / "run" / "checkpoint_000012"))
    assert changed(before, after) == {"head.weight", "head.bias"}
    groups = load_state(tmp_path / "run" / "checkpoint_000012")["optimizer"]["param_groups"]
    assert sum(len(group["params"]) for group in groups) == 2


def test_the_trunk_learns_after_the_frozen_epochs(tmp_path, train_tiny, source):
    run_dir = tmp_path / "run"
    options = [f"model.checkpoint={source}", "finetune.freeze_epochs=1", "train.keep_checkpoints=9"]
    assert train_tiny(run_dir, *options, "optim.clip_grad=1") == 0
    before = load_weights_file(source / "checkpoint_000006")
    first, second = (load_weights_file(run_dir / f"checkpoint_{step:06d}") for step in (EPOCH, 2 * EPOCH))
    assert changed(before, first) == {"head.weight", "head.bias"}
    assert changed(first, second) == set(first)


@pytest.mark.parametrize(
    ("freeze_epochs", "stop_step"),
    [("1", EPOCH), *slow([("null", 2), ("1", 2), ("1", EPOCH + 1), ("null", EPOCH), ("null", EPOCH + 1)])],
)
def test_resume(tmp_path, train_tiny, freeze_epochs, stop_step):
    options = [*RICH, f"finetune.freeze_epochs={freeze_epochs}"]
    assert train_tiny(tmp_path / "whole", *options) == 0
    assert train_tiny(tmp_path / "cut", *options, stop_step=stop_step) == 143
    assert train_tiny(tmp_path / "cut", f"train.resume={tmp_path / 'cut'}") == 0
    assert differences(content(tmp_path / "whole"), content(tmp_path / "cut")) == []


def test_modes_and_gradients_of_a_frozen_trunk():
    """A distilled model returns both logits while its trunk is frozen; fixed parameters stay fixed."""
    model = vitfast.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1, num_classes=3, drop_path=0.5)
    model.norm.bias.requires_grad_(False)
    trunk = FrozenTrunk(model, 1)
    assert trunk.apply(0)
    assert not trunk.apply(0)
    assert model.training
    assert model.head.training
    assert not any(module.training for module in model.blocks.modules())
    class_logits, distillation_logits = model(torch.randn(2, 3, 32, 32))
    (class_logits + distillation_logits).sum().backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    model.train()
    assert trunk.apply(1)
    assert all(module.training for module in model.modules())
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["norm.bias"]


@pytest.mark.parametrize("name", ["timm/test_vit", "torchvision/resnet18"])
def test_the_trunk_of_another_library(name):
    model = vitfast.create_model(name, img_size=32, num_classes=3).train()
    FrozenTrunk(model, None).apply(7)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        f"{model.head_prefixes[0]}weight",
        f"{model.head_prefixes[0]}bias",
    }
    assert not changed(state, model.state_dict())  # also running means


def test_name_fields_and_preprocessing_of_a_run(tmp_path, train_tiny, source):
    """Everything that is not given comes from the run, on other data as well."""
    manifest = source / "checkpoint_000006" / "manifest.json"
    options = ["model.name=null", f"model.checkpoint={source}", "finetune.keep_preprocessing=true"]
    options += ["data.img_size=null", "data.in_chans=null"]
    config = load_config([*options, "data.dataset=cifar10", "data.root=any", "data.mean=[0.1]"])
    adopt_preprocessing(config)
    recorded = json.loads(manifest.read_text())["data"]
    assert (config.data.img_size, config.data.in_chans, config.data.mean) == (8, 1, [0.1])
    assert config.data.std == recorded["std"]
    assert config.data.crop_pct == recorded["crop_pct"]

    from vitfast.train import main

    options += ["data.batch_size=512", "schedule.steps=1", "schedule.warmup_epochs=0", f"run_dir={tmp_path / 'run'}"]
    assert main(options) == 0
    assert read_manifest(tmp_path / "run" / "checkpoint_000001")["model"] == read_manifest(manifest.parent)["model"]
    with pytest.raises(UserError, match=r"model.name=null takes the model from model.checkpoint: give"):
        load_config(["model.name=null"])


def test_preprocessing_of_a_folder(tmp_path):
    settings = {"input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": settings}))
    options = [f"model.checkpoint={tmp_path}", "finetune.keep_preprocessing=true", "data.std=[0.7]"]
    config = load_config([*options, "data.img_size=null", "data.mean=null"])
    adopt_preprocessing(config)
    assert (config.data.img_size, config.data.mean, config.data.std) == (32, [0.1, 0.2, 0.3], [0.7])


def test_weights_of_the_hub(tmp_path, monkeypatch, train_tiny):
    model = vitfast.create_model("vit_nano_patch2_8", num_classes=5)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    settings = {"input_size": [1, 8, 8], "mean": [0.3], "std": [0.4], "crop_pct": 1.0}
    for module in (vitfast.api, finetune):
        monkeypatch.setattr(module, "download_pretrained", lambda *_: (tmp_path / "weights.safetensors", settings))
    run_dir = tmp_path / "run"
    options = ["model.checkpoint=hub", "finetune.keep_preprocessing=true", "finetune.freeze_epochs=null"]
    options += ["model.fields.embed_dim=64", "model.fields.depth=4", "model.fields.num_heads=4"]
    assert train_tiny(run_dir, *options, "schedule.steps=1", "schedule.warmup_epochs=0") == 0
    assert read_manifest(run_dir / "checkpoint_000001")["data"]["std"] == [0.4]
    after = load_weights_file(run_dir / "checkpoint_000001")
    assert torch.equal(after["blocks.0.mlp.fc1.weight"], model.blocks[0].mlp.fc1.weight.detach())
