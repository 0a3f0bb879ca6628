"""Model names, their aliases, and the error for an unknown name."""

import re

import pytest
import torch

from vitfast.models import DistilledVisionTransformer, VisionTransformer, build_model, list_models
from vitfast.models.registry import ARCHITECTURES, resolve_name


def test_every_vit_size_patch_and_image_size_that_divides() -> None:
    expected = {
        f"vit_{size}_patch{patch}_{img}"
        for size in ("tiny", "small", "base", "large", "huge")
        for patch in (8, 14, 16, 32)
        for img in (224, 384)
        if img % patch == 0
    }
    towers = {name for name in list_models() if re.search("dinov|clip|siglip", name)}
    assert expected == set(list_models("vit_*_patch*")) - towers - {
        "vit_nano_patch2_8",
        "vit_nano_patch4_16",
        "vit_mini_patch4_32",
    }


@pytest.mark.parametrize("name", list_models("vit_*_patch*_[0-9]*") + list_models("deit_*"))
def test_name_says_patch_and_image_size(name: str) -> None:
    fields = ARCHITECTURES[name]
    assert f"_patch{fields.patch_size}_" in name
    assert name.endswith(f"_{fields.img_size}")
    assert (fields.distillation_token != "none") == ("_distilled_" in name)
    assert fields.num_classes == 1000


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("vit_huge_patch14_224", (1280, 32, 16, 3)),
        ("vit_nano_patch2_8", (64, 4, 4, 1)),
        ("vit_mini_patch4_32", (192, 6, 3, 3)),
    ],
)
def test_sizes(name: str, sizes: tuple[int, ...]) -> None:
    """Those that no other test pins: timm parity and the parameter counts cover the rest."""
    fields = ARCHITECTURES[name]
    assert (fields.embed_dim, fields.depth, fields.num_heads, fields.in_chans) == sizes


def test_list_models_filters_and_sorts() -> None:
    assert list_models("deit_*_distilled_*224") == [
        "deit_base_distilled_patch16_224",
        "deit_small_distilled_patch16_224",
        "deit_tiny_distilled_patch16_224",
    ]
    assert list_models() == sorted(list_models())
    assert list_models("resnet*") == []


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("ViT-B_16", "vit_base_patch16_224"),
        ("ViT-B_32", "vit_base_patch32_224"),
        ("ViT-L_16", "vit_large_patch16_224"),
        ("ViT-L_32", "vit_large_patch32_224"),
        ("ViT-H_14", "vit_huge_patch14_224"),
        ("vit_base_patch16_224.augreg_in1k", "vit_base_patch16_224"),
        ("vit_small_patch16_384.augreg_in21k_ft_in1k", "vit_small_patch16_384"),
        ("deit_tiny_distilled_patch16_224.fb_in1k", "deit_tiny_distilled_patch16_224"),
    ],
)
def test_aliases(alias: str, name: str) -> None:
    assert resolve_name(alias) == name
    with torch.device("meta"):
        assert build_model(alias).model_name == name


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("vit_base_patch16_244", "vit_base_patch16_224"),
        ("deit_tiny_distiled_patch16_224", "deit_tiny_distilled_patch16_224"),
        ("vit_base_patch14_384", "vit_base_patch16_384"),
        ("ViT-B16", "ViT-B_16"),
    ],
)
def test_unknown_name_names_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"unknown model '{wrong}'.*{nearest}.*list_models"):
        build_model(wrong)


def test_unknown_field_names_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"unknown model field 'drop_path_rate'; the nearest: .*drop_path.*; all fields"
    ):
        build_model("vit_nano_patch2_8", drop_path_rate=0.1)


def test_the_distillation_token_chooses_the_class() -> None:
    with torch.device("meta"):
        assert type(build_model("deit_tiny_patch16_224")) is VisionTransformer
        assert type(build_model("deit_tiny_distilled_patch16_224")) is DistilledVisionTransformer
        assert type(build_model("vit_nano_patch2_8", distillation_token="last")) is DistilledVisionTransformer
