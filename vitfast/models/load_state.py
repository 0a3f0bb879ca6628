"""Fills a model with saved weights, or says exactly why they do not fit."""

from __future__ import annotations

import logging
from collections.abc import Collection

from torch import Tensor

from vitfast.errors import UserError
from vitfast.layers import resize_position_embedding
from vitfast.models.vit import VisionTransformer

_LISTED_KEYS = 20
_HEADS = ("head.", "head_dist.")

logger = logging.getLogger(__name__)


def load_state(
    model: VisionTransformer,
    state: dict[str, Tensor],
    *,
    source: str,
    may_resize_positions: bool = False,
    may_replace_head: bool = False,
) -> None:
    """Loads weights in place. Every key and shape has to fit, but for what the caller allows.

    Args:
        model: the model to fill.
        state: weights under timm's keys.
        source: where they come from, for messages.
        may_resize_positions: resample position embeddings of another image size, by the model's
            ``position_interpolation``.
        may_replace_head: leave the heads freshly initialized where their number of classes differs.

    Raises:
        UserError: keys are missing, unexpected or have another shape; the message lists them.
    """
    state = dict(state)
    own = model.state_dict()
    if may_resize_positions:
        _resize_positions(model, state, source)
    if may_replace_head and _num_classes(state) != _num_classes(own):
        logger.info("%s: fresh head, %d classes instead of %d", source, _num_classes(own), _num_classes(state))
        state = {key: value for key, value in state.items() if not key.startswith(_HEADS)}
        state.update({key: value for key, value in own.items() if key.startswith(_HEADS)})

    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    misshapen = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if missing or unexpected or misshapen:
        shapes = [f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}" for key in misshapen]
        problems = [
            f"{kind}: {_listing(keys)}"
            for kind, keys in (("missing", missing), ("unexpected", unexpected), ("other shape", shapes))
            if keys
        ]
        advice = "; give img_size to resize the position embeddings" if misshapen == ["pos_embed"] else ""
        raise UserError(f"{source} does not fit {model.model_name}; {'; '.join(problems)}{advice}")
    model.load_state_dict(state)


def _resize_positions(model: VisionTransformer, state: dict[str, Tensor], source: str) -> None:
    positions = state.get("pos_embed")
    if positions is None or positions.shape == model.pos_embed.shape:
        return
    fields = model.fields
    try:
        state["pos_embed"] = resize_position_embedding(
            positions,
            fields.grid_size,
            num_prefix_tokens=fields.num_prefix_positions,
            interpolation=fields.position_interpolation,
        )
    except ValueError:
        return  # no square grid of patches: another kind of model, whose keys and shapes load_state lists
    logger.info("%s: position embeddings resized by %s", source, fields.position_interpolation)


def _num_classes(state: dict[str, Tensor]) -> int:
    return len(state["head.weight"]) if "head.weight" in state else 0


def _listing(keys: Collection[str]) -> str:
    more = len(keys) - _LISTED_KEYS
    return ", ".join(list(keys)[:_LISTED_KEYS]) + (f" and {more} more" if more > 0 else "")
