"""VISSL's Vision Transformers (github.com/facebookresearch/vissl): a trunk with timm's keys, and heads.

A ViT's file does not store the number of attention heads. The key tables skip SwAV's projection and prototypes, MLPs of
several layers and consecutive heads, because no classifier in vitfast has them; ``load_vissl_head`` builds them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.layers import MlpHead, SwavHead
from vitfast.models.convit import ConViTFields
from vitfast.models.foreign_model import TorchvisionFields
from vitfast.models.multi_crop import MultiCrop
from vitfast.models.vit import ViTFields
from vitfast.weights.infer_fields import NUMBER
from vitfast.weights.key_tables.key_table import KeyTable, Rule, affine
from vitfast.weights.weight_file import read_weight_file

_TRUNK = r"(?:trunk\.)?(?:base_model\.)?"  # base_model: saved by a feature extractor
_FURTHER_HEADS = r"heads\.[1-9]\d*\..+"  # these read the output of the first
_HEAD = "heads.0."
_ORIGINAL_HEAD = r"(?:prototypes\.)?((?:projection_head|prototypes\d+)\..+)"
_PROTOTYPES = r"prototypes\d+\.(weight|weight_v|parametrizations\.weight\.original1)"

VISSL = KeyTable(
    name="VISSL",
    signature=(r"trunk\.(base_model\.)?cls_token", r"trunk\.(base_model\.)?blocks\.\d+\.attn\.qkv\.weight"),
    rules=(
        Rule(_TRUNK + r"(?:cls|class)_token", "cls_token"),
        Rule(_TRUNK + r"pos_embed(?:ding)?", "pos_embed"),
        Rule(_TRUNK + r"((?:patch_embed|blocks|norm)\..+)", r"\1"),
        *affine(r"heads\.0\.clf\.0", "head"),  # VISSL's "mlp"
        *affine(r"heads\.0\.layers\.pre_logits", "pre_logits.fc"),  # VISSL's "vision_transformer_head"
        *affine(r"heads\.0\.layers\.head", "head"),
    ),
    fields={"layer_norm_eps": 1e-6, "gelu": "erf", "position_interpolation": "bicubic"},
    ignored=(
        r"heads\.\d+\.(projection_head|prototypes\d+)\..+",  # SwAV
        _TRUNK + r"patch_masking\..+",  # iBOT
    ),
    # further layers of VISSL's "mlp", its other heads, and further heads
    extra_head_layers=(
        r"heads\.0\.(?!clf\.0\.|layers\.(pre_logits|head)\.|projection_head\.|prototypes\d+\.).+",
        _FURTHER_HEADS,
    ),
)

# The names changed in October 2021. The epsilon was 1e-5 until May 2021; for a file saved between May and October,
# give layer_norm_eps=1e-6.
VISSL_2021 = replace(
    VISSL,
    name="VISSL of 2021",
    signature=(_TRUNK + r"class_token", _TRUNK + r"pos_embedding", _TRUNK + r"blocks\.\d+\.attn\.qkv\.weight"),
    fields={**VISSL.fields, "layer_norm_eps": 1e-5},
)

# Its trunk still has the old names. VISSL overwrites the local initialization, see ``ConViTFields``.
VISSL_CONVIT = replace(
    VISSL,
    name="VISSL ConViT",
    signature=(_TRUNK + r"class_token", _TRUNK + r"blocks\.\d+\.attn\.alpha"),
    rules=(
        Rule(_TRUNK + r"blocks\.(\d+)\.attn\.alpha", r"blocks.\1.attn.gating_param", Tensor.flatten),
        *affine(_TRUNK + r"blocks\.(\d+)\.mlp\.linear_([12])", r"blocks.\1.mlp.fc\2"),
        *VISSL.rules,
    ),
    fields={
        "layer_norm_eps": 1e-5,
        "gelu": "erf",
        "local_initialization": False,
        "position_interpolation": "bicubic_aligned",
    },
    fields_type=ConViTFields,
)

# a ResNet of torchvision, whose last layer is missing
VISSL_RESNET = KeyTable(
    name="VISSL ResNet",
    signature=(r"trunk\.(base_model\.)?_feature_blocks\.conv1\.weight",),
    rules=(Rule(_TRUNK + r"_feature_blocks\.(.+)", r"\1"), *affine(r"heads\.0\.clf\.0", "fc")),
    fields_type=TorchvisionFields,
    ignored=(r"heads\.\d+\.(projection_head|prototypes\d+)\..+",),
    extra_head_layers=(r"heads\.0\.(?!clf\.0\.|projection_head\.|prototypes\d+\.).+", _FURTHER_HEADS),
)

# github.com/facebookresearch/swav
SWAV_RESNET = KeyTable(
    name="SwAV ResNet",
    signature=(r"projection_head\.(0\.)?weight", r"prototypes\.(prototypes\d+\.)?weight", r"layer1\.0\.conv1\.weight"),
    rules=(Rule(r"((?:conv1|bn1|layer\d)\..+)", r"\1"),),
    fields_type=TorchvisionFields,
    ignored=(r"(projection_head|prototypes)\..+",),
)

# the fields of a ViT that VISSL's also has with any value
_VISSL_SIZES = {"img_size", "in_chans", "num_classes", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio"}
_VISSL_SIZES |= {"qkv_bias", "drop_rate", "attn_drop_rate", "drop_path"}
# and of a ConViT: the last one matters only for files of another image size
_VISSL_LOCALITY = {"local_up_to_layer", "local_initialization", "locality_strength", "locality_dim"}
_VISSL_LOCALITY |= {"position_interpolation"}
_CONVIT_KEYS = {"cls_token": "class_token", "pos_embed": "pos_embedding"}

TABLES: tuple[KeyTable, ...] = (VISSL_CONVIT, VISSL, VISSL_2021, VISSL_RESNET, SWAV_RESNET)


def load_vissl_head(
    path: str | os.PathLike[str], *, activation: Literal["relu", "gelu"] = "relu"
) -> MlpHead | SwavHead:
    """Builds and fills the head of a VISSL checkpoint, ``swav_head`` or ``mlp``, or of SwAV's original code.

    It also reads ``save_weights``'s files.

    ``create_model(name, num_classes=0, checkpoint=path)`` builds the trunk; ``MultiCrop`` runs both on crops.

    Args:
        path: the checkpoint. It is not trusted: no code in it is executed.
        activation: SwAV's activation between linear layers, which is not stored in the file.

    Raises:
        UserError: the file is damaged or refused, or has no such head.
    """
    path = Path(path)
    tensors = dict(read_weight_file(path).tensors)
    if several := next((key for key in tensors if re.fullmatch(_FURTHER_HEADS, key)), None):
        raise UserError(f"{path} has several heads (it has {several}); load_vissl_head supports files with one head")
    if "prototypes.weight" in tensors:  # the original code's names
        tensors["prototypes0.weight"] = tensors.pop("prototypes.weight")
    if any(re.fullmatch(_ORIGINAL_HEAD, key) for key in tensors):
        found = {key: match[1] for key in tensors if (match := re.fullmatch(_ORIGINAL_HEAD, key))}
        tensors = {f"{_HEAD}{name}": tensors[key] for key, name in found.items()}
    prefix = _HEAD
    state = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    names = [name for name in ("clf", "projection_head") if any(key.startswith(f"{name}.") for key in state)]
    if not names:
        held = "no head" if not state else f"another head (it has heads.0.{next(iter(state))})"
        raise UserError(f"{path} holds {held}; load_vissl_head builds swav_head and mlp")
    head = _build_head(state, names[0], path, activation)
    try:
        head.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: its head is no swav_head or mlp of VISSL ({reason})") from error
    return head


def swav_state(model: nn.Module, layout: Literal["swav", "vissl"]) -> dict[str, Tensor]:
    """Returns the weights of a trunk and its SwAV head under the keys of SwAV's original code or of VISSL.

    Both systems read a state dict saved by ``torch.save``: the original code reads this one, VISSL its parts without
    ``trunk.`` and ``heads.`` in ``classy_state_dict.base_model.model``.

    Raises:
        UserError: the model is no ``MultiCrop`` with a ``SwavHead``, or the system has no such trunk.
    """
    if not isinstance(model, MultiCrop) or not isinstance(model.head, SwavHead):
        raise UserError(f"layout={layout!r} is for a MultiCrop with a SwavHead; got a {type(model).__name__}")
    trunk, head = (
        {key: tensor.detach().cpu().contiguous() for key, tensor in part.state_dict().items()}
        for part in (model.model, model.head)
    )
    name = model.model.model_name
    if name.startswith("torchvision/resnet"):
        prefix = {"swav": "", "vissl": "trunk._feature_blocks."}[layout]
        trunk = {key.removeprefix("network."): tensor for key, tensor in trunk.items()}
    elif layout == "swav":
        raise UserError(f"layout='swav' holds ResNets of torchvision; got {name}; use layout='vissl' or 'timm'")
    else:
        _check_vissl_fields(model.model.fields, name)
        prefix = "trunk."
        if isinstance(model.model.fields, ConViTFields):
            trunk = dict(_vissl_convit_entry(key, tensor) for key, tensor in trunk.items())
    if layout == "vissl":
        head = {f"{_HEAD}{key}": tensor for key, tensor in head.items()}
    elif model.head.num_prototype_layers == 1:
        head = {key.replace("prototypes0.", "prototypes."): tensor for key, tensor in head.items()}
    else:
        head = {re.sub(r"^(prototypes\d)", r"prototypes.\1", key): tensor for key, tensor in head.items()}
    return {f"{prefix}{key}": tensor for key, tensor in trunk.items()} | head


def _check_vissl_fields(given: object, name: str) -> None:
    """Raises UserError for a model that VISSL's ViT or ConViT cannot express."""
    usual: ViTFields
    if type(given) is ViTFields:
        kind, usual, free = "ViT", ViTFields(), _VISSL_SIZES
    elif type(given) is ConViTFields:
        kind, usual, free = "ConViT", ConViTFields(layer_norm_eps=1e-5), _VISSL_SIZES | _VISSL_LOCALITY
    else:
        raise UserError(
            f"layout='vissl' holds ViT, DeiT, ConViT and ResNets of torchvision; got {name}; use layout='timm'"
        )
    names = [field.name for field in fields(given) if field.name not in free]
    different = [one for one in names if getattr(given, one) != getattr(usual, one)]
    if different:
        listed = ", ".join(f"{one}={getattr(given, one)!r}" for one in different)
        raise UserError(
            f"layout='vissl' cannot be written for {name}: VISSL's {kind} has no {listed}; use layout='timm'"
        )


def _vissl_convit_entry(key: str, tensor: Tensor) -> tuple[str, Tensor]:
    """A key and tensor of a ConViT as in VISSL's trunk."""
    if key.endswith(".gating_param"):
        return key.replace("gating_param", "alpha"), tensor.reshape(1, -1, 1, 1)
    return _CONVIT_KEYS.get(key, key.replace(".mlp.fc", ".mlp.linear_")), tensor


def _build_head(
    state: Mapping[str, Tensor], name: str, path: Path, activation: Literal["relu", "gelu"]
) -> MlpHead | SwavHead:
    dims, places = _linear_layers(state, name, path)
    use_bn = any(key.endswith("running_mean") for key in state)
    use_bias = f"{name}.{places[0]}.bias" in state
    plain_last_layer = f"{name}.{places[-1] + 1}.running_mean" not in state
    if name == "clf":
        between = (places[1] - places[0] if len(places) > 1 else 1 + use_bn) - 1 - use_bn
        return MlpHead(
            dims,
            use_bn=use_bn,
            use_relu=between >= 1,
            use_dropout=between >= 2,
            use_bias=use_bias,
            skip_last_layer_relu_bn=plain_last_layer,
        )
    return SwavHead(
        dims,
        [tensor.shape[0] for key, tensor in state.items() if re.fullmatch(_PROTOTYPES, key)],
        use_bn=use_bn,
        use_bias=use_bias,
        skip_last_bn=plain_last_layer,
        activation=activation,
        use_weight_norm_prototypes=any(key.endswith(("weight_v", "original1")) for key in state),
    )


def _linear_layers(state: Mapping[str, Tensor], name: str, path: Path) -> tuple[list[int], list[int]]:
    """Returns the widths of the linear layers of a sequence, and their indices in it."""
    weights = {
        int(match[1]): tensor
        for key, tensor in state.items()
        if (match := re.fullmatch(rf"{name}\.{NUMBER}\.weight", key)) and tensor.dim() == 2
    }
    if not weights or 0 in [length for weight in weights.values() for length in weight.shape]:
        raise UserError(f"{path}: its head has no linear layers; download or copy it again")
    places = sorted(weights)
    return [weights[places[0]].shape[1], *(len(weights[place]) for place in places)], places
