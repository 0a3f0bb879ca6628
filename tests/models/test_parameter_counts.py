"""Exact parameter counts of the original systems."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitfast.models import build_model

MYRTLE = {"num_classes": 45, "layer_norm_eps": 1e-5, "qkv_bias": False, "patch_order": "channels_last"}


def count(name: str, **fields: Any) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(name, **fields).parameters())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # google-research/vision_transformer, vit_jax/models_test.py
        ("vit_tiny_patch16_224", 5_717_416),
        ("vit_small_patch16_224", 22_050_664),
        ("vit_base_patch16_224", 86_567_656),
        ("vit_base_patch32_224", 88_224_232),
        ("vit_large_patch16_224", 304_326_632),
        ("vit_large_patch32_224", 306_535_400),
        ("vit_huge_patch14_224", 632_045_800),
        ("R+ViT-Ti_16", 6_337_704),
        ("R26+ViT-S_32", 36_431_912),
        ("R26+ViT-B_32", 101_383_976),
        ("R50+ViT-B_16", 98_659_112),
        ("R50+ViT-L_32", 328_994_856),
        # facebookresearch/deit
        ("deit_tiny_patch16_224", 5_717_416),
        ("deit_small_patch16_224", 22_050_664),
        ("deit_base_patch16_224", 86_567_656),
        ("deit_tiny_distilled_patch16_224", 5_910_800),
        ("deit_small_distilled_patch16_224", 22_436_432),
        ("deit_base_distilled_patch16_224", 87_338_192),
        # facebookresearch/convit
        ("convit_tiny", 5_710_512),
        ("convit_small", 27_777_322),
        ("convit_base", 86_540_040),
        ("convit_tiny_plus", 9_972_912),
        ("convit_small_plus", 48_979_882),
        ("convit_base_plus", 153_134_856),
    ],
)
def test_a_thousand_classes(name: str, expected: int) -> None:
    assert count(name) == expected


@pytest.mark.parametrize(
    ("name", "num_classes", "expected"),
    [
        ("ViT-B_16", 0, 85_798_656),
        ("ViT-B_32", 0, 87_455_232),
        ("ViT-B_32", 10, 87_462_922),
        ("ViT-B_32", 100, 87_532_132),
        ("ViT-L_16", 0, 303_301_632),
        ("ViT-L_32", 0, 305_510_400),
        ("ViT-L_32", 10, 305_520_650),
        ("ViT-L_32", 100, 305_612_900),
        ("ViT-H_14", 0, 630_764_800),
        ("R50-ViT-B_16", 0, 97_890_112),
    ],
)
def test_jeonsworld_vit_pytorch(name: str, num_classes: int, expected: int) -> None:
    assert count(name, num_classes=num_classes) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_tiny_patch16_224", 5_526_189),
        ("vit_small_patch16_224", 21_669_165),
        ("vit_base_patch16_224", 85_805_613),
    ],
)
@pytest.mark.parametrize("head_type", ["linear", "norm_linear"])
def test_myrtle(name: str, expected: int, head_type: str) -> None:
    assert count(name, **MYRTLE, head_type=head_type) == expected


def test_ssuncheol_pytorch_vit() -> None:
    fields = {"num_heads": 8, "layer_norm_eps": 1e-5, "pooling": "mean", "head_type": "norm_linear"}
    assert count("vit_base_patch16_224", **fields) == 86_567_656


def test_googles_testing_model() -> None:
    assert count("vit_base_patch16_224", embed_dim=10, depth=1, num_heads=2, mlp_ratio=1.0) == 21_390


@pytest.mark.parametrize(("name", "expected"), [("convit_small_plus", 48_982_312), ("convit_base_plus", 153_139_176)])
def test_vissls_convit(name: str, expected: int) -> None:
    assert count(name, locality_dim=10) == expected


def test_vissls_pre_training_head() -> None:
    """768-3072-1000, as its example on one GPU."""
    trunk = count("vit_base_patch16_224", num_classes=0, qkv_bias=False)
    head = 768 * 3072 + 3072 + 3072 * 1000 + 1000
    assert count("vit_base_patch16_224", qkv_bias=False, head_hidden_dim=3072) == trunk + head


def count_learning(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(name).parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("name", "expected", "learning"),
    [
        # yitu-opensource/T2T-ViT, counted in the models that its code builds
        ("t2t_vit_7", 4_310_222, 4_255_694),
        ("t2t_vit_10", 5_889_230, 5_834_702),
        ("t2t_vit_12", 6_941_902, 6_887_374),
        ("t2t_vit_14", 21_545_550, 21_465_806),
        ("t2t_vit_19", 39_177_422, 39_085_070),
        ("t2t_vit_24", 64_105_934, 64_000_974),
        ("t2t_vit_t_14", 21_541_070, 21_465_422),
        ("t2t_vit_t_19", 39_172_942, 39_084_686),
        ("t2t_vit_t_24", 64_101_454, 64_000_590),
        # blackfeather-wang/Dynamic-Vision-Transformer
        ("dvt_deit_small", 70_442_232, 70_442_232),
        ("dvt_t2t_vit_12", 22_461_516, 22_360_140),
        ("dvt_t2t_vit_14", 67_881_836, 67_735_916),
    ],
)
def test_t2t_vit_and_dvt(name: str, expected: int, learning: int) -> None:
    """Fixed positions and random features are parameters that do not learn."""
    assert (count(name), count_learning(name)) == (expected, learning)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dvt_deit_small", [22_878_952, 23_920_456, 23_642_824]),
        ("dvt_t2t_vit_12", [6_989_824, 7_744_510, 7_727_182]),
        ("dvt_t2t_vit_14", [21_574_656, 23_156_110, 23_151_070]),
    ],
)
def test_exits_of_dvt(name: str, expected: list[int]) -> None:
    with torch.device("meta"):
        model = build_model(name)
    assert [sum(parameter.numel() for parameter in one.parameters()) for one in model.exits] == expected


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "convit_tiny", "t2t_vit_7", "dvt_deit_small"]
)
def test_flops_are_counted_in_inference_mode(name: str) -> None:
    model, images = build_model(name).eval(), torch.randn(1, 3, 224, 224)
    with torch.inference_mode(), FlopCounterMode(display=False) as counted:
        model(images)
    with torch.no_grad(), FlopCounterMode(display=False) as expected:
        model(images)
    assert counted.get_total_flops() == expected.get_total_flops() > 1e9
