"""Every format: the original model and vitfast's give the same logits for the same images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import vitfast
from support.foreign_weights import (
    CLASSES,
    DEPTH,
    NAME,
    SIZES,
    JeonsworldViT,
    MyrtleViT,
    google_arrays,
    images,
    randomize,
    relative_error,
    vissl_checkpoint,
)
from vitfast.errors import UserError
from vitfast.models import ImageModel

timm = pytest.importorskip("timm")
TOLERANCE = 1e-5


def timm_model(**options: Any) -> nn.Module:
    options = {"img_size": 32, "patch_size": 4, "depth": DEPTH, "num_classes": CLASSES, **options}
    return randomize(timm.create_model(options.pop("name", "vit_tiny_patch16_224"), **options))


def torchvision_model(representation_size: int | None = None) -> nn.Module:
    from torchvision.models import VisionTransformer

    return randomize(
        VisionTransformer(
            SIZES["img"], SIZES["patch"], SIZES["depth"], SIZES["heads"], SIZES["dim"], SIZES["mlp"],
            num_classes=CLASSES, representation_size=representation_size,
        )
    )  # fmt: skip


@torch.inference_mode()
def assert_equal(model: ImageModel, foreign: nn.Module) -> None:
    batch = images()
    expected = foreign(batch)
    assert relative_error(model.eval()(batch), expected) < TOLERANCE


def assert_loads(path: Path, foreign: nn.Module, family: str) -> ImageModel:
    """Creates a model from the file, loads the file into another one with its fields, and compares both."""
    model = vitfast.create_model(NAME, depth=DEPTH, checkpoint=path)
    report = model.load_report
    assert (report.family, report.missing, report.unexpected, report.mismatched) == (family, (), (), ())
    assert set(report.loaded) == model.state_dict().keys()
    assert_equal(model, foreign)
    again = vitfast.create_model(NAME, **model.model_fields)
    assert vitfast.load_weights(again, path).loaded == report.loaded
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    return model


@pytest.mark.parametrize("numbers", ["released", "linen"])
def test_google(tmp_path: Path, numbers: str) -> None:
    original = randomize(vitfast.create_model(NAME, depth=DEPTH, num_classes=CLASSES, gelu="tanh"))
    np.savez(tmp_path / "ViT.npz", **google_arrays(original, numbers))
    model = assert_loads(tmp_path / "ViT.npz", original, "Google")
    assert model.load_report.fields == {
        "gelu": "tanh",
        "head_hidden_dim": 0,
        "head_type": "linear",
        "layer_norm_eps": 1e-6,
        "num_classes": CLASSES,
        "patch_order": "channels_first",
        "position_interpolation": "zoom_linear",
        "qkv_bias": True,
    }


def test_google_as_timm_reads_it(tmp_path: Path) -> None:
    """Another opinion on every transposition."""
    source = randomize(vitfast.create_model(NAME, depth=DEPTH, num_classes=CLASSES))
    np.savez(tmp_path / "ViT.npz", **google_arrays(source, "released"))
    theirs = timm_model()
    theirs.load_pretrained(str(tmp_path / "ViT.npz"))
    assert_equal(vitfast.create_model(NAME, depth=DEPTH, checkpoint=tmp_path / "ViT.npz", gelu="erf"), theirs)


def test_google_under_a_prefix_and_in_bfloat16(tmp_path: Path) -> None:
    original = (
        randomize(vitfast.create_model(NAME, depth=DEPTH, num_classes=CLASSES, gelu="tanh")).to(torch.bfloat16).float()
    )
    arrays = google_arrays(original, "linen")
    halves = {key: torch.from_numpy(np.ascontiguousarray(array)).to(torch.bfloat16) for key, array in arrays.items()}
    raw = {f"opt/target/{key}": half.view(torch.int16).numpy().view("V2") for key, half in halves.items()}
    np.savez(tmp_path / "ViT.npz", **raw)
    assert_equal(vitfast.create_model(NAME, depth=DEPTH, checkpoint=tmp_path / "ViT.npz"), original)


def test_timm(tmp_path: Path) -> None:
    foreign = timm_model()
    torch.save({"epoch": 3, "state_dict": foreign.state_dict(), "optimizer": {"lr": 0.1}}, tmp_path / "best.pth.tar")
    model = assert_loads(tmp_path / "best.pth.tar", foreign, "timm")
    assert model.load_report.skipped == ("epoch", "optimizer")


def test_timm_wrapped_for_many_gpus(tmp_path: Path) -> None:
    foreign = timm_model(qkv_bias=False)
    torch.save({f"module._orig_mod.{key}": value for key, value in foreign.state_dict().items()}, tmp_path / "model.pt")
    assert not assert_loads(tmp_path / "model.pt", foreign, "timm").fields.qkv_bias


def test_timm_in_a_file_of_old_torch(tmp_path: Path) -> None:
    foreign = timm_model()
    torch.save(foreign.state_dict(), tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    assert_loads(tmp_path / "model.pt", foreign, "timm")


@pytest.mark.parametrize("distilled", [False, True])
def test_deit(tmp_path: Path, distilled: bool) -> None:
    foreign = timm_model(name="deit_tiny_distilled_patch16_224" if distilled else "deit_tiny_patch16_224")
    torch.save({"model": foreign.state_dict()}, tmp_path / "deit.pth")
    fields = {"distillation_token": "after_class"} if distilled else {}
    model = vitfast.create_model(NAME, depth=DEPTH, checkpoint=tmp_path / "deit.pth", **fields)
    assert model.load_report.family == "DeiT"
    assert_equal(model, foreign)


def test_deit_with_its_options(tmp_path: Path) -> None:
    """A checkpoint of DeiT's training holds an argparse.Namespace, which is let through."""
    from argparse import Namespace

    foreign = timm_model()
    content = {"model": foreign.state_dict(), "epoch": 1, "args": Namespace(lr=0.1, output_dir="out")}
    torch.save(content, tmp_path / "checkpoint.pth")
    model = assert_loads(tmp_path / "checkpoint.pth", foreign, "DeiT")
    assert model.load_report.skipped == ("epoch", "args")


def test_torchvision(tmp_path: Path) -> None:
    foreign = torchvision_model()
    torch.save(foreign.state_dict(), tmp_path / "vit.pth")
    assert_loads(tmp_path / "vit.pth", foreign, "torchvision")


def test_torchvision_with_the_names_of_0_12(tmp_path: Path) -> None:
    foreign = torchvision_model()
    renames = ((".mlp.0.", ".mlp.linear_1."), (".mlp.3.", ".mlp.linear_2."))
    state = {}
    for key, value in foreign.state_dict().items():
        for new, old in renames:
            key = key.replace(new, old)
        state[key] = value
    torch.save(state, tmp_path / "vit.pth")
    assert_loads(tmp_path / "vit.pth", foreign, "torchvision")


def test_jeonsworld(tmp_path: Path) -> None:
    foreign = randomize(JeonsworldViT())
    torch.save(foreign.state_dict(), tmp_path / "cifar10_checkpoint.bin")
    model = assert_loads(tmp_path / "cifar10_checkpoint.bin", foreign, "ViT-pytorch")
    assert model.fields.position_interpolation == "zoom_linear"


@pytest.mark.parametrize("prepared", [False, True])
def test_myrtle(tmp_path: Path, prepared: bool) -> None:
    foreign = randomize(MyrtleViT(prepared=prepared))
    state = foreign.state_dict()
    if prepared:  # what torch's INT8 preparation adds
        state["transformer.layers.0.1.fn.fn.net.0.1.weight_fake_quant.min_val"] = torch.zeros(())
        state["patch_to_embedding.0.activation_post_process.max_val"] = torch.zeros(())
    torch.save({"model": state, "optimizer": {}, "lr_scheduler": {}, "iteration": 7}, tmp_path / "vit_000007")
    model = assert_loads(tmp_path / "vit_000007", foreign, "myrtle-vision")
    fields = model.fields
    assert (fields.layer_norm_eps, fields.qkv_bias) == (1e-5, False)
    assert (fields.patch_order, fields.head_type) == ("channels_last", "norm_linear")
    assert {"optimizer", "lr_scheduler", "iteration"} <= set(model.load_report.skipped)
    observed = [key for key in model.load_report.skipped if key.endswith("_val")]
    assert len(observed) == (2 if prepared else 0)


@pytest.mark.parametrize("old_names", [False, True])
def test_vissl(tmp_path: Path, old_names: bool) -> None:
    epsilon = 1e-5 if old_names else 1e-6
    foreign = timm_model(qkv_bias=False, norm_layer=partial(nn.LayerNorm, eps=epsilon))
    torch.save(vissl_checkpoint(foreign.state_dict(), old_names=old_names), tmp_path / "model_phase3.torch")
    family = "VISSL of 2021" if old_names else "VISSL"
    model = assert_loads(tmp_path / "model_phase3.torch", foreign, family)
    assert (model.fields.layer_norm_eps, model.fields.qkv_bias) == (epsilon, False)
    assert "iteration" in model.load_report.skipped
    assert "classy_state_dict.optimizer" in model.load_report.skipped


def test_vissl_trunk_of_a_feature_extractor_and_its_vit_head(tmp_path: Path) -> None:
    foreign = timm_model(qkv_bias=False)
    checkpoint = vissl_checkpoint(foreign.state_dict())
    parts = checkpoint["classy_state_dict"]["base_model"]["model"]
    parts["trunk"] = {f"base_model.{key}": value for key, value in parts["trunk"].items()}
    parts["heads"] = {f"0.layers.head.{kind}": parts["heads"][f"0.clf.0.{kind}"] for kind in ("weight", "bias")}
    torch.save(checkpoint, tmp_path / "model.torch")
    assert_loads(tmp_path / "model.torch", foreign, "VISSL")


def test_vissl_swav(tmp_path: Path) -> None:
    """SwAV's projection and prototypes are no classifier: the model has no head and says what was left out."""
    foreign = timm_model(num_classes=0, qkv_bias=False)
    checkpoint = vissl_checkpoint({**foreign.state_dict(), "head.weight": torch.ones(1), "head.bias": torch.ones(1)})
    heads = {"0.projection_head.0.weight": torch.ones(8, 192), "0.prototypes0.weight": torch.ones(30, 8)}
    checkpoint["classy_state_dict"]["base_model"]["model"]["heads"] = heads
    torch.save(checkpoint, tmp_path / "model.torch")
    model = assert_loads(tmp_path / "model.torch", foreign, "VISSL")
    assert model.num_classes == 0
    assert "heads.0.prototypes0.weight" in model.load_report.skipped


class HiddenHead(nn.Module):
    """A timm model without a head, and VISSL's or Google's head for pre-training."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = timm_model(num_classes=0)
        self.pre_logits = nn.Linear(SIZES["dim"], 24)
        self.head = nn.Linear(24, CLASSES)
        randomize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.pre_logits(self.trunk(x))))


def _google_with_hidden_layer(path: Path) -> nn.Module:
    model = vitfast.create_model(NAME, depth=DEPTH, num_classes=CLASSES, gelu="tanh", head_hidden_dim=24)
    arrays = google_arrays(randomize(model), "released")
    arrays["pre_logits/kernel"] = model.pre_logits.fc.weight.detach().numpy().T
    arrays["pre_logits/bias"] = model.pre_logits.fc.bias.detach().numpy()
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return model


def _timm_with_hidden_layer(path: Path) -> nn.Module:
    """Timm had such a layer, and has dropped it."""
    model = HiddenHead()
    hidden = {f"pre_logits.fc.{kind}": getattr(model.pre_logits, kind) for kind in ("weight", "bias")}
    head = {f"head.{kind}": getattr(model.head, kind) for kind in ("weight", "bias")}
    torch.save({**model.trunk.state_dict(), **hidden, **head}, path)
    return model


def _torchvision_with_hidden_layer(path: Path) -> nn.Module:
    model = torchvision_model(representation_size=24)
    torch.save(model.state_dict(), path)
    return model


def _vissl_with_hidden_layer(path: Path) -> nn.Module:
    model = HiddenHead()
    checkpoint = vissl_checkpoint(
        model.trunk.state_dict() | {f"head.{kind}": torch.ones(1) for kind in ("weight", "bias")}
    )
    layers = {key: value for key, value in model.state_dict().items() if not key.startswith("trunk.")}
    heads = {f"0.layers.{key}": value for key, value in layers.items()}
    checkpoint["classy_state_dict"]["base_model"]["model"]["heads"] = heads
    torch.save(checkpoint, path)
    return model


@pytest.mark.parametrize(
    "write",
    [_google_with_hidden_layer, _timm_with_hidden_layer, _torchvision_with_hidden_layer, _vissl_with_hidden_layer],
)
def test_the_hidden_layer_of_a_head_for_pre_training(tmp_path: Path, write: Callable[[Path], nn.Module]) -> None:
    """``pre_logits`` is loaded with the head that needs it, and dropped with the one that is not wanted."""
    path = tmp_path / "weights"
    foreign = write(path)
    whole = vitfast.create_model(NAME, depth=DEPTH, checkpoint=path)
    assert whole.fields.head_hidden_dim == 24
    assert_equal(whole, foreign)
    assert_equal(vitfast.create_model(NAME, depth=DEPTH, checkpoint=path, num_classes=CLASSES), foreign)

    hidden = {"pre_logits.fc.weight", "pre_logits.fc.bias"}
    for options in ({"num_classes": 7}, {"num_classes": 0}, {"num_classes": CLASSES, "head_hidden_dim": 0}):
        model = vitfast.create_model(NAME, depth=DEPTH, checkpoint=path, **options)
        assert set(model.load_report.skipped) >= hidden | {"head.weight", "head.bias"}
        assert model.load_report.fresh == (("head.weight", "head.bias") if options["num_classes"] else ())
        assert not hidden & model.state_dict().keys()
    linear = vitfast.create_model(NAME, **{**whole.model_fields, "head_hidden_dim": 0})
    with pytest.raises(UserError, match=r"head_hidden_dim is 24 in the file and 0 in the model; vitfast\.create_model"):
        vitfast.load_weights(linear, path)
    assert set(vitfast.load_weights(linear, path, num_classes=CLASSES).fresh) == {"head.weight", "head.bias"}
    with pytest.raises(UserError, match="head_hidden_dim is 24 in the file and 8 in the model"):
        vitfast.create_model(NAME, depth=DEPTH, checkpoint=path, head_hidden_dim=8)


def test_hidden_layer_without_its_head_is_skipped(tmp_path: Path) -> None:
    _google_with_hidden_layer(tmp_path / "whole")
    with np.load(tmp_path / "whole") as arrays:
        np.savez(tmp_path / "ViT.npz", **{key: arrays[key] for key in arrays.files if not key.startswith("head/")})
    model = vitfast.create_model(NAME, depth=DEPTH, checkpoint=tmp_path / "ViT.npz")
    assert model.num_classes == 0
    assert model.load_report.skipped == ("pre_logits.fc.bias", "pre_logits.fc.weight")


def test_vissl_head_with_more_layers(tmp_path: Path) -> None:
    """No model here has it, and the first of its layers alone means nothing."""
    path, key = tmp_path / "weights", "heads.0.clf.2.weight"
    checkpoint = vissl_checkpoint(timm_model().state_dict())
    checkpoint["classy_state_dict"]["base_model"]["model"]["heads"]["0.clf.2.weight"] = torch.ones(CLASSES, CLASSES)
    torch.save(checkpoint, path)
    with pytest.raises(UserError) as info:
        vitfast.create_model(NAME, depth=DEPTH, checkpoint=path)
    assert str(info.value) == (
        f"{path}: its head has {key}, a layer that vitfast's models do not have; "
        "give num_classes for a newly initialized head, or num_classes=0 for none"
    )
    for num_classes in (CLASSES, 0):
        model = vitfast.create_model(NAME, depth=DEPTH, checkpoint=path, num_classes=num_classes)
        assert {key, "head.weight", "head.bias"} <= set(model.load_report.skipped)
        assert model.load_report.fresh == (("head.weight", "head.bias") if num_classes else ())
    model = vitfast.create_model(NAME, depth=DEPTH, num_classes=5)
    with pytest.raises(UserError, match=f"its head has {key}.*give load_weights num_classes=5 to keep"):
        vitfast.load_weights(model, path)
    assert vitfast.load_weights(model, path, num_classes=5).fresh == ("head.weight", "head.bias")


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("decoder.norm.weight", "a model of myrtle-vision 2"),
    ],
)
def test_kinds_that_are_not_supported(tmp_path: Path, key: str, what: str) -> None:
    state = MyrtleViT().state_dict()
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()} | {key: torch.ones(1)}, path)
    with pytest.raises(UserError) as info:
        vitfast.create_model(NAME, depth=DEPTH, checkpoint=path)
    assert str(info.value) == f"{path} is {what} (it has {key}); vitfast does not load these"


def test_weights_of_no_known_family(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.ones(2), "fc.weight": torch.ones(2)}, tmp_path / "resnet.safetensors")
    with pytest.raises(UserError) as info:
        vitfast.create_model(NAME, depth=DEPTH, checkpoint=tmp_path / "resnet.safetensors")
    message = str(info.value)
    assert "holds no weights of a Vision Transformer that vitfast supports: its keys are conv1.weight" in message
    assert "formats: Google hybrid, Google, DINOv3, Hugging Face DINOv3, DINOv2, Hugging Face DINOv2, CLIP, " in message
    assert "ConViT, T2T-ViT, timm hybrid, DeiT, timm, torchvision, " in message


def test_torchvisions_classifiers_keep_their_own_keys(tmp_path: Path) -> None:
    """A teacher: the number of classes is the file's, whatever the network calls its head."""
    import torchvision

    network = randomize(torchvision.models.resnet18(num_classes=7))
    torch.save(network.state_dict(), tmp_path / "teacher.pth")
    model = vitfast.create_model("torchvision/resnet18", checkpoint=tmp_path / "teacher.pth")
    assert model.num_classes == 7
    assert_equal(model, network)
