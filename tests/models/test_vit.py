"""The plain model: options, errors, copies, compilation and export."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vitfast
from vitfast.errors import UserError
from vitfast.models import VisionTransformer, ViTFields, build_model
from vitfast.models.vit import arrange_patches


def nano(**fields: Any) -> VisionTransformer:
    """A small model whose random parameters are large enough for every part to matter."""
    model = build_model("vit_nano_patch2_8", **{"num_classes": 10, "depth": 2, **fields})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 1, 8, 8)


def test_model_attributes() -> None:
    model = nano()
    assert (model.model_name, model.num_classes, model.img_size, model.in_chans) == ("vit_nano_patch2_8", 10, 8, 1)
    assert model.no_weight_decay() == {"cls_token", "pos_embed"}
    assert model.no_weight_decay() <= dict(model.named_parameters()).keys()


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_logits_shape(batch: int) -> None:
    assert nano()(images(batch)).shape == (batch, 10)


def test_without_head_returns_the_pooled_channels() -> None:
    model = nano(num_classes=0).eval()
    x = images()
    torch.testing.assert_close(model(x), model.forward_features(x)[:, 0])


def test_mean_pooling_reads_all_tokens() -> None:
    model, x = nano(pooling="mean").eval(), images()
    torch.testing.assert_close(model(x), model.head(model.forward_features(x).mean(dim=1)))


def test_norm_linear_on_the_class_token_equals_linear() -> None:
    plain, other, x = nano().eval(), nano(head_type="norm_linear").eval(), images()
    other.load_state_dict(
        {
            key.replace("norm.", "fc_norm.") if key.startswith("norm.") else key: value
            for key, value in plain.state_dict().items()
        }
    )
    torch.testing.assert_close(other(x), plain(x))


def test_norm_linear_with_mean_pooling_normalizes_after_the_pool() -> None:
    """Pytorch-VIT's head: mean over all tokens, LayerNorm, linear."""
    model, x = nano(pooling="mean", head_type="norm_linear").eval(), images()
    tokens = model.blocks(model.embed(x))
    torch.testing.assert_close(model(x), model.head(model.fc_norm(tokens.mean(dim=1))))


def test_head_with_a_hidden_layer() -> None:
    """Google's pre-training head: linear, tanh, linear."""
    model, x = nano(head_hidden_dim=7).eval(), images()
    assert {key for key in model.state_dict() if key.startswith(("pre", "head"))} == {
        *("pre_logits.fc.weight", "pre_logits.fc.bias", "head.weight", "head.bias"),
    }
    pooled = model.forward_features(x)[:, 0]
    hidden = torch.tanh(pooled @ model.pre_logits.fc.weight.t() + model.pre_logits.fc.bias)
    torch.testing.assert_close(model(x), hidden @ model.head.weight.t() + model.head.bias)


def test_hidden_layer_of_the_head_begins_as_lecuns() -> None:
    linear = build_model("vit_nano_patch2_8", head_hidden_dim=1000).pre_logits.fc
    assert linear.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert not linear.bias.any()


def test_without_head_there_is_no_hidden_layer() -> None:
    model = nano(num_classes=0, head_hidden_dim=7).eval()
    assert not any(key.startswith("pre_logits") for key in model.state_dict())
    assert model(images()).shape == (2, 64)


@pytest.mark.parametrize("rates", [{"drop_rate": 0.2}, {"attention_drop_rate": 0.2}, {"drop_path": 0.5}])
def test_dropping_acts_in_training_only(rates: dict[str, float]) -> None:
    model, x = nano(**rates), images(8)
    plain = nano()
    plain.load_state_dict(model.state_dict())
    assert not torch.equal(model.train()(x), model(x))
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("distillation_token", ["none", "after_class", "last"])
def test_drop_rate_acts_on_the_embedded_tokens(distillation_token: str) -> None:
    model, x = nano(drop_rate=0.5, distillation_token=distillation_token), images()
    assert 0.3 < (model.train().embed(x) == 0).float().mean() < 0.7
    assert (model.eval().embed(x) != 0).all()


def test_drop_path_grows_linearly_to_the_last_block() -> None:
    rates = [block.drop_path.rate for block in build_model("vit_nano_patch2_8", drop_path=0.3).blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert build_model("vit_nano_patch2_8", depth=1, drop_path=0.3).blocks[0].drop_path.rate == 0.0


def test_wrong_shape_says_what_is_expected() -> None:
    with pytest.raises(ValueError, match=r"images must have shape \[B, 1, 8, 8\], got \[2, 3, 8, 8\]"):
        nano()(torch.randn(2, 3, 8, 8))


def test_every_parameter_gets_a_gradient() -> None:
    model = nano()
    model(images()).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("distillation_token", ["none", "after_class", "last"])
def test_copies_agree(distillation_token: str) -> None:
    model, x = nano(distillation_token=distillation_token).eval(), images()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False))
    for each in copies:
        assert torch.equal(each(x), model(x))
        assert (each.model_name, each.model_fields) == (model.model_name, model.model_fields)


def test_bfloat16_and_autocast_stay_near_float32() -> None:
    model, x = build_model("vit_nano_patch2_8", num_classes=10).eval(), images()
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = model(x)
    half = copy.deepcopy(model).to(torch.bfloat16)(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    for logits in (autocast, half):
        assert (logits.float() - expected).norm() / expected.norm() < 0.03


@pytest.mark.parametrize("distillation_token", ["none", "after_class"])
def test_compiles_into_one_graph(distillation_token: str) -> None:
    model, x = nano(distillation_token=distillation_token), images()
    compiled = torch.compile(model.eval(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.slow
def test_compiles_with_inductor() -> None:
    model, x = nano(depth=1).eval(), images()
    with torch.inference_mode():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-4, atol=1e-4)


def test_compiled_training_has_the_same_gradients() -> None:
    model, x = nano(), images()
    names, parameters = zip(*model.named_parameters(), strict=True)
    compiled = torch.compile(model.train(), fullgraph=True, backend="aot_eager")
    actual = torch.autograd.grad(compiled(x).square().sum(), parameters)
    expected = torch.autograd.grad(model(x).square().sum(), parameters)
    for name, gradient, reference in zip(names, actual, expected, strict=True):
        torch.testing.assert_close(
            gradient, reference, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_exports_with_any_batch_size() -> None:
    model = nano().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(2),), dynamic_shapes={"images": {0: batch}})
    x = images(5)
    torch.testing.assert_close(program.module()(x), model(x))


def test_patch_layouts_compute_the_same() -> None:
    first = ViTFields(img_size=8, patch_size=4, in_chans=3, embed_dim=5, num_heads=1)
    last = ViTFields(img_size=8, patch_size=4, in_chans=3, embed_dim=5, num_heads=1, patch_order="channels_last")
    images, weight = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 4, 4)
    expected = F.conv2d(images, weight, stride=4)[:, :, 1, 0]  # the patch of row 1, column 0
    linear = arrange_patches(weight, last)
    patch = images[:, :, 4:, :4].permute(0, 2, 3, 1).flatten(1)  # [B, P * P * in_chans]
    torch.testing.assert_close(patch @ linear.T, expected)
    assert torch.equal(arrange_patches(linear, first), weight)
    assert arrange_patches(weight, first) is weight
    assert arrange_patches(linear, last) is linear


def test_patches_of_another_size_stay_as_they_are() -> None:
    fields = ViTFields(img_size=8, patch_size=4, in_chans=3, embed_dim=5, num_heads=1)
    weight = torch.ones(5, 75)
    assert arrange_patches(weight, fields) is weight


# --- fields -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"img_size": 225},
            "img_size=225 is not a multiple of patch_size=16; the nearest img_size that works: 224 or 240",
        ),
        ({"img_size": 384, "patch_size": 14}, "img_size=384 is not a multiple of patch_size=14; .*: 378 or 392"),
        ({"img_size": 3}, "img_size=3 is not a multiple of patch_size=16; the nearest img_size that works: 16$"),
        (
            {"num_heads": 7},
            "embed_dim=768 is not a multiple of num_heads=7; the nearest embed_dim .*: 763 or 770",
        ),
        ({"embed_dim": 3}, "embed_dim=3 is not a multiple of num_heads=12; the nearest embed_dim that works: 12$"),
        ({"depth": 0}, "depth must be at least 1; got 0"),
        ({"in_chans": -1}, "in_chans must be at least 1; got -1"),
        ({"num_classes": -1}, "num_classes must be at least 1, or 0 for no head; got -1"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps must be above 0, for example 1e-6; got 0.0"),
        ({"mlp_ratio": 0.001}, r"mlp_ratio must be at least 0.0013\d+ \(1 / embed_dim\); got 0.001"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio must be a finite number; got nan"),
        ({"drop_rate": 1.0}, "drop_rate must be at least 0 and below 1, a probability; got 1.0"),
        ({"attention_drop_rate": -0.1}, "attention_drop_rate must be at least 0 and below 1"),
        ({"drop_path": 2}, "drop_path must be at least 0 and below 1"),
        ({"gelu": "relu"}, "gelu must be one of 'erf', 'tanh', 'quick'; got 'relu'"),
        ({"patch_order": None}, "patch_order must be one of 'channels_first', 'channels_last'; got None"),
        ({"pooling": "max"}, "pooling must be one of 'token', 'mean', 'patch_mean', 'map'; got 'max'"),
        ({"rotary": "axial"}, "rotary must be one of 'none', 'eva02', 'dinov3'; got 'axial'"),
        (
            {"rotary": "eva02", "embed_dim": 12, "num_heads": 2},
            "a multiple of 4 channels; embed_dim=12 with num_heads=2 gives 6",
        ),
        ({"mlp_norm": True}, "mlp_norm=True needs gated_mlp=True"),
        (
            {"rotary": "eva02", "distillation_token": "last"},
            "rotary cannot be combined with distillation_token='last'; use 'none'; got 'eva02'",
        ),
        ({"pooling": "patch_mean", "distillation_token": "after_class"}, "use pooling='token'"),
        ({"head_type": "mlp"}, "head_type must be one of 'linear', 'norm_linear'; got 'mlp'"),
        ({"distillation_token": True}, "distillation_token must be one of 'none', 'after_class', 'last'; got True"),
        ({"position_interpolation": "nearest"}, "must be one of 'zoom_linear', 'bicubic', 'bicubic_aligned'"),
        ({"depth": 12.0}, "depth must be a whole number; got 12.0"),
        ({"depth": True}, "depth must be a whole number; got True"),
        ({"img_size": "224"}, "img_size must be a whole number; got '224'"),
        ({"qkv_bias": 1}, "qkv_bias must be True or False; got 1"),
        ({"drop_rate": "0.1"}, "drop_rate must be a finite number; got '0.1'"),
        ({"pooling": "mean", "distillation_token": "after_class"}, "use pooling='token'"),
        ({"class_token": False}, "class_token=False; use pooling='mean' or 'map'"),
        ({"register_tokens": -1}, "register_tokens must be at least 0; got -1"),
        ({"layer_scale": -1e-5}, "layer_scale must be at least 0; got -1e-05"),
        (
            {"gated_mlp": True, "embed_dim": 4, "num_heads": 2, "mlp_ratio": 1.25},
            "width 5, which gated_mlp=True cannot halve; use mlp_ratio=1.5",
        ),
        (
            {"register_tokens": 4, "distillation_token": "last"},
            "register_tokens cannot be combined with distillation_token='last'; use 0; got 4",
        ),
        ({"pooling": "map", "distillation_token": "last"}, "pooling='map' cannot be combined with distillation_token="),
        ({"head_hidden_dim": -1}, "head_hidden_dim must be at least 1, or 0 for none; got -1"),
        (
            {"head_hidden_dim": 8, "distillation_token": "last"},
            "head_hidden_dim=8 cannot be combined with distillation_token='last'",
        ),
    ],
)
def test_refused_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ViTFields(**fields)


def test_derived_sizes() -> None:
    fields = ViTFields(img_size=384, patch_size=32, embed_dim=192, num_heads=3, mlp_ratio=2.5)
    assert (fields.grid_size, fields.mlp_dim, fields.num_prefix_positions) == (12, 480, 1)
    assert ViTFields(distillation_token="after_class").num_prefix_positions == 2
    assert ViTFields(distillation_token="last").num_prefix_positions == 1


def test_frozen() -> None:
    with pytest.raises(AttributeError):
        ViTFields().depth = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "fields",
    [
        {"register_tokens": 3, "prefix_positions": False, "layer_scale": 0.1, "gated_mlp": True},
        {"pre_norm": True, "gelu": "quick", "register_tokens": 1},
        {"class_token": False, "pooling": "map"},
        {
            **{"learned_positions": False, "rotary": "dinov3", "key_bias": False, "register_tokens": 2},
            **{"layer_scale": 0.1, "pooling": "patch_mean"},
        },
        {
            **{"rotary": "eva02", "key_bias": False, "gated_mlp": True, "mlp_norm": True, "attention_norm": True},
            **{"pooling": "patch_mean", "head_type": "norm_linear"},
        },
    ],
    ids=["DINOv2", "CLIP", "SigLIP", "DINOv3", "EVA-02"],
)
@pytest.mark.filterwarnings("ignore:.*only vitfast reads")
def test_towers_train_and_are_saved(fields: dict[str, Any], tmp_path: Path) -> None:
    model, x = nano(**fields), images()
    model(x).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0] == []
    assert model.no_weight_decay() <= dict(model.named_parameters()).keys()
    vitfast.save_weights(model, tmp_path / "model.safetensors")
    again = vitfast.create_model(None, checkpoint=tmp_path / "model.safetensors").eval()
    assert torch.equal(again(x), model.eval()(x))


@pytest.mark.parametrize("rotary", ["dinov3", "eva02"])
def test_rotary_positions_distinguish_patches(rotary: str) -> None:
    """The only positions: exchanging two patches changes the class token, in half precision by the same angles."""
    model = nano(rotary=rotary, learned_positions=False).eval()
    x = images()
    exchanged = torch.cat([x[..., 2:4], x[..., :2], x[..., 4:]], dim=-1)
    without = nano(learned_positions=False).eval()
    torch.testing.assert_close(without(exchanged), without(x))
    assert (model(exchanged) - model(x)).norm() > 0.01 * model(x).norm()
    expected = model(x)
    half = model.bfloat16()(x.bfloat16()).float()
    assert (half - expected).norm() < 0.05 * expected.norm()
