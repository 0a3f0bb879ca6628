"""load_weights: which differences are refused and which are allowed, and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import vitfast
from support.foreign_weights import CLASSES, DEPTH, NAME, JeonsworldViT, MyrtleViT, google_arrays, randomize
from vitfast.errors import UserError
from vitfast.layers import resize_position_embedding
from vitfast.models import ImageModel

NANO = "vit_nano_patch2_8"


def save(state: dict[str, Tensor], path: Path, without: tuple[str, ...] = ()) -> Path:
    """Writes plain weights, without a model's name."""
    save_file({key: value.contiguous() for key, value in state.items() if key not in without}, path)
    return path


def refusal(model: ImageModel, path: Path, **options: Any) -> str:
    """The message after the path; the model has to stay as it was."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as info:
        vitfast.load_weights(model, path, **options)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert str(info.value).startswith(str(path))
    return str(info.value).removeprefix(str(path))


def test_same_fields_load(tmp_path: Path) -> None:
    source, model = vitfast.create_model(NANO, num_classes=3), vitfast.create_model(NANO, num_classes=3)
    report = vitfast.load_weights(model, str(save(source.state_dict(), tmp_path / "a.safetensors")))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in source.state_dict().items())
    assert report.loaded == tuple(model.state_dict())
    nothing = (report.missing, report.unexpected, report.mismatched, report.resized, report.skipped, report.fresh)
    assert set(nothing) == {()}


def test_missing_and_unexpected(tmp_path: Path) -> None:
    source, model = vitfast.create_model(NANO), vitfast.create_model(NANO)
    path = save(source.state_dict() | {"extra.bias": torch.ones(2)}, tmp_path / "a.safetensors", ("norm.weight",))
    assert refusal(model, path) == " does not fit vit_nano_patch2_8; missing: norm.weight; unexpected: extra.bias"
    with torch.no_grad():
        model.norm.weight.fill_(7.0)
    report = vitfast.load_weights(model, path, strict=False)
    assert (report.missing, report.unexpected) == (("norm.weight",), ("extra.bias",))
    assert "norm.weight" not in report.loaded
    assert model.norm.weight.eq(7.0).all()
    assert torch.equal(model.blocks[3].attn.qkv.weight, source.blocks[3].attn.qkv.weight)


def test_other_shape(tmp_path: Path) -> None:
    model = vitfast.create_model(NANO)
    path = save(model.state_dict() | {"blocks.2.norm1.bias": torch.ones(3)}, tmp_path / "a.safetensors")
    what = "blocks.2.norm1.bias [3] instead of [64]"
    assert refusal(model, path) == f" does not fit vit_nano_patch2_8; other shape: {what}"
    report = vitfast.load_weights(model, path, strict=False)
    assert report.mismatched == (what,)
    assert "blocks.2.norm1.bias" not in report.loaded


def test_keys_of_a_foreign_file_keep_their_names_in_messages(tmp_path: Path) -> None:
    """One third of a fused projection is missing: its companions cannot be used, and ours is missing."""
    state = JeonsworldViT().state_dict() | {"transformer.extra": torch.ones(1)}
    root = "transformer.encoder.layer.1.attn"
    path = save(state, tmp_path / "a.bin", (f"{root}.key.bias",))
    message = refusal(vitfast.create_model(NAME, depth=DEPTH, num_classes=CLASSES), path)
    beginning, _, unexpected = message.partition("; unexpected: ")
    assert beginning == f" does not fit {NAME}; missing: blocks.1.attn.qkv.bias"
    assert set(unexpected.split(", ")) == {"transformer.extra", f"{root}.query.bias", f"{root}.value.bias"}


@pytest.mark.parametrize("strict", [True, False])
def test_sizes_are_refused_by_name(tmp_path: Path, strict: bool) -> None:
    source = vitfast.create_model("vit_nano_patch4_16", depth=2, num_classes=10)
    path = save(source.state_dict(), tmp_path / "a.safetensors")
    assert refusal(vitfast.create_model(NANO, num_classes=10, mlp_ratio=2.0), path, strict=strict) == (
        " (timm) does not fit vit_nano_patch2_8: depth is 2 in the file and 4 in the model, "
        "mlp_ratio is 4.0 in the file and 2.0 in the model, patch_size is 4 in the file and 2 in the model; "
        "build the model with depth=2, mlp_ratio=4.0, patch_size=4"
    )
    with torch.device("meta"):
        tiny = vitfast.create_model("vit_tiny_patch16_224")
    small = {key: torch.zeros(value.shape) for key, value in tiny.state_dict().items()}
    message = refusal(vitfast.create_model(NAME, depth=12), save(small, path), strict=strict)
    assert message.endswith("; its sizes are those of vit_tiny_patch16_224, deit_tiny_patch16_224")


def test_fields_without_a_shape_are_refused_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **google_arrays(vitfast.create_model(NAME, depth=DEPTH, num_classes=5), "linen"))
    model = vitfast.create_model(NAME, depth=DEPTH, num_classes=5, layer_norm_eps=1e-5)
    path = tmp_path / "a.npz"
    assert refusal(model, path, strict=False) == (
        f" (Google) does not fit {NAME}: layer_norm_eps is 1e-06 in the file and 1e-05 in the model, "
        "gelu is 'tanh' in the file and 'erf' in the model; "
        f"vitfast.create_model('{NAME}', checkpoint='{path}') builds a model with the file's fields"
    )


def test_myrtles_fields_are_refused_but_its_patch_order_is_only_a_layout(tmp_path: Path) -> None:
    foreign = randomize(MyrtleViT())
    path = tmp_path / "vit_000007"
    torch.save({"model": foreign.state_dict()}, path)
    message = refusal(vitfast.create_model(NAME, depth=DEPTH, num_classes=CLASSES), path)
    for field in ("layer_norm_eps is 1e-05", "qkv_bias is False", "head_type is 'norm_linear'"):
        assert field in message
    fields = {"layer_norm_eps": 1e-5, "qkv_bias": False, "head_type": "norm_linear"}
    model = vitfast.create_model(NAME, depth=DEPTH, num_classes=CLASSES, **fields).eval()
    vitfast.load_weights(model, path)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), foreign(images), rtol=1e-4, atol=1e-5)


def test_another_head_needs_the_number_of_classes(tmp_path: Path) -> None:
    source, model = vitfast.create_model(NANO, num_classes=10), vitfast.create_model(NANO, num_classes=4)
    path, fresh = save(source.state_dict(), tmp_path / "a.safetensors"), model.head.weight.clone()
    for strict in (True, False):
        assert refusal(model, path, strict=strict) == (
            " (timm) does not fit vit_nano_patch2_8: num_classes is 10 in the file and 4 in the model; "
            "give load_weights num_classes=4 to keep the model's head"
        )
    with pytest.raises(UserError, match="num_classes=5, but the model has 4; give the model's number"):
        vitfast.load_weights(model, path, num_classes=5)
    report = vitfast.load_weights(model, path, num_classes=4)
    assert (report.fresh, sorted(report.skipped)) == (("head.weight", "head.bias"), ["head.bias", "head.weight"])
    assert torch.equal(model.head.weight, fresh)
    assert torch.equal(model.norm.weight, source.norm.weight)


@pytest.mark.parametrize("given", [None, "bicubic", "bicubic_aligned"])
def test_positions_are_resized_by_the_familys_or_the_given_method(tmp_path: Path, given: Any) -> None:
    foreign = randomize(JeonsworldViT())
    torch.save(foreign.state_dict(), tmp_path / "a.bin")
    model = vitfast.create_model(NAME, depth=DEPTH, num_classes=CLASSES, img_size=48)
    report = vitfast.load_weights(model, tmp_path / "a.bin", position_interpolation=given)
    way = given or "zoom_linear"
    assert (report.resized, report.position_interpolation) == (("pos_embed",), way)
    positions = foreign.transformer.embeddings.position_embeddings
    assert torch.equal(model.pos_embed, resize_position_embedding(positions, 12, interpolation=way))


@pytest.mark.parametrize("given", [None, "bicubic"])
def test_created_models_are_resized_too(tmp_path: Path, given: Any) -> None:
    foreign = randomize(JeonsworldViT())
    torch.save(foreign.state_dict(), tmp_path / "a.bin")
    options = {} if given is None else {"position_interpolation": given}
    model = vitfast.create_model(NAME, depth=DEPTH, img_size=16, checkpoint=tmp_path / "a.bin", **options)
    assert model.load_report.position_interpolation == (given or "zoom_linear")
    positions = foreign.transformer.embeddings.position_embeddings
    expected = resize_position_embedding(positions, 4, interpolation=given or "zoom_linear")
    assert torch.equal(model.pos_embed, expected)


def test_unknown_interpolation(tmp_path: Path) -> None:
    model = vitfast.create_model(NANO)
    with pytest.raises(UserError, match=r"position_interpolation must be one of 'zoom_linear', .*; got 'nearest'"):
        vitfast.load_weights(model, tmp_path / "a.bin", position_interpolation="nearest")


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    model = vitfast.create_model(NANO)
    weight = torch.ones(64, 64, dtype=torch.int8)
    path = save(model.state_dict() | {"blocks.0.attn.proj.weight": weight}, tmp_path / "a.safetensors")
    assert refusal(model, path) == (
        ": blocks.0.attn.proj.weight holds torch.int8, not floating-point numbers; save it in float32"
    )


def test_half_precision_is_widened(tmp_path: Path) -> None:
    source, model = vitfast.create_model(NANO), vitfast.create_model(NANO, img_size=12)
    path = save({key: value.half() for key, value in source.state_dict().items()}, tmp_path / "a.safetensors")
    assert vitfast.load_weights(model, path).resized == ("pos_embed",)
    assert model.norm.weight.dtype == torch.float32


def test_weights_of_another_kind_of_model(tmp_path: Path) -> None:
    path = save(vitfast.create_model(NANO).state_dict(), tmp_path / "a.safetensors")
    message = refusal(vitfast.create_model("torchvision/squeezenet1_1"), path)
    assert message.startswith(" does not fit torchvision/squeezenet1_1; missing: network.classifier.1.bias")
    with pytest.raises(UserError, match=r"load_weights fills models from .*; got a Linear"):
        vitfast.load_weights(nn.Linear(1, 1), path)


def test_report_is_readable(tmp_path: Path) -> None:
    arrays = google_arrays(vitfast.create_model(NAME, depth=DEPTH, num_classes=7), "released")
    arrays["pre_logits/kernel"] = np.ones((192, 192), dtype=np.float32)
    path = tmp_path / "ViT.npz"
    np.savez(path, **arrays)
    model = vitfast.create_model(NAME, depth=DEPTH, num_classes=5, img_size=48, checkpoint=path)
    assert str(model.load_report).splitlines() == [
        f"{NAME}: 30 tensors loaded from {path} (Google)",
        "  fields from the file and its format: gelu='tanh', head_type='linear', layer_norm_eps=1e-06, "
        "patch_order='channels_first', position_interpolation='zoom_linear', qkv_bias=True",
        "  fields not in the file, assumed: pooling='token'",
        "  resized (zoom_linear): pos_embed",
        "  newly initialized: head.weight, head.bias",
        "  skipped: head.weight, head.bias, pre_logits.fc.weight",
    ]
