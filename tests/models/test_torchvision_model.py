"""torchvision's classifiers under vitfast's interface."""

import pytest
import torch
import torchvision

from support.fill_from_state import fill_from_state
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


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("torchvision/resnet51", {}, "unknown model 'torchvision/resnet51'; the nearest: torchvision/resnet50"),
        ("torchvision/resnet18", {"in_chans": 1}, "in_chans must be 3 for torchvision's networks; got 1"),
        ("torchvision/resnet18", {"num_classes": 0}, "num_classes must be at least 1; got 0"),
        ("torchvision/resnet18", {"depth": 3}, "unknown model field 'depth'"),
        ("torchvision/vit_b_16", {"img_size": 30}, "torchvision/vit_b_16 with img_size=30: "),
    ],
)
def test_refused_arguments(name: str, fields: dict, message: str) -> None:
    with pytest.raises(UserError) as info:
        build_model(name, **fields)
    assert message in str(info.value)


def test_they_are_not_among_the_zoo() -> None:
    assert not list_models("torchvision/*")
