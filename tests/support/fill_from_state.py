"""Fills a model from weights in memory, as ``vitfast.load_weights`` does from a file."""

from pathlib import Path
from typing import Any

from torch import Tensor

from vitfast.models import ImageModel
from vitfast.models.load_report import LoadReport
from vitfast.weights.fill_model import fill_model
from vitfast.weights.source_checkpoint import SourceCheckpoint


def fill_from_state(model: ImageModel, state: dict[str, Tensor], source: str, **options: Any) -> LoadReport:
    return fill_model(model, SourceCheckpoint(Path(source), "vitfast", None, {}, state), **options)
