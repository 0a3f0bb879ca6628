"""Classifiers of timm and torchvision under vitfast's interface."""

import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

import vitfast
from support.fill_from_state import fill_from_state
from support.slow import slow
from vitfast.errors import UserError
from vitfast.models import build_model, list_models


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "googlenet"])
def test_new_head_of_any_size(name: str) -> None:
    model = build_model(f"torchvision/{name}", num_classes=5, img_size=64)
    logits = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 5)
    head = f"{model.head_prefixes[0]}weight"
    assert len(model.state_dict()[head]) == 5
    assert model.model_fields == {"img_size": 64, "in_chans": 3, "num_classes": 5}


def test_torchvisions_own_keys_load_and_the_logits_agree() -> None:
    original = torchvision.models.resnet18(num_classes=7).eval()
    model = build_model("torchvision/resnet18", num_classes=7)
    fill_from_state(model, original.state_dict(), "resnet18.pth")
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.eval()(images), original(images))


def test_another_number_of_classes_keeps_all_but_the_head() -> None:
    original = torchvision.models.resnet18(num_classes=7)
    model = build_model("torchvision/resnet18", num_classes=3)
    fresh = model.network.fc.weight.clone()
    fill_from_state(model, original.state_dict(), "resnet18.pth", may_replace_head=True)
    assert torch.equal(model.network.conv1.weight, original.conv1.weight)
    assert torch.equal(model.network.fc.weight, fresh)
    with pytest.raises(UserError, match=r"resnet18.pth does not fit torchvision/resnet18; other shape: network.fc"):
        fill_from_state(model, original.state_dict(), "resnet18.pth")


@pytest.mark.parametrize("name", ["torchvision/resnet18", "torchvision/vit_b_32", "timm/test_vit"])
def test_without_classes_the_features_before_the_head_are_returned(name: str) -> None:
    whole, headless = build_model(name, num_classes=5), build_model(name, num_classes=0)
    head = whole.get_submodule(whole.head_prefixes[0].removesuffix("."))
    keys = set(whole.state_dict()) - {f"{whole.head_prefixes[0]}{key}" for key in head.state_dict()}
    headless.load_state_dict({key: whole.state_dict()[key] for key in keys})
    images = torch.randn(2, 3, whole.img_size, whole.img_size)
    with torch.no_grad():
        torch.testing.assert_close(head(headless.eval()(images)), whole.eval()(images))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("torchvision/resnet51", {}, "unknown model 'torchvision/resnet51'; the nearest: torchvision/resnet50"),
        ("torchvision/resnet18", {"in_chans": 1}, "in_chans must be 3 for torchvision's networks; got 1"),
        ("torchvision/resnet18", {"depth": 3}, "unknown model field 'depth'"),
        ("torchvision/vit_b_16", {"img_size": 30}, "torchvision/vit_b_16 with num_classes=1000, image_size=30: "),
        ("timm/test_vitt", {}, "unknown model 'timm/test_vitt'; the nearest: timm/test_vit"),
        ("timm/test_vit", {"depth": 3}, "unknown model field 'depth'"),
        ("timm/test_vit", {"drop_path": 1.0}, "drop_path must be at least 0 and below 1"),
        ("timm/vgg11", {"drop_path": 0.1}, "timm/vgg11 with num_classes=1000, in_chans=3, drop_path_rate=0.1: "),
    ],
)
def test_refused_arguments(name: str, fields: dict, message: str) -> None:
    with pytest.raises(UserError) as info:
        build_model(name, **fields)
    assert message in str(info.value)


def test_they_are_not_among_the_zoo() -> None:
    assert not list_models("t*/*")


@pytest.mark.parametrize(
    "name", ["test_vit", "test_vit3", "test_convnext", "test_resnet", *slow(["swin_tiny_patch4_window7_224"])]
)
def test_timms_own_keys_load_and_the_logits_agree(name: str, tmp_path: Path) -> None:
    """Also at another image size, where timm's function resamples positions; and with a new head."""
    original = timm.create_model(name, num_classes=5).eval()
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    path, size = tmp_path / "weights.safetensors", original.pretrained_cfg["input_size"][-1]
    save_file(original.state_dict(), path)
    model = vitfast.create_model(f"timm/{name}", checkpoint=path).eval()
    images = torch.randn(1, 3, size, size)
    assert (model.num_classes, model.img_size) == (5, size)
    assert torch.equal(model(images), original(images))

    half = 224 if "swin" in name else 64
    fixed = {"img_size": half} if original.pretrained_cfg.get("fixed_input_size") else {}
    theirs = timm.create_model(name, num_classes=5, checkpoint_path=None, **fixed)
    smaller = vitfast.create_model(f"timm/{name}", checkpoint=path, img_size=half).eval()
    timm.models.load_pretrained(
        theirs,
        pretrained_cfg={"file": path, "num_classes": 5, "classifier": "none"},
        filter_fn=getattr(sys.modules[type(original).__module__], "checkpoint_filter_fn", None),
        num_classes=5,
    )
    images = torch.randn(1, 3, half, half)
    assert torch.equal(smaller(images), theirs.eval()(images))

    other = vitfast.create_model(f"timm/{name}", checkpoint=path, num_classes=3)
    assert other.load_report.fresh == tuple(key for key in other.state_dict() if key.startswith(other.head_prefixes))
    assert other(torch.randn(2, 3, size, size)).shape == (2, 3)


def test_fields_reach_timm() -> None:
    fields = {"img_size": 32, "in_chans": 1, "num_classes": 4, "drop_rate": 0.2, "drop_path": 0.3}
    model = build_model("timm/test_vit", **fields)
    assert model.model_fields == fields
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 4)
    assert model.network.head_drop.p == 0.2
    assert model.network.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)
    assert build_model("timm/vit_small_patch14_dinov2").model_fields["num_classes"] == 0
    assert not model.takes_any_size
    assert build_model("timm/test_resnet").takes_any_size


def test_timms_preprocessing() -> None:
    cfg = timm.get_pretrained_cfg("test_vit")
    model = build_model("timm/test_vit", img_size=64, num_classes=0)
    assert model.pretrained_cfg["input_size"] == (3, 64, 64)
    assert model.pretrained_cfg["mean"] == cfg.mean
    assert vitfast.preprocessing(model)


def test_without_timm_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"^timm/test_vit needs timm: pip install timm$"):
        build_model("timm/test_vit")


@pytest.mark.parametrize("name", ["timm/test_vit", *slow(["torchvision/vit_b_32"])])
def test_accelerate_sees_the_inner_model(name: str) -> None:
    model = build_model(name, img_size=64, num_classes=3).eval()
    torch.nn.init.normal_(model.state_dict(keep_vars=True)[f"{model.head_prefixes[0]}weight"])
    fast, images = vitfast.accelerate(model), torch.randn(2, 3, 64, 64)
    assert fast.report().whole
    torch.testing.assert_close(fast(images), model(images), rtol=1e-4, atol=1e-4)
    assert fast.state_dict().keys() == model.state_dict().keys()
    model.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="hook"):
        assert not vitfast.accelerate(model).report().whole
