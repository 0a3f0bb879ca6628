"""The models, which only build and compute: no files, no training, no command line."""

from vitfast.models.convit import ConViT
from vitfast.models.convit_fields import ConViTFields
from vitfast.models.deit import DistilledVisionTransformer
from vitfast.models.dvt import DVT
from vitfast.models.dvt_fields import DVTFields
from vitfast.models.exit_state import ExitState
from vitfast.models.hybrid import HybridViT
from vitfast.models.hybrid_fields import HybridFields
from vitfast.models.image_model import ImageModel, ModelFields
from vitfast.models.multi_crop import MultiCrop
from vitfast.models.registry import build_model, list_models
from vitfast.models.saved_exits import SavedExits
from vitfast.models.t2t_vit import T2TViT
from vitfast.models.t2t_vit_fields import T2TViTFields
from vitfast.models.vit import VisionTransformer
from vitfast.models.vit_fields import ViTFields

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
