"""create_model and list_models: fields, checkpoints and error messages."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import vitfast
from vitfast.errors import UserError
from vitfast.layers import resize_position_embedding
from vitfast.models import VisionTransformer
from vitfast.weights.checkpoint import update_manifest
from vitfast.weights.manifest import manifest_text

NANO = "vit_nano_patch2_8"


def save_folder(model: VisionTransformer, folder: Path) -> Path:
    """Writes the files of a checkpoint folder that create_model reads."""
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    manifest = {
        "format_version": 1,
        "files": {"model.safetensors": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()},
        "model": {"name": model.model_name, "fields": model.model_fields},
    }
    (folder / "manifest.json").write_text(manifest_text(manifest))
    return folder


def save_weights(model: VisionTransformer, path: Path) -> Path:
    save_file(model.state_dict(), path)
    return path


def assert_same(model: VisionTransformer, other: VisionTransformer) -> None:
    assert (model.model_name, model.model_fields) == (other.model_name, other.model_fields)
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_classes": 7, "img_size": 16, "in_chans": 3},
        {
            "layer_norm_eps": 1e-5,
            "qkv_bias": False,
            "patch_order": "channels_last",
            "distillation_token": "last",
            "head_type": "norm_linear",
            "pooling": "mean",
            "gelu": "tanh",
            "position_interpolation": "zoom_linear",
            "drop_path": 0.1,
            "mlp_ratio": 2.0,
        },
        {"distillation_token": "after_class", "drop_rate": 0.1, "attention_drop_rate": 0.2},
    ],
)
def test_name_and_fields_rebuild_the_model(fields: dict[str, Any]) -> None:
    model = vitfast.create_model(NANO, **fields)
    assert model.model_fields.items() >= fields.items()
    restored = json.loads(json.dumps(model.model_fields))
    again = vitfast.create_model(model.model_name, **restored)
    assert (again.model_name, again.model_fields, type(again)) == (model.model_name, model.model_fields, type(model))
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize("name", vitfast.list_models())
def test_every_name_builds(name: str) -> None:
    with torch.device("meta"):
        model = vitfast.create_model(name)
    assert (model.model_name, model.num_classes) == (name, 1000)


def test_public_names() -> None:
    assert vitfast.list_models("vit_nano*_8") == [NANO]


def test_neither_name_nor_checkpoint() -> None:
    with pytest.raises(UserError, match="needs a name, for example 'vit_tiny_patch16_224'"):
        vitfast.create_model(None)


def test_folder_restores_the_model(tmp_path: Path) -> None:
    model = vitfast.create_model(NANO, num_classes=10, depth=2, gelu="tanh", distillation_token="after_class")
    folder = save_folder(model, tmp_path / "checkpoint_000010")
    assert_same(vitfast.create_model(None, checkpoint=folder), model)
    assert_same(vitfast.create_model(NANO, checkpoint=str(folder)), model)


def test_fields_override_the_checkpoints(tmp_path: Path) -> None:
    folder = save_folder(vitfast.create_model(NANO, num_classes=10, drop_path=0.2), tmp_path / "checkpoint")
    assert vitfast.create_model(checkpoint=folder, drop_path=0.0).model_fields["drop_path"] == 0.0


def test_folder_of_another_model(tmp_path: Path) -> None:
    folder = save_folder(vitfast.create_model(NANO, depth=1), tmp_path / "checkpoint")
    with pytest.raises(UserError, match="holds vit_nano_patch2_8, not vit_tiny_patch16_224; leave the name out"):
        vitfast.create_model("vit_tiny_patch16_224", checkpoint=folder)


def test_file_restores_weights_and_class_count(tmp_path: Path) -> None:
    model = vitfast.create_model(NANO, num_classes=10, position_interpolation="bicubic_antialias")  # as timm does it
    path = save_weights(model, tmp_path / "weights.safetensors")
    assert_same(vitfast.create_model(NANO, checkpoint=path), model)
    with pytest.raises(UserError, match=f"does not say which model it holds; give its name.*those of {NANO}"):
        vitfast.create_model(checkpoint=path)


def test_keys_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    state = vitfast.create_model(NANO).state_dict()
    del state["blocks.0.attn.qkv.bias"], state["norm.weight"]
    state["blocks.1.mlp.fc1.weight"] = torch.zeros(3, 64)
    state["extra.weight"] = torch.zeros(2)
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(UserError) as error:
        vitfast.create_model(NANO, checkpoint=tmp_path / "weights.safetensors")
    message = str(error.value)
    assert "missing: blocks.0.attn.qkv.bias, norm.weight;" in message
    assert "unexpected: extra.weight;" in message
    assert "other shape: blocks.1.mlp.fc1.weight [3, 64] instead of [256, 64]" in message
    assert str(tmp_path / "weights.safetensors") in message
    assert NANO in message


def test_long_lists_are_cut(tmp_path: Path) -> None:
    state = vitfast.create_model(NANO).state_dict()
    kept = {key: value for key, value in state.items() if not key.startswith(("blocks.0", "blocks.1", "blocks.2"))}
    save_file(kept, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"missing: blocks\.0\.attn\.proj\.bias, .* and 16 more$"):
        vitfast.create_model(NANO, checkpoint=tmp_path / "weights.safetensors")


@pytest.mark.parametrize("distillation_token", ["none", "after_class"])
@pytest.mark.parametrize(("saved_classes", "num_classes"), [(10, 5), (0, 5), (10, 0)])
def test_num_classes_replaces_the_head(
    tmp_path: Path, distillation_token: str, saved_classes: int, num_classes: int
) -> None:
    saved = vitfast.create_model(NANO, num_classes=saved_classes, distillation_token=distillation_token)
    folder = save_folder(saved, tmp_path / "checkpoint")
    model = vitfast.create_model(checkpoint=folder, num_classes=num_classes)
    heads = {f"{head}{kind}" for head in model.head_prefixes for kind in ("weight", "bias")}
    assert set(model.load_report.fresh) == (heads if num_classes else set())
    assert set(model.load_report.skipped) == (heads if saved_classes else set())
    assert model.num_classes == num_classes
    own = model.state_dict()
    body = {key: value for key, value in saved.state_dict().items() if not key.startswith("head")}
    assert all(torch.equal(own[key], value) for key, value in body.items())
    if num_classes:
        assert own["head.weight"].shape == (num_classes, 64)
        assert own["head.weight"].abs().sum() > 0


def test_the_same_class_count_keeps_the_head(tmp_path: Path) -> None:
    model = vitfast.create_model(NANO, num_classes=10)
    assert_same(vitfast.create_model(checkpoint=save_folder(model, tmp_path / "checkpoint"), num_classes=10), model)


@pytest.mark.parametrize("interpolation", ["zoom_linear", "bicubic"])
@pytest.mark.parametrize("distillation_token", ["after_class", "last"])
def test_given_image_size_resizes_the_positions(tmp_path: Path, interpolation: str, distillation_token: str) -> None:
    saved = vitfast.create_model(NANO, position_interpolation=interpolation, distillation_token=distillation_token)
    model = vitfast.create_model(checkpoint=save_folder(saved, tmp_path / "checkpoint"), img_size=12)
    prefix = 2 if distillation_token == "after_class" else 1
    expected = resize_position_embedding(saved.pos_embed, 6, num_prefix_tokens=prefix, interpolation=interpolation)
    assert torch.equal(model.pos_embed, expected)
    assert model(torch.zeros(1, 1, 12, 12))[0].shape == (1, 1000)


def test_other_positions_without_image_size_say_what_to_do(tmp_path: Path) -> None:
    path = save_weights(vitfast.create_model(NANO, img_size=16), tmp_path / "weights.safetensors")
    message = "img_size is 16 in the file and 8 in the model; give img_size=8 to resize .*, or img_size=16 to keep them"
    with pytest.raises(UserError, match=message):
        vitfast.create_model(NANO, checkpoint=path)
    assert vitfast.create_model(NANO, checkpoint=path, img_size=8).img_size == 8


def test_image_size_does_not_hide_another_model(tmp_path: Path) -> None:
    """17 positions are 4 x 4 patches and one token, not two."""
    path = save_weights(vitfast.create_model(NANO), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="distillation_token is 'none' in the file and 'after_class' in the model"):
        vitfast.create_model(NANO, checkpoint=path, img_size=12, distillation_token="after_class")


def _no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _flipped_byte(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def _broken_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"model": ')


def _manifest_without_model(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"files": {}}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_manifest, "does not say which model it holds; give its name"),
        (_no_weights, "model.safetensors is missing, but the manifest lists it"),
        (_flipped_byte, "model.safetensors is damaged: its SHA-256 differs from the one in the manifest"),
        (_broken_manifest, "manifest.json is damaged or not a manifest"),
        (_manifest_without_model, "manifest.json is damaged or not a manifest"),
    ],
)
def test_damaged_folder(tmp_path: Path, damage: Any, message: str) -> None:
    folder = save_folder(vitfast.create_model(NANO, depth=1), tmp_path / "checkpoint")
    damage(folder)
    with pytest.raises(UserError, match=message):
        vitfast.create_model(checkpoint=folder)


def test_a_run_is_its_best_checkpoint(tmp_path: Path) -> None:
    saved = {step: vitfast.create_model(NANO, depth=1) for step in (10, 20)}
    for step, model in saved.items():
        folder = save_folder(model, tmp_path / f"checkpoint_{step:06}")
    update_manifest(folder, {"metrics": {"best_step": 10}})
    for best in (10, 20):
        loaded = vitfast.create_model(checkpoint=tmp_path)
        torch.testing.assert_close(loaded.state_dict(), saved[best].state_dict(), rtol=0, atol=0)
        update_manifest(folder, {"metrics": {}})  # without a validation: the newest


def test_files_of_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.safetensors does not exist"):
        vitfast.create_model(NANO, checkpoint=tmp_path / "nowhere.safetensors")
    (tmp_path / "weights.pth").write_bytes(b"x")
    with pytest.raises(UserError, match=r"weights\.pth is not a \.npz, \.safetensors or torch file"):
        vitfast.create_model(NANO, checkpoint=tmp_path / "weights.pth")
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"weights\.safetensors is not a \.npz, \.safetensors or torch file .* but"):
        vitfast.create_model(NANO, checkpoint=tmp_path / "weights.safetensors")
