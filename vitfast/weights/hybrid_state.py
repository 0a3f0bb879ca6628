"""What a hybrid's weights, under our keys, say about the model they are from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitfast.weights.transformer_state import grid_of
from vitfast.weights.vit_state import fields_of_state

_BACKBONE = "patch_embed.backbone."
_UNIT = re.compile(re.escape(_BACKBONE) + r"stages\.(\d{1,3})\.blocks\.(\d{1,3})\.")


def hybrid_fields_of_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the fields of ``HybridFields`` that the weights determine, and its ``grid_size``.

    What cannot be told, because weights are missing or have another shape, is left out. The number of heads never can,
    nor what ``ResNetConventions`` lists; several image sizes give one grid of patches.
    """
    fields = fields_of_state(state)
    for name in ("img_size", "in_chans", "patch_order"):  # of an image; here the patches are of features
        fields.pop(name, None)
    grid_size = grid_of(state.get("pos_embed"), 1)
    if grid_size:
        fields["grid_size"] = grid_size
    root = state.get(f"{_BACKBONE}stem.conv.weight", state.get(f"{_BACKBONE}conv.weight"))
    if root is not None and root.dim() == 4:
        fields |= {"resnet_width": root.shape[0], "in_chans": root.shape[1]}
    layers: dict[int, int] = {}
    for key in state:
        if match := _UNIT.match(key):
            stage, block = int(match[1]), int(match[2])
            layers[stage] = max(layers.get(stage, 0), block + 1)
    if sorted(layers) == list(range(len(layers))):
        fields["resnet_layers"] = tuple(layers[stage] for stage in sorted(layers))
    return fields
