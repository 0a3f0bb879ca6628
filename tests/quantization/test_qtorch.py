"""QPyTorch's numerics: bit-identical for single roundings, whole models and gradients."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import vitfast
from support.quantized_vit import RoundedViT
from vitfast import FixedConfig, FloatConfig, FP16_16Config, FP16_32Config, QATConfig, TF32Config, UserError, quantize_
from vitfast.models import ImageModel
from vitfast.quantization.configs import QuantizationConfig
from vitfast.quantization.qtorch_rounder import _import_qtorch

pytestmark = pytest.mark.slow  # importing qtorch.quant compiles it: 20 s


@pytest.fixture(scope="module")
def quant() -> Any:
    pytest.importorskip("qtorch")
    return _import_qtorch()


class _Straight(torch.autograd.Function):
    """The rounding of myrtle-vision's quantizer: qtorch's forwards, nothing backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, round_: Any) -> Tensor:
        return round_(x.contiguous())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


CASES = [
    pytest.param(FP16_16Config("qtorch"), (5, 10), "operand weight result stored gamma", id="FP16_16"),
    pytest.param(FP16_32Config("qtorch"), (5, 10), "operand weight gamma", id="FP16_32"),
    pytest.param(TF32Config("qtorch"), (8, 10), "operand weight gamma", id="TF32"),
]


@pytest.mark.parametrize("step", ["prepare", "convert"])
@pytest.mark.parametrize(("config", "bits", "places"), CASES)
def test_outputs_and_gradients_are_those_of_qtorch_at_every_point_of_the_table(
    quant: Any,
    model: ImageModel,
    images: Tensor,
    config: QuantizationConfig,
    bits: tuple[int, int],
    places: str,
    step: str,
) -> None:
    calls = []

    def rounded(x: Tensor) -> Tensor:
        calls.append(0)
        out: Tensor = _Straight.apply(x, lambda tensor: quant.float_quantize(tensor, *bits, rounding="nearest"))
        return out

    def identity(x: Tensor) -> Tensor:
        return x

    parameters = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    if step == "convert":  # rounds weights and gammas for good; what is left to differentiate are the rounded ones
        for name, tensor in parameters.items():
            if name.endswith("weight"):
                parameters[name] = quant.float_quantize(tensor.contiguous(), *bits, rounding="nearest")
    for tensor in parameters.values():
        tensor.requires_grad_()
    wanted = places.replace("weight", "").replace("gamma", "") if step == "convert" else places
    roundings = {
        place: rounded if place in wanted.split() else identity
        for place in ("operand", "weight", "result", "stored", "gamma")
    }
    expected = RoundedViT(parameters, num_heads=4, **roundings)(images)
    expected.square().sum().backward()

    quantize_(model, QATConfig(config))
    if step == "convert":
        quantize_(model, QATConfig(step="convert"))
    actual = model(images)
    actual.square().sum().backward()
    assert len(calls) > 10
    assert torch.equal(actual, expected)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, parameters[name].grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize(
    "config",
    [
        FP16_16Config("qtorch"),
        FP16_32Config("qtorch", clip_gradients=True),
        TF32Config("qtorch"),
        FloatConfig("fp8_e5m2", numerics="qtorch", round_results=True),
        FixedConfig(11, 8, round_results=True),
    ],
    ids=repr,
)
def test_the_backend_gives_the_same_bits(
    quant: Any, model: ImageModel, images: Tensor, config: QuantizationConfig
) -> None:
    import copy

    other = copy.deepcopy(model)
    quantize_(model, QATConfig(config))
    quantize_(other, QATConfig(type(config)(**{**vars(config), "backend": "qtorch"})))
    for one in (model, other):
        one(images).square().sum().backward()
    assert torch.equal(model(images), other(images))
    for (name, parameter), (_, expected) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        # where ours rounds within add_layer_norm, its backward adds two gradients in another order
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: n + m)
    for one in (model, other):
        quantize_(one, QATConfig(step="convert"))
    assert torch.equal(model(images), other(images))
    record = vitfast.quantization_record(other)
    fresh = vitfast.create_model("vit_nano_patch2_8", depth=2, num_classes=5).eval()
    vitfast.quantize_from_record(fresh, record)
    fresh.load_state_dict(other.state_dict())
    assert torch.equal(fresh(images), other(images))


def test_hidden_build_output_is_announced(quant: Any) -> None:
    model, x = torch.nn.Sequential(torch.nn.Linear(2, 1)), torch.tensor([[1.0, torch.inf]])
    quantize_(model, FP16_32Config("qtorch", backend="qtorch"))
    with pytest.warns(RuntimeWarning, match="infinity or NaN is rounded"):
        assert model(x).isfinite().all()


def test_nothing_is_compiled_before_the_first_rounding() -> None:
    code = (
        "import sys, torch, vitfast\n"
        "model = torch.nn.Sequential(torch.nn.Linear(2, 1))\n"
        "vitfast.quantize_(model, vitfast.QATConfig(vitfast.FP16_32Config('qtorch', backend='qtorch')))\n"
        "assert 'qtorch' not in sys.modules\n"
        "sys.modules['qtorch.quant'] = None\n"  # as where it is not installed
        "try: model(torch.ones(1, 2))\n"
        "except vitfast.UserError as error: print(error)\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "backend='qtorch' cannot import qtorch.quant" in finished.stdout
    assert "pip install qtorch" in finished.stdout
    assert UserError is vitfast.UserError
