"""ConViT, T2T-ViT, DVT and VISSL's ConViT from files in their formats: the same logits, and the inferred fields."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import vitfast
from support import dvt_equations, t2t_equations
from support.foreign_weights import randomize, relative_error, vissl_checkpoint
from support.released_weights import T2T_DEPTH, dvt_state, t2t_state, vissl_convit_trunk
from support.t2t_equations import linear, norm
from vitfast.errors import UserError
from vitfast.layers import resize_position_embedding
from vitfast.models import ImageModel
from vitfast.weights.key_tables.dvt import from_released_key

TOLERANCE = 1e-5
T2T = {"img_size": 32, "embed_dim": 24, "depth": T2T_DEPTH, "num_heads": 3, "mlp_ratio": 2.0, "token_dim": 8}
DVT = {
    "dvt_t2t_vit_12": {**T2T, "img_size": 64},
    "dvt_deit_small": {
        **{name: value for name, value in T2T.items() if name != "token_dim"},
        "patch_sizes": (16, 11, 8),
        "patch_strides": (16, 11, 8),
        "patch_paddings": (0, 1, 0),
    },
}
BACKBONES = {"dvt_t2t_vit_12": "t2t_vit", "dvt_deit_small": "vit"}
CONVIT = {"img_size": 32, "depth": 3, "local_up_to_layer": 2, "patch_size": 8}


def assert_whole(model: ImageModel, family: str) -> None:
    report = model.load_report
    assert (report.family, report.missing, report.unexpected, report.mismatched) == (family, (), (), ())
    assert set(report.loaded) == model.state_dict().keys()


def assert_written_back(model: ImageModel, path: Path) -> None:
    """As safetensors, and built from it again: the same keys and numbers, fields and thresholds."""
    vitfast.save_weights(model, path)
    again = vitfast.create_model(checkpoint=path)
    assert again.model_fields == model.model_fields
    assert again.saved_exits == model.saved_exits
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


# --- ConViT -----------------------------------------------------------------------------------------------------------


def timm_convit(**options: Any) -> nn.Module:
    timm = pytest.importorskip("timm")
    options = {"img_size": 32, "depth": 3, "local_up_to_layer": 2, "patch_size": 8, "num_classes": 5, **options}
    return randomize(timm.create_model("convit_tiny", **options))


@torch.inference_mode()
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "epoch": 3, "optimizer": {}}])
def test_convit(tmp_path: Path, wrap: Any) -> None:
    foreign, path = timm_convit(), tmp_path / "convit_tiny.pth"
    torch.save(wrap(foreign.state_dict()), path)
    model = vitfast.create_model("convit_tiny", **{"img_size": 32, "depth": 3, "patch_size": 8}, checkpoint=path).eval()
    assert_whole(model, "ConViT")
    fields = model.load_report.fields
    assert (fields["layer_norm_eps"], fields["qkv_bias"], fields["num_classes"]) == (1e-6, False, 5)
    assert (fields["local_up_to_layer"], fields["locality_dim"]) == (2, 1)
    assert "local_up_to_layer=2" in str(model.load_report)
    images = torch.randn(2, 3, 32, 32)
    assert relative_error(model(images), foreign(images)) < TOLERANCE
    assert_written_back(model, tmp_path / "again.safetensors")
    theirs = timm_convit()
    theirs.load_state_dict(load_file(tmp_path / "again.safetensors"))  # timm's keys
    assert relative_error(model(images), theirs(images)) < TOLERANCE


def test_heads_of_convit_are_reported(tmp_path: Path) -> None:
    torch.save(timm_convit().state_dict(), tmp_path / "convit.pth")
    with pytest.raises(UserError, match=r"num_heads is 4 in the file and 2 in the model; build the model with num_hea"):
        vitfast.create_model("convit_tiny", **CONVIT, num_heads=2, checkpoint=tmp_path / "convit.pth")
    with pytest.raises(UserError, match="holds ConViT weights, which do not fit vit_tiny_patch16_224, another kind"):
        vitfast.create_model("vit_tiny_patch16_224", checkpoint=tmp_path / "convit.pth")


@torch.inference_mode()
def test_vissl_convit(tmp_path: Path) -> None:
    """Repeated features, gates of four dimensions, other names of the MLP, epsilon 1e-5."""
    foreign = timm_convit(norm_layer=partial(nn.LayerNorm, eps=1e-5))
    state = foreign.state_dict()
    checkpoint = vissl_checkpoint(state)
    checkpoint["classy_state_dict"]["base_model"]["model"]["trunk"] = vissl_convit_trunk(state, 10)
    path = tmp_path / "model_final_checkpoint_phase299.torch"
    torch.save(checkpoint, path)
    model = vitfast.create_model("convit_tiny", **{"img_size": 32, "depth": 3, "patch_size": 8}, checkpoint=path).eval()
    assert_whole(model, "VISSL ConViT")
    fields = model.fields
    assert (fields.locality_dim, fields.layer_norm_eps, fields.local_up_to_layer) == (10, 1e-5, 2)
    assert (fields.local_initialization, fields.position_interpolation) == (False, "bicubic_aligned")
    images = torch.randn(2, 3, 32, 32)
    assert relative_error(model(images), foreign(images)) < TOLERANCE
    assert_written_back(model, tmp_path / "again.safetensors")


# --- T2T-ViT ----------------------------------------------------------------------------------------------------------


def t2t_logits(state: dict[str, Tensor], images: Tensor) -> Tensor:
    eps = 1e-5
    x = t2t_equations.tokens_to_token(state, "tokens_to_token", images, (7, 4, 2), eps)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1) + state["pos_embed"]
    for index in range(T2T_DEPTH):
        block = f"blocks.{index}"
        qkv = linear(state, f"{block}.attn.qkv", norm(state, f"{block}.norm1", x, eps)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (3, -1)).transpose(1, 2) for part in qkv)
        attended = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
        x = x + linear(state, f"{block}.attn.proj", attended.transpose(1, 2).flatten(2))
        hidden = F.gelu(linear(state, f"{block}.mlp.fc1", norm(state, f"{block}.norm2", x, eps)))
        x = x + linear(state, f"{block}.mlp.fc2", hidden)
    return linear(state, "head", norm(state, "norm", x, eps)[:, 0])


@torch.inference_mode()
@pytest.mark.parametrize("entry", ["state_dict_ema", "state_dict"])
def test_t2t_vit(tmp_path: Path, entry: str) -> None:
    """The averaged weights, which the original code evaluates, count where both are there."""
    state, path = t2t_state(), tmp_path / "81.5_T2T_ViT_14.pth.tar"
    content = {"epoch": 300, "arch": "t2t_vit_14", entry: {f"module.{key}": value for key, value in state.items()}}
    if entry == "state_dict_ema":
        content["state_dict"] = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save(content | {"metric": np.float64(81.5)}, path)
    model = vitfast.create_model("t2t_vit_7", **T2T, checkpoint=path).eval()
    assert_whole(model, "T2T-ViT")
    assert model.load_report.fields == {
        "layer_norm_eps": 1e-5,
        "num_classes": 5,
        "position_interpolation": "bicubic",
        "qkv_bias": False,
    }
    expected = {"epoch", "arch", "metric"} | ({"state_dict"} if entry == "state_dict_ema" else set())
    assert set(model.load_report.skipped) == expected
    images = torch.randn(2, 3, 32, 32)
    assert relative_error(model(images), t2t_logits(state, images)) < TOLERANCE
    assert_written_back(model, tmp_path / "again.safetensors")


def test_t2t_vit_of_another_image_size(tmp_path: Path) -> None:
    state, path = t2t_state(grid=3), tmp_path / "t2t.pth.tar"
    torch.save({"state_dict_ema": state}, path)
    sizes = {name: value for name, value in T2T.items() if name != "img_size"}
    with pytest.raises(UserError) as info:
        vitfast.create_model("t2t_vit_7", **sizes, checkpoint=path)
    assert "grid_size is 3 in the file and 14 in the model" in str(info.value)
    assert "give img_size=224 to resize the position embeddings, or img_size=48 to keep them" in str(info.value)
    assert vitfast.create_model("t2t_vit_7", **sizes, img_size=48, checkpoint=path).load_report.resized == ()
    for way in ("bicubic", "bicubic_aligned", "zoom_linear"):
        model = vitfast.create_model("t2t_vit_7", **T2T, checkpoint=path, position_interpolation=way)
        assert (model.load_report.resized, model.load_report.position_interpolation) == (("pos_embed",), way)
        assert torch.equal(model.pos_embed, resize_position_embedding(state["pos_embed"], 2, interpolation=way))
    again = vitfast.create_model("t2t_vit_7", **T2T, num_classes=5)
    assert vitfast.load_weights(again, path, position_interpolation="zoom_linear").resized == ("pos_embed",)


def test_other_t2t_vits_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"state_dict_ema": t2t_state()}, tmp_path / "t2t.pth.tar")
    with pytest.raises(
        UserError, match=r"depth is 2 in the file and 7 in the model.*build the model with embed_dim=24"
    ):
        vitfast.create_model("t2t_vit_7", checkpoint=tmp_path / "t2t.pth.tar")
    with pytest.raises(UserError, match="tokens_type is 'performer' in the file and 'transformer' in the model"):
        vitfast.create_model("t2t_vit_t_14", **T2T, checkpoint=tmp_path / "t2t.pth.tar")
    state = t2t_state() | {"blocks.0.attn.se_layer.fc.0.weight": torch.ones(1)}
    torch.save({"state_dict_ema": state}, tmp_path / "se.pth.tar")
    with pytest.raises(UserError, match="is T2T-ViT's variant SE, Dense or Ghost"):
        vitfast.create_model("t2t_vit_7", **T2T, checkpoint=tmp_path / "se.pth.tar")


# --- the Dynamic Vision Transformer -----------------------------------------------------------------------------------


def released(state: dict[str, Tensor], *, rows: int = 59, exits: int = 3, as_numpy: bool = True) -> dict[str, Any]:
    """A file in the released format: thresholds, costs and results beside the weights, some as NumPy numbers."""
    thresholds = torch.rand(rows, exits)
    thresholds[:, -1], thresholds[0, 0] = -1e8, 1e8
    costs = [0.5 + index * 0.05 for index in range(rows)]
    accuracies = [73.0 + index * 0.1 for index in range(rows)]
    return {
        "model_state_dict": state,
        "flops": [0.5, 1.5, 3.4],
        "anytime_classification": [np.float64(73.5), np.float32(77.0), 80.0] if as_numpy else [73.5, 77.0, 80.0],
        "dynamic_threshold": thresholds.numpy() if as_numpy else thresholds,
        "budgeted_batch_classification": [np.array(costs), [np.float64(a) for a in accuracies]],
    }


@torch.inference_mode()
@pytest.mark.parametrize("name", list(DVT))
@pytest.mark.parametrize("as_numpy", [True, False])
def test_dvt(tmp_path: Path, name: str, as_numpy: bool) -> None:
    state, path = dvt_state(BACKBONES[name]), tmp_path / "DVT.pth.tar"
    content = released(state, as_numpy=as_numpy)
    torch.save(content, path)
    model = vitfast.create_model(name, **DVT[name], checkpoint=path).eval()
    assert_whole(model, "DVT")
    over_deit = name == "dvt_deit_small"
    assert model.load_report.fields == {
        "feature_reuse": True,
        "layer_norm_eps": 1e-6 if over_deit else 1e-5,
        "num_classes": 5,
        "position_interpolation": "bicubic",
        "qkv_bias": over_deit,
        "relation_reuse": True,
        "reuse_dim": 4,
        "reuse_hidden_dim": 6,
    }
    assert model.load_report.skipped == ("flops", "anytime_classification")
    images = torch.randn(2, 3, model.img_size, model.img_size)
    expected = dvt_equations.dvt({from_released_key(k): v for k, v in state.items()}, model.fields, images)
    for logits, reference in zip(model(images), expected, strict=True):
        assert relative_error(logits, reference) < TOLERANCE

    saved = model.saved_exits
    thresholds = torch.as_tensor(content["dynamic_threshold"])
    assert saved.thresholds == tuple(map(tuple, thresholds.clamp(0, 2).tolist()))
    assert saved.thresholds[0][0] == 2.0
    assert saved.gmacs == tuple(content["budgeted_batch_classification"][0].tolist())
    assert saved.accuracy[1] == pytest.approx(0.731)
    assert "exit thresholds: 59 choices for 3 exits, 0.5 to 3.4 GMACs" in str(model.load_report)
    chosen = saved.within(1.0)
    assert chosen == list(saved.thresholds[10])
    logits, exits = vitfast.EarlyExit(model, chosen)(images)
    assert all(torch.allclose(logits[i], model(images)[exits[i]][i], atol=1e-4) for i in range(2))
    with pytest.raises(
        UserError, match=r"59 choices of thresholds of 0\.5 to 3\.4 GMACs an image; give one: model\.sa"
    ):
        vitfast.EarlyExit(model)
    with pytest.raises(UserError, match=r"budget_gmacs=0\.1 is below the cheapest thresholds .*; give at least 0\.5"):
        saved.within(0.1)
    assert_written_back(model, tmp_path / "again.safetensors")


def test_dvt_with_one_row_of_thresholds(tmp_path: Path) -> None:
    name, path = "dvt_deit_small", tmp_path / "DVT.pth.tar"
    curve = {"budgeted_batch_classification": [[1.0, 2.0], [70.0, 80.0]]}  # of other thresholds
    torch.save({"model_state_dict": dvt_state("vit"), "dynamic_threshold": [0.25, 0.5, -1e8], **curve}, path)
    model = vitfast.create_model(name, **DVT[name], checkpoint=path)
    assert model.load_report.skipped == ("budgeted_batch_classification",)
    assert vitfast.EarlyExit(model).thresholds == (0.25, 0.5, 0.0)
    with pytest.raises(UserError, match="the checkpoint does not say what its thresholds cost"):
        model.saved_exits.within(1.0)
    assert_written_back(model, tmp_path / "again.safetensors")
    again = vitfast.create_model(name, **model.model_fields)
    with pytest.raises(UserError, match=r"thresholds is not given, and none came with the model's weights"):
        vitfast.EarlyExit(again)
    assert vitfast.load_weights(again, path).exits == again.saved_exits == model.saved_exits


def test_dvt_with_new_heads_or_another_image_size_has_no_thresholds(tmp_path: Path) -> None:
    name, path = "dvt_deit_small", tmp_path / "DVT.pth.tar"
    torch.save(released(dvt_state("vit")), path)
    note = "exit thresholds (valid only with the file's heads and image size)"
    for change in ({"num_classes": 7}, {"img_size": 48}):
        model = vitfast.create_model(name, **{**DVT[name], **change}, checkpoint=path)
        assert model.saved_exits is None
        assert note in model.load_report.skipped
    assert vitfast.create_model(name, **{**DVT[name], "img_size": 48}, checkpoint=path).load_report.resized == (
        "exits.0.pos_embed",
        "exits.1.pos_embed",
        "exits.2.pos_embed",
    )


def test_dvt_of_another_number_of_classes(tmp_path: Path) -> None:
    name, path = "dvt_deit_small", tmp_path / "DVT.pth.tar"
    torch.save(released(dvt_state("vit", classes=9)), path)
    fields = vitfast.create_model(name, **DVT[name], checkpoint=path).model_fields
    model = vitfast.create_model(name, **{**fields, "num_classes": 5})
    with pytest.raises(UserError) as info:
        vitfast.load_weights(model, path)
    assert str(info.value) == (
        f"{path} (DVT) does not fit dvt_deit_small: num_classes is 9 in the file and 5 in the model; "
        "give load_weights num_classes=5 to keep the model's head"
    )
    assert len(vitfast.load_weights(model, path, num_classes=5).fresh) == 6


def _shared() -> Any:
    """2^40 numbers in 40 lists."""
    content: Any = [0.5, 0.5]
    for _ in range(40):
        content = [content, content]
    return content


def _endless() -> Any:
    content: list[Any] = []
    content.append(content)
    return content


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        (torch.rand(59, 2), "holds thresholds for 2 exits, but dvt_deit_small has 3; use the file of this model"),
        (torch.full((59, 3), float("nan")), "its dynamic_threshold holds NaN or values that are not numbers"),
        ("0.5", "its dynamic_threshold is not a table of numbers; remove the entry"),
        ([[0.5, 0.5, 0.5], [0.5]], "its dynamic_threshold has no rows of equal length"),
        ([], "its dynamic_threshold has no rows of equal length"),
        ([["a", "b", "c"]], "its dynamic_threshold holds NaN or values that are not numbers"),
        ([10**400, 0.5, 0.5], "its dynamic_threshold holds NaN or values that are not numbers"),
        (_shared(), "its dynamic_threshold holds NaN or values that are not numbers"),
        (_endless(), "its dynamic_threshold holds NaN or values that are not numbers"),
        ([[0.5] * 9_999] * 9_999, "its dynamic_threshold is not a table of numbers; remove the entry"),
        (torch.zeros(1 << 40, 0), "its dynamic_threshold is not a table of numbers; remove the entry"),
        (torch.rand(2, 3, 4), "its dynamic_threshold holds NaN or values that are not numbers"),
    ],
)
def test_thresholds_that_are_refused(tmp_path: Path, thresholds: Any, message: str) -> None:
    name, path = "dvt_deit_small", tmp_path / "DVT.pth.tar"
    torch.save({"model_state_dict": dvt_state("vit"), "dynamic_threshold": thresholds}, path)
    with pytest.raises(UserError) as info:
        vitfast.create_model(name, **DVT[name], checkpoint=path)
    assert message in str(info.value)
    assert str(path) in str(info.value)


def test_dvt_of_another_architecture(tmp_path: Path) -> None:
    path = tmp_path / "DVT.pth.tar"
    torch.save(released(dvt_state("vit")), path)
    with pytest.raises(UserError) as info:
        vitfast.create_model("dvt_t2t_vit_12", checkpoint=path)
    assert str(path) in str(info.value)
    assert "backbone is 'vit' in the file and 't2t_vit' in the model" in str(info.value)
    with pytest.raises(UserError, match="holds DVT weights, which do not fit t2t_vit_12, another kind of model"):
        vitfast.create_model("t2t_vit_12", checkpoint=path)
