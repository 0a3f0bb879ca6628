"""Low-rank updates of fixed weights."""

from __future__ import annotations

import sys

import pytest
import torch

import vitfast
from support.run_content import content, differences
from support.tiny_run import RICH
from vitfast.errors import UserError
from vitfast.training.lora import add_lora, merged_state
from vitfast.weights.checkpoint import load_state, load_weights_file


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"depth": 2}),
        ("deit_tiny_distilled_patch16_224", {"depth": 2}),
        ("convit_tiny", {"depth": 3, "local_up_to_layer": 2}),
        ("t2t_vit_7", {"depth": 2}),
        ("dvt_t2t_vit_12", {"depth": 2}),
        ("vit_small_patch16_dinov3", {"depth": 2}),
        ("timm/test_vit", {}),
    ],
)
def test_every_matrix_learns_and_merges(name, options):
    model = vitfast.create_model(name, num_classes=3, img_size=64, **options).eval()
    keys = model.state_dict().keys()
    images = torch.randn(2, 3, model.img_size, model.img_size)
    expected = model(images)
    heads = model.head_prefixes
    matrices = {layer for layer, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    add_lora(model, 2, 4)
    outputs = model(images)
    torch.testing.assert_close(outputs, expected)
    learning = {layer for layer, module in model.named_modules() if hasattr(module, "lora_A")}
    assert all(f"{layer}.".startswith(heads) or layer.endswith(".pos_proj") for layer in matrices - learning)
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in key or key.startswith(heads))
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    outputs = model(images)
    sum(one.square().sum() for one in (outputs if isinstance(outputs, (tuple, list)) else [outputs])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)

    plain = vitfast.create_model(name, num_classes=3, img_size=64, **options).eval()
    state = merged_state(model)
    assert state.keys() == keys
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(images), outputs, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def source(tmp_path_factory, train_tiny):
    """A run whose weights are fine-tuned."""
    run_dir = tmp_path_factory.mktemp("runs") / "source"
    assert train_tiny(run_dir, "schedule.epochs=1", "schedule.warmup_epochs=0") == 0
    return run_dir


def test_a_run_saves_merged_weights_and_resumes(tmp_path, train_tiny, source, capsys):
    options = [*RICH, f"model.checkpoint={source}", "finetune.lora_rank=2", "train.recompute=true"]
    assert train_tiny(tmp_path / "whole", *options) == 0
    assert "of them trained (LoRA)" in capsys.readouterr().err + (tmp_path / "whole" / "log.txt").read_text()
    assert train_tiny(tmp_path / "cut", *options, stop_step=8) == 143
    # the weights come from the checkpoint, not from the file that the run started with
    assert train_tiny(tmp_path / "cut", f"train.resume={tmp_path / 'cut'}") == 0
    assert differences(content(tmp_path / "whole"), content(tmp_path / "cut")) == []

    last = tmp_path / "cut" / "checkpoint_000012"
    before, after = load_weights_file(source / "checkpoint_000006"), load_weights_file(last)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert after.keys() == before.keys()
    linear = {f"blocks.0.{name}.weight" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert changed == linear | {"head.weight", "head.bias"}
    unmerged, _ = load_state(last)["unmerged"]
    assert torch.equal(unmerged["blocks.0.attn.qkv.base_layer.weight"], before["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "updates the weights of model.checkpoint"),
        (["model.checkpoint=x", "quantize.format=FP16_16"], "does not support quantize.format"),
        (["model.checkpoint=x", "train.shard=true"], "does not support train.shard"),
    ],
)
def test_what_it_does_not_support(tmp_path, train_tiny, options, message):
    with pytest.raises(UserError, match=message):
        train_tiny(tmp_path / "run", "finetune.lora_rank=2", *options)


def test_models_without_linear_layers_and_no_peft(monkeypatch):
    model = vitfast.create_model("torchvision/resnet18", num_classes=3)
    with pytest.raises(UserError, match="only its head has linear layers"):
        add_lora(model, 2, 4)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'vitfast\[lora\]'"):
        add_lora(model, 2, 4)
