"""Modules of torch and timm that read a layer's weight, where they would pass by the quantized layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vitfast
from vitfast.quantization.quantize import quantized_modules

E4M3 = vitfast.FloatConfig("fp8_e4m3fn")


def encoder(**options) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not options.get("norm_first", False)).eval()


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("converted", [False, True])
def test_an_encoder_rounds_with_and_without_gradients(norm_first: bool, converted: bool) -> None:
    model, x = encoder(norm_first=norm_first), torch.randn(3, 5, 32)
    exact = model(x)
    vitfast.quantize_(model, E4M3 if converted else vitfast.QATConfig(E4M3))
    with_gradients = model(x)
    with torch.no_grad():
        without = model(x)
    assert torch.equal(without, with_gradients)
    assert (without - exact).norm() > 0.01 * exact.norm()
    with pytest.raises(vitfast.UserError, match="no mask; leave this one out"):
        model(x, src_key_padding_mask=torch.arange(5) >= torch.tensor([[5], [3], [4]]))


def test_a_subclass_of_the_encoder_layer() -> None:
    class Own(nn.TransformerEncoderLayer):
        pass

    model, x = Own(32, 2, 64, batch_first=True).eval(), torch.randn(3, 5, 32)
    vitfast.quantize_(model, E4M3)
    with_gradients = model(x)
    with torch.no_grad():
        assert torch.equal(model(x), with_gradients)


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "eva02_tiny_patch14_224", "swinv2_tiny_window8_256"])
def test_timm_calls_the_projection_of_q_k_and_v(name: str) -> None:
    timm = pytest.importorskip("timm")
    small = {"depth": 1} if "swin" not in name else {"depths": (1, 1, 1, 1)}
    model = timm.create_model(name, img_size=64 if "swin" in name else 56 if "eva" in name else 32, **small).eval()
    vitfast.quantize_(model, E4M3)
    called: set[str] = set()
    for layer, module in quantized_modules(model).items():
        module.register_forward_hook(lambda *_, layer=layer: called.add(layer))
    size = model.patch_embed.img_size[0]
    model(torch.randn(1, 3, size, size))
    assert {layer for layer in quantized_modules(model) if layer.endswith(("qkv", "proj", "fc1", "fc2"))} <= called


def test_agreement_of_outputs_with_tokens() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))
    candidate = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))
    candidate.load_state_dict(model.state_dict())
    vitfast.quantize_(candidate, E4M3)
    report = vitfast.quantization_report(candidate, [torch.randn(3, 9, 8)], reference=model)
    assert 0.5 < report.top1_agreement <= 1
    assert report.num_images == 3
