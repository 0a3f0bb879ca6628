"""Pretrained weights of timm on the Hugging Face hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from vitfast.errors import UserError, import_optional
from vitfast.files import read_text, sha256_of_file
from vitfast.models.foreign_model import TIMM, timm_settings
from vitfast.models.registry import resolve_name
from vitfast.weights.recorded_preprocessing import check_timm_settings

_ORGANIZATION = "timm"
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"

# the tag of the weights that timm loads for a name without one (timm 1.0.31)
_TAGS = {
    "augreg2_in21k_ft_in1k": "vit_base_patch16_224 vit_base_patch8_224",
    "augreg_in21k_ft_in1k": (
        "vit_base_patch16_384 vit_base_patch32_224 vit_base_patch32_384 vit_large_patch16_224 vit_large_patch16_384 "
        "vit_large_r50_s32_224 vit_large_r50_s32_384 vit_small_patch16_224 vit_small_patch16_384 "
        "vit_small_patch32_224 vit_small_patch32_384 vit_small_r26_s32_224 vit_small_r26_s32_384 "
        "vit_tiny_patch16_224 vit_tiny_patch16_384 vit_tiny_r_s16_p8_224 vit_tiny_r_s16_p8_384"
    ),
    "datacompxl": "vit_base_patch32_clip_256",
    "dfn2b": "vit_large_patch14_clip_quickgelu_224",
    "dfn5b": ("vit_huge_patch14_clip_378 vit_huge_patch14_clip_quickgelu_224 vit_huge_patch14_clip_quickgelu_378"),
    "dino": "vit_small_patch8_224",
    "eupe_lvd1689m": "vit_tiny_patch16_dinov3_qkvb",
    "fb_in1k": (
        "convit_base convit_small convit_tiny deit_base_distilled_patch16_224 deit_base_distilled_patch16_384 "
        "deit_base_patch16_224 deit_base_patch16_384 deit_small_distilled_patch16_224 deit_small_patch16_224 "
        "deit_tiny_distilled_patch16_224 deit_tiny_patch16_224"
    ),
    "laion2b": "vit_giant_patch14_clip_224 vit_gigantic_patch14_clip_224",
    "laion2b_ft_in12k_in1k": (
        "vit_base_patch16_clip_224 vit_base_patch16_clip_384 vit_base_patch32_clip_224 vit_base_patch32_clip_384 "
        "vit_base_patch32_clip_448 vit_huge_patch14_clip_224 vit_huge_patch14_clip_336 vit_large_patch14_clip_224 "
        "vit_large_patch14_clip_336"
    ),
    "laion400m_e32": "vit_base_patch16_plus_clip_240 vit_base_patch32_clip_quickgelu_224",
    "lvd142m": (
        "vit_base_patch14_dinov2 vit_base_patch14_reg4_dinov2 vit_giant_patch14_dinov2 "
        "vit_giant_patch14_reg4_dinov2 vit_large_patch14_dinov2 vit_large_patch14_reg4_dinov2 "
        "vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2"
    ),
    "lvd1689m": (
        "vit_7b_patch16_dinov3 vit_base_patch16_dinov3 vit_base_patch16_dinov3_qkvb vit_huge_plus_patch16_dinov3 "
        "vit_huge_plus_patch16_dinov3_qkvb vit_large_patch16_dinov3 vit_large_patch16_dinov3_qkvb "
        "vit_small_patch16_dinov3 vit_small_patch16_dinov3_qkvb vit_small_plus_patch16_dinov3 "
        "vit_small_plus_patch16_dinov3_qkvb"
    ),
    "merged2b": "eva02_base_patch16_clip_224 eva02_large_patch14_clip_224 eva02_large_patch14_clip_336",
    "metaclip2_worldwide": "vit_gigantic_patch14_clip_378",
    "metaclip_2pt5b": "vit_base_patch16_clip_quickgelu_224 vit_gigantic_patch14_clip_quickgelu_224",
    "mim_in22k": "eva02_base_patch14_224 eva02_large_patch14_224 eva02_small_patch14_224 eva02_tiny_patch14_224",
    "mim_in22k_ft_in1k": "eva02_small_patch14_336 eva02_tiny_patch14_336",
    "mim_in22k_ft_in22k_in1k": "eva02_base_patch14_448 eva02_large_patch14_448",
    "openai": "vit_large_patch14_clip_quickgelu_336",
    "orig_in21k": "vit_base_r50_s16_224 vit_huge_patch14_224 vit_large_patch32_224",
    "orig_in21k_ft_in1k": "vit_base_r50_s16_384 vit_large_patch32_384",
    "pali_mix": "vit_so400m_patch14_siglip_gap_448",
    "pali_pt": "vit_so400m_patch14_siglip_gap_896",
    "tinyclip_laion400m": "vit_betwixt_patch32_clip_224 vit_medium_patch32_clip_224",
    "tinyclip_yfcc15m": "vit_medium_patch16_clip_224 vit_xsmall_patch16_clip_224",
    "v2_webli": (
        "vit_base_patch16_siglip_224 vit_base_patch16_siglip_256 vit_base_patch16_siglip_384 "
        "vit_base_patch16_siglip_512 vit_base_patch16_siglip_gap_224 vit_base_patch16_siglip_gap_256 "
        "vit_base_patch16_siglip_gap_384 vit_base_patch16_siglip_gap_512 vit_base_patch32_siglip_256 "
        "vit_base_patch32_siglip_gap_256 vit_giantopt_patch16_siglip_256 vit_giantopt_patch16_siglip_384 "
        "vit_giantopt_patch16_siglip_gap_256 vit_giantopt_patch16_siglip_gap_384 vit_large_patch16_siglip_256 "
        "vit_large_patch16_siglip_384 vit_large_patch16_siglip_512 vit_large_patch16_siglip_gap_256 "
        "vit_large_patch16_siglip_gap_384 vit_large_patch16_siglip_gap_512 vit_so400m_patch14_siglip_224 "
        "vit_so400m_patch14_siglip_378 vit_so400m_patch14_siglip_gap_224 vit_so400m_patch14_siglip_gap_378 "
        "vit_so400m_patch16_siglip_256 vit_so400m_patch16_siglip_384 vit_so400m_patch16_siglip_512 "
        "vit_so400m_patch16_siglip_gap_256 vit_so400m_patch16_siglip_gap_384 vit_so400m_patch16_siglip_gap_512"
    ),
}
DEFAULT_TAGS = {name: tag for tag, names in _TAGS.items() for name in names.split()}


def download_pretrained(name: str, revision: str | None = None) -> tuple[Path, dict[str, Any]]:
    """Downloads timm's weights into the hub's cache, unless they are there.

    The environment variables of huggingface_hub apply, such as ``HF_HOME`` and ``HF_HUB_OFFLINE``.

    Args:
        name: as in ``vitfast.create_model``; timm's tag after a dot chooses the weights.
        revision: branch, tag or commit; None: the newest.

    Returns:
        The safetensors file, and timm's ``pretrained_cfg``: size, mean, standard deviation, interpolation, crop.

    Raises:
        UserError: huggingface_hub is missing, timm has no weights of that name, the hub cannot be reached, or the file
            is damaged.
    """
    import_optional("huggingface_hub.errors", "pretrained=True", "hub")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    repository = hub_repository(name)
    try:
        config, weights = (Path(hf_hub_download(repository, file, revision=revision)) for file in (_CONFIG, _WEIGHTS))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{repository} is not in the cache, and the Hugging Face hub cannot be reached; connect, or download "
            f"{_WEIGHTS} elsewhere and give checkpoint=FILE"
        ) from error
    except (EntryNotFoundError, HfHubHTTPError) as error:
        where = f"{repository}{'' if revision is None else f' at {revision}'}"
        raise UserError(f"the Hugging Face hub has no {_WEIGHTS} in {where}: {str(error).splitlines()[0]}") from error
    _check_hash(weights)
    try:
        settings: dict[str, Any] = json.loads(read_text(config))["pretrained_cfg"]
        check_timm_settings(config, settings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{config} is no configuration of timm; delete it to download it again") from error
    return weights, settings


def hub_repository(name: str) -> str:
    """Returns the repository on the hub with timm's weights of a name, as in ``download_pretrained``.

    Raises:
        UserError: timm has no weights of that name.
    """
    architecture, _, tag = resolve_name(name), *name.partition(".")[1:]
    if name.startswith(TIMM):
        repository: str | None = timm_settings(name).hf_hub_id
        if repository is None:
            raise UserError(f"timm has no pretrained weights for {name!r}; use checkpoint=FILE")
        return repository
    tag = tag or DEFAULT_TAGS.get(architecture, "")
    if not tag:
        raise UserError(f"timm has no pretrained weights for {name!r}; use checkpoint=FILE, or one of: {_names()}")
    # models that differ in the GELU only share their weights
    return f"{_ORGANIZATION}/{architecture.replace('_quickgelu', '')}.{tag}"


def _check_hash(path: Path) -> None:
    """Compares a file with its SHA-256, which is its name in the hub's cache where the file system has links."""
    expected = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", expected) is None:
        return
    if sha256_of_file(path) != expected:
        raise UserError(f"{path.resolve()} is damaged, its SHA-256 is not its name; delete it to download it again")


def _names() -> str:
    return ", ".join(sorted(DEFAULT_TAGS))
