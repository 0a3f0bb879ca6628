"""What a ConViT's weights, under our keys, say about the model they are from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitfast.weights.transformer_state import NUMBER, columns_of, grid_of, rows_of
from vitfast.weights.vit_state import fields_of_state

_GATE = rf"blocks\.{NUMBER}\.attn\.gating_param"


def convit_fields_of_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the fields of ``ConViTFields`` that the weights determine: all but what initializes it and ``pooling``.

    What cannot be told, because weights are missing or have another shape, is left out.
    """
    fields = fields_of_state(state)
    for name in ("img_size", "distillation_token"):  # the positions have no class token
        fields.pop(name, None)
    grid_size = grid_of(state.get("pos_embed"), 0)
    if grid_size and "patch_size" in fields:
        fields["img_size"] = grid_size * fields["patch_size"]
    gates = [int(match[1]) for key in state if (match := re.fullmatch(_GATE, key))]
    if gates:
        fields["local_up_to_layer"] = max(gates) + 1
        key = f"blocks.{max(gates)}.attn.pos_proj.weight"
        if columns_of(state, key):
            fields |= {"num_heads": rows_of(state, key), "locality_dim": columns_of(state, key) // 3}
    return fields
