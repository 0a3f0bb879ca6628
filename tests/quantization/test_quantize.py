"""Rounding happens exactly where the table says; names and float32 results do not change."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitfast
from support.operator_calls import count_roundings
from support.quantized_vit import RoundedViT
from vitfast import FloatConfig, FloatFormat, FP16_16Config, FP16_32Config, Int8Config, QATConfig, TF32Config, quantize_
from vitfast.errors import UserError
from vitfast.layers import ResidualAdd
from vitfast.models import ImageModel
from vitfast.quantization.configs import QuantizationConfig
from vitfast.quantization.quantize import quantization_mode

Round = Callable[[Tensor], Tensor]


def _identity(x: Tensor) -> Tensor:
    return x


def _fp16(x: Tensor) -> Tensor:
    return x.half().float()


def _tf32(x: Tensor) -> Tensor:
    """Rounds the bits: to the nearest multiple of 2**13, half to even; for finite numbers."""
    bits = x.contiguous().view(torch.int32)
    odd = (bits >> 13) & 1
    return ((bits + 0xFFF + odd) & ~0x1FFF).view(torch.float32)


class _Counter:
    """A rounding that counts its calls."""

    def __init__(self, function: Round) -> None:
        self.function, self.calls = function, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.function(x)


def _outputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _, inputs, output, name=name: outputs.__setitem__(name, output))
        for name, module in model.named_modules()
        if name
    ]
    outputs[""] = model(images)
    for handle in handles:
        handle.remove()
    return outputs


# the upstream's counts are 48 (two of them redundant, before GELU) and 25; after its conversion 6 and 0
CASES = [
    pytest.param(FP16_16Config(), "prepare", _fp16, "operand weight result stored gamma", 51, id="FP16_16"),
    pytest.param(FP16_16Config(), "convert", _fp16, "operand weight result stored gamma", 36, id="FP16_16 converted"),
    pytest.param(FP16_32Config(), "prepare", _fp16, "operand weight gamma", 30, id="FP16_32"),
    pytest.param(FP16_32Config(), "convert", _fp16, "operand weight gamma", 15, id="FP16_32 converted"),
    pytest.param(TF32Config(), "prepare", _tf32, "operand weight gamma", 30, id="TF32"),
    pytest.param(TF32Config(), "convert", _tf32, "operand weight gamma", 15, id="TF32 converted"),
    pytest.param(
        FP16_16Config(semantics="legacy_convert"), "prepare", _fp16, "operand weight result stored", 46, id="legacy"
    ),
    pytest.param(
        FP16_16Config(semantics="legacy_convert"), "convert", _fp16, "weight stored gamma", 6, id="FP16_16 legacy"
    ),
    pytest.param(FP16_32Config(semantics="legacy_convert"), "convert", _fp16, "weight gamma", 0, id="FP16_32 legacy"),
]


@pytest.mark.parametrize(("config", "step", "function", "rounded", "count"), CASES)
def test_rounds_by_the_table(
    model: ImageModel,
    images: Tensor,
    config: QuantizationConfig,
    step: str,
    function: Round,
    rounded: str,
    count: int,
) -> None:
    roundings = {
        place: _Counter(function if place in rounded.split() else _identity)
        for place in ("operand", "weight", "result", "stored", "gamma")
    }
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    expected = RoundedViT(state, num_heads=4, **roundings)
    expected_logits = expected(images)

    quantize_(model, QATConfig(config))
    if step == "convert":
        quantize_(model, QATConfig(config, step="convert"))
    with count_roundings() as counter:
        outputs = _outputs(model, images)

    assert torch.equal(outputs[""], expected_logits)
    for name, output in expected.outputs.items():
        if name != "patch_embed.proj":  # PatchEmbed reads the weight, so that a hook sees the result one level up
            assert torch.equal(outputs[name], output), name
    assert torch.equal(outputs["patch_embed"], expected.outputs["patch_embed.proj"])
    assert counter.count == count
    if step == "prepare":
        assert count == sum(roundings[place].calls for place in rounded.split())


@pytest.mark.parametrize(
    "config", [FP16_16Config(), FP16_32Config(), TF32Config(), FloatConfig("mxfp4"), Int8Config()], ids=repr
)
def test_conversion_changes_no_result(model: ImageModel, images: Tensor, config: QuantizationConfig) -> None:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
    quantize_(model, QATConfig(config))
    prepared = model(images)
    quantize_(model, QATConfig(step="convert"))
    assert torch.equal(model(images), prepared)


def test_one_call_is_both_steps(model: ImageModel, images: Tensor) -> None:
    other = copy.deepcopy(model)
    quantize_(model, FP16_16Config())
    quantize_(other, QATConfig(FP16_16Config()))
    quantize_(other, QATConfig(FP16_16Config(), step="convert"))
    assert torch.equal(model(images), other(images))
    for (key, tensor), other_tensor in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(tensor, other_tensor), key


def test_an_identity_format_changes_nothing(model: ImageModel, images: Tensor) -> None:
    """The fused operators add up in another order; the same layers one by one give the same bits."""
    unquantized = model(images)
    quantize_(model, FloatConfig(FloatFormat.ieee(8, 23), round_results=True))
    quantized = model(images)
    with quantization_mode(model, "plain"):
        assert torch.equal(quantized, model(images))
    torch.testing.assert_close(quantized, unquantized)


@pytest.mark.parametrize("config", [FP16_16Config(), Int8Config()], ids=repr)
@pytest.mark.parametrize("step", ["prepare", "convert"])
def test_names_stay_and_any_checkpoint_loads(
    model: ImageModel, images: Tensor, config: QuantizationConfig, step: str
) -> None:
    fresh = vitfast.create_model("vit_nano_patch2_8", depth=2, num_classes=5).eval()
    state = copy.deepcopy(model.state_dict())
    for target in (model, fresh):
        quantize_(target, QATConfig(config))
        if step == "convert":
            quantize_(target, QATConfig(step="convert"))
    assert list(fresh.state_dict()) == list(state)
    fresh.load_state_dict(state)  # of the unquantized model
    assert torch.equal(fresh(images), model(images))
    unquantized = vitfast.create_model("vit_nano_patch2_8", depth=2, num_classes=5)
    unquantized.load_state_dict(fresh.state_dict())


@pytest.mark.parametrize(
    "wrong",
    [lambda name, module: "head" in name, lambda name, module: name.startswith("head"), lambda module: True],
)
def test_a_filter_with_other_arguments_is_named(model: ImageModel, wrong: Any) -> None:
    with pytest.raises(UserError, match=r"filter_fn\(module, name\) failed for .*; its first argument is the module"):
        quantize_(model, FP16_32Config(), wrong)
    with pytest.raises(UserError, match=r"filter_fn\(module, name\), first the module, then its name, must be true"):
        quantize_(model, FP16_32Config(), lambda name, module: isinstance(module, nn.Linear))  # type: ignore[arg-type]


def test_a_filter_and_overrides_choose(model: ImageModel, images: Tensor) -> None:
    quantize_(
        model,
        QATConfig(FP16_32Config()),
        lambda module, name: isinstance(module, nn.Linear),
        overrides={"blocks.0.*": None, "head": Int8Config()},
    )
    configs = {
        name: module.quantization.config
        for name, module in model.named_modules()
        if hasattr(module, "quantization") and module.quantization.config is not None
    }
    block = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert configs == {**{f"blocks.1.{name}": FP16_32Config() for name in block}, "head": Int8Config()}
    fc1 = model.get_submodule("blocks.1.mlp.fc1")
    outputs = _outputs(model, images)
    assert isinstance(fc1, nn.Linear)
    norm = outputs["blocks.1.norm2"]
    assert torch.equal(outputs["blocks.1.mlp.fc1"], nn.functional.linear(_fp16(norm), _fp16(fc1.weight), fc1.bias))


def test_a_stored_result_is_configured_by_the_module_that_contains_it(model: ImageModel, images: Tensor) -> None:
    quantize_(model, QATConfig(FP16_16Config()), overrides={"blocks.0": None})
    assert type(model.get_submodule("blocks.0.add")) is ResidualAdd
    assert isinstance(model.get_submodule("blocks.1.add"), ResidualAdd)
    with count_roundings() as counter:
        model(images)
    assert counter.count == 51 - 2
    record = vitfast.quantization_record(model)
    assert record is not None
    named = record["configs"][0]["modules"]
    assert {"", "blocks.1"} < set(named)
    assert not {"blocks.0", "blocks.1.add"} & set(named)


def test_a_model_of_another_class_needs_no_counterpart(model: ImageModel, images: Tensor) -> None:
    class Subclass(type(model)):  # type: ignore[misc]
        pass

    expected = copy.deepcopy(model)
    quantize_(expected, QATConfig(FP16_16Config()))
    model.__class__ = Subclass
    with pytest.warns(UserWarning, match="code of Subclass"):  # it might add something itself
        quantize_(model, QATConfig(FP16_16Config()))
    assert torch.equal(model(images), expected(images))


def test_qtorch_numerics_differ_at_ties_and_beyond_the_maximum() -> None:
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2))
    x = torch.tensor([[1 + 2.0**-11, 70000.0]])
    results = {}
    for numerics in ("ieee", "qtorch"):
        model = nn.Sequential(copy.deepcopy(layer))
        quantize_(model, FP16_32Config(numerics=numerics), overrides=None)
        results[numerics] = model(torch.cat([x[:, :1], torch.zeros(1, 1)], 1))[0, 0].item()
    assert results == {"ieee": 1.0, "qtorch": 1 + 2.0**-10}


@pytest.mark.slow
def test_qtorch_numerics_are_qtorchs(model: ImageModel, images: Tensor) -> None:
    quant = pytest.importorskip("qtorch.quant")  # compiles an extension

    def rounded(x: Tensor) -> Tensor:
        return quant.float_quantize(x.contiguous(), 5, 10, "nearest")

    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    places = dict.fromkeys(("operand", "weight", "result", "stored", "gamma"), rounded)
    expected = RoundedViT(state, num_heads=4, **places)(images)
    quantize_(model, QATConfig(FP16_16Config(numerics="qtorch")))
    assert torch.equal(model(images), expected)


def test_autocast_does_not_reach_the_simulation(model: ImageModel, images: Tensor) -> None:
    quantize_(model, FP16_16Config())
    expected = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(images), expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_values_are_reported_before_rounding(value: float) -> None:
    model, x = nn.Sequential(nn.Linear(2, 1)), torch.tensor([[1.0, value]])
    other = copy.deepcopy(model)
    quantize_(model, FP16_32Config(numerics="qtorch"))
    with pytest.warns(RuntimeWarning, match=r"infinity or NaN is rounded to a format \(5, 10\) that lacks it"):
        assert model(x).isfinite().all()
    quantize_(other, FP16_32Config())
    assert not other(x).isfinite().any()


def test_layers_without_a_quantized_form_are_named() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv1d(3, 4, 1), nn.ConvTranspose2d(4, 4, 1), nn.RMSNorm(4), nn.Linear(4, 4))

    with pytest.warns(UserWarning, match=r"stay in float32: 0 \(Conv1d\), 1 \(ConvTranspose2d\), 2 \(RMSNorm\)"):
        quantize_(build(), FP16_32Config())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_(build(), FP16_32Config(), overrides={"[012]": None})
        quantize_(build(), FP16_32Config(), lambda module, name: isinstance(module, nn.Linear))


def test_microscaling_formats_by_name() -> None:
    assert FloatConfig("mxfp4") == FloatConfig("fp4_e2m1", block=32)
    with pytest.raises(UserError, match="mxfp4 has blocks of 32; leave out block=16"):
        FloatConfig("mxfp4", block=16)
    with pytest.raises(UserError, match="mxfp8_e4m3"):
        FloatConfig("mxfp3")
