"""Puts a checkpoint into a model that was found to have its fields."""

from __future__ import annotations

from dataclasses import replace

from vitfast.errors import UserError
from vitfast.layers.position_embedding import PositionInterpolation
from vitfast.models.image_model import ImageModel
from vitfast.models.load_report import LoadReport
from vitfast.models.load_state import load_state
from vitfast.models.vit_fields import ViTFields
from vitfast.weights.checkpoint import Checkpoint
from vitfast.weights.vit_state import arrange_patches

_PATCH_WEIGHT = "patch_embed.proj.weight"


def fill_model(
    model: ImageModel,
    checkpoint: Checkpoint,
    *,
    may_resize: bool,
    may_replace_head: bool,
    strict: bool = True,
    position_interpolation: PositionInterpolation | None = None,
) -> LoadReport:
    """Loads the weights; the arguments are those of ``load_state``.

    Raises:
        UserError: keys or shapes do not fit, or the thresholds are for another number of exits.
    """
    exits = checkpoint.exits
    if exits is not None and exits.num_exits != model.num_exits:
        raise UserError(
            f"{checkpoint.path} holds thresholds for {exits.num_exits} exits, but {model.model_name} has "
            f"{model.num_exits}: they are of another model; use the file that belongs to this one"
        )
    state = dict(checkpoint.state)
    if isinstance(model.fields, ViTFields) and _PATCH_WEIGHT in state:
        state[_PATCH_WEIGHT] = arrange_patches(state[_PATCH_WEIGHT], model.fields)
    own_interpolation = getattr(model.fields, "position_interpolation", None)
    if position_interpolation == own_interpolation:
        position_interpolation = None
    report = load_state(
        model,
        state,
        source=str(checkpoint.path),
        unmatched=checkpoint.unmatched,
        may_resize=may_resize,
        may_replace_head=may_replace_head,
        strict=strict,
        position_interpolation=position_interpolation,
    )
    skipped = [*checkpoint.skipped, *report.skipped]
    if exits is not None and (report.fresh or report.resized or report.missing or report.mismatched):
        skipped.append("exit thresholds (they are for the file's own heads and image size)")
        exits = None
    model.saved_exits = exits
    return replace(
        report,
        family=checkpoint.family,
        exits=exits,
        skipped=tuple(skipped),
        position_interpolation=(position_interpolation or own_interpolation) if report.resized else None,
    )
