"""Hybrids of Google, timm and ViT-pytorch: generated files in their formats, and what is written back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import vitfast
from support.foreign_weights import randomize, relative_error
from vitfast.errors import UserError
from vitfast.models import HybridViT

timm = pytest.importorskip("timm")

NAME = "vit_base_r50_s16_224"
SIZES = {"embed_dim": 24, "depth": 2, "num_heads": 3, "resnet_layers": (2, 1, 1), "resnet_width": 32, "img_size": 64}
GOOGLE = {
    "resnet_padding": "same",
    "weight_eps": 1e-5,
    "weight_eps_place": "deviation",
    "group_norm_eps": 1e-6,
    "projection_norm": "group",
}
TIMM = {**GOOGLE, "weight_eps": 1e-8, "weight_eps_place": "variance", "group_norm_eps": 1e-5}
JEONSWORLD = {**GOOGLE, "resnet_padding": "symmetric", "weight_eps_place": "variance", "projection_norm": "channel"}


def source(**fields: Any) -> HybridViT:
    model = vitfast.create_model(NAME, num_classes=5, **{**SIZES, **fields})
    assert isinstance(randomize(model), HybridViT)
    return model


def images(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size)


# --- Google -----------------------------------------------------------------------------------------------------------


def google_arrays(model: HybridViT) -> dict[str, np.ndarray]:
    """What a released file holds, written out name by name."""
    state = {key: tensor.detach().numpy() for key, tensor in model.state_dict().items()}
    heads = model.fields.num_heads
    arrays = {
        "cls": state["cls_token"],
        "embedding/kernel": hwio(state["patch_embed.proj.weight"]),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    stem = "patch_embed.backbone.stem." if model.fields.resnet_layers else "patch_embed.backbone."
    arrays |= {"conv_root/kernel": hwio(state[f"{stem}conv.weight"]), **norm(state, f"{stem}norm", "gn_root")}
    for stage, blocks in enumerate(model.fields.resnet_layers):
        for block in range(blocks):
            ours, theirs = f"patch_embed.backbone.stages.{stage}.blocks.{block}.", f"block{stage + 1}/unit{block + 1}/"
            for number in (1, 2, 3):
                arrays[f"{theirs}conv{number}/kernel"] = hwio(state[f"{ours}conv{number}.weight"])
                arrays |= norm(state, f"{ours}norm{number}", f"{theirs}gn{number}")
            if block == 0:
                arrays[f"{theirs}conv_proj/kernel"] = hwio(state[f"{ours}downsample.conv.weight"])
                arrays |= norm(state, f"{ours}downsample.norm", f"{theirs}gn_proj")
    for i in range(model.fields.depth):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        for part, name in enumerate(("query", "key", "value")):
            weight = np.split(state[f"{ours}attn.qkv.weight"], 3)[part]
            bias = np.split(state[f"{ours}attn.qkv.bias"], 3)[part]
            arrays[f"{attention}{name}/kernel"] = weight.T.reshape(weight.shape[1], heads, -1)
            arrays[f"{attention}{name}/bias"] = bias.reshape(heads, -1)
        out = state[f"{ours}attn.proj.weight"]
        arrays[f"{attention}out/kernel"] = out.T.reshape(heads, -1, len(out))
        arrays[f"{attention}out/bias"] = state[f"{ours}attn.proj.bias"]
        for number in (0, 1):
            arrays[f"{theirs}MlpBlock_3/Dense_{number}/kernel"] = state[f"{ours}mlp.fc{number + 1}.weight"].T
            arrays[f"{theirs}MlpBlock_3/Dense_{number}/bias"] = state[f"{ours}mlp.fc{number + 1}.bias"]
        for number, layer in ((0, "norm1"), (2, "norm2")):
            arrays[f"{theirs}LayerNorm_{number}/scale"] = state[f"{ours}{layer}.weight"]
            arrays[f"{theirs}LayerNorm_{number}/bias"] = state[f"{ours}{layer}.bias"]
    return arrays


def hwio(weight: np.ndarray) -> np.ndarray:
    return weight.transpose(2, 3, 1, 0)


def norm(state: dict[str, np.ndarray], ours: str, theirs: str) -> dict[str, np.ndarray]:
    """Released files hold ``[1, 1, 1, C]``."""
    return {
        f"{theirs}/scale": state[f"{ours}.weight"].reshape(1, 1, 1, -1),
        f"{theirs}/bias": state[f"{ours}.bias"].reshape(1, 1, 1, -1),
    }


def assert_loads(path: Path, original: HybridViT, family: str, fields: dict[str, Any], name: str = NAME) -> None:
    sizes = {key: getattr(original.fields, key) for key in (*SIZES, "patch_size")}
    model = vitfast.create_model(name, checkpoint=path, **sizes)
    report = model.load_report
    assert (report.family, report.missing, report.unexpected, report.mismatched) == (family, (), (), ())
    assert report.fields.items() >= fields.items()
    for key, value in original.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    x = images(original.img_size)
    with torch.inference_mode():
        assert relative_error(model.eval()(x), original(x)) <= 1e-6
    # into a model that is there already, and one that computes something else
    again = vitfast.create_model(name, **model.model_fields)
    assert vitfast.load_weights(again, path).loaded == report.loaded
    other = vitfast.create_model(name, **{**model.model_fields, "group_norm_eps": 1e-3})
    with pytest.raises(UserError, match=r"group_norm_eps is 1e-0[56] in the file and 0\.001 in the model"):
        vitfast.load_weights(other, path)


@pytest.mark.parametrize("fields", [{}, {"resnet_layers": (), "patch_size": 4}], ids=["stages", "stem_alone"])
def test_google(tmp_path: Path, fields: dict[str, Any]) -> None:
    original = source(gelu="tanh", **fields)
    np.savez(tmp_path / "R50+ViT-B_16.npz", **google_arrays(original))
    assert_loads(tmp_path / "R50+ViT-B_16.npz", original, "Google hybrid", {**GOOGLE, "gelu": "tanh"})


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "vit_small_r26_s32_224"])
def test_google_as_timm_reads_it(tmp_path: Path, name: str) -> None:
    """Another opinion on every key and transposition."""
    small = {"embed_dim": 24, "depth": 1, "num_heads": 3, "img_size": 64}
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=5, **small)
        original = vitfast.create_model(name, num_classes=5, **small)
    original = randomize(original.to_empty(device="cpu"))
    np.savez(tmp_path / "model.npz", **google_arrays(original))
    theirs = theirs.to_empty(device="cpu")
    theirs.load_pretrained(str(tmp_path / "model.npz"))
    model = vitfast.create_model(name, checkpoint=tmp_path / "model.npz", **small)
    for key, value in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


# --- timm -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "vit_small_r26_s32_224"])
def test_timm(tmp_path: Path, name: str) -> None:
    small = {"embed_dim": 24, "depth": 1, "num_heads": 3, "img_size": 64}
    with torch.device("meta"):
        theirs, back = (timm.create_model(name, num_classes=5, **small) for _ in range(2))
    theirs = randomize(theirs.to_empty(device="cpu"))
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    model = vitfast.create_model(name, checkpoint=tmp_path / "model.pth", **small)
    assert model.load_report.family == "timm hybrid"
    assert model.load_report.fields.items() >= TIMM.items()
    x = images()
    with torch.inference_mode():
        expected = theirs(x)
        assert relative_error(model.eval()(x), expected) <= 1e-5
    # back again: timm reads what is written
    vitfast.save_weights(model, tmp_path / "back.safetensors")
    back.load_state_dict(load_file(tmp_path / "back.safetensors"), assign=True)
    with torch.inference_mode():
        assert torch.equal(back.eval()(x), expected)


# --- jeonsworld/ViT-pytorch -------------------------------------------------------------------------------------------


def jeonsworld_state(model: nn.Module) -> dict[str, Tensor]:
    """What ``train.py`` of ViT-pytorch saves, written out name by name."""
    ours = model.state_dict()
    embeddings, root = "transformer.embeddings.", "transformer.embeddings.hybrid_model."
    state = {
        f"{embeddings}cls_token": ours["cls_token"],
        f"{embeddings}position_embeddings": ours["pos_embed"],
    }

    def layer(theirs: str, name: str) -> None:
        state.update({f"{theirs}.{kind}": ours[f"{name}.{kind}"] for kind in ("weight", "bias")})

    layer(f"{embeddings}patch_embeddings", "patch_embed.proj")
    layer("transformer.encoder.encoder_norm", "norm")
    layer("head", "head")
    layer(f"{root}root.gn", "patch_embed.backbone.stem.norm")
    state[f"{root}root.conv.weight"] = ours["patch_embed.backbone.stem.conv.weight"]
    for stage, blocks in enumerate(SIZES["resnet_layers"]):
        for block in range(blocks):
            unit = f"patch_embed.backbone.stages.{stage}.blocks.{block}."
            theirs = f"{root}body.block{stage + 1}.unit{block + 1}."
            for number in (1, 2, 3):
                state[f"{theirs}conv{number}.weight"] = ours[f"{unit}conv{number}.weight"]
                layer(f"{theirs}gn{number}", f"{unit}norm{number}")
            if block == 0:
                state[f"{theirs}downsample.weight"] = ours[f"{unit}downsample.conv.weight"]
                layer(f"{theirs}gn_proj", f"{unit}downsample.norm")
    for i in range(SIZES["depth"]):
        block, theirs = f"blocks.{i}.", f"transformer.encoder.layer.{i}."
        layer(f"{theirs}attention_norm", f"{block}norm1")
        layer(f"{theirs}ffn_norm", f"{block}norm2")
        layer(f"{theirs}attn.out", f"{block}attn.proj")
        for number in (1, 2):
            layer(f"{theirs}ffn.fc{number}", f"{block}mlp.fc{number}")
        for kind in ("weight", "bias"):
            parts = ours[f"{block}attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                state[f"{theirs}attn.{name}.{kind}"] = part.clone()
    return state


def test_jeonsworld(tmp_path: Path) -> None:
    original = source(**JEONSWORLD)
    torch.save(jeonsworld_state(original), tmp_path / "cifar_checkpoint.bin")
    assert_loads(tmp_path / "cifar_checkpoint.bin", original, "ViT-pytorch hybrid", JEONSWORLD)


# --- all of them ------------------------------------------------------------------------------------------------------


def test_written_and_read_back(tmp_path: Path) -> None:
    original = source(**JEONSWORLD)
    vitfast.save_weights(original, tmp_path / "model.safetensors")
    model = vitfast.create_model(checkpoint=tmp_path / "model.safetensors")
    assert (model.model_name, model.fields) == (NAME, original.fields)
    x = images()
    with torch.inference_mode():
        assert torch.equal(model.eval()(x), original(x))


def test_another_image_size(tmp_path: Path) -> None:
    original = source(gelu="tanh")
    np.savez(tmp_path / "model.npz", **google_arrays(original))
    path = tmp_path / "model.npz"
    sizes = {**SIZES, "img_size": 96}
    report = vitfast.create_model(NAME, checkpoint=path, **sizes).load_report
    assert (report.resized, report.position_interpolation) == (("pos_embed",), "zoom_linear")
    del sizes["img_size"]
    with pytest.raises(UserError, match=r"grid_size is 4 in the file and 14 in the model; give img_size=224 to resize"):
        vitfast.create_model(NAME, checkpoint=path, **sizes)


def test_other_sizes_are_named(tmp_path: Path) -> None:
    original = source(gelu="tanh")
    np.savez(tmp_path / "model.npz", **google_arrays(original))
    with pytest.raises(UserError, match=r"resnet_layers is \(2, 1, 1\) in the file and \(3, 4, 9\) in the model"):
        vitfast.create_model(NAME, checkpoint=tmp_path / "model.npz")


def test_a_vit_is_no_hybrid(tmp_path: Path) -> None:
    np.savez(tmp_path / "model.npz", **google_arrays(source(gelu="tanh")))
    with pytest.raises(UserError, match="holds Google hybrid weights, which do not fit vit_base_patch16_224"):
        vitfast.create_model("vit_base_patch16_224", checkpoint=tmp_path / "model.npz")
