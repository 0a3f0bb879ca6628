"""A converted model in one small file: every rounded weight in the narrowest dtype that represents it exactly."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.errors import UserError, one_line
from vitfast.models import ImageModel
from vitfast.quantization.int8_arithmetic import Int8Arithmetic, quantize_weight
from vitfast.quantization.quantize import quantized_modules
from vitfast.quantization.record import quantization_record, quantize_from_record
from vitfast.weights.load_weights import build_stored_model
from vitfast.weights.save_weights import write_safetensors
from vitfast.weights.source_checkpoint import SCALE, stored_weights, unpack_weights
from vitfast.weights.weight_file import read_safetensors

_METADATA_KEY = "vitfast_quantized"
_NARROW_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16)


def save_quantized(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes a converted model: its weights, packed without loss by ``pack_state``, and its quantization.

    The file of a model from ``create_model`` also holds its name and fields.

    Args:
        model: any model that ``quantize_`` converted.
        path: ends in ``.safetensors``; an existing file is replaced atomically.

    Raises:
        UserError: the model is not converted; the path has another suffix or no folder.
        OSError: the file cannot be written (disk full, no permission); an existing file is unchanged.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"save_quantized writes models that vitfast.quantize_ converted; got {type(model).__name__}")
    record = quantization_record(model)
    if record is None or not record["converted"]:
        raise UserError(
            "save_quantized writes converted models; call quantize_(model, FP16_32Config()), for example, or "
            "quantize_(model, QATConfig(step='convert')) after training"
        )
    architecture: dict[str, Any] = {"class": type(model).__name__}
    if isinstance(model, ImageModel):
        architecture = {"name": model.model_name, "fields": model.model_fields}
    metadata = {"model": architecture, "quantization": record}
    write_safetensors(pack_state(model), path, {_METADATA_KEY: json.dumps(metadata)})


def load_quantized(path: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Loads what ``save_quantized`` wrote, in evaluation mode; outputs are bit-identical.

    Args:
        path: the file.
        model: an unquantized model of the same architecture, which is filled and quantized in place. Models from
            ``create_model`` are built if it is None.

    Returns:
        The converted model.

    Raises:
        UserError: the file does not exist, is of another kind or damaged; ``model`` is needed, is quantized, or its
            parameters differ from the file's. It is unchanged then.
    """
    path = Path(path)
    if not os.path.isfile(path):  # also False for a name that is too long
        raise UserError(f"{path} is no file; give one that vitfast.save_quantized wrote")
    file = read_safetensors(path)
    if _METADATA_KEY not in file.metadata:
        raise UserError(f"{path} was not written by vitfast.save_quantized; use create_model(checkpoint=…)")
    try:
        metadata = json.loads(file.metadata[_METADATA_KEY])
        if model is None and "class" in metadata["model"]:
            kind = metadata["model"]["class"]
            raise UserError(f"{path} holds a {kind}; give load_quantized(path, model) an unquantized one to fill")
        if model is None:
            model = build_stored_model(stored_weights(path, metadata["model"], file.tensors))
        else:
            _check_same_parameters(model, file.tensors, path)
        try:
            quantize_from_record(model, metadata["quantization"])
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        load_packed_state(model, file.tensors, str(path))
    except UserError:
        raise
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {one_line(error)}") from error
    return model.eval()


def _check_same_parameters(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    if quantized_modules(model):
        raise UserError("model is quantized; load_quantized needs an unquantized one of the same architecture")
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    stored = {key: tuple(tensor.shape) for key, tensor in unpack_weights(state, str(path))[0].items()}
    different = sorted(key for key in expected.keys() | stored.keys() if expected.get(key) != stored.get(key))
    if different:
        key = different[0]
        raise UserError(
            f"{path} is of another architecture than the model: {len(different)} tensors differ, for example {key}: "
            f"{stored.get(key, 'none')} in the file, {expected.get(key, 'none')} in the model"
        )


def pack_state(model: nn.Module) -> dict[str, Tensor]:
    """Packs the state of a converted model: tensors on the CPU, under the model's keys and those of the scales.

    int8 weights become integers and scales; rounded floating-point and fixed-point weights take 8 or 16 bits if these
    represent every value (TF32 needs 32). Other tensors stay float32.
    """
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    for name, module in quantized_modules(model).items():
        if module.quantization.config is None or not module.quantization.converted:
            continue
        for key in {f"{name}.weight", f"{name}.in_proj_weight"} & state.keys():
            if not isinstance(module.quantization.arithmetic, Int8Arithmetic):
                state[key] = _narrowed(state[key])
            elif hasattr(module, "weight_scale"):  # not a LayerNorm
                scale = state[key + SCALE] = module.get_buffer("weight_scale").detach().cpu()
                state[key] = quantize_weight(state[key], scale).to(torch.int8)
    return state


def load_packed_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads the result of ``pack_state``, or a plain state dict, into a model quantized like the packed one, bit-exact.

    Raises:
        UserError: scales do not match their weight.
        RuntimeError: keys or shapes do not match.
    """
    weights, scales = unpack_weights(state, source)
    model.load_state_dict(weights)
    modules = quantized_modules(model)
    with torch.no_grad():
        for key, scale in scales.items():  # computed from rounded weights they could differ in the last bit
            stored: Tensor = modules[key.rpartition(".")[0]].weight_scale  # type: ignore[assignment]
            stored.copy_(scale)
            model.get_parameter(key).copy_(weights[key])


def _narrowed(weight: Tensor) -> Tensor:
    """Returns the weight in the narrowest dtype that restores every bit."""
    for dtype in _NARROW_DTYPES:
        narrow = weight.to(dtype)
        if torch.equal(narrow.to(weight.dtype).view(torch.int32), weight.view(torch.int32)):
            return narrow
    return weight
