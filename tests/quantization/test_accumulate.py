"""FP16_16 with fp16 accumulators: every linear layer is the loop that ``matmul_accumulate`` defines."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vitfast
from support.accuracy import assert_same_bits
from vitfast import FloatFormat, FP16_16Config, QATConfig, quantize_
from vitfast.errors import UserError
from vitfast.models import ImageModel
from vitfast.ops import matmul_accumulate
from vitfast.quantization.record import quantization_record, quantize_from_record


def _fp16(x: Tensor) -> Tensor:
    return x.half().float()


@pytest.mark.parametrize("step", ["prepare", "convert"])
@pytest.mark.parametrize("chunk", [1, 8, None])
def test_a_linear_layer(chunk: int | None, step: str) -> None:
    model, x = nn.Sequential(nn.Linear(40, 7)), torch.randn(3, 5, 40)
    layer = copy.deepcopy(model[0])
    quantize_(model, QATConfig(FP16_16Config(accumulate="fp16", chunk=chunk)))
    if step == "convert":
        quantize_(model, QATConfig(step="convert"))
    product = matmul_accumulate(_fp16(x), _fp16(layer.weight), FloatFormat.fp16(), chunk)
    expected = _fp16(product + layer.bias)
    for _ in range(2):
        assert_same_bits(model(x).detach(), expected.detach())
        with torch.no_grad():
            assert_same_bits(model(x), expected.detach())


def test_a_convolution_is_a_gemm_of_patches() -> None:
    layer = nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    model, x = nn.Sequential(copy.deepcopy(layer)), torch.randn(2, 3, 7, 9)
    quantize_(model, FP16_16Config(accumulate="fp16", chunk=4))
    exact = F.conv2d(_fp16(x), _fp16(layer.weight), layer.bias, (2, 1), (1, 0), (1, 2))
    out = model(x)
    assert out.shape == exact.shape
    torch.testing.assert_close(out, exact, atol=0.01, rtol=0.01)
    assert_same_bits(out.detach(), _fp16(out.detach()))
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    quantize_(grouped, FP16_16Config(accumulate="fp16"))
    with pytest.raises(UserError, match="groups=1"):
        grouped(torch.randn(1, 4, 5, 5))


def test_qtorch_numerics_reach_the_accumulator() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    x = torch.tensor([[1.0, 2.0**-11]])  # the sum is a tie
    results = {}
    for numerics in ("ieee", "qtorch"):
        one = copy.deepcopy(model)
        quantize_(one, FP16_16Config(numerics=numerics, accumulate="fp16"))  # type: ignore[arg-type]
        results[numerics] = one(x).item()
    assert results == {"ieee": 1.0, "qtorch": 1 + 2.0**-10}


def test_a_model_differs_trains_and_is_found_again(model: ImageModel, images: Tensor) -> None:
    ordinary, other = copy.deepcopy(model), copy.deepcopy(model)
    quantize_(ordinary, QATConfig(FP16_16Config()))
    quantize_(model, QATConfig(FP16_16Config(accumulate="fp16", chunk=1)))
    logits = model(images)
    assert not torch.equal(logits, ordinary(images))
    torch.testing.assert_close(logits, ordinary(images), atol=0.1, rtol=0.1)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    record = quantization_record(model)
    assert record is not None
    quantize_from_record(other, record)
    assert_same_bits(other(images).detach(), logits.detach())


def test_report_with_rounded_accumulators(model: ImageModel, images: Tensor) -> None:
    quantize_(model, QATConfig(FP16_16Config(accumulate="fp16")))
    report = vitfast.quantization_report(model, [images])
    assert 20 < report.output.signal_to_noise_db < 100
    counted = {layer.name: layer.activations.values for layer in report.layers}
    assert counted["blocks.0.mlp.fc1"] > 0


@pytest.mark.parametrize(
    "options",
    [{"accumulate": "bf16"}, {"chunk": 4}, {"accumulate": "fp16", "chunk": 0}, {"accumulate": "fp16", "chunk": 1.5}],
)
def test_wrong_options(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"accumulate|chunk"):
        vitfast.FP16_16Config(**options)  # type: ignore[arg-type]
