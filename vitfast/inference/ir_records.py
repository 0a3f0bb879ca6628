"""Converts specs of the intermediate representation to JSON and back; tensors are replaced by names."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.inference import ir

_SPECS = {name: cls for name, cls in vars(ir).items() if dataclasses.is_dataclass(cls)}
COMPUTED = "computed."  # names of tensors that are no entries of the source's state dict
# of untrusted records: what a number may be, and sides of images, windows and paddings, which allocate memory
_LARGEST, _LARGEST_SIDE, _LARGEST_IMAGE = 1 << 20, {"size": 256, "padding": 512}, 1 << 24
_MAX_DEPTH = 30


@dataclass(frozen=True)
class SpecRecord:
    """A spec in JSON types.

    Attributes:
        content: the spec; tensors are names.
        computed: tensors of the spec that are no entries of the source's state dict.
        why_not: why the spec has no record; empty if it has.
    """

    content: dict[str, Any] = field(default_factory=dict)
    computed: dict[str, Tensor] = field(default_factory=dict)
    why_not: str = ""


def record_spec(spec: ir.ModelSpec, state: Mapping[str, Tensor]) -> SpecRecord:
    """Records a spec.

    Args:
        spec: of a model.
        state: the model's state dict with ``keep_vars``, whose keys are the names of tensors.
    """
    names: dict[int, str] = {}
    for key, tensor in state.items():
        names.setdefault(id(tensor), key)
    computed: dict[str, Tensor] = {}
    kept = []  # an id is that of one tensor while the tensor exists

    def name_of(tensor: Tensor) -> str:
        if id(tensor) not in names:
            names[id(tensor)] = f"{COMPUTED}{len(computed)}"
            computed[names[id(tensor)]] = tensor.detach().clone()
            kept.append(tensor)
        return names[id(tensor)]

    def encode(value: Any) -> Any:
        if isinstance(value, Tensor):
            return name_of(value)
        if isinstance(value, tuple):
            return [encode(one) for one in value]
        if isinstance(value, nn.Sequential) and all(type(one) in (nn.Conv2d, nn.ReLU) for one in value):
            return [_convolution(one, encode) if isinstance(one, nn.Conv2d) else None for one in value]
        if isinstance(value, ir.FallbackSpec):
            raise UserError(f"{value.name} keeps its own forward, since it {value.why}")
        if isinstance(value, nn.Module):
            raise UserError(f"its {type(value).__name__} runs the source's code")
        if not dataclasses.is_dataclass(value):
            return value
        fields = {one.name: encode(getattr(value, one.name)) for one in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}

    try:
        return SpecRecord(encode(spec), computed)
    except UserError as error:
        return SpecRecord(why_not=str(error))


def read_spec(content: Any, tensors: Mapping[str, Tensor]) -> ir.ModelSpec:
    """Reads a spec from an untrusted record.

    Args:
        content: as in ``SpecRecord``.
        tensors: by name.

    Raises:
        UserError: a field is unknown, missing, of another type or out of range; the message names it.
    """
    spec: ir.ModelSpec = _read(ir.ModelSpec, content, "spec", tensors)
    return spec


def _convolution(module: nn.Conv2d, encode: Any) -> dict[str, Any]:
    tensors = {"weight": encode(module.weight), "bias": None if module.bias is None else encode(module.bias)}
    return {**tensors, "stride": list(module.stride), "padding": list(module.padding)}


def _read(hint: Any, value: Any, where: str, tensors: Mapping[str, Tensor]) -> Any:
    if where.count(".") > _MAX_DEPTH:
        raise UserError(f"{where} is nested too deeply")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        choices: list[Any] = [one for one in arguments if one is not type(None)]
        specs = {one.__name__: one for one in choices if isinstance(one, type) and dataclasses.is_dataclass(one)}
        name = value.get("type") if isinstance(value, dict) else None
        return _read(specs.get(name, choices[0]) if isinstance(name, str) else choices[0], value, where, tensors)
    if origin is Literal:
        if value not in arguments or type(value) is not type(arguments[0]):
            raise UserError(f"{where} is {_short(value)}; allowed: {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        return _read_tuple(arguments, value, where, tensors)
    if hint is Tensor:
        if not isinstance(value, str) or value not in tensors:
            raise UserError(f"{where} names a tensor {_short(value)} that the file does not hold")
        if tensors[value].dtype != torch.float32:
            raise UserError(f"{where}: the tensor {value} is {tensors[value].dtype}, and must be torch.float32")
        return tensors[value]
    if hint is nn.Sequential:
        return _read_convolutions(value, where, tensors)
    if dataclasses.is_dataclass(hint):
        return _read_spec(hint, value, where, tensors)
    return _read_number(hint, value, where)


def _read_number(hint: Any, value: Any, where: str) -> Any:
    if hint is float and type(value) is int:
        value = float(value)
    if hint not in (bool, int, float, str) or type(value) is not hint:
        name = getattr(hint, "__name__", str(hint))
        raise UserError(f"{where} is {_short(value)}; it must be of type {name}, which a file can hold")
    if hint in (int, float) and not (math.isfinite(value) and abs(value) <= _LARGEST):
        raise UserError(f"{where} is {_short(value)}; it must be within ±{_LARGEST}")
    return value


def _read_tuple(arguments: Any, value: Any, where: str, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, list):
        raise UserError(f"{where} is {_short(value)}; it must be a list")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise UserError(f"{where} has {len(value)} entries; it must have {len(arguments)}")
    items = enumerate(zip(arguments, value, strict=True))
    return tuple(_read(hint, one, f"{where}.{index}", tensors) for index, (hint, one) in items)


def _read_spec(cls: Any, value: Any, where: str, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict) or value.get("type") != cls.__name__:
        raise UserError(f"{where} is {_short(value)}; it must be a {cls.__name__}")
    hints = typing.get_type_hints(cls, {**vars(ir), **_SPECS})
    known = {one.name for one in dataclasses.fields(cls)}
    # files of earlier versions lack fields that were added with a default
    required = {one.name for one in dataclasses.fields(cls) if one.default is dataclasses.MISSING}
    given = value.keys() - {"type"}
    different = sorted((given - known) | (required - given))
    if different:
        kind = "lacks" if different[0] in known else "has an unknown field"
        raise UserError(f"{where} {kind} {_short(different[0])}; its file is of another version or damaged")
    if cls is ir.FallbackSpec:
        raise UserError(f"{where} is code of the source, which a file does not hold")
    fields = {name: _read(hints[name], value[name], f"{where}.{name}", tensors) for name in known & given}
    _check_sizes(fields, where)
    return cls(**fields)


def _check_sizes(fields: dict[str, Any], where: str) -> None:
    """Checks fields that alone decide how much memory a model takes."""
    if "image_size" in fields and not (
        min(*fields["image_size"], fields["in_chans"]) > 0
        and math.prod(fields["image_size"]) * fields["in_chans"] <= _LARGEST_IMAGE
    ):
        raise UserError(f"{where}.image_size is {fields['image_size']}; images must have 1 to {_LARGEST_IMAGE} values")
    for name, largest in _LARGEST_SIDE.items():
        sides = fields.get(name, ())
        if any(abs(side) > largest for side in (sides if isinstance(sides, tuple) else (sides,))):
            raise UserError(f"{where}.{name} is {sides}; a side must be within {largest}")
    for name in ("patch_size", "stride", "heads", "head_dim"):
        sides = fields.get(name, 1)
        if min(sides if isinstance(sides, tuple) else (sides,)) < 1 and where != "spec":
            raise UserError(f"{where}.{name} is {sides}; it must be positive")


def _read_convolutions(value: Any, where: str, tensors: Mapping[str, Tensor]) -> nn.Sequential:
    if not isinstance(value, list):
        raise UserError(f"{where} is {_short(value)}; it must be a list of convolutions")
    layers: list[nn.Module] = []
    for index, one in enumerate(value):
        if one is None:
            layers.append(nn.ReLU())
            continue
        if not isinstance(one, dict) or one.keys() != {"weight", "bias", "stride", "padding"}:
            raise UserError(f"{where}.{index} is {_short(one)}; it must be a convolution")
        name = f"{where}.{index}"
        weight = _read(Tensor, one["weight"], f"{name}.weight", tensors)
        bias = _read(Tensor | None, one["bias"], f"{name}.bias", tensors)
        sides: Any = [_read(tuple[int, int], one[key], f"{name}.{key}", tensors) for key in ("stride", "padding")]
        if weight.dim() != 4 or min(*sides[0]) < 1 or min(*sides[1]) < 0 or max(*sides[1]) > _LARGEST_SIDE["padding"]:
            raise UserError(f"{name} is no convolution: weight {list(weight.shape)}, stride and padding {sides}")
        outputs, inputs, height, width = weight.shape
        conv = nn.Conv2d(inputs, outputs, (height, width), sides[0], sides[1], bias=bias is not None, device="meta")
        conv.weight = nn.Parameter(weight)
        if bias is not None:
            conv.bias = nn.Parameter(bias)
        layers.append(conv)
    return nn.Sequential(*layers).requires_grad_(False)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
