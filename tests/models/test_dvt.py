"""The Dynamic Vision Transformer against its equations, at small sizes; parameter counts cover the large ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support import dvt_equations
from support.fill_from_state import fill_from_state
from vitfast.errors import UserError
from vitfast.layers import resize_position_embedding
from vitfast.models import DVT, build_model, list_models
from vitfast.weights.key_tables.dvt import from_released_key

SMALL: dict[str, Any] = {"num_classes": 5, "embed_dim": 16, "depth": 2, "num_heads": 2, "reuse_dim": 6}

# published grids 7, 10, 14 at a quarter of the image; T2T-ViT's at 2, 3, 4; two exits
DEIT = {**SMALL, "img_size": 56, "patch_sizes": (8, 6, 4), "patch_strides": (8, 6, 4), "patch_paddings": (0, 2, 0)}
T2T = {**SMALL, "img_size": 56, "token_dim": 8}
TWO = {**SMALL, "img_size": 16}
CONV = {**TWO, "backbone": "conv_vit"}


def small(name: str, **fields: Any) -> DVT:
    """A small model in which no parameter is zero or one, the random features apart."""
    model = build_model(name, **fields)
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, mean=1.0 if "norm" in key and key.endswith("weight") else 0.0, std=0.1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, mean=1.0, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def random_images(model: DVT, batch: int = 2) -> Tensor:
    dtype = next(model.parameters()).dtype
    return torch.randn(batch, model.in_chans, model.img_size, model.img_size, dtype=dtype)


CASES = [
    ("dvt_deit_small", DEIT, (7, 10, 14)),
    ("dvt_t2t_vit_12", T2T, (2, 3, 4)),
    ("dvt_t2t_vit_14", {**T2T, "backbone": "t2t_vit_t"}, (2, 3, 4)),
    ("dvt_nano_16", TWO, (2, 4)),
    ("dvt_nano_16", {**TWO, "feature_reuse": False}, (2, 4)),
    ("dvt_nano_16", {**TWO, "relation_reuse": False}, (2, 4)),
    ("dvt_nano_16", {**TWO, "feature_reuse": False, "relation_reuse": False}, (2, 4)),
    ("dvt_nano_16", {**TWO, "img_size": 23, "patch_paddings": (1, 0), "layer_norm_eps": 1e-2}, (3, 5)),
    ("dvt_mini_32", CONV, (2, 4)),
    ("dvt_mini_32", {**CONV, "in_chans": 1, "patch_sizes": (16, 4), "patch_strides": (16, 4)}, (1, 4)),
]


@pytest.mark.parametrize(("name", "fields", "grids"), CASES)
def test_logits_of_every_exit(name: str, fields: dict[str, Any], grids: tuple[int, ...]) -> None:
    model = small(name, **fields).double().eval()
    images = random_images(model)
    outputs = model(images)
    assert model.fields.grid_sizes == grids
    assert model.num_exits == len(outputs) == len(grids)
    # the matrices of the upsampling are built in float32
    for logits, expected in zip(outputs, dvt_equations.dvt(model.state_dict(), model.fields, images), strict=True):
        torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "fields"), [("dvt_nano_16", TWO), ("dvt_mini_32", CONV), ("dvt_t2t_vit_12", T2T)])
def test_gradients_through_all_exits(name: str, fields: dict[str, Any]) -> None:
    model = small(name, **fields).double().eval()
    images = random_images(model)
    learning = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    outputs = model(images)
    weights = [torch.randn_like(logits) for logits in outputs]
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    both = [outputs, dvt_equations.dvt(tensors, model.fields, images)]
    losses = [sum((logits * w).sum() for logits, w in zip(each, weights, strict=True)) for each in both]
    gradients, references = (torch.autograd.grad(loss, list(learning.values())) for loss in losses)
    for key, gradient, reference in zip(learning, gradients, references, strict=True):
        torch.testing.assert_close(
            gradient, reference, rtol=1e-5, atol=1e-7, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("reuse", ["relation_reuse", "feature_reuse"])
def test_the_second_exit_teaches_the_first_through_either_reuse(reuse: str) -> None:
    """Of the first exit's attention the last layer is read only through its logits when features are not reused."""
    other = {"relation_reuse": "feature_reuse", "feature_reuse": "relation_reuse"}[reuse]
    model = small("dvt_nano_16", **TWO, **{other: False}).double().eval()
    images = random_images(model)
    learning = dict(model.exits[0].named_parameters(prefix="exits.0"))
    expected = dvt_equations.dvt(dict(model.named_parameters()), model.fields, images)[1].square().sum()
    gradients = torch.autograd.grad(model(images)[1].square().sum(), list(learning.values()), allow_unused=True)
    references = torch.autograd.grad(expected, list(learning.values()), allow_unused=True)
    for key, gradient, reference in zip(learning, gradients, references, strict=True):
        assert (gradient is None or not gradient.any()) == (reference is None), key
        if reference is not None:
            torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-9)
    reached = {key for key, reference in zip(learning, references, strict=True) if reference is not None}
    assert "exits.0.patch_embed.proj.weight" in reached
    assert ("exits.0.blocks.1.mlp.fc2.weight" in reached) == (reuse == "feature_reuse")
    assert "exits.0.blocks.1.attn.qkv.weight" in reached


def test_gradcheck_across_two_exits() -> None:
    """Numerically: the second exit's logits by the first one's q, k, v weights and by the mixing of relations."""
    fields = {**TWO, "embed_dim": 8, "depth": 1, "num_heads": 1, "num_classes": 2, "img_size": 8, "mlp_ratio": 1.0}
    model = small("dvt_nano_16", **fields, patch_sizes=(8, 4), feature_reuse=False).double().eval()
    images = random_images(model, batch=1)
    names = ["exits.0.blocks.0.attn.qkv.weight", "exits.1.relation_reuse.mlp.0.weight"]
    values = [model.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def second_exit(*given: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, given, strict=True)), images)[1]

    assert torch.autograd.gradcheck(second_exit, values, fast_mode=True)
    assert all(gradient.any() for gradient in torch.autograd.grad(second_exit(*values).sum(), values))


def test_early_exit_equals_the_whole_model() -> None:
    model = small("dvt_deit_small", **DEIT).eval()
    images = random_images(model, batch=6)
    everything = model(images)
    state = model.start(images)
    remaining = torch.arange(6)
    for index, keep in enumerate((torch.tensor([4, 0, 5]), torch.tensor([True, False, True]), None)):
        logits, state = model.advance(state)
        torch.testing.assert_close(logits, everything[index][remaining])
        assert state.next_exit == index + 1
        if keep is not None:
            state, remaining = state.select(keep), remaining[keep]
    assert remaining.tolist() == [4, 5]
    with pytest.raises(ValueError, match="the model has 3 exits, and this state is after the last one"):
        model.advance(state)


@pytest.mark.parametrize(("feature_reuse", "relation_reuse"), [(True, False), (False, True)])
def test_state_holds_only_the_inputs_of_the_next_exit(feature_reuse: bool, relation_reuse: bool) -> None:
    model = small("dvt_nano_16", **TWO, feature_reuse=feature_reuse, relation_reuse=relation_reuse)
    _, state = model.advance(model.start(random_images(model)))
    assert (state.features is not None, len(state.relations)) == (feature_reuse, 2 if relation_reuse else 0)
    _, state = model.advance(state.select(torch.tensor([1])))
    assert (state.features, state.relations) == (None, ())


def test_unrequested_exits_are_not_computed() -> None:
    model = small("dvt_nano_16", **TWO)
    model.exits[1].register_forward_pre_hook(lambda *_: pytest.fail("the second exit ran"))
    images = random_images(model)
    assert next(model.exit_by_exit(images)).shape == (2, 5)


def test_of_an_empty_batch() -> None:
    model = small("dvt_nano_16", **TWO).eval()
    assert [logits.shape for logits in model(random_images(model, batch=0))] == [(0, 5), (0, 5)]


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "fields"), [("dvt_nano_16", TWO), ("dvt_t2t_vit_12", T2T)])
def test_autocast(name: str, fields: dict[str, Any], low: torch.dtype) -> None:
    model = small(name, **fields).eval()
    images = random_images(model)
    expected = model(images)
    with torch.autocast("cpu", low):
        outputs = model(images)
    for logits, reference in zip(outputs, expected, strict=True):
        assert (logits - reference).norm() < 16 * torch.finfo(low).eps * reference.norm()
    sum(logits.float().square().mean() for logits in outputs).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_the_released_keys() -> None:
    """The released models' keys are ours; ours stay."""
    model = small("dvt_t2t_vit_12", **T2T)
    ours = model.state_dict()
    examples = {
        "less_less_token.cls_token": "exits.0.cls_token",
        "less_less_token.tokens_to_token.attention1.w": "exits.0.patch_embed.attention1.w",
        "less_token.tokens_to_token.attention2.mlp.0.weight": "exits.1.patch_embed.attention2.mlp.0.weight",
        "less_token.tokens_to_token.project.bias": "exits.1.patch_embed.project.bias",
        "less_token.relation_reuse_conv.0.weight": "exits.1.relation_reuse.mlp.0.weight",
        "normal_token.relation_reuse_conv.2.bias": "exits.2.relation_reuse.mlp.2.bias",
        "normal_token.blocks.1.feature_resuse_mlp.0.weight": "exits.2.blocks.1.feature_reuse.norm.weight",
        "normal_token.blocks.1.feature_resuse_mlp.1.fc2.bias": "exits.2.blocks.1.feature_reuse.mlp.fc2.bias",
        "normal_token.blocks.0.attn.qkv.weight": "exits.2.blocks.0.attn.qkv.weight",
        "normal_token.blocks.0.mlp.fc1.weight": "exits.2.blocks.0.mlp.fc1.weight",
        "normal_token.head.weight": "exits.2.head.weight",
    }
    assert set(examples.values()) <= set(ours)
    assert {key: from_released_key(key) for key in examples} == examples
    assert [from_released_key(key) for key in ours] == list(ours)
    # DeiT's patch embedding has the same key in both
    assert from_released_key("less_token.patch_embed.proj.weight") == "exits.1.patch_embed.proj.weight"


def test_the_fields_survive_json() -> None:
    model = small("dvt_deit_small", **DEIT)
    fields = json.loads(json.dumps(model.model_fields))
    assert isinstance(fields["patch_sizes"], list)
    assert build_model(model.model_name, **fields).fields == model.fields


@pytest.mark.parametrize(
    ("alias", "sizes"),
    [
        ("DVT_Deit_small", (384, 12, 6, 4.0, True, 1e-6, "vit")),
        ("DVT_T2t_vit_12", (256, 12, 4, 2.0, False, 1e-5, "t2t_vit")),
        ("DVT_T2t_vit_14", (384, 14, 6, 3.0, False, 1e-5, "t2t_vit")),
    ],
)
def test_published_models(alias: str, sizes: tuple[Any, ...]) -> None:
    with torch.device("meta"):
        model = build_model(alias)
    fields = model.fields
    assert model.model_name == alias.lower()
    names = ("embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "layer_norm_eps", "backbone")
    assert tuple(getattr(fields, name) for name in names) == sizes
    assert (fields.grid_sizes, fields.reuse_dim, fields.reuse_hidden_dim) == ((7, 10, 14), 48, 128)
    assert model.head_prefixes == ("exits.2.head.", "exits.1.head.", "exits.0.head.")


@pytest.mark.parametrize(
    ("name", "img_size", "in_chans", "grids"), [("dvt_mini_32", 32, 3, (4, 8)), ("dvt_nano_16", 16, 1, (2, 4))]
)
def test_small_models(name: str, img_size: int, in_chans: int, grids: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = build_model(name)
    assert (model.img_size, model.in_chans, model.fields.grid_sizes) == (img_size, in_chans, grids)


def test_all_are_listed() -> None:
    assert list_models("dvt_*") == ["dvt_deit_small", "dvt_mini_32", "dvt_nano_16", "dvt_t2t_vit_12", "dvt_t2t_vit_14"]


def test_weight_decay_spares_tokens_and_positions_of_every_exit() -> None:
    model = small("dvt_nano_16", **TWO)
    names = {name for name, _ in model.named_parameters() if name.endswith(("cls_token", "pos_embed"))}
    assert len(names) == 4
    assert model.no_weight_decay() == names


@pytest.mark.parametrize(("name", "fields"), [("dvt_nano_16", TWO), ("dvt_t2t_vit_12", T2T)])
def test_fixed_fields(name: str, fields: dict[str, Any]) -> None:
    fixed = {key.split(".")[-1] for key, p in build_model(name, **fields).named_parameters() if not p.requires_grad}
    assert fixed == (set() if name == "dvt_nano_16" else {"pos_embed", "w"})


def test_weights_of_another_image_size() -> None:
    """Patches keep their size; twice the image has twice the grid."""
    saved, model = small("dvt_nano_16", **TWO), small("dvt_nano_16", **{**TWO, "img_size": 32})
    assert model.resize_state(dict(saved.state_dict())) == ["exits.0.pos_embed", "exits.1.pos_embed"]
    fill_from_state(model, saved.state_dict(), "dvt.safetensors", may_resize=True)
    for index, grid in enumerate((4, 8)):
        expected = resize_position_embedding(saved.exits[index].pos_embed, grid)
        assert torch.equal(model.exits[index].pos_embed, expected)
    with pytest.raises(UserError, match=r"other shape: exits.0.pos_embed .*; give img_size"):
        fill_from_state(model, saved.state_dict(), "dvt.safetensors")


def test_another_number_of_classes_replaces_every_head() -> None:
    saved, model = small("dvt_nano_16", **TWO), small("dvt_nano_16", **{**TWO, "num_classes": 3})
    fresh = [one.head.weight.clone() for one in model.exits]
    fill_from_state(model, saved.state_dict(), "dvt.safetensors", may_replace_head=True)
    assert all(torch.equal(one.head.weight, head) for one, head in zip(model.exits, fresh, strict=True))
    assert torch.equal(model.exits[0].cls_token, saved.exits[0].cls_token)


def test_without_heads() -> None:
    model = small("dvt_nano_16", **{**TWO, "num_classes": 0})
    assert [channels.shape for channels in model(random_images(model))] == [(2, 16), (2, 16)]


def test_rates_reach_the_parts() -> None:
    model = small(
        "dvt_t2t_vit_12",
        **{**T2T, "depth": 3, "drop_rate": 0.1, "attention_drop_rate": 0.2, "drop_path": 0.4, "token_drop_rate": 0.3},
    )
    for index, one in enumerate(model.exits):
        assert [block.drop_path.rate for block in one.blocks] == pytest.approx([0.0, 0.2, 0.4])
        assert {block.attn.attention_drop_rate for block in one.blocks} == {0.2}
        assert {block.attn.proj_drop.p for block in one.blocks} == {block.mlp.drop.p for block in one.blocks} == {0.1}
        assert (one.pos_drop.p, one.patch_embed.attention1.drop.p) == (0.1, 0.3)
        assert index == 0 or {block.feature_reuse.mlp.drop.p for block in one.blocks} == {0.1}


def test_images_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"images must have shape \[B, 1, 16, 16\], got"):
        small("dvt_nano_16", **TWO)(torch.randn(2, 3, 16, 16))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_sizes": (8,)}, "patch_sizes must have at least two numbers, one per exit; got (8,)"),
        ({"patch_sizes": 8}, "patch_sizes must be a list of whole numbers; got 8"),
        ({"patch_sizes": "8, 4"}, "patch_sizes must be a list of whole numbers; got '8, 4'"),
        ({"patch_sizes": (8, 4.0)}, "patch_sizes must be a list of whole numbers; got (8, 4.0)"),
        ({"patch_paddings": (0,)}, "patch_paddings must have as many numbers as patch_sizes, 2; got (0,)"),
        ({"patch_paddings": (0, -1)}, "patch_paddings must have numbers of at least 0; got (0, -1)"),
        ({"patch_sizes": (8, 0)}, "patch_sizes must have numbers of at least 1; got (8, 0)"),
        (
            {"patch_strides": [8, 3]},
            "patch_strides must equal patch_sizes=(8, 4) for backbone='vit', whose patches do not overlap; got (8, 3)",
        ),
        ({"img_size": 7}, "img_size is too small for patch_sizes=(8, 4) with patch_paddings=(0, 0); got 7"),
        ({"backbone": "deit"}, "backbone must be one of 'vit', 'conv_vit', 't2t_vit', 't2t_vit_t'; got 'deit'"),
        (
            {"backbone": "conv_vit", "patch_sizes": (8, 6), "patch_strides": (8, 6)},
            "patch_sizes must be powers of 2, at least 4, for backbone='conv_vit', whose convolutions halve the grid; "
            "got (8, 6)",
        ),
        (
            {"backbone": "conv_vit", "img_size": 20},
            "img_size must be a multiple of every patch size of (8, 4); got 20",
        ),
        (
            {"backbone": "conv_vit", "patch_paddings": (0, 1)},
            "patch_paddings must be zeros for backbone='conv_vit', whose convolutions pad; got (0, 1)",
        ),
        (
            {"backbone": "conv_vit", "embed_dim": 6, "num_heads": 3},
            "embed_dim must be a multiple of 4 for backbone='conv_vit', whose first convolution has a quarter of them; "
            "got 6",
        ),
        ({"reuse_dim": 0}, "reuse_dim must be at least 1; got 0"),
        ({"token_dim": 1}, "token_dim must be at least 2; got 1"),
    ],
)
def test_fields_that_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as info:
        build_model("dvt_nano_16", **fields)
    assert str(info.value) == message
