"""Training with simulated low precision: gradients, averages of weights, compilation, several processes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import vitfast
from vitfast import FixedConfig, FloatConfig, FP16_16Config, FP16_32Config, Int8Config, QATConfig, TF32Config, quantize_
from vitfast.models import ImageModel
from vitfast.quantization.configs import QuantizationConfig

CONFIGS = [FP16_16Config(), FP16_32Config(), TF32Config(), FloatConfig("fp8_e4m3fn"), FixedConfig(16, 10), Int8Config()]


def test_gradients_are_those_of_the_rounded_operands() -> None:
    layer, x = nn.Linear(6, 4), torch.randn(5, 6, requires_grad=True)
    model = nn.Sequential(copy.deepcopy(layer))
    quantize_(model, QATConfig(FP16_16Config()))
    grad = torch.randn(5, 4)
    model(x).backward(grad)
    half_x, half_weight = x.detach().half().float(), layer.weight.detach().half().float()
    assert torch.equal(model[0].weight.grad, grad.t() @ half_x)
    assert torch.equal(x.grad, grad @ half_weight)
    assert torch.equal(model[0].bias.grad, grad.sum(0))


@pytest.mark.parametrize("config", [FloatConfig("fp8_e4m3fn"), FixedConfig(8, 4)], ids=repr)
def test_the_clipping_mask_is_optional(config: QuantizationConfig) -> None:
    x = torch.tensor([[0.3, 1000.0, -1000.0, 1.0]])
    for clip_gradients, expected in ((False, [1.0, 1.0, 1.0, 1.0]), (True, [1.0, 0.0, 0.0, 1.0])):
        model = nn.Sequential(nn.Linear(4, 1))
        nn.init.ones_(model[0].weight)
        quantize_(model, QATConfig(type(config)(**{**vars(config), "clip_gradients": clip_gradients})))
        inputs = x.clone().requires_grad_()
        model(inputs).backward()
        assert inputs.grad.tolist() == [expected]


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_every_parameter_learns(model: ImageModel, images: Tensor, config: QuantizationConfig) -> None:
    quantize_(model, QATConfig(config))
    model.train()
    labels = torch.tensor([0, 1, 2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_weights_stay_float32_while_training(model: ImageModel) -> None:
    before = copy.deepcopy(model.state_dict())
    quantize_(model, QATConfig(FP16_16Config()))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    quantize_(model, QATConfig(step="convert"))
    for key, tensor in model.state_dict().items():
        rounded = key.endswith("weight")
        assert torch.equal(tensor, before[key].half().float() if rounded else before[key]), key


@pytest.mark.parametrize("config", [FP16_16Config(), Int8Config()], ids=repr)
def test_an_average_of_the_weights_is_quantized_alike(
    model: ImageModel, images: Tensor, config: QuantizationConfig
) -> None:
    quantize_(model, QATConfig(config))
    average = AveragedModel(model, use_buffers=True).eval()
    average.update_parameters(model)
    assert torch.equal(average(images), model(images))
    with vitfast.disable_fake_quantize(average):  # of the copy alone
        assert not torch.equal(average(images), model(images))


def test_a_context_without_rounding_gives_the_float32_bits(model: ImageModel, images: Tensor) -> None:
    expected = model(images)
    quantize_(model, QATConfig(FP16_16Config()))
    quantized = model(images)
    with vitfast.disable_fake_quantize(model):
        assert torch.equal(model(images), expected)
    with pytest.raises(ValueError, match="images"), vitfast.disable_fake_quantize(model):
        model(images[:, :, 1:])
    assert torch.equal(model(images), quantized)
    assert not torch.equal(quantized, expected)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("config", [FP16_16Config(), Int8Config()], ids=repr)
def test_distributed_data_parallel(model: ImageModel, images: Tensor, config: QuantizationConfig) -> None:
    quantize_(model, QATConfig(config))
    model.train()
    alone = copy.deepcopy(model)
    alone(images).square().sum().backward()
    DistributedDataParallel(model)(images).square().sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad), name


@pytest.mark.slow
@pytest.mark.parametrize("config", [FP16_16Config(clip_gradients=True), Int8Config(), FixedConfig(16, 10)], ids=repr)
def test_compiles_without_a_break(model: ImageModel, images: Tensor, config: QuantizationConfig) -> None:
    quantize_(model, QATConfig(config))
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images), atol=2e-2, rtol=2e-2)
    compiled(images).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
