"""Fills a model with saved weights, or says exactly why they do not fit."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vitfast.errors import UserError
from vitfast.layers.position_embedding import PositionInterpolation
from vitfast.models.image_model import ImageModel
from vitfast.models.load_report import LoadReport, list_keys

# the layer before a head belongs to it: without the one the other is worthless
_HIDDEN_LAYER = "pre_logits."


def load_state(
    model: ImageModel,
    state: dict[str, Tensor],
    *,
    source: str,
    unmatched: Sequence[str] = (),
    may_resize: bool = False,
    may_replace_head: bool = False,
    strict: bool = True,
    position_interpolation: PositionInterpolation | None = None,
) -> LoadReport:
    """Loads weights in place. Every key and shape has to fit, but for what the caller allows.

    Args:
        model: the model to fill; an error leaves it as it was.
        state: weights under the model's keys (timm's, for a ViT).
        source: where they come from, for messages.
        unmatched: further keys of the file that have no counterpart in any model.
        may_resize: adapt the weights of another image size, see ``ImageModel.resize_state``.
        may_replace_head: leave the heads freshly initialized where their number of classes, or the width of the layer
            before them, differs.
        strict: whether missing, unexpected and misshapen keys are an error; else they are reported.
        position_interpolation: how weights of another image size are adapted; None means the model's own way.

    Raises:
        UserError: keys are missing, unexpected or have another shape, and ``strict``; the message lists them.
    """
    state = dict(model.own_keys(state))
    own = model.state_dict()
    resized: list[str] = []
    if may_resize:
        how = () if position_interpolation is None else (position_interpolation,)
        resized = model.resize_state(state, *how)

    skipped: list[str] = []
    fresh: list[str] = []
    if may_replace_head and _head_sizes(state, model) != _head_sizes(own, model):
        heads = (*model.head_prefixes, _HIDDEN_LAYER)
        skipped = [key for key in state if key.startswith(heads)]
        fresh = [key for key in own if key.startswith(heads)]
        for key in skipped:
            del state[key]

    missing = sorted(own.keys() - state.keys() - set(fresh))
    unexpected = [*sorted(state.keys() - own.keys()), *unmatched]
    misshapen = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    shapes = [f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}" for key in misshapen]
    if strict and (missing or unexpected or misshapen):
        problems = [
            f"{kind}: {list_keys(keys)}"
            for kind, keys in (("missing", missing), ("unexpected", unexpected), ("other shape", shapes))
            if keys
        ]
        only_positions = misshapen and all(key.split(".")[-1] == "pos_embed" for key in misshapen)
        advice = "; give img_size to resize the position embeddings" if only_positions else ""
        raise UserError(f"{source} does not fit {model.model_name}; {'; '.join(problems)}{advice}")
    loaded = {key: state[key] for key in own if key in state and key not in misshapen}
    _check_types(loaded, source)
    model.load_state_dict(loaded, strict=False)
    return LoadReport(
        source=source,
        model_name=model.model_name,
        loaded=tuple(loaded),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        mismatched=tuple(shapes),
        resized=tuple(resized),
        skipped=tuple(skipped),
        fresh=tuple(fresh),
    )


def _head_sizes(state: dict[str, Tensor], model: ImageModel) -> list[int]:
    """The outputs of a head and of the layer before it, 0 where there is none."""
    weights = (state.get(f"{name}weight") for name in (model.head_prefixes[0], f"{_HIDDEN_LAYER}fc."))
    return [0 if weight is None or weight.dim() == 0 else len(weight) for weight in weights]


def _check_types(state: dict[str, Tensor], source: str) -> None:
    """Weights are floating point; whole numbers are another tool's quantized weights, meaningless without its scales.

    ``num_batches_tracked`` of a BatchNorm is the exception.
    """
    for key, tensor in state.items():
        if not tensor.is_floating_point() and not key.endswith("num_batches_tracked"):
            raise UserError(f"{source}: {key} holds {tensor.dtype}, no floating-point numbers; save it in float32")
