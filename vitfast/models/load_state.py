"""Fills a model with saved weights, or says exactly why they do not fit."""

from __future__ import annotations

import logging
from collections.abc import Collection

from torch import Tensor

from vitfast.errors import UserError
from vitfast.models.image_model import ImageModel

_LISTED_KEYS = 20

logger = logging.getLogger(__name__)


def load_state(
    model: ImageModel,
    state: dict[str, Tensor],
    *,
    source: str,
    may_resize: bool = False,
    may_replace_head: bool = False,
) -> None:
    """Loads weights in place. Every key and shape has to fit, but for what the caller allows.

    Args:
        model: the model to fill.
        state: weights under timm's keys.
        source: where they come from, for messages.
        may_resize: adapt the weights of another image size, see ``ImageModel.resize_state``.
        may_replace_head: leave the heads freshly initialized where their number of classes differs.

    Raises:
        UserError: keys are missing, unexpected or have another shape; the message lists them.
    """
    state = dict(model.own_keys(state))
    own = model.state_dict()
    if may_resize:
        for key in model.resize_state(state):
            logger.info("%s: %s resized for images of %d pixels", source, key, model.img_size)
    heads, classes = model.head_prefixes, _num_classes(state, model)
    if may_replace_head and classes != _num_classes(own, model):
        logger.info("%s: fresh head, %d classes instead of %d", source, model.num_classes, classes)
        state = {key: value for key, value in state.items() if not key.startswith(heads)}
        state.update({key: value for key, value in own.items() if key.startswith(heads)})

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
        only_positions = misshapen and all(key.split(".")[-1] == "pos_embed" for key in misshapen)
        advice = "; give img_size to resize the position embeddings" if only_positions else ""
        raise UserError(f"{source} does not fit {model.model_name}; {'; '.join(problems)}{advice}")
    model.load_state_dict(state)


def _num_classes(state: dict[str, Tensor], model: ImageModel) -> int:
    weight = state.get(f"{model.head_prefixes[0]}weight")
    return 0 if weight is None else len(weight)


def _listing(keys: Collection[str]) -> str:
    more = len(keys) - _LISTED_KEYS
    return ", ".join(list(keys)[:_LISTED_KEYS]) + (f" and {more} more" if more > 0 else "")
