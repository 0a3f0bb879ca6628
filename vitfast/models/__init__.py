"""The models: fields, architectures and modules. They do not read files, train or parse options."""

from vitfast.models.convit import ConViT, ConViTFields
from vitfast.models.deit import DistilledVisionTransformer
from vitfast.models.dvt import DVT, ExitState
from vitfast.models.dvt_fields import DVTFields
from vitfast.models.hybrid import HybridFields, HybridViT
from vitfast.models.image_model import ImageModel
from vitfast.models.model_fields import ModelFields
from vitfast.models.multi_crop import MultiCrop
from vitfast.models.registry import build_model, list_models
from vitfast.models.saved_exits import SavedExits
from vitfast.models.t2t_vit import T2TViT, T2TViTFields
from vitfast.models.vit import VisionTransformer, ViTFields

__all__ = [
    "DVT",
    "ConViT",
    "ConViTFields",
    "DVTFields",
    "DistilledVisionTransformer",
    "ExitState",
    "HybridFields",
    "HybridViT",
    "ImageModel",
    "ModelFields",
    "MultiCrop",
    "SavedExits",
    "T2TViT",
    "T2TViTFields",
    "ViTFields",
    "VisionTransformer",
    "build_model",
    "list_models",
]
