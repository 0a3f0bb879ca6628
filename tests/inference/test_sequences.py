"""Accelerated models of patch sequences of different lengths: SigLIP 2 of transformers, and timm's ``NaFlexVit``."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitfast
from support.accelerable import requires, shake
from vitfast.inference.cpu import cpu_backend
from vitfast.inference.modules.attention import BiasedAttention
from vitfast.inference.modules.block import InferenceBlock

GRIDS = ((4, 6), (3, 5), (1, 2))
LENGTH = 26  # patches of the longest image, and padding
VALID = torch.arange(LENGTH) < torch.tensor([rows * columns for rows, columns in GRIDS])[:, None]
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "fp16_32": 2e-3, "int8": 5e-2}
NAFLEX = {
    "mean": ("naflexvit_base_patch16_gap", {}),
    "class token, pre-norm": (
        "naflexvit_base_patch16_gap",
        {"class_token": True, "global_pool": "token", "pre_norm": True},
    ),
    "map": ("naflexvit_base_patch16_map", {}),
    "SigLIP": ("naflexvit_base_patch16_siglip", {}),
    "factorized positions": ("naflexvit_base_patch16_parfac_gap", {}),
    "no positions": ("naflexvit_base_patch16_gap", {"pos_embed": "none"}),
}


def siglip2(name: str) -> nn.Module:
    import transformers

    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    vision |= {"patch_size": 4, "num_patches": 16}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    text |= {"vocab_size": 50, "projection_size": 32, "bos_token_id": 1, "eos_token_id": 2}
    if name == "Siglip2VisionModel":
        config: Any = transformers.Siglip2VisionConfig(**vision)
    else:
        config = transformers.Siglip2Config(vision_config=vision, text_config=text, num_labels=7)
    return shake(lambda: getattr(transformers, name)(config))


def naflex(kind: str) -> nn.Module:
    import timm

    name, options = NAFLEX[kind]
    small = {"embed_dim": 32, "num_heads": 2, "depth": 2, "num_classes": 7, "patch_size": 4, "attn_pool_num_heads": 2}
    return shake(lambda: timm.create_model(name, **small, **options))


def draw_patches() -> Tensor:
    return torch.randn(len(GRIDS), LENGTH, 48, generator=torch.Generator().manual_seed(0))


def siglip2_inputs() -> dict[str, Tensor]:
    return {
        "pixel_values": draw_patches(),
        "pixel_attention_mask": VALID.long(),
        "spatial_shapes": torch.tensor(GRIDS),
    }


def naflex_inputs() -> dict[str, Tensor]:
    coordinates = torch.zeros(len(GRIDS), LENGTH, 2, dtype=torch.long)
    for one, (rows, columns) in zip(coordinates, GRIDS, strict=True):
        one[: rows * columns] = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    return {"patches": draw_patches(), "patch_coord": coordinates, "patch_valid": VALID}


def assert_near(result: Any, expected: Any, tolerance: float) -> None:
    """Compares tensors without what the source computes for the padding, and outputs of transformers."""
    if isinstance(expected, Tensor):
        if expected.dim() == 3:
            assert not result[~VALID].any()
            result, expected = result[VALID], expected[VALID]
        assert (result - expected).norm() <= tolerance * expected.norm()
        return
    assert type(result) is type(expected)
    if not isinstance(expected, tuple):
        assert list(result) == list(expected)
        result, expected = result.to_tuple(), expected.to_tuple()
    for one, other in zip(result, expected, strict=True):
        assert_near(one, other, tolerance)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", ["Siglip2VisionModel", "Siglip2ForImageClassification"])
@torch.no_grad()
def test_siglip2(name: str, precision: str) -> None:
    model, inputs = siglip2(name), siglip2_inputs()
    fast = vitfast.accelerate(model, precision)
    assert fast.report().whole
    for options in ({}, {"output_hidden_states": True}, {"return_dict": False}):
        assert_near(fast(**inputs, **options), model(**inputs, **options), TOLERANCE[precision])
    assert_near(fast(*inputs.values()), model(*inputs.values()), TOLERANCE[precision])
    if name == "Siglip2VisionModel":
        assert_near(
            fast.embed(draw_patches(), **dict(list(inputs.items())[1:])), model(**inputs)[1], TOLERANCE[precision]
        )


@torch.no_grad()
def test_the_image_tower_of_siglip2() -> None:
    model, inputs = siglip2("Siglip2Model"), siglip2_inputs()
    with pytest.warns(UserWarning, match="is a Siglip2Model, of which only the image tower is accelerated"):
        fast = vitfast.accelerate(model)
    assert_near(fast.get_image_features(**inputs), model.get_image_features(**inputs), 1e-5)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("kind", NAFLEX)
@torch.no_grad()
def test_naflex(kind: str, precision: str) -> None:
    model, inputs = naflex(kind), naflex_inputs()
    fast = vitfast.accelerate(model, precision)
    assert fast.report().whole
    expected, pooled = model(inputs), model.forward_head(**model.forward_features(*inputs.values()), pre_logits=True)
    assert_near(fast(inputs), expected, TOLERANCE[precision])
    assert_near(fast(*inputs.values()), expected, TOLERANCE[precision])
    assert_near(fast.embed(inputs), pooled, TOLERANCE[precision])
    images = torch.randn(2, 3, 20, 28, generator=torch.Generator().manual_seed(1))
    assert_near(fast(images), model(images), TOLERANCE[precision])


@torch.no_grad()
def test_agreement_of_images() -> None:
    fast = vitfast.accelerate(naflex("mean"), check=torch.randn(2, 3, 16, 24))
    assert fast.report().agreement.cosine > 0.9999


@pytest.mark.parametrize("precision", TOLERANCE)
@torch.no_grad()
def test_without_the_operators_it_is_the_same(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = naflex("class token, pre-norm"), naflex_inputs()
    monkeypatch.delitem(cpu_backend._PACKED, BiasedAttention)
    monkeypatch.delitem(cpu_backend._PACKED, InferenceBlock)
    plain = vitfast.accelerate(model, precision)
    assert "separate attention" in str(plain.report())
    assert_near(plain(inputs), model(inputs), TOLERANCE[precision])


@torch.no_grad()
def test_padding_and_other_images_do_not_count() -> None:
    fast, inputs = vitfast.accelerate(siglip2("Siglip2VisionModel")), siglip2_inputs()
    expected = fast(**inputs).last_hidden_state
    changed = copy.deepcopy(inputs)
    changed["pixel_values"][~VALID] = torch.nan
    assert torch.equal(fast(**changed).last_hidden_state, expected)
    alone = {name: value[1:2] for name, value in inputs.items()}
    torch.testing.assert_close(fast(**alone).last_hidden_state, expected[1:2])


@torch.no_grad()
def test_a_copy_and_its_state() -> None:
    model, inputs = siglip2("Siglip2VisionModel"), siglip2_inputs()
    fast = vitfast.accelerate(model)
    assert torch.equal(copy.deepcopy(fast)(**inputs)[0], fast(**inputs)[0])
    state = fast.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def _with(**changed: Any) -> dict[str, Any]:
    return {**siglip2_inputs(), **changed}


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (_with(spatial_shapes=None), vitfast.UserError, "needs spatial_shapes as the processor of SigLIP 2 returns"),
        (_with(pixel_attention_mask=VALID[:, 1:]), ValueError, r"mask of the patches must have shape \[3, 26\]"),
        (_with(pixel_attention_mask=VALID[:, :1] * VALID**0), ValueError, r"mask of image 0 must mark patches among"),
        (_with(pixel_attention_mask=VALID & False), ValueError, "and at least one; it marks 0"),
        (_with(pixel_values=draw_patches()[..., 1:]), ValueError, r"patches must have shape \[B, N, 48\]"),
        (_with(pixel_values=draw_patches().long()), TypeError, "patches must be floating point, got torch.int64"),
        (_with(labels=torch.zeros(3)), vitfast.UserError, "takes images only, and was given labels"),
    ],
)
def test_wrong_sequences_are_named(inputs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        vitfast.accelerate(siglip2("Siglip2VisionModel"))(**inputs)


def test_images_are_no_check_of_siglip2() -> None:
    with pytest.raises(vitfast.UserError, match="check= takes images, and this model takes patches"):
        vitfast.accelerate(siglip2("Siglip2VisionModel"), check=torch.randn(2, 3, 16, 16))


def test_wrong_patches_of_naflex_are_named() -> None:
    fast = vitfast.accelerate(naflex("mean"))
    with pytest.raises(vitfast.UserError, match="patches need patch_coord"):
        fast(draw_patches())
    with pytest.raises(ValueError, match=r"sides that are multiples of \(4, 4\), got \[1, 3, 18, 20\]"):
        fast(torch.zeros(1, 3, 18, 20))
    with pytest.raises(vitfast.UserError, match="was given attn_mask"):
        fast({**naflex_inputs(), "attn_mask": VALID})
    with pytest.raises(vitfast.UserError, match="cannot return its tokens"):
        fast.forward_features(torch.zeros(1, 3, 16, 16))


def test_other_positions_fall_back() -> None:
    import timm

    requires("timm", "1.0.20")
    model = timm.create_model("naflexvit_base_patch16_gap", embed_dim=32, num_heads=2, depth=1, rope_type="axial")
    with pytest.warns(UserWarning, match="rope is a"):
        assert not vitfast.accelerate(model.eval()).report().whole
    with pytest.raises(vitfast.UserError, match="takes patches; normalize them before"):
        vitfast.accelerate(naflex("mean"), mean=(0.5,) * 3, std=(0.5,) * 3)
