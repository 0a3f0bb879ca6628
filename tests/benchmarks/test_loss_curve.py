from __future__ import annotations

import json

import pytest
import torch

from support.scripts import load_script
from vitfast.errors import UserError
from vitfast.models import build_model
from vitfast.ops.library import missing_kernel

loss_curve = load_script("loss_curve")
pytestmark = pytest.mark.skipif(missing_kernel("mlp", "cpu") is not None, reason="vitfast's kernels are not built")

TINY = {"model": "vit_nano_patch2_8", "steps": 14, "batch": 16, "lr": 3e-3, "device": "cpu"}


def test_training_on_the_kernels_agrees_and_is_written(tmp_path, capsys):
    path = tmp_path / "curve.json"
    options = loss_curve.LossCurveOptions(**TINY, json=str(path))
    assert loss_curve.run_loss_curve(options) == 0
    assert "the curves agree" in capsys.readouterr().out
    content = json.loads(path.read_text())
    reference, torchs, vitfasts = content["curves"].values()
    assert len(reference) == len(torchs) == len(vitfasts) == 14
    assert torchs != vitfasts, "both curves are torch's"
    assert reference[-1] < reference[0]
    assert content["verdict"]["agrees"]
    assert content["options"]["steps"] == 14
    options.resume = True
    assert loss_curve.run_loss_curve(options) == 0
    assert "exists already" in capsys.readouterr().out


def test_a_wrong_kernel_is_found(monkeypatch, capsys):
    right = loss_curve.train_curve

    def train(options, device, kernels, precision):
        curve = right(options, device, "torch", precision)
        return curve if kernels == "torch" else [1.1 * loss for loss in curve]

    monkeypatch.setattr(loss_curve, "train_curve", train)
    assert loss_curve.run_loss_curve(loss_curve.LossCurveOptions(**TINY)) == 1
    assert "DISAGREE" in capsys.readouterr().out


def test_the_rule_allows_twice_torchs_own_distance():
    reference = [1.0] * 20
    for factor, agrees in ((1.0, True), (1.2, True), (1.22, False), (float("nan"), False)):
        verdict = loss_curve.judge(reference, [1.1] * 20, [factor] * 20)
        assert verdict["agrees"] == agrees, factor
        assert verdict["allowed"] == pytest.approx(0.21)


def test_runs_repeat_and_leave_torchs_generator_alone():
    options = loss_curve.LossCurveOptions(**{**TINY, "steps": 10})
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = loss_curve.train_curve(options, torch.device("cpu"), "all", "fp32")
    assert torch.equal(torch.rand(1), expected)
    assert loss_curve.train_curve(options, torch.device("cpu"), "all", "fp32") == first


def test_images_of_a_class_have_its_pattern():
    model = build_model("vit_nano_patch2_8")
    images, labels = loss_curve.sample_batch(model, 512, 0)
    again, _ = loss_curve.sample_batch(model, 512, 0)
    other, _ = loss_curve.sample_batch(model, 512, 1)
    assert torch.equal(images, again)
    assert not torch.equal(images, other)
    means = torch.stack([images[labels == index].mean(0) for index in range(10)])
    assert means.std(0).mean() > 0.7, "the classes look the same"


def test_a_device_without_kernels_is_reported(monkeypatch):
    monkeypatch.setattr(loss_curve, "has_kernel", lambda kernel, device: False)
    with pytest.raises(UserError, match="no kernel for cpu here"):
        loss_curve.run_loss_curve(loss_curve.LossCurveOptions(**TINY))
