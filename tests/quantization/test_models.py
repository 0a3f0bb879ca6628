"""Every model rounds exactly where the table says: against its equations in float64.

A coarse format shows a rounding that is missing or too much; in float64 both ways to compute round alike.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vitfast
from support import dvt_equations, t2t_equations
from support.rounded_state import RoundedState, coarse
from support.t2t_equations import block, linear, norm, stored
from vitfast import QATConfig, quantize_
from vitfast.layers.positional_attention import positional_map, positional_probabilities
from vitfast.models import ImageModel
from vitfast.quantization.arithmetic import Arithmetic, RoundedArithmetic
from vitfast.quantization.configs import QuantizationConfig

State = Mapping[str, Tensor]
VIT: dict[str, Any] = {"img_size": 16, "patch_size": 8, "num_classes": 5, "embed_dim": 16, "depth": 2, "num_heads": 2}
T2T: dict[str, Any] = {"img_size": 32, "num_classes": 5, "embed_dim": 16, "depth": 1, "num_heads": 2, "token_dim": 16}
DVT: dict[str, Any] = {"num_classes": 5, "embed_dim": 16, "depth": 2, "num_heads": 2, "reuse_dim": 6}
# features that are resampled by averaging lie on ties, which the last bit decides: they are left to the other cases
DVT_DEIT = {
    **DVT,
    "feature_reuse": False,
    "img_size": 56,
    "patch_sizes": (8, 6, 4),
    "patch_strides": (8, 6, 4),
    "patch_paddings": (0, 2, 0),
}


@dataclass(frozen=True)
class Coarse(QuantizationConfig):
    """Six mantissa bits; results, too, as FP16_16 does, or not, as FP16_32."""

    round_results: bool = True

    def arithmetic(self) -> Arithmetic:
        return RoundedArithmetic(coarse, self.round_results)  # type: ignore[arg-type]


def _patches(state: State, name: str, images: Tensor) -> Tensor:
    weight = state[f"{name}.weight"]
    size = weight.shape[-1]
    flat = {**state, f"{name}.weight": weight.flatten(1)}
    roundings = state if isinstance(state, RoundedState) else RoundedState({})
    rounded = RoundedState(flat, operand=roundings.operand, result=roundings.result)
    return linear(rounded, name, F.unfold(images, size, stride=size).transpose(1, 2))


def _blocks(state: State, x: Tensor, model: ImageModel, first: int = 0) -> Tensor:
    for index in range(first, model.fields.depth):
        x = block(state, f"blocks.{index}", x, model.fields.num_heads, model.fields.layer_norm_eps)
    return norm(state, "norm", x, model.fields.layer_norm_eps)


def _vit(state: State, model: ImageModel, images: Tensor) -> tuple[Tensor, ...]:
    x = t2t_equations.with_class_token(state, "", _patches(state, "patch_embed.proj", images))
    return (linear(state, "head", _blocks(state, x, model)[:, 0]),)


def _distilled(state: State, model: ImageModel, images: Tensor) -> tuple[Tensor, ...]:
    patches = _patches(state, "patch_embed.proj", images)
    prefix = torch.cat([state["cls_token"], state["dist_token"]], dim=1).expand(len(images), -1, -1)
    x = stored(state, stored(state, torch.cat([prefix, patches], dim=1)) + state["pos_embed"])
    x = _blocks(state, x, model)
    return ((linear(state, "head", x[:, 0]) + linear(state, "head_dist", x[:, 1])) / 2,)


def _convit(state: State, model: ImageModel, images: Tensor) -> tuple[Tensor, ...]:
    heads, eps, local = model.fields.num_heads, model.fields.layer_norm_eps, model.fields.local_up_to_layer
    x = stored(state, _patches(state, "patch_embed.proj", images) + state["pos_embed"])
    for index in range(local):
        name = f"blocks.{index}"
        x = stored(state, x + _gated(state, f"{name}.attn", norm(state, f"{name}.norm1", x, eps), heads))
        x = stored(state, x + t2t_equations.mlp(state, f"{name}.mlp", norm(state, f"{name}.norm2", x, eps)))
    x = stored(state, torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1))
    return (linear(state, "head", _blocks(state, x, model, local)[:, 0]),)


def _gated(state: State, name: str, x: Tensor, heads: int) -> Tensor:
    q, k = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in linear(state, f"{name}.qk", x).chunk(2, dim=-1))
    content = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    position = positional_map(
        positional_probabilities(state[f"{name}.pos_proj.weight"], state[f"{name}.pos_proj.bias"], 2)
    )
    gate = torch.sigmoid(state[f"{name}.gating_param"])[:, None, None]
    v = linear(state, f"{name}.v", x).unflatten(-1, (heads, -1)).transpose(1, 2)
    attended = ((1 - gate) * content + gate * position) @ v
    return linear(state, f"{name}.proj", attended.transpose(1, 2).flatten(2))


def _t2t(state: State, model: ImageModel, images: Tensor) -> tuple[Tensor, ...]:
    fields = model.fields
    split = (fields.patch_size, fields.patch_stride, fields.patch_padding)
    patches = t2t_equations.tokens_to_token(state, "tokens_to_token", images, split, fields.layer_norm_eps)
    x = _blocks(state, t2t_equations.with_class_token(state, "", patches), model)
    return (linear(state, "head", x[:, 0]),)


def _dvt(state: State, model: ImageModel, images: Tensor) -> tuple[Tensor, ...]:
    return tuple(dvt_equations.dvt(state, model.fields, images))


CASES = [
    pytest.param("vit_tiny_patch16_224", VIT, _vit, id="vit"),
    pytest.param("deit_tiny_distilled_patch16_224", VIT, _distilled, id="distilled"),
    pytest.param("convit_tiny", {**VIT, "local_up_to_layer": 1}, _convit, id="convit"),
    pytest.param("t2t_vit_7", T2T, _t2t, id="t2t performer"),
    pytest.param("t2t_vit_7", {**T2T, "tokens_type": "transformer"}, _t2t, id="t2t transformer"),
    pytest.param("dvt_nano_16", {**DVT, "img_size": 16}, _dvt, id="dvt nano"),
    pytest.param("dvt_deit_small", DVT_DEIT, _dvt, id="dvt deit"),
    pytest.param("dvt_t2t_vit_12", {**DVT, "depth": 1, "img_size": 56, "token_dim": 8}, _dvt, id="dvt t2t"),
    pytest.param(
        "dvt_t2t_vit_12",
        {**DVT, "depth": 1, "img_size": 56, "token_dim": 8, "backbone": "t2t_vit_t"},
        _dvt,
        id="dvt t2t transformer",
    ),
]


def _model(name: str, fields: dict[str, Any]) -> tuple[ImageModel, Tensor]:
    """A model all of whose parameters matter and are no values of the format, and images."""
    torch.set_default_dtype(torch.float64)  # for what is computed from sizes, too: the resampling between exits
    try:
        model = vitfast.create_model(name, **fields).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, mean=1.0 if "norm" in key and key.endswith("weight") else 0.0, std=0.2)
    return model, torch.randn(2, model.in_chans, model.img_size, model.img_size, dtype=torch.float64)


def _outputs(answer: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return answer if isinstance(answer, tuple) else (answer,)


@pytest.mark.filterwarnings("error")  # every addition and concatenation is rounded
@pytest.mark.parametrize("round_results", [True, False])
@pytest.mark.parametrize("step", ["prepare", "convert"])
@pytest.mark.parametrize(("name", "fields", "equations"), CASES)
def test_rounds_by_the_table(
    name: str, fields: dict[str, Any], equations: Callable[..., Any], step: str, round_results: bool
) -> None:
    model, images = _model(name, fields)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    unrounded = _outputs(model(images))
    for logits, plain in zip(unrounded, equations(state, model, images), strict=True):
        torch.testing.assert_close(logits, plain, rtol=1e-6, atol=1e-7)

    quantize_(model, QATConfig(Coarse(round_results)))
    if step == "convert":
        quantize_(model, QATConfig(step="convert"))
    result = {"result": coarse, "stored": coarse} if round_results else {}
    expected = equations(RoundedState(state, operand=coarse, gamma=coarse, **result), model, images)
    for logits, other, plain in zip(_outputs(model(images)), expected, unrounded, strict=True):
        torch.testing.assert_close(logits, other, rtol=1e-5, atol=1e-6)
        assert (logits - plain).abs().max() > 1e-3  # far more than the two may differ


@pytest.mark.parametrize(("name", "fields", "equations"), [CASES[i].values for i in (0, 2, 3, 5)])
def test_gradients_pass_straight_through(name: str, fields: dict[str, Any], equations: Callable[..., Any]) -> None:
    model, images = _model(name, fields)
    learning = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    state = RoundedState(dict(model.named_parameters()), operand=coarse, result=coarse, stored=coarse, gamma=coarse)
    squares = sum(out.square().sum() for out in equations(state, model, images))
    expected = torch.autograd.grad(squares, learning.values())
    quantize_(model, QATConfig(Coarse()))
    actual = torch.autograd.grad(sum(out.square().sum() for out in _outputs(model(images))), learning.values())
    for key, gradient, other in zip(learning, actual, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize(("name", "fields", "equations"), CASES)
def test_switched_off_nothing_changes(name: str, fields: dict[str, Any], equations: Callable[..., Any]) -> None:
    model, images = _model(name, fields)
    model, images = model.float(), images.float()
    expected, state = _outputs(model(images)), copy.deepcopy(model.state_dict())
    quantize_(model, QATConfig(vitfast.FP16_16Config()))
    assert list(model.state_dict()) == list(state)
    with torch.autocast("cpu", torch.bfloat16):  # what is simulated is float32 all the same
        under_autocast = _outputs(model(images))
    for logits, other in zip(_outputs(model(images)), under_autocast, strict=True):
        assert torch.equal(logits, other)
    with vitfast.disable_fake_quantize(model):
        assert all(torch.equal(*pair) for pair in zip(_outputs(model(images)), expected, strict=True))


@pytest.mark.parametrize("kind", ["nano", "t2t"])
def test_images_leave_a_quantized_model_early(kind: str) -> None:
    from support.exit_models import exit_model, random_images

    model = exit_model(kind)
    images = random_images(model, 12)
    quantize_(model, vitfast.Int8Config() if kind == "nano" else vitfast.FP16_16Config())
    outputs = [logits.detach() for logits in model(images)]
    confidences = torch.stack([logits.softmax(-1).amax(-1) for logits in outputs])
    thresholds = [float(confidences[exit_number].median()) for exit_number in range(model.num_exits - 1)] + [0.0]
    logits, exits = vitfast.EarlyExit(model, thresholds)(images)
    assert len(set(exits.tolist())) > 1
    for image, exit_number in enumerate(exits.tolist()):
        torch.testing.assert_close(logits[image], outputs[exit_number][image], atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize(("name", "fields", "equations"), [CASES[i].values for i in (0, 1, 2, 3, 5)])
def test_attention_maps_of_quantized_models(name: str, fields: dict[str, Any], equations: Callable[..., Any]) -> None:
    model, images = _model(name, fields)
    model, images = model.float(), images.float()
    plain = vitfast.attention_maps(model, images)
    quantize_(model, vitfast.FP16_32Config())
    maps = vitfast.attention_maps(model, images)
    for map_BHNN, other in zip(maps, plain, strict=True):
        torch.testing.assert_close(map_BHNN.sum(-1), torch.ones_like(map_BHNN[..., 0]))
        torch.testing.assert_close(map_BHNN, other, atol=2e-2, rtol=0.1)
        assert not torch.equal(map_BHNN, other)


def test_vissls_heads() -> None:
    from vitfast.layers import MlpHead, SwavHead

    mlp = MlpHead([6, 4, 3], use_bn=True, use_relu=True).double().eval()
    swav = SwavHead([6, 5, 4], [7], use_weight_norm_prototypes=True).double().eval()
    with torch.no_grad():
        swav.prototypes0.parametrizations.weight.original0.mul_(1.3)
    features = torch.randn(3, 6, dtype=torch.float64)
    for head in (mlp, swav):
        head.train()(torch.randn(8, 6, dtype=torch.float64))  # running statistics other than 0 and 1
        head.eval()

    def rounded_linear(layer: nn.Linear, x: Tensor) -> Tensor:
        return F.linear(coarse(x), coarse(layer.weight), layer.bias)

    expected = rounded_linear(mlp.clf[3], mlp.clf[1](rounded_linear(mlp.clf[0], features)).relu())
    hidden = swav.projection_head[1](rounded_linear(swav.projection_head[0], features)).relu()
    embeddings = F.normalize(rounded_linear(swav.projection_head[3], hidden), dim=1)
    scores = rounded_linear(swav.prototypes0, embeddings)
    for step in ("prepare", "convert"):
        for head in (mlp, swav):
            quantize_(head, QATConfig(Coarse(round_results=False) if step == "prepare" else None, step=step))
        torch.testing.assert_close(mlp(features), expected)
        torch.testing.assert_close(swav(features)[0], embeddings)
        torch.testing.assert_close(swav(features)[1], scores)


def test_torchvision_vit_rounds_by_the_table() -> None:
    torchvision = pytest.importorskip("torchvision")
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    model = torchvision.models.VisionTransformer(16, 8, num_classes=5, **sizes).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    rounded = RoundedState(_timms_keys(state), operand=coarse, result=coarse, stored=coarse, gamma=coarse)
    x = t2t_equations.with_class_token(rounded, "", _patches(rounded, "patch_embed.proj", images))
    for index in range(2):
        x = block(rounded, f"blocks.{index}", x, 2, 1e-6)
    expected = linear(rounded, "head", norm(rounded, "norm", x, 1e-6)[:, 0])
    before = model(images)
    quantize_(model, QATConfig(Coarse()))
    torch.testing.assert_close(model(images), expected)
    with vitfast.disable_fake_quantize(model):
        assert torch.equal(model(images), before)


def _timms_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {
        "class_token": "cls_token",
        "encoder.pos_embedding": "pos_embed",
        "conv_proj": "patch_embed.proj",
        "encoder.ln.": "norm.",
        "heads.head": "head",
        "encoder.layers.encoder_layer_": "blocks.",
        ".ln_1.": ".norm1.",
        ".ln_2.": ".norm2.",
        "self_attention.in_proj_": "attn.qkv.",
        "self_attention.out_proj": "attn.proj",
        "mlp.0": "mlp.fc1",
        "mlp.3": "mlp.fc2",
    }
    renamed = {}
    for key, tensor in state.items():
        for theirs, ours in names.items():
            key = key.replace(theirs, ours)
        renamed[key] = tensor
    return renamed


def test_hugging_faces_vit() -> None:
    """Its linear layers and LayerNorms; its additions are its own code's, which FP16_16 warns of."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=5, attn_implementation="eager")
    model = transformers.ViTForImageClassification(config).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    plain = copy.deepcopy(model)
    handles = [module.register_forward_pre_hook(_round_input) for module in plain.modules() if _is_rounded(module)]
    for module in plain.modules():
        if _is_rounded(module):
            module.weight.data = coarse(module.weight.data)
    quantize_(model, QATConfig(Coarse(round_results=False)))
    torch.testing.assert_close(model(images).logits, plain(images).logits)
    assert len(handles) == 1 + 2 * 8 + 2  # patches, blocks of six linear layers and two LayerNorms, LayerNorm, head
    other = transformers.ViTForImageClassification(config).eval()
    with pytest.warns(UserWarning, match="additions and concatenations in the code of .*ViTLayer"):
        quantize_(other, vitfast.FP16_16Config())


def _is_rounded(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm))


def _round_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (coarse(inputs[0]), *inputs[1:])
