"""load_vissl_head builds SwAV and MLP heads from the shapes in a VISSL checkpoint."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

import vitfast
from support.foreign_weights import randomize, relative_error
from vitfast.errors import UserError
from vitfast.layers import MlpHead, SwavHead
from vitfast.models import MultiCrop
from vitfast.weights import load_vissl_head

NANO = "vit_nano_patch2_8"
CONVIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 2, "local_up_to_layer": 1}


def checkpoint(path: Path, *heads: nn.Module) -> Path:
    """A trunk of timm's names and these heads, nested as VISSL does."""
    model = vitfast.create_model(NANO, num_classes=0, qkv_bias=False)
    states = {f"{i}.{key}": value for i, head in enumerate(heads) for key, value in head.state_dict().items()}
    parts = {"trunk": model.state_dict(), "heads": OrderedDict(states)}
    classy = {"base_model": {"model": parts, "meta": {}}, "optimizer": {}}
    torch.save({"phase_idx": 3, "classy_state_dict": classy}, path)
    return path


class Named(nn.Module):
    """Layers under VISSL's name of the sequence."""

    def __init__(self, name: str, *layers: nn.Module, **more: nn.Module) -> None:
        super().__init__()
        self.add_module(name, nn.Sequential(*layers))
        for other, layer in more.items():
            self.add_module(other, layer)


def linear(*sizes: int, bias: bool = True) -> nn.Linear:
    return nn.Linear(*sizes, bias=bias)


SWAV = [
    (linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), linear(16, 8)),
    (linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), linear(16, 8)),
    (linear(64, 16), nn.ReLU(), linear(16, 8)),
    (
        linear(64, 16, bias=False),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        linear(16, 8, bias=False),
        nn.BatchNorm1d(8),
        nn.ReLU(),
    ),
    (linear(64, 8),),
]
MLP = [
    (linear(64, 32), nn.ReLU(), linear(32, 5)),
    (linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(), linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(),
     nn.Dropout(), linear(16, 5)),
    (linear(64, 32, bias=False), linear(32, 5, bias=False)),
    (linear(64, 5), nn.BatchNorm1d(5)),
]  # fmt: skip


def assert_written_back(both: MultiCrop, path: Path, crops: list[torch.Tensor]) -> None:
    vitfast.save_weights(both, path)
    trunk = vitfast.create_model(checkpoint=path)
    assert trunk.load_report.unexpected == trunk.load_report.missing == ()
    assert all(key.startswith("heads.0.") for key in trunk.load_report.skipped)
    again = MultiCrop(trunk, load_vissl_head(path)).eval()
    for out, expected in zip(again(crops), both(crops), strict=True):
        assert torch.equal(out, expected)


@torch.inference_mode()
@pytest.mark.parametrize("layers", SWAV, ids=len)
def test_swav(tmp_path: Path, layers: tuple[nn.Module, ...]) -> None:
    foreign = randomize(Named("projection_head", *layers, prototypes0=linear(8, 30, bias=False),
                              prototypes1=linear(8, 20, bias=False)))  # fmt: skip
    path = checkpoint(tmp_path / "model.torch", foreign)
    head = load_vissl_head(path).eval()
    assert isinstance(head, SwavHead)
    features = torch.randn(4, 64)
    embeddings, *scores = head(features)
    expected = nn.functional.normalize(foreign.projection_head(features), dim=1)
    assert relative_error(embeddings, expected) < 1e-5
    assert relative_error(scores[0], foreign.prototypes0(expected)) < 1e-5
    assert relative_error(scores[1], foreign.prototypes1(expected)) < 1e-5

    trunk = vitfast.create_model(NANO, num_classes=0, checkpoint=path).eval()
    skipped = {key for key in trunk.load_report.skipped if key.startswith("heads.")}
    assert skipped == {f"heads.0.{key}" for key in foreign.state_dict()}
    crops = [torch.randn(2, 1, 8, 8), torch.randn(2, 1, 4, 4)]
    both = MultiCrop(trunk, head)
    assert both(crops)[1].shape == (4, 30)
    assert_written_back(both, tmp_path / "again.safetensors", crops)


@torch.inference_mode()
@pytest.mark.parametrize("layers", MLP, ids=len)
def test_mlp(tmp_path: Path, layers: tuple[nn.Module, ...]) -> None:
    foreign = randomize(Named("clf", *layers))
    path = checkpoint(tmp_path / "model.torch", foreign)
    head = load_vissl_head(path).eval()
    assert isinstance(head, MlpHead)
    features = torch.randn(4, 64)
    assert relative_error(head(features), foreign.clf(features)) < 1e-5
    assert [type(layer) for layer in head.clf] == [type(layer) for layer in foreign.clf]
    trunk = vitfast.create_model(NANO, num_classes=0).eval()
    assert_written_back(MultiCrop(trunk, head), tmp_path / "again.safetensors", [torch.randn(2, 1, 8, 8)])


def test_prototypes_with_normed_weights(tmp_path: Path) -> None:
    prototypes = nn.utils.weight_norm(linear(8, 30, bias=False))
    foreign = Named("projection_head", linear(64, 8), prototypes0=prototypes)
    assert "prototypes0.weight_g" in foreign.state_dict()
    head = load_vissl_head(checkpoint(tmp_path / "model.torch", foreign))
    features = torch.randn(4, 64)
    expected = foreign.prototypes0(nn.functional.normalize(foreign.projection_head(features), dim=1))
    torch.testing.assert_close(head(features)[1], expected)
    trunk = vitfast.create_model(NANO, num_classes=0).eval()
    with torch.inference_mode():
        assert_written_back(MultiCrop(trunk, head.eval()), tmp_path / "again.safetensors", [torch.randn(2, 1, 8, 8)])


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ((), "holds no head; load_vissl_head builds swav_head and mlp"),
        ((Named("layers", linear(64, 3)),), "holds another head (it has heads.0.layers.0.weight)"),
        ((Named("clf", linear(64, 3)), Named("clf", linear(3, 3))), "has several heads (it has heads.1.clf.0.weight)"),
        ((Named("clf", nn.BatchNorm1d(3)),), "its head has no linear layers"),
        ((Named("clf", linear(64, 3), linear(7, 5)),), "its head is no swav_head or mlp of VISSL"),
        ((Named("projection_head", linear(64, 3), other=linear(3, 3)),), "its head is no swav_head or mlp of VISSL"),
    ],
)
def test_other_heads_are_refused(tmp_path: Path, heads: Any, message: str) -> None:
    path = checkpoint(tmp_path / "model.torch", *heads)
    with pytest.raises(UserError) as info:
        load_vissl_head(path)
    assert message in str(info.value)
    assert str(path) in str(info.value)


def test_several_heads_in_a_row_are_no_classifier(tmp_path: Path) -> None:
    """The first one alone, which looks like a linear classifier, would be the wrong one."""
    path = checkpoint(tmp_path / "model.torch", Named("clf", linear(64, 3)), Named("clf", linear(3, 5)))
    with pytest.raises(UserError, match=r"its head has heads\.1\.clf\.0\.weight, a layer that vitfast's models do not"):
        vitfast.create_model(NANO, checkpoint=path)
    model = vitfast.create_model(NANO, checkpoint=path, num_classes=0)
    assert {"heads.1.clf.0.weight", "head.weight"} <= set(model.load_report.skipped)


@pytest.mark.parametrize("key", ["channel_bn.weight", "mlp.0.weight", "last_layer.weight_v"])
def test_other_heads_are_no_classifier(tmp_path: Path, key: str) -> None:
    """VISSL has heads for other tasks; what they are made of is said, not taken for a model without a head."""
    path = checkpoint(tmp_path / "model.torch", Named("clf", linear(64, 3)))
    content = torch.load(path)
    content["classy_state_dict"]["base_model"]["model"]["heads"][f"0.{key}"] = torch.ones(3)
    torch.save(content, path)
    with pytest.raises(
        UserError, match=rf"its head has heads\.0\.{key}, a layer that .*; give num_classes for a newly"
    ):
        vitfast.create_model(NANO, checkpoint=path)


@pytest.mark.parametrize("system", ["original", "vissl"])
def test_a_swav_resnet_loads_as_torchvisions_with_its_head(tmp_path: Path, system: str) -> None:
    """The file's names are those that the systems write; a ResNet-50 differs only in its sizes."""
    source, head = torchvision.models.resnet18(), SwavHead([512, 6, 4], [5])
    trunk = {key: tensor for key, tensor in source.state_dict().items() if not key.startswith("fc.")}
    if system == "original":
        content = trunk | {key.replace("prototypes0.", "prototypes."): one for key, one in head.state_dict().items()}
        torch.save({f"module.{key}": tensor for key, tensor in content.items()}, tmp_path / "swav.pth.tar")
    else:
        trunk = {f"_feature_blocks.{key}": tensor for key, tensor in trunk.items()}
        heads = {f"0.{key}": tensor for key, tensor in head.state_dict().items()}
        state = {"base_model": {"model": {"trunk": trunk, "heads": heads}}}
        torch.save({"classy_state_dict": state}, tmp_path / "swav.pth.tar")
    model = vitfast.create_model("torchvision/resnet18", num_classes=0, checkpoint=tmp_path / "swav.pth.tar")
    source.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        features = model.eval()(images)
        assert torch.equal(features, source.eval()(images))
        loaded = load_vissl_head(tmp_path / "swav.pth.tar")
        assert isinstance(loaded, SwavHead)
        for one, other in zip(loaded.eval()(features), head.eval()(features), strict=True):
            assert torch.equal(one, other)
    with_classes = vitfast.create_model("torchvision/resnet18", num_classes=3, checkpoint=tmp_path / "swav.pth.tar")
    assert with_classes.load_report.fresh == ("network.fc.weight", "network.fc.bias")


@pytest.mark.parametrize("layout", ["swav", "vissl"])
@pytest.mark.parametrize("prototypes", [[5], [5, 6]])
def test_a_swav_resnet_is_written_back(tmp_path: Path, layout: str, prototypes: list[int]) -> None:
    model = vitfast.create_model("torchvision/resnet18", num_classes=0)
    head = SwavHead([512, 6, 4], prototypes)
    vitfast.save_weights(MultiCrop(model, head), tmp_path / "swav.safetensors", layout=layout)  # type: ignore[arg-type]
    keys = set(load_file(tmp_path / "swav.safetensors"))
    expected = {
        ("swav", 1): {"layer1.0.conv1.weight", "projection_head.0.weight", "prototypes.weight"},
        ("swav", 2): {"projection_head.1.running_mean", "prototypes.prototypes1.weight"},
        ("vissl", 1): {"trunk._feature_blocks.layer1.0.conv1.weight", "heads.0.prototypes0.weight"},
        ("vissl", 2): {"heads.0.projection_head.0.bias", "heads.0.prototypes1.weight"},
    }
    assert expected[layout, len(prototypes)] <= keys
    again = vitfast.create_model("torchvision/resnet18", num_classes=0, checkpoint=tmp_path / "swav.safetensors")
    loaded = load_vissl_head(tmp_path / "swav.safetensors")
    for one, other in ((model, again), (head, loaded)):
        assert one.state_dict().keys() == other.state_dict().keys()
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


def test_a_swav_vit_is_written_back_for_vissl(tmp_path: Path) -> None:
    path = tmp_path / "swav.safetensors"
    model = vitfast.create_model(NANO, num_classes=0)
    vitfast.save_weights(MultiCrop(model, SwavHead([64, 4], [5])), path, layout="vissl")
    again = vitfast.create_model(NANO, num_classes=0, checkpoint=path)
    assert again.load_report.family == "VISSL"
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_swav_convit_is_written_back_for_vissl(tmp_path: Path) -> None:
    path = tmp_path / "swav.safetensors"
    options = {**CONVIT, "layer_norm_eps": 1e-5, "locality_dim": 10, "local_initialization": False, "num_classes": 0}
    model = vitfast.create_model("convit_tiny", **options).eval()
    vitfast.save_weights(MultiCrop(model, SwavHead([192, 4], [5])), path, layout="vissl")
    written = load_file(path)
    assert written["trunk.class_token"].shape == (1, 1, 192)
    assert written["trunk.blocks.0.attn.alpha"].shape == (1, 4, 1, 1)
    assert written["trunk.blocks.0.attn.pos_proj.weight"].shape == (4, 30)
    assert {"trunk.pos_embedding", "trunk.blocks.1.mlp.linear_2.bias", "heads.0.prototypes0.weight"} <= written.keys()
    again = vitfast.create_model(
        "convit_tiny", img_size=32, patch_size=8, depth=2, num_classes=0, checkpoint=path
    ).eval()
    assert again.load_report.family == "VISSL ConViT"
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), again(images))


@pytest.mark.parametrize(
    ("name", "fields", "layout", "message"),
    [
        (NANO, {}, "swav", "layout='swav' holds ResNets of torchvision; got vit_nano_patch2_8"),
        (NANO, {"gelu": "tanh"}, "vissl", "VISSL's ViT has no gelu='tanh'; use layout='timm'"),
        ("convit_tiny", CONVIT, "vissl", "VISSL's ConViT has no layer_norm_eps=1e-06; use layout='timm'"),
        ("t2t_vit_10", {}, "vissl", "holds ViT, DeiT, ConViT and ResNets .* t2t_vit_10"),
    ],
)
def test_trunks_that_the_systems_do_not_have(
    tmp_path: Path, name: str, fields: dict[str, Any], layout: str, message: str
) -> None:
    model = vitfast.create_model(name, num_classes=0, **fields)
    multi_crop = MultiCrop(model, SwavHead([model.fields.embed_dim, 4], [5]))
    with pytest.raises(UserError, match=message):
        vitfast.save_weights(multi_crop, tmp_path / "swav.safetensors", layout=layout)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"layout='{layout}' is for a MultiCrop with a SwavHead; got a"):
        vitfast.save_weights(model, tmp_path / "swav.safetensors", layout=layout)  # type: ignore[arg-type]
