"""``.vit`` files: an accelerated model for any machine, in one safetensors file without code.

The file holds the source's weights, not packed, and in its metadata the intermediate representation, preprocessing,
class names, exit thresholds and a SHA-256 of all of these. ``load`` packs the weights for the machine at hand.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.errors import UserError, import_optional, one_line
from vitfast.inference.accelerate import accelerate_spec
from vitfast.inference.accelerated_model import AcceleratedModel
from vitfast.inference.ir import PRECISIONS, CascadeSpec, ModelSpec, OutputSpec, SequenceSpec
from vitfast.inference.ir_records import COMPUTED, read_spec, record_spec
from vitfast.inference.lowering import Lowered, lower
from vitfast.inference.lowering.module_checks import quantized_precisions
from vitfast.inference.normalization import Normalization
from vitfast.inference.pt2_file import load_pt2
from vitfast.models.preprocessing_settings import preprocessing_settings, timm_settings_of
from vitfast.models.saved_exits import SavedExits
from vitfast.weights.save_weights import write_safetensors
from vitfast.weights.weight_file import read_safetensors

_KEY, _DIGEST = "vitfast_vit", "vitfast_vit_sha256"
_FORMAT_VERSION = 1
_SIZES = ("num_classes", "num_features", "in_chans", "img_size")
_OUTPUT_MODULE = r"transformers\.(modeling_outputs|models\.(\w+)\.modeling_\2\w*)"


class _StoredSource(nn.Module):
    """Stands for the source model of a file: its state dict and the attributes by which its library knows it."""

    def __init__(self, state: dict[str, Tensor], attributes: dict[str, Any]) -> None:
        super().__init__()
        self._state = state
        for name, value in attributes.items():
            setattr(self, name, value)

    def state_dict(self, *args: Any, **options: Any) -> Any:
        return self._state


def write_vit(model: nn.Module, path: str | os.PathLike[str], thresholds: SavedExits | None) -> None:
    """Writes a source model or an accelerated one; arguments and errors as in ``vitfast.export``."""
    if isinstance(model, AcceleratedModel):
        spec, source = model.spec_record, model.report().source
        normalization, precision, is_quantized = model.normalization, model.report().precision, model.is_quantized
    else:
        lowered = lower(model)
        if lowered.spec is None:
            raise UserError(f"{path}: a .vit file holds a model that is recognised as a whole, but {lowered.why}")
        spec = record_spec(lowered.spec, model.state_dict(keep_vars=True))
        source, normalization, precision = type(model).__name__, None, "fp32"
        quantized = quantized_precisions(model)
        is_quantized = bool(quantized)
        if is_quantized:
            precision = next(iter(quantized & {*PRECISIONS["cpu"]}), "fp32")
    if not spec.content:
        raise UserError(f"{path}: a .vit file holds no code of the source, but {spec.why_not}; use .pt2 or .onnx")
    tensors, stored = _stored_tensors({**model.state_dict(), **spec.computed})
    config: Any = getattr(model, "config", None)
    record = {
        "format_version": _FORMAT_VERSION,
        "source": source,
        "model_name": str(getattr(model, "model_name", "")),
        "precision": precision,
        "is_quantized": is_quantized,
        "normalization": None if normalization is None else [list(normalization.mean), list(normalization.std)],
        "preprocessing": _recorded_preprocessing(model),
        "class_names": class_names_of(model),
        "exit_thresholds": None if thresholds is None else [list(row) for row in thresholds.thresholds],
        "sizes": {name: int(getattr(model, name)) for name in _SIZES if isinstance(getattr(model, name, None), int)},
        "config": config.to_dict() if hasattr(config, "to_dict") else None,
        "tensors": stored,
        "spec": spec.content,
    }
    text = json.dumps(record, default=str)
    metadata = {"format": "pt", _KEY: text, _DIGEST: _digest(tensors, text)}
    write_safetensors(tensors, path, metadata, suffix=".vit")


def load(
    path: str | os.PathLike[str],
    precision: str | None = None,
    device: str | torch.device | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Any:
    """Loads a ``.vit`` or ``.pt2`` file, which ``vitfast.export`` wrote.

    The weights of a ``.vit`` file are packed for this machine. The file is not trusted: nothing in it is executed, and
    every field is checked. ``class_names`` of the result is a list, or None; ``vitfast.preprocessing`` builds the
    preprocessing of its images.

    A ``.pt2`` file is a program: load only files that you trust. Its manifest must fit this machine.

    Args:
        path: the file.
        precision: of ``.vit``, as in ``accelerate``. None: that of the exported model.
        device: of ``.vit``: ``"cpu"`` or ``"cuda"``. None: ``"cpu"``.
        mean: of ``.vit``, as in ``accelerate``, where the file does not normalize images itself.
        std: as ``mean``.

    Returns:
        What ``accelerate`` returns; of a ``.pt2`` file a module with its ``manifest``.

    Raises:
        UserError: the file is damaged, refused or of another format; the message names the field. Or as in
            ``accelerate``.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        raise UserError(f"{path} is of another format: onnxruntime.InferenceSession reads .onnx")
    if path.suffix != ".pt2":
        return load_vit(path, precision, device, mean=mean, std=std)
    options = {"precision": precision, "device": device, "mean": mean, "std": std}
    if given := [name for name, value in options.items() if value is not None]:
        raise UserError(f"{given[0]}={options[given[0]]!r} applies to .vit files; a program is as it was exported")
    return load_pt2(path)


def load_vit(
    path: Path,
    precision: str | None = None,
    device: str | torch.device | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    normalize: bool = False,
) -> AcceleratedModel:
    """Loads a ``.vit`` file; with ``normalize`` mean and std are the recorded ones. Other arguments as in ``load``."""
    record, tensors = _read_file(path)
    try:
        spec = read_spec(record["spec"], tensors)
        attributes = _attributes(record, spec)
        stored = [] if record["normalization"] is None else record["normalization"]
        if stored and (mean is not None or std is not None):
            raise UserError("the model normalizes images itself; leave mean= and std= out")
        if normalize and (settings := record["preprocessing"]) is not None:
            mean, std = (settings[name] * (settings["in_chans"] // len(settings[name])) for name in ("mean", "std"))
        normalization = Normalization.of(*(stored or (mean, std)))
        source = _StoredSource({k: t for k, t in tensors.items() if not k.startswith(COMPUTED)}, attributes)
        if record["is_quantized"] and precision not in (None, record["precision"]):
            raise UserError(
                f"precision={precision!r}, but the model is quantized to {record['precision']}; leave precision out"
            )
        fast = accelerate_spec(
            source,
            Lowered({"": spec}, None),
            precision or record["precision"],
            "cpu" if device is None else device,
            normalization,
            is_quantized=record["is_quantized"],
        )
        _try(fast, spec)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"{path} is damaged: its parts do not fit together: {one_line(error)}") from error
    return fast


def class_names_of(model: Any) -> list[str] | None:
    """Returns the names of a model's classes in the order of its logits, or None if it does not know them."""
    names = getattr(model, "class_names", None)
    if names is None and getattr(getattr(model, "config", None), "id2label", None):
        labels = model.config.id2label
        names = [labels[index] for index in sorted(labels)]
        if len(names) != getattr(model, "num_classes", len(names)):
            return None
    return None if names is None else [str(name) for name in names]


def _recorded_preprocessing(model: nn.Module) -> dict[str, Any] | None:
    try:
        settings = preprocessing_settings(model)
    except UserError:  # it has steps that are not supported
        return None
    return None if settings is None else {**settings, "mean": list(settings["mean"]), "std": list(settings["std"])}


def _stored_tensors(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns each tensor once, and for every name, in order, the name under which it is stored."""
    tensors: dict[str, Tensor] = {}
    stored: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for key, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (key,)
        stored[key] = first.setdefault(place, key)
        if stored[key] == key:
            tensors[key] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors, stored


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """Returns the SHA-256 of a record and all tensors in hexadecimal digits."""
    digest = hashlib.sha256(text.encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads and checks the file up to its spec; tensors are under all of their names."""
    if not path.is_file():
        raise UserError(f"{path} is not a file; give one that vitfast.export wrote, with the suffix .vit or .pt2")
    file = read_safetensors(path)
    if _KEY not in file.metadata:
        raise UserError(f"{path} was not written by vitfast.export; use vitfast.create_model(checkpoint=…) for weights")
    text = file.metadata[_KEY]
    tensors = file.tensors
    if file.metadata.get(_DIGEST) != _digest(tensors, text):
        raise UserError(f"{path} is damaged: its SHA-256 is not that of its content; copy or export it again")
    try:
        record: Any = json.loads(text)
        version = record["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: its record cannot be read ({one_line(error)})") from error
    if version != _FORMAT_VERSION:
        raise UserError(
            f"{path} has format {version!r}, and this version of vitfast reads {_FORMAT_VERSION}; update it"
        )
    for name, check in _CHECKS.items():
        if name not in record or not check(record[name]):
            raise UserError(f"{path} is damaged: {name} is {record.get(name, 'missing')!r:.60}")
    missing = [key for key, stored in record["tensors"].items() if stored not in tensors]
    if missing:
        raise UserError(f"{path} is damaged: it lacks the tensor of tensors.{missing[0]}")
    return record, {key: tensors[stored] for key, stored in record["tensors"].items()}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= 4096 and all(map(_is_number, value))


def _is_preprocessing(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and all(type(value.get(name)) is int and 0 < value[name] <= 16384 for name in ("img_size", "in_chans"))
        and all(_are_numbers(value.get(name)) for name in ("mean", "std"))
        and min(value["std"]) > 0
        and value.get("resize") in ("short_side", "both_sides")
        and value.get("interpolation") in ("nearest", "bilinear", "bicubic")
        and _is_number(value.get("crop_pct"))
        and 0.01 < value["crop_pct"] <= 10
    )


def _is_list_of(value: Any, check: Any) -> bool:
    return value is None or (isinstance(value, list) and all(map(check, value)))


# field of a record -> whether a value is allowed
_CHECKS: dict[str, Any] = {
    "source": lambda value: isinstance(value, str),
    "model_name": lambda value: isinstance(value, str),
    "precision": lambda value: value in {one for all_of in PRECISIONS.values() for one in all_of},
    "is_quantized": lambda value: isinstance(value, bool),
    "normalization": lambda value: value is None or (_is_list_of(value, _are_numbers) and len(value) == 2),
    "preprocessing": _is_preprocessing,
    "class_names": lambda value: _is_list_of(value, lambda name: isinstance(name, str)),
    "exit_thresholds": lambda value: _is_list_of(value, _are_numbers) and value != [],
    "sizes": lambda value: (
        isinstance(value, dict)
        and value.keys() <= {*_SIZES}
        and all(type(size) is int and 0 <= size <= 1 << 20 for size in value.values())
    ),
    "config": lambda value: value is None or isinstance(value, dict),
    "tensors": lambda value: isinstance(value, dict) and all(isinstance(name, str) for name in value.values()),
    "spec": lambda value: isinstance(value, dict),
}


def _attributes(record: dict[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """Returns the attributes of the stand-in of the source."""
    attributes = {"source_name": record["source"], "class_names": record["class_names"], **record["sizes"]}
    if record["preprocessing"] is not None:
        attributes["pretrained_cfg"] = timm_settings_of(record["preprocessing"])
    if isinstance(spec, CascadeSpec):
        saved = None if record["exit_thresholds"] is None else tuple(map(tuple, record["exit_thresholds"]))
        if saved is not None and any(len(row) != len(spec.exits) for row in saved):
            raise UserError(f"exit_thresholds must have {len(spec.exits)} numbers, one per exit")
        names = {"model_name": record["model_name"], "num_exits": len(spec.exits)}
        attributes |= {**names, "saved_exits": None if saved is None else SavedExits(saved)}
        if missing := [name for name in ("num_classes", "in_chans", "img_size") if name not in attributes]:
            raise UserError(f"sizes lacks {missing[0]}")
    elif spec.output is not None:
        attributes["config"] = _config(record["config"], spec.output)
    return attributes


def _config(content: Any, output: OutputSpec) -> Any:
    """Checks an output class by name before its module is imported; returns the configuration of transformers."""
    if not re.fullmatch(_OUTPUT_MODULE, output.module):
        raise UserError(f"spec.output.module is {output.module!r:.60}; it must be a module of transformers' models")
    transformers = import_optional("transformers", f"the model, which returns a class of {output.module},")
    cls = getattr(import_optional(output.module, "the model"), output.name, None)
    if not isinstance(cls, type) or not issubclass(cls, transformers.utils.ModelOutput):
        raise UserError(f"spec.output.name is {output.name!r:.60}; it must be an output class of {output.module}")
    fields = dict(content or {})
    kind = fields.pop("model_type", None)
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise UserError(f"config.model_type is {kind!r:.60}; it must be one of transformers'")
    try:
        return transformers.CONFIG_MAPPING[kind].from_dict(fields)
    except Exception as error:  # transformers checks the fields with errors of its own
        raise UserError(f"config is refused by transformers: {one_line(error)}") from error


def _try(model: AcceleratedModel, spec: ModelSpec) -> None:
    """Runs a loaded model once, so that parts that do not fit together are reported by ``load``."""
    if isinstance(spec, SequenceSpec):
        return
    patches = (spec.exits[0] if isinstance(spec, CascadeSpec) else spec).embedding.patches
    with torch.no_grad():
        model(torch.zeros(1, patches.in_chans, *patches.image_size, device=model.device))
