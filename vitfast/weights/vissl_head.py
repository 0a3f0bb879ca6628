"""The heads of VISSL's checkpoints that are no classifier's: SwAV's, and perceptrons of several layers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from vitfast.errors import UserError
from vitfast.layers import MlpHead, SwavHead
from vitfast.weights.raw_file import read_raw_file
from vitfast.weights.transformer_state import NUMBER

_PREFIX = r"heads\.0\."
_PROTOTYPES = r"prototypes\d+\.(weight|weight_v|parametrizations\.weight\.original1)"
_SEVERAL = r"heads\.[1-9]\d*\..+"


def load_vissl_head(
    path: str | os.PathLike[str], *, activation: Literal["relu", "gelu"] = "relu"
) -> MlpHead | SwavHead:
    """Builds the head of a VISSL checkpoint, ``swav_head`` or ``mlp``, and fills it; also from ``save_weights``'s file.

    ``create_model(name, num_classes=0, checkpoint=path)`` gives the trunk, ``MultiCrop`` runs both on crops.

    Args:
        path: the checkpoint. It is not trusted: nothing in it is executed.
        activation: SwAV's between linear layers, which the file does not say.

    Raises:
        UserError: the file is damaged or refused, or has no such head.
    """
    path = Path(path)
    tensors = read_raw_file(path).tensors
    if several := next((key for key in tensors if re.fullmatch(_SEVERAL, key)), None):
        raise UserError(f"{path} has several heads (it has {several}), which vitfast does not build; give one with one")
    state = {re.sub(_PREFIX, "", key): tensor for key, tensor in tensors.items() if re.match(_PREFIX, key)}
    head: MlpHead | SwavHead
    if any(key.startswith("clf.") for key in state):
        head = _mlp_head(state, path)
    elif any(key.startswith("projection_head.") for key in state):
        head = _swav_head(state, path, activation)
    else:
        held = "no head" if not state else f"another head (it has heads.0.{next(iter(state))})"
        raise UserError(f"{path} holds {held}; load_vissl_head builds swav_head and mlp")
    try:
        head.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path}: its head is no swav_head or mlp of VISSL ({_first_line(error)})") from error
    return head


def _mlp_head(state: Mapping[str, Tensor], path: Path) -> MlpHead:
    dims, places = _widths(state, "clf", path)
    use_bn = any(key.endswith("running_mean") for key in state)
    between = (places[1] - places[0] if len(places) > 1 else 1 + use_bn) - 1 - use_bn
    return MlpHead(
        dims,
        use_bn=use_bn,
        use_relu=between >= 1,
        use_dropout=between >= 2,
        use_bias=f"clf.{places[0]}.bias" in state,
        skip_last_layer_relu_bn=f"clf.{places[-1] + 1}.running_mean" not in state,
    )


def _swav_head(state: Mapping[str, Tensor], path: Path, activation: Literal["relu", "gelu"]) -> SwavHead:
    dims, places = _widths(state, "projection_head", path)
    prototypes = [tensor.shape[0] for key, tensor in state.items() if re.fullmatch(_PROTOTYPES, key)]
    return SwavHead(
        dims,
        prototypes,
        use_bn=any(key.endswith("running_mean") for key in state),
        use_bias=f"projection_head.{places[0]}.bias" in state,
        skip_last_bn=f"projection_head.{places[-1] + 1}.running_mean" not in state,
        activation=activation,
        use_weight_norm_prototypes=any(key.endswith(("weight_v", "original1")) for key in state),
    )


def _widths(state: Mapping[str, Tensor], name: str, path: Path) -> tuple[list[int], list[int]]:
    """Returns the widths of the linear layers of a sequence, and their places in it."""
    weights = {
        int(match[1]): tensor
        for key, tensor in state.items()
        if (match := re.fullmatch(rf"{name}\.{NUMBER}\.weight", key)) and tensor.dim() == 2
    }
    if not weights or 0 in [length for weight in weights.values() for length in weight.shape]:
        raise UserError(f"{path}: its head has no linear layers; download or copy it again")
    places = sorted(weights)
    return [weights[places[0]].shape[1], *(len(weights[place]) for place in places)], places


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
