"""``fill_model`` loads the weights of a checkpoint into a model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vitfast.errors import UserError
from vitfast.layers.position_embedding import PositionInterpolation
from vitfast.models.image_model import ImageModel
from vitfast.models.load_report import LoadReport, list_keys
from vitfast.weights.check_fields import COMPUTATION_FIELDS
from vitfast.weights.source_checkpoint import SourceCheckpoint

_HIDDEN_LAYER = "pre_logits."  # the layer before a head; a head is replaced together with it


def fill_model(
    model: ImageModel,
    checkpoint: SourceCheckpoint,
    *,
    may_resize: bool = False,
    may_replace_head: bool = False,
    strict: bool = True,
    position_interpolation: PositionInterpolation | None = None,
) -> LoadReport:
    """Loads weights and exit thresholds in place. Keys and shapes must fit, except where the arguments allow otherwise.

    Args:
        model: the model to fill, with the checkpoint's fields; an error leaves it unchanged.
        checkpoint: what was read.
        may_resize: adapt weights for another image size, see ``ImageModel.resize_state``.
        may_replace_head: keep the model's heads where the number of classes, or the width of the layer before them,
            differs.
        strict: whether missing, unexpected and misshapen keys are an error; otherwise they are reported.
        position_interpolation: see ``ImageModel.resize_state``.

    Raises:
        UserError: keys are missing, unexpected or misshapen, and ``strict``; the message lists them. Or the thresholds
            are for another number of exits.
    """
    source, exits = str(checkpoint.path), checkpoint.exits
    if exits is not None and exits.num_exits != model.num_exits:
        raise UserError(
            f"{source} holds thresholds for {exits.num_exits} exits, but {model.model_name} has {model.num_exits}; use "
            "the file of this model"
        )
    state = dict(model.adapt_state(checkpoint.state))
    own = model.state_dict()
    position_interpolation = position_interpolation or getattr(model.fields, "position_interpolation", None)
    resized = model.resize_state(state, position_interpolation) if may_resize else []

    replaced: list[str] = []
    fresh: list[str] = []
    if may_replace_head and _head_sizes(state, model) != _head_sizes(own, model):
        heads = (*model.head_prefixes, _HIDDEN_LAYER)
        replaced = [key for key in state if key.startswith(heads)]
        fresh = [key for key in own if key.startswith(heads)]
        for key in replaced:
            del state[key]

    missing = sorted(own.keys() - state.keys() - set(fresh))
    unexpected = [*sorted(state.keys() - own.keys()), *checkpoint.unmatched]
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
    for key, tensor in loaded.items():
        # integers are weights that another tool quantized, useless without its scales; a BatchNorm counts batches
        if not tensor.is_floating_point() and not key.endswith("num_batches_tracked"):
            raise UserError(f"{source}: {key} holds {tensor.dtype}, not floating-point numbers; save it in float32")
    model.load_state_dict(loaded, strict=False)

    skipped = [*checkpoint.skipped, *replaced]
    if exits is not None and (fresh or resized or missing or misshapen):
        skipped.append("exit thresholds (valid only with the file's heads and image size)")
        exits = None
    model.saved_exits = exits
    if checkpoint.preprocessing is not None:
        sizes = (model.in_chans, model.img_size, model.img_size)
        model.stored_preprocessing = {**checkpoint.preprocessing, "input_size": sizes}
    return LoadReport(
        source=source,
        model_name=model.model_name,
        family=checkpoint.family,
        assumed=_assumed_fields(model, checkpoint),
        loaded=tuple(loaded),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        mismatched=tuple(shapes),
        resized=tuple(resized),
        position_interpolation=position_interpolation if resized else None,
        skipped=tuple(skipped),
        fresh=tuple(fresh),
        exits=exits,
    )


def _assumed_fields(model: ImageModel, checkpoint: SourceCheckpoint) -> dict[str, Any]:
    """Returns the model's values of the fields that change the computation and that the checkpoint does not tell."""
    if checkpoint.name is not None:  # vitfast's own, which store all fields
        return {}
    names = [name for name in ("num_heads", *COMPUTATION_FIELDS) if name not in checkpoint.fields]
    return {name: getattr(model.fields, name) for name in names if hasattr(model.fields, name)}


def _head_sizes(state: dict[str, Tensor], model: ImageModel) -> list[int]:
    """Returns the outputs of a head and of the layer before it, 0 where there is none."""
    weights = (state.get(f"{name}weight") for name in (model.head_prefixes[0], f"{_HIDDEN_LAYER}fc."))
    return [0 if weight is None or weight.dim() == 0 else len(weight) for weight in weights]
