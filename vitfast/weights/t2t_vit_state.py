"""What a T2T-ViT's weights, under our keys, say about the model they are from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitfast.weights.transformer_state import block_fields, columns_of, grid_of, pixels_of, rows_of


def t2t_vit_fields_of_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the fields of ``T2TViTFields`` that the weights determine, and its ``grid_size``.

    What cannot be told, because weights are missing or have another shape, is left out. The number of heads, the stride
    and the padding never can; so the image size cannot, but the grid of tokens that it gave.
    """
    fields = block_fields(state) | {"num_classes": rows_of(state, "head.weight")}
    grid_size = grid_of(state.get("pos_embed"), 1)
    if grid_size:
        fields["grid_size"] = grid_size
    return fields | tokens_to_token_fields(state, "tokens_to_token.")


def tokens_to_token_fields(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Returns the fields of a tokens-to-token module whose keys begin with ``prefix``."""
    fields: dict[str, Any] = {}
    attention = f"{prefix}attention1."
    if f"{attention}w" in state:
        fields["tokens_type"] = "performer"
    elif f"{attention}attn.qkv.weight" in state:
        fields["tokens_type"] = "transformer"
    token_dim = columns_of(state, f"{prefix}project.weight") // 9
    if token_dim:
        fields["token_dim"] = token_dim
    norm = state.get(f"{attention}norm1.weight")
    if norm is not None and norm.dim() == 1 and (pixels := pixels_of(len(norm))):
        fields["in_chans"], fields["patch_size"] = pixels
    return fields
