"""Hugging Face's models and vitfast's give the same logits, from its folders and from state dicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import vitfast
from support.foreign_weights import CLASSES, DEPTH, NAME, SIZES, images, randomize, relative_error
from vitfast.errors import UserError

transformers = pytest.importorskip("transformers", reason="Hugging Face's transformers is not installed")
TOLERANCE = 1e-5


def config(kind: str = "ViT", **options: Any) -> Any:
    return getattr(transformers, f"{kind}Config")(
        hidden_size=SIZES["dim"],
        num_hidden_layers=DEPTH,
        num_attention_heads=SIZES["heads"],
        intermediate_size=SIZES["mlp"],
        image_size=SIZES["img"],
        patch_size=SIZES["patch"],
        num_labels=CLASSES,
        **options,
    )


@torch.inference_mode()
def assert_equal_logits(model: torch.nn.Module, foreign: torch.nn.Module) -> None:
    batch = images()
    assert relative_error(model.eval()(batch), foreign(batch).logits) < TOLERANCE


@pytest.mark.parametrize(
    "options",
    [{}, {"qkv_bias": False}, {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3}],
    ids=["default", "no qkv bias", "other activation and epsilon"],
)
def test_folder_of_an_image_classifier(tmp_path: Path, options: dict[str, Any]) -> None:
    foreign = randomize(transformers.ViTForImageClassification(config(**options)))
    foreign.save_pretrained(tmp_path)
    model = vitfast.create_model(NAME, depth=DEPTH, checkpoint=tmp_path)
    assert_equal_logits(model, foreign)
    assert model.load_report.family == "Hugging Face ViT and DeiT"
    assert model.fields.layer_norm_eps == options.get("layer_norm_eps", 1e-12)
    assert model.fields.gelu == ("tanh" if "hidden_act" in options else "erf")
    assert model.fields.qkv_bias is options.get("qkv_bias", True)
    assert vitfast.load_weights(model, tmp_path / "model.safetensors").loaded == model.load_report.loaded


@pytest.mark.parametrize("root", ["", "vit."])
def test_names_of_the_model_in_memory(tmp_path: Path, root: str) -> None:
    foreign = randomize(transformers.ViTForImageClassification(config()))
    state = {key.removeprefix("vit.") if not root else key: value for key, value in foreign.state_dict().items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_equal_logits(vitfast.create_model(NAME, depth=DEPTH, checkpoint=tmp_path / "pytorch_model.bin"), foreign)


def test_bare_model_has_no_head_and_its_pooler_is_reported(tmp_path: Path) -> None:
    foreign = randomize(transformers.ViTModel(config()))
    foreign.save_pretrained(tmp_path)
    model = vitfast.create_model(NAME, depth=DEPTH, checkpoint=tmp_path)
    assert model.num_classes == 0
    assert model.load_report.skipped == ("pooler.dense.bias", "pooler.dense.weight")
    with torch.inference_mode():
        batch = images()
        expected = foreign(batch).last_hidden_state[:, 0]
        assert relative_error(model.eval()(batch), expected) < TOLERANCE


def test_distilled_deit(tmp_path: Path) -> None:
    foreign = randomize(transformers.DeiTForImageClassificationWithTeacher(config("DeiT")))
    foreign.save_pretrained(tmp_path)
    model = vitfast.create_model(NAME, depth=DEPTH, distillation_token="after_class", checkpoint=tmp_path)
    assert_equal_logits(model, foreign)


def test_deit_with_one_head_lacks_the_other(tmp_path: Path) -> None:
    transformers.DeiTForImageClassification(config("DeiT")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"does not fit vit_mini_patch4_32; missing: head_dist.bias, head_dist.weight"):
        vitfast.create_model(NAME, depth=DEPTH, distillation_token="after_class", checkpoint=tmp_path)


def test_other_heads_than_the_configuration_says(tmp_path: Path) -> None:
    transformers.ViTForImageClassification(config()).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match="num_heads is 3 in the file and 6 in the model; build the model with num_heads=3"
    ):
        vitfast.create_model(NAME, depth=DEPTH, num_heads=6, checkpoint=tmp_path)


def test_resized_positions_are_hugging_faces(tmp_path: Path) -> None:
    foreign = randomize(transformers.ViTForImageClassification(config()))
    foreign.save_pretrained(tmp_path)
    model = vitfast.create_model(NAME, depth=DEPTH, checkpoint=tmp_path, img_size=48).eval()
    assert model.load_report.resized == ("pos_embed",)
    batch = torch.randn(2, 3, 48, 48)
    with torch.inference_mode():
        assert relative_error(model(batch), foreign(batch, interpolate_pos_encoding=True).logits) < TOLERANCE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act='relu', which vitfast does not support; supported: gelu, "),
        ({"hidden_act": []}, "config.json has a value of a wrong type"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps must be a finite number; got 'small'"),
        ([], "config.json is not the configuration of a model"),
        ("{", "config.json is damaged or not JSON"),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    transformers.ViTForImageClassification(config()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    if isinstance(change, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    else:
        path.write_text(change if isinstance(change, str) else json.dumps(change))
    with pytest.raises(UserError) as info:
        vitfast.create_model(NAME, depth=DEPTH, checkpoint=tmp_path)
    assert message in str(info.value)
    assert str(tmp_path) in str(info.value)


def test_folder_in_parts(tmp_path: Path) -> None:
    foreign = randomize(transformers.ViTForImageClassification(config()))
    foreign.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    model = vitfast.create_model(NAME, depth=DEPTH, checkpoint=tmp_path)
    assert_equal_logits(model, foreign)
    assert model.load_report.family == "Hugging Face ViT and DeiT"


def test_distilled_deit_in_parts(tmp_path: Path) -> None:
    foreign = randomize(transformers.DeiTForImageClassificationWithTeacher(config("DeiT")))
    foreign.save_pretrained(tmp_path, max_shard_size="1MB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    model = vitfast.create_model(NAME, depth=DEPTH, distillation_token="after_class", checkpoint=tmp_path)
    assert_equal_logits(model, foreign)
