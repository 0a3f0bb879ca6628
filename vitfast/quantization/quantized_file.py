"""A converted model in one small file: every rounded weight in the narrowest type that holds it exactly."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from vitfast.errors import UserError
from vitfast.models import ImageModel, build_model
from vitfast.quantization.packed_state import load_packed_state, pack_state
from vitfast.quantization.record import quantization_record, quantize_from_record

_METADATA_KEY = "vitfast_quantized"


def save_quantized(model: ImageModel, path: str | os.PathLike[str]) -> None:
    """Writes a converted model: its weights, packed without loss, and how to build and quantize it again.

    See ``pack_state`` for the types.

    Args:
        model: from ``create_model``, converted by ``quantize_``.
        path: ends in ``.safetensors``; an existing file is replaced. The file appears only when it is whole.

    Raises:
        UserError: the model is not converted, or no vitfast model; the path has another ending or no folder.
        OSError: it cannot be written (disk full, no permission). What was there before is intact.
    """
    path = Path(path)
    if not isinstance(model, ImageModel):
        raise UserError(f"save_quantized writes models from vitfast.create_model; got a {type(model).__name__}")
    if path.suffix != ".safetensors" or not path.parent.is_dir():
        raise UserError(f"{path} must end in .safetensors, in a folder that exists")
    record = quantization_record(model)
    if record is None or not record["converted"]:
        raise UserError(
            "save_quantized writes converted models; call quantize_(model, FP16_32Config()), for example, or "
            "quantize_(model, QATConfig(step='convert')) after training"
        )
    metadata = {"model": {"name": model.model_name, "fields": model.model_fields}, "quantization": record}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        safetensors.torch.save_file(pack_state(model), temporary, {_METADATA_KEY: json.dumps(metadata)})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except safetensors.SafetensorError as error:  # the library hides the system's error in a text of its own
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def load_quantized(path: str | os.PathLike[str]) -> ImageModel:
    """Builds the model that ``save_quantized`` wrote, in evaluation mode; it computes the same bits.

    Raises:
        UserError: there is no such file, or it is of another kind or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is no file; give one that vitfast.save_quantized wrote")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY)
            state = {key: file.get_tensor(key) for key in file.keys()}
        metadata: dict[str, Any] = json.loads(text) if text else {}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is no whole safetensors file: {error}") from error
    if not {"model", "quantization"} <= metadata.keys():
        raise UserError(f"{path} was not written by vitfast.save_quantized; use create_model(checkpoint=…)")
    model = build_model(metadata["model"]["name"], **metadata["model"]["fields"]).eval()
    quantize_from_record(model, metadata["quantization"])
    try:
        load_packed_state(model, state, str(path))
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return model
