"""The report finds the damaged layer and counts unchanged predictions."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import vitfast
from vitfast import FloatConfig, FloatFormat, FP16_16Config, FP16_32Config, QATConfig, UserError, quantization_report
from vitfast.models import ImageModel


def test_ratio_of_one_layer() -> None:
    model = nn.Sequential(nn.Linear(8, 3))
    x = torch.randn(20, 8)
    expected = model(x).detach().double()
    vitfast.quantize_(model, QATConfig(FloatConfig("fp8_e5m2")))
    report = quantization_report(model, [x[:12], (x[12:], None)])
    noise = model(x).detach().double() - expected
    ratio = 10 * math.log10(float(expected.square().sum() / noise.square().sum()))
    assert [layer.name for layer in report.layers] == ["0"]
    assert report.layers[0].signal_to_noise_db == pytest.approx(ratio)
    assert report.output.signal_to_noise_db == pytest.approx(ratio)
    assert report.num_images == 20
    same = (model(x).argmax(-1) == expected.argmax(-1)).float().mean()
    assert report.top1_agreement == pytest.approx(float(same))


def test_the_worst_layer_is_the_one_with_the_coarse_format(model: ImageModel, images: Tensor) -> None:
    before = model(images)
    coarse = {"blocks.1.mlp.fc1": FloatConfig(FloatFormat.ieee(5, 1))}
    vitfast.quantize_(model, QATConfig(FP16_32Config()), overrides=coarse)
    report = quantization_report(model, [images])
    assert report.worst(1)[0].name == "blocks.1.mlp.fc1"
    assert "blocks.1.mlp.fc1" in str(report)
    assert [layer.name for layer in report.layers][:2] == ["", "patch_embed"]
    assert not any(module._forward_hooks for module in model.modules())
    assert not torch.equal(model(images), before)


@pytest.mark.parametrize("chunk", [None, 4])
def test_accumulation_in_fp16(model: ImageModel, images: Tensor, chunk: int | None) -> None:
    original = copy.deepcopy(model)
    vitfast.quantize_(model, FP16_16Config(accumulate="fp16", chunk=chunk))
    report = quantization_report(model, [images], reference=original)
    assert 20 < report.output.signal_to_noise_db < 80
    assert report.top1_agreement <= 1


def test_a_converted_model_needs_the_original(model: ImageModel, images: Tensor) -> None:
    original = copy.deepcopy(model)
    vitfast.quantize_(model, FP16_16Config())
    with pytest.raises(UserError, match=r"reference=.*deepcopy"):
        quantization_report(model, [images])
    report = quantization_report(model, [images], reference=original)
    assert 40 < report.output.signal_to_noise_db < 80
    assert type(original) is type(vitfast.create_model("vit_nano_patch2_8"))  # the reference is left alone
    with pytest.raises(UserError, match="another model"):
        quantization_report(model, [images], reference=nn.Linear(2, 2))
    with pytest.raises(UserError, match="no images"):
        quantization_report(model, [], reference=original)


def test_non_finite_error_is_the_worst(model: ImageModel, images: Tensor) -> None:
    with torch.no_grad():
        model.get_parameter("blocks.0.mlp.fc1.bias").fill_(1e5)  # beyond fp16
    vitfast.quantize_(model, QATConfig(FP16_16Config()))
    report = quantization_report(model, [images])
    assert not math.isfinite(report.worst(1)[0].signal_to_noise_db)
    assert "blocks.0.mlp.fc1" in [layer.name for layer in report.layers if not math.isfinite(layer.signal_to_noise_db)]
