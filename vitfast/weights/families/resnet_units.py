"""Keys of the ResNet in front of a ViT: Google's name its parts, and so do those who load Google's weights."""

from __future__ import annotations

import re
from collections.abc import Callable

BACKBONE = "patch_embed.backbone."

# Google's name of a unit's layer -> ours; the second is a GroupNorm's
UNIT_CONVOLUTIONS = {"conv1": "conv1", "conv2": "conv2", "conv3": "conv3", "conv_proj": "downsample.conv"}
UNIT_NORMS = {"gn1": "norm1", "gn2": "norm2", "gn3": "norm3", "gn_proj": "downsample.norm"}


def in_unit(layer: str) -> Callable[[str], str]:
    """Returns what makes our key of Google's ``block2/unit1/…`` or ViT-pytorch's ``….block2.unit1.…``, counted from 1.

    Args:
        layer: our key below the unit's.
    """

    def key(file_key: str) -> str:
        stage, block = (int(number) - 1 for number in re.findall(r"(?:block|unit)(\d{1,3})\b", file_key)[:2])
        return f"{BACKBONE}stages.{stage}.blocks.{block}.{layer}"

    return key
