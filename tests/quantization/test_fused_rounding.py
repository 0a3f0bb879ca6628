"""Fused, in-place and cached rounding is bit-identical to separate rounding, and caches are never stale."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import vitfast
from support.accuracy import assert_same_bits
from support.operator_calls import count_roundings
from vitfast import FloatConfig, FloatFormat, FP16_16Config, FP16_32Config, Int8Config, QATConfig, TF32Config, quantize_
from vitfast.models import ImageModel
from vitfast.quantization.configs import QuantizationConfig

CONFIGS = [
    FP16_16Config(),
    FP16_32Config(),
    TF32Config(),
    FloatConfig("bf16", round_results=True),
    FP16_16Config(semantics="legacy_convert"),
    FP16_16Config(numerics="qtorch"),
    FP16_16Config(clip_gradients=True),
]


def _look(model: nn.Module) -> list[Tensor]:
    """Puts a hook on every module, so that roundings are calls of their own; returns what the hooks saw."""
    seen: list[Tensor] = []
    for module in model.modules():
        module.register_forward_hook(lambda _, inputs, output: seen.extend((*inputs, output)))
    return seen


def _gradients(model: nn.Module, images: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(images).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("step", ["prepare", "convert"])
@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_fused_rounding_changes_no_result(
    model: ImageModel, images: Tensor, config: QuantizationConfig, step: str
) -> None:
    quantize_(model, QATConfig(config))
    if step == "convert":
        quantize_(model, QATConfig(step="convert"))
    watched = copy.deepcopy(model)
    _look(watched)
    assert_same_bits(model(images), watched(images))
    for own, other in zip(_gradients(model, images), _gradients(watched, images), strict=True):
        torch.testing.assert_close(own, other)
    with torch.no_grad():
        with count_roundings() as fused:
            logits = model(images)
        with count_roundings() as apart:
            assert_same_bits(logits, watched(images))
        assert_same_bits(model(images), logits)
    assert fused.count == apart.count
    if config == FP16_16Config() and step == "convert":
        assert fused.fused > apart.fused  # the additions, too


@pytest.mark.parametrize("config", CONFIGS[:3], ids=repr)
def test_tensors_seen_by_hooks_are_not_overwritten(
    model: ImageModel, images: Tensor, config: QuantizationConfig
) -> None:
    quantize_(model, config)
    seen = _look(model)
    copies: list[Tensor] = []
    for module in model.modules():
        module.register_forward_hook(lambda _, inputs, output: copies.extend(t.clone() for t in (*inputs, output)))
    with torch.no_grad():
        model(images)
    assert len(seen) == len(copies) > 50
    by_module = [seen[i : i + 2] for i in range(0, len(seen), 2)]
    for (x, out), (x_then, out_then) in zip(
        by_module, [copies[i : i + 2] for i in range(0, len(copies), 2)], strict=True
    ):
        assert_same_bits(x, x_then)
        assert_same_bits(out, out_then)


@pytest.mark.parametrize("config", [FP16_16Config(), FP16_32Config()], ids=repr)
def test_drop_path_and_dropout_go_unfused_but_right(images: Tensor, config: QuantizationConfig) -> None:
    model = vitfast.create_model("vit_nano_patch2_8", depth=2, num_classes=5, drop_rate=0.2, drop_path=0.2)
    quantize_(model, QATConfig(config))
    watched = copy.deepcopy(model)
    _look(watched)
    results = []
    for one in (model, watched):
        torch.manual_seed(3)
        results.append(one(images))
    assert_same_bits(*results)
    results[0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_mixed_configurations_round_each_their_own(model: ImageModel, images: Tensor) -> None:
    overrides = {"blocks.0.norm2": Int8Config(), "blocks.1.norm2": None, "blocks.1.mlp.fc1": TF32Config()}
    quantize_(model, QATConfig(FP16_16Config()), overrides=overrides)  # type: ignore[arg-type]
    watched = copy.deepcopy(model)
    _look(watched)
    with torch.no_grad():
        assert_same_bits(model(images), watched(images))


class TestKeptWeights:
    """A prepared model rounds its weights once, until they change."""

    config = QATConfig(FP16_32Config())

    def _count(self, model: nn.Module, images: Tensor) -> int:
        with torch.no_grad(), count_roundings() as counter:
            model(images)
        return counter.count

    def test_they_are_rounded_once(self, model: ImageModel, images: Tensor) -> None:
        quantize_(model, self.config)
        first = self._count(model, images)
        weights = sum(isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm)) for module in model.modules())
        assert self._count(model, images) == first - weights
        model(images)  # records gradients: nothing is kept
        assert self._count(model, images) == first

    @pytest.mark.parametrize("change", ["step", "load", "replace", "assign", "type"])
    def test_a_change_is_seen(self, model: ImageModel, images: Tensor, change: str) -> None:
        quantize_(model, self.config)
        with torch.no_grad():
            model(images)
            layer = model.get_submodule("blocks.0.attn.qkv")
            assert isinstance(layer, nn.Linear)
            if change == "step":
                layer.weight.add_(1.0)
            elif change == "load":
                model.load_state_dict({key: tensor + 1.0 for key, tensor in model.state_dict().items()})
            elif change == "replace":
                layer.weight = nn.Parameter(layer.weight + 1.0)
            elif change == "assign":
                layer.weight.data = layer.weight + 1.0
            else:
                model.double()
            images = images.to(layer.weight.dtype)
            kept = model(images)
        assert_same_bits(kept, copy.deepcopy(model)(images).detach())

    def test_copies_and_pickles_have_none(self, model: ImageModel, images: Tensor) -> None:
        quantize_(model, self.config)
        with torch.no_grad():
            expected = model(images)
            for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
                other.get_submodule("head").weight.mul_(2)
                assert not torch.equal(other(images), expected)
            assert torch.equal(model(images), expected)
        assert len(pickle.dumps(model)) < 1.2 * len(pickle.dumps(copy.deepcopy(model)))

    def test_inference_mode_keeps_them_too(self, model: ImageModel, images: Tensor) -> None:
        quantize_(model, self.config)
        with torch.inference_mode():
            expected = model(images)
            assert torch.equal(model(images), expected)
        assert torch.equal(model(images), expected)


def test_an_identity_format_fuses_to_nothing(model: ImageModel, images: Tensor) -> None:
    plain = copy.deepcopy(model)
    quantize_(model, FloatConfig(FloatFormat.ieee(8, 23), round_results=True))
    torch.testing.assert_close(model(images), plain(images))
